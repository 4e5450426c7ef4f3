//! ApiVersions (key 18; KIP-35, KIP-511): what this listener takes.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, ApiVersionsResponse};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest};

use crate::dispatch::{Context, Outcome};
use crate::versions::{SUPPORTED, Supported};

pub(crate) fn answer(context: Context, request: &ApiVersionsRequest) -> Outcome {
    let named = |text: &str| {
        let bytes = text.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(b))
    };
    let valid =
        context.version < 3 || (named(&request.client_software_name) && named(&request.client_software_version));
    if !valid {
        let error_code = ResponseError::InvalidRequest.code();
        return context.answer(ApiVersionsResponse::default().with_error_code(error_code));
    }
    let api_keys = SUPPORTED.iter().map(describe).collect();
    context.answer(ApiVersionsResponse::default().with_api_keys(api_keys))
}

/// The answer to a version that is not known: in version 0, naming the versions that are.
pub(crate) fn unsupported(context: Context) -> Outcome {
    let own = SUPPORTED.iter().filter(|supported| supported.api == ApiKey::ApiVersions);
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(own.map(describe).collect());
    context.answer_in(0, response)
}

fn describe(supported: &Supported) -> ApiVersion {
    ApiVersion::default()
        .with_api_key(supported.api as i16)
        .with_min_version(supported.advertised_min)
        .with_max_version(supported.max)
}
