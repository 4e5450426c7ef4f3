//! Log matching: an entry that was applied anywhere is the same everywhere, for all time, and is applied in order.
//! Leader completeness (Raft section 5.4.3): who leads a term has every entry in its log that was committed in an earlier
//! one. The term that an entry was committed in is not its own: a leader of term 5 also commits what term 3 left behind,
//! and one of term 4 that was never heard of need not have that.

use std::collections::BTreeMap;

use base::GroupId;
use bytes::Bytes;
use wire::{Entry, EntryKind};

use crate::queue::NodeIx;

/// See the module.
#[derive(Default)]
pub struct Logs {
    applied: BTreeMap<GroupId, BTreeMap<u64, Known>>,
    /// Per node and group: the last index applied since the process started.
    cursors: BTreeMap<(NodeIx, GroupId), u64>,
    /// Entries seen for the first time.
    pub commits: u64,
    /// Cursors that jumped: installed snapshots.
    pub jumps: u64,
    /// The logs of the leaders of all terms, as they were when they began to lead.
    led: BTreeMap<(GroupId, u64), Led>,
}

/// What came of looking at an applied entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nobody applied it before.
    First,
    /// It was known, but not that it was committed so soon.
    Sooner,
    /// All of it was known.
    Again,
}

/// A leader's log.
#[derive(Debug)]
struct Led {
    node: NodeIx,
    held: Held,
    /// Where each term begins: (index, term).
    terms: Vec<(u64, u64)>,
}

impl Led {
    fn term_at(&self, index: u64) -> Option<u64> {
        let begun = self.terms.partition_point(|(first, _)| *first <= index);
        let (_, term) = self.terms.get(begun.checked_sub(1)?)?;
        (index <= self.held.last_index).then_some(*term)
    }
}

/// An entry as it was first applied.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    term: u64,
    kind: EntryKind,
    data: Bytes,
    /// The lowest term in which a node was when it knew this as committed: it was committed then or before. (But for a
    /// commit that a node learns from a request for its pre-vote, which may come from a later term than its own.)
    committed_in: u64,
}

/// What a new leader's log holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub term: u64,
    /// What lies before is in its state.
    pub first_index: u64,
    pub last_index: u64,
}

impl Logs {
    /// A node that is in term `now_in` applied an entry. What is not known [`Seen::Again`] is held against those who
    /// led later: [`Logs::led_without`].
    ///
    /// # Errors
    /// It differs from what was applied at that index before, its term does not fit its neighbours, or it comes out of
    /// order.
    pub fn applied(&mut self, node: NodeIx, group: GroupId, entry: &Entry, now_in: u64) -> Result<Seen, String> {
        let Entry { index, term, kind, data } = entry;
        if let Some(last) = self.cursors.insert((node, group), *index) {
            if *index <= last {
                return Err(format!("n{node} applied index {index} of group {group} after {last}"));
            }
            if *index > last + 1 {
                // Only `__meta` has checkpoints that take the place of entries.
                if group != GroupId::META {
                    return Err(format!("n{node} applied index {index} of group {group} right after {last}"));
                }
                self.jumps += 1;
            }
        }
        let log = self.applied.entry(group).or_default();
        if let Some(known) = log.get_mut(index) {
            let sooner = now_in < known.committed_in;
            known.committed_in = known.committed_in.min(now_in);
            if (known.term, known.kind, &known.data) == (*term, *kind, data) {
                return Ok(if sooner { Seen::Sooner } else { Seen::Again });
            }
            return Err(format!(
                "n{node} applied index {index} of group {group} as {kind:?} of term {term} with {} bytes; it was {:?} of \
                 term {} with {} bytes",
                data.len(),
                known.kind,
                known.term,
                known.data.len()
            ));
        }
        if let Some((_, before)) = log.range(..index).next_back()
            && before.term > *term
        {
            let before = before.term;
            return Err(format!("n{node} applied index {index} of group {group} in term {term} behind term {before}"));
        }
        if let Some((_, after)) = log.range(index + 1..).next()
            && after.term < *term
        {
            let after = after.term;
            return Err(format!("n{node} applied index {index} of group {group} in term {term} before term {after}"));
        }
        let known = Known { term: *term, kind: *kind, data: Bytes::copy_from_slice(data), committed_in: now_in };
        log.insert(*index, known);
        self.commits += 1;
        Ok(Seen::First)
    }

    /// A node leads a group; `term_at` says what its log holds.
    ///
    /// # Errors
    /// An entry that was committed in an earlier term is not in it.
    pub fn leads(
        &mut self,
        node: NodeIx,
        group: GroupId,
        held: Held,
        term_at: impl Fn(u64) -> Option<u64>,
    ) -> Result<(), String> {
        let mut terms: Vec<(u64, u64)> = Vec::new();
        for index in held.first_index..=held.last_index {
            if let Some(term) = term_at(index)
                && terms.last().is_none_or(|(_, last)| *last != term)
            {
                terms.push((index, term));
            }
        }
        self.led.insert((group, held.term), Led { node, held, terms });
        let Some(log) = self.applied.get(&group) else { return Ok(()) };
        for (index, known) in log.range(held.first_index..).filter(|(_, known)| known.committed_in < held.term) {
            let found = term_at(*index).filter(|_| *index <= held.last_index);
            if found != Some(known.term) {
                return Err(format!(
                    "n{node} leads group {group} in term {} with a log from {} to {}; index {index} of \
                     term {}, committed in term {} or before, is there in term {found:?}",
                    held.term, held.first_index, held.last_index, known.term, known.committed_in
                ));
            }
        }
        Ok(())
    }

    /// More is known of when an entry was committed: those who led in later terms are looked at once more.
    ///
    /// # Errors
    /// One of them began to lead without it.
    pub fn led_without(&self, group: GroupId, index: u64) -> Result<(), String> {
        let Some(known) = self.applied.get(&group).and_then(|log| log.get(&index)) else { return Ok(()) };
        let later = (group, known.committed_in.saturating_add(1))..=(group, u64::MAX);
        for (_, led) in self.led.range(later).filter(|(_, led)| led.held.first_index <= index) {
            let found = led.term_at(index);
            if found != Some(known.term) {
                return Err(format!(
                    "n{} led group {group} in term {} with a log from {} to {}; index {index} of term {}, of which it \
                     shows now that it was committed in term {} or before, was there in term {found:?}",
                    led.node, led.held.term, led.held.first_index, led.held.last_index, known.term, known.committed_in
                ));
            }
        }
        Ok(())
    }

    /// A node's process starts again: it may apply again what lies behind its checkpoints.
    pub fn restarted(&mut self, node: NodeIx) {
        self.cursors.retain(|(of, _), _| *of != node);
    }

    /// The replica is gone from a node; another one of the group begins at its birth.
    pub fn removed(&mut self, node: NodeIx, group: GroupId) {
        self.cursors.remove(&(node, group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn entry(index: u64, term: u64, data: &'static [u8]) -> Entry {
        Entry { index, term, kind: EntryKind::Command, data: Bytes::from_static(data) }
    }

    #[test]
    fn the_same_log_everywhere_is_fine_and_restarts_apply_again() {
        let mut logs = Logs::default();
        for node in 0..3 {
            for index in 2..10 {
                let new =
                    logs.applied(node, GROUP, &entry(index, 1 + index / 5, b"x"), 9).expect("the same everywhere");
                assert_eq!(new, if node == 0 { Seen::First } else { Seen::Again });
            }
        }
        logs.restarted(1);
        logs.applied(1, GROUP, &entry(5, 2, b"x"), 9).expect("again after a restart");
        assert_eq!((logs.commits, logs.jumps), (8, 0));
    }

    #[test]
    fn another_entry_at_a_committed_index_is_noticed() {
        let another = Entry { kind: EntryKind::Noop, ..entry(7, 1, b"x") };
        for other in [entry(7, 1, b"y"), entry(7, 2, b"x"), another] {
            let mut logs = Logs::default();
            logs.applied(0, GROUP, &entry(7, 1, b"x"), 9).expect("first");
            assert!(logs.applied(1, GROUP, &other, 9).is_err(), "{other:?}");
        }
    }

    #[test]
    fn terms_out_of_order_and_indexes_twice_are_noticed() {
        let mut logs = Logs::default();
        logs.applied(0, GROUP, &entry(7, 3, b"x"), 9).expect("first");
        assert!(logs.applied(0, GROUP, &entry(8, 2, b"x"), 9).is_err(), "term goes back");
        assert!(logs.applied(1, GROUP, &entry(6, 4, b"x"), 9).is_err(), "term too high before");
        let mut logs = Logs::default();
        logs.applied(0, GROUP, &entry(7, 3, b"x"), 9).expect("first");
        assert!(logs.applied(0, GROUP, &entry(7, 3, b"x"), 9).is_err(), "twice without a restart");
        assert!(logs.applied(0, GROUP, &entry(9, 3, b"x"), 9).is_err(), "one was left out");
    }

    #[test]
    fn a_leader_without_a_committed_entry_is_noticed() {
        let mut logs = Logs::default();
        for (index, term) in [(2, 1), (3, 1), (4, 2), (5, 4)] {
            logs.applied(0, GROUP, &entry(index, term, b"x"), term).expect("in order");
        }
        let held = |last_index| Held { term: 4, first_index: 2, last_index };
        let whole = |index| [None, None, Some(1), Some(1), Some(2)].get(index as usize).copied().flatten();
        assert_eq!(logs.leads(1, GROUP, held(4), whole), Ok(()), "what is committed in its own term may come later");
        assert!(logs.leads(1, GROUP, held(3), whole).is_err(), "too short");
        assert!(logs.leads(1, GROUP, held(4), |index| Some(if index == 3 { 2 } else { 1 })).is_err(), "another entry");
        let behind = Held { first_index: 5, ..held(4) };
        assert_eq!(logs.leads(1, GROUP, behind, |_| None), Ok(()), "the rest is in its state");
    }

    #[test]
    fn a_leader_nobody_followed_need_not_have_what_a_later_term_committed() {
        let mut logs = Logs::default();
        for (index, term) in [(2, 1), (3, 3), (4, 5)] {
            logs.applied(0, GROUP, &entry(index, term, b"x"), 5).expect("in order");
        }
        let held = |term| Held { term, first_index: 2, last_index: 3 };
        let its_own = |index| Some(if index == 3 { 4 } else { 1 });
        assert_eq!(logs.leads(1, GROUP, held(4), its_own), Ok(()), "index 3 was committed with index 4, in term 5");
        assert!(logs.leads(1, GROUP, held(6), its_own).is_err(), "now it counts");
        assert!(logs.led_without(GROUP, 3).expect_err("not in its log").contains("in term 6"));
        assert_eq!(logs.applied(2, GROUP, &entry(3, 3, b"x"), 3), Ok(Seen::Sooner));
        assert!(logs.led_without(GROUP, 3).expect_err("somebody knew it in term 3").contains("in term 4"));
        assert!(logs.leads(1, GROUP, held(4), its_own).is_err(), "and before the next one leads");
        assert_eq!(logs.led_without(GROUP, 2), Ok(()), "they have that");
    }
}
