//! `#[cbor(with = "wire::blob")]`: a [`bytes::Bytes`] field as a CBOR byte string.

use bytes::Bytes;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};

/// Writes the bytes as one definite byte string.
///
/// # Errors
/// Those of the writer.
pub fn encode<C, W: Write>(value: &Bytes, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
    e.bytes(value)?;
    Ok(())
}

/// Reads one definite byte string, copying it.
///
/// # Errors
/// If there is none.
pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Bytes, DecodeError> {
    d.bytes().map(Bytes::copy_from_slice)
}

/// `#[cbor(with = "wire::blob::list")]`: a `Vec<Bytes>` field as an array of byte strings.
pub mod list {
    use super::{Bytes, DecodeError, Decoder, EncodeError, Encoder, Write};

    /// Writes the array.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn encode<C, W: Write>(value: &[Bytes], e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.array(value.len() as u64)?;
        for bytes in value {
            e.bytes(bytes)?;
        }
        Ok(())
    }

    /// Reads the array; memory grows with what is really there, not with the count it claims.
    ///
    /// # Errors
    /// If it is not an array of definite length, holding byte strings.
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<Bytes>, DecodeError> {
        let count = d.array()?.ok_or_else(|| DecodeError::message("array of indefinite length"))?;
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(Bytes::copy_from_slice(d.bytes()?));
        }
        Ok(out)
    }
}
