//! Locks, made of keys under leases: one holder at a time, in the order in which they came.
//!
//! Whoever wants a lock puts the key `locks/NAME/LEASE` under a lease of its own. The key that was created first holds the
//! lock; the others wait for the one in front of theirs to go. The revision at which a key was created is its *fencing
//! token*: it is higher than that of every earlier holder, so that whoever is written to can refuse an earlier one, whose
//! lease ended without its knowledge.

pub(crate) mod acquire;
pub(crate) mod list;
pub(crate) mod release;

use base::LeaseId;
use metadata::{KeyRecord, Metadata};
use ops::OpError;

pub(crate) const PREFIX: &str = "locks/";

/// Whether a text can be the name of a lock.
pub(crate) fn check_name(name: &str) -> Result<(), OpError> {
    if name.is_empty() || name.contains('/') || name.len() > 256 {
        return Err(OpError::field("name", "is refused: a lock's name has 1 to 256 bytes, and no `/`"));
    }
    metadata::valid_key(name).map_err(|reason| OpError::field("name", format!("is refused: {reason}")))
}

pub(crate) fn key_of(name: &str, lease: LeaseId) -> String {
    format!("{PREFIX}{name}/{:020}", lease.0)
}

/// Who holds the lock and who waits for it, in order: lease and fencing token.
pub(crate) fn queue(metadata: &Metadata, name: &str) -> Vec<(LeaseId, u64)> {
    let prefix = format!("{PREFIX}{name}/");
    let place = |record: &KeyRecord| Some((record.lease?, record.created));
    let mut queue: Vec<_> = metadata.kv.range(&prefix, None).filter_map(|(_, record)| place(record)).collect();
    queue.sort_by_key(|(_, created)| *created);
    queue
}
