//! Record batches: what is written can be read, what is damaged is refused, and no bytes panic.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use stream::batch::{self, HEADER_BYTES};
use stream::record::decode_batch;
use stream::{BatchError, BatchHeader, EncodeError, ProducerStamp, Record, encode_batch};

fn record() -> impl Strategy<Value = Record> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from));
    let headers = proptest::collection::vec(("[a-zé]{0,9}", bytes()), 0..4);
    (bytes(), bytes(), headers, any::<i64>()).prop_map(|(key, value, headers, timestamp)| Record {
        key,
        value,
        headers,
        timestamp,
    })
}

/// A copy of `batch` with bytes replaced, and its checksum made right again.
fn forged(batch: &Bytes, at: usize, with: &[u8]) -> Bytes {
    let mut out = BytesMut::from(&batch[..]);
    out[at..at + with.len()].copy_from_slice(with);
    let crc = crc32c::crc32c(&out[21..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

fn simple() -> Bytes {
    let records = [Record { value: Some("one".into()), timestamp: 5, ..Record::default() }, Record::default()];
    encode_batch(&records, None).unwrap()
}

proptest! {
    #[test]
    fn records_round_trip(records in proptest::collection::vec(record(), 1..20)) {
        let batch = encode_batch(&records, None).unwrap();
        let header = batch::check_produced(&batch).unwrap();
        prop_assert_eq!(header.record_count as usize, records.len());
        prop_assert_eq!(header.max_timestamp, records.iter().map(|r| r.timestamp).max().unwrap());
        let moved = batch::patch(&batch, 1000, 7).unwrap();
        let moved_header = BatchHeader::parse(&moved).unwrap();
        batch::check_crc(&moved, &moved_header).unwrap();
        prop_assert_eq!((moved_header.base_offset, moved_header.leader_epoch), (1000, 7));
        prop_assert_eq!(&moved[16..], &batch[16..]);
        let back = decode_batch(&moved).unwrap();
        prop_assert_eq!(back.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(),
            (1000..1000 + records.len() as i64).collect::<Vec<_>>());
        prop_assert_eq!(back.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), records);
    }

    #[test]
    fn any_flipped_bit_is_noticed(records in proptest::collection::vec(record(), 1..4), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let batch = encode_batch(&records, None).unwrap();
        let at = at.index(batch.len());
        // The leader epoch (12..16) is the leader's to set, whatever the producer wrote.
        prop_assume!(!(12..16).contains(&at));
        let mut damaged = BytesMut::from(&batch[..]);
        damaged[at] ^= 1u8 << bit;
        prop_assert!(batch::check_produced(&damaged).is_err());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
        let _ = batch::split(Bytes::from(bytes.clone()));
        let _ = batch::check_produced(&bytes);
        // Garbage behind a good header reaches the record decoder.
        let mut behind = BytesMut::from(&simple()[..]);
        let from = HEADER_BYTES + at.index(behind.len() - HEADER_BYTES);
        behind.truncate(from);
        behind.extend_from_slice(&bytes);
        let length = (behind.len() as i32 - 12).to_be_bytes();
        behind[8..12].copy_from_slice(&length);
        let _ = decode_batch(&behind.freeze());
    }
}

#[test]
fn each_rule_has_its_refusal() {
    let good = simple();
    batch::check_produced(&good).unwrap();
    let stamped =
        encode_batch(&[Record::default()], Some(ProducerStamp { id: 9, epoch: 1, base_sequence: 0 })).unwrap();
    let cases: Vec<(Bytes, BatchError)> = vec![
        (good.slice(..60), BatchError::Truncated { have: 60, need: 61 }),
        (good.slice(..good.len() - 1), BatchError::Truncated { have: good.len() - 1, need: good.len() }),
        (forged(&good, 8, &(-1i32).to_be_bytes()), BatchError::Length(-1)),
        (
            forged(&good, 8, &i32::MAX.to_be_bytes()),
            BatchError::Truncated { have: good.len(), need: i32::MAX as usize + 12 },
        ),
        (forged(&good, 16, &[1]), BatchError::Magic(1)),
        (forged(&good, 0, &5i64.to_be_bytes()), BatchError::BaseOffset(5)),
        (forged(&good, 57, &0i32.to_be_bytes()), BatchError::Count { count: 0, last_offset_delta: 1 }),
        (forged(&good, 57, &3i32.to_be_bytes()), BatchError::Count { count: 3, last_offset_delta: 1 }),
        (forged(&good, 57, &i32::MIN.to_be_bytes()), BatchError::Count { count: i32::MIN, last_offset_delta: 1 }),
        (forged(&good, 22, &[5]), BatchError::Compression(5)),
        (forged(&good, 22, &[0x20]), BatchError::Control),
        (forged(&good, 22, &[0x10]), BatchError::Transactional),
        (forged(&good, 22, &[0x08]), BatchError::Attributes(8)),
        (forged(&stamped, 53, &(-1i32).to_be_bytes()), BatchError::Producer { id: 9, epoch: 1, sequence: -1 }),
    ];
    for (batch, error) in cases {
        assert_eq!(batch::check_produced(&batch), Err(error));
    }
    let mut twice = BytesMut::from(&good[..]);
    twice.extend_from_slice(&good);
    assert_eq!(batch::check_produced(&twice), Err(BatchError::Trailing { extra: good.len() }));
    assert_eq!(batch::split(twice.freeze()).unwrap(), vec![good.clone(), good]);
    assert_eq!(batch::split(Bytes::new()).unwrap(), Vec::<Bytes>::new());
}

#[test]
fn the_encoder_keeps_the_bounds() {
    assert_eq!(encode_batch(&[], None), Err(EncodeError::Empty));
    let large = Record { value: Some(vec![0; base::limits::RECORD_BATCH_BYTES_MAX].into()), ..Record::default() };
    assert!(matches!(encode_batch(&[large], None), Err(EncodeError::TooLarge { .. })));
    let stamp = ProducerStamp { id: -1, epoch: 0, base_sequence: 0 };
    assert_eq!(encode_batch(&[Record::default()], Some(stamp)), Err(EncodeError::Producer));
}

#[test]
fn a_message_set_of_old_is_named_as_such() {
    let mut old = vec![0u8; 40];
    old[16] = 1;
    assert_eq!(batch::split(old.into()), Err(BatchError::Magic(1)));
}
