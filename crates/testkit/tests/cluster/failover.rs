//! Leaders die or freeze; the cluster goes on.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Cluster, Folder, Scrape, Signal, Start, holds_for, wait_until};

use crate::support::{
    PATIENCE, machine_alone, machine_shared, scrape, wait_caught_up, wait_home, wait_tolerant, wait_voters,
};

/// From `kill -9` of a leader to the next accepted write.
const FAILOVER_LIMIT: Duration = Duration::from_secs(5);
/// The default election timeout, and the ticks of 50 ms in it.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
const ELECTION_TICKS: f64 = 20.0;

#[test]
fn writes_go_on_within_five_seconds_of_a_killed_leader() {
    let _machine = machine_alone();
    Folder::scenario("failover", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"before"[..])], &[], &[])?;
        for topic in ["t", "muster.events"] {
            wait_voters(&cluster.nodes[0], topic, 3)?;
        }
        wait_tolerant(&cluster.nodes[0])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        let start = Instant::now();
        cluster.nodes[leader].kill()?;

        let survivor = (leader + 1) % 3;
        let mut topic = 0;
        wait_until(FAILOVER_LIMIT, "the cluster's state can be changed", || {
            topic += 1;
            cluster.nodes[survivor].api().post("/v1/topics", &json!({ "name": format!("after{topic}") }))?.ok()
        })?;
        let changed = start.elapsed();
        // Its partitions had this leader or another one; either way they take records.
        let left = FAILOVER_LIMIT.saturating_sub(start.elapsed());
        wait_until(left, "the partition takes records", || {
            let quick = ["-X", "message.timeout.ms=1500", "-X", "topic.metadata.refresh.interval.ms=200"];
            cluster.nodes[survivor].kcat().produce("t", [(&b"k"[..], &b"after"[..])], &[], &quick)
        })?;
        let took = start.elapsed();
        ensure!(took < FAILOVER_LIMIT, "state after {changed:?}, records after {took:?}");

        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let name = cluster.nodes[leader].name.clone();
        wait_caught_up(&cluster, &name)
    });
}

#[test]
fn a_frozen_leader_is_replaced_and_thaws_as_a_follower() {
    let _machine = machine_shared();
    Folder::scenario("frozen", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"before"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[0], "t", 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let frozen = cluster.meta_leader(PATIENCE)?;
        let survivor = (frozen + 1) % 3;
        let before: Vec<Scrape> = cluster.nodes.iter().map(scrape).collect::<anyhow::Result<_>>()?;
        let stopped = Instant::now();
        cluster.nodes[frozen].signal(Signal::Stop)?;
        wait_until(PATIENCE, "another node leads __meta", || {
            let status = cluster.nodes[survivor].api().get("/v1/status")?.ok()?;
            let leader = status["meta"]["leader"].as_str().unwrap_or_default();
            let other = cluster.nodes.iter().enumerate().any(|(at, node)| at != frozen && node.name == leader);
            ensure!(other, "the leader is {leader:?}");
            // What does not answer is listed, with the reason, never left out.
            let name = &cluster.nodes[frozen].name;
            let members = status["nodes"].as_array().cloned().unwrap_or_default();
            let silent = members.iter().find(|member| member["name"] == name.as_str());
            let shown = silent.is_some_and(|member| member["state"] == "unreachable" && member["reason"] != "");
            ensure!(shown, "the frozen node is shown as {silent:?}");
            Ok(())
        })?;
        cluster.nodes[survivor].kcat().produce("t", [(&b"k"[..], &b"during"[..])], &[], &[])?;
        wait_election_counted(&cluster, frozen, &before)?;
        wait_until(PATIENCE, "it has stood still for longer than an election timeout", || {
            ensure!(stopped.elapsed() > 2 * ELECTION_TIMEOUT, "{:?} passed", stopped.elapsed());
            Ok(())
        })?;

        cluster.nodes[frozen].signal(Signal::Continue)?;
        cluster.wait_ready(PATIENCE)?;
        let name = cluster.nodes[frozen].name.clone();
        wait_caught_up(&cluster, &name)?;
        ensure_pause_counted(&before[frozen], &scrape(&cluster.nodes[frozen])?)?;
        for node in &cluster.nodes {
            let values: Vec<String> = node.kcat().consume("t")?.iter().map(testkit::Record::text).collect();
            ensure!(values == ["before", "during"], "{} reads {values:?}", node.name);
        }
        // What it led before goes back to it.
        wait_home(&cluster.nodes[survivor].kcat(), &["t", "muster.events"])?;
        let first = cluster.nodes[survivor].terms()?;
        holds_for(Duration::from_secs(2), || {
            let now = cluster.nodes[survivor].terms()?;
            ensure!(now == first, "the thawed node disturbs: terms were {first:?} and are {now:?}");
            Ok(())
        })
    });
}

/// Waits until the metrics of all but the frozen node tell of an election of `__meta`: a new term and a new leader on each of
/// them, and a candidate.
fn wait_election_counted(cluster: &Cluster, frozen: usize, before: &[Scrape]) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the election of __meta is counted", || {
        let mut elections = 0.0;
        for (_, (node, before)) in cluster.nodes.iter().zip(before).enumerate().filter(|(at, _)| *at != frozen) {
            let now = scrape(node)?;
            let meta = [("topic", "__meta")];
            let grown = |name: &str| anyhow::Ok(now.value(name, &meta)? - before.value(name, &meta)?);
            for name in ["muster_group_term", "muster_group_leader_changes_total"] {
                let more = grown(name)?;
                ensure!(more >= 1.0, "on {}, {name} grew by {more}", node.name);
            }
            elections += grown("muster_group_elections_total")?;
        }
        ensure!(elections >= 1.0, "nobody was a candidate");
        Ok(())
    })
}

/// The metrics of a node that stood still for longer than an election timeout say so.
fn ensure_pause_counted(before: &Scrape, now: &Scrape) -> anyhow::Result<()> {
    let grown = |name: &str| anyhow::Ok(now.value(name, &[])? - before.value(name, &[])?);
    let (skipped, pauses) = (grown("muster_raft_ticks_skipped_total")?, grown("muster_raft_pauses_total")?);
    ensure!(skipped >= ELECTION_TICKS && pauses >= 1.0, "it counts {skipped} more ticks skipped, {pauses} more pauses");
    Ok(())
}

#[test]
fn without_a_majority_writes_wait_and_fail_and_go_on_with_it() {
    let _machine = machine_shared();
    Folder::scenario("minority", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"before"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[0], "t", 3)?;
        cluster.nodes[1].kill()?;
        cluster.nodes[2].kill()?;
        let alone = &cluster.nodes[0];
        let outcome = alone.kcat().produce("t", [(&b"k"[..], &b"lonely"[..])], &[], &["-X", "message.timeout.ms=4000"]);
        ensure!(outcome.is_err(), "one of three nodes acknowledged a record");
        let status = alone.api().get("/v1/status")?.ok()?;
        let tolerance = status["fault_tolerance"].as_str().unwrap_or_default();
        ensure!(tolerance.contains("no majority"), "status says {tolerance:?}");

        cluster.nodes[1].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_until(PATIENCE, "records are accepted again", || {
            cluster.nodes[0].kcat().produce("t", [(&b"k"[..], &b"after"[..])], &[], &["-X", "message.timeout.ms=4000"])
        })?;
        let values: Vec<String> = cluster.nodes[1].kcat().consume("t")?.iter().map(testkit::Record::text).collect();
        let kept = values.first().is_some_and(|value| value == "before") && values.contains(&"after".to_owned());
        ensure!(kept, "the topic holds {values:?}");
        Ok(())
    });
}
