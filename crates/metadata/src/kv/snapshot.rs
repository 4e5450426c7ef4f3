//! The store as bytes, inside the checkpoint of `__meta`. What follows from the tables is not written.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::LeaseId;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};

use super::{KeyChange, KeyRecord, KvStore, LeaseRecord, size};

#[derive(Decode)]
struct Tables {
    #[n(0)]
    keys: BTreeMap<String, KeyRecord>,
    #[n(1)]
    leases: BTreeMap<LeaseId, LeaseRecord>,
    #[n(2)]
    history: Vec<KeyChange>,
    #[n(3)]
    compacted: u64,
}

/// As [`Tables`], which would be copies of the tables.
impl<C> Encode<C> for KvStore {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, context: &mut C) -> Result<(), EncodeError<W::Error>> {
        // By name: whoever adds a field says here what becomes of it. The last three follow from the others.
        let KvStore { keys, leases, history, compacted, leased: _, bytes: _, history_bytes: _ } = self;
        e.array(4)?.map(keys.len() as u64)?;
        for (key, record) in keys {
            record.encode(e.str(key)?, context)?;
        }
        e.map(leases.len() as u64)?;
        for (id, record) in leases {
            id.encode(e, context)?;
            record.encode(e, context)?;
        }
        e.array(history.len() as u64)?;
        for change in history.values() {
            change.encode(e, context)?;
        }
        compacted.encode(e, context)
    }
}

impl<'b, C> Decode<'b, C> for KvStore {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        let tables = Tables::decode(d, context)?;
        let mut store = KvStore { compacted: tables.compacted, ..KvStore::default() };
        for (key, record) in tables.keys {
            store.bytes += size(&key, &record.value);
            if let Some(lease) = record.lease {
                store.leased.entry(lease).or_default().insert(key.clone());
            }
            store.keys.insert(key.into(), Arc::new(record));
        }
        store.leases = tables.leases.into_iter().collect();
        for change in tables.history {
            let same = store.history.get_max().filter(|((at, _), _)| *at == change.revision);
            let count = same.map_or(0, |((_, count), _)| count + 1);
            store.history_bytes += change.bytes();
            store.history.insert((change.revision, count), change);
        }
        Ok(store)
    }
}
