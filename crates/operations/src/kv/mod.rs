//! The key-value store: small values that every node holds, changed one after the other for all.

pub(crate) mod cas;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod put;
pub(crate) mod watch;

use base::{ErrorCode, LeaseId};
use bytes::Bytes;
use data_encoding::BASE64;
use metadata::{Command, CommandResult, KeyExpect, KeyLife, KeyRecord};
use ops::{Call, Limits, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{command_result, unexpected};

/// Programs call these often.
pub(crate) const LIMITS: Limits = Limits {
    concurrent: 4_096,
    per_second: 1_000_000,
    burst: 1_000_000,
    deadline: base::limits::REQUEST_DEADLINE_DEFAULT,
    deadline_max: base::limits::REQUEST_DEADLINE_MAX,
};

/// How a value stands in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// As text.
    #[default]
    Text,
    /// In base64: bytes that are no text, or text with control characters.
    Base64,
}

/// A key and what it holds.
#[derive(Serialize, JsonSchema)]
pub(crate) struct KeyView {
    key: String,
    /// Null if only the keys were asked for.
    value: Option<String>,
    /// How the value stands here.
    encoding: Encoding,
    /// Revision of its last change: higher than that of every earlier change of any key.
    revision: u64,
    /// Revision at which it came to be.
    created_revision: u64,
    /// Changes since it came to be.
    version: u64,
    /// The lease that it goes with.
    lease: Option<u64>,
}

pub(crate) fn view(key: &str, record: &KeyRecord, with_value: bool) -> KeyView {
    let text = plain_text(&record.value);
    KeyView {
        key: key.to_owned(),
        value: with_value.then(|| text.map_or_else(|| BASE64.encode(&record.value), str::to_owned)),
        encoding: if text.is_some() { Encoding::Text } else { Encoding::Base64 },
        revision: record.modified,
        created_revision: record.created,
        version: record.version,
        lease: record.lease.map(|lease| lease.0),
    }
}

/// The value as text, if that is how it is to stand in JSON: a control character, also one beyond ASCII such as U+009B, could
/// move the cursor of whoever looks, and most take six bytes there. Those that end lines and columns take two, as quotes do.
#[must_use]
pub fn plain_text(value: &[u8]) -> Option<&str> {
    let plain = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
    std::str::from_utf8(value).ok().filter(|text| text.chars().all(plain))
}

/// The bytes that a text stands for.
pub(crate) fn bytes_of(field: &str, text: String, encoding: Encoding) -> Result<Bytes, OpError> {
    match encoding {
        Encoding::Text => Ok(text.into_bytes().into()),
        Encoding::Base64 => BASE64
            .decode(text.as_bytes())
            .map(Into::into)
            .map_err(|error| OpError::field(field, format!("is not base64: {error}"))),
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), OpError> {
    metadata::valid_key(key).map_err(|reason| OpError::field("key", format!("is refused: {reason}")))
}

/// How long a key is to live, by what the caller says.
pub(crate) fn life(ttl_s: Option<u32>, lease: Option<u64>) -> Result<KeyLife, OpError> {
    match (ttl_s, lease) {
        (None, None) => Ok(KeyLife::Lasting),
        (Some(ttl), None) => Ok(KeyLife::Ttl(u64::from(ttl) * 1_000)),
        (None, Some(lease)) => Ok(KeyLife::Bound(LeaseId(lease))),
        (Some(_), Some(_)) => {
            Err(OpError::field("ttl_s", "is refused: a key has a time of its own or a lease, not both"))
        }
    }
}

/// A change of a key that was carried out.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Put {
    key: String,
    /// Of this change.
    revision: u64,
    /// Changes of the key since it came to be.
    version: u64,
    /// The lease that the key goes with.
    lease: Option<u64>,
}

/// Gives a key a value, if it is as expected.
pub(crate) async fn put(
    call: &Call<Ports>,
    key: String,
    value: Bytes,
    expect: Option<KeyExpect>,
    life: KeyLife,
) -> Result<Put, OpError> {
    let put = Command::PutKey { key: key.clone(), value, expect, life };
    match command_result(call, put).await? {
        CommandResult::KeyPut { revision, version, lease } => {
            Ok(Put { key, revision, version, lease: lease.map(|lease| lease.0) })
        }
        _ => Err(unexpected()),
    }
}

pub(crate) fn put_text(output: &Value) -> String {
    let key = ops::human::text(&output["key"]);
    match output["lease"].as_u64() {
        Some(lease) => format!("{key} is at revision {}, under lease {lease}", output["revision"]),
        None => format!("{key} is at revision {}", output["revision"]),
    }
}

/// The bytes that a [`KeyView`] in JSON holds.
pub(crate) fn bytes_in(view: &Value) -> Vec<u8> {
    let value = view["value"].as_str().unwrap_or_default().as_bytes();
    let decoded = if view["encoding"] == "base64" { BASE64.decode(value).ok() } else { None };
    decoded.unwrap_or_else(|| value.to_vec())
}

/// The value that a [`KeyView`] in JSON holds, for people.
pub(crate) fn value_text(view: &Value) -> String {
    let value = view["value"].as_str().unwrap_or_default();
    if view["encoding"] == "base64" { format!("(base64) {value}") } else { value.to_owned() }
}

pub(crate) fn missing(key: &str) -> OpError {
    OpError::new(ErrorCode::NotFound, format!("there is no key {key:?}"))
}
