//! The time of the key-value store's leases: kept by the leader of `__meta`, which ends a lease by command.
//!
//! A new leader does not know when a lease was renewed last, and starts its time in full. A renewal is granted only after a
//! quorum round that began when it was asked for ([`crate::Request::KeepLease`] is a read point): a leader that was
//! replaced without knowing it promises nothing. Whoever holds a lease counts its time from when it sent the renewal, and
//! so never believes to hold it longer than the leader does.

use std::collections::{BTreeMap, BTreeSet};

use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, GroupId, LeaseId, Millis, Mono};
use metadata::{Command, CommandResult, Metadata, no_lease};

use crate::core::NodeCore;
use crate::requests::error;
use crate::{Reply, RequestError};

/// Leases ended per flush, so that its work is bounded.
const ENDED_AT_ONCE_MAX: usize = 64;
/// Clocks may differ in rate: the leader waits this much of the time to live longer, one part in so many.
const DRIFT_PART: u64 = 40;
/// An end that was proposed and does not show is proposed again after this long.
const RETRY: Millis = Millis(1_000);

/// When leases end, as the leader counts it.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    ends: BTreeMap<LeaseId, Mono>,
    order: BTreeSet<(Mono, LeaseId)>,
    /// Their end is proposed: they are not renewed any more.
    ending: BTreeSet<LeaseId>,
}

impl Leases {
    /// A new leader: every lease starts in full.
    pub fn adopt(&mut self, metadata: &Metadata, now: Mono) {
        *self = Leases::default();
        for lease in metadata.kv.leases.values() {
            self.set(lease.id, end_of(lease.ttl_ms, now));
        }
    }

    /// A command was applied: a lease that it made begins.
    pub fn applied(&mut self, result: &CommandResult, metadata: &Metadata, now: Mono) {
        let made = match result {
            CommandResult::LeaseGranted { lease } => Some(*lease),
            CommandResult::KeyPut { lease, .. } => *lease,
            _ => None,
        };
        if let Some(record) = made.and_then(|lease| metadata.kv.leases.get(&lease))
            && !self.ends.contains_key(&record.id)
        {
            self.set(record.id, end_of(record.ttl_ms, now));
        }
    }

    fn set(&mut self, lease: LeaseId, at: Mono) {
        if let Some(before) = self.ends.insert(lease, at) {
            self.order.remove(&(before, lease));
        }
        self.order.insert((at, lease));
    }

    fn forget(&mut self, lease: LeaseId) {
        if let Some(at) = self.ends.remove(&lease) {
            self.order.remove(&(at, lease));
        }
        self.ending.remove(&lease);
    }

    /// Milliseconds until a lease ends, if nobody renews it.
    #[cfg(test)]
    pub fn left(&self, lease: LeaseId, now: Mono) -> Option<u64> {
        self.ends.get(&lease).map(|at| at.since(now).0)
    }
}

fn end_of(ttl_ms: u64, now: Mono) -> Mono {
    now.plus(Millis(ttl_ms + ttl_ms / DRIFT_PART))
}

impl NodeCore {
    /// As leader of `__meta`, ends the leases whose time is over.
    pub(crate) fn drive_leases(&mut self) {
        let now = self.now.mono;
        if !self.groups.get(&GroupId::META).is_some_and(|g| g.active) {
            return;
        }
        for _ in 0..ENDED_AT_ONCE_MAX {
            let Some((at, lease)) = self.leases.order.first().copied() else { return };
            if at > now {
                return;
            }
            if !self.metadata.kv.leases.contains_key(&lease) {
                self.leases.forget(lease);
                continue;
            }
            self.leases.ending.insert(lease);
            self.leases.set(lease, now.plus(RETRY));
            self.propose_command(None, None, Command::EndLease { lease, expired: true });
        }
    }

    /// A quorum has confirmed that this node led when the renewal was asked for.
    pub(crate) fn keep_lease(&mut self, lease: LeaseId) -> Result<Reply, RequestError> {
        let active = self.groups.get(&GroupId::META).is_some_and(|g| g.active);
        if !active {
            return Err(self.not_leader(GroupId::META));
        }
        let known = self.metadata.kv.leases.get(&lease);
        let Some(record) = known.filter(|_| !self.leases.ending.contains(&lease)) else {
            mark(Mark::LeaseKeptTooLate);
            return Err(error(ErrorCode::NotFound, no_lease(lease)));
        };
        let ttl_ms = record.ttl_ms;
        if !planted(Plant::LeasesNotRenewed) {
            self.leases.set(lease, end_of(ttl_ms, self.now.mono));
        }
        Ok(Reply::LeaseKept { ttl_ms })
    }
}

#[cfg(test)]
mod tests {
    use base::Wall;
    use metadata::{CommandEnvelope, LeaseRecord};

    use super::*;
    use crate::requests::tests::at;

    fn tables() -> Metadata {
        let member = wire::Member { versions: base::VersionRange::BINARY, ..wire::Member::default() };
        let mut metadata = Metadata::bootstrap(base::ClusterId([1; 16]), member, Wall(0));
        for (index, ttl_ms) in [(2, 1_000), (3, 5_000)] {
            metadata.apply(index, &CommandEnvelope::new(None, Wall(0), Command::GrantLease { ttl_ms }));
        }
        metadata
    }

    #[test]
    fn a_new_leader_starts_every_lease_in_full() {
        let metadata = tables();
        let ids: Vec<LeaseId> = metadata.kv.leases.values().map(|LeaseRecord { id, .. }| *id).collect();
        let mut leases = Leases::default();
        leases.adopt(&metadata, at(100).mono);
        assert_eq!(leases.left(ids[0], at(600).mono), Some(525));
        leases.adopt(&metadata, at(1_000).mono);
        assert_eq!(leases.left(ids[0], at(1_000).mono), Some(1_025));
        assert_eq!(leases.order.len(), 2, "nothing is left of the time before");
        leases.forget(ids[1]);
        assert_eq!((leases.left(ids[1], at(0).mono), leases.order.len()), (None, 1));
    }
}
