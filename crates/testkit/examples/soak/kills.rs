//! The leader of `__meta` is killed under load, over and over: how long until writes are accepted again, and whether
//! anything is lost that was acknowledged.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::{Cluster, Kcat, Load, LoadPlan, Start};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, judge, wait_home, wait_whole};
use crate::options::Options;

const ACCEPTED: Limit = Limit { median: Some(Duration::from_secs(2)), max: Some(Duration::from_secs(4)) };
const TOPIC: &str = "killed";

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-kills", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        killed(&mut cluster, options.kills, figures)
    });
}

fn killed(cluster: &mut Cluster, kills: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let api = cluster.nodes[0].api();
    api.post("/v1/topics", &serde_json::json!({ "name": TOPIC, "partitions": 3 }))?.ok()?;
    wait_home(&cluster.nodes[0].kcat(), TOPIC, PATIENCE)?;
    let load = Load::start(cluster, LoadPlan::moderate())?;
    let (mut moments, mut records) = (Vec::new(), Vec::new());
    for round in 1..=kills {
        let leader = cluster.meta_leader(PATIENCE)?;
        let survivors: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
        wait_whole(&cluster.nodes[survivors[0]])?;
        // Mostly it leads a partition too; not if it was killed a few times before, and gets none back for a while.
        let id = cluster.nodes[leader].id()?;
        let partitions = cluster.nodes[survivors[0]].kcat().partitions(TOPIC)?;
        let lost = partitions.iter().find(|(_, (leads, _))| *leads == id).map(|(partition, _)| *partition);
        let moment = Instant::now();
        cluster.nodes[leader].kill()?;
        let brokers: Vec<SocketAddr> = survivors.iter().map(|at| cluster.nodes[*at].kafka).collect();
        let record = lost.map(|partition| produced(&brokers, partition, round, moment)).transpose()?;
        records.extend(record);
        moments.push(moment);
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        eprintln!("   kill {round} of {kills}: a record after {record:?}");
    }
    wait_whole(&cluster.nodes[0])?;
    let outcome = load.stop()?;
    let commands: Option<Vec<Duration>> = moments.iter().map(|moment| outcome.accepted_after(*moment)).collect();
    let commands = commands.context("after some kill no key was put at all")?;
    figures.times("kill -9 of the leader to the next key that is put", commands, ACCEPTED);
    let written = records.len();
    figures.times("kill -9 of a leader to its partition's next record", records, ACCEPTED);
    let read = cluster.kcat().consume(TOPIC)?.len();
    ensure!(read >= written, "{read} of {written} acknowledged records came back");
    judge(figures, "kills", &outcome, cluster);
    Ok(())
}

/// From `moment` until a record is accepted by a partition.
fn produced(brokers: &[SocketAddr], partition: i64, round: usize, moment: Instant) -> anyhow::Result<Duration> {
    let (partition, value) = (partition.to_string(), format!("round-{round}"));
    let quick = ["topic.metadata.refresh.interval.ms=50", "retry.backoff.ms=20", "reconnect.backoff.max.ms=100"];
    let mut extra = vec!["-p", &partition];
    quick.iter().for_each(|setting| extra.extend(["-X", *setting]));
    let said = Kcat::at_any(brokers).try_produce(TOPIC, [(&b"k"[..], value.as_bytes())], &[], &extra)?;
    let delivered = said.status.success() && !said.text().contains("Delivery failed");
    ensure!(delivered, "round {round}: {}", said.text());
    Ok(moment.elapsed())
}
