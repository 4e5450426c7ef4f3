//! Read points: an index such that a read of a state with it is linearizable (Raft dissertation, 6.4), and whatever else
//! needs the word of a quorum that this node still leads.
//!
//! One quorum round serves everybody who asked before it began. Those who ask while rounds are under way wait for the
//! next one: to take part in one that began earlier would miss what was committed, and acknowledged, in between.

use std::collections::BTreeMap;

use base::limits::{READ_POINTS_MAX, READ_ROUNDS_MAX};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{ErrorCode, GroupId, LeaseId, Mono};
use bytes::Bytes;

use super::{Origin, busy, error};
use crate::Reply;
use crate::core::NodeCore;

/// What is done once the quorum has spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnceConfirmed {
    TellIndex,
    KeepLease(LeaseId),
}

#[derive(Clone, Copy, Debug)]
struct Asker {
    origin: Origin,
    then: OnceConfirmed,
}

/// Who waits for which round.
#[derive(Default)]
pub(crate) struct ReadPoints {
    next: Vec<Asker>,
    rounds: BTreeMap<u64, Vec<Asker>>,
    last: u64,
}

impl ReadPoints {
    fn len(&self) -> usize {
        self.next.len() + self.rounds.values().map(Vec::len).sum::<usize>()
    }

    /// Forgets whoever asked for another node and has given up by now.
    pub fn drop_overdue(&mut self, now: Mono) {
        let waits = |asker: &Asker| asker.origin.deadline().is_none_or(|deadline| deadline > now);
        self.next.retain(waits);
        self.rounds.values_mut().for_each(|askers| askers.retain(waits));
    }
}

impl NodeCore {
    pub(super) fn ask_read_point(&mut self, origin: Origin, then: OnceConfirmed) {
        if !self.raft.leads(GroupId::META) {
            let refusal = self.not_leader(GroupId::META);
            return self.answer(origin, Err(refusal));
        }
        if self.requests.reads.len() >= READ_POINTS_MAX {
            return self.answer(origin, Err(busy(READ_POINTS_MAX, "reads")));
        }
        let asker = Asker { origin, then };
        if planted(Plant::ReadsShareAnOlderRound)
            && let Some((_, round)) = self.requests.reads.rounds.iter_mut().next_back()
        {
            return round.push(asker);
        }
        self.requests.reads.next.push(asker);
    }

    /// Begins a round for those who wait, if there may be another one.
    pub(crate) fn begin_read_round(&mut self) {
        let reads = &mut self.requests.reads;
        if reads.next.is_empty() || reads.rounds.len() >= READ_ROUNDS_MAX {
            return;
        }
        mark_if(Mark::ReadRoundShared, || reads.next.len() > 1);
        reads.last += 1;
        let (context, askers) = (reads.last, std::mem::take(&mut reads.next));
        match self.raft.read_index(GroupId::META, Bytes::copy_from_slice(&context.to_le_bytes())) {
            Ok(()) => drop(self.requests.reads.rounds.insert(context, askers)),
            Err(refused) => {
                let refusal = self.refused(GroupId::META, refused);
                askers.into_iter().for_each(|asker| self.answer(asker.origin, Err(refusal.clone())));
            }
        }
    }

    /// Raft answered a round, or dropped it.
    pub(crate) fn read_point(&mut self, context: &[u8], index: Option<u64>) {
        let Some(context) = context.try_into().ok().map(u64::from_le_bytes) else { return };
        for asker in self.requests.reads.rounds.remove(&context).unwrap_or_default() {
            let outcome = match (index, asker.then) {
                (Some(index), OnceConfirmed::TellIndex) => Ok(Reply::ReadPoint { index }),
                (Some(_), OnceConfirmed::KeepLease(lease)) => self.keep_lease(lease),
                (None, _) => {
                    mark(Mark::ReadPointDropped);
                    Err(error(ErrorCode::LeaderChanged, "leadership changed during the read"))
                }
            };
            self.answer(asker.origin, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use base::NodeId;

    use super::*;
    use crate::requests::tests::{answered_others, at, core};

    #[test]
    fn a_read_point_for_another_node_is_forgotten_when_that_node_has_given_up() {
        let mut core = core();
        let asker = |id, ms| {
            let origin = Origin::Remote { node: NodeId(2), id, deadline: at(ms).mono };
            Asker { origin, then: OnceConfirmed::TellIndex }
        };
        let local = Asker { origin: Origin::Local(9), then: OnceConfirmed::TellIndex };
        core.requests.reads.rounds.insert(7, vec![asker(1, 1_000), asker(2, 1_001), local]);
        core.requests.reads.next.extend([asker(3, 1_000), asker(4, 1_001), local]);
        core.now = at(999);
        core.requests_tick();
        assert_eq!(core.requests.reads.len(), 6, "all of them wait");
        core.now = at(1_000);
        core.requests_tick();
        assert_eq!(core.requests.reads.len(), 4, "this node's own are answered otherwise");
        core.read_point(&7_u64.to_le_bytes(), Some(5));
        assert_eq!(answered_others(&mut core), [2]);
        // It leads no more: those that waited for the next round are told so.
        core.begin_read_round();
        assert_eq!(answered_others(&mut core), [4]);
    }
}
