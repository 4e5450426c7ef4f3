//! A journal that is not as it was written.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::{Cluster, Folder, Start, wait_until};

use crate::support::{PATIENCE, borrowed, ensure_exactly, machine_shared, numbered};

/// Large records that push others out of a node's memory.
const LATER: usize = 200;

#[test]
fn a_damaged_record_keeps_the_node_from_starting_and_is_named() {
    let _machine = machine_shared();
    Folder::scenario("corrupt", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &mut cluster.nodes[0];
        let marked = b"a value that is easy to find in a file";
        node.kcat().produce("t", [(&b"k"[..], &marked[..])], &[], &[])?;
        // What comes later makes sure that the damage lies below what is known to be durable.
        node.kcat().produce("t", borrowed(&numbered("later", 0..100)), &[], &[])?;
        node.stop()?;

        let (file, offset) = find(&node.data_dir, marked)?.context("no file of the data directory holds the record")?;
        let whole = std::fs::read(&file)?;
        let mut damaged = whole.clone();
        damaged[offset] ^= 0x01;
        std::fs::write(&file, damaged)?;
        let ended = node.start_again(&Start::Up)?;
        let text = ended.text();
        ensure!(!ended.status.success(), "it started with a damaged journal:\n{text}");
        let name = file.file_name().context("a file without a name")?.to_string_lossy();
        ensure!(text.contains(&*name), "the file {name} is not named:\n{text}");
        ensure!(names_place(&text, offset), "no offset in the message is near {offset}:\n{text}");

        // Mended, it starts, and the refusal changed nothing.
        std::fs::write(&file, whole)?;
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        ensure!(node.kcat().consume("t")?.len() == 101, "records are missing");
        Ok(())
    });
}

#[test]
fn damage_that_is_found_while_a_node_runs_ends_it_and_is_named() {
    let _machine = machine_shared();
    Folder::scenario("corrupt-running", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &mut cluster.nodes[0];
        let marked = b"a value that is easy to find in a file";
        node.kcat().produce("t", [(&b"k"[..], &marked[..])], &[], &[])?;
        // So much comes later that the first record is on disk only.
        let large = "x".repeat(200_000);
        let later: Vec<_> = (0..LATER).map(|n| (b"k".to_vec(), format!("{n}{large}").into_bytes())).collect();
        node.kcat().produce("t", borrowed(&later), &[], &[])?;

        let (file, offset) = find(&node.data_dir, marked)?.context("no file of the data directory holds the record")?;
        let opened = std::fs::File::options().read(true).write(true).open(&file)?;
        opened.write_all_at(&[marked[0] ^ 0x01], u64::try_from(offset)?)?;
        let kcat = node.kcat().with_limit(Duration::from_secs(10));
        let ended = std::thread::scope(|scope| {
            let reader = scope.spawn(move || kcat.consume("t"));
            let ended = node.wait_for_end(PATIENCE);
            ended.map(|ended| (ended, reader.join()))
        });
        let (ended, read) = ended?;
        let text = node.log();
        ensure!(!ended.status.success(), "it ended as if nothing were wrong:\n{text}");
        ensure!(!matches!(&read, Ok(Ok(records)) if records.len() == LATER + 1), "the damaged record was served");
        let name = file.file_name().context("a file without a name")?.to_string_lossy();
        ensure!(text.contains(&format!("{name} is damaged at byte")), "the file {name} is not named:\n{text}");
        ensure!(names_place(&text, offset), "no offset in the message is near {offset}:\n{text}");
        Ok(())
    });
}

#[test]
fn a_torn_last_write_is_cut_off() {
    let _machine = machine_shared();
    Folder::scenario("torn", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &mut cluster.nodes[0];
        let records = numbered("kept", 0..100);
        node.kcat().produce("t", borrowed(&records), &[], &[])?;
        let last = b"the last value before the lights went out";
        node.kcat().produce("t", [(&b"k"[..], &last[..])], &[], &[])?;
        node.kill()?;
        // Half of a write that never ended, behind everything: zeros follow the log, so that is where garbage goes.
        let (file, offset) = find(&node.data_dir, last)?.context("no file holds the record")?;
        let mut bytes = std::fs::read(&file)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).context("an empty file")? + 1;
        ensure!(end > offset, "the record lies behind the end");
        let start = end.next_multiple_of(8);
        ensure!(bytes.len() > start + 64, "no room behind the log's end at {end} of {}", bytes.len());
        bytes[start..start + 64].copy_from_slice(&[0xa5; 64]);
        std::fs::write(&file, bytes)?;

        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        let read = wait_until(PATIENCE, "the records are read", || node.kcat().consume("t"))?;
        ensure_exactly(&read[..100], &records)?;
        ensure!(read.len() == 101 && read[100].value == last, "the last record came back as {:?}", read.last());
        Ok(())
    });
}

/// The first file below `folder` that holds `needle`, and where.
fn find(folder: &Path, needle: &[u8]) -> anyhow::Result<Option<(PathBuf, usize)>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            find(&path, needle)?
        } else if path.is_file() {
            let bytes = std::fs::read(&path)?;
            bytes.windows(needle.len()).position(|window| window == needle).map(|at| (path, at))
        } else {
            None
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether the message names a place at or shortly before `offset`: the beginning of the record or round around it.
fn names_place(text: &str, offset: usize) -> bool {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<usize>().ok());
    numbers.into_iter().any(|number| number > 0 && number <= offset && offset - number < 64 << 10)
}
