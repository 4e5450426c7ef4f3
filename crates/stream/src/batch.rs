//! Record batches v2 (KIP-98; Kafka's `DefaultRecordBatch`): a 61-byte header in front of records that are usually
//! compressed. The produce and fetch path reads and patches the header and never looks behind it.
//!
//! ```text
//!  0 base offset i64 | 8 length i32 (of what follows) | 12 leader epoch i32 | 16 magic i8 | 17 CRC-32C u32
//! 21 attributes i16 | 23 last offset delta i32 | 27 base timestamp i64 | 35 max timestamp i64
//! 43 producer id i64 | 51 producer epoch i16 | 53 base sequence i32 | 57 record count i32 | 61 records
//! ```
//!
//! The CRC covers everything from the attributes on, so that base offset and leader epoch can be set without it.

use base::limits::RECORD_BATCH_BYTES_MAX;
use bytes::{Bytes, BytesMut};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 61;
/// Bytes in front of what the length field counts.
const LENGTH_END: usize = 12;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;

const COMPRESSION_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const DELETE_HORIZON: i16 = 0x40;

/// What is wrong with a record batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    #[error("the record batch is cut short: {have} bytes of at least {need}")]
    Truncated { have: usize, need: usize },
    #[error("{extra} bytes follow the record batch")]
    Trailing { extra: usize },
    #[error("the record batch's length field says {0}")]
    Length(i32),
    #[error("record batch magic {0}: only version 2 is supported (Kafka 0.11 and later)")]
    Magic(i8),
    #[error("the record batch has {bytes} bytes, more than the {max} allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("the record batch's checksum is wrong: stored {stored:#010x}, computed {computed:#010x}")]
    Crc { stored: u32, computed: u32 },
    #[error("the record batch claims {count} records and a last offset delta of {last_offset_delta}")]
    Count { count: i32, last_offset_delta: i32 },
    #[error("a producer's record batch must have base offset 0, not {0}")]
    BaseOffset(i64),
    #[error("unknown compression codec {0}")]
    Compression(u8),
    #[error("producers may not write control batches")]
    Control,
    #[error("transactional batches are not supported yet")]
    Transactional,
    #[error("attributes {0:#06x}: log append time and delete horizon are for brokers to set")]
    Attributes(i16),
    #[error("producer {id} sends epoch {epoch} and sequence {sequence}: neither may be negative")]
    Producer { id: i64, epoch: i16, sequence: i32 },
    #[error("the records are compressed and cannot be looked into")]
    Compressed,
    #[error("the records do not match the header, or are cut short")]
    Records,
    #[error("there is no record batch")]
    Empty,
    #[error("producer id {producer_id} is muster's own: ids up to {max} are not for clients", max = base::limits::PRODUCER_ID_RESERVED_MAX)]
    ReservedProducer { producer_id: i64 },
}

/// How the records are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// The header, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Of the whole batch, header included.
    pub bytes: usize,
    pub leader_epoch: i32,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    /// Milliseconds since 1970: the first record's.
    pub base_timestamp: i64,
    /// Milliseconds since 1970: the greatest.
    pub max_timestamp: i64,
    /// -1: none.
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may hold more than this batch. Checks magic and that the
    /// batch is whole, nothing else.
    ///
    /// # Errors
    /// Too short, a length that cannot be, another magic.
    pub fn read(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let truncated = |need| BatchError::Truncated { have: bytes.len(), need };
        let head = bytes.first_chunk::<HEADER_BYTES>();
        // An old message set is shorter than our header: its magic tells it from a torn batch.
        match bytes.get(16).map(|byte| *byte as i8) {
            Some(magic) if magic != 2 => return Err(BatchError::Magic(magic)),
            _ => {}
        }
        let head = head.ok_or_else(|| truncated(HEADER_BYTES))?;
        let length = i32::from_be_bytes(field(head, 8));
        let bytes_total = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(LENGTH_END))
            .filter(|total| *total >= HEADER_BYTES)
            .ok_or(BatchError::Length(length))?;
        if bytes.len() < bytes_total {
            return Err(truncated(bytes_total));
        }
        Ok(BatchHeader {
            base_offset: i64::from_be_bytes(field(head, 0)),
            bytes: bytes_total,
            leader_epoch: i32::from_be_bytes(field(head, 12)),
            magic: head[16] as i8,
            crc: u32::from_be_bytes(field(head, CRC_AT)),
            attributes: i16::from_be_bytes(field(head, ATTRIBUTES_AT)),
            last_offset_delta: i32::from_be_bytes(field(head, 23)),
            base_timestamp: i64::from_be_bytes(field(head, 27)),
            max_timestamp: i64::from_be_bytes(field(head, 35)),
            producer_id: i64::from_be_bytes(field(head, 43)),
            producer_epoch: i16::from_be_bytes(field(head, 51)),
            base_sequence: i32::from_be_bytes(field(head, 53)),
            record_count: i32::from_be_bytes(field(head, 57)),
        })
    }

    /// Reads the header of a byte string that is exactly one batch.
    ///
    /// # Errors
    /// As [`BatchHeader::read`], and for bytes that follow.
    pub fn parse(batch: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = Self::read(batch)?;
        match batch.len() - header.bytes {
            0 => Ok(header),
            extra => Err(BatchError::Trailing { extra }),
        }
    }

    /// Offset of the batch's last record.
    #[must_use]
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// Whether the batch was written by an idempotent producer.
    #[must_use]
    pub fn has_producer(&self) -> bool {
        self.producer_id >= 0
    }

    /// How the records are compressed.
    ///
    /// # Errors
    /// A codec that Kafka does not know.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        match self.attributes & COMPRESSION_MASK {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Ok(Compression::Zstd),
            other => Err(BatchError::Compression(other as u8)),
        }
    }

    /// What Kafka's broker checks of a batch that a producer sends (`LogValidator.validateBatch`), from the header
    /// alone.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check_produced(&self) -> Result<(), BatchError> {
        if self.bytes > RECORD_BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge { bytes: self.bytes, max: RECORD_BATCH_BYTES_MAX });
        }
        if self.base_offset != 0 {
            return Err(BatchError::BaseOffset(self.base_offset));
        }
        if self.record_count <= 0 || self.last_offset_delta != self.record_count - 1 {
            return Err(BatchError::Count { count: self.record_count, last_offset_delta: self.last_offset_delta });
        }
        self.compression()?;
        if self.attributes & CONTROL != 0 {
            return Err(BatchError::Control);
        }
        if self.attributes & TRANSACTIONAL != 0 {
            return Err(BatchError::Transactional);
        }
        if self.attributes & (LOG_APPEND_TIME | DELETE_HORIZON) != 0 {
            return Err(BatchError::Attributes(self.attributes));
        }
        if self.has_producer() && (self.producer_epoch < 0 || self.base_sequence < 0) {
            let (id, epoch, sequence) = (self.producer_id, self.producer_epoch, self.base_sequence);
            return Err(BatchError::Producer { id, epoch, sequence });
        }
        Ok(())
    }
}

/// Checks one whole batch from a producer: shape, rules and checksum.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_produced(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(batch)?;
    header.check_produced()?;
    check_crc(batch, &header)?;
    Ok(header)
}

/// Compares the stored CRC-32C with the bytes.
///
/// # Errors
/// They differ.
pub fn check_crc(batch: &[u8], header: &BatchHeader) -> Result<(), BatchError> {
    match crc(batch) {
        computed if computed == header.crc => Ok(()),
        computed => Err(BatchError::Crc { stored: header.crc, computed }),
    }
}

/// The checksum that belongs into the header of `batch` (which has a whole header).
pub(crate) fn crc(batch: &[u8]) -> u32 {
    crc32c::crc32c(batch.get(ATTRIBUTES_AT..).unwrap_or_default())
}

/// A copy of `batch` with base offset and leader epoch set; everything else, the checksum included, is as it was.
///
/// # Errors
/// Not exactly one batch.
pub fn patch(batch: &[u8], base_offset: i64, leader_epoch: i32) -> Result<Bytes, BatchError> {
    BatchHeader::parse(batch)?;
    let mut out = BytesMut::with_capacity(batch.len());
    out.extend_from_slice(&base_offset.to_be_bytes());
    out.extend_from_slice(&batch[8..LENGTH_END]);
    out.extend_from_slice(&leader_epoch.to_be_bytes());
    out.extend_from_slice(&batch[16..]);
    Ok(out.freeze())
}

/// Cuts a byte string of batches, one after the other, into its batches, without copying. An empty string has none.
///
/// # Errors
/// A batch that is not whole, or not version 2.
pub fn split(mut bytes: Bytes) -> Result<Vec<Bytes>, BatchError> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let header = BatchHeader::read(&bytes)?;
        out.push(bytes.split_to(header.bytes));
    }
    Ok(out)
}

/// The `N` bytes at `at`; the header is longer than every field's end.
fn field<const N: usize>(head: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&head[at..at + N]);
    out
}
