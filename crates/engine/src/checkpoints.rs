//! Checkpoints of `__meta`: taken behind the applier, pulled by joiners, installed as a whole.

use base::limits::META_CHECKPOINT_BYTES;
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, Millis, Mono, NodeId};
use bytes::Bytes;
use journal::{Checkpoint, CheckpointPart};
use metadata::Metadata;
use multiraft::{Install, ReplicaProgress, Role};
use wire::{Channel, CheckpointChunk, CheckpointPull, PeerMessage, RaftMessage, SnapshotMeta};

use crate::core::{NodeCore, Stage};
use crate::groups::GroupStage;
use crate::journal_events::ReadFor;
use crate::{Effect, Work, Worked};

/// A part that does not come is asked for again after this long, ...
const PULL_RETRY: Millis = Millis(500);
/// ... and a pull that gets nothing is given up after this long; the leader offers its checkpoint again.
const PULL_GIVE_UP: Millis = Millis(10_000);
/// ... or after it has come damaged so often.
const DAMAGED_MAX: u32 = 3;
/// Whoever asked for a part within this time is pulling still: longer than a puller waits for one.
const PULLING: Millis = Millis(2_000);
/// The log may grow to so many times what makes a checkpoint due, while somebody needs the last one.
const OVERDUE: u64 = 4;

/// A checkpoint that is being pulled from a leader.
struct Pull {
    from: NodeId,
    group: GroupId,
    message: RaftMessage,
    meta: SnapshotMeta,
    data: Vec<u8>,
    /// CRC-32C of `data`: over a whole state at once it would keep the core from everything else for too long.
    crc: u32,
    /// So often all of it came, and was damaged.
    damaged: u32,
    asked: Mono,
    progressed: Mono,
}

/// What is under way with checkpoints.
#[derive(Default)]
pub(crate) struct Checkpoints {
    /// Bytes and entries applied since.
    bytes: u64,
    entries: u64,
    /// Bytes of the last one.
    size: u64,
    /// The one whose state is being encoded, and the first entry that is kept behind it.
    encoding: Option<(SnapshotMeta, u64)>,
    /// The one that is being written.
    writing: Option<(SnapshotMeta, u64)>,
    /// Our own, which is being decoded at the start: its index and bytes.
    loading: Option<(u64, u64)>,
    /// When somebody last asked for a part of the one that is there.
    served: Option<Mono>,
    /// The state is being encoded only to know its size: nothing is written, and the last one stays.
    only_measured: bool,
    pull: Option<Pull>,
    /// Pulled whole and checked; Raft has accepted it and is about to ask for its install.
    pulled: Option<(SnapshotMeta, Bytes)>,
    /// Being installed: written, and then decoded.
    installing: Option<(SnapshotMeta, Bytes)>,
}

impl Checkpoints {
    pub fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.entries += 1;
    }
}

impl NodeCore {
    /// Takes a checkpoint of `__meta` when its log has grown enough. State, index, term and membership are of one
    /// moment: the tables are cloned between two entries.
    pub(crate) fn drive_checkpoints(&mut self) {
        let Checkpoints { bytes, entries, size, encoding, writing, installing, .. } = &self.checkpoints;
        // A large state is not written again for every small change to it.
        let enough = META_CHECKPOINT_BYTES.max(size / 2);
        let due = *bytes >= enough
            || *entries >= self.config.checkpoint_entries && *bytes >= size / 64
            || self.room.is_due(self.config.checkpoint_bytes_max, self.now.mono);
        let busy = encoding.is_some() || writing.is_some() || installing.is_some() || self.disk_full;
        if !due || busy {
            return;
        }
        // What somebody pulls is not replaced under its hands, and the log behind it stays: under load it would otherwise
        // begin anew each time, and never have a whole one.
        let held = *bytes < enough * OVERDUE && self.checkpoint_is_needed();
        mark_if(Mark::CheckpointHeldBack, || held);
        if held && !self.room.is_due(self.config.checkpoint_bytes_max, self.now.mono) {
            return;
        }
        let Some(group) = self.groups.get(&GroupId::META).filter(|g| g.running()) else { return };
        if group.applied != self.metadata.applied {
            return;
        }
        mark_if(Mark::CheckpointWithRound, || !group.rounds.is_empty());
        let index = group.applied + u64::from(planted(Plant::CheckpointIndexTooHigh));
        let meta = SnapshotMeta { index, term: group.applied_term, membership: group.membership.clone() };
        let keep_from = (meta.index + 1).saturating_sub(self.config.checkpoint_keep_entries).max(1);
        self.checkpoints.encoding = Some((meta, keep_from));
        self.checkpoints.only_measured = held;
        if !held {
            self.checkpoints.entries = 0;
            self.checkpoints.bytes = 0;
        }
        self.room.encoding(self.now.mono);
        self.effects.push(Effect::Work(Work::Encode { index, state: Box::new(self.metadata.clone()) }));
    }

    /// Somebody pulls it, or is there and has still to continue behind it.
    fn checkpoint_is_needed(&self) -> bool {
        let now = self.now.mono;
        let pulling = self.checkpoints.served.is_some_and(|at| now.since(at) < PULLING);
        let keep_from = (self.metadata.applied + 1).saturating_sub(self.config.checkpoint_keep_entries);
        let waits = |of: &ReplicaProgress| {
            let node = self.peers.meta_node(&self.metadata, of.replica).filter(|node| self.peers.reachable(*node, now));
            of.matched + 1 < keep_from && node.is_some()
        };
        pulling || self.raft.status(GroupId::META).is_some_and(|it| it.progress.iter().any(waits))
    }

    pub(crate) fn worked(&mut self, worked: Worked) {
        match worked {
            Worked::Encoded { index, bytes } => self.encoded(index, bytes),
            Worked::Decoded { index, state } => self.decoded(index, state),
        }
    }

    /// The state of a checkpoint of our own is there: it is written.
    fn encoded(&mut self, index: u64, state: Bytes) {
        let Some((meta, keep_from)) = self.checkpoints.encoding.take_if(|(meta, _)| meta.index == index) else {
            mark(Mark::EncodedInVain);
            return; // One from a leader is being installed meanwhile.
        };
        let Some(group) = self.groups.get(&GroupId::META) else { return };
        let (size, max) = (state.len() as u64, self.config.checkpoint_bytes_max);
        self.checkpoints.size = size;
        self.room.encoded(size);
        if std::mem::take(&mut self.checkpoints.only_measured) {
            return;
        }
        if size > max {
            // What makes it grow is refused long before. If it came about all the same, ending every node would not help:
            // without a checkpoint the log is kept, and what is deleted makes the state smaller.
            return self.effects.push(Effect::Warning(format!(
                "the state of __meta has {size} bytes, more than a checkpoint may have ({max}): none is made, and the log \
                 is kept. Delete topics, VMs or keys"
            )));
        }
        let checkpoint = Checkpoint {
            group: GroupId::META,
            replica: group.replica,
            meta: meta.clone(),
            state,
            install: false,
            keep_from,
            hard_state: None,
        };
        self.checkpoints.writing = Some((meta, keep_from));
        self.journal.checkpoint(checkpoint);
    }

    /// A checkpoint is durable: a birth, one of our own, or an installed one.
    pub(crate) fn checkpoint_done(&mut self, group: GroupId, index: u64) {
        mark_if(Mark::CheckpointEndedAfterRemoval, || !self.groups.contains_key(&group));
        let Some(entry) = self.groups.get(&group) else { return };
        if let GroupStage::Birth(birth) = &entry.stage {
            if birth.meta.index == index {
                self.born(group);
            }
            return;
        }
        if let Some((_, state)) = self.checkpoints.installing.as_ref().filter(|(meta, _)| meta.index == index) {
            return self.effects.push(Effect::Work(Work::Decode { index, bytes: state.clone() }));
        }
        if let Some((meta, keep_from)) = self.checkpoints.writing.take_if(|(meta, _)| meta.index == index) {
            self.raft.checkpointed(group, meta, keep_from);
        }
    }

    // ---- Pulling, as a follower ----

    /// A leader wants its checkpoint installed. The bytes come first: Raft sees the message when they are here.
    pub(crate) fn pull_checkpoint(&mut self, from: NodeId, group: GroupId, message: RaftMessage) {
        let Some(meta) = message.snapshot.clone() else { return };
        let behind = self.groups.get(&group).is_some_and(|g| g.running() && meta.index > g.applied);
        if !behind || group != GroupId::META || self.checkpoints.installing.is_some() {
            // Raft knows what to answer to a snapshot that is not needed.
            mark(Mark::SnapshotNotPulled);
            let _ = self.raft.step(group, message);
            return;
        }
        if let Some(pull) = &mut self.checkpoints.pull
            && pull.from == from
            && pull.meta == meta
        {
            mark(Mark::SnapshotOfferedWhilePulling);
            pull.message = message;
            return;
        }
        let now = self.now.mono;
        mark_if(Mark::PullReplaced, || self.checkpoints.pull.is_some());
        self.checkpoints.pull = Some(Pull {
            from,
            group,
            message,
            meta,
            data: Vec::new(),
            crc: 0,
            damaged: 0,
            asked: now,
            progressed: now,
        });
        self.ask_for_part();
    }

    fn ask_for_part(&mut self) {
        let Some(pull) = &mut self.checkpoints.pull else { return };
        pull.asked = self.now.mono;
        let ask = CheckpointPull { group: pull.group, index: pull.meta.index, offset: pull.data.len() as u64 };
        let to = pull.from;
        self.send(to, Channel::Bulk, PeerMessage::CheckpointPull(ask));
    }

    pub(crate) fn checkpoints_tick(&mut self) {
        let Some(pull) = &self.checkpoints.pull else { return };
        if self.now.mono.since(pull.progressed) > PULL_GIVE_UP {
            mark(Mark::PullGivenUp);
            self.checkpoints.pull = None;
        } else if self.now.mono.since(pull.asked) > PULL_RETRY {
            mark(Mark::PullAskedAgain);
            self.ask_for_part();
        }
    }

    pub(crate) fn take_chunk(&mut self, from: NodeId, chunk: CheckpointChunk) {
        let Some(pull) = &mut self.checkpoints.pull else { return };
        if pull.from != from || pull.group != chunk.group || pull.meta.index != chunk.index {
            return;
        }
        if chunk.total == 0 || chunk.total > self.config.checkpoint_bytes_max {
            self.checkpoints.pull = None;
            return;
        }
        if chunk.offset != pull.data.len() as u64 || chunk.data.is_empty() {
            mark(Mark::PullPartTwice);
            return;
        }
        if pull.data.is_empty() {
            // At once, so that what came is not moved each time that there is no room. It takes memory as it is filled.
            // Where that cannot be had, it grows as it comes.
            let _ = pull.data.try_reserve_exact(usize::try_from(chunk.total).unwrap_or(0));
        }
        pull.data.extend_from_slice(&chunk.data);
        pull.crc = crc32c::crc32c_append(pull.crc, &chunk.data);
        pull.progressed = self.now.mono;
        if (pull.data.len() as u64) < chunk.total {
            return self.ask_for_part();
        }
        let Some(pull) = self.checkpoints.pull.take() else { return };
        let sound = pull.data.len() as u64 == chunk.total && pull.crc == chunk.crc;
        if !sound && !planted(Plant::DamagedCheckpointTaken) {
            return self.pull_anew(pull);
        }
        // Raft may refuse the snapshot, or ignore it without a word, because its term is over by now. The leader offers
        // one again.
        let _ = self.raft.step(pull.group, pull.message);
        if self.raft.accepted_snapshot(pull.group) == Some(pull.meta.index) {
            self.checkpoints.pulled = Some((pull.meta, Bytes::from(pull.data)));
        } else {
            mark(Mark::PulledCheckpointRefused);
        }
    }

    /// What came is not what was sent. No part says by itself whether it is sound, so none is kept; the first one is asked
    /// for again at one of the next ticks.
    fn pull_anew(&mut self, pull: Pull) {
        let (index, from) = (pull.meta.index, pull.from);
        self.effects.push(Effect::Warning(format!(
            "the checkpoint of __meta at index {index} does not have the checksum that node {from} says: it was damaged on \
             its way. Nothing of it is used; it is pulled anew"
        )));
        // Always damaged, it is left alone for a while: the leader offers one again.
        let again = pull.damaged + 1 < DAMAGED_MAX;
        self.checkpoints.pull = again.then_some(Pull { data: Vec::new(), crc: 0, damaged: pull.damaged + 1, ..pull });
    }

    /// Raft accepted the snapshot: state and log are replaced, together, once the checkpoint is durable.
    pub(crate) fn install(&mut self, install: Install) {
        let pulled = self.checkpoints.pulled.take().filter(|(meta, _)| *meta == install.meta);
        let Some((_, state)) = pulled else {
            return self.fatal(format!("Raft installs a checkpoint of group {} that was not pulled", install.group));
        };
        let Some(group) = self.groups.get(&install.group) else { return };
        let checkpoint = Checkpoint {
            group: install.group,
            replica: group.replica,
            meta: install.meta.clone(),
            state: state.clone(),
            install: true,
            keep_from: install.meta.index + 1,
            hard_state: install.hard_state,
        };
        mark(Mark::InstallBegun);
        mark_if(Mark::CheckpointSuperseded, || self.checkpoints.writing.is_some());
        (self.checkpoints.encoding, self.checkpoints.writing) = (None, None);
        self.checkpoints.installing = Some((install.meta, state));
        self.journal.checkpoint(checkpoint);
    }

    /// The state of the checkpoint that was loaded at the start is there, or that of an installed one, which is durable: state
    /// and log are replaced, together.
    fn decoded(&mut self, index: u64, state: Result<Box<Metadata>, String>) {
        if let Some((_, bytes)) = self.checkpoints.loading.take_if(|(of, _)| *of == index) {
            return self.checkpoint_loaded(bytes, state);
        }
        let Some((meta, bytes)) = self.checkpoints.installing.take_if(|(meta, _)| meta.index == index) else { return };
        let group = GroupId::META;
        match state {
            Ok(metadata) => self.adopt_metadata(*metadata),
            Err(error) => return self.fatal(format!("the installed checkpoint of __meta is unreadable: {error}")),
        }
        if self.stage == Stage::Stopped {
            return;
        }
        mark(Mark::CheckpointInstalled);
        self.checkpoints.size = bytes.len() as u64;
        self.room.replaced(bytes.len() as u64);
        self.checkpoints.entries = 0;
        self.checkpoints.bytes = 0;
        if let Some(entry) = self.groups.get_mut(&group) {
            entry.applied = meta.index;
            entry.applied_term = meta.term;
            entry.membership = meta.membership;
        }
        self.fail_replaced(group);
        self.raft.snapshot_installed(group, meta.index);
        self.effects.push(Effect::Formed);
        self.meta_advanced();
    }

    // ---- Serving, as a leader ----

    pub(crate) fn take_pull(&mut self, from: NodeId, pull: &CheckpointPull) {
        if self.stage != Stage::Running {
            mark(Mark::PullAtRestart);
            return; // The journal is not there yet. Whoever pulled from the process before asks again.
        }
        // Without room for another read it is not answered, and asks again.
        let serve = ReadFor::Serve { to: from, group: pull.group, index: pull.index };
        let Some(token) = self.reads.begin_for_others(serve) else { return };
        self.checkpoints.served = Some(self.now.mono);
        self.journal.read_checkpoint(token, pull.group, pull.offset, self.config.checkpoint_part_bytes);
    }

    pub(crate) fn serve_part(&mut self, to: NodeId, group: GroupId, index: u64, part: Option<CheckpointPart>) {
        let chunk = match part.filter(|part| part.meta.index == index) {
            Some(part) => {
                CheckpointChunk { group, index, offset: part.offset, total: part.total, crc: part.crc, data: part.data }
            }
            None => {
                // Replaced by a newer one meanwhile: Raft is told, so that it offers that.
                mark(Mark::PulledCheckpointGone);
                let leads = self.groups.get(&group).is_some_and(|g| g.role == Role::Leader);
                if let Some(replica) = self.replica_on(group, to).filter(|_| leads) {
                    self.raft.snapshot_reported(group, replica, false);
                }
                CheckpointChunk { group, index, offset: 0, total: 0, crc: 0, data: Bytes::new() }
            }
        };
        self.send(to, Channel::Bulk, PeerMessage::CheckpointChunk(chunk));
    }

    // ---- Loading our own, at recovery ----

    pub(crate) fn load_checkpoint(&mut self, group: GroupId, total: u64) {
        // All of it at once: a buffer that grows moves what it holds, again and again.
        self.load_next(group, Vec::with_capacity(usize::try_from(total).unwrap_or_default()));
    }

    fn load_next(&mut self, group: GroupId, loaded: Vec<u8>) {
        let offset = loaded.len() as u64;
        let token = self.reads.begin(ReadFor::Load { group, loaded });
        self.journal.read_checkpoint(token, group, offset, self.config.checkpoint_part_bytes);
    }

    pub(crate) fn load_part(&mut self, group: GroupId, mut loaded: Vec<u8>, part: CheckpointPart) {
        loaded.extend_from_slice(&part.data);
        if (loaded.len() as u64) < part.total && !part.data.is_empty() {
            return self.load_next(group, loaded);
        }
        let Some(index) = self.groups.get(&group).map(|entry| entry.applied) else { return };
        self.checkpoints.loading = Some((index, loaded.len() as u64));
        self.effects.push(Effect::Work(Work::Decode { index, bytes: loaded.into() }));
    }
}
