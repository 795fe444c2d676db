//! JSON Schema, as far as it says what a value may be: the rules for arguments of tools.
//!
//! A keyword that is not known here is refused when the schema is read, so that nobody believes in a rule that is not
//! enforced. Patterns are searched in linear time; a schema that refers to itself may still ask for more work than a value is
//! worth, so work has a bound, and a value that passes it fits nothing.
//!
//! # Source
//! JSON Schema 2020-12, Core and Validation. `$ref` stays within the schema; `unevaluated…` are not known. `format` is
//! enforced, where the standard leaves it open.

mod format;

use std::cell::Cell;
use std::collections::BTreeMap;

use regex::Regex;

use crate::json::{self, Limits, Value};

/// The largest schema.
const MAX_BYTES: usize = 256 << 10;

/// Schemas within each other, while a value is held against them.
const MAX_DEPTH: usize = 128;

/// How often a value, or a part of it, is held against a schema, or a part of that.
const MAX_STEPS: u32 = 200_000;

/// Why a schema is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// It is not JSON.
    #[error("it is no plain JSON: {0}")]
    Json(json::JsonError),
    /// A keyword that is not known, and so would not be enforced.
    #[error("`{0}` is not known, so it could not be enforced")]
    Keyword(String),
    /// A keyword with a value that means nothing.
    #[error("`{0}` has a value that means nothing")]
    Value(String),
    /// A reference to nothing within the schema.
    #[error("`$ref` leads to `{0}`, where nothing is")]
    Reference(String),
}

/// A schema, read.
#[derive(Clone, Debug)]
pub struct Schema {
    root: Node,
    /// What `$ref` leads to, by its text.
    referred: BTreeMap<String, Node>,
}

/// What does not fit, and where: a path such as `/query/0`, and the keyword. Nothing of the value is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Where in the value.
    pub path: String,
    /// The keyword that it breaks.
    pub keyword: &'static str,
}

#[derive(Clone, Debug)]
enum Node {
    /// `true` or `false`.
    Plain(bool),
    Rules(Vec<Rule>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Array,
    Boolean,
    Integer,
    Null,
    Number,
    Object,
    String,
}

#[derive(Clone, Debug)]
enum Rule {
    Types(Vec<Kind>),
    /// `enum`, or `const` as one of one.
    OneOfValues(&'static str, Vec<Value<'static>>),
    /// A bound of a number, by its keyword.
    Number(&'static str, f64),
    /// A bound of a count, by its keyword.
    Count(&'static str, usize),
    Pattern(Regex),
    Format(fn(&str) -> bool),
    Unique,
    /// `contains`, and between how many times.
    Contains(Box<Node>, usize, Option<usize>),
    /// `prefixItems` and `items`.
    Items(Vec<Node>, Option<Box<Node>>),
    Object {
        properties: BTreeMap<String, Node>,
        patterns: Vec<(Regex, Node)>,
        additional: Option<Box<Node>>,
    },
    PropertyNames(Box<Node>),
    Required(Vec<String>),
    DependentRequired(BTreeMap<String, Vec<String>>),
    DependentSchemas(BTreeMap<String, Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
    One(Vec<Node>),
    Not(Box<Node>),
    /// `if`, `then`, `else`.
    If(Box<[Node; 3]>),
    Reference(String),
}

/// Keywords that say nothing about what a value may be, or not by themselves.
const ANNOTATIONS: [&str; 17] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "definitions",
    "default",
    "deprecated",
    "description",
    "else",
    "examples",
    "maxContains",
    "minContains",
    "readOnly",
    "then",
    "title",
    "writeOnly",
];

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        let limits = Limits { bytes: MAX_BYTES, ..Limits::default() };
        let value = json::parse(text.as_bytes(), &limits).map_err(SchemaError::Json)?.into_owned();
        let mut reader = Reader { whole: &value, referred: BTreeMap::new() };
        let root = reader.node(&value)?;
        Ok(Self { root, referred: reader.referred })
    }

    /// Holds a value against the schema.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn fits(&self, value: &Value<'_>) -> Result<(), Misfit> {
        let check = Check { referred: &self.referred, left: Cell::new(MAX_STEPS) };
        let fits = check.node(&self.root, value, &mut String::new(), MAX_DEPTH);
        // Whatever else was found: beyond the bound a `not` may hold, or a part of `oneOf`, because it was not looked at.
        if check.left.get() == 0 {
            return Err(Misfit { path: String::new(), keyword: "$ref" });
        }
        fits
    }
}

struct Reader<'a> {
    whole: &'a Value<'static>,
    referred: BTreeMap<String, Node>,
}

impl Reader<'_> {
    fn node(&mut self, value: &Value<'static>) -> Result<Node, SchemaError> {
        let object = match value {
            Value::Bool(plain) => return Ok(Node::Plain(*plain)),
            Value::Object(object) => object,
            _ => return Err(SchemaError::Value("schema".into())),
        };
        let mut rules = Vec::new();
        let (mut prefix, mut items) = (Vec::new(), None);
        let (mut properties, mut patterns, mut additional) = (BTreeMap::new(), Vec::new(), None);
        for (key, value) in object.iter() {
            let wrong = || SchemaError::Value(key.to_owned());
            match key {
                "type" => rules.push(Rule::Types(types(value).ok_or_else(wrong)?)),
                "enum" => {
                    let all = value.as_list().filter(|all| !all.is_empty()).ok_or_else(wrong)?;
                    rules.push(Rule::OneOfValues("enum", all.to_vec()));
                }
                "const" => rules.push(Rule::OneOfValues("const", vec![value.clone()])),
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                    let Value::Number(number) = value else { return Err(wrong()) };
                    let (key, number) = (NUMBERS.into_iter().find(|known| *known == key), number.as_f64());
                    if key == Some("multipleOf") && number <= 0.0 {
                        return Err(wrong());
                    }
                    rules.push(Rule::Number(key.ok_or_else(wrong)?, number));
                }
                "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                    let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).ok_or_else(wrong)?;
                    let key = COUNTS.into_iter().find(|known| *known == key).ok_or_else(wrong)?;
                    rules.push(Rule::Count(key, count));
                }
                "pattern" => rules.push(Rule::Pattern(pattern(value).ok_or_else(wrong)?)),
                "format" => {
                    let name = value.as_str().ok_or_else(wrong)?;
                    let is = format::named(name).ok_or_else(|| SchemaError::Keyword(format!("format: {name}")))?;
                    rules.push(Rule::Format(is));
                }
                "contains" => {
                    let count = |key| {
                        let count = |value: &Value<'_>| value.as_u64().and_then(|count| usize::try_from(count).ok());
                        object
                            .get(key)
                            .map(|value| count(value).ok_or_else(|| SchemaError::Value(key.into())))
                            .transpose()
                    };
                    let (least, most) = (count("minContains")?.unwrap_or(1), count("maxContains")?);
                    rules.push(Rule::Contains(Box::new(self.node(value)?), least, most));
                }
                "uniqueItems" => match value {
                    Value::Bool(true) => rules.push(Rule::Unique),
                    Value::Bool(false) => {}
                    _ => return Err(wrong()),
                },
                "prefixItems" => prefix = self.nodes(value).map_err(|e| e.unwrap_or_else(wrong))?,
                "items" => items = Some(Box::new(self.node(value)?)),
                "properties" => {
                    let Value::Object(all) = value else { return Err(wrong()) };
                    for (name, value) in all.iter() {
                        properties.insert(name.to_owned(), self.node(value)?);
                    }
                }
                "patternProperties" => {
                    let Value::Object(all) = value else { return Err(wrong()) };
                    for (name, value) in all.iter() {
                        patterns.push((Regex::new(name).map_err(|_| wrong())?, self.node(value)?));
                    }
                }
                "additionalProperties" => additional = Some(Box::new(self.node(value)?)),
                "propertyNames" => rules.push(Rule::PropertyNames(Box::new(self.node(value)?))),
                "required" => rules.push(Rule::Required(names(value).ok_or_else(wrong)?)),
                "dependentRequired" => {
                    let Value::Object(all) = value else { return Err(wrong()) };
                    let all = all.iter().map(|(name, value)| Some((name.to_owned(), names(value)?)));
                    rules.push(Rule::DependentRequired(all.collect::<Option<_>>().ok_or_else(wrong)?));
                }
                "dependentSchemas" => {
                    let Value::Object(all) = value else { return Err(wrong()) };
                    let all = all.iter().map(|(name, value)| Ok((name.to_owned(), self.node(value)?)));
                    rules.push(Rule::DependentSchemas(all.collect::<Result<_, SchemaError>>()?));
                }
                "allOf" => rules.push(Rule::All(self.nodes(value).map_err(|e| e.unwrap_or_else(wrong))?)),
                "anyOf" => rules.push(Rule::Any(self.nodes(value).map_err(|e| e.unwrap_or_else(wrong))?)),
                "oneOf" => rules.push(Rule::One(self.nodes(value).map_err(|e| e.unwrap_or_else(wrong))?)),
                "not" => rules.push(Rule::Not(Box::new(self.node(value)?))),
                "if" => {
                    let mut branch = |key| object.get(key).map_or(Ok(Node::Plain(true)), |value| self.node(value));
                    let (then, otherwise) = (branch("then")?, branch("else")?);
                    rules.push(Rule::If(Box::new([self.node(value)?, then, otherwise])));
                }
                "$ref" => rules.push(Rule::Reference(self.reference(value.as_str().ok_or_else(wrong)?)?)),
                _ if ANNOTATIONS.contains(&key) => {}
                unknown => return Err(SchemaError::Keyword(unknown.to_owned())),
            }
        }
        if !prefix.is_empty() || items.is_some() {
            rules.push(Rule::Items(prefix, items));
        }
        if !properties.is_empty() || !patterns.is_empty() || additional.is_some() {
            rules.push(Rule::Object { properties, patterns, additional });
        }
        Ok(Node::Rules(rules))
    }

    fn nodes(&mut self, value: &Value<'static>) -> Result<Vec<Node>, Option<SchemaError>> {
        let all = value.as_list().filter(|all| !all.is_empty()).ok_or(None)?;
        all.iter().map(|value| self.node(value).map_err(Some)).collect()
    }

    /// Reads what a reference leads to, once.
    fn reference(&mut self, text: &str) -> Result<String, SchemaError> {
        let nowhere = || SchemaError::Reference(text.to_owned());
        if !self.referred.contains_key(text) {
            let pointer = text.strip_prefix('#').ok_or_else(nowhere)?;
            let mut at = self.whole;
            for part in pointer.split('/').skip(1) {
                let key = part.replace("~1", "/").replace("~0", "~");
                at = match at {
                    Value::List(all) => key.parse().ok().and_then(|place: usize| all.get(place)).ok_or_else(nowhere)?,
                    value => value.get(&key).ok_or_else(nowhere)?,
                };
            }
            if !pointer.is_empty() && !pointer.starts_with('/') {
                return Err(nowhere());
            }
            // Known before it is read, since it may refer to itself.
            self.referred.insert(text.to_owned(), Node::Plain(false));
            let node = self.node(at)?;
            self.referred.insert(text.to_owned(), node);
        }
        Ok(text.to_owned())
    }
}

const NUMBERS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
const COUNTS: [&str; 6] = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];

fn types(value: &Value<'_>) -> Option<Vec<Kind>> {
    let kind = |value: &Value<'_>| {
        Some(match value.as_str()? {
            "array" => Kind::Array,
            "boolean" => Kind::Boolean,
            "integer" => Kind::Integer,
            "null" => Kind::Null,
            "number" => Kind::Number,
            "object" => Kind::Object,
            "string" => Kind::String,
            _ => return None,
        })
    };
    match value {
        Value::List(all) if !all.is_empty() => all.iter().map(kind).collect(),
        one => Some(vec![kind(one)?]),
    }
}

fn names(value: &Value<'_>) -> Option<Vec<String>> {
    value.as_list()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

fn pattern(value: &Value<'_>) -> Option<Regex> {
    Regex::new(value.as_str()?).ok()
}

/// Whether two values are the same; numbers by what they are, not by how they are written.
fn same(one: &Value<'_>, other: &Value<'_>) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => a.as_str() == b.as_str() || a.as_f64() == b.as_f64(),
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Null, Value::Null) => true,
        _ => false,
    }
}

fn is(value: &Value<'_>, kind: Kind) -> bool {
    match (value, kind) {
        (Value::Number(number), Kind::Integer) => number.as_f64().fract() == 0.0,
        (Value::List(_), Kind::Array)
        | (Value::Bool(_), Kind::Boolean)
        | (Value::Null, Kind::Null)
        | (Value::Number(_), Kind::Number)
        | (Value::Object(_), Kind::Object)
        | (Value::Text(_), Kind::String) => true,
        _ => false,
    }
}

/// A value being held against a schema.
struct Check<'a> {
    referred: &'a BTreeMap<String, Node>,
    /// The work that may still be done; none once a bound was passed.
    left: Cell<u32>,
}

impl Check<'_> {
    /// Takes so much of the work that may be done; `false` if there is none left.
    fn spend(&self, steps: usize) -> bool {
        let left = u32::try_from(steps).ok().and_then(|steps| self.left.get().checked_sub(steps)).unwrap_or(0);
        self.left.set(left);
        left > 0
    }

    fn node(&self, node: &Node, value: &Value<'_>, path: &mut String, depth: usize) -> Result<(), Misfit> {
        let misfit = |path: &str, keyword| Err(Misfit { path: path.to_owned(), keyword });
        let Some(depth) = depth.checked_sub(1).filter(|_| self.spend(1)) else {
            self.left.set(0);
            return misfit(path, "$ref");
        };
        let rules = match node {
            Node::Plain(true) => return Ok(()),
            Node::Plain(false) => return misfit(path, "false"),
            Node::Rules(rules) => rules,
        };
        for rule in rules {
            let broken = self.rule(rule, value, path, depth)?;
            if let Some(keyword) = broken {
                return misfit(path, keyword);
            }
        }
        Ok(())
    }

    /// Holds a value against one rule; gives the keyword that it breaks itself, or what is broken within it.
    fn rule(
        &self,
        rule: &Rule,
        value: &Value<'_>,
        path: &mut String,
        depth: usize,
    ) -> Result<Option<&'static str>, Misfit> {
        let fits = |node: &Node, path: &mut String| self.node(node, value, path, depth).is_ok();
        let broken = |is_broken: bool, keyword| Ok(is_broken.then_some(keyword));
        match (rule, value) {
            (Rule::Types(kinds), _) => broken(!kinds.iter().any(|kind| is(value, *kind)), "type"),
            (Rule::OneOfValues(keyword, all), _) => {
                broken(!self.spend(all.len()) || !all.iter().any(|one| same(one, value)), keyword)
            }
            (Rule::Number(keyword, bound), Value::Number(number)) => {
                let number = number.as_f64();
                let holds = match *keyword {
                    "minimum" => number >= *bound,
                    "maximum" => number <= *bound,
                    "exclusiveMinimum" => number > *bound,
                    "exclusiveMaximum" => number < *bound,
                    _ => (number / bound).fract() == 0.0,
                };
                broken(!holds, keyword)
            }
            (Rule::Count(keyword, bound), _) => {
                let count = match (value, keyword.ends_with("Length"), keyword.ends_with("Items")) {
                    (Value::Text(text), true, _) => text.chars().count(),
                    (Value::List(all), _, true) => all.len(),
                    (Value::Object(all), false, false) => all.len(),
                    _ => return Ok(None),
                };
                let holds = if keyword.starts_with("min") { count >= *bound } else { count <= *bound };
                broken(!holds, keyword)
            }
            (Rule::Pattern(pattern), Value::Text(text)) => broken(!pattern.is_match(text), "pattern"),
            (Rule::Format(is), Value::Text(text)) => broken(!is(text), "format"),
            (Rule::Contains(node, least, most), Value::List(all)) => {
                let fitting = all.iter().filter(|value| self.node(node, value, path, depth).is_ok());
                let enough = most.map_or(*least, |most| most.saturating_add(1).max(*least));
                let count = fitting.take(enough).count();
                match count < *least {
                    true => Ok(Some("contains")),
                    false => broken(most.is_some_and(|most| count > most), "maxContains"),
                }
            }
            (Rule::Unique, Value::List(all)) => {
                // By their one canonical form, so that a long list takes no more than its length.
                let mut seen = std::collections::BTreeSet::new();
                broken(!all.iter().all(|value| seen.insert(value.canonical())), "uniqueItems")
            }
            (Rule::Items(prefix, rest), Value::List(all)) => {
                for (place, value) in all.iter().enumerate() {
                    let Some(node) = prefix.get(place).or(rest.as_deref()) else { break };
                    self.within(node, value, path, &place.to_string(), depth)?;
                }
                Ok(None)
            }
            (Rule::Object { properties, patterns, additional }, Value::Object(all)) => {
                for (key, value) in all.iter() {
                    let named = properties.get(key);
                    let matched = patterns.iter().filter(|(pattern, _)| pattern.is_match(key)).map(|(_, node)| node);
                    let mut covered = false;
                    for node in named.into_iter().chain(matched) {
                        covered = true;
                        self.within(node, value, path, key, depth)?;
                    }
                    match additional {
                        Some(node) if !covered && matches!(**node, Node::Plain(false)) => {
                            return Ok(Some("additionalProperties"));
                        }
                        Some(node) if !covered => self.within(node, value, path, key, depth)?,
                        _ => {}
                    }
                }
                Ok(None)
            }
            (Rule::PropertyNames(node), Value::Object(all)) => {
                let fit = |key: &str| self.node(node, &Value::text(key), path, depth).is_ok();
                broken(!all.iter().map(|(key, _)| key).all(fit), "propertyNames")
            }
            (Rule::Required(names), Value::Object(all)) => {
                broken(names.iter().any(|name| all.get(name).is_none()), "required")
            }
            (Rule::DependentRequired(on), Value::Object(all)) => {
                let lacks = |names: &Vec<String>| names.iter().any(|name| all.get(name).is_none());
                broken(on.iter().any(|(name, names)| all.get(name).is_some() && lacks(names)), "dependentRequired")
            }
            (Rule::DependentSchemas(on), Value::Object(all)) => {
                let mut asked = on.iter().filter(|(name, _)| all.get(name).is_some());
                asked.try_for_each(|(_, node)| self.node(node, value, path, depth)).map(|()| None)
            }
            (Rule::All(nodes), _) => {
                nodes.iter().try_for_each(|node| self.node(node, value, path, depth)).map(|()| None)
            }
            (Rule::Any(nodes), _) => broken(!nodes.iter().any(|node| fits(node, path)), "anyOf"),
            (Rule::One(nodes), _) => broken(nodes.iter().filter(|node| fits(node, path)).take(2).count() != 1, "oneOf"),
            (Rule::Not(node), _) => broken(fits(node, path), "not"),
            (Rule::If(nodes), _) => {
                let [condition, then, otherwise] = &**nodes;
                let branch = if fits(condition, path) { then } else { otherwise };
                self.node(branch, value, path, depth).map(|()| None)
            }
            (Rule::Reference(to), _) => match self.referred.get(to) {
                Some(node) => self.node(node, value, path, depth).map(|()| None),
                None => Ok(Some("$ref")),
            },
            _ => Ok(None),
        }
    }

    fn within(&self, node: &Node, value: &Value<'_>, path: &mut String, key: &str, depth: usize) -> Result<(), Misfit> {
        let before = path.len();
        path.push('/');
        path.push_str(key);
        let checked = self.node(node, value, path, depth);
        path.truncate(before);
        checked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(schema: &str, value: &str) -> Result<(), (String, &'static str)> {
        let value = json::parse(value.as_bytes(), &Limits::default()).unwrap();
        Schema::parse(schema).unwrap().fits(&value).map_err(|misfit| (misfit.path, misfit.keyword))
    }

    #[test]
    fn each_keyword_holds_and_lets_through() {
        for (schema, good, bad, keyword) in [
            (r#"{"type":"string"}"#, r#""x""#, "1", "type"),
            (r#"{"type":["integer","null"]}"#, "1.0", "1.5", "type"),
            (r#"{"enum":["a",1]}"#, "1.0", r#""b""#, "enum"),
            (r#"{"const":{"a":[1]}}"#, r#"{"a":[1]}"#, r#"{"a":[2]}"#, "const"),
            (r#"{"minimum":2}"#, "2", "1.9", "minimum"),
            (r#"{"maximum":2}"#, r#""not a number""#, "3", "maximum"),
            (r#"{"exclusiveMinimum":2}"#, "3", "2", "exclusiveMinimum"),
            (r#"{"exclusiveMaximum":2}"#, "1", "2", "exclusiveMaximum"),
            (r#"{"multipleOf":5}"#, "10", "12", "multipleOf"),
            (r#"{"minLength":2}"#, r#""äö""#, r#""ä""#, "minLength"),
            (r#"{"maxLength":2}"#, r#""äö""#, r#""abc""#, "maxLength"),
            (r#"{"pattern":"^/data/[a-z]+$"}"#, r#""/data/x""#, r#""/data/../etc""#, "pattern"),
            (r#"{"format":"ipv4"}"#, r#""10.0.0.1""#, r#""10.1""#, "format"),
            (r#"{"contains":{"const":1}}"#, "[2,1]", "[2]", "contains"),
            (r#"{"contains":{"const":1},"minContains":2}"#, "[1,2,1]", "[2,1]", "contains"),
            (r#"{"contains":{"const":1},"maxContains":1}"#, "[1,2]", "[1,2,1]", "maxContains"),
            (r#"{"contains":{"const":1},"minContains":0,"maxContains":0}"#, "[]", "[1]", "maxContains"),
            (
                r#"{"dependentSchemas":{"a":{"maxProperties":1}}}"#,
                r#"{"b":1,"c":1}"#,
                r#"{"a":1,"b":1}"#,
                "maxProperties",
            ),
            (r#"{"minItems":1}"#, "[1]", "[]", "minItems"),
            (r#"{"maxItems":1}"#, "[1]", "[1,2]", "maxItems"),
            (r#"{"uniqueItems":true}"#, "[1,2]", r#"[{"a":1,"b":2},{"b":2,"a":1}]"#, "uniqueItems"),
            (r#"{"minProperties":1}"#, r#"{"a":1}"#, "{}", "minProperties"),
            (r#"{"maxProperties":1}"#, r#"{"a":1}"#, r#"{"a":1,"b":2}"#, "maxProperties"),
            (r#"{"required":["a"]}"#, r#"{"a":null}"#, r#"{"b":1}"#, "required"),
            (r#"{"dependentRequired":{"a":["b"]}}"#, r#"{"b":1}"#, r#"{"a":1}"#, "dependentRequired"),
            (
                r#"{"properties":{"a":{}},"additionalProperties":false}"#,
                r#"{"a":1}"#,
                r#"{"b":1}"#,
                "additionalProperties",
            ),
            (r#"{"propertyNames":{"maxLength":1}}"#, r#"{"a":1}"#, r#"{"ab":1}"#, "propertyNames"),
            (r#"{"anyOf":[{"const":1},{"const":2}]}"#, "2", "3", "anyOf"),
            (r#"{"oneOf":[{"minimum":1},{"minimum":5}]}"#, "2", "6", "oneOf"),
            (r#"{"not":{"const":1}}"#, "2", "1", "not"),
            ("false", "", "1", "false"),
        ] {
            if !good.is_empty() {
                assert_eq!(fits(schema, good), Ok(()), "{schema} {good}");
            }
            assert_eq!(fits(schema, bad), Err((String::new(), keyword)), "{schema} {bad}");
        }
    }

    #[test]
    fn what_is_within_is_told_by_its_path() {
        let schema = r##"{
            "type": "object",
            "properties": {"rows": {"items": {"$ref": "#/$defs/row"}}, "pair": {"prefixItems": [{"type": "string"}], "items": false}},
            "patternProperties": {"^x-": {"type": "integer"}},
            "$defs": {"row": {"properties": {"id": {"type": "integer"}, "next": {"$ref": "#/$defs/row"}}}}
        }"##;
        assert_eq!(fits(schema, r#"{"rows":[{"id":1,"next":{"id":2}}],"pair":["a"],"x-a":1,"other":[]}"#), Ok(()));
        for (value, path, keyword) in [
            (r#"{"rows":[{"id":1},{"next":{"id":"2"}}]}"#, "/rows/1/next/id", "type"),
            (r#"{"pair":[1]}"#, "/pair/0", "type"),
            (r#"{"pair":["a","b"]}"#, "/pair/1", "false"),
            (r#"{"x-a":"b"}"#, "/x-a", "type"),
        ] {
            assert_eq!(fits(schema, value), Err((path.to_owned(), keyword)), "{value}");
        }
        let either = r#"{"if":{"required":["a"]},"then":{"required":["b"]},"else":{"maxProperties":0}}"#;
        assert_eq!(fits(either, r#"{"a":1,"b":1}"#), Ok(()));
        assert_eq!(fits(either, r#"{"a":1}"#), Err((String::new(), "required")));
        assert_eq!(fits(either, r#"{"c":1}"#), Err((String::new(), "maxProperties")));
    }

    #[test]
    fn what_refers_to_itself_without_end_fits_nothing() {
        // However often its contrary is asked for.
        for turns in 0..4 {
            let schema = (0..turns).fold(r##"{"$ref":"#"}"##.to_owned(), |inner, _| format!(r#"{{"not":{inner}}}"#));
            assert_eq!(fits(&schema, "1").unwrap_err().1, "$ref", "{schema}");
        }
        assert_eq!(fits(r##"{"oneOf":[{"const":1},{"$ref":"#"}]}"##, "1").unwrap_err().1, "$ref");
        assert_eq!(fits(r##"{"if":{"$ref":"#"},"else":true}"##, "1").unwrap_err().1, "$ref");
    }

    #[test]
    fn a_value_cannot_make_work_without_end() {
        // Each level asks twice about the one below it.
        let schema = r##"{"anyOf":[{"items":{"$ref":"#"},"type":"array"},{"items":{"$ref":"#"},"type":"array"}]}"##;
        let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
        assert_eq!(fits(schema, &deep).unwrap_err().1, "$ref");
        assert_eq!(fits(schema, "[[],[[]]]"), Ok(()));
        let many = format!("[{}]", vec!["9"; 50_000].join(","));
        assert_eq!(fits(r#"{"items":{"enum":[1,2,3,4,5,6,7,8]}}"#, &many).unwrap_err().1, "enum");
        let all: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        let schema = format!(r#"{{"items":{{"enum":[{}]}}}}"#, all.join(","));
        assert_eq!(fits(&schema, &many).unwrap_err().1, "$ref", "what is too much to look at does not fit");
    }

    #[test]
    fn what_could_not_be_enforced_is_refused() {
        for (schema, said) in [
            (r#"{"format":"binary"}"#, "`format: binary` is not known"),
            (r#"{"properties":{"a":{"unevaluatedItems":false}}}"#, "`unevaluatedItems` is not known"),
            (r#"{"contains":{},"maxContains":-1}"#, "`maxContains`"),
            (r#"{"type":"text"}"#, "`type`"),
            (r#"{"pattern":"("}"#, "`pattern`"),
            (r#"{"minLength":-1}"#, "`minLength`"),
            (r#"{"enum":[]}"#, "`enum`"),
            (r#"{"anyOf":[]}"#, "`anyOf`"),
            (r#"{"multipleOf":0}"#, "`multipleOf`"),
            (r##"{"$ref":"#/$defs/none"}"##, "`#/$defs/none`"),
            (r#"{"$ref":"https://example.org/x"}"#, "`https://example.org/x`"),
            ("[]", "`schema`"),
            ("{", "plain JSON"),
        ] {
            let error = Schema::parse(schema).unwrap_err().to_string();
            assert!(error.contains(said), "{schema}: {error}");
        }
    }
}
