//! Many partitions that nobody uses: what they cost, and how their leaders come and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Cluster, Given, Kcat, Start, wait_until};

use crate::figures::{Figures, Limit};
use crate::look::{
    PATIENCE, cost, ensure_all_led, give, in_folder, judge_given, let_pass, strays, wait_home, wait_sparing,
};
use crate::options::Options;

const TOPIC: &str = "idle";
/// So many, unless another number is asked for.
pub const PARTITIONS: usize = 1_000;
/// Measured for this long, each time.
const WINDOW: Duration = Duration::from_secs(30);
const CPU_PERCENT_MAX: f64 = 3.0;
const RESIDENT_MIB_MAX: f64 = 300.0;
/// From a node's return until its leaders are back.
const HOME_MAX: Duration = Duration::from_secs(60);
/// So often all nodes are killed and started.
const STARTS: usize = 3;
/// From the start of all nodes until every group is led.
const LED_MAX: Duration = Duration::from_secs(10);
/// Partitions that are given a record then, one after the other, ...
const SAMPLE: usize = 20;
/// ... until each has taken it: a start of kcat each, besides.
const TAKEN_MAX: Duration = Duration::from_secs(15);
/// Between two looks at all groups.
const LOOK: Duration = Duration::from_millis(250);

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-idle", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        idle(&mut cluster, options.partitions.unwrap_or(PARTITIONS), figures)
    });
}

fn idle(cluster: &mut Cluster, partitions: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let start = Instant::now();
    let topic = json!({ "name": TOPIC, "partitions": partitions, "replication_factor": 3 });
    cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
    let made = start.elapsed() + wait_home(&cluster.nodes[0].kcat(), TOPIC, PATIENCE)?;
    figures.times(&format!("{partitions} partitions are made and led"), vec![made], Limit::default());
    // What their making left to be done is not what they cost.
    let_pass(cluster, Duration::from_secs(10))?;
    let (cpu, resident) = cost(cluster, WINDOW)?;
    figures.number(
        &format!("{partitions} idle partitions: CPU of a node, of one core"),
        &cpu,
        "%",
        Some(CPU_PERCENT_MAX),
    );
    let what = format!("{partitions} idle partitions: resident memory of a node");
    figures.number(&what, &resident, " MiB", Some(RESIDENT_MIB_MAX));

    let (mut away, mut home) = (Vec::new(), Vec::new());
    for at in 0..3 {
        let witness = cluster.nodes[(at + 1) % 3].kcat();
        let id = cluster.nodes[at].id()?;
        let moment = Instant::now();
        cluster.nodes[at].kill()?;
        away.push(wait_led(&witness, Some(id), moment)?);
        let back = Instant::now();
        cluster.nodes[at].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        home.push(back.elapsed() + wait_home(&witness, TOPIC, PATIENCE)?);
        eprintln!("   node {} was killed and came back: {:?}, {:?}", at + 1, away.last(), home.last());
    }
    figures.times("a node is killed: every partition is led again", away, Limit::default());
    figures.times("a node returns: leaders are back on their first replicas", home, Limit::max(HOME_MAX));

    let (mut led, mut taken, mut given) = (Vec::new(), Vec::new(), sample(partitions));
    for _ in 0..STARTS {
        let (all_led, all_taken) = start_all(cluster, partitions, &mut given)?;
        led.push(all_led);
        taken.push(all_taken);
        cluster.wait_ready(PATIENCE)?;
        wait_home(&cluster.nodes[0].kcat(), TOPIC, PATIENCE)?;
    }
    figures.times("all nodes start again: every group led, as all its replicas tell", led, Limit::max(LED_MAX));
    let what = format!("all nodes start again: a key and a record of each of {} partitions are taken", given.len());
    figures.times(&what, taken, Limit::max(TAKEN_MAX));
    for node in &cluster.nodes {
        judge_given(figures, &format!("idle, through {}", node.name), &node.kcat(), TOPIC, &given);
    }
    Ok(())
}

/// Some partitions all over the topic, and what they are given.
fn sample(partitions: usize) -> BTreeMap<i64, Given> {
    let step = (partitions / SAMPLE).max(1);
    (0..partitions as i64).step_by(step).take(SAMPLE).map(|partition| (partition, Given::by("idle", 0))).collect()
}

/// Kills all nodes and starts them at once: until every group is led, and until each of a sample, and `__meta`, has taken
/// something.
fn start_all(
    cluster: &mut Cluster,
    partitions: usize,
    given: &mut BTreeMap<i64, Given>,
) -> anyhow::Result<(Duration, Duration)> {
    for node in &mut cluster.nodes {
        node.kill()?;
    }
    let moment = Instant::now();
    for node in &mut cluster.nodes {
        node.start(&Start::Up)?;
    }
    let led = wait_sparing(PATIENCE, LOOK, "every group is led", || {
        let groups = ensure_all_led(cluster)?;
        // And `__meta`, and muster's own.
        ensure!(groups > partitions + 1, "there are only {groups} groups");
        Ok(moment.elapsed())
    })?;
    cluster.nodes[0].api().put("/v1/kv/idle", &json!({ "value": "taken" }))?.ok()?;
    let kcat = cluster.kcat();
    given.iter_mut().try_for_each(|(partition, given)| give(&kcat, TOPIC, *partition, given))?;
    Ok((led, moment.elapsed()))
}

/// From `moment` until every partition has a leader.
fn wait_led(kcat: &Kcat, killed: Option<i64>, moment: Instant) -> anyhow::Result<Duration> {
    wait_until(PATIENCE, "every partition is led", || {
        let (none, _) = strays(kcat, TOPIC, killed)?;
        ensure!(none == 0, "{none} partitions have no leader");
        Ok(moment.elapsed())
    })
}
