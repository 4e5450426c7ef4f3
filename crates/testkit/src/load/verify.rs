//! Reads everything back that was acknowledged, from every node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Outcome, Produced, Written, reader, watcher, writer};
use crate::cluster::Cluster;
use crate::node::Node;
use crate::wait::wait_until;

/// Until all replicas of every group have what one has.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Keys asked for at once.
const PAGE: usize = 10_000;
/// How long kcat may read.
const READ_LIMIT: Duration = Duration::from_secs(600);

impl Outcome {
    /// Reads every key from every running node's own tables, and every record through every running node, and waits until
    /// every replica holds all of its group. Values have to be as they were given, to the last byte, and records in order; no
    /// reader may have been told what was stale; the watchers have to have been told of all keys, and all the same.
    ///
    /// # Errors
    /// Naming what was acknowledged and is not there, or what is there and should not be, or a stale read.
    pub fn verify(&self, cluster: &Cluster) -> anyhow::Result<()> {
        reader::check(&self.readers, &self.writers, &self.plan)?;
        for node in cluster.running() {
            for writer in &self.writers {
                verify_keys(writer, self.plan.value_bytes, node)?;
            }
            for produced in &self.producers {
                verify_records(&self.plan.topic, produced, node)?;
            }
        }
        watcher::check(&self.watchers, &self.writers, self.plan.keys, |api| {
            cluster.running().any(|node| node.api == api)
        })?;
        replicas_are_equal(cluster)
    }
}

fn verify_keys(writer: &Written, value_bytes: usize, node: &Node) -> anyhow::Result<()> {
    let mut found: BTreeMap<u64, u64> = BTreeMap::new();
    let mut after = String::new();
    loop {
        // Linearizable: this node's own tables, once they have all that was committed before.
        let prefix = writer.prefix.replace('/', "%2F");
        let page = node.api().get(&format!("/v1/kv?prefix={prefix}&limit={PAGE}{after}"))?.ok()?;
        let keys = page["keys"].as_array().context("no list of keys")?;
        for key in keys {
            let name = key["key"].as_str().context("a key without a name")?;
            let number = name.strip_prefix(&writer.prefix).with_context(|| format!("{name} has another prefix"))?;
            let value = key["value"].as_str().and_then(|value| writer::round_of(value, value_bytes));
            let value = value.with_context(|| format!("{} has what nobody put: {key}", node.name))?;
            found.insert(number.parse()?, value);
            after = format!("&after={}", name.replace('/', "%2F"));
        }
        if page["more"] != true {
            break;
        }
    }
    let known = writer.keys.keys().chain(found.keys()).collect::<BTreeSet<_>>();
    for key in known {
        let value = found.get(key).copied();
        let held = writer.keys.get(key);
        ensure!(writer.may_hold(*key, value), "{} has {value:?} in {}{key:06}: {held:?}", node.name, writer.prefix);
    }
    Ok(())
}

fn verify_records(topic: &str, produced: &Produced, node: &Node) -> anyhow::Result<()> {
    let read = node.kcat().with_limit(READ_LIMIT).consume_partition(topic, produced.number)?;
    let context = || format!("partition {} of {topic}, read through {}", produced.number, node.name);
    produced.given.check(&read).with_context(context)
}

/// Consumers read from leaders: that the others have the same is seen by where their replicas end.
fn replicas_are_equal(cluster: &Cluster) -> anyhow::Result<()> {
    let first = cluster.running().next().context("no node runs")?;
    let running = cluster.running().count();
    wait_until(CATCH_UP, "all replicas have applied the same", || {
        let body = first.api().get("/v1/groups")?.ok()?;
        let mut ends: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let nodes = body["nodes"].as_array().context("no list of nodes")?;
        let answered = nodes.iter().filter(|node| node["reachable"] == true).count();
        ensure!(answered >= running, "only {answered} nodes answer");
        let groups = nodes.iter().filter_map(|node| node["groups"].as_array()).flatten();
        for group in groups {
            let name = group["name"].as_str().unwrap_or_default();
            ends.entry(name).or_default().insert(end_of(group));
        }
        let other = ends.iter().find(|(_, ends)| ends.len() > 1);
        ensure!(other.is_none(), "they end at different places: {other:?}");
        Ok(())
    })
}

fn end_of(group: &Value) -> String {
    format!("applied {}, high watermark {}", group["applied"], group["high_watermark"])
}
