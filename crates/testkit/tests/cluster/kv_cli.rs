//! Values through the command line: what `kv put KEY -` read is what `kv get` writes, byte for byte, up to 1 MiB.

use std::fs::{self, File};
use std::process::Stdio;

use anyhow::{Context, ensure};
use data_encoding::BASE64;
use serde_json::Value;
use testkit::{Cluster, Finished, Folder, Node, Signal, muster_binary, run, wait_until};

use crate::support::{PATIENCE, machine_shared};

const VALUE_BYTES_MAX: usize = 1 << 20;

#[test]
fn what_was_put_comes_back_byte_for_byte() {
    let _machine = machine_shared();
    Folder::scenario("kv-bytes", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        let [one, two, three] = [&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]];
        let mut watch = three.cli_start("watch", &["kv", "watch", "bytes/", "-o", "json"])?;
        wait_until(PATIENCE, "the watch has begun", || {
            ensure!(watch.output().contains("watching"), "{}", watch.log());
            Ok(())
        })?;
        let values = values();
        for (name, value) in &values {
            let ended = put(folder, one, name, value)?;
            ensure!(ended.status.success(), "{name} cannot be put: {}", ended.text());
            let got = two.cli(&["kv", "get", &key(name)])?;
            ensure!(got.status.success(), "{name} cannot be got: {}", got.text());
            let (got, wanted) = (got.stdout, value);
            let differs = got.iter().zip(wanted).position(|(a, b)| a != b);
            ensure!(got == *wanted, "of {name}, {} bytes became {}, from {differs:?} on", wanted.len(), got.len());
        }

        // All of them in two answers, and as they came.
        let mut listed = names(&two.cli_json(&["kv", "list", "bytes/"])?)?;
        let last = listed.last().context("nothing is listed")?.clone();
        listed.extend(names(&two.cli_json(&["kv", "list", "bytes/", "--after", &last])?)?);
        let all: Vec<_> = values.iter().map(|(name, _)| key(name)).collect();
        ensure!(listed == all, "{listed:?} are listed of {all:?}");
        wait_until(PATIENCE, "the watch has shown each value", || {
            watch.ensure_running()?;
            // An item that is being written is no line yet.
            let lines = watch.output().matches('\n').count();
            ensure!(lines > values.len(), "{lines} lines, {}", watch.log());
            Ok(())
        })?;
        for (line, (name, value)) in watch.output().lines().skip(1).zip(&values) {
            let item: Value = serde_json::from_str(line)?;
            ensure!(item["key"] == key(name), "{} came where {name} was to", item["key"]);
            let told = item["now"]["value"].as_str().context("a put without a value")?.as_bytes();
            let told = match item["now"]["encoding"].as_str() {
                Some("base64") => BASE64.decode(told)?,
                _ => told.to_vec(),
            };
            ensure!(told == *value, "the watch told {} bytes of {name}, not its {}", told.len(), value.len());
        }
        let _ = watch.signal(Signal::Interrupt);

        // The longest value is the longest, whatever is in it.
        for (name, byte) in [("text", b'x'), ("bytes", 0)] {
            let refused = put(folder, one, name, &[byte].repeat(VALUE_BYTES_MAX + 1))?;
            ensure!(refused.text().contains("a value has at most 1048576 bytes, not 1048577"), "{}", refused.text());
        }
        swapped(folder, one, two)
    });
}

/// What is expected is compared with what is there, also when the new value is none that could be typed.
fn swapped(folder: &Folder, from: &Node, to: &Node) -> anyhow::Result<()> {
    let ended = put(folder, from, "swapped", b"blue")?;
    ensure!(ended.status.success(), "{}", ended.text());
    let swap = |expect: &str| stdin(folder, from, &["kv", "cas", "bytes/swapped", "-", "--expect", expect], b"\0\xff");
    let refused = swap("Ymx1ZQ==")?;
    ensure!(refused.text().contains("was expected"), "{}", refused.text());
    let ended = swap("blue")?;
    ensure!(ended.status.success(), "{}", ended.text());
    ensure!(to.cli(&["kv", "get", "bytes/swapped"])?.stdout == b"\0\xff", "another value was set");
    Ok(())
}

/// In the order of their names.
fn values() -> Vec<(&'static str, Vec<u8>)> {
    let mut state = 1_u64;
    let chance = (0..VALUE_BYTES_MAX).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    vec![
        ("bells", vec![7; VALUE_BYTES_MAX]),
        ("chance", chance.collect()),
        ("empty", Vec::new()),
        ("escapes", vec![0x1b; VALUE_BYTES_MAX]),
        ("newline", b"blue\n".to_vec()),
        ("no-newline", b"blue".to_vec()),
        ("quotes", b"\"\\\n\t".repeat(VALUE_BYTES_MAX / 4)),
        ("umlauts", "\u{e4}".repeat(VALUE_BYTES_MAX / 2).into_bytes()),
        ("zeros", vec![0; VALUE_BYTES_MAX]),
    ]
}

fn key(name: &str) -> String {
    format!("bytes/{name}")
}

/// The keys that a list holds.
fn names(list: &Value) -> anyhow::Result<Vec<String>> {
    let keys = list["keys"].as_array().context("no list of keys")?;
    Ok(keys.iter().filter_map(|key| key["key"].as_str()).map(str::to_owned).collect())
}

fn put(folder: &Folder, node: &Node, name: &str, value: &[u8]) -> anyhow::Result<Finished> {
    stdin(folder, node, &["kv", "put", &key(name), "-"], value)
}

/// Runs the command line against a node, with these bytes as its standard input.
fn stdin(folder: &Folder, node: &Node, words: &[&str], bytes: &[u8]) -> anyhow::Result<Finished> {
    let file = folder.path().join("value");
    fs::write(&file, bytes)?;
    let api = node.api.to_string();
    let words: Vec<&str> = words.iter().copied().chain(["--api", api.as_str()]).collect();
    run(muster_binary()?, &words, Stdio::from(File::open(&file)?), PATIENCE)
}
