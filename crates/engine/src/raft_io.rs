//! Between Raft and the rest: messages in and out, rounds, roles.

use base::limits::EARLY_VOTES_MAX;
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, Incarnation, NodeId, ReplicaId};
use journal::{GroupAppend, Round};
use multiraft::{Output, Refused, Role, RoleChange};
use wire::{Channel, Membership, PeerMessage, RaftMessage, RaftMessageKind};

use crate::Effect;
use crate::core::{NodeCore, Stage};
use crate::directory::node_of;
use crate::groups::Machine;
use crate::journal_events::ReadFor;

/// Which stream a Raft message takes: what keeps leadership alive never waits behind data.
fn channel(kind: RaftMessageKind) -> Channel {
    match kind {
        RaftMessageKind::Append | RaftMessageKind::AppendResponse | RaftMessageKind::Snapshot => Channel::Bulk,
        _ => Channel::Control,
    }
}

impl NodeCore {
    pub(crate) fn take_messages(&mut self, from: NodeId, messages: Vec<PeerMessage>) {
        if self.metadata.departed.contains_key(&from) {
            return; // Sent before it was forgotten.
        }
        self.peers.heard(from, self.now.mono);
        for message in messages {
            match message {
                PeerMessage::Raft { group, message } => self.take_raft(from, group, message),
                PeerMessage::Gossip(gossip) => self.take_gossip(from, gossip),
                PeerMessage::Forward(forward) => self.take_forward(from, forward),
                PeerMessage::ForwardReply(reply) => self.take_forward_reply(from, reply),
                PeerMessage::CheckpointPull(pull) => self.take_pull(from, &pull),
                PeerMessage::CheckpointChunk(chunk) => self.take_chunk(from, chunk),
                PeerMessage::Members(members) => self.take_members(members),
            }
        }
    }

    fn take_raft(&mut self, from: NodeId, group: GroupId, message: RaftMessage) {
        // A message that names another node's replica as its sender is not believed.
        let sender = node_of(&self.metadata, &self.peers, group, message.from);
        if sender.is_some_and(|node| node != from) {
            return;
        }
        if message.kind == RaftMessageKind::Snapshot {
            return self.pull_checkpoint(from, group, message);
        }
        let asks = matches!(message.kind, RaftMessageKind::Vote | RaftMessageKind::PreVote);
        if asks && !self.groups.get(&group).is_some_and(crate::groups::Group::running) {
            if self.early_votes.len() < EARLY_VOTES_MAX || self.early_votes.contains_key(&group) {
                mark(Mark::EarlyVoteKept);
                self.early_votes.insert(group, message);
            }
            return;
        }
        self.step(group, message);
    }

    /// Refusals are the expected fate of late and stray messages. One is not: the proof that this node's log is lost.
    fn step(&mut self, group: GroupId, message: RaftMessage) {
        let kind = message.kind;
        match self.raft.step(group, message) {
            Ok(()) => self.count_received(group, kind),
            Err(lost @ Refused::LogLost { .. }) => self.fatal(format!(
                "group {group}: {lost}: this node's data was lost or replaced by an older copy. Wipe the data directory and \
                 join anew with a token"
            )),
            Err(_) => {}
        }
    }

    /// A replica runs from now on: it answers whoever asked for its vote before. The first replica of a new group
    /// campaigns as soon as it is born, which is often before the others have heard of the group; without this it would
    /// lead only after an election timeout.
    pub(crate) fn answer_early_vote(&mut self, group: GroupId) {
        if let Some(message) = self.early_votes.remove(&group) {
            mark(Mark::EarlyVoteAnswered);
            self.step(group, message);
        }
    }

    pub(crate) fn peer_up(&mut self, node: NodeId, incarnation: Incarnation) {
        if self.metadata.departed.contains_key(&node) {
            return;
        }
        self.peers.set_connected(node, Some(incarnation));
        self.peers.heard(node, self.now.mono);
        for (group, replica) in self.led_with(node) {
            self.raft.wake(group, replica);
        }
    }

    pub(crate) fn peer_down(&mut self, node: NodeId) {
        if !self.metadata.departed.contains_key(&node) {
            self.peers.set_connected(node, None);
        }
        self.retry_forwarded_to(node);
        for (group, replica) in self.led_with(node) {
            self.raft.unreachable(group, replica);
            self.raft.snapshot_reported(group, replica, false);
        }
    }

    pub(crate) fn replica_on(&self, group: GroupId, node: NodeId) -> Option<base::ReplicaId> {
        if group == GroupId::META {
            return self.metadata.nodes.get(&node).map(|n| n.meta_replica);
        }
        let partition = self.metadata.partitions.get(&group)?;
        partition.replicas.iter().find(|r| r.node == node).map(|r| r.replica)
    }

    /// Carries out what Raft asks for; whether it asked for anything.
    pub(crate) fn pump_raft(&mut self) -> bool {
        let out = self.raft.flush(self.next_round);
        if out == Output::default() {
            return false;
        }
        self.append(out.round, out.appends);
        for outgoing in out.sends {
            let to = node_of(&self.metadata, &self.peers, outgoing.group, outgoing.message.to);
            mark_if(Mark::MessageToUnknownNode, || to.is_none());
            if let Some(node) = to {
                let channel = channel(outgoing.message.kind);
                self.count_sent(outgoing.group, &outgoing.message, outgoing.beat);
                self.send(node, channel, PeerMessage::Raft { group: outgoing.group, message: outgoing.message });
            }
        }
        for role in out.roles {
            self.role_changed(role);
        }
        for (group, membership) in out.memberships {
            if let Some(entry) = self.groups.get_mut(&group) {
                entry.membership = membership;
            }
            self.planner.due = true;
        }
        for committed in out.committed {
            self.count_committed(committed.group, &committed.entries);
            for entry in &committed.entries {
                self.apply_entry(committed.group, entry);
                if self.stage == Stage::Stopped {
                    return false;
                }
            }
            if let Some(last) = committed.entries.last() {
                self.raft.applied(committed.group, last.index);
            }
        }
        for install in out.installs {
            self.install(install);
        }
        for read in out.reads {
            let token = self.reads.begin(ReadFor::Raft { group: read.group, token: read.token });
            self.journal.read(token, read.group, read.low, read.high, read.bytes_max);
        }
        for state in out.read_states {
            self.read_point(&state.context, state.index);
        }
        true
    }

    fn append(&mut self, round: u64, appends: Vec<multiraft::GroupAppend>) {
        if appends.is_empty() {
            return;
        }
        debug_assert_eq!(round, self.next_round);
        self.next_round += 1;
        self.stats.round_began(round, self.now.mono);
        let mut groups = Vec::with_capacity(appends.len());
        for append in appends {
            if let (Some(last), Some(group)) = (append.entries.last(), self.groups.get_mut(&append.group)) {
                group.rounds.push_back((round, last.index));
            }
            groups.push(GroupAppend { group: append.group, hard_state: append.hard_state, entries: append.entries });
        }
        self.journal.append(Round { number: round, groups });
    }

    fn role_changed(&mut self, change: RoleChange) {
        let Some(group) = self.groups.get_mut(&change.group) else { return };
        let led = group.role == Role::Leader;
        let ended = led && (change.role != Role::Leader || change.term != group.term);
        self.stats.role_changed(ended, &mut group.stats, &change);
        if ended {
            mark_if(Mark::StepDownWithRound, || !group.rounds.is_empty());
            group.active = false;
            if let Some(partition) = group.partition() {
                partition.step_down();
            }
        }
        group.role = change.role;
        group.term = change.term;
        let replica = group.replica;
        self.unpublished.insert(change.group);
        if led && change.role != Role::Leader {
            self.stepped_down(change.group);
        }
        let leader = match change.role {
            Role::Leader => None, // Told once it is active.
            _ => node_of(&self.metadata, &self.peers, change.group, change.leader),
        };
        self.leaders.learn(change.group, change.term, leader);
        if planted(Plant::LeadBeforeNoop) && change.role == Role::Leader {
            self.activate(change.group, change.term);
        }
        if self.config.observe {
            self.effects.push(Effect::Role { group: change.group, replica, role: change.role, term: change.term });
        }
    }

    /// This node led and does not any more.
    fn stepped_down(&mut self, group: GroupId) {
        if group == GroupId::META {
            self.outbox.reset();
            self.planner.reset();
        }
        let me = self.me();
        if self.leaders.leader(group) == Some(me) {
            let term = self.leaders.term(group);
            self.leaders.unlearn(group, term);
        }
        self.fail_unsynced(group);
    }

    /// The leader of `term` has applied its own Noop: everything before its term is in its state, so offsets may be
    /// assigned and requests taken.
    pub(crate) fn activate(&mut self, group: GroupId, term: u64) {
        let me = self.me();
        let Some(entry) = self.groups.get_mut(&group) else { return };
        entry.active = true;
        entry.led_since = Some(self.now.mono);
        match &mut entry.machine {
            Machine::Partition(partition) => partition.lead(term),
            Machine::Meta => {
                self.room.forget_proposed();
                mark_if(Mark::OutboxInherited, || !self.metadata.outbox.is_empty());
                self.planner.reset();
                self.outbox.reset();
                self.leases.adopt(&self.metadata, self.now.mono);
            }
        }
        self.unpublished.insert(group);
        self.leaders.learn(group, term, Some(me));
        // With this flush, however many groups get their leader in it.
        self.leaders.gossip_due = true;
    }

    /// Moves every leadership to the voter that is furthest, because this node stops or its disk is stuck.
    pub(crate) fn hand_over_leaderships(&mut self) {
        for group in self.led() {
            let best = self.furthest(group, |_| true);
            mark(if best.is_some() { Mark::LeadershipHandedOver } else { Mark::NobodyToHandOverTo });
            if let Some(best) = best {
                self.raft.transfer_leader(group, best);
            }
        }
    }

    /// A node that drains, or goes, leads nothing that others can lead. It stays electable: it may be the only one that can
    /// be elected, and then it hands over again.
    pub(crate) fn hand_over_when_drained(&mut self) {
        let serves = |node: NodeId| self.metadata.nodes.get(&node).is_none_or(|record| !record.lifecycle.hands_over());
        if serves(self.me()) {
            return;
        }
        let on_serving = |group: GroupId, replica: &ReplicaId| {
            node_of(&self.metadata, &self.peers, group, *replica).is_some_and(serves)
        };
        let moves: Vec<_> = self
            .led()
            .into_iter()
            .filter_map(|group| Some((group, self.furthest(group, |replica| on_serving(group, replica))?)))
            .collect();
        for (group, best) in moves {
            mark(Mark::DrainedNodeHandedOver);
            self.raft.transfer_leader(group, best);
        }
    }

    /// Moves leaderships to voters with space on their disks, where these are enough to commit: elsewhere a new leader
    /// would take writes to no end, which this one refuses with the reason.
    pub(crate) fn hand_over_to_space(&mut self) {
        for group in self.led() {
            let has_space = |replica: &ReplicaId| {
                let node = node_of(&self.metadata, &self.peers, group, *replica);
                node.is_some_and(|node| self.peers.has_space(node, self.now.mono))
            };
            let Some(Membership { voters, voters_outgoing, .. }) = self.raft.status(group).map(|s| s.membership) else {
                continue;
            };
            let enough = |voters: &[ReplicaId]| {
                voters.is_empty() || voters.iter().filter(|voter| has_space(voter)).count() > voters.len() / 2
            };
            if !enough(&voters) || !enough(&voters_outgoing) {
                continue;
            }
            if let Some(best) = self.furthest(group, has_space) {
                mark(Mark::LeadershipLeftFullDisk);
                self.raft.transfer_leader(group, best);
            }
        }
    }

    fn led(&self) -> Vec<GroupId> {
        self.groups.iter().filter(|(_, group)| group.role == Role::Leader).map(|(id, _)| *id).collect()
    }

    /// The voter among those that `fits` that has most of the log, of a group that this node leads.
    fn furthest(&self, group: GroupId, fits: impl Fn(&ReplicaId) -> bool) -> Option<ReplicaId> {
        let status = self.raft.status(group)?;
        let voters = &status.membership.voters;
        let others = status.progress.iter().filter(|p| p.replica != status.replica && p.active);
        let fitting = others.filter(|p| voters.contains(&p.replica) && fits(&p.replica));
        fitting.max_by_key(|p| p.matched).map(|p| p.replica)
    }
}
