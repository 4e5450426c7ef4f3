//! From a frame to the handler of its request.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

use crate::listener::Shared;
use crate::shape::{self, ShapeError};
use crate::versions::{Support, support};
use crate::{Broker, api};

/// A request that is under way.
pub(crate) struct Started {
    pub(crate) api: ApiKey,
    pub(crate) outcome: BoxFuture<'static, Outcome>,
    /// The records that its answer may bring, in bytes.
    pub(crate) answer_bytes_max: usize,
}

/// What comes of a request.
pub(crate) enum Outcome {
    Answer(Answer),
    /// The request wants none (produce with acks=0).
    Silence,
    /// The connection must be closed, for this reason.
    Close(String),
}

/// Appends a body to a frame.
type Encode = Box<dyn FnOnce(&mut BytesMut) -> Result<(), String> + Send>;

/// An answer that is encoded only when it is written.
pub(crate) struct Answer {
    correlation_id: i32,
    header_version: i16,
    body: Encode,
}

impl Answer {
    /// Appends the frame; after an error `out` is as it was.
    pub(crate) fn encode(self, out: &mut BytesMut) -> Result<(), String> {
        let start = out.len();
        out.put_i32(0);
        let header = ResponseHeader::default().with_correlation_id(self.correlation_id);
        let encoded = header
            .encode(out, self.header_version)
            .map_err(|error| error.to_string())
            .and_then(|()| (self.body)(out))
            .and_then(|()| i32::try_from(out.len() - start - 4).map_err(|_| "more than 2 GiB".to_owned()));
        match encoded {
            Ok(length) => {
                out[start..start + 4].copy_from_slice(&length.to_be_bytes());
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }
}

/// What is known of a request besides its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    pub(crate) version: i16,
    correlation_id: i32,
}

impl Context {
    /// The answer to this request.
    pub(crate) fn answer<R: Encodable + HeaderVersion + Send + 'static>(self, body: R) -> Outcome {
        self.answer_in(self.version, body)
    }

    /// An answer in another version than the request's.
    pub(crate) fn answer_in<R: Encodable + HeaderVersion + Send + 'static>(self, version: i16, body: R) -> Outcome {
        Outcome::Answer(Answer {
            correlation_id: self.correlation_id,
            header_version: R::header_version(version),
            body: Box::new(move |out| body.encode(out, version).map_err(|error| error.to_string())),
        })
    }
}

/// Why a request is not even started; the connection is closed, as Kafka does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{bytes} bytes are too few for a Kafka request")]
    Short { bytes: usize },
    #[error("unknown request (API key {api_key}, version {version})")]
    Unknown { api_key: i16, version: i16 },
    #[error("{api:?} requests in version {version} are not supported")]
    Version { api: ApiKey, version: i16 },
    #[error("a malformed {api:?} request (version {version})")]
    Shape { api: ApiKey, version: i16, source: ShapeError },
    #[error("a malformed {api:?} request (version {version}): {reason}")]
    Decode { api: ApiKey, version: i16, reason: String },
}

/// Decodes a request and starts it. What must keep the order of arrival is done when this returns.
pub(crate) fn start<B: Broker>(shared: &Arc<Shared<B>>, frame: Bytes) -> Result<Started, Refused> {
    let Some([a, b, c, d, id @ ..]) = frame.first_chunk::<8>() else {
        return Err(Refused::Short { bytes: frame.len() });
    };
    let (api_key, version) = (i16::from_be_bytes([*a, *b]), i16::from_be_bytes([*c, *d]));
    let context = Context { version, correlation_id: i32::from_be_bytes(*id) };
    let api = match support(api_key, version) {
        Support::Yes(api) => api,
        // Whoever asks for versions cannot know them yet (KIP-511).
        Support::Version(ApiKey::ApiVersions) => {
            return Ok(now(ApiKey::ApiVersions, api::api_versions::unsupported(context)));
        }
        Support::Version(api) => return Err(Refused::Version { api, version }),
        Support::No => return Err(Refused::Unknown { api_key, version }),
    };
    shape::check(api, version, &frame).map_err(|source| Refused::Shape { api, version, source })?;
    let mut frame = frame;
    let decoded = |error: String| Refused::Decode { api, version, reason: error };
    RequestHeader::decode(&mut frame, api.request_header_version(version)).map_err(|e| decoded(e.to_string()))?;
    route(shared, api, context, frame).map_err(decoded)
}

fn route<B: Broker>(
    shared: &Arc<Shared<B>>,
    api: ApiKey,
    context: Context,
    mut body: Bytes,
) -> Result<Started, String> {
    let shared = shared.clone();
    let body = &mut body;
    let version = context.version;
    Ok(match api {
        ApiKey::ApiVersions => now(api, api::api_versions::answer(context, &decode(body, version)?)),
        ApiKey::FindCoordinator => now(api, api::find_coordinator::answer(context, decode(body, version)?)),
        ApiKey::Metadata => small(api, api::metadata::answer(shared, context, decode(body, version)?)),
        ApiKey::CreateTopics => small(api, api::create_topics::answer(shared, context, decode(body, version)?)),
        ApiKey::DeleteTopics => small(api, api::delete_topics::answer(shared, context, decode(body, version)?)),
        ApiKey::ListOffsets => small(api, api::list_offsets::answer(shared, context, decode(body, version)?)),
        ApiKey::Produce => small(api, api::produce::start(&shared, context, decode(body, version)?)),
        ApiKey::Fetch => {
            let request = decode(body, version)?;
            let answer_bytes_max = api::fetch::bytes_max(&request);
            let outcome = api::fetch::answer(shared, context, request).boxed();
            Started { api, outcome, answer_bytes_max }
        }
        other => return Err(format!("no handler for {other:?}")),
    })
}

fn decode<R: Decodable>(body: &mut Bytes, version: i16) -> Result<R, String> {
    R::decode(body, version).map_err(|error| error.to_string())
}

fn now(api: ApiKey, outcome: Outcome) -> Started {
    small(api, std::future::ready(outcome))
}

fn small(api: ApiKey, outcome: impl Future<Output = Outcome> + Send + 'static) -> Started {
    Started { api, outcome: outcome.boxed(), answer_bytes_max: 0 }
}
