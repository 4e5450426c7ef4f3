//! Kafka record batches as a client makes them and reads them: format v2, no compression. Written against the format's
//! description (KIP-98) and not with the product's own code, so that it can judge that code.

use bytes::Bytes;

/// Bytes before the first record.
const HEADER: usize = 61;
/// Where the checksum's range begins (the attributes).
const CHECKED_FROM: usize = 21;

/// Who an idempotent producer is, and where in its partition it is (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    pub id: i64,
    pub epoch: i16,
    /// Sequence of the batch's first record.
    pub sequence: i32,
}

impl Producer {
    /// A producer that is not idempotent.
    pub const NONE: Producer = Producer { id: -1, epoch: -1, sequence: -1 };
}

/// Makes a batch of one record per value, as a client sends it: base offset 0, leader epoch -1.
#[must_use]
pub fn encode(values: &[u64], timestamp: i64, producer: Producer) -> Bytes {
    let mut records = Vec::new();
    for (delta, value) in values.iter().enumerate() {
        let mut body = vec![0]; // attributes
        varint(&mut body, 0); // timestamp delta
        varint(&mut body, delta as i64);
        varint(&mut body, -1); // no key
        varint(&mut body, 8);
        body.extend_from_slice(&value.to_be_bytes());
        varint(&mut body, 0); // headers
        varint(&mut records, body.len() as i64);
        records.extend_from_slice(&body);
    }
    let count = i32::try_from(values.len()).expect("a handful of records");
    let mut out = Vec::with_capacity(HEADER + records.len());
    out.extend_from_slice(&0i64.to_be_bytes()); // base offset
    out.extend_from_slice(&((HEADER - 12 + records.len()) as i32).to_be_bytes());
    out.extend_from_slice(&(-1i32).to_be_bytes()); // partition leader epoch
    out.push(2); // magic
    out.extend_from_slice(&[0; 4]); // checksum
    out.extend_from_slice(&0i16.to_be_bytes()); // attributes
    out.extend_from_slice(&(count - 1).to_be_bytes()); // last offset delta
    out.extend_from_slice(&timestamp.to_be_bytes()); // base timestamp
    out.extend_from_slice(&timestamp.to_be_bytes()); // max timestamp
    out.extend_from_slice(&producer.id.to_be_bytes());
    out.extend_from_slice(&producer.epoch.to_be_bytes());
    out.extend_from_slice(&producer.sequence.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&records);
    let crc = crc32c::crc32c(&out[CHECKED_FROM..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(out)
}

/// What a consumer sees of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Offset of the last record.
    pub last_offset: i64,
    /// Partition leader epoch.
    pub leader_epoch: i32,
    /// The records' values.
    pub values: Vec<Vec<u8>>,
}

/// Reads one whole batch and checks it.
///
/// # Errors
/// What is wrong with it.
pub fn decode(data: &[u8]) -> Result<Decoded, String> {
    let mut at = Reader { data };
    let base_offset = i64::from_be_bytes(at.take("base offset")?);
    let length = i32::from_be_bytes(at.take("length")?);
    if length as i64 != at.data.len() as i64 {
        return Err(format!("length says {length}, {} bytes follow", at.data.len()));
    }
    let leader_epoch = i32::from_be_bytes(at.take("leader epoch")?);
    let [magic] = at.take("magic")?;
    if magic != 2 {
        return Err(format!("magic {magic}"));
    }
    let crc = u32::from_be_bytes(at.take("checksum")?);
    if crc != crc32c::crc32c(at.data) {
        return Err("the checksum does not match".into());
    }
    let attributes = i16::from_be_bytes(at.take("attributes")?);
    if attributes & 7 != 0 {
        return Err("compressed: the simulator's clients do not do that".into());
    }
    let last_delta = i32::from_be_bytes(at.take("last offset delta")?);
    at.take::<30>("timestamps and producer")?;
    let count = i32::from_be_bytes(at.take("count")?);
    if count != last_delta + 1 {
        return Err(format!("{count} records, last offset delta {last_delta}"));
    }
    let mut values = Vec::new();
    for index in 0..count {
        values.push(at.record(i64::from(index))?);
    }
    if !at.data.is_empty() {
        return Err(format!("{} bytes after the last record", at.data.len()));
    }
    Ok(Decoded { base_offset, last_offset: base_offset + i64::from(last_delta), leader_epoch, values })
}

struct Reader<'a> {
    data: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let (head, rest) = self.data.split_first_chunk::<N>().ok_or_else(|| format!("cut short in {what}"))?;
        self.data = rest;
        Ok(*head)
    }

    fn varint(&mut self, what: &str) -> Result<i64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(format!("{what} is no varint"))
    }

    fn bytes(&mut self, what: &str) -> Result<Vec<u8>, String> {
        match usize::try_from(self.varint(what)?) {
            Err(_) => Ok(Vec::new()),
            Ok(len) if len <= self.data.len() => {
                let (head, rest) = self.data.split_at(len);
                self.data = rest;
                Ok(head.to_vec())
            }
            Ok(len) => Err(format!("{what} of {len} bytes is cut short")),
        }
    }

    fn record(&mut self, index: i64) -> Result<Vec<u8>, String> {
        let length = self.varint("record length")?;
        let before = self.data.len() as i64;
        self.take::<1>("record attributes")?;
        self.varint("timestamp delta")?;
        if self.varint("offset delta")? != index {
            return Err(format!("record {index} has another offset delta"));
        }
        self.bytes("key")?;
        let value = self.bytes("value")?;
        for _ in 0..self.varint("header count")? {
            self.bytes("header key")?;
            self.bytes("header value")?;
        }
        match before - self.data.len() as i64 {
            read if read == length => Ok(value),
            read => Err(format!("record {index} of {length} bytes took {read}")),
        }
    }
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_round_trip_and_any_flipped_byte_of_the_records_is_noticed() {
        let values: Vec<u64> = (0..200).map(|n| n * 977).collect();
        let batch = encode(&values, 1_700_000_000_000, Producer::NONE);
        let decoded = decode(&batch).expect("as encoded");
        assert_eq!((decoded.base_offset, decoded.last_offset, decoded.leader_epoch), (0, 199, -1));
        let read: Vec<u64> =
            decoded.values.iter().map(|v| u64::from_be_bytes(v.as_slice().try_into().expect("8 bytes"))).collect();
        assert_eq!(read, values);
        for at in CHECKED_FROM..batch.len() {
            let mut bad = batch.to_vec();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
        for len in 0..batch.len() {
            assert!(decode(&batch[..len]).is_err(), "cut at {len}");
        }
    }
}
