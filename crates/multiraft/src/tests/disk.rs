//! A node's disk: what is durable, and what is on its way.

use std::collections::{BTreeMap, VecDeque};

use wire::{Entry, HardState, SnapshotMeta};

use crate::{GroupAppend, GroupInit, Install};

use super::GROUP;

/// A checkpoint with the state that it stands for: the entries applied so far.
#[derive(Clone, Default)]
pub struct Checkpoint {
    pub meta: SnapshotMeta,
    pub state: Vec<Entry>,
}

/// What survives a crash.
#[derive(Clone, Default)]
pub struct Durable {
    pub hard_state: HardState,
    pub entries: BTreeMap<u64, Entry>,
    pub checkpoint: Checkpoint,
}

pub struct Round {
    pub number: u64,
    pub done_ms: u64,
    pub append: GroupAppend,
}

#[derive(Default)]
pub struct Disk {
    pub durable: Durable,
    /// In order.
    pub rounds: VecDeque<Round>,
    pub install: Option<(u64, Install, Checkpoint)>,
}

impl Durable {
    pub fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(0).max(self.checkpoint.meta.index)
    }

    pub fn write(&mut self, append: &GroupAppend) {
        if let Some(state) = append.hard_state {
            assert!(state.term >= self.hard_state.term, "a term goes backwards on disk");
            self.hard_state = state;
        }
        if let Some(first) = append.entries.first() {
            assert!(first.index <= self.last() + 1, "a gap in the log on disk");
            self.entries.split_off(&first.index);
        }
        self.entries.extend(append.entries.iter().map(|entry| (entry.index, entry.clone())));
        assert!(self.hard_state.commit <= self.last(), "commits what is not on disk");
    }

    pub fn install(&mut self, install: &Install, checkpoint: &Checkpoint) {
        if let Some(state) = install.hard_state {
            assert!(state.term >= self.hard_state.term, "a term goes backwards on disk");
            self.hard_state = state;
        }
        self.entries.clear();
        self.checkpoint = checkpoint.clone();
    }

    /// Replaces the log up to `meta.index` (but for `keep` entries) by a checkpoint. Returns the first index kept.
    pub fn checkpoint(&mut self, checkpoint: Checkpoint, keep: u64) -> u64 {
        let first = (checkpoint.meta.index + 1).saturating_sub(keep);
        self.entries = self.entries.split_off(&first);
        self.checkpoint = checkpoint;
        self.entries.keys().next().copied().unwrap_or(self.checkpoint.meta.index + 1)
    }

    /// What a replica starts from after a crash.
    pub fn init(&self, replica: u64, campaign: bool) -> GroupInit {
        let meta = self.checkpoint.meta.clone();
        let mut term_runs: Vec<(u64, u64)> = Vec::new();
        for entry in self.entries.values() {
            if term_runs.last().is_none_or(|(_, term)| *term != entry.term) {
                term_runs.push((entry.index, entry.term));
            }
        }
        GroupInit {
            group: GROUP,
            replica: base::ReplicaId(replica),
            hard_state: self.hard_state,
            membership: meta.membership.clone(),
            first_index: self.entries.keys().next().copied().unwrap_or(meta.index + 1),
            last_index: self.last(),
            term_runs,
            applied: meta.index,
            unapplied: self.entries.range(meta.index + 1..).map(|(_, entry)| entry.clone()).collect(),
            checkpoint: meta,
            campaign,
        }
    }
}
