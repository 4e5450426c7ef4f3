//! A node's data directory that was copied, or brought back from a backup.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::{Cluster, Folder, Node, Start, wait_until};

use crate::support::{PATIENCE, borrowed, ensure_exactly, machine_shared, numbered, wait_tolerant, wait_voters};

/// Copies what a backup would: directories and files.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, path, target) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&path, &target)?;
        } else if kind.is_file() {
            std::fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// A node with ports of its own whose data directory is a copy of another one's.
fn copied(node: &Node, name: &str, folder: &Folder) -> anyhow::Result<Node> {
    let twin = Node::new(name, folder.path())?;
    copy(&node.data_dir, &twin.data_dir)?;
    Ok(twin)
}

/// It ends by itself, and says `why` and what to do.
fn ends(node: &mut Node, why: &str) -> anyhow::Result<()> {
    let ended = node.wait_for_end(PATIENCE)?;
    let text = ended.text();
    ensure!(!ended.status.success(), "{} ended as if nothing were wrong:\n{text}", node.name);
    for expect in [why, "If this one is the copy, remove it"] {
        ensure!(text.contains(expect), "{} does not say {expect:?}:\n{text}", node.name);
    }
    Ok(())
}

fn names(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = node.members()?.iter().map(|member| member["name"].to_string()).collect();
    names.sort_unstable();
    Ok(names)
}

#[test]
fn a_copy_of_a_running_nodes_data_is_refused_and_ends_and_nothing_is_lost() {
    let _machine = machine_shared();
    Folder::scenario("copied", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        let records = numbered("value", 0..200);
        cluster.kcat().produce("t", borrowed(&records[..100]), &[], &[])?;
        for topic in ["t", "muster.events"] {
            wait_voters(&cluster.nodes[0], topic, 3)?;
        }
        wait_tolerant(&cluster.nodes[0])?;
        let before = names(&cluster.nodes[0])?;
        let mut twin = copied(&cluster.nodes[2], "copy", folder)?;
        // What the copy does not have.
        cluster.kcat().produce("t", borrowed(&records[100..]), &[], &[])?;
        cluster.nodes[0].api().put("/v1/kv/later", &json!({ "value": "kept" }))?.ok()?;

        twin.start(&Start::Up)?;
        wait_until(PATIENCE, "a member refuses the copy", || {
            let refuses =
                |node: &Node| node.log().contains("another process of this node, with another data directory");
            ensure!(cluster.nodes[..2].iter().any(refuses), "nobody says so; the copy: {}", twin.log());
            Ok(())
        })?;
        // An election that must not be decided by a copy that has forgotten what its node acknowledged.
        cluster.nodes[0].kill()?;
        let kept = wait_until(PATIENCE, "the others go on", || {
            cluster.nodes[1].api().put("/v1/kv/during", &json!({ "value": "kept" }))?.ok()?;
            cluster.nodes[2].api().get("/v1/kv/later")?.ok()
        })?;
        ensure!(kept["value"] == "kept", "{kept}");
        ends(&mut twin, "another process of this node is there")?;

        let read = wait_until(PATIENCE, "the records are read", || {
            let read = cluster.nodes[2].kcat().consume("t")?;
            ensure!(read.len() == records.len(), "{} records", read.len());
            Ok(read)
        })?;
        ensure_exactly(&read, &records)?;
        cluster.nodes[0].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let after = names(&cluster.nodes[0])?;
        ensure!(after == before, "the members were {before:?}, and are {after:?}");
        Ok(())
    });
}

#[test]
fn a_copy_older_than_the_nodes_last_start_is_refused_though_the_node_is_gone() {
    let _machine = machine_shared();
    Folder::scenario("restored", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        cluster.nodes[2].stop()?;
        let mut backup = copied(&cluster.nodes[2], "backup", folder)?;
        for _ in 0..2 {
            cluster.nodes[2].start(&Start::Up)?;
            cluster.wait_ready(PATIENCE)?;
            // The cluster has heard of this process: it asked for something.
            cluster.nodes[2].api().post("/v1/tokens", &json!({}))?.ok()?;
            cluster.nodes[2].stop()?;
        }
        // Whoever refuses it does not know it from having met: only from what is written down.
        for node in [0, 1] {
            cluster.nodes[node].stop()?;
        }
        for node in [0, 1] {
            cluster.nodes[node].start(&Start::Up)?;
        }
        cluster.wait_ready(PATIENCE)?;
        cluster.nodes[0].api().put("/v1/kv/later", &json!({ "value": "kept" }))?.ok()?;

        backup.start(&Start::Up)?;
        ends(&mut backup, "a later process of this node than this one was there")?;
        // However often it is started: its own number does not rise until it passes for a later process.
        for _ in 0..3 {
            let ended = backup.start_again(&Start::Up)?;
            ensure!(
                !ended.status.success() && ended.text().contains("is an older copy of the data"),
                "{}",
                ended.text()
            );
        }
        cluster.nodes[2].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let kept = cluster.nodes[2].api().get("/v1/kv/later")?.ok()?;
        ensure!(kept["value"] == "kept", "{kept}");
        wait_tolerant(&cluster.nodes[0])
    });
}
