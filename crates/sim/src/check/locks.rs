//! Locks: whoever was told that one is his holds it alone, for as long as he may believe that by what he was told; and
//! fencing tokens rise from holder to holder.

use std::collections::BTreeMap;

use base::LeaseId;

use crate::time::{Nanos, show};

/// Who holds what.
#[derive(Default)]
pub struct Locks {
    /// By lock: those who were told that it is theirs, and have not given it up.
    holders: BTreeMap<String, Vec<Holder>>,
    /// By lock: the last holder's fencing token and lease.
    last: BTreeMap<String, (u64, LeaseId)>,
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

    #[test]
    fn tokens_rise() {
        let mut locks = Locks::default();
        locks.acquired("a", 0, (LeaseId(1), 5), 100, 10).expect("it is free");
        locks.given_up("a", 0);
        assert!(locks.acquired("a", 1, (LeaseId(2), 5), 100, 20).is_err());
        locks.acquired("a", 1, (LeaseId(3), 4), 30, 30).expect("his lease is over before he hears of it");
    }
}
