//! Checks a JSON value against a schema, with messages that name the field and say what to write instead.
//!
//! Covers the part of JSON Schema that [`crate::schema_of`] gives out for inputs: types, enumerations, bounds,
//! lengths, arrays, objects, alternatives. serde checks the rest afterwards.

use base::ErrorCode;
use serde_json::{Map, Value};

use crate::{OpError, nearest};

/// Fields deeper than this are refused (inputs are shallow; JSON from outside need not be).
const DEPTH_MAX: usize = 16;

/// Checks `value`, an operation's whole input. Fields that are null and not required are taken out.
///
/// # Errors
/// `invalid_argument`, naming the first field that is wrong.
pub fn validate(schema: &Value, value: &mut Value) -> Result<(), OpError> {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    if !value.is_object() {
        let problem = format!("the input must be a JSON object, not {}", kind(value));
        return Err(OpError::new(ErrorCode::InvalidArgument, problem));
    }
    check(schema, value, "", 0)
}

fn check(schema: &Value, value: &mut Value, path: &str, depth: usize) -> Result<(), OpError> {
    if depth > DEPTH_MAX {
        return Err(OpError::field(path, "is nested too deeply"));
    }
    if let Some(allowed) = choices(schema) {
        return check_choice(&allowed, value, path);
    }
    if let Some(options) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
        return check_alternatives(options, value, path, depth);
    }
    check_type(schema, value, path)?;
    match value {
        Value::Object(object) => check_object(schema, object, path, depth),
        Value::Array(items) => check_array(schema, items, path, depth),
        Value::String(text) => check_text(schema, text, path),
        Value::Number(number) => check_number(schema, number, path),
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

/// The texts that a schema allows, if it is an enumeration (`enum`, or `oneOf` of `const`s, perhaps or null).
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Some(list.iter().filter_map(Value::as_str).collect());
    }
    if let Some(one) = schema.get("const") {
        return one.as_str().map(|text| vec![text]);
    }
    let options = schema.get("oneOf").or_else(|| schema.get("anyOf"))?.as_array()?;
    let mut all = Vec::new();
    for option in options {
        if option.get("type").and_then(Value::as_str) != Some("null") {
            all.extend(choices(option)?);
        }
    }
    Some(all)
}

fn check_choice(allowed: &[&str], value: &Value, path: &str) -> Result<(), OpError> {
    match value {
        Value::Null => Ok(()),
        Value::String(text) if allowed.contains(&text.as_str()) => Ok(()),
        _ => {
            let error = OpError::field(path, format!("must be one of {}, is {}", quoted(allowed), shown(value)));
            let near = value.as_str().and_then(|text| nearest(text, allowed.iter().copied()));
            Err(match near {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            })
        }
    }
}

fn check_alternatives(options: &[Value], value: &mut Value, path: &str, depth: usize) -> Result<(), OpError> {
    let mut first = None;
    for option in options {
        let mut copy = value.clone();
        match check(option, &mut copy, path, depth + 1) {
            Ok(()) => {
                *value = copy;
                return Ok(());
            }
            Err(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn check_type(schema: &Value, value: &Value, path: &str) -> Result<(), OpError> {
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = types.iter().any(|name| match *name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    });
    if fits {
        return Ok(());
    }
    let expected = types.iter().find(|name| **name != "null").copied().unwrap_or("null");
    let article = if matches!(expected, "integer" | "array" | "object") { "an" } else { "a" };
    Err(OpError::field(path, format!("must be {article} {expected}, is {}", shown(value))))
}

fn check_object(schema: &Value, object: &mut Map<String, Value>, path: &str, depth: usize) -> Result<(), OpError> {
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    object.retain(|name, value| !value.is_null() || required.contains(&name.as_str()));
    let rest = schema.get("additionalProperties");
    for (name, value) in object.iter_mut() {
        let inner = join(path, name);
        match (properties.get(name), rest) {
            (Some(field), _) => check(field, value, &inner, depth + 1)?,
            (None, Some(field @ Value::Object(_))) => check(field, value, &inner, depth + 1)?,
            (None, _) => return Err(unknown_field(&inner, name, properties)),
        }
    }
    match required.iter().find(|name| !object.contains_key(**name)) {
        Some(missing) => Err(OpError::field(join(path, missing), "is required")),
        None => Ok(()),
    }
}

fn unknown_field(path: &str, name: &str, properties: &Map<String, Value>) -> OpError {
    let error = OpError::field(path, "is not a field of this operation");
    match nearest(name, properties.keys().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if properties.is_empty() => error.hint("it takes no input"),
        None => {
            let names: Vec<&str> = properties.keys().map(String::as_str).collect();
            error.hint(format!("its fields are {}", quoted(&names)))
        }
    }
}

fn check_array(schema: &Value, items: &mut [Value], path: &str, depth: usize) -> Result<(), OpError> {
    bounds(schema, "minItems", "maxItems", items.len() as f64, |bound, what| {
        OpError::field(path, format!("must have {what} {bound} items, has {}", items.len()))
    })?;
    let Some(item) = schema.get("items") else { return Ok(()) };
    items.iter_mut().enumerate().try_for_each(|(at, value)| check(item, value, &format!("{path}[{at}]"), depth + 1))
}

fn check_text(schema: &Value, text: &str, path: &str) -> Result<(), OpError> {
    let length = text.chars().count();
    if length == 0 && schema.get("minLength").and_then(Value::as_u64).is_some_and(|least| least > 0) {
        return Err(OpError::field(path, "must not be empty"));
    }
    bounds(schema, "minLength", "maxLength", length as f64, |bound, what| {
        OpError::field(path, format!("must have {what} {bound} characters, has {length}"))
    })
}

fn check_number(schema: &Value, number: &serde_json::Number, path: &str) -> Result<(), OpError> {
    let Some(value) = number.as_f64() else { return Ok(()) };
    bounds(schema, "minimum", "maximum", value, |bound, what| {
        OpError::field(path, format!("must be {what} {bound}, is {number}"))
    })
}

fn bounds(
    schema: &Value,
    least: &str,
    most: &str,
    value: f64,
    error: impl Fn(&Value, &str) -> OpError,
) -> Result<(), OpError> {
    let limit = |name: &str| schema.get(name).and_then(|bound| Some((bound, bound.as_f64()?)));
    match (limit(least), limit(most)) {
        (Some((bound, number)), _) if value < number => Err(error(bound, "at least")),
        (_, Some((bound, number))) if value > number => Err(error(bound, "at most")),
        _ => Ok(()),
    }
}

fn join(path: &str, name: &str) -> String {
    let name: String = name.chars().take(64).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The value if it is short, otherwise what kind of thing it is.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).into(),
        Value::String(text) if text.len() > 64 => kind(value).into(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemars::JsonSchema;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::schema_of;

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Input {
        #[schemars(length(min = 1, max = 5))]
        name: String,
        #[schemars(range(min = 1, max = 8))]
        cpus: Option<u32>,
        mode: Option<Mode>,
        tags: Option<Vec<String>>,
        labels: Option<BTreeMap<String, String>>,
        inner: Option<Inner>,
    }

    #[derive(Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    #[allow(dead_code)]
    enum Mode {
        Fast,
        Slow,
    }

    #[derive(Deserialize, JsonSchema)]
    #[allow(dead_code)]
    struct Inner {
        deep: bool,
    }

    fn says(mut value: Value) -> String {
        match validate(&schema_of::<Input>(), &mut value) {
            Ok(()) => "ok".into(),
            Err(error) => match error.hint {
                Some(hint) => format!("{}; {hint}", error.message),
                None => error.message,
            },
        }
    }

    #[test]
    fn good_input_passes_and_null_means_absent() {
        let full = json!({"name": "a", "cpus": 2, "mode": "fast", "tags": ["x"], "labels": {"zone": "a"},
            "inner": {"deep": true}});
        assert_eq!(says(full), "ok");
        let mut sparse = json!({"name": "a", "cpus": null, "mode": null});
        assert!(validate(&schema_of::<Input>(), &mut sparse).is_ok());
        assert_eq!(sparse, json!({"name": "a"}));
    }

    #[test]
    fn every_mistake_is_named_with_its_field() {
        for (input, expect) in [
            (json!([]), "the input must be a JSON object, not an array"),
            (json!({}), "`name` is required"),
            (json!(null), "`name` is required"),
            (json!({"name": null}), "`name` must be a string, is null"),
            (json!({"name": 7}), "`name` must be a string, is 7"),
            (json!({"name": ""}), "`name` must not be empty"),
            (json!({"name": "abcdef"}), "`name` must have at most 5 characters, has 6"),
            (json!({"name": "a", "cpu": 2}), "`cpu` is not a field of this operation; did you mean `cpus`?"),
            (
                json!({"name": "a", "colour": 2}),
                "`colour` is not a field of this operation; its fields are `cpus`, `inner`, `labels`, `mode`, `name`, `tags`",
            ),
            (json!({"name": "a", "cpus": 0}), "`cpus` must be at least 1, is 0"),
            (json!({"name": "a", "cpus": -1}), "`cpus` must be at least 1, is -1"),
            (json!({"name": "a", "cpus": 9}), "`cpus` must be at most 8, is 9"),
            (json!({"name": "a", "cpus": 1.5}), "`cpus` must be an integer, is 1.5"),
            (json!({"name": "a", "cpus": "two"}), "`cpus` must be an integer, is \"two\""),
            (
                json!({"name": "a", "mode": "fats"}),
                "`mode` must be one of `fast`, `slow`, is \"fats\"; did you mean `fast`?",
            ),
            (json!({"name": "a", "tags": ["x", 1]}), "`tags[1]` must be a string, is 1"),
            (json!({"name": "a", "labels": {"zone": 1}}), "`labels.zone` must be a string, is 1"),
            (json!({"name": "a", "inner": {}}), "`inner.deep` is required"),
            (
                json!({"name": "a", "inner": {"deep": true, "deeep": 1}}),
                "`inner.deeep` is not a field of this operation; did you mean `deep`?",
            ),
        ] {
            assert_eq!(says(input.clone()), expect, "for {input}");
        }
    }
}
