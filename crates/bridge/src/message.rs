//! Messages of JSON-RPC, read no further than their way through needs; what is not changed stays what it was.

use ringfence_inspect::json::{self, Limits, Value};

/// The largest message.
pub const MAX_BYTES: usize = 16 << 20;

/// Messages in one body.
pub const MAX_BATCH: usize = 64;

const LIMITS: Limits = Limits { bytes: MAX_BYTES, depth: 200, values: 1_000_000 };

/// One message.
#[derive(Clone, Debug)]
pub struct Message(Value<'static>);

/// An id, or a token of progress.
pub type Id = Value<'static>;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks, and is to be answered.
    Request,
    /// It tells.
    Notification,
    /// It answers.
    Response,
}

impl Message {
    /// Reads the messages of a body: one, or a batch of at least one.
    #[must_use]
    pub fn read_all(bytes: &[u8]) -> Option<(Vec<Self>, bool)> {
        match json::parse(bytes, &LIMITS).ok()?.into_owned() {
            Value::List(all) => {
                let all: Vec<Self> = all.into_iter().map(Self::of).collect::<Option<_>>()?;
                (!all.is_empty()).then_some((all, true))
            }
            one => Some((vec![Self::of(one)?], false)),
        }
    }

    fn of(value: Value<'static>) -> Option<Self> {
        let known = ["method", "result", "error"].iter().any(|key| value.get(key).is_some());
        known.then_some(Self(value))
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match (self.0.get("method"), self.id()) {
            (Some(_), Some(_)) => Kind::Request,
            (Some(_), None) => Kind::Notification,
            (None, _) => Kind::Response,
        }
    }

    /// Its method.
    #[must_use]
    pub fn method(&self) -> Option<&str> {
        self.0.get("method")?.as_str()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Option<&Id> {
        self.0.get("id")
    }

    /// Gives it another id.
    pub fn set_id(&mut self, id: Id) {
        self.0.set(&["id"], id);
    }

    /// Gives a request the number `number`, and its token of progress as well; returns what they were.
    pub fn renumber(&mut self, number: u64) -> Option<(Id, Option<Id>)> {
        let id = self.replace(&["id"], Value::count(number))?;
        Some((id, self.replace(&["params", "_meta", "progressToken"], Value::count(number))))
    }

    /// The value of `key` in its parameters.
    #[must_use]
    pub fn param(&self, key: &str) -> Option<&Id> {
        self.0.at(&["params", key])
    }

    /// Replaces a value that is there; returns what it was.
    pub fn replace(&mut self, path: &[&str], with: Id) -> Option<Id> {
        self.0.at_mut(path).map(|value| std::mem::replace(value, with))
    }

    /// As one line.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        self.0.to_bytes()
    }
}

/// An answer that says that there will be no other.
#[must_use]
pub fn error(id: &Id, code: i32, text: &'static str) -> Vec<u8> {
    let error = Value::object([("code", Value::integer(code.into())), ("message", Value::text(text))]);
    Value::object([("jsonrpc", Value::text("2.0")), ("id", id.clone()), ("error", error)]).to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Message {
        let (mut all, batch) = Message::read_all(text.as_bytes()).unwrap();
        assert!(!batch);
        all.remove(0)
    }

    #[test]
    fn a_request_is_renumbered_and_nothing_else_of_it_changes() {
        let text = "{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"m\",\n \"params\":{\"_meta\":{\"progressToken\":\"t\"},\"x\":12345678901234567890.10}}";
        let mut message = one(text);
        assert_eq!(message.kind(), Kind::Request);
        let (id, token) = message.renumber(7).unwrap();
        assert_eq!((id.as_str(), token.unwrap().as_str()), (Some("a"), Some("t")));
        let line = String::from_utf8(message.to_line()).unwrap();
        assert_eq!(
            line,
            r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"_meta":{"progressToken":7},"x":12345678901234567890.10}}"#
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for text in
            ["", "1", "[]", "{}", "[1]", "{\"id\":1}", "{\"method\":\"m\"", "\"method\"", "{\"method\":1,\"method\":2}"]
        {
            assert!(Message::read_all(text.as_bytes()).is_none(), "{text}");
        }
        assert_eq!(one("{\"id\":1,\"result\":{}}").kind(), Kind::Response);
        assert_eq!(one("{\"method\":\"n\"}").kind(), Kind::Notification);
        assert_eq!(Message::read_all(b" [{\"method\":\"n\"}]").unwrap().0.len(), 1);
    }

    #[test]
    fn line_ends_do_not_end_the_line() {
        let line = one("{\"method\":\"n\",\"params\":{\n\"a\":[1,\r\n\"b\\nc\"]}}").to_line();
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
        assert!(Message::read_all(&line).is_some());
    }
}
