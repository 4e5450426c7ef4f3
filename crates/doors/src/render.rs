//! Outputs as people or programs want them.

use ops::{Human, OpError, Spec};
use serde_json::Value;

/// What an output is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Human,
    Json,
}

/// An output, or one item of a stream, as text without a newline at its end; empty if there is nothing to print.
#[must_use]
pub fn output(spec: &Spec, value: &Value, format: Format) -> String {
    match (format, spec.human) {
        (Format::Json, _) if spec.streams => value.to_string(),
        (Format::Json, _) => format!("{value:#}"),
        (Format::Human, Human::Fields) => ops::human::fields(value),
        (Format::Human, Human::Record(columns)) => ops::human::record(columns, value),
        (Format::Human, Human::Text(text) | Human::Bytes { text, .. }) => text(value),
        (Format::Human, Human::Table { rows, columns, empty }) => match value.pointer(rows).and_then(Value::as_array) {
            Some(rows) if !rows.is_empty() => ops::human::json_table(columns, rows),
            _ => empty.to_owned(),
        },
    }
}

/// A failure as text: what happened, and what to do.
#[must_use]
pub fn failure(error: &OpError, format: Format) -> String {
    match (format, &error.hint) {
        (Format::Json, _) => serde_json::json!({ "error": error }).to_string(),
        (Format::Human, Some(hint)) => format!("error: {}\n  {hint}", error.message),
        (Format::Human, None) => format!("error: {}", error.message),
    }
}
