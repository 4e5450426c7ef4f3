//! Load that saturates the machine: as many records and keys as it takes, and virtual machines that boot. No group may come
//! to another term, and heartbeats must leave in time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testkit::{Cluster, Load, LoadPlan, Node};

use crate::counts::{Moment, Span, TOLERANCE, elections, heartbeats};
use crate::figures::{Figures, Limit};
use crate::look::{cpu_time, in_folder, judge, let_pass, wait_whole};
use crate::machines::boot_over_and_over;
use crate::options::Options;

pub fn run(options: &Options, figures: &mut Figures) {
    let time = Duration::from_secs_f64(options.load_minutes * 60.0);
    in_folder("soak-steady", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        under_load(&mut cluster, time, options.vms, figures)
    });
}

fn under_load(cluster: &mut Cluster, time: Duration, vms: bool, figures: &mut Figures) -> anyhow::Result<()> {
    let load = Load::start(cluster, LoadPlan::saturating())?;
    wait_whole(&cluster.nodes[0])?;
    let (before, began_at) = (cluster.nodes[0].terms()?, Moment::now(cluster)?);
    let (booted, stop) = (AtomicUsize::new(0), AtomicBool::new(!vms));
    let pids: Vec<u32> = cluster.nodes.iter().filter_map(Node::pid).collect();
    let cpu = || pids.iter().map(|pid| cpu_time(*pid)).sum::<anyhow::Result<Duration>>();
    let (began, used) = (Instant::now(), cpu()?);
    let api = cluster.nodes[0].api();
    let passed = std::thread::scope(|scope| {
        let booting = scope.spawn(|| boot_over_and_over(&api, "soak", &stop, &booted));
        let passed = let_pass(cluster, time);
        stop.store(true, Ordering::SeqCst);
        passed.and(booting.join().unwrap_or_else(|_| anyhow::bail!("the thread that boots machines panicked")))
    });
    passed?;
    let share = (cpu()? - used).as_secs_f64() / began.elapsed().as_secs_f64();
    let (after, ended_at) = (cluster.nodes[0].terms()?, Moment::now(cluster)?);
    let outcome = load.stop()?;
    let (keys, records) = outcome.acknowledged();
    let rate = |count: f64| count / began.elapsed().as_secs_f64();
    eprintln!(
        "   {:.0} puts/s, {:.0} records/s, {} machines booted, the nodes took {share:.2} cores",
        rate(keys as f64),
        rate(records as f64),
        booted.load(Ordering::SeqCst)
    );
    let span = Span::between(&began_at, &ended_at);
    elections(figures, "saturating load", &span, &before, &after);
    heartbeats(figures, "saturating load", &span, Some(TOLERANCE));
    figures.times("saturating load: a key is put", outcome.latencies(), Limit::default());
    judge(figures, "saturating load", &outcome, cluster);
    Ok(())
}
