//! Load that saturates the machine: as many records and keys as it takes, and virtual machines that boot. No group may come
//! to another term, and heartbeats must leave in time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Api, Cluster, Load, LoadPlan, Node, wait_until};

use crate::figures::{Figures, Limit};
use crate::look::{cpu_time, in_folder, judge, let_pass, risen, terms, wait_whole};
use crate::options::Options;

const GAP: &str = "muster_raft_heartbeat_send_gap_seconds";
const INTERVAL: &str = "muster_raft_heartbeat_interval_seconds";
/// By so much a heartbeat may be off its interval, in 999 of 1,000 cases.
const TOLERANCE_S: f64 = 0.050;
/// A machine boots on an emulated CPU, on cores that have other things to do.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

pub fn run(options: &Options, figures: &mut Figures) {
    let time = Duration::from_secs_f64(options.load_minutes * 60.0);
    in_folder("soak-steady", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        under_load(&mut cluster, time, options.vms, figures)
    });
}

fn under_load(cluster: &mut Cluster, time: Duration, vms: bool, figures: &mut Figures) -> anyhow::Result<()> {
    let plan = LoadPlan {
        writers: 8,
        writer_pause: Duration::ZERO,
        producers: 4,
        batch_records: 2_000,
        record_bytes: 200,
        producer_pause: Duration::ZERO,
        deadline: Duration::from_secs(30),
        ..LoadPlan::moderate()
    };
    let load = Load::start(cluster, plan)?;
    wait_whole(&cluster.nodes[0])?;
    let (before, gaps) = (terms(&cluster.nodes[0])?, heartbeats(cluster)?);
    let (booted, stop) = (AtomicUsize::new(0), AtomicBool::new(!vms));
    let pids: Vec<u32> = cluster.nodes.iter().filter_map(Node::pid).collect();
    let cpu = || pids.iter().map(|pid| cpu_time(*pid)).sum::<anyhow::Result<Duration>>();
    let (began, used) = (Instant::now(), cpu()?);
    let api = cluster.nodes[0].api();
    let passed = std::thread::scope(|scope| {
        let booting = scope.spawn(|| boot_machines(&api, &stop, &booted));
        let passed = let_pass(cluster, time);
        stop.store(true, Ordering::SeqCst);
        passed.and(booting.join().unwrap_or_else(|_| anyhow::bail!("the thread that boots machines panicked")))
    });
    passed?;
    let share = (cpu()? - used).as_secs_f64() / began.elapsed().as_secs_f64();
    let risen = risen(&before, &terms(&cluster.nodes[0])?);
    let outcome = load.stop()?;
    let (keys, records) = outcome.acknowledged();
    let rate = |count: f64| count / began.elapsed().as_secs_f64();
    eprintln!(
        "   {:.0} puts/s, {:.0} records/s, {} machines booted, the nodes took {share:.2} cores",
        rate(keys as f64),
        rate(records as f64),
        booted.load(Ordering::SeqCst)
    );
    let seen = format!("{} groups, risen: {risen:?}", before.len());
    figures.verdict("saturating load: no elections", risen.is_empty(), &seen);
    judge_heartbeats(figures, gaps, heartbeats(cluster)?);
    figures.times("saturating load: a key is put", outcome.latencies(), Limit::default());
    judge(figures, "saturating load", &outcome, cluster);
    Ok(())
}

/// One machine after the other is made, boots, and goes.
fn boot_machines(api: &Api, stop: &AtomicBool, booted: &AtomicUsize) -> anyhow::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let name = format!("soak{}", booted.load(Ordering::SeqCst));
        api.post("/v1/vms", &json!({ "name": name }))?.ok()?;
        wait_until(BOOT_LIMIT, "the machine runs", || {
            let vm = api.get(&format!("/v1/vms/{name}"))?.ok()?;
            ensure!(vm["phase"] == "Running" || stop.load(Ordering::SeqCst), "it is {vm}");
            Ok(())
        })?;
        api.delete(&format!("/v1/vms/{name}"))?.ok()?;
        booted.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// The gaps between heartbeats of all nodes, by upper bounds in seconds (cumulative), with the interval; `None` if the
/// nodes do not measure them.
struct Heartbeats {
    interval_s: f64,
    buckets: Vec<(f64, f64)>,
}

fn heartbeats(cluster: &Cluster) -> anyhow::Result<Option<Heartbeats>> {
    let mut all: Option<Heartbeats> = None;
    for node in cluster.running() {
        let page = node.api().text("/metrics")?;
        let text = page.body;
        let interval = text.lines().find_map(|line| line.strip_prefix(INTERVAL)?.trim().parse().ok());
        let Some(interval_s) = interval else { return Ok(None) };
        let buckets = text.lines().filter_map(bucket).collect::<Vec<_>>();
        ensure!(!buckets.is_empty(), "{} has an interval of heartbeats, and no gaps", node.name);
        match &mut all {
            None => all = Some(Heartbeats { interval_s, buckets }),
            Some(all) => all.buckets.iter_mut().zip(&buckets).for_each(|(sum, one)| sum.1 += one.1),
        }
    }
    Ok(all)
}

/// `NAME_bucket{le="0.2"} 17`.
fn bucket(line: &str) -> Option<(f64, f64)> {
    let (bound, count) = line.strip_prefix(GAP)?.strip_prefix("_bucket{le=\"")?.split_once("\"} ")?;
    let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
    Some((bound, count.trim().parse().ok()?))
}

fn judge_heartbeats(figures: &mut Figures, before: Option<Heartbeats>, after: Option<Heartbeats>) {
    const WHAT: &str = "saturating load: p99.9 of the gaps between heartbeats";
    let (Some(before), Some(after)) = (before, after) else {
        return figures.unmeasured(WHAT, "this build has no /metrics with them");
    };
    let counts: Vec<(f64, f64)> = before.buckets.iter().zip(&after.buckets).map(|(b, a)| (a.0, a.1 - b.1)).collect();
    let all = counts.last().map_or(0.0, |last| last.1);
    let bound = counts.iter().find(|(_, count)| *count >= all * 0.999).map_or(f64::INFINITY, |found| found.0);
    let most = (after.interval_s + TOLERANCE_S) * 1_000.0;
    eprintln!("   {all} heartbeats, by upper bounds of the gaps before them: {counts:?}");
    if all == 0.0 {
        return figures.verdict(WHAT, false, "no heartbeats were counted");
    }
    figures.number(WHAT, &[bound * 1_000.0], " ms", Some(most));
}
