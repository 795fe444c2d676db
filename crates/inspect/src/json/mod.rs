//! Strict JSON: what is read here, no other reader reads otherwise.
//!
//! A gate decides by what it reads in a body, and somebody else acts by what they read in it. Readers of JSON disagree
//! about duplicate keys, byte order marks, encodings, lone surrogates, numbers out of range, comments and what follows
//! the end. A text with any of these is refused, with a stable code, so that nobody can be told another thing than the
//! gate was.
//!
//! [`parse`] gives a [`Value`] that borrows from the bytes. [`Value::set`] and [`Value::remove`] change it,
//! [`Value::to_bytes`] writes it in one plain form, and [`Value::canonical`] in the form that digests are made over.
//!
//! # Source
//! RFC 8259; RFC 8785 for [`Value::canonical`].

mod read;
mod write;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

pub use read::parse;

/// How much of a text is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole text.
    pub bytes: usize,
    /// Lists and objects within each other.
    pub depth: usize,
    /// Values and keys together. Each takes up to 64 bytes of memory beside its text.
    pub values: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 << 20, depth: 100, values: 500_000 }
    }
}

/// Why a text is refused, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}, at byte {at}")]
pub struct JsonError {
    /// What is wrong.
    pub problem: Problem,
    /// The byte at which it was noticed, from 0.
    pub at: usize,
}

impl JsonError {
    /// A stable code such as `json_duplicate_key`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.problem.code()
    }
}

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Problem {
    /// A UTF-8 byte order mark, which some readers skip and some refuse.
    #[error("it begins with a byte order mark")]
    Bom,
    /// `//`, `/*` or `#`, which some readers skip.
    #[error("it has a comment")]
    Comment,
    /// A control character in a text that is not escaped.
    #[error("a text has a control character")]
    Control,
    /// More lists and objects within each other than [`Limits::depth`].
    #[error("it is nested too deep")]
    Depth,
    /// A key that its object has already: some readers take the first, some the last.
    #[error("an object has a key twice")]
    DuplicateKey,
    /// Nothing, or nothing but white space.
    #[error("it is empty")]
    Empty,
    /// UTF-16 or UTF-32.
    #[error("it is not encoded in UTF-8 but in UTF-16 or UTF-32")]
    Encoding,
    /// A backslash with something behind it that is no escape.
    #[error("a text has a broken escape")]
    Escape,
    /// Half a surrogate pair, which readers replace, keep or refuse.
    #[error("a text has a lone surrogate")]
    LoneSurrogate,
    /// `NaN` or `Infinity`.
    #[error("it has a number that is none")]
    NotANumber,
    /// U+0000 in a key, at which some readers end it.
    #[error("a key has a NUL")]
    NulInKey,
    /// Something that begins like a number and is none, such as `01`, `+1`, `.5` or `0x10`.
    #[error("a number is malformed")]
    Number,
    /// An integer that no `i64` holds, a number that no `f64` holds, or one of more than 64 bytes.
    #[error("a number is out of range")]
    NumberRange,
    /// Anything else that the grammar does not have, such as a trailing comma.
    #[error("it is not well-formed")]
    Syntax,
    /// More bytes than [`Limits::bytes`].
    #[error("it is too large")]
    TooLarge,
    /// More values than [`Limits::values`].
    #[error("it has too many values")]
    TooManyValues,
    /// Something after the value.
    #[error("something follows its end")]
    Trailing,
    /// It ends within a value.
    #[error("it breaks off")]
    Truncated,
    /// Bytes that are not UTF-8.
    #[error("it is not valid UTF-8")]
    Utf8,
}

impl Problem {
    /// A stable code, `json_` and one word or two.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Bom => "json_bom",
            Self::Comment => "json_comment",
            Self::Control => "json_control",
            Self::Depth => "json_depth",
            Self::DuplicateKey => "json_duplicate_key",
            Self::Empty => "json_empty",
            Self::Encoding => "json_encoding",
            Self::Escape => "json_escape",
            Self::LoneSurrogate => "json_lone_surrogate",
            Self::NotANumber => "json_not_a_number",
            Self::NulInKey => "json_nul_in_key",
            Self::Number => "json_number",
            Self::NumberRange => "json_number_range",
            Self::Syntax => "json_syntax",
            Self::TooLarge => "json_too_large",
            Self::TooManyValues => "json_too_many_values",
            Self::Trailing => "json_trailing",
            Self::Truncated => "json_truncated",
            Self::Utf8 => "json_utf8",
        }
    }
}

/// A JSON value; texts without escapes and numbers borrow from what was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// `[…]`.
    List(Vec<Value<'a>>),
    /// `null`.
    Null,
    /// A number, as it was written.
    Number(Number<'a>),
    /// `{…}`.
    Object(Object<'a>),
    /// `"…"`, without its escapes.
    Text(Cow<'a, str>),
}

impl<'a> Value<'a> {
    /// An object of these members, in this order.
    #[must_use]
    pub fn object<K: Into<Cow<'a, str>>>(members: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Object(Object { members: members.into_iter().map(|(key, value)| (key.into(), value)).collect() })
    }

    /// A text.
    #[must_use]
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    /// An integer.
    #[must_use]
    pub fn integer(number: i64) -> Self {
        Self::Number(Number(Cow::Owned(number.to_string())))
    }

    /// An integer that is not negative; one beyond `i64` becomes the largest.
    #[must_use]
    pub fn count(number: u64) -> Self {
        Self::integer(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(truth) = self { Some(*truth) } else { None }
    }

    /// The number as a non-negative integer, if it is one; see [`Number::as_u64`].
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        if let Self::Number(number) = self { number.as_u64() } else { None }
    }

    /// The elements, if it is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    /// The elements, if it is a list, to be changed.
    #[must_use]
    pub const fn as_list_mut(&mut self) -> Option<&mut Vec<Self>> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    /// The object, if it is one.
    #[must_use]
    pub const fn as_object(&self) -> Option<&Object<'a>> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }

    /// The object, if it is one, to be changed.
    #[must_use]
    pub const fn as_object_mut(&mut self) -> Option<&mut Object<'a>> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }

    /// Whether it is `null`.
    #[must_use]
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The member of an object; `None` too if this is no object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_object()?.get(key)
    }

    /// What lies at the end of a path of keys.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |value, key| value.get(key))
    }

    /// What lies at the end of a path of keys, to be changed.
    #[must_use]
    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Self> {
        path.iter().try_fold(self, |value, key| value.as_object_mut()?.get_mut(key))
    }

    /// Puts a value at the end of a path of keys; objects on the way are made where there is nothing or `null`.
    ///
    /// Answers `false`, and changes nothing, if something on the way is neither.
    pub fn set(&mut self, path: &[&str], value: Self) -> bool {
        let Some((key, rest)) = path.split_first() else {
            *self = value;
            return true;
        };
        if self.is_null() {
            // What is made on the way cannot be in the way.
            *self = Self::Object(Object::default());
        }
        let Some(object) = self.as_object_mut() else { return false };
        match object.get_mut(key) {
            Some(member) => member.set(rest, value),
            None => {
                let mut member = Self::Null;
                member.set(rest, value);
                object.members.push((Cow::Owned((*key).to_owned()), member));
                true
            }
        }
    }

    /// Takes away what lies at the end of a path of keys.
    pub fn remove(&mut self, path: &[&str]) -> Option<Self> {
        let (key, way) = path.split_last()?;
        let members = &mut self.at_mut(way)?.as_object_mut()?.members;
        let place = members.iter().position(|(k, _)| k == key)?;
        Some(members.remove(place).1)
    }

    /// The same value, without borrowing.
    #[must_use]
    pub fn into_owned(self) -> Value<'static> {
        let own = |text: Cow<'a, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Bool(truth) => Value::Bool(truth),
            Self::List(list) => Value::List(list.into_iter().map(Value::into_owned).collect()),
            Self::Null => Value::Null,
            Self::Number(number) => Value::Number(Number(own(number.0))),
            Self::Object(object) => Value::Object(Object {
                members: object.members.into_iter().map(|(key, value)| (own(key), value.into_owned())).collect(),
            }),
            Self::Text(text) => Value::Text(own(text)),
        }
    }
}

impl From<bool> for Value<'_> {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl<'a> FromIterator<Value<'a>> for Value<'a> {
    fn from_iter<I: IntoIterator<Item = Value<'a>>>(values: I) -> Self {
        Self::List(values.into_iter().collect())
    }
}

/// A number, as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Number<'a>(Cow<'a, str>);

impl Number<'_> {
    /// The text of the number.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number as `f64`, as nearly as one can be.
    #[must_use]
    pub fn as_f64(&self) -> f64 {
        self.0.parse().unwrap_or_default()
    }

    /// The number, if it is an integer of `i64`.
    ///
    /// `10.0` and `1e1` are: readers that ask for an integer take them for 10. One of more than 2^53 counts only if it
    /// is written without point and exponent.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        if let Ok(integer) = self.0.parse() {
            return Some(integer);
        }
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let float = self.as_f64();
        let whole = float.fract() == 0.0 && float.abs() <= EXACT;
        // WHY not `as`: the text of a whole float is the integer's.
        if whole { format!("{float:.0}").parse().ok() } else { None }
    }

    /// The number, if it is an integer that is not negative; as [`Number::as_i64`].
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.as_i64().and_then(|integer| u64::try_from(integer).ok())
    }
}

impl fmt::Debug for Number<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The members of an object, in the order in which they were written; no key twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object<'a> {
    members: Vec<(Cow<'a, str>, Value<'a>)>,
}

impl<'a> Object<'a> {
    /// The member of this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.members.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The member of this key, to be changed.
    #[must_use]
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value<'a>> {
        self.members.iter_mut().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.members.iter().map(|(key, value)| (&**key, value))
    }

    /// The number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A key that some readers take for one of `known` though it is written otherwise, such as `Model` for `model`.
    ///
    /// Readers in Go match keys without regard to case, and with them U+017F for `s` and U+212A for `k`; the last
    /// member that matches wins. So an object that something is decided by must not have such a key.
    ///
    /// # Source
    /// Go, `encoding/json`, `Unmarshal` and `foldName`.
    #[must_use]
    pub fn misspelt(&self, known: &[&str]) -> Option<&str> {
        self.members
            .iter()
            .map(|(key, _)| &**key)
            .find(|key| !known.contains(key) && known.iter().any(|known| folds_alike(key, known)))
    }
}

/// Whether Go's reader takes two keys for the same.
fn folds_alike(a: &str, b: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    if a.is_ascii() && b.is_ascii() { a.eq_ignore_ascii_case(b) } else { a.chars().map(fold).eq(b.chars().map(fold)) }
}
