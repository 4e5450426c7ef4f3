//! As many partitions as a cluster is meant to hold: what they cost, and how long until all are led after nodes die. A
//! topic has at most 1,024, so there are several.
//!
//! Whether all groups are led is asked of the nodes that run, which count those that they lead (`/metrics`): who was
//! killed does not count, whatever others still believe of it, and looking costs little.
//!
//! Limits were set at 1.5 to 2 times what 10,000 partitions took on a two-core machine, which is what stands beside them. On the
//! faster one of docs/figures.md it was less: there they find one of the mistakes that cost minutes or whole cores before, and
//! not that something takes twice as long.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::{Api, Cluster, Kcat, Start, wait_until};

use crate::counts::scrape;
use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, cost, ensure_whole, in_folder, let_pass, strays, wait_sparing};
use crate::options::Options;

/// So many, unless another number is asked for.
pub const PARTITIONS: usize = 10_000;
const TOPIC_PARTITIONS: usize = 1_000;
/// Partitions that records are produced to.
const SAMPLE: usize = 30;
/// What making or starting groups left to be done is not what they cost.
const SETTLE: Duration = Duration::from_secs(30);
/// Measured for this long, each time.
const WINDOW: Duration = Duration::from_secs(30);
/// Between two looks at something that costs the nodes something.
const LOOK: Duration = Duration::from_millis(250);
const RARE_LOOK: Duration = Duration::from_secs(2);
/// Whatever takes longer will not come about.
const LONG: Duration = Duration::from_secs(600);
/// From the first order until every group is led: 6.2 s. It was 33 to 48 s while cores made themselves work.
const MADE_MAX: Duration = Duration::from_secs(12);
/// Groups at rest cost their nodes' gossip and little else: 17 % of a core. Awake they take nearly two cores.
const IDLE_CPU_PERCENT_MAX: f64 = 30.0;
/// With a node gone the groups that it led elect others, whose first entry it lacks: those do not rest. 38.5 % of a core.
const NODE_GONE_CPU_PERCENT_MAX: f64 = 65.0;
/// 189 MiB.
const RESIDENT_MIB_MAX: f64 = 375.0;
/// From `kill -9` of a node until every group is led: 4.0 s, of which up to 2 s are the election timeout.
const KILLED_MAX: Duration = Duration::from_secs(8);
/// From a node's return until its leaders are back, a few at a time: 35.6 s.
const HOME_MAX: Duration = Duration::from_secs(70);
/// From the start of all nodes until every group is led: 23.4 s. That of 1,000 is 10 s (`idle`).
const LED_MAX: Duration = Duration::from_secs(45);
/// From the start of all nodes until leaders are on their first replicas: 86.7 s.
const ALL_HOME_MAX: Duration = Duration::from_secs(170);
/// The node that leads most leads so much more than its share.
const UNEVEN_MAX: f64 = 1.2;

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-groups", figures, |folder, figures| {
        let cluster = Cluster::start(folder, 3)?;
        wait_sparing(PATIENCE, LOOK, "the cluster can lose a node", || ensure_whole(&cluster.nodes[0]))?;
        let mut scene = Scene::of(cluster, options.partitions.unwrap_or(PARTITIONS), figures);
        scene.are_made()?;
        scene.produces("they are made")?;
        scene.are_idle("idle", IDLE_CPU_PERCENT_MAX)?;
        scene.are_spread()?;
        scene.lose_a_node()?;
        scene.start_cold()?;
        scene.read_back()
    });
}

/// A cluster with many partitions.
struct Scene<'a> {
    cluster: Cluster,
    figures: &'a mut Figures,
    partitions: usize,
    /// Name and partitions of each topic.
    topics: Vec<(String, usize)>,
    /// What was produced so far to every partition of the sample.
    values: Vec<String>,
}

impl Scene<'_> {
    fn of(cluster: Cluster, partitions: usize, figures: &mut Figures) -> Scene<'_> {
        let starts = (0..partitions).step_by(TOPIC_PARTITIONS).enumerate();
        let topic =
            |(number, first): (usize, usize)| (format!("groups-{number}"), TOPIC_PARTITIONS.min(partitions - first));
        Scene { cluster, figures, partitions, topics: starts.map(topic).collect(), values: Vec::new() }
    }

    fn time(&mut self, what: &str, took: Duration, limit: Limit) {
        self.figures.times(&format!("{} partitions: {what}", self.partitions), vec![took], limit);
    }

    fn number(&mut self, what: &str, values: &[f64], unit: &str, most: Option<f64>) {
        self.figures.number(&format!("{} partitions: {what}", self.partitions), values, unit, most);
    }

    fn are_made(&mut self) -> anyhow::Result<()> {
        let (api, start) = (self.cluster.nodes[0].api(), Instant::now());
        for (name, partitions) in &self.topics {
            make(&api, name, *partitions)?;
            eprintln!("   {name} is made after {:?}", start.elapsed());
        }
        let took = self.wait_led(start)?;
        self.time("made and led", took, Limit::max(MADE_MAX));
        self.wait_whole()
    }

    /// What they cost when nobody uses them.
    fn are_idle(&mut self, when: &str, cpu_percent_max: f64) -> anyhow::Result<()> {
        let_pass(&mut self.cluster, SETTLE)?;
        let (cpu, resident) = cost(&mut self.cluster, WINDOW)?;
        self.number(&format!("{when}, CPU of a node, of one core"), &cpu, "%", Some(cpu_percent_max));
        self.number(&format!("{when}, resident memory of a node"), &resident, " MiB", Some(RESIDENT_MIB_MAX));
        Ok(())
    }

    /// Each node leads its share.
    fn are_spread(&mut self) -> anyhow::Result<()> {
        self.wait_home()?;
        let leads: Vec<f64> = self.leaders()?.values().map(|count| *count as f64).collect();
        let share = self.partitions as f64 / self.cluster.nodes.len() as f64;
        // Of a few partitions no node leads exactly its share.
        let most = share * UNEVEN_MAX + 1.0;
        self.number("led by a node", &leads, "", Some(most.floor()));
        Ok(())
    }

    fn lose_a_node(&mut self) -> anyhow::Result<()> {
        let leader = self.cluster.meta_leader(PATIENCE)?;
        let moment = Instant::now();
        self.cluster.nodes[leader].kill()?;
        let took = self.wait_led(moment)?;
        self.time("a node is killed, all led again", took, Limit::max(KILLED_MAX));
        self.produces("a node was killed")?;
        self.are_idle("idle, and a node is gone", NODE_GONE_CPU_PERCENT_MAX)?;
        let back = Instant::now();
        self.cluster.nodes[leader].start(&Start::Up)?;
        let took = self.wait_led(back)?;
        self.time("it returns, and is ready", took, Limit::default());
        self.wait_home()?;
        self.time("it returns, leaders are back on their first replicas", back.elapsed(), Limit::max(HOME_MAX));
        self.wait_whole()
    }

    /// All nodes are killed at once, and start at once.
    fn start_cold(&mut self) -> anyhow::Result<()> {
        for node in &mut self.cluster.nodes {
            node.kill()?;
        }
        let moment = Instant::now();
        for node in &mut self.cluster.nodes {
            node.start(&Start::Up)?;
        }
        let took = self.wait_led(moment)?;
        self.time("all nodes start again, all led", took, Limit::max(LED_MAX));
        eprintln!("   leaders after the start, by node: {:?}", self.leaders()?);
        self.produces("all nodes started again")?;
        self.wait_home()?;
        let took = moment.elapsed();
        self.time("all nodes start again, leaders are on their first replicas", took, Limit::max(ALL_HOME_MAX));
        self.are_idle("idle after a start of all nodes", IDLE_CPU_PERCENT_MAX)?;
        self.wait_whole()
    }

    /// From `moment` until every group is led by a node that runs, and all that run are ready.
    fn wait_led(&self, moment: Instant) -> anyhow::Result<Duration> {
        wait_sparing(LONG, LOOK, "every group is led, and every node ready", || {
            let (mut led, mut groups) = (0.0, 0.0_f64);
            for node in self.cluster.running() {
                let scrape = scrape(node)?;
                ensure!(scrape.value("muster_ready", &[])? == 1.0, "{} is not ready", node.name);
                led += scrape.value("muster_raft_groups", &[("state", "led")])?;
                // And `__meta`.
                groups = groups.max(scrape.value("muster_cluster_partitions", &[])? + 1.0);
            }
            ensure!(groups > self.partitions as f64, "there are only {groups} groups");
            ensure!(led >= groups, "{led} of {groups} groups are led");
            Ok(moment.elapsed())
        })
    }

    /// Waits until each partition is led by its first replica, as clients are told.
    fn wait_home(&self) -> anyhow::Result<()> {
        let kcat = self.kcat();
        wait_sparing(LONG, RARE_LOOK, "leaders are on their first replicas", || {
            let (mut none, mut elsewhere) = (0, 0);
            for (topic, _) in &self.topics {
                let (without, strayed) = strays(&kcat, topic, None)?;
                (none, elsewhere) = (none + without, elsewhere + strayed);
            }
            ensure!(none + elsewhere == 0, "{none} partitions have no leader, {elsewhere} another");
            Ok(())
        })
    }

    fn wait_whole(&self) -> anyhow::Result<()> {
        let first = self.cluster.running().next().context("no node runs")?;
        wait_sparing(LONG, RARE_LOOK, "the cluster can lose a node", || ensure_whole(first))
    }

    /// How many partitions each broker leads, by its id; -1 those that nobody leads.
    fn leaders(&self) -> anyhow::Result<BTreeMap<i64, usize>> {
        let kcat = self.kcat();
        let mut leaders: BTreeMap<i64, usize> = BTreeMap::new();
        for (topic, _) in &self.topics {
            for (leader, _) in kcat.partitions(topic)?.into_values() {
                *leaders.entry(leader).or_default() += 1;
            }
        }
        Ok(leaders)
    }

    /// A client that knows the nodes that run.
    fn kcat(&self) -> Kcat {
        let brokers: Vec<SocketAddr> = self.cluster.running().map(|node| node.kafka).collect();
        Kcat::at_any(&brokers)
    }

    /// Some partitions all over the topics: topic and partition.
    fn sample(&self) -> Vec<(&str, usize)> {
        let step = (self.partitions / SAMPLE).max(1);
        let place = |at: usize| (self.topics[at / TOPIC_PARTITIONS].0.as_str(), at % TOPIC_PARTITIONS);
        (0..self.partitions).step_by(step).take(SAMPLE).map(place).collect()
    }

    /// Produces a record to every partition of the sample.
    fn produces(&mut self, when: &str) -> anyhow::Result<()> {
        let (kcat, value) = (self.kcat(), format!("after {when}"));
        let mut took = Vec::new();
        for (topic, partition) in self.sample() {
            let (start, partition) = (Instant::now(), partition.to_string());
            let quick = ["-p", &partition, "-X", "topic.metadata.refresh.interval.ms=250", "-X", "retry.backoff.ms=50"];
            let said = kcat.try_produce(topic, [(&b"k"[..], value.as_bytes())], &[], &quick)?;
            ensure!(said.delivered(), "{topic}/{partition}, {value}: {}", said.text());
            took.push(start.elapsed());
        }
        self.values.push(value);
        let what = format!("{} partitions: a record, after {when} (with the start of kcat)", self.partitions);
        self.figures.times(&what, took, Limit::default());
        Ok(())
    }

    /// Everything that was produced is there.
    fn read_back(&mut self) -> anyhow::Result<()> {
        let kcat = self.kcat();
        for (topic, partition) in self.sample() {
            let records = kcat.consume_partition(topic, partition)?;
            let values: Vec<String> = records.iter().map(testkit::Record::text).collect();
            ensure!(values == self.values, "{topic}/{partition} holds {values:?}, and was given {:?}", self.values);
        }
        let seen = format!("{} partitions, {} records each", self.sample().len(), self.values.len());
        let what = format!("{} partitions: what was acknowledged is read back", self.partitions);
        self.figures.verdict(&what, true, &seen);
        Ok(())
    }
}

fn make(api: &Api, name: &str, partitions: usize) -> anyhow::Result<()> {
    let topic = json!({ "name": name, "partitions": partitions, "replication_factor": 3 });
    wait_until(PATIENCE, &format!("{name} is made"), || {
        let answer = api.post("/v1/topics", &topic)?;
        // Made by a call that was not answered in time.
        if answer.status != 409 {
            answer.ok()?;
        }
        Ok(())
    })
}
