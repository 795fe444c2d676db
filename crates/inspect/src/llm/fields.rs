//! Fields of an object that something is decided by.

use super::LlmError;
use crate::json::{Object, Value};

/// An object with no key that some readers take for a decided one.
#[derive(Clone, Copy)]
pub(super) struct Fields<'v, 'a>(&'v Object<'a>);

impl<'v, 'a> Fields<'v, 'a> {
    /// Looks at `value` as an object of which the fields `known` decide.
    pub(super) fn of(value: &'v Value<'a>, name: &'static str, known: &[&str]) -> Result<Self, LlmError> {
        let object = value.as_object().ok_or(LlmError::Field { name, wanted: "an object" })?;
        match object.misspelt(known) {
            Some(key) => Err(LlmError::KeyCase(key.chars().take(80).collect())),
            None => Ok(Self(object)),
        }
    }

    /// A field; `null` counts as absent, as it does for all these APIs.
    pub(super) fn get(&self, name: &str) -> Option<&'v Value<'a>> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field that Protocol Buffers let be spelt in two ways.
    pub(super) fn either(&self, camel: &'static str, snake: &str) -> Result<Option<&'v Value<'a>>, LlmError> {
        match (self.0.get(camel), self.0.get(snake)) {
            (Some(_), Some(_)) if camel != snake => Err(LlmError::Twice(camel)),
            (one, other) => Ok(one.or(other).filter(|value| !value.is_null())),
        }
    }

    pub(super) fn text(&self, name: &'static str) -> Result<Option<&'v str>, LlmError> {
        self.typed(name, "a text", Value::as_str)
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, LlmError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn count(&self, name: &'static str) -> Result<Option<u64>, LlmError> {
        self.typed(name, "a whole number that is not negative", Value::as_u64)
    }

    pub(super) fn list(&self, name: &'static str) -> Result<&'v [Value<'a>], LlmError> {
        Ok(self.typed(name, "a list", Value::as_list)?.unwrap_or_default())
    }

    pub(super) fn object(&self, name: &'static str, known: &[&str]) -> Result<Option<Self>, LlmError> {
        self.get(name).map(|value| Self::of(value, name, known)).transpose()
    }

    fn typed<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        read: impl FnOnce(&'v Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, LlmError> {
        self.get(name).map(|value| read(value).ok_or(LlmError::Field { name, wanted })).transpose()
    }
}
