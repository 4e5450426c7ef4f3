//! Failures as problem documents (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::ErrorCode;
use ops::OpError;
use serde_json::json;

/// The HTTP status of a code.
#[must_use]
pub fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::OffsetOutOfRange | ErrorCode::UnsupportedVersion => 400,
        ErrorCode::Unauthenticated => 401,
        ErrorCode::PermissionDenied => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::AlreadyExists
        | ErrorCode::FailedPrecondition
        | ErrorCode::UnknownSession
        | ErrorCode::StaleEpoch
        | ErrorCode::OutOfOrder => 409,
        ErrorCode::TooLarge => 413,
        ErrorCode::Compacted => 410,
        ErrorCode::Busy => 429,
        ErrorCode::Internal | ErrorCode::Corrupt => 500,
        ErrorCode::NotLeader
        | ErrorCode::NoLeader
        | ErrorCode::LeaderChanged
        | ErrorCode::Unreachable
        | ErrorCode::ShuttingDown
        | ErrorCode::Expelled => 503,
        ErrorCode::DeadlineExceeded => 504,
        ErrorCode::DiskFull => 507,
    }
}

/// A failure as a response, with the status of its code.
pub(crate) struct Problem(pub OpError, pub StatusCode);

impl From<OpError> for Problem {
    fn from(error: OpError) -> Self {
        let status = StatusCode::from_u16(status_of(error.code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Problem(error, status)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem(error, status) = self;
        let code = error.code.as_str();
        let mut body = json!({
            "type": format!("urn:muster:error:{code}"),
            "title": code.replace('_', " "),
            "status": status.as_u16(),
            "detail": error.message,
            "code": code,
        });
        if let Some(hint) = error.hint {
            body["hint"] = hint.into();
        }
        if let Some(field) = error.field {
            body["field"] = field.into();
        }
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (status, [(header::CONTENT_TYPE, kind)], body.to_string()).into_response();
        if error.code == ErrorCode::Busy {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
