//! A disk on which nothing moves: leadership leaves its node, once, and comes back when the disk moves again.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Api, Cluster, Folder, LoopDisk, Node, holds_for, wait_until};

use crate::support::{
    PATIENCE, Pair, borrowed, machine_shared, numbered, wait_caught_up, wait_home, wait_tolerant, wait_voters,
};

/// Room for a few segments of the journal.
const DISK_MIB: u64 = 512;
const TOPIC: &str = "kept";
/// Whoever leads other partitions already gets fewer of the topic's; of so many, each node leads one.
const PARTITIONS: u32 = 6;
/// Records of one run: keys for each of the partitions.
const RUN: usize = 24;
/// From the freeze until others lead: an election timeout until the disk counts as stuck, and some writes that wait for it.
const LEAVES_WITHIN: Duration = Duration::from_secs(20);
/// From a record's being sent to a leader whose disk is frozen until the next leader has acknowledged it.
const TOLD_WITHIN: Duration = LEAVES_WITHIN.saturating_add(Duration::from_secs(10));
/// Terms that a group may need to get away: one, if nobody's vote is split. Without end it would be one a second.
const TERMS_MAX: u64 = 3;
/// For so long nothing may move once others lead: some election timeouts.
const CALM: Duration = Duration::from_secs(6);
/// The node whose disk is stuck answers for itself.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn leadership_leaves_a_disk_that_hangs_without_an_election_too_many_and_comes_back_when_it_moves() {
    let _machine = machine_shared();
    Folder::scenario("stuck-disk", |folder| {
        let mut cluster = Cluster::prepare(folder, 3)?;
        let mut disks = Vec::new();
        for node in &mut cluster.nodes {
            let disk = LoopDisk::mount(&folder.path().join(format!("disk-{}", node.name)), DISK_MIB)?;
            node.data_dir = disk.path().join(&node.name);
            disks.push(disk);
        }
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])?;
        let topic = json!({ "name": TOPIC, "partitions": PARTITIONS, "replication_factor": 3 });
        cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
        wait_voters(&cluster.nodes[0], TOPIC, 3)?;
        wait_home(&cluster.kcat(), &[TOPIC])?;

        let at = cluster.meta_leader(PATIENCE)?;
        let (pid, led) = (cluster.nodes[at].pid(), cluster.nodes[at].leads(TOPIC)?);
        let mut writes = Writes { asked: (at + 1) % 3, runs: 0, acknowledged: Vec::new() };
        writes.run(&cluster)?;
        let before = cluster.nodes[writes.asked].terms()?;

        // Declared last, so that it goes first: until then its node cannot be ended.
        let frozen = disks[at].freeze()?;
        // Nobody else writes, so the node leads until its disk is missed, which is when this record waits for it.
        writes.through_frozen(&cluster, led.1)?;
        wait_until(LEAVES_WITHIN, "others lead, and take writes", || {
            // A disk of which nobody wants anything is not missed.
            let written = writes.run(&cluster);
            cluster.wait_led_by_others(at, TOPIC, led, Duration::ZERO)?;
            ensure_leads_nothing(&cluster.nodes[writes.asked], &cluster.nodes[at].name)?;
            ensure_answers(&cluster.nodes[at])?;
            written
        })?;
        let calm = cluster.nodes[writes.asked].terms()?;
        for (group, term) in &calm {
            let was = before.get(group).copied().unwrap_or_default();
            ensure!(*term <= was + TERMS_MAX, "{group} had term {was}, and has {term}");
        }
        holds_for(CALM, || {
            writes.run(&cluster)?;
            ensure_answers(&cluster.nodes[at])?;
            let terms = cluster.nodes[writes.asked].terms()?;
            ensure!(terms == calm, "the terms were {calm:?} and are {terms:?}");
            Ok(())
        })?;

        frozen.thaw()?;
        cluster.wait_ready(PATIENCE)?;
        wait_caught_up(&cluster, &cluster.nodes[at].name)?;
        wait_tolerant(&cluster.nodes[writes.asked])?;
        wait_home(&cluster.kcat(), &[TOPIC])?;
        writes.run(&cluster)?;
        ensure!(cluster.nodes[at].pid() == pid, "the process was replaced");
        writes.verify(&cluster.nodes[at])
    });
}

/// Records to all partitions, a key for `__meta`, and what of it was acknowledged.
struct Writes {
    /// Is asked for the key.
    asked: usize,
    runs: usize,
    acknowledged: Vec<Pair>,
}

impl Writes {
    /// Fails unless all of it is acknowledged, soon.
    fn run(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.runs += 1;
        let records = numbered(&format!("run-{}", self.runs), 0..RUN);
        cluster.kcat().produce(TOPIC, borrowed(&records), &[], &["-X", "message.timeout.ms=2000"])?;
        self.acknowledged.extend(records);
        let api = Api::with_deadline(cluster.nodes[self.asked].api, Duration::from_secs(2));
        api.put("/v1/kv/runs", &json!({ "value": self.runs.to_string() }))?.ok()?;
        Ok(())
    }

    /// Fails unless a record is acknowledged that waits at a leader whose disk is frozen, though its client does not give up
    /// on that leader: it is to be told that another leads.
    fn through_frozen(&mut self, cluster: &Cluster, partition: i64) -> anyhow::Result<()> {
        let (records, partition) = (numbered("frozen", 0..1), partition.to_string());
        let patient =
            ["request.timeout.ms", "socket.timeout.ms", "message.timeout.ms"].map(|name| format!("{name}=120000"));
        let mut extra = vec!["-p", partition.as_str()];
        patient.iter().for_each(|setting| extra.extend(["-X", setting.as_str()]));
        let kcat = cluster.kcat().with_limit(TOLD_WITHIN);
        kcat.produce(TOPIC, borrowed(&records), &[], &extra).context("to a leader whose disk is frozen")?;
        self.acknowledged.extend(records);
        Ok(())
    }

    /// Nothing that was acknowledged is missing, asked of `node`. What was not may be there as well.
    fn verify(&self, node: &Node) -> anyhow::Result<()> {
        let records = node.kcat().consume(TOPIC)?;
        let read = |key: &[u8], value: &[u8]| records.iter().any(|it| it.key == key && it.value == value);
        let lost: Vec<_> = self.acknowledged.iter().filter(|(key, value)| !read(key, value)).collect();
        ensure!(lost.is_empty(), "of {} acknowledged records these are lost: {lost:?}", self.acknowledged.len());
        let runs = node.api().get("/v1/kv/runs")?.ok()?;
        let last = self.runs.to_string();
        ensure!(runs["value"] == last.as_str(), "the last of {} runs wrote {runs}", self.runs);
        Ok(())
    }
}

/// Whether that node answers, and says that it leads no group.
fn ensure_leads_nothing(asked: &Node, name: &str) -> anyhow::Result<()> {
    let body = asked.api().get("/v1/groups")?.ok()?;
    let mut nodes = body["nodes"].as_array().into_iter().flatten();
    let node = nodes.find(|node| node["node"] == name).with_context(|| format!("no {name} in {body}"))?;
    let groups = node["groups"].as_array().filter(|groups| !groups.is_empty());
    let groups = groups.with_context(|| format!("{name} says nothing: {}", node["reason"]))?;
    let led: Vec<&Value> = groups.iter().filter(|group| group["role"] == "leader").map(|it| &it["name"]).collect();
    ensure!(led.is_empty(), "it leads {led:?}");
    Ok(())
}

/// Nothing but the disk's own threads waits for the disk.
fn ensure_answers(stuck: &Node) -> anyhow::Result<()> {
    let api = Api::with_limit(stuck.api, ANSWERS_WITHIN);
    let status = api.get("/v1/status")?.ok()?;
    let mut nodes = status["nodes"].as_array().into_iter().flatten();
    let me = nodes.find(|node| node["name"] == stuck.name.as_str()).context("it does not name itself")?;
    ensure!(me["state"] == "ready", "it calls itself {me}");
    ensure!(api.text("/metrics")?.status == 200, "it tells no metrics");
    Ok(())
}
