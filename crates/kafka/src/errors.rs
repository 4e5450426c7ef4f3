//! Muster's error codes as Kafka's. Every match is exhaustive: a new code does not compile until somebody decides
//! what clients are told, and none is ever told as success.

use base::ErrorCode;
use kafka_protocol::ResponseError;
use stream::BatchError;

/// For a partition in a produce request. Retriable errors are those after which a client may send again.
pub(crate) fn produce(code: ErrorCode) -> ResponseError {
    match code {
        ErrorCode::Internal | ErrorCode::UnknownSession => ResponseError::UnknownServerError,
        ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition | ErrorCode::AlreadyExists => {
            ResponseError::InvalidRecord
        }
        ErrorCode::NotFound => ResponseError::UnknownTopicOrPartition,
        ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => ResponseError::TopicAuthorizationFailed,
        // Kafka, too, says "not leader" when leadership changes under a produce: the client looks for the new leader.
        ErrorCode::NotLeader | ErrorCode::ShuttingDown | ErrorCode::Expelled | ErrorCode::LeaderChanged => {
            ResponseError::NotLeaderOrFollower
        }
        ErrorCode::NoLeader => ResponseError::LeaderNotAvailable,
        // The only refusal that every producer takes as "nothing was appended, try again later".
        ErrorCode::Busy => ResponseError::NotEnoughReplicas,
        ErrorCode::DeadlineExceeded => ResponseError::RequestTimedOut,
        ErrorCode::DiskFull => ResponseError::KafkaStorageError,
        ErrorCode::Unreachable => ResponseError::NetworkException,
        ErrorCode::Corrupt => ResponseError::CorruptMessage,
        ErrorCode::OffsetOutOfRange | ErrorCode::Compacted => ResponseError::OffsetOutOfRange,
        ErrorCode::StaleEpoch => ResponseError::InvalidProducerEpoch,
        ErrorCode::TooLarge => ResponseError::MessageTooLarge,
        ErrorCode::UnsupportedVersion => ResponseError::UnsupportedVersion,
        ErrorCode::OutOfOrder => ResponseError::OutOfOrderSequenceNumber,
    }
}

/// For a batch that is refused before it reaches the engine.
pub(crate) fn batch(error: &BatchError) -> ResponseError {
    match error {
        BatchError::Truncated { .. } | BatchError::Trailing { .. } | BatchError::Length(_) | BatchError::Crc { .. } => {
            ResponseError::CorruptMessage
        }
        BatchError::Magic(_) => ResponseError::UnsupportedForMessageFormat,
        BatchError::TooLarge { .. } => ResponseError::MessageTooLarge,
        BatchError::Compression(_) => ResponseError::UnsupportedCompressionType,
        BatchError::Attributes(_) => ResponseError::InvalidTimestamp,
        BatchError::Count { .. }
        | BatchError::BaseOffset(_)
        | BatchError::Control
        | BatchError::Transactional
        | BatchError::Producer { .. }
        | BatchError::Compressed
        | BatchError::Records
        | BatchError::ReservedProducer { .. }
        | BatchError::Empty => ResponseError::InvalidRecord,
    }
}

/// For a partition in a fetch or an offset lookup. What passes is told in words that make a consumer ask again.
pub(crate) fn read(code: ErrorCode) -> ResponseError {
    match code {
        ErrorCode::Internal
        | ErrorCode::InvalidArgument
        | ErrorCode::FailedPrecondition
        | ErrorCode::AlreadyExists
        | ErrorCode::UnknownSession
        | ErrorCode::TooLarge
        | ErrorCode::OutOfOrder => ResponseError::UnknownServerError,
        ErrorCode::NotFound => ResponseError::UnknownTopicOrPartition,
        ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => ResponseError::TopicAuthorizationFailed,
        ErrorCode::NotLeader | ErrorCode::ShuttingDown | ErrorCode::Expelled | ErrorCode::LeaderChanged => {
            ResponseError::NotLeaderOrFollower
        }
        ErrorCode::NoLeader => ResponseError::LeaderNotAvailable,
        ErrorCode::Busy | ErrorCode::DeadlineExceeded | ErrorCode::Unreachable | ErrorCode::DiskFull => {
            ResponseError::KafkaStorageError
        }
        ErrorCode::Corrupt => ResponseError::CorruptMessage,
        ErrorCode::OffsetOutOfRange | ErrorCode::Compacted => ResponseError::OffsetOutOfRange,
        ErrorCode::StaleEpoch => ResponseError::FencedLeaderEpoch,
        ErrorCode::UnsupportedVersion => ResponseError::UnsupportedVersion,
    }
}

/// For a topic that is to be created or deleted.
pub(crate) fn admin(code: ErrorCode) -> ResponseError {
    match code {
        ErrorCode::Internal | ErrorCode::Corrupt | ErrorCode::OffsetOutOfRange | ErrorCode::Compacted => {
            ResponseError::UnknownServerError
        }
        ErrorCode::InvalidArgument | ErrorCode::StaleEpoch | ErrorCode::OutOfOrder | ErrorCode::TooLarge => {
            ResponseError::InvalidRequest
        }
        ErrorCode::NotFound => ResponseError::UnknownTopicOrPartition,
        ErrorCode::AlreadyExists => ResponseError::TopicAlreadyExists,
        ErrorCode::FailedPrecondition => ResponseError::PolicyViolation,
        ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => ResponseError::TopicAuthorizationFailed,
        ErrorCode::NotLeader | ErrorCode::ShuttingDown | ErrorCode::Expelled => ResponseError::NotController,
        ErrorCode::NoLeader
        | ErrorCode::Busy
        | ErrorCode::DeadlineExceeded
        | ErrorCode::Unreachable
        | ErrorCode::UnknownSession
        | ErrorCode::LeaderChanged => ResponseError::RequestTimedOut,
        ErrorCode::DiskFull => ResponseError::KafkaStorageError,
        ErrorCode::UnsupportedVersion => ResponseError::UnsupportedVersion,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_is_told_as_success() {
        for code in ErrorCode::ALL {
            for map in [produce, read, admin] {
                assert_ne!(map(*code).code(), 0, "{code}");
            }
        }
    }
}
