//! The node that leads everything is drained: how long nothing is accepted meanwhile.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Cluster, Load, LoadPlan, wait_until};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, judge, wait_whole};
use crate::options::Options;

/// Longest time without an accepted write.
const GAP_MAX: Duration = Duration::from_millis(100);
/// How long before and after a hand-over is looked at.
const AROUND: Duration = Duration::from_millis(500);

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-handover", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        handed_over(&mut cluster, options.handovers, figures)
    });
}

fn handed_over(cluster: &mut Cluster, times: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let plan = LoadPlan { writer_pause: Duration::from_millis(1), ..LoadPlan::moderate() };
    let load = Load::start(cluster, plan)?;
    let (mut windows, mut quiet) = (Vec::new(), Vec::new());
    for round in 1..=times {
        let leader = cluster.meta_leader(PATIENCE)?;
        let other = cluster.nodes[(leader + 1) % 3].api();
        let name = cluster.nodes[leader].name.clone();
        // What the machine does by itself, to compare with.
        let before = Instant::now();
        wait_until(PATIENCE, "a while without a hand-over", || {
            ensure!(before.elapsed() >= 2 * AROUND, "not yet");
            Ok(())
        })?;
        let began = Instant::now();
        quiet.push((before, began));
        other.post(&format!("/v1/nodes/{name}/drain"), &json!({}))?.ok()?;
        wait_until(PATIENCE, "another node leads __meta", || {
            let now = cluster.meta_leader(PATIENCE)?;
            ensure!(now != leader, "it is {name} still");
            ensure!(began.elapsed() >= AROUND, "just now");
            Ok(())
        })?;
        windows.push((began, Instant::now()));
        other.post(&format!("/v1/nodes/{name}/resume"), &json!({}))?.ok()?;
        eprintln!("   hand-over {round} of {times}");
    }
    wait_whole(&cluster.nodes[0])?;
    let outcome = load.stop()?;
    let gaps =
        |windows: &[(Instant, Instant)]| windows.iter().map(|(from, to)| outcome.longest_gap(*from, *to)).collect();
    figures.times("no key put, longest time without a hand-over", gaps(&quiet), Limit::default());
    figures.times("no key put, longest time around a planned hand-over", gaps(&windows), Limit::max(GAP_MAX));
    judge(figures, "hand-over", &outcome, cluster);
    Ok(())
}
