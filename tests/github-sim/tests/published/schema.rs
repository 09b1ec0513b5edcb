//! A validator over the OpenAPI subset and over the webhook schema.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

pub(crate) fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data")
}

pub(crate) fn read(path: &str) -> Value {
    let path = data().join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// OpenAPI 3.0 says `nullable`, JSON Schema says `null`; discriminators are ignored.
fn translate(v: &Value) -> Value {
    match v {
        Value::Array(a) => Value::Array(a.iter().map(translate).collect()),
        Value::Object(o) => {
            let nullable = o.get("nullable") == Some(&Value::Bool(true));
            let mut m: Map<String, Value> = o
                .iter()
                .filter(|(k, v)| {
                    !(k.as_str() == "nullable" && v.is_boolean()) && k.as_str() != "discriminator"
                })
                .map(|(k, v)| (k.clone(), translate(v)))
                .collect();
            if !nullable {
                return Value::Object(m);
            }
            if let Some(Value::Array(values)) = m.get_mut("enum")
                && !values.contains(&Value::Null)
            {
                values.push(Value::Null);
            }
            match m.get("type").cloned() {
                Some(Value::String(t)) => {
                    m.insert("type".into(), json!([t, "null"]));
                    Value::Object(m)
                }
                _ => json!({"anyOf": [Value::Object(m), {"type": "null"}]}),
            }
        }
        other => other.clone(),
    }
}

pub(crate) struct OpenApi {
    paths: Vec<(String, Value)>,
    components: Value,
}

/// The part of a document that a schema refers to, directly or not: the whole is slow to compile.
fn referenced(all: &Value, prefix: &str, from: &Value) -> Value {
    fn collect(v: &Value, into: &mut Vec<String>) {
        match v {
            Value::Array(a) => a.iter().for_each(|v| collect(v, into)),
            Value::Object(o) => {
                if let Some(Value::String(r)) = o.get("$ref") {
                    into.push(r.clone());
                }
                o.values().for_each(|v| collect(v, into));
            }
            _ => {}
        }
    }
    let mut out = json!({});
    let mut open = Vec::new();
    collect(from, &mut open);
    let mut done = std::collections::BTreeSet::new();
    while let Some(reference) = open.pop() {
        if !done.insert(reference.clone()) {
            continue;
        }
        let pointer = reference
            .strip_prefix(prefix)
            .unwrap_or_else(|| panic!("{reference} leads elsewhere"));
        let found = all
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{reference} leads nowhere"));
        collect(found, &mut open);
        let mut at = &mut out;
        for part in pointer.split('/').skip(1) {
            at = &mut at[part];
        }
        *at = found.clone();
    }
    out
}

/// What the specification says of one answer.
pub(crate) enum Found {
    /// The schema of the body.
    Body(Value),
    /// This status has no body.
    Empty,
    /// The operation does not list this status.
    Unlisted,
    /// The path or method is not in the specification.
    Unknown,
}

impl OpenApi {
    pub(crate) fn load(file: &str) -> Self {
        let doc = read(file);
        let paths = doc["paths"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        Self {
            paths,
            components: translate(&doc["components"]),
        }
    }

    fn follow<'a>(&'a self, v: &'a Value) -> &'a Value {
        let mut at = v;
        while let Some(r) = at.get("$ref").and_then(Value::as_str) {
            let pointer = r.strip_prefix("#/components").unwrap();
            at = self
                .components
                .pointer(pointer)
                .unwrap_or_else(|| panic!("{r} leads nowhere"));
        }
        at
    }

    pub(crate) fn operation(&self, method: &str, template: &str) -> Option<&Value> {
        let path = self.paths.iter().find(|(p, _)| p == template)?;
        path.1.get(method.to_lowercase())
    }

    pub(crate) fn operation_by_id(&self, id: &str) -> Option<&Value> {
        self.paths
            .iter()
            .flat_map(|(_, v)| v.as_object().unwrap().values())
            .find(|o| o.get("operationId").and_then(Value::as_str) == Some(id))
    }

    pub(crate) fn answer(&self, operation: Option<&Value>, status: u16) -> Found {
        let Some(operation) = operation else {
            return Found::Unknown;
        };
        let Some(response) = operation["responses"].get(status.to_string()) else {
            return Found::Unlisted;
        };
        let response = self.follow(response);
        let Some(content) = response.get("content").and_then(Value::as_object) else {
            return Found::Empty;
        };
        let media = content
            .get("application/json")
            .or_else(|| content.get("application/scim+json"))
            .or_else(|| content.values().next());
        media.map_or(Found::Empty, |m| Found::Body(translate(&m["schema"])))
    }

    pub(crate) fn request(&self, operation: &Value) -> Option<Value> {
        let body = self.follow(operation.get("requestBody")?);
        Some(translate(&body["content"]["application/json"]["schema"]))
    }

    pub(crate) fn validator(&self, schema: &Value) -> Validator {
        let mut root =
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "allOf": [schema]});
        root["components"] = referenced(&self.components, "#/components", schema);
        jsonschema::validator_for(&root).unwrap()
    }

    /// (pointer to the object, required field) for the body's own level and, for lists, for the level of the items.
    pub(crate) fn required(
        &self,
        schema: &Value,
        instance: &Value,
        at: &str,
    ) -> Vec<(String, String)> {
        let schema = self.follow(schema);
        let mut out = Vec::new();
        match instance {
            Value::Array(items) => {
                if let (Some(of), Some(first)) = (schema.get("items"), items.first()) {
                    out.extend(self.required(of, first, &format!("{at}/0")));
                }
            }
            Value::Object(_) => {
                for part in schema
                    .get("allOf")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    out.extend(self.required(part, instance, at));
                }
                for name in schema
                    .get("required")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    out.push((at.to_owned(), name.as_str().unwrap().to_owned()));
                }
                for (name, of) in schema
                    .get("properties")
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                {
                    if let Some(inner) = instance.get(name).filter(|v| v.is_array()) {
                        out.extend(self.required(of, inner, &format!("{at}/{name}")));
                    }
                }
            }
            _ => {}
        }
        out
    }
}

/// Validators by definition, made when first needed.
pub(crate) struct WebhookSchema {
    definitions: Value,
    made: BTreeMap<String, Validator>,
    /// Dates of some published examples are none.
    formats: bool,
}

impl WebhookSchema {
    pub(crate) fn load(formats: bool) -> Self {
        Self {
            definitions: read("webhooks/schema.json")["definitions"].clone(),
            made: BTreeMap::new(),
            formats,
        }
    }

    /// What is wrong with a payload; empty when it fits.
    pub(crate) fn faults(&mut self, event: &str, payload: &Value) -> Vec<String> {
        let action = payload
            .get("action")
            .and_then(Value::as_str)
            .unwrap_or("event");
        let name = format!("{event}${action}");
        if self.definitions.get(&name).is_none() {
            return vec![format!("there is no definition {name}")];
        }
        let (definitions, formats) = (&self.definitions, self.formats);
        let validator = self.made.entry(name.clone()).or_insert_with(|| {
            let one = json!({"$ref": format!("#/definitions/{name}")});
            let mut root =
                json!({"$schema": "http://json-schema.org/draft-07/schema#", "allOf": [one]});
            root["definitions"] = referenced(definitions, "#/definitions", &root["allOf"]);
            jsonschema::options()
                .should_validate_formats(formats)
                .build(&root)
                .unwrap()
        });
        validator
            .iter_errors(payload)
            .map(|e| format!("{name} at {}: {e:.300}", e.instance_path))
            .collect()
    }
}

/// Takes one field away; `None` when it is not there.
pub(crate) fn without(instance: &Value, pointer: &str, field: &str) -> Option<Value> {
    let mut copy = instance.clone();
    copy.pointer_mut(pointer)?.as_object_mut()?.remove(field)?;
    Some(copy)
}
