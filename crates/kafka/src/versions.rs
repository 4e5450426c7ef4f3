//! Which requests, in which versions, this listener takes.

use kafka_protocol::messages::ApiKey;

/// One kind of request and the versions that work.
pub(crate) struct Supported {
    pub(crate) api: ApiKey,
    pub(crate) min: i16,
    pub(crate) max: i16,
    /// What ApiVersions says; below `min` only where clients need it to.
    pub(crate) advertised_min: i16,
}

const fn from_to(api: ApiKey, min: i16, max: i16) -> Supported {
    Supported { api, min, max, advertised_min: min }
}

/// Ordered by API key. The maxima are those of Kafka 4.0, where they work here, so that clients that infer a broker's
/// release from them infer a real one.
pub(crate) const SUPPORTED: &[Supported] = &[
    // librdkafka compresses only if version 0 is advertised; Kafka 4 says so for the same reason (KAFKA-18659) and,
    // like this listener, takes none below 3.
    Supported { api: ApiKey::Produce, min: 3, max: 13, advertised_min: 0 },
    from_to(ApiKey::Fetch, 4, 17),
    from_to(ApiKey::ListOffsets, 1, 10),
    from_to(ApiKey::Metadata, 0, 13),
    from_to(ApiKey::FindCoordinator, 0, 6),
    from_to(ApiKey::ApiVersions, 0, 4),
    from_to(ApiKey::CreateTopics, 2, 7),
    from_to(ApiKey::DeleteTopics, 1, 6),
];

/// Whether a request is taken.
pub(crate) enum Support {
    Yes(ApiKey),
    /// The request is known, this version of it is not.
    Version(ApiKey),
    /// This kind of request is not known.
    No,
}

pub(crate) fn support(api_key: i16, version: i16) -> Support {
    match SUPPORTED.iter().find(|supported| supported.api as i16 == api_key) {
        Some(supported) if (supported.min..=supported.max).contains(&version) => Support::Yes(supported.api),
        Some(supported) => Support::Version(supported.api),
        None => Support::No,
    }
}
