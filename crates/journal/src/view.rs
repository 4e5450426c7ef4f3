//! What readers see: the log as appended so far, durable or not. What is not durable yet is kept in memory here and
//! read from here; the rest is found through the table.

use std::collections::{BTreeMap, VecDeque};

use base::simulation::{Mark, mark};
use base::{GroupId, ReplicaId};
use wire::{Entry, HardState};

use crate::api::{Checkpoint, GroupAppend};
use crate::queue::Draft;
use crate::table::Table;

/// One group as its owner knows it.
#[derive(Debug)]
pub(crate) struct View {
    /// When this life of the group began, as a number of the queue.
    born: u64,
    replica: ReplicaId,
    first: u64,
    next: u64,
    term: u64,
    /// Index, bytes and CRC of the latest checkpoint asked for.
    checkpoint: (u64, u64, u32),
    tail: VecDeque<Undurable>,
}

#[derive(Debug)]
struct Undurable {
    entry: Entry,
    /// Which append it came with: an index may be appended again before the first entry at it is durable.
    ordinal: u64,
}

/// Where the reader finds an entry.
pub(crate) enum Found<'a> {
    Memory(&'a Entry),
    Disk,
}

impl View {
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Where entry `index` is, which must lie in `first..next`.
    pub(crate) fn find(&self, index: u64) -> Found<'_> {
        let Some(start) = self.tail.front().map(|undurable| undurable.entry.index) else { return Found::Disk };
        let at = index.checked_sub(start).and_then(|at| self.tail.get(usize::try_from(at).ok()?));
        at.map_or(Found::Disk, |undurable| Found::Memory(&undurable.entry))
    }

    fn hard_state(&mut self, group: GroupId, hard_state: &HardState) {
        assert!(hard_state.term >= self.term, "group {group}: the term goes back to {}", hard_state.term);
        assert!(
            hard_state.commit < self.next,
            "group {group}: commit index {} lies beyond the last index {}",
            hard_state.commit,
            self.next - 1
        );
        self.term = hard_state.term;
    }

    fn append(&mut self, group: GroupId, entry: Entry, ordinal: u64) {
        let (index, next) = (entry.index, self.next);
        assert!(index <= next, "group {group}: entry {index} leaves a gap behind {next}");
        assert!(index > self.checkpoint.0, "group {group}: entry {index} lies at or below the checkpoint");
        while self.tail.back().is_some_and(|undurable| undurable.entry.index >= index) {
            mark(Mark::UndurableEntryReplaced);
            self.tail.pop_back();
        }
        self.next = index + 1;
        self.tail.push_back(Undurable { entry, ordinal });
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct Views {
    groups: BTreeMap<GroupId, View>,
    next_ordinal: u64,
}

impl Views {
    /// What recovery found.
    pub(crate) fn of(table: &Table) -> Self {
        let view = |(id, group): (GroupId, &crate::table::Group)| {
            let view = View {
                born: 0,
                replica: group.replica,
                first: group.log.first(),
                next: group.log.next(),
                term: group.hard_state.term,
                checkpoint: (group.checkpoint.index, group.checkpoint_bytes, group.checkpoint_crc),
                tail: VecDeque::new(),
            };
            (id, view)
        };
        Views { groups: table.iter().map(view).collect(), next_ordinal: 0 }
    }

    pub(crate) fn get(&self, group: GroupId) -> Option<&View> {
        self.groups.get(&group)
    }

    /// Takes a part of a round and says what to write. The hard state comes first: entries of a term that is not
    /// recorded would be an older life's, should a crash come in between.
    pub(crate) fn append(&mut self, append: GroupAppend, drafts: &mut VecDeque<Draft>) {
        let group = append.group;
        let view = self.groups.get_mut(&group);
        let view = view.unwrap_or_else(|| panic!("group {group}: an append to a group that was never created"));
        let at = drafts.len();
        for entry in append.entries {
            self.next_ordinal += 1;
            view.append(group, entry.clone(), self.next_ordinal);
            drafts.push_back(Draft::Entry { group, entry, ordinal: self.next_ordinal });
        }
        if let Some(hard_state) = append.hard_state {
            view.hard_state(group, &hard_state);
            drafts.insert(at, Draft::HardState { group, hard_state });
        }
    }

    /// The latest checkpoint asked for: index, bytes, CRC.
    pub(crate) fn latest_checkpoint(&self, group: GroupId) -> Option<(u64, u64, u32)> {
        self.groups.get(&group).map(|view| view.checkpoint)
    }

    /// Takes a checkpoint whose file has so many bytes and that CRC; `order` is its number in the queue. Returns the
    /// first index that stays readable, and whether the log starts anew behind the checkpoint.
    pub(crate) fn checkpoint(&mut self, checkpoint: &Checkpoint, file: (u64, u32), order: u64) -> (u64, bool) {
        let (group, replica, index) = (checkpoint.group, checkpoint.replica, checkpoint.meta.index);
        let latest = (index, file.0, file.1);
        let same = self.groups.get_mut(&group);
        if let Some(view) = &same {
            assert!(view.replica == replica, "group {group}: replica {} must be removed first", view.replica);
            assert!(index >= view.checkpoint.0, "group {group}: a checkpoint at {index} below the latest");
        }
        let anew = checkpoint.install || same.is_none();
        let term = same.as_ref().map_or(0, |view| view.term);
        let first = match same {
            Some(view) if !anew => {
                assert!(index < view.next, "group {group}: a checkpoint at {index} beyond the log");
                view.checkpoint = latest;
                checkpoint.keep_from.min(index + 1).max(view.first)
            }
            _ => {
                let (first, next) = (index + 1, index + 1);
                let tail = VecDeque::new();
                self.groups.insert(group, View { born: order, replica, first, next, term, checkpoint: latest, tail });
                first
            }
        };
        if let (Some(hard_state), Some(view)) = (&checkpoint.hard_state, self.groups.get_mut(&group)) {
            view.hard_state(group, hard_state);
        }
        (first, anew)
    }

    /// Forgets a group; `false` if there is none.
    pub(crate) fn remove(&mut self, group: GroupId) -> bool {
        self.groups.remove(&group).is_some()
    }

    /// An entry is durable: it need not be kept in memory, unless another has taken its place meanwhile.
    pub(crate) fn entry_durable(&mut self, group: GroupId, ordinal: u64) {
        if let Some(view) = self.groups.get_mut(&group)
            && view.tail.front().is_some_and(|undurable| undurable.ordinal == ordinal)
        {
            view.tail.pop_front();
        }
    }

    /// A checkpoint with this number in the queue is durable.
    pub(crate) fn checkpoint_durable(&mut self, group: GroupId, order: u64, first: u64) {
        if let Some(view) = self.groups.get_mut(&group)
            && view.born <= order
        {
            view.first = view.first.max(first);
        }
    }
}
