//! What a server offers: filtered by name, and pinned by digest.

use std::collections::{BTreeMap, BTreeSet};

use ringfence_model::Digest;

use super::message::{McpError, check_case};
use super::method::Method;
use crate::json::{Object, Value};

/// A kind of list that a server gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// Prompts, by name.
    Prompts,
    /// Resources, by address.
    Resources,
    /// Templates of resources, by template.
    Templates,
    /// Tools, by name.
    Tools,
}

impl List {
    /// The list that a method asks for.
    #[must_use]
    pub const fn of(method: &Method) -> Option<Self> {
        match method {
            Method::PromptsList => Some(Self::Prompts),
            Method::ResourcesList => Some(Self::Resources),
            Method::ResourcesTemplatesList => Some(Self::Templates),
            Method::ToolsList => Some(Self::Tools),
            _ => None,
        }
    }

    /// The key of the list, and that of the name in each element.
    const fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::Prompts => ("prompts", "name"),
            Self::Resources => ("resources", "uri"),
            Self::Templates => ("resourceTemplates", "uriTemplate"),
            Self::Tools => ("tools", "name"),
        }
    }

    /// The members of an element that say what it is, and so what a model is told or what is called.
    const fn pinned(self) -> &'static [&'static str] {
        match self {
            Self::Prompts => &["name", "title", "description", "arguments"],
            Self::Resources => &["uri", "name", "title", "description", "mimeType", "annotations"],
            Self::Templates => &["uriTemplate", "name", "title", "description", "mimeType", "annotations"],
            Self::Tools => &["name", "title", "description", "inputSchema", "outputSchema", "annotations"],
        }
    }

    /// The elements of a result of this list. One that is not understood has an empty name.
    ///
    /// # Errors
    /// [`McpError::Answer`] if there is no such list, [`McpError::KeyCase`].
    pub fn definitions<'v, 'a>(self, result: &'v Value<'a>) -> Result<Vec<Definition<'v, 'a>>, McpError> {
        let list = self.elements(result)?;
        Ok(list.iter().map(|value| Definition { list: self, name: self.name(value), value }).collect())
    }

    /// Takes out of a result what `keep` does not want, what is not understood, and what has the name of something before
    /// it.
    ///
    /// # Errors
    /// [`McpError::Answer`] if there is no such list, [`McpError::KeyCase`]. Nothing is changed then, and nothing should be
    /// passed on.
    pub fn retain<'a>(
        self,
        result: &mut Value<'a>,
        mut keep: impl FnMut(&Definition<'_, 'a>) -> bool,
    ) -> Result<Filtered, McpError> {
        self.elements(result)?;
        let mut filtered = Filtered { kept: 0, removed: Vec::new() };
        let mut names = BTreeSet::new();
        let Some(list) = result.at_mut(&[self.keys().0]).and_then(Value::as_list_mut) else {
            return Err(McpError::Answer);
        };
        list.retain(|value| {
            let name = self.name(value);
            let definition = Definition { list: self, name, value };
            let stays = !name.is_empty() && !names.contains(name) && keep(&definition);
            if stays {
                names.insert(name.to_owned());
                filtered.kept += 1;
            } else {
                filtered.removed.push(name.to_owned());
            }
            stays
        });
        Ok(filtered)
    }

    fn elements<'v, 'a>(self, result: &'v Value<'a>) -> Result<&'v [Value<'a>], McpError> {
        let object = result.as_object().ok_or(McpError::Answer)?;
        check_case(object, &[self.keys().0, "nextCursor"])?;
        object.get(self.keys().0).and_then(Value::as_list).ok_or(McpError::Answer)
    }

    /// The name of an element; empty if it has none, or if some readers would take another member for it.
    fn name<'v>(self, value: &'v Value<'_>) -> &'v str {
        let plain = value.as_object().filter(|object| object.misspelt(self.pinned()).is_none());
        plain.and_then(|object| object.get(self.keys().1)).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Something that a server offers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Definition<'v, 'a> {
    list: List,
    /// Its name, address or template; empty if it is not understood.
    pub name: &'v str,
    /// All of it.
    pub value: &'v Value<'a>,
}

impl Definition<'_, '_> {
    /// The SHA-256 of what says what it is, in the form of [`Value::canonical`]; of a tool: name, title, description,
    /// input and output schema, annotations, as far as it has them. Order and space do not matter.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let member = |key: &&'static str| Some((*key, self.value.get(key)?.clone()));
        Value::object(self.list.pinned().iter().filter_map(member)).digest()
    }
}

/// What [`List::retain`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// How many are left.
    pub kept: usize,
    /// The names of those that are not, in order; empty for one that was not understood.
    pub removed: Vec<String>,
}

/// All that a server offers in one list, by name, over as many pages as it comes in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    digests: BTreeMap<String, Digest>,
}

/// How one catalogue differs from an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It was not there.
    Added(String),
    /// It is another.
    Changed(String),
    /// It is not there any more.
    Removed(String),
}

impl Catalogue {
    /// Adds a page; at most `most` elements in all.
    ///
    /// # Errors
    /// [`McpError::Answer`] if one is not understood, if there are too many, or if one has the name of another and is not
    /// the same; [`McpError::KeyCase`].
    pub fn add(&mut self, list: List, result: &Value<'_>, most: usize) -> Result<(), McpError> {
        for definition in list.definitions(result)? {
            let digest = definition.digest();
            let before = self.digests.insert(definition.name.to_owned(), digest);
            let differs = before.is_some_and(|before| before != digest);
            if definition.name.is_empty() || differs || self.digests.len() > most {
                return Err(McpError::Answer);
            }
        }
        Ok(())
    }

    /// Remembers the digest of an element.
    pub fn pin(&mut self, name: &str, digest: Digest) {
        self.digests.insert(name.to_owned(), digest);
    }

    /// The digest of an element.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Digest> {
        self.digests.get(name)
    }

    /// Names and digests, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Digest)> {
        self.digests.iter().map(|(name, digest)| (name.as_str(), digest))
    }

    /// The SHA-256 of all: of the JSON list of pairs of name and digest, by name. The order of pages and elements does not
    /// matter.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let pair = |(name, digest): (&str, &Digest)| {
            Value::List(vec![Value::text(name.to_owned()), Value::text(digest.to_string())])
        };
        self.iter().map(pair).collect::<Value<'static>>().digest()
    }

    /// How this differs from `earlier`, by name.
    #[must_use]
    pub fn changes(&self, earlier: &Self) -> Vec<Change> {
        let now = self.digests.iter().filter_map(|(name, digest)| match earlier.digests.get(name) {
            None => Some(Change::Added(name.clone())),
            Some(before) if before != digest => Some(Change::Changed(name.clone())),
            Some(_) => None,
        });
        let gone = earlier.digests.keys().filter(|name| !self.digests.contains_key(*name));
        now.chain(gone.map(|name| Change::Removed(name.clone()))).collect()
    }
}

/// What a server says of itself, in its answer to `initialize` or `server/discover`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// The revision that it speaks; of several the one it names first.
    pub protocol: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// What it can do: the keys of its capabilities.
    pub capabilities: Vec<String>,
    /// The SHA-256 of what it tells the model to do.
    pub instructions: Option<Digest>,
}

impl Introduction {
    /// Reads a result; what it does not say stays empty.
    #[must_use]
    pub fn read(result: &Value<'_>) -> Self {
        let text = |path: &[&str]| result.at(path).and_then(Value::as_str).map(str::to_owned);
        let versions = result.get("supportedVersions").and_then(Value::as_list).and_then(<[Value<'_>]>::first);
        let server = ["serverInfo", "io.modelcontextprotocol/serverInfo"];
        let info = result.get(server[0]).or_else(|| result.at(&["_meta", server[1]]));
        let of_info = |key: &str| info.and_then(|info| info.get(key)).and_then(Value::as_str).map(str::to_owned);
        let capabilities = result.get("capabilities").and_then(Value::as_object);
        Self {
            protocol: text(&["protocolVersion"]).or_else(|| versions.and_then(Value::as_str).map(str::to_owned)),
            name: of_info("name"),
            version: of_info("version"),
            capabilities: capabilities.map(Object::iter).into_iter().flatten().map(|(key, _)| key.to_owned()).collect(),
            instructions: result.get("instructions").and_then(Value::as_str).map(|text| Digest::of(text.as_bytes())),
        }
    }
}
