//! What nodes count, as scrapers and `muster status --consensus` get it.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Scrape, holds_for, wait_until};

use crate::support::{PATIENCE, borrowed, machine_shared, numbered, scrape, wait_tolerant, wait_voters};

#[test]
fn nodes_tell_their_metrics_in_a_text_that_scrapers_take() {
    let _machine = machine_shared();
    Folder::scenario("metrics", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        let node = &cluster.nodes[0];
        node.api().post("/v1/topics", &json!({ "name": "quo.ted", "partitions": 2 }))?.ok()?;
        node.kcat().produce("quo.ted", borrowed(&numbered("v", 0..50)), &[], &[])?;
        wait_voters(node, "quo.ted", 3)?;
        wait_tolerant(node)?;
        ensure!(node.api().get("/v1/vms/none")?.status == 404, "there is a VM");
        let leader = cluster.meta_leader(PATIENCE)?;
        wait_until(PATIENCE, "all three count", || {
            for (place, node) in cluster.nodes.iter().enumerate() {
                ensure_counted(&scrape(node)?, place == leader).with_context(|| node.name.clone())?;
            }
            Ok(())
        })?;
        ensure_of_clients(&scrape(node)?)?;
        // Counters never fall, and what is there stays there.
        let mut before = scrape(node)?;
        holds_for(Duration::from_secs(1), || {
            let now = scrape(node)?;
            ensure_grown(&before, &now)?;
            before = now;
            Ok(())
        })
    });
}

fn ensure_counted(scrape: &Scrape, leads_meta: bool) -> anyhow::Result<()> {
    let value = |name: &str| scrape.value(name, &[]);
    ensure!(value("muster_core_answered")? == 1.0 && value("muster_ready")? == 1.0, "it is not ready");
    ensure!(scrape.value("muster_raft_groups", &[("state", "all")])? >= 4.0, "it has few groups");
    ensure_elected(scrape, leads_meta)?;
    ensure_queues(scrape)?;
    ensure!(value("muster_journal_sync_seconds_count")? >= 1.0, "it synced nothing");
    ensure!(value("muster_raft_ticks_total")? >= 10.0, "time stands still");
    ensure!(scrape.sum("muster_peer_connected", &[]) == 2.0, "it is not connected to two peers");
    ensure!(scrape.series("muster_peer_silence_seconds", &[]).count() == 2, "it does not know two peers");
    ensure!(scrape.sum("muster_peer_heartbeat_gap_seconds_count", &[]) >= 5.0, "no heartbeat was written");
    let delays = scrape.sum("muster_peer_send_delay_seconds_count", &[("channel", "control")]);
    ensure!(delays >= 5.0, "nothing was written to a control channel");
    ensure!(value("muster_cluster_topics")? >= 1.0 && value("muster_cluster_partitions")? >= 2.0, "no topics");
    ensure!(scrape.value("muster_cluster_nodes", &[("lifecycle", "active")])? == 3.0, "not three nodes");
    ensure!(value("muster_disk_full")? == 0.0 && value("muster_journal_log_bytes")? > 0.0, "the disk");
    ensure!(scrape.value("muster_disk_operation_seconds_count", &[("kind", "write")])? >= 1.0, "nothing written");
    ensure!(value("process_resident_memory_bytes")? > 1e6 && value("process_cpu_seconds_total")? > 0.0, "no process");
    ensure!(
        scrape.sum("muster_thread_cpu_seconds_total", &[("thread", "core")]) > 0.0,
        "the core's thread did nothing"
    );
    ensure!(scrape.value("muster_task_running", &[("task", "listeners/api")])? == 1.0, "the API's task does not run");
    ensure!(scrape.sum("muster_build_info", &[]) == 1.0 && value("muster_metrics_refused_total")? == 0.0, "build info");
    Ok(())
}

/// What tells a node that does not keep up. How much it is depends on the machine; that it is told does not.
fn ensure_queues(scrape: &Scrape) -> anyhow::Result<()> {
    let value = |name: &str| scrape.value(name, &[]);
    ensure!(value("muster_raft_ticks_skipped_total")? >= 0.0, "the ticks that were skipped");
    let (unapplied, most) = (value("muster_raft_unapplied_entries")?, value("muster_raft_unapplied_entries_max")?);
    ensure!(most >= 0.0 && most <= unapplied, "{unapplied} entries are not applied, of one group {most}");
    let kinds = ["requests", "requests_waiting", "proposals", "rounds", "log_reads", "questions", "outbox"];
    for kind in kinds {
        ensure!(scrape.value("muster_core_queue_depth", &[("queue", kind)])? >= 0.0, "the depth of {kind}");
    }
    ensure!(scrape.series("muster_core_queue_depth", &[]).count() == kinds.len(), "there is a queue of another kind");
    for source in ["control", "bulk", "disk", "vms"] {
        ensure!(scrape.value("muster_core_events_queued", &[("source", source)])? >= 0.0, "the events of {source}");
    }
    ensure!(value("muster_core_requests_queued")? >= 0.0, "the requests that wait for the core");
    for channel in ["control", "bulk"] {
        let peers = scrape.series("muster_peer_messages_queued", &[("channel", channel)]).count();
        ensure!(peers == 2, "what waits in {channel} is told of {peers} peers, not of two");
    }
    Ok(())
}

fn ensure_elected(scrape: &Scrape, leads_meta: bool) -> anyhow::Result<()> {
    let value = |name: &str| scrape.value(name, &[]);
    let meta = [("group", "0"), ("topic", "__meta"), ("partition", "0")];
    ensure!(scrape.value("muster_group_term", &meta)? >= 2.0, "__meta was never elected");
    ensure!(scrape.value("muster_group_leader_changes_total", &meta)? >= 1.0, "__meta never had a leader");
    if leads_meta {
        ensure!(scrape.value("muster_group_elections_total", &meta)? >= 1.0, "it leads without an election");
        ensure!(value("muster_raft_elections_won_total")? >= 1.0, "it leads without a win");
        ensure!(value("muster_raft_commit_seconds_count")? >= 1.0, "it leads and committed nothing");
        ensure!(value("muster_raft_heartbeat_send_gap_seconds_count")? >= 5.0, "it leads and sends no heartbeats");
    } else {
        ensure!(value("muster_raft_heartbeat_receive_gap_seconds_count")? >= 5.0, "it hears no heartbeats");
    }
    Ok(())
}

/// On the node that they asked.
fn ensure_of_clients(scrape: &Scrape) -> anyhow::Result<()> {
    let produced = scrape.value("muster_kafka_request_seconds_count", &[("api", "Produce")])?;
    let named = scrape.value("muster_kafka_request_seconds_count", &[("api", "Metadata")])?;
    ensure!(named >= 1.0, "{produced} produce requests and {named} metadata requests");
    ensure!(scrape.value("muster_kafka_connections_accepted_total", &[])? >= 1.0, "no client came");
    let made = scrape.value("muster_operations_total", &[("operation", "topic.create"), ("code", "ok")])?;
    let missed = scrape.value("muster_operations_total", &[("operation", "vm.inspect"), ("code", "not_found")])?;
    ensure!(made == 1.0 && missed == 1.0, "{made} topics made, {missed} VMs missed");
    ensure!(scrape.value("muster_operation_seconds_count", &[("operation", "topic.create")])? == 1.0, "not timed");
    let partition = [("topic", "quo.ted"), ("partition", "1")];
    ensure!(scrape.value("muster_group_term", &partition)? >= 2.0, "a partition has no series");
    Ok(())
}

fn ensure_grown(before: &Scrape, now: &Scrape) -> anyhow::Result<()> {
    for (name, kind) in before.families() {
        ensure!(now.families().get(name) == Some(kind), "{name} was a {kind} and is gone");
        let counts = match kind.as_str() {
            "counter" => name.clone(),
            "histogram" => format!("{name}_count"),
            _ => continue,
        };
        ensure!(now.sum(&counts, &[]) >= before.sum(&counts, &[]), "{counts} fell");
    }
    Ok(())
}

#[test]
fn status_consensus_tells_elections_and_heartbeats_and_who_does_not_answer() {
    let _machine = machine_shared();
    Folder::scenario("consensus", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        let (asked, killed) = ((leader + 1) % 3, cluster.nodes[leader].name.clone());
        let told = wait_until(PATIENCE, "the leader sends heartbeats and the others hear them", || {
            let told = cluster.nodes[asked].cli_json(&["status", "--consensus"])?;
            ensure_steady(&told, &killed)?;
            Ok(told)
        })?;
        ensure!(told["answered_by"] == cluster.nodes[asked].name.as_str(), "{told}");
        let changes = |told: &Value| {
            let counts = consensus_of(told, &cluster.nodes[asked].name).map(|it| &it["elections"]["leader_changes"]);
            counts.and_then(Value::as_u64)
        };
        let before = changes(&told).context("nothing is counted")?;
        let name = cluster.nodes[asked].name.clone();

        cluster.nodes[leader].kill()?;
        let told = wait_until(PATIENCE, "the election is counted, and the dead node listed", || {
            let told = cluster.nodes[asked].cli_json(&["status", "--consensus"])?;
            let counts = consensus_of(&told, &name).context("it does not speak of itself")?;
            ensure!(counts["elections"]["leader_changes"].as_u64() > Some(before), "before {before}: {counts}");
            let dead = told["nodes"].as_array().into_iter().flatten().find(|node| node["node"] == killed.as_str());
            let listed =
                dead.is_some_and(|it| it["reachable"] == false && it["consensus"].is_null() && it["reason"] != "");
            ensure!(listed, "the dead node is shown as {dead:?}");
            let groups = told["groups"].as_array().context("no groups")?;
            let meta = groups.iter().find(|group| group["name"] == "__meta").context("__meta is not shown")?;
            ensure!(meta["term"].as_u64() >= Some(3) && meta["leader"].is_string(), "{meta}");
            Ok(told)
        })?;
        ensure!(told["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{told}");
        let shown = cluster.nodes[asked].cli(&["status", "--consensus"])?.text();
        ensure!(shown.starts_with("consensus as 2 of 3 nodes tell it\n"), "{shown}");
        ensure!(shown.contains(&format!("{killed}: unreachable: ")) && shown.contains("\n__meta "), "{shown}");
        Ok(())
    });
}

fn consensus_of<'a>(told: &'a Value, name: &str) -> Option<&'a Value> {
    told["nodes"].as_array()?.iter().find(|node| node["node"] == name).map(|node| &node["consensus"])
}

fn ensure_steady(told: &Value, leader: &str) -> anyhow::Result<()> {
    for node in told["nodes"].as_array().context("no nodes")? {
        let counts = &node["consensus"];
        let number = |pointer: &str| counts.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        ensure!(node["reachable"] == true && number("/elections/leader_changes") >= 1, "{node}");
        let field = if node["node"] == leader { "heartbeats_sent" } else { "heartbeats_received" };
        let (count, median) = (number(&format!("/{field}/count")), number(&format!("/{field}/p50_us")));
        ensure!(count >= 10, "{} has counted {count} {field}", node["node"]);
        // Half of them are where they belong on any machine that makes progress at all.
        ensure!((50_000..1_000_000).contains(&median), "the median of {field} is {median} us: {node}");
        for source in ["requests", "control", "bulk", "disk", "vms"] {
            ensure!(counts["arrivals"][source].is_u64(), "it does not say what waits of {source}: {node}");
        }
        ensure!(number("/syncs/count") >= 1 && number("/groups/term_max") >= 2, "{node}");
    }
    Ok(())
}
