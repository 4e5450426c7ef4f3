//! The OpenAPI 3.1 document of a registry. Its form is fixed (keys in order), so that it can be committed and compared.

use std::collections::BTreeMap;

use base::ErrorCode;
use ops::{Idempotency, Registry, Spec};
use serde_json::{Map, Value, json};

use crate::rest::{DEADLINE_HEADER, IDEMPOTENCY_HEADER, status_of};

/// The document, pretty-printed, with a newline at its end.
pub fn text<C: Send + Sync + 'static>(registry: &Registry<C>, version: &str) -> String {
    let mut text = serde_json::to_string_pretty(&document(registry, version)).expect("JSON values can be printed");
    text.push('\n');
    text
}

/// The document.
pub fn document<C: Send + Sync + 'static>(registry: &Registry<C>, version: &str) -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for spec in registry.specs() {
        let method = spec.route.method.as_str().to_lowercase();
        paths.entry(spec.route.path).or_default().insert(method, operation(spec));
    }
    sorted(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Muster",
            "version": version,
            "summary": "Operate a muster cluster: nodes, microVMs, topics",
            "description": "Any node takes any call. Failures are problem documents (RFC 9457) whose `code` is stable. \
                            Streams are newline-delimited JSON; a line with the single field `error` ends a stream that failed.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "http://127.0.0.1:7400", "description": "A node on this machine" }],
        "paths": paths,
        "components": { "schemas": { "Problem": problem_schema() } },
    }))
}

fn operation(spec: &Spec) -> Value {
    let mut out = json!({
        "operationId": spec.name,
        "summary": spec.summary,
        "description": description(spec),
        "tags": [spec.name.split('.').next().unwrap_or_default()],
        "parameters": parameters(spec),
        "responses": responses(spec),
        "x-muster-permission": spec.permission.as_str(),
        "x-muster-scope": spec.scope.as_str(),
        "x-muster-idempotency": spec.idempotency.as_str(),
        "x-muster-deadline-ms": { "default": spec.limits.deadline.0, "maximum": spec.limits.deadline_max.0 },
        "x-muster-limits": {
            "concurrent": spec.limits.concurrent,
            "perSecond": spec.limits.per_second,
            "burst": spec.limits.burst,
        },
    });
    if spec.route.method.has_body() {
        let body = body_schema(spec);
        let required = body.get("required").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        out["requestBody"] = json!({ "required": required, "content": { "application/json": { "schema": body } } });
    }
    out
}

fn description(spec: &Spec) -> String {
    let examples = spec.examples.iter().map(|example| format!("\n- `{}`: {}", example.command, example.says));
    format!("{}\n\nOn the command line:\n{}", spec.docs, examples.collect::<String>())
}

fn parameters(spec: &Spec) -> Vec<Value> {
    let in_path: Vec<&str> = spec.route.parameters().collect();
    let mut out: Vec<Value> = Vec::new();
    for (name, schema) in spec.fields() {
        let place = match (in_path.contains(&name), spec.route.method.has_body()) {
            (true, _) => "path",
            (false, false) => "query",
            (false, true) => continue,
        };
        let (mut schema, description) = (schema.clone(), schema.get("description").cloned());
        if let Some(object) = schema.as_object_mut() {
            object.remove("description");
        }
        out.push(json!({
            "name": name, "in": place, "required": spec.requires(name), "schema": schema,
            "description": description.unwrap_or_default(),
        }));
    }
    out.push(json!({
        "name": DEADLINE_HEADER, "in": "header", "required": false,
        "description": "How long the caller will wait, in milliseconds.",
        "schema": { "type": "integer", "minimum": 1, "maximum": spec.limits.deadline_max.0 },
    }));
    if spec.idempotency == Idempotency::Keyed && !spec.streams {
        out.push(json!({
            "name": IDEMPOTENCY_HEADER, "in": "header", "required": false,
            "description": "A retry with the same key, through any node, gets the first call's result, unless the \
                            operation's description says otherwise.",
            "schema": { "type": "string", "minLength": 1, "maxLength": base::limits::IDEMPOTENCY_KEY_BYTES_MAX },
        }));
    }
    out
}

/// The input's schema without the fields that stand in the path.
fn body_schema(spec: &Spec) -> Value {
    let mut schema = spec.input.clone();
    for name in spec.route.parameters() {
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.remove(name);
        }
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|field| field != name);
        }
    }
    schema
}

fn responses(spec: &Spec) -> Value {
    let (media, what) =
        if spec.streams { ("application/x-ndjson", "One item per line.") } else { ("application/json", "Done.") };
    let mut out = Map::new();
    out.insert("200".into(), json!({ "description": what, "content": { media: { "schema": spec.output } } }));
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in spec.all_errors() {
        by_status.entry(status_of(code)).or_default().push(code.as_str());
    }
    for (status, codes) in by_status {
        let codes = codes.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ");
        let problem = json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
        out.insert(
            status.to_string(),
            json!({ "description": codes, "content": { "application/problem+json": problem } }),
        );
    }
    Value::Object(out)
}

fn problem_schema() -> Value {
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "type": "object",
        "description": "What happened, to what, and what to do (RFC 9457).",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": { "type": "string", "description": "`urn:muster:error:` and the code." },
            "title": { "type": "string", "description": "The code in words." },
            "status": { "type": "integer", "description": "The HTTP status." },
            "detail": { "type": "string", "description": "What happened, to what." },
            "code": { "type": "string", "enum": codes, "description": "Stable; programs match on this." },
            "hint": { "type": "string", "description": "What to do." },
            "field": { "type": "string", "description": "The input field that is wrong." },
        },
    })
}

/// The same value with every object's keys in order, whatever map the JSON library is built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let ordered: BTreeMap<String, Value> = object.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}
