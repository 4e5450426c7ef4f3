//! A disk in memory that tears, forgets, reorders, fills up and rots, as told by a seed; and a host that runs a journal
//! on it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, VecDeque};

use base::{GroupId, Mono, ReplicaId, SplitMix64};
use bytes::Bytes;
use journal::{
    Checkpoint, DiskDone, DiskError, DiskOp, DiskOpKind, FileId, GroupAppend, Journal, JournalConfig, JournalError,
    Output, RecoveredGroup, Round,
};
use wire::{Entry, EntryKind, HardState, Membership, SnapshotMeta};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct File {
    /// What a power loss leaves.
    durable: Vec<u8>,
    /// What reads see.
    visible: Vec<u8>,
}

/// The disk.
#[derive(Clone, Default)]
pub struct FakeDisk {
    files: BTreeMap<u64, File>,
    next_file: u64,
    visible: BTreeMap<FileId, u64>,
    durable: BTreeMap<FileId, u64>,
    /// Bytes that all files together may have.
    pub space: Option<usize>,
    /// One in a million writes that fails for want of space, though there is some.
    pub full_per_million: u64,
}

impl FakeDisk {
    fn used(&self) -> usize {
        self.visible.values().map(|file| self.files[file].visible.len()).sum()
    }

    fn room(&self, more: usize) -> bool {
        self.space.is_none_or(|space| self.used() + more <= space)
    }

    pub fn names(&self) -> Vec<FileId> {
        self.visible.keys().copied().collect()
    }

    pub fn content(&self, file: FileId) -> Option<&[u8]> {
        self.visible.get(&file).map(|file| self.files[file].visible.as_slice())
    }

    /// Changes what is stored, durably.
    pub fn edit(&mut self, file: FileId, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.files.get_mut(&self.visible[&file]).expect("a name has a file");
        change(&mut file.visible);
        file.durable = file.visible.clone();
    }

    pub fn put(&mut self, file: FileId, content: Vec<u8>) {
        self.next_file += 1;
        self.files.insert(self.next_file, File { durable: content.clone(), visible: content });
        self.visible.insert(file, self.next_file);
        self.durable.insert(file, self.next_file);
    }

    pub fn delete(&mut self, file: FileId) {
        self.visible.remove(&file);
        self.durable.remove(&file);
    }

    /// Carries out an operation.
    pub fn run(&mut self, op: &DiskOpKind, random: &mut SplitMix64) -> Result<DiskDone, DiskError> {
        let missing = |file: &FileId| DiskError::Io(format!("{} does not exist", file.name()));
        match op {
            DiskOpKind::List => {
                self.durable = self.visible.clone();
                let entry = |(name, file): (&FileId, &u64)| (*name, self.files[file].visible.len() as u64);
                Ok(DiskDone::Listed(self.visible.iter().map(entry).collect()))
            }
            DiskOpKind::Create { file, len } => {
                self.delete(*file);
                if !self.room(*len as usize) {
                    let rest = self.space.unwrap_or(0).saturating_sub(self.used());
                    self.put(*file, vec![0; rest.min(*len as usize)]);
                    return Err(DiskError::Full);
                }
                self.put(*file, vec![0; *len as usize]);
                Ok(DiskDone::Done)
            }
            DiskOpKind::Read { file, offset, len } => {
                let content = self.content(*file).ok_or_else(|| missing(file))?;
                let from = content.len().min(*offset as usize);
                let to = content.len().min(from + len);
                Ok(DiskDone::Data(Bytes::copy_from_slice(&content[from..to])))
            }
            DiskOpKind::Write { file, offset, data, sync } => {
                let id = *self.visible.get(file).ok_or_else(|| missing(file))?;
                let data = data.concat();
                let end = *offset as usize + data.len();
                let grows = end.saturating_sub(self.files[&id].visible.len());
                if grows > 0 && !self.room(grows) || random.chance(self.full_per_million) {
                    return Err(DiskError::Full);
                }
                let stored = self.files.get_mut(&id).expect("a name has a file");
                write_at(&mut stored.visible, *offset as usize, &data);
                if *sync {
                    stored.durable = stored.visible.clone();
                }
                Ok(DiskDone::Done)
            }
            DiskOpKind::Rename { from, to } => {
                let id = self.visible.remove(from).ok_or_else(|| missing(from))?;
                self.visible.insert(*to, id);
                self.durable = self.visible.clone();
                Ok(DiskDone::Done)
            }
            DiskOpKind::Remove { file } => {
                self.delete(*file);
                Ok(DiskDone::Done)
            }
        }
    }

    /// The process dies while `op` is under way: it is done, in part or not, and nothing of it is durable yet.
    fn abandon(&mut self, op: &DiskOpKind, random: &mut SplitMix64) {
        match op {
            DiskOpKind::List | DiskOpKind::Read { .. } => {}
            DiskOpKind::Create { file, len } => {
                if random.chance(500_000) {
                    let durable = self.durable.clone();
                    self.put(*file, vec![0; random.below(*len + 1) as usize]);
                    if random.chance(500_000) {
                        self.durable = durable;
                    }
                }
            }
            DiskOpKind::Write { file, offset, data, .. } => {
                let Some(id) = self.visible.get(file).copied() else { return };
                let stored = self.files.get_mut(&id).expect("a name has a file");
                tear(&mut stored.visible, *offset as usize, &data.concat(), random);
            }
            DiskOpKind::Rename { from, to } => {
                if random.chance(500_000)
                    && let Some(id) = self.visible.remove(from)
                {
                    self.visible.insert(*to, id);
                }
            }
            DiskOpKind::Remove { file } => {
                if random.chance(500_000) {
                    self.visible.remove(file);
                }
            }
        }
    }

    /// The power fails: what was not synced is there in part, sector by sector, or not.
    fn lose_power(&mut self, random: &mut SplitMix64) {
        if random.chance(500_000) {
            self.durable = self.visible.clone();
        }
        self.visible = self.durable.clone();
        for file in self.files.values_mut() {
            let unsynced = std::mem::take(&mut file.visible);
            if unsynced != file.durable {
                file.durable.resize(unsynced.len().max(file.durable.len()), 0);
                let keep = random.below(3);
                for (at, sector) in unsynced.chunks(SECTOR).enumerate() {
                    if keep == 2 || keep == 1 && random.chance(500_000) {
                        write_at(&mut file.durable, at * SECTOR, sector);
                    }
                }
            }
            file.visible = file.durable.clone();
        }
    }
}

fn write_at(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

fn tear(content: &mut Vec<u8>, offset: usize, data: &[u8], random: &mut SplitMix64) {
    let mode = random.below(4);
    let cut = random.below(data.len() as u64 + 1) as usize;
    for (at, sector) in data.chunks(SECTOR).enumerate() {
        let there = match mode {
            0 => false,
            1 => true,
            2 => at * SECTOR < cut,
            _ => random.chance(500_000),
        };
        if there {
            write_at(content, offset + at * SECTOR, sector);
        }
    }
}

/// A journal on a disk.
pub struct Host {
    pub disk: FakeDisk,
    pub journal: Journal,
    pub config: JournalConfig,
    pub random: SplitMix64,
    pub pending: VecDeque<DiskOp>,
    pub outputs: VecDeque<Output>,
    pub now: Mono,
    pub rounds: u64,
    /// Every write carried out: file, offset, bytes.
    pub writes: Vec<(FileId, u64, usize)>,
}

impl Host {
    pub fn new(segment_bytes: u64, seed: u64) -> Self {
        Host::on(FakeDisk::default(), segment_bytes, seed)
    }

    /// Starts a journal; recovery has not run yet.
    pub fn on(disk: FakeDisk, segment_bytes: u64, seed: u64) -> Self {
        let config = JournalConfig { segment_bytes };
        let mut journal = Journal::new(config.clone());
        journal.start();
        let random = SplitMix64::new(seed);
        let mut host = Host {
            disk,
            journal,
            config,
            random,
            pending: VecDeque::new(),
            outputs: VecDeque::new(),
            now: Mono(0),
            rounds: 0,
            writes: Vec::new(),
        };
        host.collect();
        host
    }

    /// Takes what the journal asks for and reports.
    pub fn collect(&mut self) {
        while let Some(output) = self.journal.poll() {
            match output {
                Output::Disk(op) => self.pending.push_back(op),
                other => self.outputs.push_back(other),
            }
        }
    }

    /// Completes the operation at `at` of those under way.
    pub fn complete(&mut self, at: usize) {
        let op = self.pending.remove(at).expect("there is one");
        if let DiskOpKind::Write { file, offset, data, .. } = &op.kind {
            self.writes.push((*file, *offset, data.iter().map(Bytes::len).sum()));
        }
        let result = self.disk.run(&op.kind, &mut self.random);
        self.journal.complete(op.id, result);
        self.collect();
    }

    /// Completes one operation at random; `false` if none is under way.
    pub fn step(&mut self) -> bool {
        let Some(at) = (!self.pending.is_empty()).then(|| self.random.below(self.pending.len() as u64)) else {
            return false;
        };
        self.complete(at as usize);
        true
    }

    /// Completes everything.
    pub fn settle(&mut self) {
        self.collect();
        while self.step() {}
    }

    pub fn tick(&mut self, ms: u64) {
        self.now = Mono(self.now.0 + ms * 1_000_000);
        self.journal.tick(self.now);
        self.collect();
    }

    /// Lets the journal become idle, marks and all.
    pub fn idle(&mut self) {
        for _ in 0..10 {
            self.settle();
            self.tick(50);
        }
        self.settle();
    }

    /// The process dies (and the power fails, if said so), and a new journal starts on what is left.
    pub fn crash(mut self, power: bool) -> Host {
        for op in std::mem::take(&mut self.pending) {
            self.disk.abandon(&op.kind, &mut self.random);
        }
        if power {
            self.disk.lose_power(&mut self.random);
        }
        let seed = self.random.next_u64();
        Host::on(self.disk, self.config.segment_bytes, seed)
    }

    /// Runs recovery to its end.
    pub fn recover(&mut self) -> Result<Vec<RecoveredGroup>, JournalError> {
        for _ in 0..100_000 {
            match self.outputs.pop_front() {
                Some(Output::Recovered(groups)) => return Ok(groups),
                Some(Output::Fatal(error)) => return Err(error),
                Some(Output::DiskFull(_)) => {}
                Some(other) => panic!("{other:?} before recovery ended"),
                None if self.step() => {}
                None => self.tick(50),
            }
        }
        panic!("recovery does not end; under way: {:?}", self.pending);
    }

    /// A host that has recovered an empty disk.
    pub fn started(segment_bytes: u64) -> Host {
        let mut host = Host::new(segment_bytes, 1);
        assert_eq!(host.recover(), Ok(Vec::new()));
        host.settle();
        host
    }

    /// The same disk under a new journal, after an orderly end.
    pub fn restart(mut self) -> (Host, Vec<RecoveredGroup>) {
        self.settle();
        let mut host = Host::on(self.disk, self.config.segment_bytes, 2);
        let groups = host.recover().expect("an orderly end leaves a sound journal");
        host.settle();
        (host, groups)
    }

    pub fn append(&mut self, groups: Vec<GroupAppend>) -> u64 {
        self.rounds += 1;
        self.journal.append(Round { number: self.rounds, groups });
        self.collect();
        self.rounds
    }

    pub fn birth(&mut self, group: u64, replica: u64) {
        self.journal.checkpoint(birth(group, replica));
        self.settle();
    }

    /// Reads a range, to the end of the operation.
    pub fn read(&mut self, group: u64, low: u64, high: u64) -> Result<Vec<Entry>, journal::ReadError> {
        self.journal.read(77, GroupId(group), low, high, usize::MAX);
        self.settle();
        let at = self.outputs.iter().position(|output| matches!(output, Output::Read { token: 77, .. }));
        let at = at.unwrap_or_else(|| panic!("the read was not answered: {:?}", self.outputs));
        match self.outputs.remove(at) {
            Some(Output::Read { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Reads a checkpoint whole, in parts.
    pub fn read_checkpoint(&mut self, group: u64) -> Vec<u8> {
        let mut state = Vec::new();
        loop {
            self.journal.read_checkpoint(78, GroupId(group), state.len() as u64, 100_000);
            self.settle();
            let at = self.outputs.iter().position(|output| matches!(output, Output::CheckpointRead { .. }));
            let part = match at.and_then(|at| self.outputs.remove(at)) {
                Some(Output::CheckpointRead { result: Ok(part), .. }) => part,
                other => panic!("{other:?}, {:?}", self.outputs),
            };
            state.extend_from_slice(&part.data);
            if state.len() as u64 == part.total {
                assert_eq!(crc32c::crc32c(&state), part.crc);
                return state;
            }
        }
    }

    /// The latest round reported as persisted since the last call.
    pub fn persisted(&mut self) -> Option<u64> {
        let persisted = |output: &Output| match output {
            Output::Persisted { round } => Some(*round),
            _ => None,
        };
        let latest = self.outputs.iter().filter_map(persisted).next_back();
        self.outputs.retain(|output| persisted(output).is_none());
        latest
    }
}

pub fn birth(group: u64, replica: u64) -> Checkpoint {
    let meta = SnapshotMeta {
        index: 1,
        term: 1,
        membership: Membership { voters: vec![ReplicaId(replica)], ..Membership::default() },
    };
    Checkpoint {
        group: GroupId(group),
        replica: ReplicaId(replica),
        meta,
        state: Bytes::new(),
        install: false,
        keep_from: 0,
        hard_state: Some(HardState { term: 1, vote: ReplicaId(0), commit: 1 }),
    }
}

pub fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    Entry { index, term, kind: EntryKind::Command, data: Bytes::copy_from_slice(data) }
}

pub fn entries(group: u64, entries: Vec<Entry>) -> GroupAppend {
    GroupAppend { group: GroupId(group), hard_state: None, entries }
}

pub fn voted(group: u64, term: u64, vote: u64, commit: u64) -> GroupAppend {
    let hard_state = Some(HardState { term, vote: ReplicaId(vote), commit });
    GroupAppend { group: GroupId(group), hard_state, entries: Vec::new() }
}
