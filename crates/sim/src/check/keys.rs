//! Keys of the key-value store that several clients contend for (see [`super::linear`]), and leases, which last as long as
//! their holders were told.

use std::collections::{BTreeMap, BTreeSet};

use base::LeaseId;
use metadata::{Command, KeyChange, KeyChanged, Metadata};

use super::linear::Model;
use crate::time::{Nanos, ms};

/// What is asked of a key. Values are numbers that nobody else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOp {
    Put(u64),
    /// If it is that, or not there.
    Cas(Option<u64>, u64),
    Delete,
    Look,
}

/// What a client is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTold {
    Done,
    /// It was not what it was expected to be.
    Other,
    /// So many keys went.
    Deleted(u64),
    Is(Option<u64>),
}

/// A key: not there, or with a value.
pub struct Key;

impl Model for Key {
    type State = Option<u64>;
    type Operation = KeyOp;
    type Outcome = KeyTold;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn step(&self, state: &Option<u64>, what: &KeyOp, told: Option<&KeyTold>) -> Vec<Option<u64>> {
        let (after, fits) = match what {
            KeyOp::Put(value) => (Some(*value), KeyTold::Done),
            KeyOp::Cas(expected, value) if expected == state => (Some(*value), KeyTold::Done),
            KeyOp::Cas(..) => (*state, KeyTold::Other),
            KeyOp::Delete => (None, KeyTold::Deleted(u64::from(state.is_some()))),
            KeyOp::Look => (*state, KeyTold::Is(*state)),
        };
        if told.is_none_or(|told| *told == fits) { vec![after] } else { Vec::new() }
    }

    fn only_looks(&self, what: &KeyOp, told: &KeyTold) -> bool {
        *what == KeyOp::Look || matches!(told, KeyTold::Other | KeyTold::Deleted(0))
    }
}

/// What a state says of a key.
#[must_use]
pub fn key_in(state: &Metadata, key: &str) -> KeyTold {
    let value = state.kv.keys.get(key).map(|record| &record.value[..]);
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
        let keys = state.kv.keys.iter().map(|(key, it)| (key.clone(), it.modified)).collect();
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
        let held: BTreeMap<String, u64> = state.kv.keys.iter().map(|(key, it)| (key.clone(), it.modified)).collect();
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
    fn a_key_is_what_was_put_last() {
        let fits = |state, what, told| !Key.step(&state, &what, Some(&told)).is_empty();
        assert!(fits(None, KeyOp::Put(1), KeyTold::Done));
        assert!(fits(Some(1), KeyOp::Cas(Some(1), 2), KeyTold::Done));
        assert!(!fits(Some(1), KeyOp::Cas(Some(3), 2), KeyTold::Done));
        assert!(fits(Some(1), KeyOp::Cas(None, 2), KeyTold::Other));
        assert!(!fits(None, KeyOp::Look, KeyTold::Is(Some(1))));
        assert!(fits(None, KeyOp::Delete, KeyTold::Deleted(0)) && !fits(Some(1), KeyOp::Delete, KeyTold::Deleted(0)));
    }

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
