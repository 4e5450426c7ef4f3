//! Locks, made of keys under leases: one holder at a time, in the order in which they came.
//!
//! Whoever wants a lock puts a key of its own, `locks/NAME/PLACE`, under a lease that goes with it. The key that was created
//! first holds the lock; the others wait for the one in front of theirs to go. The revision at which a key was created is its
//! *fencing token*: it is higher than that of every earlier holder, so that whoever is written to can refuse an earlier one,
//! whose lease ended without its knowledge.

pub(crate) mod acquire;
pub(crate) mod list;
pub(crate) mod release;

use base::LeaseId;
use bytes::Bytes;
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

/// What the keys of a lock begin with.
pub(crate) fn prefix_of(name: &str) -> String {
    format!("{PREFIX}{name}/")
}

/// The key of a place in the queue.
pub(crate) fn key_of(name: &str, place: &str) -> String {
    format!("{}{place}", prefix_of(name))
}

/// What the key of a place is given: who stands there, and `call`, which tells the call that put it from every other.
pub(crate) fn value_of(owner: &str, call: &str) -> Bytes {
    [owner.as_bytes(), &[0], call.as_bytes()].concat().into()
}

/// Who stands there.
pub(crate) fn owner_of(value: &[u8]) -> String {
    let end = value.iter().rposition(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Who holds the lock and who waits for it, in order: lease and fencing token.
pub(crate) fn queue(metadata: &Metadata, name: &str) -> Vec<(LeaseId, u64)> {
    let prefix = prefix_of(name);
    let place = |record: &KeyRecord| Some((record.lease?, record.created));
    let mut queue: Vec<_> = metadata.kv.range(&prefix, None).filter_map(|(_, record)| place(record)).collect();
    queue.sort_by_key(|(_, created)| *created);
    queue
}

/// Whether [`queue`] may give another answer than at revision `seen`.
pub(crate) fn queue_changed(metadata: &Metadata, name: &str, seen: u64) -> bool {
    let prefix = prefix_of(name);
    match metadata.kv.changes_after(seen) {
        Ok(mut changes) => changes.any(|change| change.key.starts_with(&prefix)),
        // The history does not reach back so far.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use metadata::{Command, KeyLife};

    use super::*;
    use crate::Core;
    use crate::testing::World;

    #[test]
    fn an_owner_is_told_from_the_call() {
        for owner in ["", "me", "a\0b", "\u{e4}"] {
            assert_eq!(owner_of(&value_of(owner, "00ff")), owner);
        }
        assert_eq!(owner_of(b"put by hand"), "put by hand");
    }

    #[test]
    fn a_queue_changes_with_its_own_keys_only() {
        let world = World::new(1);
        let put = |key: &str| {
            world.apply(Command::PutKey { key: key.into(), value: Bytes::new(), expect: None, life: KeyLife::Lasting });
        };
        put("locks/backup/1");
        let seen = world.metadata().applied;
        let changed = || queue_changed(&world.metadata(), "backup", seen);
        put("locks/backups/1");
        put("backup");
        assert!(!changed());
        assert!(queue_changed(&world.metadata(), "backup", seen - 1));
        world.apply(Command::DeleteKeys { key: "locks/backup/1".into(), prefix: false, expect: None });
        assert!(changed());
    }
}
