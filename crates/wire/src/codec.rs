//! The envelope: one format byte, then one CBOR value that fills the rest.

use bytes::Bytes;
use minicbor::{Decode, Encode};

/// The format that [`encode`] writes. A reader refuses any other.
const FORMAT: u8 = 1;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum WireError {
    /// Nothing at all.
    #[error("empty message")]
    Empty,
    /// Written by a version whose format this one does not know.
    #[error("unknown format {0} (this version reads format {FORMAT})")]
    UnknownFormat(u8),
    /// Not the value expected.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// The type expected.
        what: &'static str,
        /// Where and why decoding stopped.
        reason: String,
    },
    /// The value ends before the bytes do.
    #[error("{0} bytes left over after the message")]
    TrailingBytes(usize),
    /// Larger than the protocol allows.
    #[error("{what} of {size} bytes is larger than {max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The largest allowed.
        max: usize,
    },
}

/// Most messages fit into this much, in bytes, and need no second allocation.
const USUAL: usize = 256;

/// Encodes `value` behind the format byte.
pub fn encode<T: Encode<()>>(value: &T) -> Bytes {
    let mut out = Vec::with_capacity(USUAL);
    out.push(FORMAT);
    minicbor::encode(value, &mut out).expect("encoding into memory cannot fail");
    Bytes::from(out)
}

/// Decodes the one value that `bytes` holds.
///
/// # Errors
/// Any deviation: another format, another shape, bytes left over.
pub fn decode<T>(bytes: &[u8]) -> Result<T, WireError>
where
    T: for<'b> Decode<'b, ()>,
{
    let (&format, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if format != FORMAT {
        return Err(WireError::UnknownFormat(format));
    }
    let mut decoder = minicbor::Decoder::new(body);
    let value = decoder.decode::<T>().map_err(|error| WireError::Malformed {
        what: std::any::type_name::<T>().rsplit("::").next().unwrap_or("value"),
        reason: error.to_string(),
    })?;
    match body.len() - decoder.position() {
        0 => Ok(value),
        left => Err(WireError::TrailingBytes(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_and_damage_is_named() {
        let bytes = encode(&42u64);
        assert_eq!(decode::<u64>(&bytes), Ok(42));
        assert_eq!(decode::<u64>(&[]), Err(WireError::Empty));
        assert_eq!(decode::<u64>(&[9, 0]), Err(WireError::UnknownFormat(9)));
        assert_eq!(decode::<u64>(&[1, 0, 0]), Err(WireError::TrailingBytes(1)));
        assert!(matches!(decode::<u64>(&[1, 0x61]), Err(WireError::Malformed { .. })));
    }
}
