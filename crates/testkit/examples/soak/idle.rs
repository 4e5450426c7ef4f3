//! Many partitions that nobody uses: what they cost, and how their leaders come and go.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Cluster, Kcat, Start, wait_until};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, cost, in_folder, let_pass, strays, wait_home};
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
/// From the start of all nodes until every group is led.
const LED_MAX: Duration = Duration::from_secs(10);

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

    for node in &mut cluster.nodes {
        node.kill()?;
    }
    let moment = Instant::now();
    for node in &mut cluster.nodes {
        node.start(&Start::Up)?;
    }
    let led = wait_led(&cluster.nodes[0].kcat(), None, moment)?;
    figures.times("all nodes start again: every group is led", vec![led], Limit::max(LED_MAX));
    cluster.wait_ready(PATIENCE)?;
    wait_home(&cluster.nodes[0].kcat(), TOPIC, PATIENCE)?;
    Ok(())
}

/// From `moment` until every partition has a leader.
fn wait_led(kcat: &Kcat, killed: Option<i64>, moment: Instant) -> anyhow::Result<Duration> {
    wait_until(PATIENCE, "every partition is led", || {
        let (none, _) = strays(kcat, TOPIC, killed)?;
        ensure!(none == 0, "{none} partitions have no leader");
        Ok(moment.elapsed())
    })
}
