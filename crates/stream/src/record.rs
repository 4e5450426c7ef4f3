//! Records inside a batch: an encoder for muster's own writers (events, VM consoles) and a decoder for uncompressed
//! batches. Client data passes through neither.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use base::limits::RECORD_BATCH_BYTES_MAX;

use crate::batch::{self, BatchError, BatchHeader, Compression, HEADER_BYTES};

/// One record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

/// Marks a batch as an idempotent producer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerStamp {
    /// 0 or more.
    pub id: i64,
    /// 0 or more.
    pub epoch: i16,
    /// Sequence of the batch's first record, 0 or more.
    pub base_sequence: i32,
}

/// Why records cannot be made into a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("a record batch needs at least one record")]
    Empty,
    #[error("the record batch would have {bytes} bytes, more than the {max} allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("producer id, epoch and sequence may not be negative")]
    Producer,
}

/// Encodes records as one uncompressed batch v2 with base offset 0 and leader epoch -1, as a producer sends it.
///
/// # Errors
/// No records, or a batch above [`RECORD_BATCH_BYTES_MAX`].
pub fn encode_batch(records: &[Record], producer: Option<ProducerStamp>) -> Result<Bytes, EncodeError> {
    let first = records.first().ok_or(EncodeError::Empty)?;
    let stamp = producer.unwrap_or(ProducerStamp { id: -1, epoch: -1, base_sequence: -1 });
    if producer.is_some() && (stamp.id < 0 || stamp.epoch < 0 || stamp.base_sequence < 0) {
        return Err(EncodeError::Producer);
    }
    let max_timestamp = records.iter().map(|record| record.timestamp).max().unwrap_or(first.timestamp);
    let mut out = BytesMut::new();
    out.put_i64(0);
    out.put_i32(0); // Length, set below.
    out.put_i32(-1);
    out.put_i8(2);
    out.put_u32(0); // Checksum, set below.
    out.put_i16(0);
    let too_large = |bytes| EncodeError::TooLarge { bytes, max: RECORD_BATCH_BYTES_MAX };
    let count = i32::try_from(records.len()).map_err(|_| too_large(records.len()))?;
    out.put_i32(count - 1);
    out.put_i64(first.timestamp);
    out.put_i64(max_timestamp);
    out.put_i64(stamp.id);
    out.put_i16(stamp.epoch);
    out.put_i32(stamp.base_sequence);
    out.put_i32(count);
    let mut body = BytesMut::new();
    for (delta, record) in records.iter().enumerate() {
        body.clear();
        put_record(&mut body, record, record.timestamp.wrapping_sub(first.timestamp), delta as i64);
        put_varint(&mut out, body.len() as i64);
        if out.len() + body.len() > RECORD_BATCH_BYTES_MAX {
            return Err(too_large(out.len() + body.len()));
        }
        out.extend_from_slice(&body);
    }
    let length = (out.len() - 12) as i32; // Bounded by RECORD_BATCH_BYTES_MAX.
    out[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = batch::crc(&out);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    Ok(out.freeze())
}

fn put_record(out: &mut BytesMut, record: &Record, timestamp_delta: i64, offset_delta: i64) {
    out.put_i8(0);
    put_varint(out, timestamp_delta);
    put_varint(out, offset_delta);
    put_nullable(out, record.key.as_deref());
    put_nullable(out, record.value.as_deref());
    put_varint(out, record.headers.len() as i64);
    for (name, value) in &record.headers {
        put_nullable(out, Some(name.as_bytes()));
        put_nullable(out, value.as_deref());
    }
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

/// Zigzag, then base 128 with the low digits first (protobuf's `sint64`).
fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Decodes an uncompressed batch into (offset, record), keys and values as slices of it.
///
/// # Errors
/// A compressed batch, or records that do not match the header.
pub fn decode_batch(batch: &Bytes) -> Result<Vec<(i64, Record)>, BatchError> {
    let header = BatchHeader::parse(batch)?;
    if header.compression()? != Compression::None {
        return Err(BatchError::Compressed);
    }
    let mut rest = batch.slice(HEADER_BYTES..);
    let mut out = Vec::new(); // Grows with what is found; the count is not trusted.
    while !rest.is_empty() {
        let length = get_varint(&mut rest)?;
        let body = take(&mut rest, length)?;
        out.push(get_record(&header, body)?);
    }
    if i32::try_from(out.len()) == Ok(header.record_count) { Ok(out) } else { Err(BatchError::Records) }
}

fn get_record(header: &BatchHeader, mut body: Bytes) -> Result<(i64, Record), BatchError> {
    if body.is_empty() {
        return Err(BatchError::Records);
    }
    body.advance(1); // Attributes: none are defined.
    let timestamp = header.base_timestamp.wrapping_add(get_varint(&mut body)?);
    let offset = header.base_offset.wrapping_add(get_varint(&mut body)?);
    let key = get_nullable(&mut body)?;
    let value = get_nullable(&mut body)?;
    let mut headers = Vec::new();
    for _ in 0..get_varint(&mut body)? {
        let name = get_nullable(&mut body)?.ok_or(BatchError::Records)?;
        let name = std::str::from_utf8(&name).map_err(|_| BatchError::Records)?.to_owned();
        headers.push((name, get_nullable(&mut body)?));
    }
    if !body.is_empty() {
        return Err(BatchError::Records);
    }
    Ok((offset, Record { key, value, headers, timestamp }))
}

fn get_nullable(from: &mut Bytes) -> Result<Option<Bytes>, BatchError> {
    match get_varint(from)? {
        -1 => Ok(None),
        length => take(from, length).map(Some),
    }
}

fn take(from: &mut Bytes, length: i64) -> Result<Bytes, BatchError> {
    match usize::try_from(length) {
        Ok(length) if length <= from.len() => Ok(from.split_to(length)),
        _ => Err(BatchError::Records),
    }
}

fn get_varint(from: &mut Bytes) -> Result<i64, BatchError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if from.is_empty() {
            return Err(BatchError::Records);
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(BatchError::Records)
}
