//! Read points that are asked of the leader for several requests of this node at once.
//!
//! At a node that does not lead, each read would be a frame to the leader and one back, and most of the work of both under
//! many clients. So few are under way, and whoever asks meanwhile shares the next one: an index that was asked for before he
//! came could miss what was acknowledged in between.

use std::collections::BTreeMap;

use base::limits::READ_ROUNDS_MAX;
use base::simulation::{Plant, planted};

use super::Wait;
use crate::Reply;
use crate::core::NodeCore;

/// Who waits for whose read point.
#[derive(Default)]
pub(crate) struct SharedReads {
    /// The requests that are sent, each with those that it was sent for as well.
    carriers: BTreeMap<u64, Vec<u64>>,
    /// Those that came since.
    next: Vec<u64>,
}

impl SharedReads {
    /// One of the requests that are sent, if others wait.
    pub fn carrier(&self) -> Option<u64> {
        self.carriers.keys().next().copied()
    }
}

impl NodeCore {
    /// Whether a request for a read point waits for one that is sent for it and others; otherwise it is itself to be sent.
    pub(super) fn shares_read_point(&mut self, key: u64) -> bool {
        let shared = &mut self.requests.shared;
        if shared.carriers.contains_key(&key) {
            return false;
        }
        if planted(Plant::ReadsShareAnOlderForward)
            && let Some((_, others)) = shared.carriers.iter_mut().next_back()
        {
            others.push(key);
        } else if shared.carriers.len() < READ_ROUNDS_MAX {
            let others = std::mem::take(&mut shared.next);
            shared.carriers.insert(key, others);
            return false;
        } else {
            shared.next.push(key);
        }
        self.set_wait(key, Wait::Held);
        true
    }

    /// The index of a read point is known: whoever has it waits until it is applied here.
    pub(super) fn read_point_known(&mut self, key: u64, index: u64) {
        let others = self.requests.shared.carriers.remove(&key).unwrap_or_default();
        for key in std::iter::once(key).chain(others) {
            if !self.requests.pending.contains_key(&key) {
                continue; // Its deadline has passed.
            }
            if index > self.metadata.applied {
                self.requests.applied.insert((index, key));
                self.set_wait(key, Wait::Applied { index, reply: Reply::Done });
            } else {
                self.finish(key, Ok(Reply::Done));
            }
        }
        self.ask_next_read_point();
    }

    /// A request has ended. If others waited for the read point that it asked for, they ask again.
    pub(super) fn read_point_lost(&mut self, key: u64) {
        let Some(others) = self.requests.shared.carriers.remove(&key) else { return };
        self.requests.shared.next.extend(others);
        self.ask_next_read_point();
    }

    fn ask_next_read_point(&mut self) {
        while self.requests.shared.carriers.len() < READ_ROUNDS_MAX {
            let (next, pending) = (&mut self.requests.shared.next, &self.requests.pending);
            next.retain(|key| pending.contains_key(key));
            // Who waits longest: the others depend on him.
            let deadline = |key: &u64| pending.get(key).map(|it| it.deadline);
            let Some(longest) = next.iter().copied().max_by_key(deadline) else { return };
            next.retain(|key| *key != longest);
            let sent = self.requests.shared.carriers.len();
            self.ask_by_itself(longest);
            if self.requests.shared.carriers.len() == sent {
                // There is nobody to send it to: this node leads by now, or knows of no leader.
                std::mem::take(&mut self.requests.shared.next).into_iter().for_each(|key| self.ask_by_itself(key));
            }
        }
    }

    fn ask_by_itself(&mut self, key: u64) {
        self.set_wait(key, Wait::Queued);
        self.advance(key);
    }
}

#[cfg(test)]
mod tests {
    use base::{ErrorCode, GroupId, Incarnation, NodeId, RequestId};

    use super::*;
    use crate::requests::Client;
    use crate::requests::tests::{at, core, refusals};
    use crate::{Effect, Request, RequestError, Target};

    /// A core that knows of node 2 as leader of `__meta`.
    fn follower() -> NodeCore {
        let mut core = core();
        core.peer_up(NodeId(2), Incarnation(1));
        core.leaders.learn(GroupId::META, 2, Some(NodeId(2)));
        core
    }

    fn ask(core: &mut NodeCore, ids: std::ops::RangeInclusive<u64>, deadline_ms: u64) {
        for id in ids {
            core.take_request(RequestId(id), at(deadline_ms).mono, Target::Leader(GroupId::META), Request::ReadPoint);
        }
    }

    fn key(core: &NodeCore, id: u64) -> u64 {
        let is = |client: Client| client == Client::Request(RequestId(id));
        *core.requests.pending.iter().find(|(_, it)| is(it.client)).expect("it is under way").0
    }

    /// How many were sent to the leader so far, and how often.
    fn sent(core: &NodeCore) -> Vec<(u64, usize)> {
        let id = |client| match client {
            Client::Request(id) => id.0,
            Client::Internal(_) => 0,
        };
        let all = core.requests.pending.values().map(|it| (id(it.client), it.sends.len()));
        all.filter(|(_, sends)| *sends > 0).collect()
    }

    fn done(core: &mut NodeCore) -> Vec<u64> {
        let done = |effect| match effect {
            Effect::Reply { id, outcome: Ok(Reply::Done) } => Some(id.0),
            _ => None,
        };
        std::mem::take(&mut core.effects).into_iter().filter_map(done).collect()
    }

    fn lost() -> RequestError {
        crate::requests::error(ErrorCode::LeaderChanged, "leadership changed during the read")
    }

    #[test]
    fn reads_that_come_while_others_are_under_way_share_the_next_read_point_and_no_earlier_one() {
        let mut core = follower();
        ask(&mut core, 1..=9, 60_000);
        assert_eq!(sent(&core), [(1, 1), (2, 1)]);
        let first = key(&core, 1);
        core.resolve(first, Ok(Reply::ReadPoint { index: 0 }));
        assert_eq!(done(&mut core), [1], "who came after it was sent is not served by it");
        let carriers = sent(&core);
        let [(2, 1), (carrier, 1)] = carriers[..] else { panic!("one is sent for all the others: {carriers:?}") };
        ask(&mut core, 10..=11, 60_000);
        let carrier = key(&core, carrier);
        core.resolve(carrier, Ok(Reply::ReadPoint { index: 0 }));
        let mut served = done(&mut core);
        served.sort_unstable();
        assert_eq!(served, [3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(sent(&core).len(), 2, "those that came later have one of their own");
    }

    #[test]
    fn whoever_shares_waits_for_the_index_here_too() {
        let mut core = follower();
        ask(&mut core, 1..=4, 60_000);
        for id in 1..=2 {
            let key = key(&core, id);
            core.resolve(key, Ok(Reply::ReadPoint { index: 0 }));
        }
        let [(carrier, 1)] = sent(&core)[..] else { panic!("{:?}", sent(&core)) };
        assert_eq!(done(&mut core), [1, 2]);
        let carrier = key(&core, carrier);
        core.resolve(carrier, Ok(Reply::ReadPoint { index: 5 }));
        assert!(core.effects.is_empty(), "{:?}", core.effects);
        for id in 3..=4 {
            assert!(matches!(core.requests.pending[&key(&core, id)].wait, Wait::Applied { index: 5, .. }));
        }
        assert!(core.requests.shared.carriers.is_empty(), "and nobody waits for them");
    }

    #[test]
    fn a_read_that_others_share_is_tried_again_for_all_and_when_it_ends_another_one_is_sent() {
        let mut core = follower();
        ask(&mut core, 1..=2, 60_000);
        ask(&mut core, 3..=3, 1_000);
        ask(&mut core, 4..=5, 2_500);
        for id in 1..=2 {
            let key = key(&core, id);
            core.resolve(key, Ok(Reply::ReadPoint { index: 0 }));
        }
        done(&mut core);
        let [(carrier, 1)] = sent(&core)[..] else { panic!("{:?}", sent(&core)) };
        assert!(carrier != 3, "not the one that waits the shortest");
        let first = key(&core, carrier);
        core.resolve(first, Err(lost()));
        core.now = at(100);
        core.peers.heard(NodeId(2), core.now.mono);
        core.requests_tick();
        assert_eq!(sent(&core), [(carrier, 2)]);
        core.now = at(1_000);
        core.peers.heard(NodeId(2), core.now.mono);
        core.requests_tick();
        assert_eq!(refusals(&mut core), [(3, ErrorCode::DeadlineExceeded)], "its own deadline");
        let failure = crate::requests::error(ErrorCode::UnsupportedVersion, "not that");
        core.resolve(first, Err(failure));
        assert_eq!(refusals(&mut core), [(carrier, ErrorCode::UnsupportedVersion)]);
        let other = 9 - carrier;
        assert_eq!(sent(&core), [(other, 1)]);
        core.resolve(key(&core, other), Ok(Reply::ReadPoint { index: 0 }));
        assert_eq!(done(&mut core), [other]);
    }

    #[test]
    fn what_was_asked_before_is_not_for_those_that_came_since_however_late_it_comes() {
        let mut core = follower();
        ask(&mut core, 1..=2, 60_000);
        let first = key(&core, 1);
        core.resolve(first, Ok(Reply::ReadPoint { index: 5 }));
        // A round of this node's own, from when it led for a moment.
        core.resolve(first, Err(lost()));
        assert!(matches!(core.requests.pending[&first].wait, Wait::Applied { index: 5, .. }), "its outcome is known");
        assert_eq!(core.requests.shared.carriers.len(), 1, "nobody comes to share what it sent before");
    }

    #[test]
    fn who_shares_a_read_is_answered_though_nobody_leads_any_more() {
        let mut core = follower();
        ask(&mut core, 1..=5, 2_000);
        core.leaders.learn(GroupId::META, 3, None);
        for id in 1..=2 {
            let key = key(&core, id);
            core.resolve(key, Err(lost()));
        }
        core.now = at(2_000);
        core.requests_tick();
        let told: Vec<u64> = refusals(&mut core).into_iter().map(|(id, _)| id).collect();
        assert_eq!(told.len(), 5, "each is answered at its deadline: {told:?}");
        assert!(core.requests.shared.carriers.is_empty() && core.requests.pending.is_empty());
    }
}
