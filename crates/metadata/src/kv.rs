//! The key-value store: keys with values, leases that bind keys to a time to live, and the history of changes that
//! watchers read.
//!
//! A *revision* is the index of the entry of `__meta` that made a change, so that revisions only rise, over all keys, and
//! are the same on every node. Reads are reads of this table; the time of leases is the leader's affair, which ends them by
//! command (`engine`'s `leases.rs`). The history is part of the state, and of its checkpoints: a watcher that goes on at
//! another node, or behind an installed checkpoint, misses nothing or is told that it does ([`ErrorCode::Compacted`]).

mod snapshot;

use std::ops::Bound;
use std::sync::Arc;

use base::limits::{
    KV_BYTES_MAX, KV_HISTORY_BYTES_MAX, KV_HISTORY_CHANGES_MAX, KV_KEY_BYTES_MAX, KV_KEYS_AT_ONCE_MAX, KV_RECORD_BYTES,
    KV_VALUE_BYTES_MAX, LEASE_TTL_MAX, LEASE_TTL_MIN, LEASES_MAX,
};
use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, LeaseId, Wall};
use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use minicbor::{Decode, Encode};

use crate::apply::{Context, refuse};
use crate::{CommandResult, KeyExpect, KeyLife, Metadata};

/// What a key holds.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct KeyRecord {
    #[cbor(n(0), with = "wire::blob")]
    pub value: Bytes,
    /// Revision at which it came to be.
    #[n(1)]
    pub created: u64,
    /// Revision of its last change.
    #[n(2)]
    pub modified: u64,
    /// Changes since it came to be, from 1 up.
    #[n(3)]
    pub version: u64,
    /// It goes when that lease ends.
    #[n(4)]
    pub lease: Option<LeaseId>,
}

/// A lease.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LeaseRecord {
    #[n(0)]
    pub id: LeaseId,
    /// Milliseconds that it lives without being renewed.
    #[n(1)]
    pub ttl_ms: u64,
    #[n(2)]
    pub granted: Wall,
    /// It was made by a put for one key, and goes with that key.
    #[n(3)]
    pub own: bool,
}

/// What a change did to a key.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum KeyChanged {
    #[n(0)]
    Put(#[n(0)] KeyRecord),
    #[n(1)]
    Deleted,
    /// Its lease's time was over.
    #[n(2)]
    Expired,
}

/// One change in the history.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct KeyChange {
    #[n(0)]
    pub revision: u64,
    #[n(1)]
    pub key: String,
    #[n(2)]
    pub what: KeyChanged,
}

/// The tables.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KvStore {
    /// Both shared: a change after the state was shown copies the node of the tree that it touches, some dozens of these.
    keys: OrdMap<Arc<str>, Arc<KeyRecord>>,
    pub leases: OrdMap<LeaseId, LeaseRecord>,
    /// The last changes, in order; several of one revision are counted.
    history: OrdMap<(u64, u32), KeyChange>,
    /// Every change above this revision is in the history.
    compacted: u64,
    /// The keys of each lease that has any.
    leased: OrdMap<LeaseId, OrdSet<String>>,
    /// Bytes of all keys, as [`KV_BYTES_MAX`] counts them.
    bytes: u64,
    history_bytes: u64,
}

/// Whether a text can be a key.
///
/// # Errors
/// With a sentence that says what it must be.
pub fn valid_key(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > KV_KEY_BYTES_MAX {
        return Err(format!("a key has 1 to {KV_KEY_BYTES_MAX} bytes, not {}", key.len()));
    }
    if let Some(bad) = key.chars().find(|c| c.is_control()) {
        return Err(format!("a key holds no control characters ({bad:?})"));
    }
    Ok(())
}

/// About the bytes of a lease's encoding.
const LEASE_BYTES: u64 = 48;

fn size(key: &str, value: &[u8]) -> u64 {
    KV_RECORD_BYTES + (key.len() + value.len()) as u64
}

impl KvStore {
    /// What a key holds.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<&KeyRecord> {
        self.keys.get(key).map(|record| &**record)
    }

    /// The keys that begin with `prefix`, in order, behind `after`.
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a str, &'a KeyRecord)> {
        let from = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let behind = self.keys.range::<_, str>((from, Bound::Unbounded)).map(|(key, record)| (&**key, &**record));
        behind.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The changes of revisions above `revision`, in order.
    ///
    /// # Errors
    /// If some of them are not kept any more: with the revision above which they are.
    pub fn changes_after(&self, revision: u64) -> Result<impl Iterator<Item = &KeyChange>, u64> {
        if revision < self.compacted {
            return Err(self.compacted);
        }
        Ok(self.history.range((revision.saturating_add(1), 0)..).map(|(_, change)| change))
    }

    /// Nobody can watch from a revision up to `through` any more.
    pub(crate) fn forget_history(&mut self, through: u64) {
        (self.history, self.history_bytes, self.compacted) = (OrdMap::new(), 0, through);
    }

    /// A planted mistake.
    pub(crate) fn without_history(&self) -> KvStore {
        KvStore { history: OrdMap::new(), history_bytes: 0, ..self.clone() }
    }

    /// Bytes of all keys and values, as [`KV_BYTES_MAX`] counts them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// About the bytes of its encoding, rather more: keys and changes are counted with [`KV_RECORD_BYTES`] each.
    pub(crate) fn encoded_about(&self) -> usize {
        let leases = self.leases.len() as u64 * LEASE_BYTES;
        usize::try_from(self.bytes + self.history_bytes + leases).unwrap_or_default()
    }

    /// The keys that go with a lease.
    pub fn keys_of(&self, lease: LeaseId) -> impl Iterator<Item = &String> {
        self.leased.get(&lease).into_iter().flatten()
    }

    fn check(&self, key: &str, expect: Option<&KeyExpect>) -> Result<(), CommandResult> {
        let Some(expect) = expect else { return Ok(()) };
        let known = self.key(key);
        let fits = match (expect, known) {
            (KeyExpect::Absent, known) => known.is_none(),
            (KeyExpect::Revision(revision), Some(known)) => known.modified == *revision,
            (KeyExpect::Value(value), Some(known)) => known.value == *value,
            (_, None) => false,
        };
        if fits || planted(Plant::KeyExpectationIgnored) {
            return Ok(());
        }
        let is = match known {
            Some(known) => format!("is at revision {}", known.modified),
            None => "does not exist".to_owned(),
        };
        let wanted = match expect {
            KeyExpect::Absent => "was expected not to exist".to_owned(),
            KeyExpect::Revision(revision) => format!("was expected at revision {revision}"),
            KeyExpect::Value(_) => "was expected with another value".to_owned(),
        };
        Err(refuse(ErrorCode::FailedPrecondition, format!("key {key:?} {is}, and {wanted}")))
    }

    /// Binds a key to a lease, or looses it; a lease made for the key alone ends with the bond.
    fn bind(&mut self, key: &str, lease: Option<LeaseId>) {
        let before = self.key(key).and_then(|known| known.lease);
        if before == lease {
            return;
        }
        if let Some(before) = before {
            let keys = self.leased.get(&before).map(|keys| keys.without(key)).unwrap_or_default();
            if !keys.is_empty() {
                self.leased.insert(before, keys);
            } else {
                self.leased.remove(&before);
                if self.leases.get(&before).is_some_and(|record| record.own) {
                    self.leases.remove(&before);
                }
            }
        }
        if let Some(lease) = lease {
            self.leased.entry(lease).or_default().insert(key.to_owned());
        }
    }

    fn remove(&mut self, revision: u64, key: &str, what: KeyChanged) {
        self.bind(key, None);
        if let Some(known) = self.keys.remove(key) {
            self.bytes -= size(key, &known.value);
            self.note(revision, key, what);
        }
    }

    /// Puts a change into the history, and takes out what it has no room for.
    fn note(&mut self, revision: u64, key: &str, what: KeyChanged) {
        let before = self.history.get_max().filter(|((at, _), _)| *at == revision).map(|((_, count), _)| *count);
        let change = KeyChange { revision, key: key.to_owned(), what };
        self.history_bytes += change.bytes();
        self.history.insert((revision, before.map_or(0, |count| count + 1)), change);
        while self.history.len() > KV_HISTORY_CHANGES_MAX || self.history_bytes > KV_HISTORY_BYTES_MAX {
            let Some((at, oldest)) = self.history.get_min().map(|(at, oldest)| (*at, oldest.bytes())) else { break };
            // What is left of a revision of which something is gone does not help anybody.
            self.compacted = at.0;
            self.history.remove(&at);
            self.history_bytes -= oldest;
        }
    }
}

impl KeyChange {
    /// As [`KV_HISTORY_BYTES_MAX`] counts it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.what {
            KeyChanged::Put(record) => size(&self.key, &record.value),
            KeyChanged::Deleted | KeyChanged::Expired => size(&self.key, &[]),
        }
    }
}

impl Metadata {
    pub(crate) fn put_key(
        &mut self,
        context: Context,
        key: &str,
        value: &Bytes,
        expect: Option<&KeyExpect>,
        life: KeyLife,
    ) -> CommandResult {
        if let Err(refusal) = self.may_put(key, value, expect) {
            return refusal;
        }
        let lease = match life {
            KeyLife::Lasting => None,
            KeyLife::Bound(lease) if !self.kv.leases.contains_key(&lease) => {
                return refuse(ErrorCode::NotFound, no_lease(lease));
            }
            KeyLife::Bound(lease)
                if self.kv.leased.get(&lease).is_some_and(|keys| keys.len() >= KV_KEYS_AT_ONCE_MAX) =>
            {
                return refuse(ErrorCode::TooLarge, format!("lease {lease} holds {KV_KEYS_AT_ONCE_MAX} keys"));
            }
            KeyLife::Bound(lease) => Some(lease),
            KeyLife::Ttl(ttl_ms) => match self.new_lease(context, ttl_ms, true) {
                Ok(lease) => Some(lease),
                Err(refusal) => return refusal,
            },
        };
        let known = self.kv.key(key);
        let (created, version, before) = match known {
            Some(known) => (known.created, known.version + 1, size(key, &known.value)),
            None => (context.index, 1, 0),
        };
        self.kv.bind(key, lease);
        self.kv.bytes = self.kv.bytes - before + size(key, value);
        let record = KeyRecord { value: value.clone(), created, modified: context.index, version, lease };
        self.kv.keys.insert(key.into(), Arc::new(record.clone()));
        self.kv.note(context.index, key, KeyChanged::Put(record));
        CommandResult::KeyPut { revision: context.index, version, lease }
    }

    fn may_put(&self, key: &str, value: &Bytes, expect: Option<&KeyExpect>) -> Result<(), CommandResult> {
        valid_key(key).map_err(|reason| refuse(ErrorCode::InvalidArgument, reason))?;
        if value.len() > KV_VALUE_BYTES_MAX {
            let message = format!("a value has at most {KV_VALUE_BYTES_MAX} bytes, not {}", value.len());
            return Err(refuse(ErrorCode::TooLarge, message));
        }
        self.kv.check(key, expect)?;
        let before = self.kv.key(key).map_or(0, |known| size(key, &known.value));
        if self.kv.bytes - before + size(key, value) > KV_BYTES_MAX {
            let message = format!("the store holds {} of {KV_BYTES_MAX} bytes: delete keys first", self.kv.bytes);
            return Err(refuse(ErrorCode::TooLarge, message));
        }
        Ok(())
    }

    pub(crate) fn delete_key(&mut self, context: Context, key: &str, expect: Option<&KeyExpect>) -> CommandResult {
        if let Err(refusal) = self.kv.check(key, expect) {
            return refusal;
        }
        let count = u64::from(self.kv.keys.contains_key(key));
        self.kv.remove(context.index, key, KeyChanged::Deleted);
        CommandResult::KeysDeleted { revision: context.index, count }
    }

    pub(crate) fn delete_prefix(&mut self, context: Context, prefix: &str) -> CommandResult {
        let keys: Vec<String> =
            self.kv.range(prefix, None).map(|(key, _)| key.to_owned()).take(KV_KEYS_AT_ONCE_MAX + 1).collect();
        if keys.len() > KV_KEYS_AT_ONCE_MAX {
            let message = format!("more than {KV_KEYS_AT_ONCE_MAX} keys begin with {prefix:?}: delete them in parts");
            return refuse(ErrorCode::TooLarge, message);
        }
        keys.iter().for_each(|key| self.kv.remove(context.index, key, KeyChanged::Deleted));
        CommandResult::KeysDeleted { revision: context.index, count: keys.len() as u64 }
    }

    fn new_lease(&mut self, context: Context, ttl_ms: u64, own: bool) -> Result<LeaseId, CommandResult> {
        if !(LEASE_TTL_MIN.0..=LEASE_TTL_MAX.0).contains(&ttl_ms) {
            let message = format!("a lease lives {LEASE_TTL_MIN} to {LEASE_TTL_MAX}, not {ttl_ms} ms");
            return Err(refuse(ErrorCode::InvalidArgument, message));
        }
        if self.kv.leases.len() >= LEASES_MAX {
            return Err(refuse(ErrorCode::Busy, format!("{LEASES_MAX} leases are held: revoke some")));
        }
        self.next.lease += 1;
        let id = LeaseId(self.next.lease);
        self.kv.leases.insert(id, LeaseRecord { id, ttl_ms, granted: context.now, own });
        Ok(id)
    }

    pub(crate) fn grant_lease(&mut self, context: Context, ttl_ms: u64) -> CommandResult {
        match self.new_lease(context, ttl_ms, false) {
            Ok(lease) => CommandResult::LeaseGranted { lease },
            Err(refusal) => refusal,
        }
    }

    pub(crate) fn end_lease(&mut self, context: Context, lease: LeaseId, expired: bool) -> CommandResult {
        if self.kv.leases.remove(&lease).is_none() {
            return refuse(ErrorCode::NotFound, no_lease(lease));
        }
        if expired {
            mark(Mark::LeaseExpired);
        }
        let keys: Vec<String> = self.kv.keys_of(lease).cloned().collect();
        let what = if expired { KeyChanged::Expired } else { KeyChanged::Deleted };
        keys.iter().for_each(|key| self.kv.remove(context.index, key, what.clone()));
        CommandResult::KeysDeleted { revision: context.index, count: keys.len() as u64 }
    }
}

/// What is told of a lease that does not exist.
#[must_use]
pub fn no_lease(lease: LeaseId) -> String {
    format!("there is no lease {lease}: it has expired, was revoked, or never was")
}
