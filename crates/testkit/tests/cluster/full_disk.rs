//! A disk without space: writes are refused, reads go on, and so do writes once there is space.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, SmallDisk, holds_for, wait_until};

use crate::support::{PATIENCE, borrowed, ensure_exactly, machine_shared, numbered, wait_voters};

/// Room for a few segments of the journal.
const DISK_MIB: u32 = 384;
/// From a Kafka client's request to the answer that says why not.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let _machine = machine_shared();
    Folder::scenario("full-disk", |folder| {
        let disk = SmallDisk::mount(&folder.path().join("disk"), DISK_MIB)?;
        let mut cluster = Cluster::prepare(folder, 1)?;
        cluster.nodes[0].data_dir = disk.path().join("node1");
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let pid = cluster.nodes[0].pid();
        // It measured the disk that it was given, empty yet, and no other.
        let size = u64::from(DISK_MIB);
        let free = cluster.nodes[0].members()?[0]["disk_mib"].as_u64();
        ensure!(free.is_some_and(|free| (size * 3 / 4..=size).contains(&free)), "{free:?} of {size} MiB are free");
        let records = numbered("kept", 0..1_000);
        cluster.nodes[0].kcat().produce("kept", borrowed(&records), &[], &[])?;

        disk.fill()?;
        wait_writes_refused(&cluster.nodes[0])?;
        let node = &cluster.nodes[0];
        ensure_kafka_says_why(node, "kept")?;
        ensure_exactly(&node.kcat().consume("kept")?, &records)?;
        let status = node.api().get("/v1/status")?.ok()?;
        ensure!(status["nodes"][0]["disk_full"] == true, "the full disk does not show in {}", status["nodes"][0]);

        disk.free()?;
        wait_until(PATIENCE, "writes are accepted again", || {
            node.kcat().produce("again", [(&b"k"[..], &b"v"[..])], &[], &["-X", "message.timeout.ms=2000"])?;
            node.api().post("/v1/topics", &json!({ "name": "after" }))?.ok()
        })?;
        ensure!(cluster.nodes[0].pid() == pid, "the process was replaced");
        cluster.nodes[0].ensure_ready()?;

        // Nothing acknowledged was lost, and the journal is whole.
        cluster.nodes[0].kill()?;
        cluster.nodes[0].start(&testkit::Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        ensure_exactly(&cluster.nodes[0].kcat().consume("kept")?, &records)
    });
}

#[test]
fn leadership_leaves_a_full_disk_for_one_with_space_and_stays_where_most_are_full() {
    let _machine = machine_shared();
    Folder::scenario("full-leader", |folder| {
        let mut cluster = Cluster::prepare(folder, 3)?;
        let mut disks = Vec::new();
        for node in &mut cluster.nodes {
            let disk = SmallDisk::mount(&folder.path().join(format!("disk-{}", node.name)), DISK_MIB)?;
            node.data_dir = disk.path().join(&node.name);
            disks.push(disk);
        }
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let records = numbered("kept", 0..1_000);
        cluster.nodes[0].kcat().produce("kept", borrowed(&records), &[], &[])?;
        wait_voters(&cluster.nodes[0], "kept", 3)?;

        let full = cluster.meta_leader(PATIENCE)?;
        disks[full].fill()?;
        let name = cluster.nodes[full].name.clone();
        write_until(&cluster, "its disk is full", |status| {
            ensure!(disk_full(status, &name), "{name} still has space: {}", status["nodes"]);
            Ok(())
        })?;
        // Its log has room for a while, so that it would not be missed soon.
        wait_leads_nothing(&cluster, &name)?;
        // Writes are taken again, also through that node.
        wait_until(PATIENCE, "writes are accepted", || {
            cluster.nodes[full].api().post("/v1/topics", &json!({ "name": "after" }))?.ok()?;
            cluster.kcat().produce("again", [(&b"k"[..], &b"v"[..])], &[], &["-X", "message.timeout.ms=2000"])
        })?;

        // Of what was made meanwhile it led some.
        wait_leads_nothing(&cluster, &name)?;

        // With two full, the third could not commit alone: reads go on, and leadership does not wander.
        let other = (full + 1) % 3;
        disks[other].fill()?;
        let other = cluster.nodes[other].name.clone();
        write_until(&cluster, "two disks are full", |status| {
            ensure!([&name, &other].iter().all(|node| disk_full(status, node)), "the disks are {}", status["nodes"]);
            Ok(())
        })?;
        leadership_stays(&cluster)?;
        ensure_exactly(&cluster.kcat().consume("kept")?, &records)
    });
}

fn wait_leads_nothing(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, "it leads nothing", || {
        let leaders = leaders(&cluster.nodes[0].api().get("/v1/status")?.ok()?);
        ensure!(leaders.iter().all(|leader| *leader != name && !leader.is_empty()), "the leaders are {leaders:?}");
        Ok(())
    })
}

/// For longer than it takes until leadership leaves a full disk.
fn leadership_stays(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.nodes[0].terms()?;
    holds_for(Duration::from_secs(6), || {
        let leaders = leaders(&cluster.nodes[0].api().get("/v1/status")?.ok()?);
        ensure!(leaders.iter().all(|leader| !leader.is_empty()), "a group has no leader: {leaders:?}");
        Ok(())
    })?;
    let after = cluster.nodes[0].terms()?;
    ensure!(before == after, "the terms were {before:?} and are {after:?}");
    Ok(())
}

/// The leader of `__meta` and those of all partitions, empty where none is known.
fn leaders(status: &Value) -> Vec<String> {
    let topics = status["topics"].as_array().into_iter().flatten();
    let partitions = topics.flat_map(|topic| topic["leaders"].as_array().cloned().unwrap_or_default());
    let text = |leader: Value| leader.as_str().unwrap_or_default().to_owned();
    std::iter::once(status["meta"]["leader"].clone()).chain(partitions).map(text).collect()
}

/// Whether that node says that its disk is full.
fn disk_full(status: &Value, name: &str) -> bool {
    let mut nodes = status["nodes"].as_array().into_iter().flatten();
    nodes.any(|node| node["name"] == name && node["disk_full"] == true)
}

/// Writes, accepted or not, until the cluster is as wished: what was set aside before a disk was full takes some.
fn write_until(cluster: &Cluster, what: &str, wished: impl Fn(&Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let value = vec![b'x'; 500_000];
    wait_until(PATIENCE, what, || {
        let records: Vec<_> = (0..8).map(|_| (&b"k"[..], &value[..])).collect();
        drop(cluster.kcat().produce("filler", records, &[], &["-X", "message.timeout.ms=2000"]));
        wished(&cluster.nodes[0].api().get("/v1/status")?.ok()?)
    })
}

/// Writes until both kinds of write are refused: what was set aside before the disk was full may still take some.
fn wait_writes_refused(node: &Node) -> anyhow::Result<()> {
    let value = vec![b'x'; 500_000];
    let mut tries = 0;
    wait_until(PATIENCE, "writes are refused", || {
        tries += 1;
        let records: Vec<_> = (0..8).map(|_| (&b"k"[..], &value[..])).collect();
        let quick = ["-X", "message.timeout.ms=2000"];
        let produced = node.kcat().produce("filler", records, &[], &quick);
        ensure!(produced.is_err(), "records are still accepted");
        let answer = node.api().post("/v1/topics", &json!({ "name": format!("refused{tries}") }))?;
        ensure!(answer.status >= 400, "topics are still created: {}", answer.body);
        let code = error_code(&answer.body).with_context(|| format!("no error code in {}", answer.body))?;
        ensure!(code == "disk_full", "refused as {code}: {}", answer.body);
        Ok(())
    })
}

/// A stock Kafka client is answered that the disk is the trouble, and soon: silence would look to it like a slow network.
fn ensure_kafka_says_why(node: &Node, topic: &str) -> anyhow::Result<()> {
    // Left to itself the client tries again for five minutes, and then tells only that the time is up.
    let kcat = node.kcat().with_limit(ANSWER_LIMIT);
    let said = kcat.try_produce(topic, [(&b"k"[..], &b"late"[..])], &[], &["-X", "retries=0"])?.text();
    let why = "Delivery failed for message: Broker: Disk error when trying to access log file on disk";
    ensure!(said.contains(why), "to {topic} the client was told:\n{said}");
    Ok(())
}

/// The stable word under which the API reports a failure.
fn error_code(body: &Value) -> Option<&str> {
    body["error"]["code"].as_str().or_else(|| body["code"].as_str())
}
