//! A rolling upgrade on real processes: nodes that act as an older muster are restarted one after another as what they are,
//! and the cluster version rises after the last one. There is no way back from there.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, Start, wait_until};

use crate::support::{PATIENCE, machine_shared, wait_tolerant};

/// As an older muster, which this binary can act as.
const OLDER: [&str; 2] = ["--cluster-version-max", "1"];

fn version(node: &Node) -> anyhow::Result<Value> {
    Ok(node.cli_json(&["status"])?["version"].clone())
}

fn set_older(node: &mut Node, older: bool) {
    node.arguments = if older { OLDER.map(String::from).to_vec() } else { Vec::new() };
}

fn wait_active(node: &Node, active: u64) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("cluster version {active} is active"), || {
        let version = version(node)?;
        ensure!(version["active"] == active, "{version}");
        Ok(())
    })
}

#[test]
fn the_cluster_version_rises_after_the_last_node_and_older_ones_are_refused_from_then_on() {
    let _machine = machine_shared();
    Folder::scenario("upgrade", |folder| {
        let mut cluster = Cluster::prepare(folder, 3)?;
        cluster.nodes.iter_mut().for_each(|node| set_older(node, true));
        cluster.form()?;
        cluster.wait_ready(Duration::from_secs(30))?;
        wait_tolerant(&cluster.nodes[0])?;
        ensure!(version(&cluster.nodes[0])?["active"] == 1, "{}", version(&cluster.nodes[0])?);

        for at in 0..3 {
            let early = cluster.nodes[(at + 1) % 3].cli(&["cluster", "hold"])?;
            ensure!(!early.status.success(), "what came with version 2 is done by older nodes:\n{}", early.text());
            let last = cluster.nodes[2].name.clone();
            ensure!(
                early.text().contains("upgrade muster on") && early.text().contains(last.as_str()),
                "{}",
                early.text()
            );
            cluster.nodes[at].stop()?;
            set_older(&mut cluster.nodes[at], false);
            cluster.nodes[at].start(&Start::Up)?;
            cluster.wait_ready(PATIENCE)?;
            if at < 2 {
                let seen = version(&cluster.nodes[at])?;
                ensure!(seen["active"] == 1 && seen["possible"] == 1, "it does not wait for {last}: {seen}");
                let waits: Vec<&str> =
                    seen["waits_for"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                ensure!(waits.contains(&last.as_str()), "{seen}");
            }
        }
        for node in &cluster.nodes {
            wait_active(node, 2)?;
        }
        let held = cluster.nodes[1].cli_json(&["cluster", "hold"])?;
        ensure!(held["held_at"] == 2, "{held}");
        // Whichever node is asked, it knows.
        let told = cluster.nodes[2].cli_json(&["cluster", "version"])?;
        ensure!(told == json!({ "active": 2, "possible": 2, "held_at": 2, "waits_for": [] }), "{told}");
        let told = cluster.nodes[0].cli(&["cluster", "version"])?;
        ensure!(told.text() == "cluster version: 2 (held at 2)\n", "{:?}", told.text());
        let released = cluster.nodes[2].cli_json(&["cluster", "release"])?;
        ensure!(released["held_at"].is_null(), "{released}");

        // There is no way back: neither for a member, ...
        cluster.nodes[2].stop()?;
        set_older(&mut cluster.nodes[2], true);
        let ended = cluster.nodes[2].start_again(&Start::Up)?;
        ensure!(!ended.status.success(), "an older one runs:\n{}", ended.text());
        for expect in ["at cluster version 2", "upgrade muster here again", "Nothing was changed"] {
            ensure!(ended.text().contains(expect), "it does not say {expect:?}:\n{}", ended.text());
        }
        // ... nor for one that would join, ...
        let mut stranger = Node::new("stranger", folder.path())?;
        set_older(&mut stranger, true);
        let refused = stranger.start_again(&Start::Join(cluster.token(1)?))?;
        ensure!(!refused.status.success(), "it joined:\n{}", refused.text());
        ensure!(refused.text().contains("the cluster is at cluster version 2"), "no reason:\n{}", refused.text());
        // ... and the member's data is as it was.
        set_older(&mut cluster.nodes[2], false);
        cluster.nodes[2].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])
    });
}
