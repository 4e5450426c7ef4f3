//! Both cores have more to do than they can: producers at full speed, machines that boot on an emulated CPU, and loops
//! that do nothing else, if wanted. No group may come to another term or another leader.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;
use serde_json::json;
use testkit::{Cluster, Folder, Load, LoadPlan, Process};

use crate::counts::{Moment, Span, elections, heartbeats, turns};
use crate::figures::{Figures, Limit};
use crate::look::{
    PATIENCE, idle_percent, in_folder, judge, judge_idle, let_pass, machine_time, wait_home, wait_whole,
};
use crate::machines::boot_over_and_over;
use crate::options::Options;

const TOPIC: &str = "starved";
/// Machines that boot at once: an emulated CPU takes a core.
const MACHINES: [&str; 2] = ["soaka", "soakb"];
/// With more time than this to spare the cores are not what is short.
const IDLE_PERCENT_MAX: f64 = 10.0;

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-starved", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        let topic = json!({ "name": TOPIC, "partitions": plan().producers, "replication_factor": 3 });
        cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
        // Leaderships that go home are elections too, and not what is looked for.
        for topic in [TOPIC, "muster.events"] {
            wait_home(&cluster.nodes[0].kcat(), topic, PATIENCE)?;
        }
        wait_whole(&cluster.nodes[0])?;
        starved(&mut cluster, folder, options, figures)
    });
}

fn starved(cluster: &mut Cluster, folder: &Folder, options: &Options, figures: &mut Figures) -> anyhow::Result<()> {
    let (before, start) = (cluster.nodes[0].terms()?, Moment::now(cluster)?);
    let load = Load::start(cluster, plan())?;
    let burners = (0..options.burners).map(|number| burner(number, folder)).collect::<anyhow::Result<Vec<_>>>()?;
    let machine = machine_time()?;
    let booted = saturate(cluster, options)?;
    let idle = idle_percent(machine)?;
    let (after, end) = (cluster.nodes[0].terms()?, Moment::now(cluster)?);
    drop(burners);
    let outcome = load.stop()?;

    let span = Span::between(&start, &end);
    let (keys, records) = outcome.acknowledged();
    let per_second = records as f64 / span.time().as_secs_f64();
    eprintln!("   {keys} puts, {records} records ({per_second:.0}/s), {booted} machines booted in {:?}", span.time());
    judge_idle(figures, "starved", idle, Some(IDLE_PERCENT_MAX));
    if options.vms {
        figures.verdict("starved: machines boot", booted > 0, &format!("{booted} machines"));
    }
    elections(figures, "starved", &span, &before, &after);
    figures.number("starved: pre-votes on a node", &span.grown("muster_raft_pre_votes_total", &[]), "", None);
    heartbeats(figures, "starved", &span, true);
    turns(figures, "starved", &span, None);
    judge_time(figures, &span);
    figures.times("starved: a key is put", outcome.latencies(), Limit::default());
    judge(figures, "starved", &outcome, cluster);
    Ok(())
}

/// Records as fast as they are taken, and a put now and then: how long it takes, not how many there are, is of interest.
fn plan() -> LoadPlan {
    LoadPlan { writers: 1, writer_pause: Duration::from_millis(100), topic: TOPIC.to_owned(), ..LoadPlan::saturating() }
}

/// A process that does nothing, as fast as it can, until the value goes.
fn burner(number: usize, folder: &Folder) -> anyhow::Result<Process> {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]);
    Process::start(&mut command, &format!("burner{number}"), folder.path())
}

/// Lets the time pass while machines boot; how many did.
fn saturate(cluster: &mut Cluster, options: &Options) -> anyhow::Result<usize> {
    let time = Duration::from_secs_f64(options.starve_minutes * 60.0);
    let (booted, stop) = (AtomicUsize::new(0), AtomicBool::new(!options.vms));
    let api = cluster.nodes[0].api();
    let (api, booted_now, stop_now) = (&api, &booted, &stop);
    std::thread::scope(|scope| {
        let boot = |name: &'static str| scope.spawn(move || boot_over_and_over(api, name, stop_now, booted_now));
        let booting: Vec<_> = MACHINES.into_iter().map(boot).collect();
        let passed = let_pass(cluster, time);
        stop.store(true, Ordering::SeqCst);
        for one in booting {
            one.join().unwrap_or_else(|_| bail!("a thread that boots machines panicked"))?;
        }
        passed
    })?;
    Ok(booted.load(Ordering::SeqCst))
}

/// How much of their time the nodes did not get.
fn judge_time(figures: &mut Figures, span: &Span<'_>) {
    let skipped = span.grown("muster_raft_ticks_skipped_total", &[]);
    figures.number("starved: ticks that a node skipped", &skipped, "", None);
    let pauses = span.grown("muster_raft_pauses_total", &[]);
    figures.number("starved: times that a core stood still for an election timeout", &pauses, "", Some(0.0));
    for thread in ["core", "network"] {
        let waited = span.grown("muster_thread_wait_seconds_total", &[("thread", thread)]);
        let percent: Vec<f64> = waited.iter().map(|s| s / span.time().as_secs_f64() * 100.0).collect();
        figures.number(&format!("starved: thread {thread} waits for a CPU, of the time"), &percent, "%", None);
    }
}
