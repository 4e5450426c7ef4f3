//! A virtual disk: what the journal asks of a disk, with latency, completions out of order, and the loss of whatever
//! was not synced when the power goes.
//!
//! An operation takes effect at its completion. At a crash every write that was not synced, and every operation still
//! under way, is kept, lost or torn at sectors of 512 bytes, each independently of the others. `Create`, `Rename`,
//! `Remove` and `Write { sync: true }` are durable at completion: that is what the driver of the real node does with
//! `fdatasync` and an `fsync` of the directory.
//!
//! Where only the process ends, the operating system goes on, and shows the next process what was written, synced or not.
//! A later crash can still take what was not.

use std::collections::BTreeMap;

use base::SplitMix64;
use bytes::Bytes;
use journal::{DiskDone, DiskError, DiskOp, DiskOpKind, FileId, OpId};

use crate::time::{Nanos, ms, us};

const SECTOR: usize = 512;

/// What a broken disk says.
pub const BROKEN: &str = "the disk is broken";

/// How the disk behaves now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DiskMood {
    /// Added to every operation, drawn from `0..=`.
    pub slow: Nanos,
    /// Nothing completes before this moment.
    pub stuck_until: Nanos,
    /// No space is left for new bytes.
    pub full: bool,
    /// Whatever is to be changed fails.
    pub broken: bool,
}

impl DiskMood {
    /// Both at once.
    #[must_use]
    pub fn worse(self, other: DiskMood) -> DiskMood {
        DiskMood {
            slow: self.slow.max(other.slow),
            stuck_until: self.stuck_until.max(other.stuck_until),
            full: self.full || other.full,
            broken: self.broken || other.broken,
        }
    }
}

/// One node's disk.
pub struct VirtualDisk {
    files: BTreeMap<FileId, File>,
    under_way: BTreeMap<OpId, DiskOpKind>,
    random: SplitMix64,
    /// How it behaves now.
    pub mood: DiskMood,
    /// Planted: completes syncs without making anything durable.
    pub lies_about_sync: bool,
    /// Planted: a crash takes it back to an earlier state.
    pub goes_back: bool,
    backup: BTreeMap<FileId, File>,
    operations: u64,
    /// Writes that a crash lost, tore, or kept although they were not synced.
    pub torn: u64,
    /// When it last worked again after it had not.
    recovered_at: Nanos,
}

/// A bit on a disk, and what stands around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bit {
    file: FileId,
    offset: usize,
    mask: u8,
    sector: Vec<u8>,
}

impl std::fmt::Display for Bit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at byte {}, mask {:#04x}", self.file, self.offset, self.mask)
    }
}

#[derive(Default, Clone)]
struct File {
    /// What a crash cannot take.
    durable: Durable,
    /// Completed writes that a crash can take, in order. A read sees them over what is durable.
    unsynced: Vec<(usize, Vec<u8>)>,
}

/// The bytes of a file; what lies behind the last one that was written is zero and takes no space here.
#[derive(Default, Clone)]
struct Durable {
    len: usize,
    written: Vec<u8>,
    /// A byte in which a bit has flipped, and which.
    flipped: Option<(usize, u8)>,
}

impl VirtualDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        VirtualDisk {
            files: BTreeMap::new(),
            under_way: BTreeMap::new(),
            random: SplitMix64::new(seed),
            mood: DiskMood::default(),
            lies_about_sync: false,
            goes_back: false,
            backup: BTreeMap::new(),
            operations: 0,
            torn: 0,
            recovered_at: 0,
        }
    }

    /// Takes an operation; the world completes it after the delay returned.
    ///
    /// # Errors
    /// The journal broke its promise to issue dependent operations only after the completion of what they depend on.
    pub fn submit(&mut self, op: DiskOp, now: Nanos) -> Result<Nanos, String> {
        if let Some((other, kind)) = self.under_way.iter().find(|(_, kind)| conflict(kind, &op.kind)) {
            return Err(format!("{:?} depends on {other:?} {}, which is under way", op.id, show(kind)));
        }
        let size = match &op.kind {
            DiskOpKind::Write { data, .. } => data.iter().map(Bytes::len).sum::<usize>() as u64,
            DiskOpKind::Create { len, .. } => *len,
            DiskOpKind::Read { len, .. } => *len as u64,
            _ => 0,
        };
        let fixed = match &op.kind {
            DiskOpKind::Read { .. } => us(self.random.between(20, 100)),
            DiskOpKind::Write { sync: false, .. } => us(self.random.between(5, 60)),
            DiskOpKind::Write { sync: true, .. } => us(self.random.between(90, 400)),
            _ => us(self.random.between(100, 3000)),
        };
        let slow = self.random.between(0, self.mood.slow);
        // About 500 MB/s.
        let delay = self.mood.stuck_until.saturating_sub(now) + fixed + slow + size * 2;
        if self.under_way.insert(op.id, op.kind).is_some() {
            return Err(format!("{:?} was used twice", op.id));
        }
        Ok(delay.min(ms(60_000)))
    }

    /// The operations under way.
    pub fn under_way(&self) -> impl Iterator<Item = &DiskOpKind> {
        self.under_way.values()
    }

    /// Ends an operation: it takes effect now, unless it fails. `None` if there is no such operation.
    pub fn complete(&mut self, id: OpId) -> Option<Result<DiskDone, DiskError>> {
        let kind = self.under_way.remove(&id)?;
        self.operations += 1;
        if self.goes_back && self.operations.is_multiple_of(40) {
            self.backup.clone_from(&self.files);
        }
        if self.mood.broken && !matches!(kind, DiskOpKind::List | DiskOpKind::Read { .. }) {
            // Nobody knows what became of it, as after a crash.
            self.crash_under_way(kind);
            return Some(Err(DiskError::Io(BROKEN.into())));
        }
        Some(self.carry_out(kind))
    }

    fn carry_out(&mut self, kind: DiskOpKind) -> Result<DiskDone, DiskError> {
        let missing = |file: FileId| DiskError::Io(format!("{file:?}: no such file"));
        match kind {
            DiskOpKind::List => {
                Ok(DiskDone::Listed(self.files.iter().map(|(id, file)| (*id, file.len() as u64)).collect()))
            }
            DiskOpKind::Create { file, len } => {
                if self.mood.full {
                    return Err(DiskError::Full);
                }
                let durable = Durable::zeros(usize::try_from(len).map_err(|_| DiskError::Full)?);
                self.files.insert(file, File { durable, unsynced: Vec::new() });
                Ok(DiskDone::Done)
            }
            DiskOpKind::Read { file, offset, len } => {
                let file = self.files.get(&file).ok_or_else(|| missing(file))?;
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
                let end = start.saturating_add(len).min(file.len());
                Ok(DiskDone::Data(file.read(start, end)))
            }
            DiskOpKind::Write { file, offset, data, sync } => {
                let full = self.mood.full;
                let target = self.files.get_mut(&file).ok_or_else(|| missing(file))?;
                let data = data.concat();
                let offset = usize::try_from(offset).map_err(|_| DiskError::Full)?;
                if full && offset + data.len() > target.len() {
                    return Err(DiskError::Full);
                }
                target.write(offset, data, sync && !self.lies_about_sync);
                Ok(DiskDone::Done)
            }
            DiskOpKind::Rename { from, to } => {
                let file = self.files.remove(&from).ok_or_else(|| missing(from))?;
                self.files.insert(to, file);
                Ok(DiskDone::Done)
            }
            DiskOpKind::Remove { file } => {
                self.files.remove(&file);
                Ok(DiskDone::Done)
            }
        }
    }

    /// The process ends: what was not synced is kept, and remains unsynced.
    pub fn lose_process(&mut self) {
        for kind in std::mem::take(&mut self.under_way).into_values() {
            // The operating system may not have been asked yet.
            if self.random.chance(500_000) {
                self.crash_under_way(kind);
            }
        }
    }

    /// The power goes: whatever was not synced is kept, lost or torn.
    pub fn crash(&mut self) {
        for kind in std::mem::take(&mut self.under_way).into_values() {
            self.crash_under_way(kind);
        }
        for file in self.files.values_mut() {
            for (offset, data) in std::mem::take(&mut file.unsynced) {
                self.torn += 1;
                tear(&mut self.random, &mut file.durable, offset, &data);
            }
        }
        if self.goes_back && !self.backup.is_empty() {
            self.files.clone_from(&self.backup);
        }
    }

    fn crash_under_way(&mut self, kind: DiskOpKind) {
        match kind {
            DiskOpKind::Write { file, offset, data, .. } => {
                if let (Some(target), Ok(offset)) = (self.files.get_mut(&file), usize::try_from(offset)) {
                    target.unsynced.push((offset, data.concat()));
                }
            }
            DiskOpKind::Create { file, len } if self.random.chance(500_000) => {
                let durable = Durable::zeros(usize::try_from(self.random.between(0, len)).unwrap_or(0));
                self.files.insert(file, File { durable, unsynced: Vec::new() });
            }
            kind @ (DiskOpKind::Rename { .. } | DiskOpKind::Remove { .. }) if self.random.chance(500_000) => {
                // Done, though nobody was told.
                let _ = self.carry_out(kind);
            }
            _ => {}
        }
    }

    /// How it behaves from now on.
    pub fn set_mood(&mut self, mood: DiskMood, now: Nanos) {
        if mood == DiskMood::default() && self.mood != mood {
            self.recovered_at = now;
        }
        self.mood = mood;
    }

    /// It has worked for a second.
    #[must_use]
    pub fn quiet(&self, now: Nanos) -> bool {
        self.mood == DiskMood::default() && now >= self.recovered_at + ms(1_000)
    }

    /// Some bit at rest, rather one in a byte that was written than one in the zeros around.
    #[must_use]
    pub fn some_bit(&self, salt: u64) -> Option<Bit> {
        let mut random = SplitMix64::new(salt);
        let files: Vec<_> = self.files.iter().filter(|(_, file)| file.durable.len > 0).collect();
        let (id, file) = *files.get(random.below(files.len() as u64) as usize)?;
        let mut offset = 0;
        for _ in 0..64 {
            offset = random.below(file.durable.len as u64) as usize;
            if file.durable.read(offset, offset + 1) != [0] {
                break;
            }
        }
        let mask = 1 << random.below(8);
        Some(Bit { file: *id, offset, mask, sector: file.sector(offset) })
    }

    /// Flips a bit, if what stands around it is what stood there when it was chosen. Whether it did.
    pub fn flip(&mut self, bit: &Bit) -> bool {
        let Some(file) = self.files.get_mut(&bit.file) else { return false };
        let [byte] = file.durable.read(bit.offset, bit.offset + 1)[..] else { return false };
        let covers = |(at, data): &(usize, Vec<u8>)| (*at..at + data.len()).contains(&bit.offset);
        if file.sector(bit.offset) != bit.sector || file.unsynced.iter().any(covers) {
            return false;
        }
        file.durable.put(bit.offset, &[byte ^ bit.mask]);
        file.durable.flipped = Some((bit.offset, bit.mask));
        true
    }

    /// Whether a bit has flipped that is still there, in whatever its file is now. In a spare it is nobody's.
    #[must_use]
    pub fn is_rotten(&self) -> bool {
        self.files.iter().any(|(id, file)| !matches!(id, FileId::Spare(_)) && file.durable.flipped.is_some())
    }

    /// What flipped is again as it was.
    pub fn flip_back(&mut self) {
        for file in self.files.values_mut() {
            if let Some((offset, mask)) = file.durable.flipped {
                let byte = file.durable.read(offset, offset + 1)[0];
                file.durable.put(offset, &[byte ^ mask]);
            }
        }
    }

    /// A new disk in place of the old one.
    pub fn wipe(&mut self) {
        self.files.clear();
        self.under_way.clear();
    }
}

impl Durable {
    fn zeros(len: usize) -> Self {
        Durable { len, ..Durable::default() }
    }

    /// The bytes from `start` to `end`, as far as there are so many.
    fn read(&self, start: usize, end: usize) -> Vec<u8> {
        let (start, end) = (start.min(self.len), end.min(self.len));
        let written = &self.written[start.min(self.written.len())..end.min(self.written.len())];
        let mut out = Vec::with_capacity(end.saturating_sub(start));
        out.extend_from_slice(written);
        out.resize(end.saturating_sub(start), 0);
        out
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        self.len = self.len.max(end);
        if self.written.len() < end {
            self.written.resize(end, 0);
        }
        self.written[offset..end].copy_from_slice(data);
        self.flipped = self.flipped.filter(|(flipped, _)| !(offset..end).contains(flipped));
    }
}

impl File {
    /// The durable bytes of the sector around `offset`.
    fn sector(&self, offset: usize) -> Vec<u8> {
        let start = offset / SECTOR * SECTOR;
        self.durable.read(start, start + SECTOR)
    }

    fn len(&self) -> usize {
        let ends = self.unsynced.iter().map(|(offset, data)| offset + data.len());
        ends.fold(self.durable.len, usize::max)
    }

    /// What the operating system shows while it runs.
    fn read(&self, start: usize, end: usize) -> Bytes {
        let mut out = self.durable.read(start, end);
        if self.unsynced.is_empty() {
            return Bytes::from(out);
        }
        out.resize(end - start, 0);
        for (offset, data) in &self.unsynced {
            let (from, to) = (start.max(*offset), end.min(offset + data.len()));
            if from < to {
                out[from - start..to - start].copy_from_slice(&data[from - offset..to - offset]);
            }
        }
        Bytes::from(out)
    }

    fn write(&mut self, offset: usize, data: Vec<u8>, sync: bool) {
        if !sync {
            self.unsynced.push((offset, data));
            return;
        }
        // Older unsynced writes below this one reach the disk with it: a crash must not bring them back over it.
        let end = offset + data.len();
        let (below, rest) =
            std::mem::take(&mut self.unsynced).into_iter().partition(|(at, old)| *at < end && at + old.len() > offset);
        self.unsynced = rest;
        let below: Vec<(usize, Vec<u8>)> = below;
        for (at, old) in below {
            self.durable.put(at, &old);
        }
        self.durable.put(offset, &data);
    }
}

/// Puts none, all, the first or any of the sectors of a write in place.
fn tear(random: &mut SplitMix64, durable: &mut Durable, offset: usize, data: &[u8]) {
    let mode = random.below(4);
    let first = offset / SECTOR;
    let sectors = (offset + data.len()).div_ceil(SECTOR).saturating_sub(first) as u64;
    let prefix = random.below(sectors.max(1));
    for sector in 0..sectors {
        let kept = match mode {
            0 => false,
            1 => true,
            2 => sector < prefix,
            _ => random.chance(500_000),
        };
        if kept {
            let start = ((first + sector as usize) * SECTOR).max(offset);
            let end = ((first + sector as usize + 1) * SECTOR).min(offset + data.len());
            durable.put(start, &data[start - offset..end - offset]);
        }
    }
}

fn files_of(kind: &DiskOpKind) -> Vec<FileId> {
    match kind {
        DiskOpKind::List => Vec::new(),
        DiskOpKind::Create { file, .. }
        | DiskOpKind::Read { file, .. }
        | DiskOpKind::Write { file, .. }
        | DiskOpKind::Remove { file } => vec![*file],
        DiskOpKind::Rename { from, to } => vec![*from, *to],
    }
}

fn range_of(kind: &DiskOpKind) -> Option<(u64, u64)> {
    match kind {
        DiskOpKind::Read { offset, len, .. } => Some((*offset, offset.saturating_add(*len as u64))),
        DiskOpKind::Write { offset, data, .. } => {
            Some((*offset, offset.saturating_add(data.iter().map(Bytes::len).sum::<usize>() as u64)))
        }
        _ => None,
    }
}

/// Whether the outcome would depend on which of the two completes first.
fn conflict(one: &DiskOpKind, other: &DiskOpKind) -> bool {
    let reads = |kind: &DiskOpKind| matches!(kind, DiskOpKind::Read { .. } | DiskOpKind::List);
    if reads(one) && reads(other) || !files_of(one).iter().any(|file| files_of(other).contains(file)) {
        return false;
    }
    match (range_of(one), range_of(other)) {
        (Some((start, end)), Some((other_start, other_end))) => start < other_end && other_start < end,
        _ => true,
    }
}

fn show(kind: &DiskOpKind) -> String {
    format!("{} of {:?}", name(kind), files_of(kind))
}

/// The operation's name, for traces.
#[must_use]
pub fn name(kind: &DiskOpKind) -> &'static str {
    match kind {
        DiskOpKind::List => "list",
        DiskOpKind::Create { .. } => "create",
        DiskOpKind::Read { .. } => "read",
        DiskOpKind::Write { sync: true, .. } => "write+sync",
        DiskOpKind::Write { .. } => "write",
        DiskOpKind::Rename { .. } => "rename",
        DiskOpKind::Remove { .. } => "remove",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId::Wal(1);

    fn run(disk: &mut VirtualDisk, id: u64, kind: DiskOpKind) -> Result<DiskDone, DiskError> {
        disk.submit(DiskOp { id: OpId(id), kind }, 0).expect("no conflict");
        disk.complete(OpId(id)).expect("under way")
    }

    fn write(offset: u64, byte: u8, len: usize, sync: bool) -> DiskOpKind {
        DiskOpKind::Write { file: FILE, offset, data: vec![Bytes::from(vec![byte; len])], sync }
    }

    fn content(disk: &mut VirtualDisk, id: u64) -> Bytes {
        match run(disk, id, DiskOpKind::Read { file: FILE, offset: 0, len: 1 << 20 }) {
            Ok(DiskDone::Data(data)) => data,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn synced_bytes_survive_every_crash_and_unsynced_ones_only_some() {
        let mut fates = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut disk = VirtualDisk::new(seed);
            run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 4096 }).expect("created");
            run(&mut disk, 2, write(0, 1, 1000, true)).expect("written");
            run(&mut disk, 3, write(1000, 2, 2000, false)).expect("written");
            assert_eq!(content(&mut disk, 4)[1000..3000], [2; 2000], "visible before the crash");
            disk.crash();
            let after = content(&mut disk, 5);
            assert_eq!(after[..1000], [1; 1000], "durable");
            let kept = after[1000..3000].iter().filter(|byte| **byte == 2).count();
            fates.insert(match kept {
                0 => "lost",
                2000 => "kept",
                _ => "torn",
            });
        }
        assert_eq!(fates.into_iter().collect::<Vec<_>>(), ["kept", "lost", "torn"]);
    }

    #[test]
    fn a_sync_that_was_under_way_may_be_kept_lost_or_torn() {
        let fates: std::collections::BTreeSet<usize> = (0..100)
            .map(|seed| {
                let mut disk = VirtualDisk::new(seed);
                run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 2048 }).expect("created");
                disk.submit(DiskOp { id: OpId(2), kind: write(0, 7, 2048, true) }, 0).expect("taken");
                disk.crash();
                assert!(disk.complete(OpId(2)).is_none(), "nothing is under way after a crash");
                content(&mut disk, 3).iter().filter(|byte| **byte == 7).count() / SECTOR
            })
            .collect();
        assert!(fates.len() >= 4, "all sectors, none, and some: {fates:?}");
    }

    #[test]
    fn a_broken_disk_says_so_and_what_it_was_to_write_may_be_kept_lost_or_torn() {
        let fates: std::collections::BTreeSet<usize> = (0..100)
            .map(|seed| {
                let mut disk = VirtualDisk::new(seed);
                run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 2048 }).expect("created");
                disk.mood.broken = true;
                assert_eq!(run(&mut disk, 2, write(0, 7, 2048, true)), Err(DiskError::Io(BROKEN.into())));
                disk.crash();
                content(&mut disk, 3).iter().filter(|byte| **byte == 7).count() / SECTOR
            })
            .collect();
        assert!(fates.len() >= 4, "all sectors, none, and some: {fates:?}");
    }

    #[test]
    fn an_older_unsynced_write_never_comes_back_over_a_synced_one() {
        for seed in 0..50 {
            let mut disk = VirtualDisk::new(seed);
            run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 1024 }).expect("created");
            run(&mut disk, 2, write(0, 1, 1024, false)).expect("written");
            run(&mut disk, 3, write(256, 2, 256, true)).expect("written");
            disk.crash();
            assert_eq!(content(&mut disk, 4)[256..512], [2; 256]);
        }
    }

    #[test]
    fn a_lying_disk_loses_what_it_called_durable() {
        let lost = (0..50).any(|seed| {
            let mut disk = VirtualDisk::new(seed);
            disk.lies_about_sync = true;
            run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 1024 }).expect("created");
            run(&mut disk, 2, write(0, 1, 1024, true)).expect("written");
            disk.crash();
            content(&mut disk, 3)[..1024] != [1; 1024]
        });
        assert!(lost);
    }

    #[test]
    fn dependent_operations_at_once_are_refused_and_independent_ones_are_not() {
        let mut disk = VirtualDisk::new(1);
        run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 4096 }).expect("created");
        let mut submit = |id, kind| disk.submit(DiskOp { id: OpId(id), kind }, 0);
        assert!(submit(2, write(0, 1, 512, true)).is_ok());
        assert!(submit(3, write(512, 1, 512, true)).is_ok(), "two rounds in flight");
        assert!(submit(4, write(1000, 1, 10, true)).is_err(), "overlaps");
        assert!(submit(5, DiskOpKind::Read { file: FILE, offset: 0, len: 10 }).is_err(), "reads what is being written");
        assert!(submit(6, DiskOpKind::Remove { file: FILE }).is_err());
        assert!(submit(7, DiskOpKind::Read { file: FILE, offset: 2048, len: 10 }).is_ok());
    }

    #[test]
    fn a_bit_that_flipped_stays_until_it_is_written_over_or_flips_back() {
        let mut disk = VirtualDisk::new(1);
        run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 1024 }).expect("created");
        run(&mut disk, 2, write(0, 0x55, 1024, true)).expect("written");
        let bit = disk.some_bit(7).expect("there are bits");
        assert!(!disk.is_rotten() && disk.flip(&bit) && disk.is_rotten());
        let changed: Vec<_> = content(&mut disk, 3).iter().copied().filter(|byte| *byte != 0x55).collect();
        assert_eq!(changed, [0x55 ^ bit.mask]);
        assert!(!disk.flip(&bit), "what stands around it is another");
        disk.flip_back();
        assert!(!disk.is_rotten() && content(&mut disk, 4).iter().all(|byte| *byte == 0x55));

        assert!(disk.flip(&bit));
        run(&mut disk, 5, DiskOpKind::Rename { from: FILE, to: FileId::Spare(9) }).expect("renamed");
        assert!(!disk.is_rotten(), "nobody reads a spare");
        run(&mut disk, 6, DiskOpKind::Rename { from: FileId::Spare(9), to: FILE }).expect("renamed");
        assert!(disk.is_rotten(), "it came along");
        run(&mut disk, 7, write(0, 1, 1024, false)).expect("written");
        assert!(disk.is_rotten(), "not on the disk yet");
        run(&mut disk, 8, write(0, 1, 1024, true)).expect("written");
        assert!(!disk.is_rotten());
    }

    #[test]
    fn of_two_bad_moods_the_worse_counts_and_it_is_quiet_a_second_after_the_last() {
        let (slow, full) =
            (DiskMood { slow: 5, ..DiskMood::default() }, DiskMood { full: true, ..DiskMood::default() });
        assert_eq!(slow.worse(full), DiskMood { slow: 5, full: true, ..DiskMood::default() });
        let mut disk = VirtualDisk::new(1);
        disk.set_mood(slow.worse(full), ms(5_000));
        disk.set_mood(full, ms(6_000));
        assert!(!disk.quiet(ms(9_000)));
        disk.set_mood(DiskMood::default(), ms(9_000));
        disk.set_mood(DiskMood::default(), ms(9_500));
        assert!(!disk.quiet(ms(9_999)) && disk.quiet(ms(10_000)));
    }

    #[test]
    fn a_full_disk_takes_no_new_bytes_and_keeps_the_old_ones_writable() {
        let mut disk = VirtualDisk::new(1);
        run(&mut disk, 1, DiskOpKind::Create { file: FILE, len: 1024 }).expect("created");
        disk.mood.full = true;
        assert_eq!(run(&mut disk, 2, DiskOpKind::Create { file: FileId::Wal(2), len: 1 }), Err(DiskError::Full));
        assert_eq!(run(&mut disk, 3, write(1020, 1, 8, true)), Err(DiskError::Full));
        assert_eq!(run(&mut disk, 4, write(0, 1, 1024, true)), Ok(DiskDone::Done));
    }
}
