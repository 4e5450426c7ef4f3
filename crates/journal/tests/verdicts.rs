//! What recovery makes of each kind of damage: the log up to somewhere, or a refusal that names the file and says why.
//! Behind every log that is taken the next entry is written and found; whatever is refused stays as it was.

mod support;

use std::ops::Range;

use base::GroupId;
use crc32c::{crc32c, crc32c_append};
use journal::{FileId, GroupAppend, Output, Round};
use support::{FakeDisk, Host, entries, entry};
use wire::{Entry, HardState};

const SEGMENT: u64 = 32 << 10;
const BLOCK: usize = 4096;
/// Bytes of a record before its payload, and of the payload of the record that opens a frame.
const HEAD: usize = 44;
const ROUND: usize = 32;
/// Kinds of records.
const HARD_STATES: Range<u8> = 3..4;
const ENTRIES: Range<u8> = 16..20;
const REPLICAS: Range<u8> = 2..3;

/// The log of these tests: the entries from 2 on, one in each round, over four segments. Each round says that the one
/// before it was durable; nothing says so of the last.
const LAST: u64 = 21;

fn logged(index: u64) -> Entry {
    entry(index, 1, &[index as u8; 3_000])
}

fn log() -> FakeDisk {
    built().disk
}

/// The same, idle for long enough to say that all of it was durable.
fn marked_log() -> FakeDisk {
    let mut host = built();
    host.idle();
    host.disk
}

fn built() -> Host {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    for index in 2..=LAST {
        let hard_state = Some(HardState { term: 1, commit: index - 1, ..HardState::default() });
        host.append(vec![GroupAppend { group: GroupId(1), hard_state, entries: vec![logged(index)] }]);
        host.settle();
    }
    host
}

// ---- The format, as the crate's documentation has it ----

fn u32_at(content: &[u8], at: usize) -> usize {
    u32::from_le_bytes(content[at..at + 4].try_into().expect("four bytes")) as usize
}

fn seed(sequence: u64) -> u32 {
    crc32c(&sequence.to_le_bytes())
}

/// Makes the checksum of a record fit.
fn seal_record(content: &mut [u8], at: usize, sequence: u64) -> u32 {
    let payload = at + HEAD..at + HEAD + u32_at(content, at);
    let head = crc32c_append(crc32c_append(seed(sequence), &content[at..at + 4]), &content[at + 8..at + HEAD]);
    let crc = crc32c_append(head, &content[payload]);
    content[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Makes all checksums of a frame fit.
fn seal(content: &mut [u8], frame: usize, sequence: u64) {
    let end = frame + u32_at(content, frame + HEAD + 24);
    let (mut at, mut sum) = (frame + HEAD + ROUND, 0);
    while at < end {
        sum = crc32c_append(sum, &seal_record(content, at, sequence).to_le_bytes());
        at += HEAD + u32_at(content, at);
    }
    content[frame + HEAD + 28..frame + HEAD + ROUND].copy_from_slice(&sum.to_le_bytes());
    seal_record(content, frame, sequence);
}

/// Makes the checksum of a segment's header fit.
fn seal_header(content: &mut [u8]) {
    let sum = crc32c_append(crc32c(&content[..12]), &content[16..48]);
    content[12..16].copy_from_slice(&sum.to_le_bytes());
}

/// The first record of a frame that is of one of these kinds.
fn record(content: &[u8], frame: usize, kinds: Range<u8>) -> usize {
    let mut at = frame + HEAD + ROUND;
    while !kinds.contains(&content[at + 40]) {
        at += HEAD + u32_at(content, at);
    }
    at
}

/// Changes a segment.
fn edit(disk: &mut FakeDisk, sequence: u64, change: impl FnOnce(&mut Vec<u8>)) {
    disk.edit(FileId::Wal(sequence), change);
}

/// Changes the frame of the last round, or of one so many before it; then its checksums fit again.
fn forge(disk: &mut FakeDisk, before_last: usize, kinds: Range<u8>, change: impl FnOnce(&mut [u8])) {
    edit(disk, 4, |content| {
        let frame = (4 - before_last) * BLOCK;
        let at = record(content, frame, kinds);
        change(&mut content[at..]);
        seal(content, frame, 4);
    });
}

/// Changes a segment's header, whose checksum then fits again.
fn forge_header(disk: &mut FakeDisk, sequence: u64, change: impl FnOnce(&mut [u8])) {
    edit(disk, sequence, |content| {
        change(&mut content[..]);
        seal_header(content);
    });
}

fn block(number: usize) -> Range<usize> {
    number * BLOCK..(number + 1) * BLOCK
}

// ---- Verdicts ----

#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// The log is there up to that index.
    UpTo(u64),
    /// Of a segment, and these words are said.
    Refused(u64, &'static str),
}

use Verdict::{Refused, UpTo};

type Row = (&'static str, fn(&mut FakeDisk), Verdict);

fn check(of: &FakeDisk, rows: &[Row]) {
    for (what, change, expected) in rows {
        let mut disk = of.clone();
        change(&mut disk);
        let before = disk.clone();
        let mut host = Host::on(disk, SEGMENT, 11);
        match (host.recover(), expected) {
            (Ok(groups), UpTo(last)) => {
                assert_eq!(groups.len(), 1, "{what}");
                assert_eq!(groups[0].last_index, *last, "{what}");
                goes_on(what, host, *last);
            }
            (Err(refused), Refused(sequence, why)) => {
                let (said, file) = (refused.to_string(), FileId::Wal(*sequence));
                assert!(said.starts_with(&file.name()) && said.contains(*why), "{what}: {said}");
                assert_eq!(host.writes, [], "{what}");
                assert_eq!(host.disk.names(), before.names(), "{what}");
                for file in before.names() {
                    assert!(host.disk.content(file) == before.content(file), "{what}: {} was changed", file.name());
                }
            }
            (found, _) => panic!("{what}: {found:?} instead of {expected:?}"),
        }
    }
}

/// What was found reads as it was written, and the next entry is found behind it.
fn goes_on(what: &str, mut host: Host, last: u64) {
    host.settle();
    let mut expected: Vec<_> = (2..=last).map(logged).collect();
    assert!(host.read(1, 2, last).as_ref() == Ok(&expected), "{what}: other entries");
    let next = entry(last + 1, 2, b"what comes after");
    host.append(vec![entries(1, vec![next.clone()])]);
    host.settle();
    expected.push(next);
    let (mut host, groups) = host.restart();
    assert_eq!(groups[0].last_index, last + 1, "{what}");
    assert!(host.read(1, 2, last + 1).as_ref() == Ok(&expected), "{what}: other entries after the next start");
}

#[test]
fn the_log_lies_as_these_tests_have_it() {
    let disk = log();
    let whole = |content: &[u8], sequence: u64, frame: usize| {
        let mut sealed = content.to_vec();
        seal(&mut sealed, frame, sequence);
        sealed == content
    };
    for (sequence, frames) in [(1, 7), (2, 7), (3, 7), (4, 4)] {
        let content = disk.content(FileId::Wal(sequence)).expect("there are four segments");
        for frame in 1..=frames {
            assert!(whole(content, sequence, frame * BLOCK), "frame {frame} of segment {sequence}");
        }
        let rest = &content[(frames + 1) * BLOCK..];
        assert!(rest.iter().all(|byte| *byte == 0), "segment {sequence} has more than {frames} frames");
    }
    assert_eq!(disk.content(FileId::Wal(5)), None);
    let marked = marked_log();
    let mark = &marked.content(FileId::Wal(4)).expect("it is the last")[block(5)];
    assert!(u32_at(mark, HEAD + 24) == HEAD + ROUND, "a mark has no records");
}

#[test]
fn damage_to_the_end_of_the_log() {
    check(
        &log(),
        &[
            ("nothing", |_| (), UpTo(21)),
            ("a torn last write", |disk| edit(disk, 4, |it| it[4 * BLOCK + 512..5 * BLOCK].fill(0)), UpTo(20)),
            ("a last write that never came", |disk| edit(disk, 4, |it| it[block(4)].fill(0)), UpTo(20)),
            ("another byte in it", |disk| edit(disk, 4, |it| it[4 * BLOCK + 999] ^= 4), UpTo(20)),
            ("another byte in its head", |disk| edit(disk, 4, |it| it[4 * BLOCK + 9] ^= 4), UpTo(20)),
            ("another byte in its padding", |disk| edit(disk, 4, |it| it[5 * BLOCK - 1] ^= 4), UpTo(21)),
            ("garbage behind it", |disk| edit(disk, 4, |it| it[block(5)].fill(0xa5)), UpTo(21)),
            ("an earlier life behind it", of_an_earlier_life, UpTo(21)),
            ("the last round once more", |disk| edit(disk, 4, |it| it.copy_within(block(4), 5 * BLOCK)), UpTo(21)),
            ("the round before in its place", |disk| edit(disk, 4, |it| it.copy_within(block(3), 4 * BLOCK)), UpTo(20)),
            ("a file that is longer", |disk| edit(disk, 4, |it| it.resize(it.len() + BLOCK, 0xff)), UpTo(21)),
            // Whoever lost that much is told by its leader: a heartbeat goes beyond what it has.
            ("the last segment is missing", |disk| disk.delete(FileId::Wal(4)), UpTo(18)),
            ("the last segment is empty", |disk| edit(disk, 4, Vec::clear), UpTo(18)),
        ],
    );
}

fn of_an_earlier_life(disk: &mut FakeDisk) {
    let frame = disk.content(FileId::Wal(2)).expect("there are four segments")[block(4)].to_vec();
    edit(disk, 4, |it| it[block(5)].copy_from_slice(&frame));
}

#[test]
fn damage_to_the_end_of_the_log_that_says_what_was_durable() {
    check(
        &marked_log(),
        &[
            ("nothing", |_| (), UpTo(21)),
            ("another byte in the mark", |disk| edit(disk, 4, |it| it[5 * BLOCK + 9] ^= 4), UpTo(21)),
            ("another byte in the last round", |disk| edit(disk, 4, |it| it[4 * BLOCK + 999] ^= 4), DURABLE),
            ("the last round is zeros", |disk| edit(disk, 4, |it| it[block(4)].fill(0)), DURABLE),
            // As if neither had ever been written: nothing that is left says otherwise.
            ("the last round and the mark", |disk| edit(disk, 4, |it| it[4 * BLOCK..6 * BLOCK].fill(0)), UpTo(20)),
        ],
    );
}

/// A frame further on says that what is not there was.
const DURABLE: Verdict = Refused(4, "what is here was durable, says the mark at byte");

#[test]
fn damage_in_the_middle_of_the_log() {
    check(
        &log(),
        &[
            ("another byte in the round before the last", |disk| edit(disk, 4, |it| it[3 * BLOCK + 999] ^= 4), DURABLE),
            ("another byte in its head", |disk| edit(disk, 4, |it| it[3 * BLOCK + 9] ^= 4), DURABLE),
            ("zeros in its place", |disk| edit(disk, 4, |it| it[block(3)].fill(0)), DURABLE),
            ("the one before in its place", |disk| edit(disk, 4, |it| it.copy_within(block(2), 3 * BLOCK)), DURABLE),
            ("the opening of the last segment", |disk| edit(disk, 4, |it| it[BLOCK + 99] ^= 4), DURABLE),
            ("another byte in an earlier segment", |disk| edit(disk, 2, |it| it[3 * BLOCK + 999] ^= 4), more(2)),
            ("zeros in it", |disk| edit(disk, 2, |it| it[block(7)].fill(0)), more(2)),
            ("its opening", |disk| edit(disk, 2, |it| it[BLOCK + 99] ^= 4), more(2)),
            ("the opening of the first segment", |disk| edit(disk, 1, |it| it[BLOCK + 9] ^= 4), more(1)),
            ("the first segment is missing", |disk| disk.delete(FileId::Wal(1)), Refused(1, "is needed and missing")),
            ("one in the middle is missing", |disk| disk.delete(FileId::Wal(2)), Refused(2, "is needed and missing")),
            ("one in the middle is shorter", |disk| edit(disk, 2, |it| it.truncate(9_000)), Refused(2, "lost its end")),
            ("the last one is shorter", |disk| edit(disk, 4, |it| it.truncate(9_000)), Refused(4, "lost its end")),
            ("two changed places", two_changed_places, Refused(3, IN_USE)),
            ("a copy of one under the next number", copied_on, UpTo(21)),
        ],
    );
}

const fn more(segment: u64) -> Verdict {
    Refused(segment, "says that more was durable here")
}

const IN_USE: &str = "the header of a segment that was in use";

fn two_changed_places(disk: &mut FakeDisk) {
    let content = |sequence| disk.content(FileId::Wal(sequence)).expect("there are four segments").to_vec();
    let (two, three) = (content(2), content(3));
    disk.put(FileId::Wal(2), three);
    disk.put(FileId::Wal(3), two);
}

fn copied_on(disk: &mut FakeDisk) {
    let three = disk.content(FileId::Wal(3)).expect("there are four segments").to_vec();
    disk.put(FileId::Wal(5), three);
}

#[test]
fn damaged_headers_and_those_of_other_versions() {
    check(
        &log(),
        &[
            ("of the first segment", |disk| edit(disk, 1, |it| it[20] ^= 4), Refused(1, IN_USE)),
            ("of one in the middle", |disk| edit(disk, 3, |it| it[0] ^= 4), Refused(3, IN_USE)),
            ("of the last one", |disk| edit(disk, 4, |it| it[30] ^= 4), DURABLE),
            (
                "a later format",
                |disk| forge_header(disk, 2, |it| it[8] += 1),
                Refused(2, "by a newer version (format 2"),
            ),
            ("a format before the first", |disk| forge_header(disk, 1, |it| it[8] = 0), Refused(1, IN_USE)),
            ("another number", |disk| forge_header(disk, 3, |it| it[16] = 7), Refused(3, IN_USE)),
            ("it begins elsewhere", |disk| forge_header(disk, 3, |it| it[24] ^= 4), more(2)),
            ("it was larger", |disk| forge_header(disk, 3, |it| it[34] += 1), Refused(3, "lost its end")),
            ("all bytes of a segment are zeros", |disk| edit(disk, 3, |it| it.fill(0)), Refused(3, IN_USE)),
        ],
    );
}

/// Lengths and numbers that lie, in the last round and in the one before.
#[test]
fn frames_that_contradict_themselves() {
    check(
        &log(),
        &[
            ("a record longer than its frame", |disk| lengthen(disk, 4), UpTo(20)),
            ("the same before the last", |disk| lengthen(disk, 3), DURABLE),
            ("a frame longer than its segment", |disk| resize(disk, 4, 1 << 20), UpTo(20)),
            ("the same before the last", |disk| resize(disk, 3, 1 << 20), DURABLE),
            ("a frame shorter than its head", |disk| resize(disk, 4, 10), UpTo(20)),
            ("the same before the last", |disk| resize(disk, 3, 10), DURABLE),
            ("a gap in the numbers of records", |disk| forge(disk, 0, ENTRIES, |it| it[8] += 1), UpTo(20)),
            ("the same before the last", |disk| forge(disk, 1, ENTRIES, |it| it[8] += 1), DURABLE),
        ],
    );
}

fn lengthen(disk: &mut FakeDisk, frame: usize) {
    edit(disk, 4, |content| {
        let at = record(content, frame * BLOCK, ENTRIES);
        content[at] += 1;
    });
}

fn resize(disk: &mut FakeDisk, frame: usize, bytes: u32) {
    edit(disk, 4, |content| {
        let at = frame * BLOCK;
        content[at + HEAD + 24..at + HEAD + 28].copy_from_slice(&bytes.to_le_bytes());
        seal_record(content, at, 4);
    });
}

/// Everything has its right checksum: it was written so, and is refused wherever it stands.
#[test]
fn records_that_cannot_be() {
    check(
        &log(),
        &[
            ("an unknown kind", |disk| forge(disk, 0, ENTRIES, |it| it[40] = 99), Refused(4, "unknown kind 99")),
            (
                "the same before the last",
                |disk| forge(disk, 1, ENTRIES, |it| it[40] = 99),
                Refused(4, "unknown kind 99"),
            ),
            (
                "a frame in a frame",
                |disk| forge(disk, 0, ENTRIES, |it| it[40] = 1),
                Refused(4, "a frame within a frame"),
            ),
            (
                "a state in the middle",
                |disk| forge(disk, 0, ENTRIES, |it| it[40] = 2),
                Refused(4, "outside the opening"),
            ),
            (
                "an entry that leaves a gap",
                |disk| forge(disk, 0, ENTRIES, |it| it[24] = 23),
                Refused(4, "leaves a gap"),
            ),
            (
                "an entry below its checkpoint",
                |disk| forge(disk, 0, ENTRIES, |it| it[24] = 1),
                Refused(4, "or below its"),
            ),
            (
                "an entry of nobody",
                |disk| forge(disk, 0, ENTRIES, |it| it[16] = 9),
                Refused(4, "group 9: an entry of a"),
            ),
            (
                "a malformed hard state",
                |disk| forge(disk, 0, HARD_STATES, |it| it[HEAD] ^= 4),
                Refused(4, "a malformed"),
            ),
            ("a commit index beyond the log", |disk| vote(disk, 1, 22), Refused(4, "commit index lies beyond its log")),
            ("a term that goes back", |disk| vote(disk, 0, 20), Refused(4, "lower than the one before")),
            ("a segment that opens otherwise", opens_otherwise, Refused(3, "the log says None")),
            ("a segment that opens with nothing", opens_empty, Refused(3, "opens without a replica that is there")),
        ],
    );
}

/// The hard state of the last round.
fn vote(disk: &mut FakeDisk, term: u64, commit: u64) {
    forge(disk, 0, HARD_STATES, |record| {
        let payload = wire::encode(&HardState { term, commit, ..HardState::default() });
        assert_eq!(u32_at(record, 0), payload.len(), "it is as long as the one before");
        record[HEAD..HEAD + payload.len()].copy_from_slice(&payload);
    });
}

fn opens_otherwise(disk: &mut FakeDisk) {
    edit(disk, 3, |content| {
        let at = record(content, BLOCK, REPLICAS);
        content[at + 16] = 9;
        seal(content, BLOCK, 3);
    });
}

fn opens_empty(disk: &mut FakeDisk) {
    edit(disk, 3, |content| {
        // The frame ends with its head, whose own number is its last.
        content.copy_within(BLOCK + 8..BLOCK + 16, BLOCK + HEAD + 16);
        content[BLOCK + HEAD + 24..BLOCK + HEAD + 28].copy_from_slice(&((HEAD + ROUND) as u32).to_le_bytes());
        seal(content, BLOCK, 3);
    });
}

// ---- What may not even be asked for ----

#[test]
#[should_panic(expected = "round 1 follows round 1")]
fn a_round_that_comes_twice_is_a_programmers_error() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, vec![logged(2)])]);
    host.settle();
    assert!(host.outputs.contains(&Output::Persisted { round: 1 }));
    host.journal.append(Round { number: 1, groups: vec![entries(1, vec![logged(2)])] });
}

#[test]
#[should_panic(expected = "does not fit into a segment")]
fn an_entry_larger_than_a_segment_is_a_programmers_error() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, vec![entry(2, 1, &[7; SEGMENT as usize])])]);
    host.settle();
}
