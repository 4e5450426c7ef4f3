//! Every node is stopped and started again, one after the other, under load.

use std::time::{Duration, Instant};

use testkit::{Cluster, Load, LoadPlan, Start};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, judge, wait_whole};
use crate::options::Options;

/// Longest time without an accepted put while a node stops, starts and is ready. Had it not handed over before it went, an
/// election would take more than a second.
const GAP_MAX: Duration = Duration::from_millis(500);

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-rolling", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        restarted(&mut cluster, options.restarts, figures)
    });
}

fn restarted(cluster: &mut Cluster, times: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let load = Load::start(cluster, LoadPlan::moderate())?;
    let mut windows = Vec::new();
    for round in 1..=times {
        for at in 0..cluster.nodes.len() {
            wait_whole(&cluster.nodes[(at + 1) % 3])?;
            let began = Instant::now();
            cluster.nodes[at].stop()?;
            cluster.nodes[at].start(&Start::Up)?;
            cluster.wait_ready(PATIENCE)?;
            windows.push((began, Instant::now()));
        }
        eprintln!("   rolling restart {round} of {times}");
    }
    wait_whole(&cluster.nodes[0])?;
    let outcome = load.stop()?;
    let took: Vec<Duration> = windows.iter().map(|(from, to)| *to - *from).collect();
    let gaps = windows.iter().map(|(from, to)| outcome.longest_gap(*from, *to)).collect();
    figures.times("a node is stopped, started and ready", took, Limit::default());
    figures.times("no key put, longest time while a node restarts", gaps, Limit::max(GAP_MAX));
    figures.times("rolling restarts: a key is put", outcome.latencies(), Limit::default());
    judge(figures, "rolling restarts", &outcome, cluster);
    Ok(())
}
