//! Two of three nodes are gone for good, and the third one was behind them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::{Cluster, Finished, Folder, Node, Start, muster_binary, wait_until};

use crate::kv::{put, said};
use crate::support::{
    PATIENCE, borrowed, ensure_exactly, machine_shared, numbered, produce_to_each, wait_caught_up, wait_tolerant,
    wait_voters,
};

fn recover(data_dir: &Path, arguments: &[&str]) -> anyhow::Result<Finished> {
    let binary = muster_binary()?;
    let binary = binary.to_str().context("a binary with a plain name")?;
    let data_dir = data_dir.to_str().context("a folder with a plain name")?;
    let all: Vec<&str> = ["recover", "--data-dir", data_dir].into_iter().chain(arguments.iter().copied()).collect();
    testkit::run(binary, &all, Stdio::null(), PATIENCE)
}

fn report(data_dir: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let all: Vec<&str> = arguments.iter().copied().chain(["--inspect", "--output", "json"]).collect();
    let finished = recover(data_dir, &all)?;
    ensure!(finished.status.success(), "{}", finished.text());
    Ok(serde_json::from_slice(&finished.stdout)?)
}

fn refused(finished: &Finished, why: &str) -> anyhow::Result<()> {
    ensure!(!finished.status.success() && finished.text().contains(why), "not refused by {why:?}: {}", finished.text());
    Ok(())
}

#[test]
fn a_survivor_of_a_lost_majority_becomes_the_cluster_with_all_that_it_had() {
    let _machine = machine_shared();
    Folder::scenario("recover", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        let records = numbered("value", 0..200);
        cluster.kcat().produce("t", borrowed(&records), &[], &[])?;
        for topic in ["t", "muster.events"] {
            wait_voters(&cluster.nodes[0], topic, 3)?;
        }
        wait_tolerant(&cluster.nodes[0])?;
        let old_token = cluster.token(1)?;
        put(&cluster.nodes[0], &["kept", "before"])?;
        for name in ["node1", "node2", "node3"] {
            wait_caught_up(&cluster, name)?;
        }
        let survivor = cluster.nodes[2].data_dir.clone();
        refused(&recover(&survivor, &["--yes"])?, "is in use by the muster process")?;

        lose_the_others(&mut cluster)?;
        let found = report(&survivor, &[])?;
        ensure!(found["name"] == "node3" && found["incarnation"] == 0, "{found}");
        let partitions = found["partitions"].as_array().context("no partitions")?;
        let t = partitions.iter().find(|it| it["topic"] == "t").context("no topic t")?;
        ensure!(t["here"]["records"] == 200 && t["here"]["voter"] == true, "{t}");
        let text = recover(&survivor, &[])?.text();
        let late = "whatever was acknowledged after this node heard of it last";
        for expect in ["node 1 (node1)", "A recovery here loses for good", late, "Nothing was changed"] {
            ensure!(text.contains(expect), "it does not say {expect:?}:\n{text}");
        }
        one_that_knows_more_is_told_of(&cluster, folder)?;
        ensure!(report(&survivor, &[])? == found, "something was changed");

        let recovered = recovered_once(&cluster, &survivor)?;
        cluster.nodes[2].start(&Start::Up)?;
        cluster.nodes[2].wait_ready(PATIENCE)?;
        let alone = &cluster.nodes[2];
        ensure_exactly(&alone.kcat().consume("t")?, &records)?;
        ensure!(said(alone, &["kv", "get", "kept"])? == "before", "it has a value that it never heard of");
        ensure!(alone.api().get("/v1/kv/late")?.status == 404, "it has a key that it never heard of");
        alone.kcat().produce("t", [(&b"key-200"[..], &b"value-200"[..])], &[], &[])?;
        ensure!(alone.members()?.len() == 1, "{:?}", alone.members()?);
        let event = wait_until(PATIENCE, "the recovery is an event", || {
            let events = alone.kcat().consume("muster.events")?;
            events.iter().map(testkit::Record::text).find(|it| it.contains("cluster.recovered")).context("none")
        })?;
        ensure!(event.contains("\"incarnation\":1"), "{event}");

        // What is of the old incarnation is refused, and says why.
        let ended = cluster.nodes[0].start_again(&Start::Up)?;
        refused(&ended, "the cluster was recovered without this node")?;
        recovered_apart(&cluster, folder, &recovered)?;
        std::fs::remove_dir_all(&cluster.nodes[0].data_dir)?;
        refused(&cluster.nodes[0].start_again(&Start::Join(old_token))?, "is unknown here or was revoked")?;
        let _ = std::fs::remove_dir_all(&cluster.nodes[0].data_dir);

        grown_again(&mut cluster)
    });
}

/// The third node, the survivor, dies before the others, which acknowledge something without it: a value, a key and a record.
/// Then they are lost. The first one's data is brought back later; the second one's is gone.
fn lose_the_others(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.nodes[2].kill()?;
    // At once: the calls wait for the next leader, where the dead one led.
    put(&cluster.nodes[0], &["kept", "after"])?;
    put(&cluster.nodes[0], &["late", "after"])?;
    produce_to_each(cluster, "t", 1, "late")?;
    cluster.nodes[..2].iter_mut().try_for_each(Node::kill)?;
    std::fs::remove_dir_all(&cluster.nodes[1].data_dir)?;
    Ok(())
}

/// With another survivor's report, what that one has beyond this one is told, and this one is not made the cluster.
fn one_that_knows_more_is_told_of(cluster: &Cluster, folder: &Folder) -> anyhow::Result<()> {
    let (survivor, more) = (&cluster.nodes[2].data_dir, report(&cluster.nodes[0].data_dir, &[])?);
    let file = folder.path().join("node1.json");
    std::fs::write(&file, more.to_string())?;
    let file = file.to_str().context("a plain name")?;
    let text = recover(survivor, &["--others", file])?.text();
    for expect in ["ANOTHER SURVIVOR HAS MORE", "records of t/0, this node 200", "NOT HERE", "knows more"] {
        ensure!(text.contains(expect), "it does not say {expect:?}:\n{text}");
    }
    refused(&recover(survivor, &["--others", file, "--yes"])?, "knows more")
}

/// The survivor becomes the cluster; said again, that changes nothing. What it says of itself afterwards.
fn recovered_once(cluster: &Cluster, survivor: &Path) -> anyhow::Result<Value> {
    let done = recover(survivor, &["--yes"])?;
    let lost = format!("node 1 (node1) at {}", cluster.nodes[0].peer);
    for expect in ["is the whole cluster now", "Given up for good", lost.as_str(), "(node2)"] {
        ensure!(done.status.success() && done.text().contains(expect), "it does not say {expect:?}: {}", done.text());
    }
    let recovered = report(survivor, &[])?;
    let again = recover(survivor, &["--yes"])?;
    ensure!(again.status.success() && again.text().contains("was recovered already"), "{}", again.text());
    ensure!(report(survivor, &[])? == recovered && recovered["incarnation"] == 1, "something was changed: {recovered}");
    Ok(recovered)
}

/// Another survivor is recovered, too, and becomes a cluster of its own under the same name: it does not pass for a member of
/// the first one.
fn recovered_apart(cluster: &Cluster, folder: &Folder, first: &Value) -> anyhow::Result<()> {
    let other = &cluster.nodes[0];
    let file = folder.path().join("node3.json");
    std::fs::write(&file, first.to_string())?;
    let file = file.to_str().context("a plain name")?;
    refused(&recover(&other.data_dir, &["--others", file, "--yes"])?, "was recovered already")?;
    let done = recover(&other.data_dir, &["--yes", "--output", "json"])?;
    ensure!(done.status.success(), "{}", done.text());
    let told: Value = serde_json::from_slice(&done.stdout)?;
    let lost = told["nodes_lost"].as_array().context("nobody is lost")?;
    // They joined at the same time, so either may have the lower id.
    let lost: BTreeSet<&str> = lost.iter().filter_map(|node| node["name"].as_str()).collect();
    ensure!(lost == BTreeSet::from(["node2", "node3"]), "{told}");
    refused(&recover(&other.data_dir, &["--others", file, "--yes"])?, "was recovered apart from this one")?;
    let token = cluster.token(1)?;
    refused(&other.start_again(&Start::Join(token))?, "two survivors were recovered apart")
}

/// New nodes join the survivor, and the cluster is as safe as before.
fn grown_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    let token = cluster.token(2)?;
    for node in [0, 1] {
        cluster.nodes[node].start(&Start::Join(token.clone()))?;
    }
    cluster.wait_ready(PATIENCE)?;
    wait_tolerant(&cluster.nodes[0])?;
    wait_voters(&cluster.nodes[0], "t", 3)?;
    cluster.nodes[2].kill()?;
    let read = wait_until(PATIENCE, "the others have it all", || {
        let read = cluster.nodes[0].kcat().consume("t")?;
        ensure!(read.len() == 201, "{} records", read.len());
        Ok(read)
    })?;
    ensure_exactly(&read, &numbered("value", 0..201))?;
    cluster.nodes[2].start(&Start::Up)?;
    cluster.wait_ready(PATIENCE)
}
