//! Load that saturates the machine: as many records and keys as it takes, and virtual machines that boot. No group may come
//! to another term, and heartbeats must leave in time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testkit::{Cluster, Load, LoadPlan, Node};

use crate::counts::{Moment, Span, elections, heartbeats};
use crate::figures::{Figures, Limit};
use crate::look::{cpu_time, idle_percent, in_folder, judge, judge_idle, let_pass, machine_time, wait_whole};
use crate::machines::boot_over_and_over;
use crate::options::Options;

/// With more time than this to spare the load does not saturate the machine. Nodes wait for their disks too, and that counts as
/// time to spare: it is machines that boot which leave little of it, and without them there is no limit.
const IDLE_PERCENT_MAX: f64 = 25.0;

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
    let (began, used, machine) = (Instant::now(), cpu()?, machine_time()?);
    let api = cluster.nodes[0].api();
    let passed = std::thread::scope(|scope| {
        let booting = scope.spawn(|| boot_over_and_over(&api, "soak", &stop, &booted));
        let passed = let_pass(cluster, time);
        stop.store(true, Ordering::SeqCst);
        passed.and(booting.join().unwrap_or_else(|_| anyhow::bail!("the thread that boots machines panicked")))
    });
    passed?;
    let share = (cpu()? - used).as_secs_f64() / began.elapsed().as_secs_f64();
    let idle = idle_percent(machine)?;
    let (after, ended_at) = (cluster.nodes[0].terms()?, Moment::now(cluster)?);
    let outcome = load.stop()?;
    let (keys, records) = outcome.acknowledged();
    let rate = |count: f64| count / began.elapsed().as_secs_f64();
    let booted = booted.load(Ordering::SeqCst);
    eprintln!(
        "   {:.0} puts/s, {:.0} records/s, {booted} machines booted, the nodes took {share:.2} cores",
        rate(keys as f64),
        rate(records as f64)
    );
    judge_idle(figures, "saturating load", idle, vms.then_some(IDLE_PERCENT_MAX));
    if vms {
        figures.verdict("saturating load: machines boot", booted > 0, &format!("{booted} machines"));
    }
    let span = Span::between(&began_at, &ended_at);
    elections(figures, "saturating load", &span, &before, &after);
    heartbeats(figures, "saturating load", &span, true);
    figures.times("saturating load: a key is put", outcome.latencies(), Limit::default());
    judge(figures, "saturating load", &outcome, cluster);
    Ok(())
}
