//! The leader of `__meta` is killed under load, over and over: how long until writes are accepted again, and whether
//! anything is lost that was acknowledged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use testkit::{Cluster, Given, Kcat, Load, LoadPlan, Start};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, give, in_folder, judge, judge_given, wait_home, wait_whole};
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
    let (mut moments, mut records, mut given) = (Vec::new(), Vec::new(), BTreeMap::new());
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
        if let Some(partition) = lost {
            let given = given.entry(partition).or_insert_with(|| Given::by("killed", 0));
            let gave = give(&Kcat::at_any(&brokers), TOPIC, partition, given);
            gave.with_context(|| format!("after kill {round}"))?;
            records.push(moment.elapsed());
        }
        moments.push(moment);
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        eprintln!("   kill {round} of {kills}: a record of {lost:?}, the last so far after {:?}", records.last());
    }
    wait_whole(&cluster.nodes[0])?;
    let outcome = load.stop()?;
    let commands: Option<Vec<Duration>> = moments.iter().map(|moment| outcome.accepted_after(*moment)).collect();
    let commands = commands.context("after some kill no key was put at all")?;
    figures.times("kill -9 of the leader to the next key that is put", commands, ACCEPTED);
    figures.times("kill -9 of a leader to its partition's next record", records, ACCEPTED);
    judge_given(figures, "kills", &cluster.kcat(), TOPIC, &given);
    judge(figures, "kills", &outcome, cluster);
    Ok(())
}
