//! Keys of the key-value store: what a state says of those that several clients contend for, leases, which last as long as
//! their holders were told, and somebody who watches.

use std::collections::{BTreeMap, BTreeSet};

use base::LeaseId;
use linear::KeyTold;
use metadata::{Command, KeyChange, KeyChanged, Metadata};

use crate::time::{Nanos, ms};

/// What a state says of a key.
#[must_use]
pub fn key_in(state: &Metadata, key: &str) -> KeyTold {
    let value = state.kv.key(key).map(|record| &record.value[..]);
    KeyTold::Is(value.map(|value| value.try_into().map_or(u64::MAX, u64::from_be_bytes)))
}

/// Until when leases live, as their holders were told.
#[derive(Default)]
pub struct Leases {
    until: BTreeMap<LeaseId, Nanos>,
    /// Those of another life of the cluster.
    inherited: BTreeSet<LeaseId>,
    /// Leases that ended because their time was over.
    pub expired: u64,
    /// Renewals that were granted.
    pub kept: u64,
    /// Those of them that were of leases of another life.
    pub outlived: u64,
}

impl Leases {
    /// A survivor of another life of the cluster brings leases along: the first leader starts them in full.
    pub fn recovered(&mut self, state: &Metadata) {
        for lease in state.kv.leases.values() {
            self.until.insert(lease.id, ms(lease.ttl_ms));
            self.inherited.insert(lease.id);
        }
    }

    /// A holder was told that its lease lives until then.
    pub fn held(&mut self, lease: LeaseId, until: Nanos) {
        let known = self.until.entry(lease).or_default();
        *known = until.max(*known);
        self.kept += 1;
        self.outlived += u64::from(self.inherited.contains(&lease));
    }

    /// Until when it lives, as its holders were told.
    #[must_use]
    pub fn until(&self, lease: LeaseId) -> Nanos {
        self.until.get(&lease).copied().unwrap_or_default()
    }

    /// A holder was told that there is no such lease.
    ///
    /// # Errors
    /// It was told before that it lives longer.
    pub fn gone(&self, lease: LeaseId, now: Nanos) -> Result<(), String> {
        match self.until.get(&lease) {
            Some(until) if *until > now => {
                Err(format!("lease {lease} is gone at {now}, its holder was told that it lives until {until}"))
            }
            _ => Ok(()),
        }
    }

    /// A command was carried out.
    ///
    /// # Errors
    /// It ends a lease before its time.
    pub fn committed(&mut self, command: &Command, now: Nanos) -> Result<(), String> {
        let Command::EndLease { lease, expired: true } = command else { return Ok(()) };
        self.expired += 1;
        self.gone(*lease, now)
    }
}

/// Somebody who watches all keys from wherever he is: what he reads follows what he has read, without a gap.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    told: u64,
    keys: BTreeMap<String, u64>,
    /// Changes that were read.
    pub read: u64,
}

impl Watcher {
    /// One that has listed the keys of this state, and watches from there.
    #[must_use]
    pub fn from(state: &Metadata) -> Watcher {
        let keys = state.kv.range("", None).map(|(key, it)| (key.to_owned(), it.modified)).collect();
        Watcher { told: state.applied, keys, read: 0 }
    }

    /// Reads on in a node's state.
    ///
    /// # Errors
    /// What was read does not make the keys that the state holds.
    pub fn reads(&mut self, state: &Metadata) -> Result<(), String> {
        if state.applied < self.told {
            return Ok(()); // A node that is behind: it has nothing to tell yet.
        }
        let changes: Vec<KeyChange> = match state.kv.changes_after(self.told) {
            Ok(changes) => changes.cloned().collect(),
            Err(kept) => return Err(format!("the changes since {} are gone: only those since {kept}", self.told)),
        };
        for change in changes {
            if change.revision <= self.told || change.revision > state.applied {
                return Err(format!("told up to {}, and then of {change:?} at {}", self.told, state.applied));
            }
            self.read += 1;
            match change.what {
                KeyChanged::Put(record) => self.keys.insert(change.key, record.modified),
                KeyChanged::Deleted | KeyChanged::Expired => self.keys.remove(&change.key),
            };
        }
        self.told = state.applied;
        let held: BTreeMap<String, u64> =
            state.kv.range("", None).map(|(key, it)| (key.to_owned(), it.modified)).collect();
        if held != self.keys {
            return Err(format!("at {} there are {held:?}, who watched knows of {:?}", self.told, self.keys));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_as_long_as_its_holder_was_told() {
        let mut leases = Leases::default();
        leases.held(LeaseId(1), 100);
        leases.held(LeaseId(1), 50);
        let end = Command::EndLease { lease: LeaseId(1), expired: true };
        assert!(leases.committed(&end, 99).is_err());
        leases.committed(&end, 100).expect("its time is over");
    }
}
