//! Failure domains: nodes with the label `zone`, and the death of a whole one.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Start, wait_until};

use crate::support::{PATIENCE, ensure_all_read, machine_shared, produce_to_each};

/// Of each node, in the order of their start: half of the first four are in one, and three of the first five.
const ZONES: [&str; 6] = ["a", "a", "b", "c", "a", "d"];
const PARTITIONS: usize = 4;
/// Whom the tests ask: not in the zone that dies.
const WITNESS: usize = 2;

#[test]
fn a_zone_with_half_of_the_nodes_dies_and_every_group_goes_on() {
    let _machine = machine_shared();
    Folder::scenario("zones", |folder| {
        let mut cluster = Cluster::prepare(folder, 4)?;
        for (node, zone) in cluster.nodes.iter_mut().zip(ZONES) {
            node.arguments = label(zone);
        }
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let topic = json!({ "name": "t", "partitions": PARTITIONS, "replication_factor": 3 });
        cluster.nodes[WITNESS].api().post("/v1/topics", &topic)?.ok()?;
        wait_tolerance(&cluster, "survives the loss of 1 node, and of any one zone")?;
        ensure_zones_of_meta(&cluster, &["a", "b", "c"])?;
        ensure_partitions_spread(&cluster)?;
        let mut kept = produce_to_each(&cluster, "t", PARTITIONS, "whole")?;

        for at in [0, 1] {
            cluster.nodes[at].kill()?;
        }
        wait_until(PATIENCE, "the cluster's state can be changed", || {
            cluster.nodes[WITNESS].api().put("/v1/kv/zone", &json!({ "value": "gone" }))?.ok()
        })?;
        kept.extend(produce_to_each(&cluster, "t", PARTITIONS, "without")?);
        ensure_all_read(&cluster, "t", &kept)?;

        for at in [0, 1] {
            cluster.nodes[at].start(&Start::Up)?;
        }
        cluster.wait_ready(PATIENCE)?;
        let token = cluster.token(1)?;
        let fifth = cluster.add()?;
        fifth.arguments = label(ZONES[4]);
        fifth.start(&Start::Join(token))?;
        cluster.wait_ready(PATIENCE)?;
        // Five voters would have their majority in zone a: three go on voting. With a sixth node in zone d there are five.
        wait_tolerance(&cluster, "survives the loss of 1 node, and of any one zone")?;
        ensure_zones_of_meta(&cluster, &["a", "b", "c"])?;
        ensure_partitions_spread(&cluster)?;
        let token = cluster.token(1)?;
        let sixth = cluster.add()?;
        sixth.arguments = label(ZONES[5]);
        sixth.start(&Start::Join(token))?;
        cluster.wait_ready(PATIENCE)?;
        wait_until(PATIENCE, "five nodes vote", || ensure_zones_of_meta(&cluster, &["a", "a", "b", "c", "d"]))?;
        wait_tolerance(&cluster, "survives the loss of 1 node, and of any one zone")?;
        ensure_all_read(&cluster, "t", &kept)
    });
}

fn label(zone: &str) -> Vec<String> {
    vec!["--label".to_owned(), format!("zone={zone}")]
}

/// Waits until the cluster says that it can lose so much.
fn wait_tolerance(cluster: &Cluster, expected: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("the status says {expected:?}"), || {
        let status = cluster.nodes[WITNESS].api().get("/v1/status")?.ok()?;
        ensure!(status["fault_tolerance"] == expected, "{}", status["fault_tolerance"]);
        Ok(())
    })
}

fn ensure_zones_of_meta(cluster: &Cluster, expected: &[&str]) -> anyhow::Result<()> {
    let status = cluster.nodes[WITNESS].api().get("/v1/status")?.ok()?;
    let zones = zones_of(cluster, &status["meta"]["voters"])?;
    ensure!(zones == expected, "the voters of __meta are in {zones:?}: {}", status["meta"]);
    Ok(())
}

/// Each partition has three voters, in three zones.
fn ensure_partitions_spread(cluster: &Cluster) -> anyhow::Result<()> {
    for topic in ["t", "muster.events"] {
        let body = cluster.nodes[WITNESS].api().get(&format!("/v1/topics/{topic}"))?.ok()?;
        let partitions = body["partitions"].as_array().with_context(|| format!("no partitions in {body}"))?;
        for partition in partitions {
            let zones = zones_of(cluster, &partition["voters"])?;
            ensure!(zones == ["a", "b", "c"], "{topic} has voters in {zones:?}: {partition}");
        }
    }
    Ok(())
}

/// The zones of the nodes with those names, in order.
fn zones_of(cluster: &Cluster, names: &Value) -> anyhow::Result<Vec<&'static str>> {
    let names = names.as_array().with_context(|| format!("no list of names: {names}"))?;
    let mut zones = Vec::new();
    for name in names {
        let at = cluster.nodes.iter().position(|node| *name == node.name.as_str());
        zones.push(ZONES[at.with_context(|| format!("{name} is not ours"))?]);
    }
    zones.sort_unstable();
    Ok(zones)
}
