//! Three nodes become one cluster.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::{Cluster, Folder, Node, Start, holds_for, wait_until};

use crate::support::{
    PATIENCE, Pair, borrowed, ensure_exactly, machine_alone, machine_shared, numbered, wait_tolerant, wait_voters,
};

/// From the start of the first process until every member sees every member ready.
const HEALTHY_LIMIT: Duration = Duration::from_secs(5);
/// The highest term after a start in which nothing failed (DESIGN's invariant 4).
const TERM_MAX: u64 = 2;
/// Some 24 MiB, of which a leader keeps 1 MiB in memory for others: the rest has to come from its disk.
const LARGE_RECORDS: usize = 2_000;
const LARGE_BYTES: usize = 12 << 10;
/// Come in at a time while replicas are made.
const MORE: usize = 20;

#[test]
fn three_nodes_are_healthy_in_under_five_seconds_without_an_election_too_many() {
    let _machine = machine_alone();
    Folder::scenario("healthy", |folder| {
        let mut cluster = Cluster::prepare(folder, 3)?;
        let start = Instant::now();
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let took = start.elapsed();
        ensure!(took < HEALTHY_LIMIT, "three nodes were healthy only after {took:?}");

        cluster.meta_leader(PATIENCE)?;
        let first = cluster.nodes[0].terms()?;
        ensure!(first.values().all(|term| *term <= TERM_MAX), "terms after a cold start: {first:?}");
        // Left alone, nothing changes.
        holds_for(Duration::from_secs(3), || {
            let now = cluster.nodes[0].terms()?;
            let grown = now.iter().find(|(name, term)| first.get(*name).is_some_and(|before| before != *term));
            ensure!(grown.is_none(), "an election in a healthy cluster: {grown:?} was {first:?}");
            Ok(())
        })
    });
}

#[test]
fn a_whole_cluster_stops_and_starts_again() {
    let _machine = machine_shared();
    Folder::scenario("whole-restart", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        let records = numbered("kept", 0..100);
        cluster.nodes[1].kcat().produce("kept", borrowed(&records), &[], &[])?;
        wait_voters(&cluster.nodes[0], "kept", 3)?;
        for node in &mut cluster.nodes {
            node.kill()?;
        }
        for node in &mut cluster.nodes {
            node.start(&Start::Up)?;
        }
        cluster.wait_ready(PATIENCE)?;
        for node in &cluster.nodes {
            ensure_exactly(&node.kcat().consume("kept")?, &records)?;
            ensure!(node.members()?.len() == 3, "{} sees {:?}", node.name, node.members()?);
        }
        Ok(())
    });
}

#[test]
fn topics_without_a_factor_grow_with_the_cluster() {
    let _machine = machine_shared();
    Folder::scenario("growth", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let records = numbered("early", 0..100);
        cluster.nodes[0].kcat().produce("early", borrowed(&records), &[], &[])?;
        wait_voters(&cluster.nodes[0], "early", 1)?;
        let token = cluster.token(2)?;
        for _ in 0..2 {
            cluster.add()?.start(&Start::Join(token.clone()))?;
        }
        cluster.wait_ready(PATIENCE)?;
        for topic in ["early", "muster.events"] {
            wait_voters(&cluster.nodes[2], topic, 3)?;
        }
        for node in &cluster.nodes {
            ensure_exactly(&node.kcat().consume("early")?, &records)?;
        }
        Ok(())
    });
}

fn large(numbers: Range<usize>) -> Vec<Pair> {
    let mut records = numbered("large", numbers);
    for (number, (_, value)) in records.iter_mut().enumerate() {
        value.resize(LARGE_BYTES, b'a' + (number % 26) as u8);
    }
    records
}

fn voters(node: &Node, topic: &str) -> anyhow::Result<usize> {
    let body = node.api().get(&format!("/v1/topics/{topic}"))?.ok()?;
    body["partitions"][0]["voters"].as_array().map(Vec::len).with_context(|| format!("no voters in {body}"))
}

#[test]
fn new_replicas_get_all_that_a_partition_holds_while_more_comes_in() {
    let _machine = machine_shared();
    Folder::scenario("whole-partition", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let mut records = large(0..LARGE_RECORDS);
        cluster.nodes[0].kcat().produce("large", borrowed(&records), &[], &[])?;
        wait_voters(&cluster.nodes[0], "large", 1)?;
        let token = cluster.token(2)?;
        for _ in 0..2 {
            cluster.add()?.start(&Start::Join(token.clone()))?;
        }
        let start = Instant::now();
        while voters(&cluster.nodes[0], "large")? < 3 {
            ensure!(start.elapsed() < PATIENCE, "after {PATIENCE:?} there are no three voters");
            let more = large(records.len()..records.len() + MORE);
            cluster.nodes[0].kcat().produce("large", borrowed(&more), &[], &[])?;
            records.extend(more);
        }
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])?;

        // Who had all of it is gone: what is read now, the new ones have.
        cluster.nodes[0].kill()?;
        for node in &cluster.nodes[1..] {
            let read = wait_until(PATIENCE, "the partition is read", || {
                let read = node.kcat().consume("large")?;
                ensure!(read.len() >= records.len(), "{} of {} records", read.len(), records.len());
                Ok(read)
            })?;
            ensure_exactly(&read, &records)?;
        }
        Ok(())
    });
}
