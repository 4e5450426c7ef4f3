//! Locks: whoever was told that one is his holds it alone, for as long as he may believe that by what he was told; fencing
//! tokens rise from holder to holder; and who does not wait any more does not stand in the queue, nor comes back.

use std::collections::{BTreeMap, BTreeSet};

use base::LeaseId;
use bytes::Bytes;
use metadata::{KeyRecord, Metadata};

use crate::queue::NodeIx;
use crate::time::{Nanos, show};

/// Places in the queue for this lock have leases that outlast the run.
pub const LASTING: &str = "archive";
/// What the keys of its places begin with.
const LASTING_KEYS: &str = "locks/archive/";

/// Who holds what.
#[derive(Default)]
pub struct Locks {
    /// By lock: those who were told that it is theirs, and have not given it up.
    holders: BTreeMap<String, Vec<Holder>>,
    /// By lock: the last holder's fencing token and lease.
    last: BTreeMap<String, (u64, LeaseId)>,
    /// By what a call put, and no other one: the node that has to take its place away when the call is over.
    owed: BTreeMap<Bytes, NodeIx>,
    /// Those of them whose calls have left.
    left: BTreeSet<Bytes>,
    /// The leases by which calls have got a lock, whoever heard of that.
    got: BTreeSet<LeaseId>,
}

#[derive(Debug)]
struct Holder {
    client: usize,
    lease: LeaseId,
    /// His lease lives until then, as he was told.
    until: Nanos,
}

impl Locks {
    /// A client is told that a lock is his, by a lease that lives until then, with a fencing token.
    ///
    /// # Errors
    /// It is another one's, or the token is not higher than an earlier holder's.
    pub fn acquired(
        &mut self,
        lock: &str,
        client: usize,
        (lease, token): (LeaseId, u64),
        until: Nanos,
        now: Nanos,
    ) -> Result<(), String> {
        // Of one whose answer came so late that his lease is over nothing is promised: others may have been in between.
        if until > now
            && let Some((before, of)) = self.last.insert(lock.into(), (token, lease))
            && (token < before || token == before && lease != of)
        {
            return Err(format!(
                "client {client} gets {lock} by lease {lease} with token {token}, lease {of} had {before}"
            ));
        }
        let holders = self.holders.entry(lock.into()).or_default();
        holders.push(Holder { client, lease, until });
        one_holder(lock, holders, now)
    }

    /// Somebody was told that a lease lives until then.
    ///
    /// # Errors
    /// By this lease a lock is held that is another one's.
    pub fn renewed(&mut self, lease: LeaseId, until: Nanos, now: Nanos) -> Result<(), String> {
        for (lock, holders) in &mut self.holders {
            if let Some(holder) = holders.iter_mut().find(|holder| holder.lease == lease) {
                holder.until = until.max(holder.until);
                one_holder(lock, holders, now)?;
            }
        }
        Ok(())
    }

    /// A client does not believe any more that a lock is his.
    pub fn given_up(&mut self, lock: &str, client: usize) {
        if let Some(holders) = self.holders.get_mut(lock) {
            holders.retain(|holder| holder.client != client);
        }
    }

    /// A call on that node asks for a place of its own.
    pub fn asks_for_place(&mut self, value: &Bytes, node: NodeIx) {
        self.owed.insert(value.clone(), node);
    }

    /// The node's calls died with it: their places stay until their leases end.
    pub fn died(&mut self, node: NodeIx) {
        self.owed.retain(|_, of| *of != node);
    }

    /// The place of a call may stay: it shares another one's, or nobody can know any more what became of its own.
    pub fn may_stay(&mut self, value: &Bytes) {
        self.owed.remove(value);
        self.left.remove(value);
    }

    /// A call was told that its place is gone, or is not (or no more) its own.
    pub fn left(&mut self, value: &Bytes) {
        if self.owed.contains_key(value) {
            self.left.insert(value.clone());
        }
    }

    /// A call has got a lock by this lease.
    pub fn got(&mut self, lease: LeaseId) {
        self.got.insert(lease);
    }

    /// Looks at the last state that was committed.
    ///
    /// # Errors
    /// Somebody stands in a queue who has left.
    pub fn stays_away(&self, state: &Metadata) -> Result<(), String> {
        match state.kv.range("locks/", None).find(|(_, record)| self.left.contains(&record.value)) {
            None => Ok(()),
            Some((key, record)) => Err(format!("{key} came to be at {}, and its call had left", record.created)),
        }
    }

    /// A place in a queue that ought to be gone by now, when all calls are over and other leases as well.
    #[must_use]
    pub fn overstays(&self, state: &Metadata) -> Option<String> {
        let may_stay = |record: &KeyRecord| {
            !self.owed.contains_key(&record.value) || record.lease.is_some_and(|lease| self.got.contains(&lease))
        };
        let mut places = state.kv.range("locks/", None);
        let place = places.find(|(key, record)| !key.starts_with(LASTING_KEYS) || !may_stay(record));
        place.map(|(key, _)| format!("nobody wants a lock, and {key} stands in the queue"))
    }
}

/// Whether a lease may live on when all clients are done.
#[must_use]
pub fn outlasts(state: &Metadata, lease: LeaseId) -> bool {
    state.kv.keys_of(lease).any(|key| key.starts_with(LASTING_KEYS))
}

fn one_holder(lock: &str, holders: &[Holder], now: Nanos) -> Result<(), String> {
    let rightful: Vec<&Holder> = holders.iter().filter(|holder| holder.until > now).collect();
    match rightful.len() {
        0 | 1 => Ok(()),
        _ => Err(format!("at {} lock {lock} is held by {rightful:?}", show(now))),
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterVersion, Wall};
    use metadata::{Command, CommandEnvelope, CommandResult, KeyLife};

    use super::*;

    #[test]
    fn two_holders_at_once_are_reported() {
        let mut locks = Locks::default();
        locks.acquired("a", 0, (LeaseId(1), 5), 100, 10).expect("it is free");
        locks.acquired("b", 1, (LeaseId(2), 6), 100, 10).expect("it is another lock");
        assert!(locks.acquired("a", 1, (LeaseId(3), 7), 200, 99).is_err());
    }

    #[test]
    fn a_holder_is_one_until_he_gives_up_or_his_lease_is_over() {
        let mut locks = Locks::default();
        locks.acquired("a", 0, (LeaseId(1), 5), 100, 10).expect("it is free");
        locks.given_up("a", 0);
        locks.acquired("a", 1, (LeaseId(2), 6), 100, 20).expect("it was given up");
        locks.acquired("a", 2, (LeaseId(3), 7), 200, 100).expect("the lease is over");
    }

    #[test]
    fn a_renewal_that_is_told_late_makes_its_holder_one_again() {
        let mut locks = Locks::default();
        locks.acquired("a", 0, (LeaseId(1), 5), 100, 10).expect("it is free");
        locks.acquired("a", 1, (LeaseId(2), 6), 200, 110).expect("the lease seems to be over");
        locks.renewed(LeaseId(1), 105, 120).expect("it is over all the same");
        assert!(locks.renewed(LeaseId(1), 150, 120).is_err());
    }

    /// A state with one place, put with that value.
    fn queue(key: &str, value: &Bytes) -> Metadata {
        let mut state = Metadata::default();
        state.cluster_version = ClusterVersion::NEWEST;
        let life = KeyLife::Ttl(600_000);
        let put = Command::PutKey { key: key.into(), value: value.clone(), expect: None, life };
        let result = state.apply(1, &CommandEnvelope::new(None, Wall(0), put));
        assert!(matches!(result, CommandResult::KeyPut { .. }), "{result:?}");
        state
    }

    #[test]
    fn who_has_left_and_stands_in_a_queue_again_is_reported() {
        let [mine, shared, lost] = ["mine", "shared", "lost"].map(|value| Bytes::from_static(value.as_bytes()));
        let mut locks = Locks::default();
        for value in [&mine, &lost] {
            locks.asks_for_place(value, 0);
        }
        let back = queue("locks/backup/1", &mine);
        locks.stays_away(&back).expect("it has not left yet");
        [&mine, &shared, &lost].into_iter().for_each(|value| locks.left(value));
        locks.may_stay(&lost);
        assert!(locks.stays_away(&back).is_err());
        locks.died(0);
        assert!(locks.stays_away(&back).is_err(), "it had left before");
        for value in [&shared, &lost] {
            locks.stays_away(&queue("locks/backup/1", value)).expect("it may stay");
        }
    }

    #[test]
    fn a_place_stays_in_the_end_only_for_whom_nobody_could_take_it_away() {
        let [mine, shared] = ["mine", "shared"].map(|value| Bytes::from_static(value.as_bytes()));
        let mut locks = Locks::default();
        locks.asks_for_place(&mine, 0);
        let (lasts, ends) = (queue("locks/archive/1", &mine), queue("locks/backup/1", &shared));
        assert!(locks.overstays(&lasts).is_some());
        assert!(locks.overstays(&ends).is_some(), "whoever put it, its lease ends");
        assert_eq!(locks.overstays(&queue("locks/archive/1", &shared)), None);
        let lease = |state: &Metadata| *state.kv.leases.keys().next().expect("it has a lease");
        assert!(outlasts(&lasts, lease(&lasts)) && !outlasts(&ends, lease(&ends)));
        locks.got(lease(&lasts));
        assert_eq!(locks.overstays(&lasts), None, "a holder does not leave");

        let mut locks = Locks::default();
        locks.asks_for_place(&mine, 0);
        locks.died(1);
        assert!(locks.overstays(&lasts).is_some());
        locks.died(0);
        assert_eq!(locks.overstays(&lasts), None);
    }

    #[test]
    fn tokens_rise() {
        let mut locks = Locks::default();
        locks.acquired("a", 0, (LeaseId(1), 5), 100, 10).expect("it is free");
        locks.given_up("a", 0);
        assert!(locks.acquired("a", 1, (LeaseId(2), 5), 100, 20).is_err());
        locks.acquired("a", 1, (LeaseId(3), 4), 30, 30).expect("his lease is over before he hears of it");
    }
}
