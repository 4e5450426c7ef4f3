//! Requests between nodes: passed on to the one that can carry them out, and their answers.

use std::collections::BTreeMap;

use base::limits::REQUEST_DEADLINE_MAX;
use base::simulation::{Mark, mark};
use base::{ErrorCode, GroupId, Millis, NodeId};
use metadata::CommandOrigin;
use minicbor::{Decode, Encode};
use wire::{Channel, Forward, ForwardReply, PeerMessage};

use super::{Origin, Pending, Wait, error, may_repeat};
use crate::core::{NodeCore, Stage};
use crate::{Reply, Request, RequestError, Target};

/// Forwarded requests above this size take the bulk channel.
const CONTROL_BYTES_MAX: usize = 16 << 10;
/// A forwarded request that is not answered in this time is sent again, if a repeat does no harm: it, or its answer, may
/// have been dropped from a full queue while the connection lived.
const FORWARD_AGAIN_AFTER: Millis = Millis(1_000);

/// A request on its way to another node.
#[derive(Encode, Decode)]
struct ForwardBody {
    #[n(0)]
    request: Request,
    #[n(1)]
    command: Option<CommandOrigin>,
}

/// Its outcome on the way back.
#[derive(Encode, Decode)]
enum ForwardOutcome {
    #[n(0)]
    Done(#[n(0)] Reply),
    #[n(1)]
    Failed(#[n(0)] RequestError),
}

impl NodeCore {
    pub(super) fn forward(&mut self, key: u64, to: NodeId, request: Request, command: Option<CommandOrigin>) {
        if let Request::Command(body) = &request
            && let Some(reason) = self.unreadable_for(to, body.since())
        {
            // This node's table may be behind. What was asked before may have been done: that it was not is not said.
            if self.requests.pending.get(&key).is_some_and(|pending| !pending.tried) {
                self.resolve(key, Err(error(ErrorCode::UnsupportedVersion, reason)));
            }
            return;
        }
        self.requests.next += 1;
        let send = self.requests.next;
        let Some(pending) = self.requests.pending.get_mut(&key) else { return };
        pending.sends.push(send);
        let deadline_ms = pending.deadline.since(self.now.mono).0;
        self.requests.sent.insert(send, key);
        let body = wire::encode(&ForwardBody { request, command });
        let channel = if body.len() > CONTROL_BYTES_MAX { Channel::Bulk } else { Channel::Control };
        self.set_wait(key, Wait::Forwarded { to, send });
        self.requests.forward_again.insert((self.now.mono.plus(FORWARD_AGAIN_AFTER), send));
        self.send(to, channel, PeerMessage::Forward(Forward { id: send, deadline_ms, body }));
    }

    /// Why an older node is not even asked for something that came with version `since`: it might read a part of it.
    fn unreadable_for(&self, node: NodeId, since: base::ClusterVersion) -> Option<String> {
        let record = self.metadata.nodes.get(&node)?;
        let too_old = since > record.member.versions.max;
        self.metadata.too_early(since).filter(|_| too_old)
    }

    pub(crate) fn take_forward(&mut self, from: NodeId, forward: Forward) {
        let left = Millis(forward.deadline_ms.min(REQUEST_DEADLINE_MAX.0));
        let origin = Origin::Remote { node: from, id: forward.id, deadline: self.now.mono.plus(left) };
        // A second copy is not answered either: the first one is. Even where doing it twice would do no harm, the two
        // answers could contradict each other.
        if !self.requests.first_time(from, forward.id) {
            return;
        }
        if self.stage != Stage::Running {
            mark(Mark::ForwardAtRestart);
            return self.answer(origin, Err(self.not_leader(GroupId::META)));
        }
        match wire::decode::<ForwardBody>(&forward.body) {
            Ok(body) => self.execute(origin, body.request, body.command),
            Err(reason) => {
                let message = format!(
                    "node {} cannot read the request ({reason}): if its muster is older than the one asked, upgrade it",
                    self.me()
                );
                self.answer(origin, Err(error(ErrorCode::UnsupportedVersion, message)));
            }
        }
    }

    /// Tells another node how its request ended.
    pub(super) fn answer_forward(&mut self, to: NodeId, id: u64, outcome: Result<Reply, RequestError>) {
        let body = wire::encode(&match outcome {
            Ok(reply) => ForwardOutcome::Done(reply),
            Err(failure) => ForwardOutcome::Failed(failure),
        });
        let channel = if body.len() > CONTROL_BYTES_MAX { Channel::Bulk } else { Channel::Control };
        self.send(to, channel, PeerMessage::ForwardReply(ForwardReply { id, body }));
    }

    pub(crate) fn take_forward_reply(&mut self, from: NodeId, reply: ForwardReply) {
        let Some(key) = self.requests.sent.remove(&reply.id) else {
            mark(Mark::ForwardReplyTooLate);
            return; // Answered already, or the deadline has passed.
        };
        let outcome = match wire::decode::<ForwardOutcome>(&reply.body) {
            Ok(ForwardOutcome::Done(reply)) => Ok(reply),
            Ok(ForwardOutcome::Failed(failure)) => Err(failure),
            Err(reason) => {
                Err(error(ErrorCode::UnsupportedVersion, format!("node {from}'s answer is unreadable: {reason}")))
            }
        };
        let last = Wait::Forwarded { to: from, send: reply.id };
        // What an earlier try came to is the outcome only if it was carried out.
        let superseded = match self.requests.pending.get(&key).map(|pending| &pending.wait) {
            Some(wait) if *wait == last => false,
            Some(Wait::Applied { .. }) | None => true,
            Some(_) => outcome.is_err(),
        };
        if superseded {
            mark(Mark::ForwardReplyTooLate);
            return;
        }
        self.resolve(key, outcome);
    }

    /// Another node leads than the one that was asked: what does no harm if it is done twice goes there at once. The one
    /// that was asked is often dead, and that shows only later.
    pub(crate) fn follow_leaders(&mut self) {
        let led: BTreeMap<GroupId, NodeId> =
            self.leaders.changed().filter_map(|group| Some((group, self.leaders.leader(group)?))).collect();
        if led.is_empty() {
            return;
        }
        let elsewhere = |pending: &Pending| match (&pending.wait, pending.target) {
            (Wait::Forwarded { to, .. }, Target::Leader(group)) => {
                may_repeat(&pending.request) && led.get(&group).is_some_and(|leader| leader != to)
            }
            _ => false,
        };
        let keys: Vec<_> = self.requests.pending.iter().filter(|(_, p)| elsewhere(p)).map(|(key, _)| *key).collect();
        for key in keys {
            mark(Mark::ForwardFollowedLeader);
            self.try_again(key, true);
            self.advance(key);
        }
    }

    pub(crate) fn retry_forwarded_to(&mut self, node: NodeId) {
        let waits = |p: &Pending| matches!(p.wait, Wait::Forwarded { to, .. } if to == node);
        let keys: Vec<_> = self.requests.pending.iter().filter(|(_, p)| waits(p)).map(|(key, _)| *key).collect();
        for key in keys {
            mark(Mark::ForwardLostWithConnection);
            let lost = error(ErrorCode::LeaderChanged, format!("the connection to node {node} was lost"));
            self.resolve(key, Err(lost));
        }
    }
}

#[cfg(test)]
mod tests {
    use base::RequestId;
    use bytes::Bytes;
    use metadata::{Command, CommandResult};

    use super::*;
    use crate::requests::tests::{answered_others, at, core, refusals};
    use crate::{Acks, Effect, Produce};

    fn reply(id: u64, outcome: Result<Reply, RequestError>) -> ForwardReply {
        let outcome = match outcome {
            Ok(reply) => ForwardOutcome::Done(reply),
            Err(failure) => ForwardOutcome::Failed(failure),
        };
        ForwardReply { id, body: wire::encode(&outcome) }
    }

    #[test]
    fn an_answer_to_an_earlier_sending_counts_only_if_it_was_carried_out() {
        let mut core = core();
        core.take_request(RequestId(1), at(60_000).mono, Target::Node(NodeId(2)), Request::Status);
        core.now = at(30_000);
        core.requests_tick();
        let sends: Vec<u64> = core.requests.sent.keys().copied().collect();
        let [first, second] = sends[..] else { panic!("it was sent twice: {sends:?}") };
        core.take_forward_reply(NodeId(2), reply(first, Err(error(ErrorCode::DiskFull, "full"))));
        assert_eq!(refusals(&mut core), [], "what became of the second is open");
        core.take_forward_reply(NodeId(2), reply(first, Ok(Reply::Done)));
        assert_eq!(core.requests.pending.len(), 1, "a copy of an answer");
        core.take_forward_reply(NodeId(2), reply(second, Err(error(ErrorCode::DiskFull, "full"))));
        assert_eq!(refusals(&mut core), [(1, ErrorCode::DiskFull)]);
        assert!(core.requests.sent.is_empty(), "nothing is remembered of what is answered");

        core.take_request(RequestId(2), at(90_000).mono, Target::Node(NodeId(2)), Request::Status);
        let third = *core.requests.sent.keys().next().expect("sent");
        core.now = at(60_000);
        core.requests_tick();
        core.take_forward_reply(NodeId(2), reply(third, Ok(Reply::Done)));
        assert!(core.requests.pending.is_empty(), "the first sending was carried out");
    }

    #[test]
    fn what_is_sent_again_has_a_second_of_its_own() {
        let mut core = core();
        let ask = |core: &mut NodeCore| core.requests.sent.keys().copied().collect::<Vec<_>>();
        // How long the addressee has, each time that something is sent.
        let time_left = |core: &mut NodeCore| {
            let left = |message| match message {
                PeerMessage::Forward(forward) => Some(forward.deadline_ms),
                _ => None,
            };
            std::mem::take(&mut core.sends).into_values().flatten().filter_map(left).collect::<Vec<_>>()
        };
        core.take_request(RequestId(1), at(60_000).mono, Target::Node(NodeId(2)), Request::Status);
        assert_eq!(time_left(&mut core), [60_000]);
        core.now = at(1_000);
        core.requests_tick();
        core.now = at(1_900);
        core.requests_tick();
        assert_eq!(ask(&mut core).len(), 2, "the first one was not answered in a second");
        assert_eq!(time_left(&mut core), [59_000], "a second of it is gone");
        core.now = at(2_000);
        core.requests_tick();
        assert_eq!(ask(&mut core).len(), 3);
        assert_eq!(time_left(&mut core), [58_000]);

        // The second of a sending that was answered does not run on for the next one.
        core.take_request(RequestId(2), at(60_000).mono, Target::Node(NodeId(2)), Request::Status);
        let key = *core.requests.pending.keys().next_back().expect("it waits");
        core.now = at(2_900);
        core.try_again(key, false);
        core.advance(key);
        core.now = at(3_000);
        core.requests_tick();
        assert_eq!(core.requests.pending[&key].sends.len(), 2, "sent 100 ms ago");
    }

    #[test]
    fn a_request_follows_the_leader_from_a_node_that_does_not_answer() {
        let mut core = core();
        let meta = GroupId::META;
        for node in [2, 3] {
            core.peer_up(NodeId(node), base::Incarnation(1));
        }
        core.leaders.learn(meta, 2, Some(NodeId(2)));
        core.take_request(RequestId(1), at(60_000).mono, Target::Leader(meta), Request::ReadPoint);
        core.take_request(RequestId(2), at(60_000).mono, Target::Node(NodeId(2)), Request::Status);
        let step_down = Request::TransferLeader { group: meta, to: NodeId(3) };
        core.take_request(RequestId(3), at(60_000).mono, Target::Leader(meta), step_down);
        let asked = |core: &mut NodeCore| {
            let sends = std::mem::take(&mut core.sends);
            let forwards = |messages: &Vec<PeerMessage>| {
                messages.iter().filter(|message| matches!(message, PeerMessage::Forward(_))).count()
            };
            sends.iter().map(|((to, _), messages)| (to.0, forwards(messages))).filter(|it| it.1 > 0).collect::<Vec<_>>()
        };
        core.follow_leaders();
        assert_eq!(asked(&mut core), [(2, 3)]);
        core.leaders.learn(meta, 3, None);
        core.follow_leaders();
        assert_eq!(asked(&mut core), [], "nobody else leads yet");
        core.leaders.learn(meta, 3, Some(NodeId(3)));
        core.follow_leaders();
        assert_eq!(asked(&mut core), [(3, 1)], "neither what is for that node nor what may not be done twice");
        core.follow_leaders();
        assert_eq!(asked(&mut core), [], "it is where it belongs");
    }

    #[test]
    fn what_a_former_leader_does_not_learn_is_asked_of_the_next_if_that_does_no_harm() {
        let mut core = core();
        let (meta, partition) = (GroupId::META, GroupId(7));
        for node in [2, 3] {
            core.peer_up(NodeId(node), base::Incarnation(1));
        }
        for group in [meta, partition] {
            core.leaders.learn(group, 2, Some(NodeId(2)));
        }
        let session = Command::OpenSession { node: NodeId(1), incarnation: base::Incarnation(1) };
        core.take_request(RequestId(1), at(900).mono, Target::Leader(meta), Request::Command(session));
        let plain = Produce { group: partition, acks: Acks::All, batches: vec![Bytes::from_static(b"plain")] };
        core.take_request(RequestId(2), at(900).mono, Target::Leader(partition), Request::Produce(plain));
        let sends: Vec<u64> = core.requests.sent.keys().copied().collect();
        for group in [meta, partition] {
            core.leaders.learn(group, 3, Some(NodeId(3)));
        }
        for send in sends {
            let unknown = error(ErrorCode::LeaderChanged, "its disk is stuck");
            core.take_forward_reply(NodeId(2), reply(send, Err(unknown)));
        }
        assert_eq!(refusals(&mut core), [(2, ErrorCode::LeaderChanged)], "it could stand there twice");
        core.requests_tick();
        let again: Vec<u64> = core.requests.sent.keys().copied().collect();
        let [again] = again[..] else { panic!("asked {again:?}") };
        let asked = |core: &NodeCore| core.requests.pending.values().map(|it| it.wait.clone()).collect::<Vec<_>>();
        assert_eq!(asked(&core), [Wait::Forwarded { to: NodeId(3), send: again }]);

        // The next one has carried it out. That this node shows it is not said before it does.
        let done = Reply::Command { index: 5, result: CommandResult::Done };
        core.take_forward_reply(NodeId(3), reply(again, Ok(done)));
        core.now = at(900);
        core.requests_tick();
        let [Effect::Reply { outcome: Err(told), .. }] = &core.effects[..] else { panic!("{:?}", core.effects) };
        assert!(told.code == ErrorCode::DeadlineExceeded && told.message.contains("confirmed it"), "{told}");
        core.effects.clear();

        // A node that applies is told at once.
        let session = Command::OpenSession { node: NodeId(1), incarnation: base::Incarnation(1) };
        core.take_request(RequestId(3), at(2_000).mono, Target::Leader(meta), Request::Command(session));
        let send = *core.requests.sent.keys().next().expect("sent");
        let done = Reply::Command { index: 0, result: CommandResult::Done };
        core.take_forward_reply(NodeId(3), reply(send, Ok(done)));
        assert!(matches!(core.effects[..], [Effect::Reply { id: RequestId(3), outcome: Ok(_) }]), "{:?}", core.effects);
    }

    #[test]
    fn a_second_copy_of_a_request_is_neither_carried_out_nor_refused() {
        let mut core = core();
        let command = Command::RevokeToken { token_id: 1 };
        let body = wire::encode(&ForwardBody { request: Request::Command(command), command: None });
        let forward = Forward { id: 7, deadline_ms: 1_000, body };
        core.take_forward(NodeId(2), forward.clone());
        core.take_forward(NodeId(2), forward.clone());
        core.take_forward(NodeId(3), forward.clone());
        let early = forward;
        let answered = |((to, _), messages): (&(NodeId, Channel), &Vec<PeerMessage>)| (to.0, messages.len());
        assert_eq!(core.sends.iter().map(answered).collect::<Vec<_>>(), [(2, 1), (3, 1)]);

        // Nor if the first one came too early to be carried out.
        core.sends.clear();
        core.stage = Stage::Recovering;
        core.take_forward(NodeId(2), Forward { id: 8, ..early.clone() });
        core.stage = Stage::Running;
        core.take_forward(NodeId(2), Forward { id: 8, ..early });
        assert_eq!(core.sends.iter().map(answered).collect::<Vec<_>>(), [(2, 1)]);
    }

    #[test]
    fn a_question_for_another_node_is_forgotten_when_that_node_has_given_up() {
        let mut core = core();
        core.now = at(5_000);
        let body = wire::encode(&ForwardBody { request: Request::Tasks, command: None });
        let mut tickets = 1..;
        // The answers to all questions so far come at that time.
        let mut answered = |core: &mut NodeCore, questions: &[(u64, u64)], ms: u64| {
            for (id, deadline_ms) in questions {
                core.take_forward(NodeId(2), Forward { id: *id, deadline_ms: *deadline_ms, body: body.clone() });
            }
            core.now = at(ms);
            core.requests_tick();
            for ticket in tickets.by_ref().take(questions.len()) {
                core.driver_answered(ticket, Ok(Reply::Tasks(Vec::new())));
            }
            assert!(core.requests.tickets.is_empty(), "{:?}", core.requests.tickets);
            answered_others(core)
        };
        assert_eq!(answered(&mut core, &[(1, 1_000), (2, 1_001)], 6_000), [2]);
        // However long it says that it waits.
        let most = REQUEST_DEADLINE_MAX.0;
        assert_eq!(answered(&mut core, &[(3, most), (4, most + 1)], 6_000 + most - 1), [3, 4]);
        assert!(answered(&mut core, &[(5, most), (6, u64::MAX)], 6_000 + 2 * most).is_empty());
    }
}
