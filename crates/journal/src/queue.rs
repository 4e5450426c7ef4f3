//! What waits to be written, and what may overtake what.
//!
//! Rounds keep their order among each other. A checkpoint stands at its place in the queue while its file is written,
//! and the rest goes on around it, with one exception: what comes after an installed snapshot (or a birth, or a
//! checkpoint with a hard state) of the same group waits for it, and with a waiting round all rounds behind it. An
//! ordinary checkpoint only takes effect backwards, so rounds of its own group may pass it. Checkpoints and removals of
//! one group never pass each other.

use std::collections::{BTreeMap, VecDeque};

use base::GroupId;
use base::simulation::{Mark, mark};
use wire::journal::CheckpointPosition;
use wire::{Entry, HardState};

use crate::framing::RECORD_HEAD_BYTES;

/// More than a hard state ever takes: the format byte, an array head and three numbers.
const HARD_STATE_BYTES_MAX: usize = 40;

/// One record to be written.
#[derive(Debug)]
pub(crate) enum Draft {
    HardState { group: GroupId, hard_state: HardState },
    Entry { group: GroupId, entry: Entry, ordinal: u64 },
}

impl Draft {
    /// Bytes it takes in a frame, at most.
    pub(crate) fn bytes(&self) -> usize {
        RECORD_HEAD_BYTES
            + match self {
                Draft::HardState { .. } => HARD_STATE_BYTES_MAX,
                Draft::Entry { entry, .. } => entry.data.len(),
            }
    }

    fn group(&self) -> GroupId {
        match self {
            Draft::HardState { group, .. } | Draft::Entry { group, .. } => *group,
        }
    }

    fn is_entry_of(&self, of: GroupId) -> bool {
        matches!(self, Draft::Entry { group, .. } if *group == of)
    }
}

/// A round, or what is left of it.
#[derive(Debug)]
pub(crate) struct RoundDraft {
    pub number: u64,
    records: VecDeque<Draft>,
    bytes: usize,
}

impl RoundDraft {
    pub(crate) fn new(number: u64, records: VecDeque<Draft>) -> Self {
        let bytes = records.iter().map(Draft::bytes).sum();
        RoundDraft { number, records, bytes }
    }

    /// Bytes left, at most.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the next record, at most.
    pub(crate) fn front_bytes(&self) -> usize {
        self.records.front().map_or(0, Draft::bytes)
    }

    /// Takes as many records as fit into `room` bytes. Where that cuts a group in two, the first part's hard state does
    /// not claim more to be committed than the first part holds, and the second part carries the full one.
    pub(crate) fn take_part(&mut self, room: usize) -> Vec<Draft> {
        let mut part = Vec::new();
        let mut used = 0;
        while let Some(front) = self.records.front() {
            if used + front.bytes() > room {
                break;
            }
            used += front.bytes();
            part.extend(self.records.pop_front());
        }
        self.bytes -= used;
        self.carry_hard_state(&mut part);
        part
    }

    fn carry_hard_state(&mut self, part: &mut [Draft]) {
        let Some(Draft::Entry { group, entry: next, .. }) = self.records.front() else { return };
        let group = *group;
        let left = self.records.iter().take_while(|draft| draft.is_entry_of(group)).count();
        let entries = part.iter().rev().take_while(|draft| draft.is_entry_of(group)).count();
        let at = part.len() - entries;
        let last = next.index - 1;
        let Some(Draft::HardState { hard_state, .. }) =
            at.checked_sub(1).map(|at| &mut part[at]).filter(|draft| draft.group() == group)
        else {
            return;
        };
        mark(Mark::GroupCutInTwo);
        let full = *hard_state;
        hard_state.commit = full.commit.min(last);
        let carried = Draft::HardState { group, hard_state: full };
        self.bytes += carried.bytes();
        self.records.insert(left, carried);
    }
}

/// A checkpoint whose file may still be under way.
#[derive(Debug)]
pub(crate) struct CheckpointDraft {
    pub group: GroupId,
    pub position: CheckpointPosition,
    pub chunks: Vec<u32>,
    /// Its file is durable under its name, or it needs none.
    pub ready: bool,
    /// Later rounds of its group wait for it.
    pub barrier: bool,
}

#[derive(Debug)]
pub(crate) enum Item {
    Round(RoundDraft),
    Checkpoint(CheckpointDraft),
    Remove(GroupId),
}

/// Everything that waits, by when it came.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    items: BTreeMap<u64, Item>,
    next: u64,
}

impl Queue {
    /// The number that the next item gets.
    pub(crate) fn next_order(&self) -> u64 {
        self.next + 1
    }

    pub(crate) fn push(&mut self, item: Item) -> u64 {
        self.next += 1;
        self.items.insert(self.next, item);
        self.next
    }

    pub(crate) fn get_mut(&mut self, order: u64) -> Option<&mut Item> {
        self.items.get_mut(&order)
    }

    pub(crate) fn take(&mut self, order: u64) -> Option<Item> {
        self.items.remove(&order)
    }

    /// The file of that checkpoint is durable.
    pub(crate) fn ready(&mut self, order: u64) {
        if let Some(Item::Checkpoint(checkpoint)) = self.items.get_mut(&order) {
            checkpoint.ready = true;
        }
    }

    /// The item that may be written next, if any.
    pub(crate) fn next_writable(&self) -> Option<u64> {
        // Groups whose rounds wait, and those whose checkpoints and removals wait.
        let (mut rounds, mut others) = (Vec::new(), Vec::new());
        for (order, item) in &self.items {
            match item {
                Item::Round(round) => {
                    let waits = !rounds.is_empty() && round.records.iter().any(|r| rounds.contains(&r.group()));
                    return (!waits).then_some(*order);
                }
                Item::Checkpoint(checkpoint) if checkpoint.ready && !others.contains(&checkpoint.group) => {
                    return Some(*order);
                }
                Item::Checkpoint(checkpoint) => {
                    others.push(checkpoint.group);
                    if checkpoint.barrier {
                        rounds.push(checkpoint.group);
                    }
                }
                Item::Remove(group) if !others.contains(group) => return Some(*order),
                // Only a checkpoint of the same group holds it back, and rounds of the next life wait behind that one's
                // own birth.
                Item::Remove(_) => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ReplicaId;
    use bytes::Bytes;
    use wire::{EntryKind, SnapshotMeta};

    fn entry(group: u64, index: u64, bytes: usize) -> Draft {
        let entry = Entry { index, term: 1, kind: EntryKind::Batch, data: Bytes::from(vec![0; bytes]) };
        Draft::Entry { group: GroupId(group), entry, ordinal: index }
    }

    fn hard_state(group: u64, commit: u64) -> Draft {
        let hard_state = HardState { term: 1, vote: ReplicaId(1), commit };
        Draft::HardState { group: GroupId(group), hard_state }
    }

    fn checkpoint(group: u64, ready: bool, barrier: bool) -> Item {
        let position = CheckpointPosition {
            replica: ReplicaId(1),
            meta: SnapshotMeta::default(),
            bytes: 0,
            crc: 0,
            install: barrier,
            first_index: 0,
            hard_state: None,
        };
        Item::Checkpoint(CheckpointDraft { group: GroupId(group), position, chunks: Vec::new(), ready, barrier })
    }

    fn round(group: u64) -> Item {
        Item::Round(RoundDraft::new(1, VecDeque::from([entry(group, 2, 1)])))
    }

    fn shown(part: &[Draft]) -> Vec<String> {
        let show = |draft: &Draft| match draft {
            Draft::HardState { group, hard_state } => format!("{group}: commit {}", hard_state.commit),
            Draft::Entry { group, entry, .. } => format!("{group}: entry {}", entry.index),
        };
        part.iter().map(show).collect()
    }

    #[test]
    fn a_cut_group_never_claims_more_than_it_holds() {
        let records = [hard_state(1, 4), entry(1, 3, 10), entry(1, 4, 10), entry(1, 5, 10), hard_state(2, 8)];
        let mut round = RoundDraft::new(1, VecDeque::from(records));
        let first = round.take_part(84 + 54);
        assert_eq!(shown(&first), ["1: commit 3", "1: entry 3"]);
        let second = round.take_part(54);
        assert_eq!(shown(&second), ["1: entry 4"]);
        let third = round.take_part(1000);
        assert_eq!(shown(&third), ["1: entry 5", "1: commit 4", "2: commit 8"]);
        assert!(round.records.is_empty() && round.bytes() == 0);
    }

    #[test]
    fn rounds_pass_an_ordinary_checkpoint_but_not_an_install_of_their_group() {
        let mut queue = Queue::default();
        let ordinary = queue.push(checkpoint(1, false, false));
        let first = queue.push(round(1));
        assert_eq!(queue.next_writable(), Some(first));
        queue.take(first);
        let install = queue.push(checkpoint(1, true, true));
        let other = queue.push(round(2));
        let held = queue.push(round(1));
        let behind = queue.push(round(2));
        assert_eq!(queue.next_writable(), Some(other), "another group's");
        queue.take(other);
        assert_eq!(queue.next_writable(), None, "rounds stay in order");
        for expected in [ordinary, install, held, behind] {
            queue.ready(ordinary);
            assert_eq!(queue.next_writable(), Some(expected));
            queue.take(expected);
        }
    }

    #[test]
    fn a_removal_waits_for_the_checkpoint_before_it() {
        let mut queue = Queue::default();
        let before = queue.push(checkpoint(1, false, false));
        let removal = queue.push(Item::Remove(GroupId(1)));
        let birth = queue.push(checkpoint(1, true, true));
        assert_eq!(queue.next_writable(), None);
        queue.ready(before);
        for expected in [before, removal, birth] {
            assert_eq!(queue.next_writable(), Some(expected));
            queue.take(expected);
        }
    }
}
