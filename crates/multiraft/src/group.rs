//! One replica: the crate's `RawNode`, and the discipline around it that decides what may leave, and when.
//!
//! Every write that this replica asks for has a sequence number. A message waits for one of two of them:
//!
//! - `vote_seq`, the last write that changed term or vote: whatever speaks only of the term (a leader's appends and
//!   heartbeats, answers to heartbeats);
//! - `write_seq`, the last write at all: whatever promises something about the log or a vote (acknowledgements, votes
//!   asked for and given).
//!
//! So nothing of a term leaves before the term is durable, and heartbeats never wait for bulk data. An install of a
//! checkpoint is a write, too, with nothing before it under way and nothing after it begun until it is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::limits::{APPLY_ENTRY_BYTES_MIN, RAFT_MESSAGE_BYTES_MAX};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, ReplicaId, hash64};
use bytes::Bytes;
use raft::eraftpb::EntryType;
use raft::{RawNode, Ready, StateRole};
use wire::{Entry, EntryKind, HardState, Membership, MembershipChange, RaftMessage, RaftMessageKind, SnapshotMeta};

use crate::api::{
    Committed, GroupAppend, GroupInit, Install, LogRead, MultiRaftConfig, Outgoing, Output, ReadState, Role, RoleChange,
};
use crate::convert;
use crate::init::raft_config;
use crate::log::GroupLog;

/// Messages of one replica that wait for its disk; beyond it the oldest are dropped, as a network may do.
const HELD_MAX: usize = 1_024;
/// Replicas that left, remembered to refuse what they still send.
const DEPARTED_MAX: usize = 256;
/// Election timeouts for which a leader believes that a snapshot it sent is still on its way.
const SNAPSHOT_PATIENCE: u32 = 3;

/// A write that is being collected.
struct Write {
    append: GroupAppend,
    seq: u64,
    /// The last of the crate's Readies that it covers.
    number: u64,
}

/// A write that was handed out.
struct Outstanding {
    round: u64,
    seq: u64,
    number: u64,
}

/// A checkpoint on its way to the disk.
struct Installing {
    index: u64,
    seq: u64,
    number: u64,
    /// Its Ready brought entries as well: only their write completes that Ready.
    carries_entries: bool,
}

/// See the module.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) replica: u64,
    seed: u64,
    pub(crate) raw: RawNode<GroupLog>,
    /// (term it is for, ticks).
    timeout: (u64, usize),
    /// The hard state that was last handed out.
    emitted: HardState,
    write_seq: u64,
    vote_seq: u64,
    durable_seq: u64,
    outstanding: VecDeque<Outstanding>,
    install: Option<Installing>,
    /// What must wait for the install.
    deferred: Option<Write>,
    /// Applied as of an install whose Ready is not complete yet.
    installed_index: Option<u64>,
    held: VecDeque<(u64, RaftMessage)>,
    pub(crate) surfaced: RoleChange,
    /// Last index handed out as committed.
    surfaced_index: u64,
    /// Reads under way, and those that will never be answered.
    pub(crate) reads: BTreeSet<Bytes>,
    dropped_reads: Vec<Bytes>,
    pub(crate) membership: Membership,
    /// The crate was told that this replica is a learner although the snapshot's membership does not say so yet.
    self_added: bool,
    /// A transfer has put off the leader's look whether it is heard by a quorum.
    check_put_off: bool,
    departed: BTreeSet<u64>,
    pub(crate) campaign_wanted: bool,
    /// Heartbeats have come due since the last ones left.
    beat_due: bool,
    /// As leader: ticks since there was anything to do (see [`crate::rest`]).
    pub(crate) calm_ticks: u32,
    /// As leader: replicas that answered since their nodes came back last.
    pub(crate) answered: BTreeSet<u64>,
    /// As leader: ticks, and (snapshot, election timeouts since) of each replica that waits for one.
    led_ticks: usize,
    waiting_for_snapshot: BTreeMap<u64, (u64, u32)>,
    /// As leader: (last acknowledged, answers to heartbeats since) of each learner that acknowledges nothing (see
    /// [`crate::pace`]).
    pub(crate) unacknowledged: BTreeMap<u64, (u64, u32)>,
}

impl Group {
    pub(crate) fn new(config: &MultiRaftConfig, init: GroupInit, token: u64, logger: &slog::Logger) -> Group {
        let (id, replica, applied) = (init.group, init.replica.0, init.applied);
        let emitted = init.known_hard_state();
        let membership = init.membership.clone();
        let campaign_wanted = init.campaign;
        let log = init.log(token);
        let raw = RawNode::new(&raft_config(config, replica, applied), log, logger)
            .expect("configuration and state were checked");
        let surfaced = RoleChange { group: id, role: Role::Follower, term: emitted.term, leader: ReplicaId(0) };
        let mut group = Group {
            id,
            replica,
            seed: config.seed,
            raw,
            timeout: (u64::MAX, 0),
            emitted,
            write_seq: 0,
            vote_seq: 0,
            durable_seq: 0,
            outstanding: VecDeque::new(),
            install: None,
            deferred: None,
            installed_index: None,
            held: VecDeque::new(),
            surfaced,
            surfaced_index: applied,
            reads: BTreeSet::new(),
            dropped_reads: Vec::new(),
            membership: normalized(membership),
            self_added: false,
            check_put_off: false,
            departed: BTreeSet::new(),
            campaign_wanted,
            beat_due: false,
            calm_ticks: 0,
            answered: BTreeSet::new(),
            led_ticks: 0,
            waiting_for_snapshot: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
        };
        group.pace_learners();
        group.settle();
        group
    }

    pub(crate) fn log(&self) -> &GroupLog {
        self.raw.store()
    }

    /// Whether this replica leads in `term`, and everybody may know.
    pub(crate) fn leads(&self, term: u64) -> bool {
        let raft = &self.raw.raft;
        self.surfaced.role == Role::Leader
            && self.surfaced.term == term
            && raft.state == StateRole::Leader
            && raft.term == term
    }

    pub(crate) fn is_installing(&self) -> bool {
        self.install.is_some()
    }

    pub(crate) fn has_departed(&self, replica: u64) -> bool {
        self.departed.contains(&replica)
    }

    /// Whether everything this replica knows is durable: the crate assumes so when it campaigns and when it wins.
    pub(crate) fn is_quiet(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.outstanding.is_empty()
            && self.install.is_none()
            && self.deferred.is_none()
            && self.installed_index.is_none()
            && self.raw.snap().is_none()
            && log.unstable_entries().is_empty()
            && log.persisted == log.last_index()
            || planted(Plant::CampaignBeforeLogDurable)
    }

    /// To be called after whatever the crate was made to do: puts the seeded election timeout in the place of the one
    /// that the crate drew, and gives up what a leader had under way once it is none.
    pub(crate) fn settle(&mut self) {
        let raft = &mut self.raw.raft;
        if self.timeout.0 != raft.term {
            let least = raft.election_timeout();
            let parts = [self.seed, self.replica, self.id.0, raft.term];
            let parts = if planted(Plant::SameTimeouts) { &[][..] } else { &parts[..] };
            self.timeout = (raft.term, least + (hash64(parts) % least as u64) as usize);
        }
        if raft.randomized_election_timeout() != self.timeout.1 {
            raft.set_randomized_election_timeout(self.timeout.1);
        }
        if raft.state != StateRole::Leader || raft.term != self.surfaced.term {
            self.dropped_reads.extend(std::mem::take(&mut self.reads));
        }
        if raft.state != StateRole::Leader {
            raft.mut_store().forget_reads();
            self.beat_due = false;
        }
    }

    /// One tick. Returns whether there may be something to do.
    pub(crate) fn tick(&mut self, electable: bool, may_rest: bool) -> bool {
        let raft = &self.raw.raft;
        let due = raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if raft.state != StateRole::Leader && raft.promotable() && due && !(electable && self.is_quiet()) {
            // A campaign is due, but must wait; time passes all the same.
            mark(Mark::CampaignDeferred);
            self.raw.raft.election_elapsed += 1;
            return false;
        }
        if self.tick_at_rest(may_rest) {
            self.led_ticks += 1;
            return false;
        }
        let before = self.raw.raft.election_elapsed;
        self.mark_before_tick();
        let busy = self.raw.tick();
        self.check_put_off &= self.raw.raft.election_elapsed > before;
        self.mark_after_tick();
        if busy {
            self.settle();
        }
        if self.raw.raft.state == StateRole::Leader {
            self.beat_due |= self.raw.raft.heartbeat_elapsed() == 0;
            self.led_ticks += 1;
            if self.led_ticks.is_multiple_of(self.raw.raft.election_timeout()) {
                self.retry_snapshots();
            }
        }
        busy
    }

    /// Begins to hand leadership over. The crate counts its election timeout anew then, and with it the time until it looks
    /// whether it still hears a quorum. Between two looks that is allowed once: again and again, it would keep a leader
    /// that hears nobody.
    pub(crate) fn transfer(&mut self, to: u64) {
        let elapsed = self.raw.raft.election_elapsed;
        self.raw.transfer_leader(to);
        let raft = &mut self.raw.raft;
        if raft.election_elapsed < elapsed && std::mem::replace(&mut self.check_put_off, true) {
            raft.election_elapsed = elapsed;
        }
    }

    /// A snapshot message can be lost like any other, and nobody may be left to say so: then it is sent again.
    fn retry_snapshots(&mut self) {
        let progress = self.raw.raft.prs().iter();
        let waiting: Vec<(u64, u64)> = progress
            .filter(|(_, progress)| progress.state == raft::ProgressState::Snapshot)
            .map(|(id, progress)| (*id, progress.pending_snapshot))
            .collect();
        self.waiting_for_snapshot.retain(|id, _| waiting.iter().any(|(other, _)| other == id));
        for (id, index) in waiting {
            let known = self.waiting_for_snapshot.entry(id).or_insert((index, 0));
            *known = if known.0 == index { (index, known.1 + 1) } else { (index, 1) };
            if known.1 >= SNAPSHOT_PATIENCE {
                mark(Mark::SnapshotOfferRepeated);
                self.waiting_for_snapshot.remove(&id);
                self.raw.report_snapshot(id, raft::SnapshotStatus::Failure);
            }
        }
    }

    /// Gives up leadership and candidacy in this term. Returns whether there was any.
    pub(crate) fn step_down(&mut self) -> bool {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Follower {
            return false;
        }
        let term = raft.term;
        raft.become_follower(term, raft::INVALID_ID);
        self.settle();
        true
    }

    /// Gives up candidacy, and takes back the votes asked for that did not leave yet.
    pub(crate) fn stop_campaign(&mut self) -> bool {
        self.campaign_wanted = false;
        self.held.retain(|(_, m)| !matches!(m.kind, RaftMessageKind::Vote | RaftMessageKind::PreVote));
        self.raw.raft.state != StateRole::Leader && self.step_down()
    }

    fn try_campaign(&mut self, electable: bool) {
        let raft = &self.raw.raft;
        // A wish that could not be granted for long must not be held against a leader that came in the meantime.
        self.campaign_wanted &= raft.leader_id == raft::INVALID_ID;
        if !self.campaign_wanted || !electable || !raft.promotable() || !self.is_quiet() {
            return;
        }
        let (applied, committed) = (raft.raft_log.applied, raft.raft_log.committed);
        if self.log().has_membership_between(applied, committed) {
            return;
        }
        self.campaign_wanted = false;
        // The crate only ever answers Ok here.
        let _ = self.raw.campaign();
        self.settle();
    }

    pub(crate) fn persisted(&mut self, round: u64) {
        let mut number = 0;
        while self.outstanding.front().is_some_and(|write| write.round <= round) {
            let Some(write) = self.outstanding.pop_front() else { break };
            self.durable_seq = write.seq;
            number = number.max(write.number);
        }
        if number > 0 {
            self.raw.on_persist_ready(number);
            self.finish_install();
            self.settle();
        }
    }

    pub(crate) fn snapshot_installed(&mut self, index: u64) {
        if self.install.as_ref().is_none_or(|install| install.index != index) {
            return;
        }
        let Some(install) = self.install.take() else { return };
        self.durable_seq = install.seq;
        self.installed_index = Some(index);
        if !install.carries_entries {
            self.raw.on_persist_ready(install.number);
        }
        self.finish_install();
        self.settle();
    }

    /// The checkpoint's effect is applied once the crate knows that it is durable.
    fn finish_install(&mut self) {
        if let Some(index) = self.installed_index.filter(|index| self.raw.raft.raft_log.persisted >= *index) {
            self.installed_index = None;
            if index > self.raw.raft.raft_log.applied {
                self.raw.advance_apply_to(index);
            }
        }
    }

    pub(crate) fn applied(&mut self, index: u64) {
        let log = &self.raw.raft.raft_log;
        if index <= log.applied || self.install.is_some() || self.installed_index.is_some() {
            return;
        }
        assert!(index <= self.surfaced_index, "group {}: applied {index}, which was never handed out", self.id);
        let last = log.last_index();
        self.raw.advance_apply_to(index);
        self.raw.mut_store().applied(index);
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && raft.raft_log.last_index() > last {
            // The crate appended the end of a joint change, and does not send it by itself.
            raft.bcast_append();
        }
        self.settle();
    }

    pub(crate) fn checkpointed(&mut self, meta: SnapshotMeta, first_index: u64) {
        if self.install.is_none() && self.raw.snap().is_none() && meta.index <= self.raw.raft.raft_log.applied {
            let first = first_index.min(meta.index + 1);
            self.raw.mut_store().checkpointed(meta, first);
        }
    }

    pub(crate) fn entries_fetched(&mut self, token: u64, entries: Option<Vec<Entry>>) {
        let entries = entries.map(|entries| entries.into_iter().map(convert::entry_to_raft).collect());
        for context in self.raw.mut_store().answer(token, entries) {
            self.raw.on_entries_fetched(context);
        }
        self.raw.mut_store().answered();
        self.settle();
    }

    /// A message that [`Group::admit`] let in.
    pub(crate) fn step(&mut self, mut message: RaftMessage) {
        if self.is_fed_enough(&message) {
            return;
        }
        let mut added = false;
        if let Some(meta) = &mut message.snapshot {
            let me = ReplicaId(self.replica);
            if convert::members(&meta.membership).all(|id| id != me) {
                // A checkpoint older than the entry that added this replica. The crate ignores snapshots that do not
                // name it, so it gets to see a learner more than the group has, until that entry is applied.
                mark(Mark::SnapshotWithoutItsReplica);
                meta.membership.learners.push(me);
                added = true;
            }
        }
        let pending = self.raw.snap().map(|snapshot| snapshot.get_metadata().index);
        self.mark_message(&message);
        if planted(Plant::VoteTwice) && message.kind == RaftMessageKind::Vote && message.term == self.raw.raft.term {
            self.raw.raft.vote = raft::INVALID_ID;
        }
        // Errors mean that the crate ignored it.
        let _ = self.raw.step(convert::message_to_raft(message));
        if self.raw.snap().map(|snapshot| snapshot.get_metadata().index) != pending {
            self.self_added = added;
        }
        self.settle();
    }

    /// Whether more is committed than was handed out.
    pub(crate) fn has_more(&self) -> bool {
        self.raw.raft.raft_log.has_next_entries_since(self.surfaced_index)
    }

    /// Everything to be done since the last time, as part of round `round`, but of what is committed no more than there is
    /// `room` for. Returns whether something is written.
    pub(crate) fn drain(&mut self, round: u64, electable: bool, room: &mut u64, out: &mut Output) -> bool {
        self.try_campaign(electable);
        self.release(out);
        let mut write = if self.install.is_none() { self.deferred.take() } else { None };
        let mut looked = false;
        loop {
            if self.raw.snap().is_some_and(|snapshot| !snapshot.is_empty()) {
                if !self.outstanding.is_empty() || write.is_some() {
                    mark(Mark::InstallWaitedForWrite);
                    break; // An install begins only when nothing is under way.
                }
                if self.vote_changed() {
                    // The term on its own, so that answers to heartbeats do not wait for the checkpoint.
                    mark(Mark::InstallAfterItsTerm);
                    let commit = self.emitted.commit;
                    let state = HardState { commit, ..convert::hard_state_from_raft(&self.raw.raft.hard_state()) };
                    self.write_into(&mut write, state, Vec::new(), 0);
                    break;
                }
            }
            // Without room one Ready brings everything else all the same, and one entry.
            let full = looked && *room == 0 && self.has_more();
            if full || !self.raw.has_ready() {
                break;
            }
            self.one_ready(&mut write, room, out);
            self.settle();
            looked = true;
        }
        for (token, low, high, bytes_max) in self.raw.mut_store().take_reads() {
            out.reads.push(LogRead { group: self.id, token, low, high, bytes_max });
        }
        self.beat_due &= !self.beat_left(out);
        self.surface(out);
        let Some(write) = write else { return false };
        self.outstanding.push_back(Outstanding { round, seq: write.seq, number: write.number });
        if planted(Plant::LeaderCountsUndurable) && self.raw.raft.state == StateRole::Leader {
            self.raw.on_persist_ready(write.number);
        }
        out.appends.push(write.append);
        true
    }

    fn vote_changed(&self) -> bool {
        let raft = &self.raw.raft;
        (raft.term, raft.vote) != (self.emitted.term, self.emitted.vote.0)
    }

    /// What the crate asks for. A commit index goes to disk with whatever else is written, except that of a change of
    /// members, which is written at once: a replica that forgot in a crash who decides would ask those who decided
    /// before, and of them one may be gone for good.
    fn one_ready(&mut self, write: &mut Option<Write>, room: &mut u64, out: &mut Output) {
        // So few bytes that they hold no more than there is room for, were they all of the smallest entries.
        let most = *room / APPLY_ENTRY_BYTES_MIN * convert::ENTRY_OVERHEAD_BYTES as u64;
        self.raw.raft.set_max_committed_size_per_ready(most.max(1));
        let mut ready = self.raw.ready();
        let number = ready.number();
        // Only one of them is ever not empty: a leader's, or what others promise.
        let (mut messages, persisted) = (ready.take_messages(), ready.take_persisted_messages());
        if messages.is_empty() {
            messages = persisted;
        } else {
            messages.extend(persisted);
        }
        let committed = ready.take_committed_entries();
        let applied = committed.iter().map(|entry| (convert::entry_bytes(entry) as u64).max(APPLY_ENTRY_BYTES_MIN));
        *room = room.saturating_sub(applied.sum());
        for read in ready.take_read_states() {
            let context = Bytes::from(read.request_ctx);
            if self.reads.remove(&context) {
                out.read_states.push(ReadState { group: self.id, context, index: Some(read.index) });
            }
        }
        let snapshot = (!ready.snapshot().is_empty()).then(|| convert::snapshot_from_raft(ready.snapshot()));
        let entries = self.store(&mut ready, snapshot.as_ref());
        self.raw.advance_append_async(ready);

        let state = convert::hard_state_from_raft(&self.raw.raft.hard_state());
        if let Some(meta) = snapshot {
            self.begin_install(meta, state, number, !entries.is_empty(), out);
        }
        let new_members = committed.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal);
        let unsaved = new_members && state.commit > self.emitted.commit && !planted(Plant::MembersCommitNotSaved);
        if !entries.is_empty() || self.vote_changed() || unsaved {
            mark_if(Mark::WriteWaitedForInstall, || self.install.is_some());
            let mut deferred = self.deferred.take();
            let target = if self.install.is_some() { &mut deferred } else { &mut *write };
            self.write_into(target, state, entries, number);
            self.deferred = deferred;
        } else {
            self.ready_without_write(write.as_mut(), number);
        }
        for message in messages {
            self.send(message, out);
        }
        self.commit(committed, out);
    }

    /// What the crate may read from now on: its own log must have it before the Ready is advanced.
    fn store(&mut self, ready: &mut Ready, snapshot: Option<&SnapshotMeta>) -> Vec<Entry> {
        let entries = ready.take_entries();
        let log = self.raw.mut_store();
        if let Some(meta) = snapshot {
            log.install(meta.clone());
        }
        let out = entries.iter().map(convert::entry_from_raft).collect();
        log.append(entries);
        out
    }

    fn begin_install(
        &mut self,
        mut meta: SnapshotMeta,
        state: HardState,
        number: u64,
        carries_entries: bool,
        out: &mut Output,
    ) {
        if self.self_added {
            meta.membership.learners.retain(|id| id.0 != self.replica);
            self.raw.mut_store().set_checkpoint(meta.clone());
        }
        self.change_membership(meta.membership.clone());
        self.write_seq += 1;
        self.install = Some(Installing { index: meta.index, seq: self.write_seq, number, carries_entries });
        self.surfaced_index = meta.index;
        let state = HardState { commit: meta.index, ..state };
        self.emitted = state;
        out.memberships.push((self.id, meta.membership.clone()));
        out.installs.push(Install { group: self.id, meta, hard_state: Some(state) });
    }

    /// Adds to the write that is being collected, or begins one.
    fn write_into(&mut self, write: &mut Option<Write>, state: HardState, entries: Vec<Entry>, number: u64) {
        if write.is_none() {
            self.write_seq += 1;
        }
        let (group, seq) = (self.id, self.write_seq);
        let write = write.get_or_insert_with(|| Write {
            append: GroupAppend { group, hard_state: None, entries: Vec::new() },
            seq,
            number: 0,
        });
        write.number = write.number.max(number);
        if (state.term, state.vote) != (self.emitted.term, self.emitted.vote) {
            self.vote_seq = write.seq;
        }
        if state != self.emitted {
            let vote = if planted(Plant::VoteNotSaved) { ReplicaId(0) } else { state.vote };
            write.append.hard_state = Some(HardState { vote, ..state });
            self.emitted = state;
        }
        if let Some(first) = entries.first() {
            let keep = write.append.entries.partition_point(|entry| entry.index < first.index);
            write.append.entries.truncate(keep);
        }
        write.append.entries.extend(entries);
    }

    /// A Ready that asks for nothing of the disk is complete when those before it are.
    fn ready_without_write(&mut self, write: Option<&mut Write>, number: u64) {
        if let Some(write) = self.deferred.as_mut().or(write) {
            write.number = write.number.max(number);
        } else if let Some(install) = &mut self.install {
            install.number = install.number.max(number);
        } else if let Some(last) = self.outstanding.back_mut() {
            last.number = last.number.max(number);
        } else {
            self.raw.on_persist_ready(number);
        }
    }

    fn send(&mut self, message: raft::eraftpb::Message, out: &mut Output) {
        let Some(message) = convert::message_from_raft(message) else { return };
        let promises = matches!(
            message.kind,
            RaftMessageKind::AppendResponse
                | RaftMessageKind::Vote
                | RaftMessageKind::VoteResponse
                | RaftMessageKind::PreVote
                | RaftMessageKind::PreVoteResponse
        );
        let mut gate = if promises { self.write_seq } else { self.vote_seq };
        if promises && planted(Plant::ForgetPersistedMessages) {
            return;
        }
        let leaves_early = match promises {
            true => planted(Plant::AcknowledgeBeforeDurable),
            false => planted(Plant::TermNeedNotBeDurable) || planted(Plant::VoteNotAwaited),
        };
        if leaves_early {
            gate = 0;
        }
        if gate <= self.durable_seq {
            self.emit(message, out);
            return;
        }
        if self.held.len() >= HELD_MAX {
            mark(Mark::HeldMessagesOverflowed);
            self.held.pop_front();
        }
        self.held.push_back((gate, message));
    }

    /// What waited for the disk and need not wait any longer.
    fn release(&mut self, out: &mut Output) {
        if self.held.iter().all(|(gate, _)| *gate > self.durable_seq) {
            return;
        }
        let term = self.raw.raft.term;
        let held = std::mem::take(&mut self.held);
        for (gate, message) in held {
            if gate > self.durable_seq {
                self.held.push_back((gate, message));
            } else if message.term >= term {
                self.emit(message, out);
            } else {
                // What an older term promised may be overwritten already; nobody needs it any more.
                mark(Mark::HeldMessageOutdated);
            }
        }
    }

    fn emit(&self, message: RaftMessage, out: &mut Output) {
        let group = self.id;
        let bytes_max = usize::try_from(RAFT_MESSAGE_BYTES_MAX).unwrap_or(usize::MAX);
        convert::split_append(message, bytes_max, |message| {
            let beat = self.beat_due && message.kind == RaftMessageKind::Heartbeat;
            out.sends.push(Outgoing { group, message, beat });
        });
    }

    /// Whether heartbeats that were due left with what was drained just now.
    fn beat_left(&self, out: &Output) -> bool {
        self.beat_due && out.sends.iter().rev().take_while(|sent| sent.group == self.id).any(|sent| sent.beat)
    }

    fn commit(&mut self, committed: Vec<raft::eraftpb::Entry>, out: &mut Output) {
        let entries: Vec<Entry> = committed.iter().map(convert::entry_from_raft).collect();
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        self.surfaced_index = last;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Membership) {
            self.apply_membership(&entry.data, out);
        }
        match out.committed.last_mut().filter(|committed| committed.group == self.id) {
            Some(committed) => committed.entries.extend(entries),
            None => out.committed.push(Committed { group: self.id, entries }),
        }
    }

    /// Membership entries are in force as soon as they are committed, before they are applied.
    fn apply_membership(&mut self, data: &[u8], out: &mut Output) {
        let change = convert::membership_change(data).expect("checked when it entered the log");
        // What does not fit the configuration changes nothing, on all replicas alike.
        let Ok(mut state) = self.raw.apply_conf_change(&convert::conf_change(&change)) else { return };
        if planted(Plant::JointLeftAtOnce)
            && let Ok(left) = self.raw.apply_conf_change(&convert::conf_change(&MembershipChange::default()))
        {
            state = left;
        }
        mark_if(Mark::JointConsensusEntered, || change.steps.len() > 1);
        mark_if(Mark::JointConsensusLeft, || change.steps.is_empty());
        let me = ReplicaId(self.replica);
        let mut membership = convert::membership(&state);
        self.self_added &= change.steps.iter().all(|step| step.replica != me);
        if self.self_added {
            membership.learners.retain(|id| *id != me);
        }
        self.change_membership(membership.clone());
        out.memberships.push((self.id, membership));
        if self.raw.raft.state == StateRole::Leader && !self.raw.raft.promotable() {
            self.take_leave();
        }
    }

    fn change_membership(&mut self, membership: Membership) {
        let members: BTreeSet<ReplicaId> = convert::members(&membership).collect();
        let left = convert::members(&self.membership).filter(|id| !members.contains(id));
        self.departed.extend(left.map(|id| id.0));
        while self.departed.len() > DEPARTED_MAX {
            self.departed.pop_first();
        }
        self.membership = membership;
        self.pace_learners();
    }

    /// This leader is no voter any more (Raft section 6): it tells everybody what is committed, asks the best voter to
    /// take over, and steps down. The crate would go on, and panic.
    fn take_leave(&mut self) {
        let raft = &mut self.raw.raft;
        raft.bcast_append();
        let last = raft.raft_log.last_index();
        let conf = raft.prs().conf().to_conf_state();
        let caught_up = |id: &&u64| raft.prs().get(**id).is_some_and(|progress| progress.matched == last);
        if let Some(heir) = conf.get_voters().iter().filter(caught_up).min().copied() {
            raft.send_timeout_now(heir);
        }
        self.step_down();
    }

    /// Role as the world may know it: nobody leads before the term is durable.
    fn current_role(&self) -> RoleChange {
        let raft = &self.raw.raft;
        let durable = self.vote_seq <= self.durable_seq && !self.vote_changed();
        let lead_early = planted(Plant::LeadBeforeDurable) || planted(Plant::VoteNotAwaited);
        let (role, leader) = match raft.state {
            StateRole::Leader if !durable && !lead_early => {
                mark(Mark::LeaderBeforeItsTermWasDurable);
                (Role::Candidate, 0)
            }
            StateRole::Leader => (Role::Leader, raft.id),
            StateRole::Candidate => (Role::Candidate, raft.leader_id),
            StateRole::PreCandidate => (Role::PreCandidate, raft.leader_id),
            StateRole::Follower => (Role::Follower, raft.leader_id),
        };
        RoleChange { group: self.id, role, term: raft.term, leader: ReplicaId(leader) }
    }

    fn surface(&mut self, out: &mut Output) {
        let role = self.current_role();
        if role != self.surfaced {
            self.mark_role(role);
            self.surfaced = role;
            out.roles.push(role);
        }
        let group = self.id;
        let dropped = std::mem::take(&mut self.dropped_reads);
        out.read_states.extend(dropped.into_iter().map(|context| ReadState { group, context, index: None }));
    }
}

fn normalized(mut membership: Membership) -> Membership {
    let Membership { voters, learners, voters_outgoing, learners_next, .. } = &mut membership;
    for list in [voters, learners, voters_outgoing, learners_next] {
        list.sort_unstable();
    }
    membership
}
