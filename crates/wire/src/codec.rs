//! The envelope: one format byte, then one CBOR value that fills the rest.

use bytes::Bytes;
use minicbor::{Decode, Encode};

/// The format that [`encode`] writes. A reader refuses any other.
pub(crate) const FORMAT: u8 = base::version::ENVELOPE_FORMAT;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum WireError {
    /// Nothing at all.
    #[error("empty message")]
    Empty,
    /// Written by a version whose format this one does not know.
    #[error("unknown format {0} (this version reads format {FORMAT}; a newer one wrote it)")]
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
    encode_of_size(value, USUAL)
}

/// Like [`encode`], for a value that takes about so many bytes, rather fewer: memory that has to grow on the way is taken,
/// and copied, twice.
pub fn encode_of_size<T: Encode<()>>(value: &T, bytes: usize) -> Bytes {
    let mut out = Vec::with_capacity(bytes);
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

/// Whether [`encode`] of `value` gives just these bytes: then whoever read it from them dropped nothing. Takes no memory.
pub fn is_encoding_of<T: Encode<()>>(bytes: &[u8], value: &T) -> bool {
    let Some(body) = bytes.strip_prefix(&[FORMAT]) else { return false };
    let mut rest = Expected(body);
    minicbor::encode(value, &mut rest).is_ok() && rest.0.is_empty()
}

/// Takes what it holds, in order, and nothing else.
struct Expected<'a>(&'a [u8]);

/// Something else was written.
#[derive(Debug)]
struct Differs;

impl minicbor::encode::Write for Expected<'_> {
    type Error = Differs;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Differs> {
        self.0 = self.0.strip_prefix(bytes).ok_or(Differs)?;
        Ok(())
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

    #[test]
    fn bytes_are_compared_with_what_a_value_is_encoded_to() {
        let bytes = encode(&vec![1u64, 1_000]);
        assert!(is_encoding_of(&bytes, &vec![1u64, 1_000]));
        for other in [vec![], vec![1u64], vec![1, 1_001], vec![1, 1_000, 2]] {
            assert!(!is_encoding_of(&bytes, &other), "{other:?}");
        }
        assert!(!is_encoding_of(&[9], &7u64) && !is_encoding_of(&[], &7u64));
    }
}
