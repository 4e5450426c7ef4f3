//! Many Raft groups in one object without I/O, over the `raft` crate (TiKV's, 0.7).
//!
//! Calls bring in what happened; [`MultiRaft::flush`] hands out everything to be done, for all groups at once:
//!
//! ```text
//!  step, tick, propose,          flush(round)           appends  -> journal, one round for all groups
//!  persisted(round),       ---->   Output       ---->   sends    -> peers, at the same time
//!  applied, ...                                         committed, roles, installs, reads, ...
//! ```
//!
//! The driver carries out appends and sends at once and in any order between them: whatever must wait for the disk is
//! held back here and comes out of a flush after [`MultiRaft::persisted`].
//!
//! Invariants:
//! - Nothing of a term leaves before (term, vote) is durable, leaders included; acknowledgements and votes wait for all
//!   that they promise; answers to heartbeats wait for no entries.
//! - `Leader` is announced, and a proposal taken, only when the term is durable. Entries are handed out as committed
//!   only when a quorum and this replica have them durable.
//! - A campaign begins only when all of the log is durable.
//! - Whatever a peer sends is refused or harmless: it never panics and never changes what is committed.
//! - The same calls with the same seed give the same outputs.
//!
//! This crate never reads a clock, never draws a random number that matters (the crate below draws election timeouts;
//! they are replaced at once) and never parses protobuf.

mod admit;
mod api;
mod clock;
mod convert;
mod group;
mod init;
mod log;
mod marks;
mod membership;
mod pace;
mod rest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use api::*;
use base::limits::REQUESTS_PENDING_MAX;
use base::simulation::{Mark, mark, mark_if};
use base::{GroupId, Now, ReplicaId};
use bytes::Bytes;
use clock::{Beat, TickClock};
use group::Group;
pub use membership::changed;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, SnapshotStatus, StateRole};
use wire::{Entry, EntryKind, MembershipChange, RaftMessage};

/// All groups of which one node holds a replica.
pub struct MultiRaft {
    config: MultiRaftConfig,
    groups: BTreeMap<GroupId, Box<Group>>,
    /// Touched since the last flush.
    dirty: BTreeSet<GroupId>,
    /// More is committed there than was handed out.
    behind: BTreeSet<GroupId>,
    /// Bytes of committed entries that may still be handed out.
    room: u64,
    /// Rounds under way, with the groups that they write for.
    rounds: VecDeque<(u64, Vec<GroupId>)>,
    clock: TickClock,
    electable: bool,
    may_rest: bool,
    created: u64,
    logger: slog::Logger,
}

impl MultiRaft {
    /// # Panics
    /// If the election timeout is not longer than the time between heartbeats, or one of them is zero.
    #[must_use]
    pub fn new(config: MultiRaftConfig) -> Self {
        assert!(config.heartbeat_ticks > 0, "heartbeats need at least one tick");
        assert!(config.election_ticks > config.heartbeat_ticks, "elections must take longer than heartbeats");
        MultiRaft {
            config,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            behind: BTreeSet::new(),
            room: u64::MAX,
            rounds: VecDeque::new(),
            clock: TickClock::default(),
            electable: true,
            may_rest: false,
            created: 0,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        }
    }

    /// Runs a replica. The group must not be there yet.
    ///
    /// # Panics
    /// If it is, or if [`GroupInit::check`] fails; call that first where the state comes from a disk.
    pub fn create(&mut self, init: GroupInit) {
        let group = init.group;
        if let Err(error) = init.check() {
            panic!("{error}");
        }
        assert!(!self.groups.contains_key(&group), "group {group} runs already");
        self.created += 1;
        // Answers to reads of a replica that is gone never match those of its successor.
        let token = self.created << 32;
        self.groups.insert(group, Box::new(Group::new(&self.config, init, token, &self.logger)));
        self.dirty.insert(group);
    }

    /// Forgets a replica; messages to it are refused from now on.
    pub fn remove(&mut self, group: GroupId) {
        self.groups.remove(&group);
        self.dirty.remove(&group);
        self.behind.remove(&group);
    }

    /// Lets time pass for all groups, by whole ticks of real time; after a gap beyond an election timeout (the process
    /// was paused) leaders step down and the missed ticks are skipped, never replayed. To be called at least once per
    /// [`base::limits::TICK`]; at most one tick passes per call.
    pub fn tick(&mut self, now: Now) {
        let ticks = match self.clock.beat(now, self.config.election_ticks) {
            Beat::None => return,
            Beat::Paused => {
                let stepped_down = self.groups.iter_mut().filter_map(|(id, group)| group.step_down().then_some(*id));
                self.dirty.extend(stepped_down.inspect(|_| mark(Mark::SteppedDownAfterPause)));
                return;
            }
            Beat::Ticks(ticks) => ticks,
        };
        for _ in 0..ticks {
            for (id, group) in &mut self.groups {
                if group.tick(self.electable, self.may_rest) {
                    self.dirty.insert(*id);
                }
            }
        }
    }

    /// Takes a message from another node. A `Snapshot` message is to be stepped only after its checkpoint was pulled.
    ///
    /// # Errors
    /// Whatever is not for this replica or would break an invariant is refused and changes nothing.
    pub fn step(&mut self, group: GroupId, message: RaftMessage) -> Result<(), Refused> {
        let electable = self.electable;
        let replica = self.touch(group).ok_or(Refused::UnknownGroup)?;
        if rest::wakes(message.kind) {
            replica.wake();
        }
        replica.admit(&message, electable)?;
        replica.note_answer(&message);
        replica.step(message);
        Ok(())
    }

    /// The group, and a note that the next flush must look at it.
    fn touch(&mut self, group: GroupId) -> Option<&mut Group> {
        let replica = self.groups.get_mut(&group)?;
        self.dirty.insert(group);
        Some(replica)
    }

    fn leading(&mut self, group: GroupId, term: u64) -> Result<&mut Group, ProposeError> {
        let replica = self.touch(group).ok_or(ProposeError::UnknownGroup)?;
        replica.wake();
        mark_if(Mark::ProposalForEndedTerm, || !replica.leads(term));
        if replica.leads(term) { Ok(replica) } else { Err(ProposeError::NotLeader) }
    }

    /// Whether leaders may rest: as long as their node says often enough what it leads. `false` to begin with.
    pub fn let_rest(&mut self, may_rest: bool) {
        self.may_rest = may_rest;
    }

    /// Whether the group's leader is here and at rest: it sends no heartbeats.
    #[must_use]
    pub fn rests(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|replica| replica.rests())
    }

    /// The node with the replica `leader` says that it leads the group in `term`: for its followers as good as a heartbeat,
    /// and where the replica here did not know it, taken as one. Whether the replica here follows it.
    pub fn hear_leader(&mut self, group: GroupId, term: u64, leader: ReplicaId) -> bool {
        let Some(replica) = self.groups.get_mut(&group) else { return false };
        if replica.hear_leader(term, leader.0) {
            return true;
        }
        let Some(heartbeat) = replica.missed_heartbeat(term, leader) else { return false };
        mark(Mark::LeaderFoundByClaim);
        // Refused if it is of a replica that was removed, say.
        self.step(group, heartbeat).is_ok()
    }

    /// The node with that replica was heard, from its present process: for a leader at rest as good as an answer to a
    /// heartbeat, if the replica has answered since that process is there.
    pub fn hear_follower(&mut self, group: GroupId, replica: ReplicaId) {
        if let Some(leader) = self.groups.get_mut(&group) {
            leader.hear_follower(replica.0);
        }
    }

    /// The group's leader, if it is here, beats for it: the node with that replica came back, and does not know who leads.
    /// Whether the replica runs there is not known before it answers.
    pub fn wake(&mut self, group: GroupId, back: ReplicaId) {
        if let Some(replica) = self.groups.get_mut(&group) {
            replica.wake();
            replica.forget_answer(back.0);
        }
    }

    /// Appends to the log as leader of the expected term. Not durable on return, and lost if another leader takes over.
    ///
    /// # Errors
    /// Without a trace.
    pub fn propose(&mut self, proposal: Proposal) -> Result<Proposed, ProposeError> {
        let Proposal { group, term, kind, data } = proposal;
        if !matches!(kind, EntryKind::Command | EntryKind::Batch) {
            return Err(ProposeError::Invalid("only commands and batches are proposed"));
        }
        let raft = &mut self.leading(group, term)?.raw.raft;
        let mut message = Message { from: raft.id, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![convert::proposal_entry(kind, data)].into());
        raft.step(message).map_err(|_| ProposeError::Busy).inspect_err(|_| mark(Mark::ProposalDropped))?;
        Ok(Proposed { index: raft.raft_log.last_index(), term })
    }

    /// Proposes a membership change, as leader of the expected term, if none is under way. With more than one step it
    /// is made through joint consensus, which the leader ends by itself.
    ///
    /// # Errors
    /// Without a trace.
    pub fn propose_membership(
        &mut self,
        group: GroupId,
        term: u64,
        change: &MembershipChange,
    ) -> Result<Proposed, ProposeError> {
        let replica = self.leading(group, term)?;
        let joint = !replica.membership.voters_outgoing.is_empty();
        if replica.raw.raft.has_pending_conf() || (joint && !change.steps.is_empty()) {
            mark(Mark::MembershipChangeBusy);
            return Err(ProposeError::Busy);
        }
        admit::check_change(replica, change).map_err(ProposeError::Invalid)?;
        let pending = replica.raw.raft.pending_conf_index;
        let context = convert::membership_context(change);
        if replica.raw.propose_conf_change(context, convert::conf_change(change)).is_err() {
            replica.raw.raft.pending_conf_index = pending;
            return Err(ProposeError::Busy);
        }
        Ok(Proposed { index: replica.raw.raft.raft_log.last_index(), term })
    }

    /// Asks for a linearizable read point (Raft section 6.4), as leader. The answer comes as [`ReadState`] with the
    /// same `context`, which must be fresh: one that is under way is refused. At most 1 KiB.
    ///
    /// # Errors
    /// `NotLeader` if this replica does not lead; `Busy` if it has not yet committed in its term.
    pub fn read_index(&mut self, group: GroupId, context: Bytes) -> Result<(), ProposeError> {
        let replica = self.touch(group).ok_or(ProposeError::UnknownGroup)?;
        replica.wake();
        if !replica.leads(replica.raw.raft.term) {
            return Err(ProposeError::NotLeader);
        }
        if context.is_empty() || context.len() > admit::CONTEXT_BYTES_MAX {
            return Err(ProposeError::Invalid("a read context is 1 to 1024 bytes"));
        }
        let full = replica.reads.len() >= REQUESTS_PENDING_MAX;
        mark_if(Mark::ReadBeforeFirstCommitOfTerm, || !replica.raw.raft.commit_to_current_term());
        if full || replica.reads.contains(&context) || !replica.raw.raft.commit_to_current_term() {
            return Err(ProposeError::Busy);
        }
        replica.raw.read_index(context.to_vec());
        replica.reads.insert(context);
        Ok(())
    }

    /// Whether this node's replica leads the group, as far as it knows.
    #[must_use]
    pub fn leads(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|replica| replica.leads(replica.raw.raft.term))
    }

    /// Hands leadership to another voter, if this replica leads. Until it is done, or an election timeout has passed,
    /// proposals answer `Busy`.
    pub fn transfer_leader(&mut self, group: GroupId, to: ReplicaId) {
        let under_way = |replica: &Group| replica.raw.raft.lead_transferee == Some(to.0);
        if self.groups.get(&group).is_some_and(|replica| under_way(replica)) {
            return; // The crate would ignore it, and the group would be looked at for nothing.
        }
        let Some(replica) = self.touch(group) else { return };
        replica.wake();
        let voter = replica.membership.voters.contains(&to) && to.0 != replica.replica;
        if replica.raw.raft.state == StateRole::Leader && voter {
            mark(Mark::TransferBegun);
            replica.transfer(to.0);
        }
    }

    /// Campaigns as soon as this replica may: when all of its log is durable and its membership applied. Not if another
    /// one leads by then.
    pub fn campaign(&mut self, group: GroupId) {
        if let Some(replica) = self.touch(group) {
            replica.campaign_wanted = true;
        }
    }

    /// Whether this node may campaign at all; `false` while its disk is stuck or full. Candidacies under way end, and
    /// nobody can hand leadership to it. What it leads it keeps until it is transferred.
    pub fn set_electable(&mut self, electable: bool) {
        if self.electable && !electable {
            let stopped = self.groups.iter_mut().filter_map(|(id, group)| group.stop_campaign().then_some(*id));
            self.dirty.extend(stopped.inspect(|_| mark(Mark::CandidacyEndedByDisk)));
        }
        self.electable = electable;
    }

    /// What [`MultiRaft::set_electable`] said last.
    #[must_use]
    pub fn is_electable(&self) -> bool {
        self.electable
    }

    /// All rounds up to `round` are durable.
    pub fn persisted(&mut self, round: u64) {
        while self.rounds.front().is_some_and(|(number, _)| *number <= round) {
            let Some((_, groups)) = self.rounds.pop_front() else { break };
            for group in groups {
                match self.touch(group) {
                    Some(replica) => replica.persisted(round),
                    None => mark(Mark::RoundEndedAfterRemoval),
                }
            }
        }
    }

    /// The state machine has applied up to `index`.
    ///
    /// # Panics
    /// If `index` was never handed out as committed.
    pub fn applied(&mut self, group: GroupId, index: u64) {
        let Some(replica) = self.groups.get_mut(&group) else { return };
        replica.applied(index);
        // What is behind is looked at in the next turn in any case, and would hand out more in this one.
        if !self.behind.contains(&group) {
            self.dirty.insert(group);
        }
    }

    /// Until this is called again, flushes hand out committed entries of so many bytes, each counted with
    /// [`base::limits::APPLY_ENTRY_BYTES_MIN`] at least, and where that is used up one entry for each group that they look
    /// at. There is no bound before the first call.
    pub fn let_apply(&mut self, bytes: u64) {
        self.room = bytes;
        self.dirty.append(&mut self.behind);
    }

    /// Whether more is committed than was handed out: [`MultiRaft::let_apply`] lets it come.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Answers a [`LogRead`]: entries from `low` on, as many as there are within the bounds, at least one. `None`: the
    /// log no longer holds it (a snapshot will be sent).
    pub fn entries_fetched(&mut self, group: GroupId, token: u64, entries: Option<Vec<Entry>>) {
        if let Some(replica) = self.touch(group) {
            replica.entries_fetched(token, entries);
        }
    }

    /// The checkpoint at `index` is durable; the log on disk now starts at `first_index`. From now on followers that
    /// lag behind it get that snapshot.
    pub fn checkpointed(&mut self, group: GroupId, meta: wire::SnapshotMeta, first_index: u64) {
        if let Some(replica) = self.touch(group) {
            replica.checkpointed(meta, first_index);
        }
    }

    /// Index of the snapshot that this replica has accepted and not yet asked to install: what else was stepped was
    /// ignored.
    #[must_use]
    pub fn accepted_snapshot(&self, group: GroupId) -> Option<u64> {
        self.groups.get(&group)?.raw.snap().map(|snapshot| snapshot.get_metadata().index)
    }

    /// The snapshot that [`Output::installs`] asked for is durable and in force.
    pub fn snapshot_installed(&mut self, group: GroupId, index: u64) {
        if let Some(replica) = self.touch(group) {
            replica.snapshot_installed(index);
        }
    }

    /// A snapshot sent to a replica arrived there, or did not. Until this is said, or the replica catches up, or some
    /// election timeouts have passed, it is sent nothing else; then the `Snapshot` message is repeated, perhaps with a
    /// newer checkpoint, so whoever pulls checkpoints must know those that it is pulling.
    pub fn snapshot_reported(&mut self, group: GroupId, to: ReplicaId, ok: bool) {
        if let Some(replica) = self.touch(group) {
            let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
            replica.raw.report_snapshot(to.0, status);
        }
    }

    /// A replica's node cannot be reached: what was sent to it, a snapshot too, counts as lost.
    pub fn unreachable(&mut self, group: GroupId, replica: ReplicaId) {
        if let Some(group) = self.touch(group) {
            group.forget_answer(replica.0);
            group.raw.report_unreachable(replica.0);
            group.raw.report_snapshot(replica.0, SnapshotStatus::Failure);
        }
    }

    /// Collects what all groups touched since the last flush ask for, as one round. `round` is the number it gets if
    /// there is something to append; rounds are numbered upwards from 1.
    ///
    /// # Panics
    /// If `round` is not above the rounds under way.
    pub fn flush(&mut self, round: u64) -> Output {
        let last = self.rounds.back().map_or(0, |(number, _)| *number);
        assert!(round > last, "round {round} follows round {last}");
        let mut out = Output::default();
        let mut groups = Vec::new();
        let dirty = std::mem::take(&mut self.dirty);
        // About what heartbeats take: where thousands are due at once, a list that grows is copied over and over.
        out.sends.reserve(2 * dirty.len());
        for id in dirty {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.drain(round, self.electable, &mut self.room, &mut out) {
                groups.push(id);
            }
            if group.has_more() {
                self.behind.insert(id);
            } else {
                self.behind.remove(&id);
            }
        }
        if !groups.is_empty() {
            out.round = round;
            self.rounds.push_back((round, groups));
        }
        out
    }

    /// Whether a flush would look at any group.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// One replica's view, if it is here.
    #[must_use]
    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        let replica = self.groups.get(&group)?;
        let raft = &replica.raw.raft;
        let RoleChange { role, term, leader, .. } = replica.surfaced;
        let mut progress = Vec::new();
        if role == Role::Leader && raft.state == StateRole::Leader {
            progress.extend(raft.prs().iter().map(|(id, known)| ReplicaProgress {
                replica: ReplicaId(*id),
                matched: known.matched,
                active: known.recent_active || *id == raft.id,
                snapshot: known.state == ProgressState::Snapshot,
            }));
            progress.sort_by_key(|known| known.replica);
        }
        let votes = matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate).then(|| {
            let (granted, rejected, _) = raft.prs().tally_votes();
            Votes { granted, rejected }
        });
        Some(GroupStatus {
            group,
            replica: ReplicaId(replica.replica),
            role,
            term,
            leader,
            vote: ReplicaId(raft.vote),
            votes,
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            first_index: replica.log().first(),
            last_index: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            membership: replica.membership.clone(),
            progress,
        })
    }

    /// How far a replica here has come.
    #[must_use]
    pub fn indexes(&self, group: GroupId) -> Option<Indexes> {
        let raft = &self.groups.get(&group)?.raw.raft;
        Some(Indexes { term: raft.term, commit: raft.raft_log.committed, last_index: raft.raft_log.last_index() })
    }

    /// The ticks so far.
    #[must_use]
    pub fn ticks(&self) -> TickCounts {
        self.clock.counts()
    }

    /// (role, term, leader) of a group as of the last flush: the cheap part of [`MultiRaft::status`].
    #[must_use]
    pub fn role(&self, group: GroupId) -> Option<RoleChange> {
        self.groups.get(&group).map(|replica| replica.surfaced)
    }

    /// The term of the entry at `index` in the log of a group, if the log holds it, durable or not.
    #[must_use]
    pub fn log_term(&self, group: GroupId, index: u64) -> Option<u64> {
        // The crate below says 0 of what is not there.
        self.groups.get(&group)?.raw.raft.raft_log.term(index).ok().filter(|term| *term > 0)
    }

    /// The term that a group here is in, durable or not.
    #[must_use]
    pub fn term(&self, group: GroupId) -> Option<u64> {
        Some(self.groups.get(&group)?.raw.raft.term)
    }

    /// The groups here, in order.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }
}
