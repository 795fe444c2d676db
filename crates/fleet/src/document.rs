//! The verbs as an OpenAPI 3.1 document, from the list and the types that server and client are made of.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::api::{described, streams};
use crate::server::{JSON, JSON_LINES};
use ringfence_model::Report;

/// What of a verb the list says.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) request: Schema,
    pub(crate) answer: Schema,
}

/// The schemas of what goes in and of what comes out; a field may be left out of the one and never of the other.
pub(crate) struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings =
            || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
        Self {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    pub(crate) fn request<T: JsonSchema>(&mut self) -> Schema {
        self.requests.subschema_for::<T>()
    }

    pub(crate) fn answer<T: JsonSchema>(&mut self) -> Schema {
        self.answers.subschema_for::<T>()
    }

    /// All that was named on the way.
    fn named(mut self) -> Map<String, Value> {
        let mut all = self.answers.take_definitions(true);
        all.extend(self.requests.take_definitions(true));
        all
    }
}

/// How a verb can end without an item: status, and when.
const FAILURES: &[(&str, &str)] = &[
    ("400", "The request cannot be read: `api.request`."),
    ("403", "The caller's user may not speak to this supervisor: `api.peer`."),
    ("404", "There is no such verb: `api.unknown_verb`."),
    ("405", "Verbs are asked for by POST: `api.method`."),
    ("408", "The request took too long to arrive: `api.slow`."),
    ("413", "The request is too large: `api.too_large`."),
    ("415", "The request is not called JSON: `api.media_type`."),
    ("422", "What was asked for cannot be; the fault is the caller's."),
    ("500", "Ringfence itself failed."),
    ("502", "Somebody else failed: a package index, a mirror, an upstream."),
    ("503", "The host lacks something, or too many callers are there: `api.busy`."),
];

/// The document, as it is written: indented, in the order of the alphabet, with a last line break.
#[must_use]
pub fn text() -> String {
    let mut schemas = Schemas::new();
    let failure = schemas.answer::<Report>();
    let paths: Map<String, Value> = described(&mut schemas)
        .into_iter()
        .map(|verb| (format!("/v1/{}", verb.name), json!({ "post": operation(&verb) })))
        .collect();
    let failures: Map<String, Value> = FAILURES
        .iter()
        .map(|(status, when)| {
            let content = json!({ JSON: { "schema": { "$ref": "#/components/schemas/Failure" } } });
            ((*status).to_owned(), json!({ "description": when, "content": content }))
        })
        .collect();
    let mut named = schemas.named();
    named.insert("Failure".into(), failed(&failure));
    let mut document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Ringfence control API",
            "description": "What a supervisor does for its callers, over its Unix socket. \
                See docs/reference/control-api.md.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "version": "1",
        },
        "servers": [{ "url": "http://supervisor", "description": "The Unix socket `/run/ringfence/supervisor.sock`." }],
        // Who calls is what the kernel says of the socket's peer.
        "security": [],
        "paths": paths,
        "components": { "schemas": named, "responses": failures },
    });
    bound(&mut document);
    document.sort_all_objects();
    format!("{document:#}\n")
}

/// Says of each number of 64 bits how large it may be, which its format does not.
fn bound(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(bound),
        Value::Object(fields) => {
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| ["uint", "uint64"].contains(&format)) {
                fields.insert("maximum".into(), u64::MAX.into());
            }
            fields.values_mut().for_each(bound);
        }
        _ => {}
    }
}

fn failed(report: &Schema) -> Value {
    json!({
        "type": "object",
        "description": "Why nothing came of it, or nothing more.",
        "properties": { "error": report },
        "required": ["error"],
        "additionalProperties": false,
    })
}

fn operation(verb: &Verb) -> Value {
    let item = json!({
        "type": "object",
        "properties": { "item": verb.answer },
        "required": ["item"],
        "additionalProperties": false,
    });
    let done = if streams(verb.name) {
        let end = json!({ "const": "end", "description": "Nothing more comes." });
        let line = json!({ "anyOf": [item, end, { "$ref": "#/components/schemas/Failure" }] });
        json!({
            "description": "Lines of JSON, as they come. The last one is `\"end\"` or an error; \
                without it, the answer was cut.",
            "content": { JSON_LINES: { "schema": { "type": "array", "items": line, "minItems": 1 } } },
        })
    } else {
        json!({ "description": "Done.", "content": { JSON: { "schema": item } } })
    };
    let mut responses = Map::from_iter([("200".to_owned(), done)]);
    for (status, _) in FAILURES {
        responses.insert((*status).to_owned(), json!({ "$ref": format!("#/components/responses/{status}") }));
    }
    json!({
        "operationId": verb.name,
        "summary": verb.about,
        "requestBody": { "required": true, "content": { JSON: { "schema": verb.request } } },
        "responses": responses,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::VERBS;

    #[test]
    fn the_document_names_every_verb_and_all_that_it_speaks_of() {
        let text = text();
        let document: Value = serde_json::from_str(&text).unwrap();
        let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let verbs: BTreeSet<String> = VERBS.iter().map(|verb| format!("/v1/{verb}")).collect();
        assert_eq!(paths, verbs.iter().map(String::as_str).collect());
        for part in text.split("\"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
        }
    }

    /// The same name may not mean one thing in a request and another in an answer.
    #[test]
    fn a_name_means_one_schema() {
        let mut schemas = Schemas::new();
        described(&mut schemas);
        let (requests, answers) = (schemas.requests.take_definitions(true), schemas.answers.take_definitions(true));
        for (name, schema) in &requests {
            assert!(answers.get(name).is_none_or(|other| other == schema), "{name}");
        }
    }
}
