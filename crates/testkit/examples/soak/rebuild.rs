//! A node dies for good, with the replicas of a topic of about 1 GiB, while others are written to: once it is lost, they are
//! made anew on the nodes that are left, beside all else that those have to do. Neither heartbeats nor puts may wait for it,
//! and nobody is elected but where the node led.
//!
//! So many replicas are made at once in the whole cluster, and each has so much under way (64, 4 MiB:
//! `REPLICAS_BUILDING_MAX`, `RAFT_LEARNER_INFLIGHT_MAX` in crates/base/src/limits.rs). That bounds what waits in queues, not
//! how fast it goes: the rate is shown, and what it leaves to others is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Given, Kcat, Load, LoadPlan, Node};

use crate::counts::{Moment, Span, elections_but, heartbeats};
use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, judge, judge_given, wait_home, wait_sparing, wait_whole};
use crate::options::Options;

const NODES: usize = 4;
/// Of a node that is silent.
const LOST_AFTER: &str = "5s";
const TOPIC: &str = "rebuilt";
const PARTITIONS: i64 = 8;
const RECORD_BYTES: usize = 16 << 10;
const MIB: f64 = 1_048_576.0;
/// Given to a partition at once: 16 MiB, ...
const RUN_RECORDS: usize = 1_024;
/// ... and so often: 1 GiB in all partitions, ...
const RUNS: usize = 8;
/// ... unless the machine takes longer than this.
const FILL_TIME: Duration = Duration::from_secs(30);
/// How long one run of kcat may take, to give or to read.
const KCAT_LIMIT: Duration = Duration::from_secs(600);
/// From the kill until all is made anew. Nothing of the kind is promised: beside saturating load it takes what that leaves, and
/// what is not done by then has got stuck.
const REBUILT_MAX: Duration = Duration::from_secs(300);
/// No worse for clients than the death of a leader, which it is not.
const PUT_MAX: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Leader and replicas of each partition of all topics, by `TOPIC/PARTITION`.
type Partitions = BTreeMap<String, (i64, Vec<i64>)>;

pub fn run(_: &Options, figures: &mut Figures) {
    in_folder("soak-rebuild", figures, |folder, figures| {
        let mut cluster = Cluster::prepare(folder, NODES)?;
        for node in &mut cluster.nodes {
            node.arguments = vec!["--node-lost-after".to_owned(), LOST_AFTER.to_owned()];
        }
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        wait_whole(&cluster.nodes[0])?;
        let topic = json!({ "name": TOPIC, "partitions": PARTITIONS, "replication_factor": 3 });
        cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
        wait_whole(&cluster.nodes[0])?;
        rebuilt(&mut cluster, figures)
    });
}

fn rebuilt(cluster: &mut Cluster, figures: &mut Figures) -> anyhow::Result<()> {
    let given = fill(&cluster.kcat().with_limit(KCAT_LIMIT))?;
    let at = victim(cluster)?;
    let others: Vec<usize> = (0..NODES).filter(|other| *other != at).collect();
    let by = others[0];
    let plan = LoadPlan::saturating();
    let load = {
        let cluster: &Cluster = cluster;
        let asked: Vec<&Node> = others.iter().map(|other| &cluster.nodes[*other]).collect();
        Load::start_at(&asked, plan.clone())?
    };
    wait_whole(&cluster.nodes[by])?;
    for topic in [TOPIC, plan.topic.as_str(), "muster.events"] {
        wait_home(&cluster.nodes[by].kcat(), topic, PATIENCE)?;
    }
    let (id, name) = (cluster.nodes[at].id()?, cluster.nodes[at].name.clone());
    let before = partitions(&cluster.nodes[by])?;

    let killed = Instant::now();
    cluster.nodes[at].kill()?;
    wait_led(&cluster.nodes[by], id)?;
    // Elections that its death causes are over.
    let (led, start) = (cluster.nodes[by].terms()?, Moment::now(cluster)?);
    let (lost, done) = follow(&cluster.nodes[by], &name)?;
    let (after, end) = (cluster.nodes[by].terms()?, Moment::now(cluster)?);
    let outcome = load.stop()?;

    judge_time(figures, &given, &before, id, [killed, lost, done]);
    // Once it has no replica any more, another one is the first, and gets the leadership if a third one has it.
    let moving = before.iter().filter(|(_, (_, all))| all.first() == Some(&id)).map(|(name, _)| name.clone());
    let span = Span::between(&start, &end);
    elections_but(figures, "rebuild", &span, (&led, &after), &moving.collect::<BTreeSet<String>>());
    heartbeats(figures, "rebuild", &span, true);
    let gap = outcome.longest_gap(killed, done);
    figures.times("rebuild: longest time without a key put, from the kill on", vec![gap], Limit::max(PUT_MAX));
    let took = outcome.latencies_between(killed, done);
    figures.times("rebuild: a key is put, from the kill on", took, Limit::max(PUT_MAX));
    judge_places(figures, &partitions(&cluster.nodes[by])?, id);
    judge(figures, "rebuild", &outcome, cluster);
    judge_given(figures, "rebuild", &cluster.nodes[by].kcat().with_limit(KCAT_LIMIT), TOPIC, &given);
    read_back(cluster, &others, &before, &given, figures)
}

/// Gives each partition as much, all at once, until there is enough in all of them or the time is over.
fn fill(kcat: &Kcat) -> anyhow::Result<BTreeMap<i64, Given>> {
    let start = Instant::now();
    let nothing = |partition: i64| (partition, Given::by(&format!("filled{partition}"), RECORD_BYTES));
    let mut given: BTreeMap<i64, Given> = (0..PARTITIONS).map(nothing).collect();
    let mut runs = 0;
    while runs < RUNS && start.elapsed() < FILL_TIME {
        std::thread::scope(|scope| {
            let mut filling = Vec::new();
            for (partition, given) in &mut given {
                filling.push(scope.spawn(move || fill_one(kcat, *partition, given)));
            }
            for thread in filling {
                thread.join().unwrap_or_else(|_| bail!("a thread that fills a partition panicked"))?;
            }
            anyhow::Ok(())
        })?;
        runs += 1;
    }
    let mib = mib_of(given.values());
    eprintln!("   {TOPIC} holds {mib:.0} MiB, three times, after {:?}", start.elapsed());
    Ok(given)
}

fn fill_one(kcat: &Kcat, partition: i64, given: &mut Given) -> anyhow::Result<()> {
    let (number, run) = (partition.to_string(), given.next_run(RUN_RECORDS));
    let records = run.iter().map(|(key, value)| (*key, value.as_bytes()));
    let said = kcat.try_produce(TOPIC, records, &[], &["-p", &number])?;
    given.ran(run.len(), said.delivered());
    ensure!(said.delivered(), "{TOPIC}/{partition} did not take {} records: {}", run.len(), said.text());
    Ok(())
}

fn mib_of<'g>(given: impl Iterator<Item = &'g Given>) -> f64 {
    let records: u64 = given.map(Given::acknowledged).sum();
    records as f64 * RECORD_BYTES as f64 / MIB
}

/// Who holds most of the topic, and does not lead `__meta`.
fn victim(cluster: &Cluster) -> anyhow::Result<usize> {
    let leader = cluster.meta_leader(PATIENCE)?;
    let partitions = cluster.nodes[leader].kcat().partitions(TOPIC)?;
    let mut holds = Vec::new();
    for at in (0..NODES).filter(|at| *at != leader) {
        let id = cluster.nodes[at].id()?;
        holds.push((partitions.values().filter(|(_, all)| all.contains(&id)).count(), at));
    }
    let (count, at) = holds.into_iter().max().context("a cluster of one node")?;
    ensure!(count > 0, "only the leader of __meta holds a replica of {partitions:?}");
    eprintln!("   {} holds {count} of {PARTITIONS} partitions, and is killed", cluster.nodes[at].name);
    Ok(at)
}

fn partitions(by: &Node) -> anyhow::Result<Partitions> {
    let (status, kcat) = (by.api().get("/v1/status")?.ok()?, by.kcat());
    let mut all = Partitions::new();
    for topic in status["topics"].as_array().context("no topics")? {
        let topic = topic["name"].as_str().context("a topic without a name")?;
        for (partition, about) in kcat.partitions(topic)? {
            all.insert(format!("{topic}/{partition}"), about);
        }
    }
    Ok(all)
}

/// Waits until each partition is led by a node that lives.
fn wait_led(by: &Node, dead: i64) -> anyhow::Result<()> {
    wait_sparing(PATIENCE, LOOK, "others lead what it led", || {
        let all = partitions(by)?;
        let left: Vec<&String> =
            all.iter().filter(|(_, (leader, _))| *leader < 0 || *leader == dead).map(|(name, _)| name).collect();
        ensure!(left.is_empty(), "nobody leads {left:?}");
        Ok(())
    })
}

/// When a node that died was lost, and when nothing of it was missing any more: no group has it among its voters, and
/// each has three.
fn follow(by: &Node, name: &str) -> anyhow::Result<(Instant, Instant)> {
    let mut lost = None;
    let done = wait_sparing(REBUILT_MAX, LOOK, "others have what it held", || {
        let status = by.api().get("/v1/status")?.ok()?;
        let node = status["nodes"].as_array().and_then(|nodes| nodes.iter().find(|node| node["name"] == name));
        let node = node.with_context(|| format!("{name} is no member: {status}"))?;
        if lost.is_none() && node["lifecycle"] == "lost" {
            lost = Some(Instant::now());
        }
        ensure!(lost.is_some() && node["replicas"] == 0, "{node}");
        let voters = status["meta"]["voters"].as_array().context("nobody says who votes")?;
        ensure!(voters.len() == 3 && !voters.iter().any(|voter| voter == name), "voters of __meta: {voters:?}");
        let topics = status["topics"].as_array().context("no topics")?;
        let lacking: Vec<&Value> = topics.iter().filter(|topic| topic["voters_min"] != 3).collect();
        ensure!(lacking.is_empty(), "not all replicas vote: {lacking:?}");
        Ok(Instant::now())
    })?;
    Ok((lost.context("it was never lost")?, done))
}

/// How long it took, and how much of the topic was made anew in a second; the load's own topic comes on top of that.
fn judge_time(
    figures: &mut Figures,
    given: &BTreeMap<i64, Given>,
    before: &Partitions,
    dead: i64,
    [killed, lost, done]: [Instant; 3],
) {
    let held = given.iter().filter(|(partition, _)| holds(before, **partition, dead)).map(|(_, given)| given);
    let (mib, took) = (mib_of(held), done - lost);
    figures.times("rebuild: from the kill until it is lost", vec![lost - killed], Limit::default());
    let what = "rebuild: from the kill until all is made anew";
    figures.times(what, vec![done - killed], Limit::max(REBUILT_MAX));
    figures.number("rebuild: what of the topic is made anew", &[mib], " MiB", None);
    let rate = mib / took.as_secs_f64();
    figures.number("rebuild: ... in a second, from when the node is lost", &[rate], " MiB", None);
}

/// Whether a node held a replica of one of the topic's partitions.
fn holds(before: &Partitions, partition: i64, node: i64) -> bool {
    before.get(&format!("{TOPIC}/{partition}")).is_some_and(|(_, all)| all.contains(&node))
}

fn judge_places(figures: &mut Figures, after: &Partitions, dead: i64) {
    let strange: Vec<_> = after.iter().filter(|(_, (_, all))| all.len() != 3 || all.contains(&dead)).collect();
    let seen = format!("{} partitions, others: {strange:?}", after.len());
    let what = "rebuild: each partition has three replicas, all on nodes that live";
    figures.verdict(what, strange.is_empty() && !after.is_empty(), &seen);
}

/// Consumers read from leaders: each node in turn leads all, and gives back what was made anew on it.
fn read_back(
    cluster: &Cluster,
    others: &[usize],
    before: &Partitions,
    given: &BTreeMap<i64, Given>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for at in others {
        let node = &cluster.nodes[*at];
        let (id, kcat) = (node.id()?, node.kcat().with_limit(KCAT_LIMIT));
        let anew = given.iter().filter(|(partition, _)| !holds(before, **partition, id));
        let anew: BTreeMap<i64, Given> = anew.map(|(partition, given)| (*partition, given.clone())).collect();
        if anew.is_empty() {
            continue;
        }
        let rest: Vec<&Node> = others.iter().filter(|other| *other != at).map(|other| &cluster.nodes[*other]).collect();
        let order = |what: &str| {
            rest.iter().try_for_each(|other| {
                let path = format!("/v1/nodes/{}/{what}", other.name);
                node.api().post(&path, &json!({}))?.ok().map(|_| ())
            })
        };
        order("drain")?;
        wait_sparing(PATIENCE, LOOK, &format!("{} leads all of {TOPIC}", node.name), || {
            let partitions = kcat.partitions(TOPIC)?;
            ensure!(partitions.values().all(|(leader, _)| *leader == id), "{partitions:?}");
            Ok(())
        })?;
        judge_given(figures, &format!("rebuild, made anew on {}", node.name), &kcat, TOPIC, &anew);
        order("resume")?;
    }
    Ok(())
}
