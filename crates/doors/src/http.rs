//! How an operation's input travels in an HTTP request: fields in the path, then the query (GET, DELETE) or a JSON body.

use base::ErrorCode;
use ops::{OpError, Spec};
use serde_json::{Map, Value};

/// A request that stands for a call.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCall {
    pub method: &'static str,
    /// Path and query, encoded.
    pub target: String,
    pub body: Option<Value>,
}

/// The request for a call with this (valid) input.
#[must_use]
pub fn request_for(spec: &Spec, input: &Value) -> HttpCall {
    let mut rest = input.as_object().cloned().unwrap_or_default();
    let mut parts = Vec::new();
    for part in spec.route.path.split('/') {
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(field) => parts.push(encode(&plain(&rest.remove(field).unwrap_or_default()))),
            None => parts.push(part.to_owned()),
        }
    }
    let mut target = parts.join("/");
    if spec.route.method.has_body() {
        return HttpCall { method: spec.route.method.as_str(), target, body: Some(Value::Object(rest)) };
    }
    let mut separator = '?';
    for (name, value) in &rest {
        let values = match value {
            Value::Array(items) => items.iter().map(plain).collect(),
            Value::Object(map) => map.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect(),
            Value::Null => vec![],
            other => vec![plain(other)],
        };
        for value in values {
            target.push_str(&format!("{separator}{}={}", encode(name), encode(&value)));
            separator = '&';
        }
    }
    HttpCall { method: spec.route.method.as_str(), target, body: None }
}

/// The input that path, query and body stand for. Only its shape is made here; the pipeline checks it.
///
/// # Errors
/// A field that is given twice.
pub fn input_from(
    spec: &Spec,
    path: Vec<(String, String)>,
    query: Vec<(String, String)>,
    body: Option<Value>,
) -> Result<Value, OpError> {
    let mut input = match body {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(object)) => object,
        Some(other) => return Ok(other),
    };
    let mut given: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in query {
        match given.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => given.push((name, vec![value])),
        }
    }
    given.extend(path.into_iter().map(|(name, value)| (name, vec![value])));
    for (name, values) in given {
        let schema = spec.fields().find(|(field, _)| *field == name).map_or(&Value::Null, |(_, schema)| schema);
        let value = coerce(&name, schema, &values)?;
        match input.get(&name) {
            Some(other) if *other != value => return Err(OpError::field(name, "is given twice, differently")),
            _ => input.insert(name, value),
        };
    }
    Ok(Value::Object(input))
}

/// Texts as the value that a schema wants; what cannot be converted stays text, for the pipeline to name.
///
/// # Errors
/// A field that is given twice, or a map's entry that is no `key=value`.
pub fn coerce(name: &str, schema: &Value, texts: &[String]) -> Result<Value, OpError> {
    let wants = kind(schema);
    if wants == "array" {
        let item = schema.get("items").unwrap_or(&Value::Null);
        return Ok(texts.iter().map(|text| scalar(kind(item), text)).collect());
    }
    if wants == "object" {
        let entry = schema.get("additionalProperties").unwrap_or(&Value::Null);
        let mut map = Map::new();
        for text in texts {
            let Some((key, value)) = text.split_once('=') else {
                return Err(OpError::field(name, format!("must be KEY=VALUE, is {text:?}")));
            };
            if map.insert(key.to_owned(), scalar(kind(entry), value)).is_some() {
                return Err(OpError::field(name, format!("has the key {key:?} twice")));
            }
        }
        return Ok(Value::Object(map));
    }
    match texts {
        [text] => Ok(scalar(wants, text)),
        _ => Err(OpError::new(ErrorCode::InvalidArgument, format!("`{name}` is given {} times", texts.len()))),
    }
}

/// The JSON type that a field wants, without `null`.
#[must_use]
pub fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(one)) => one,
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        _ => "",
    }
}

fn scalar(wants: &str, text: &str) -> Value {
    let parsed = match wants {
        "integer" => text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from)).ok(),
        "number" => text.parse::<f64>().ok().map(Value::from),
        "boolean" if text.is_empty() => Some(Value::Bool(true)),
        "boolean" => text.parse::<bool>().ok().map(Value::Bool),
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
