//! How an operation fails.

use base::ErrorCode;
use serde::Serialize;

/// A failure as every door shows it: a stable code, what happened to what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    /// Programs match on this.
    pub code: ErrorCode,
    /// What happened, to what.
    pub message: String,
    /// What to do about it, if there is something.
    pub hint: Option<String>,
    /// With `invalid_argument`: the field, as a path such as `labels.zone`.
    pub field: Option<String>,
}

impl OpError {
    /// A failure without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        OpError { code, message: message.into(), hint: None, field: None }
    }

    /// An input field that is wrong. `problem` continues a sentence that begins with the field's name.
    pub fn field(field: impl Into<String>, problem: impl AsRef<str>) -> Self {
        let field = field.into();
        let message = format!("`{field}` {}", problem.as_ref());
        OpError { code: ErrorCode::InvalidArgument, message, hint: None, field: Some(field) }
    }

    /// The same failure with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The wire form of an [`OpError`] inside a stream of items.
#[derive(Serialize)]
struct Wire<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl Serialize for OpError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire {
            code: self.code.as_str(),
            message: &self.message,
            hint: self.hint.as_deref(),
            field: self.field.as_deref(),
        }
        .serialize(serializer)
    }
}
