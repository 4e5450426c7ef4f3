//! Runs: one, or many seeds on all cores.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::simulation::take_marks;

use crate::check::Violation;
use crate::config::{Only, SimConfig};
use crate::mistake::Planted;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::world::World;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    pub stats: Stats,
    pub violation: Option<Violation>,
    /// What each node that ran at the end had counted; of a run that failed, nothing.
    pub vitals: Vec<engine::Vitals>,
    /// Empty unless it was kept.
    pub trace: String,
    /// The incidents of the trace; as empty.
    pub timeline: String,
}

/// Runs one world to its end. A panic of the code under test is a violation like any other.
#[must_use]
pub fn run(cfg: &SimConfig) -> Outcome {
    drop(take_marks());
    let _planted = Planted::new(cfg.plant);
    let mut world = World::new(cfg.clone());
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(cause) = ended {
        let text = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "a panic without a message".into());
        let at = world.queue.now;
        world.trace.line(at, "!!", || format!("PANIC: {text}"));
        world.violation = Some(Violation::panic(at, text));
        world.stats.virtual_time = at;
        world.stats.gather(&world.checks);
    }
    world.count_marks();
    world.stats.writes_torn = world.nodes.iter().map(|node| node.disk.torn).sum();
    let died: u64 = world.nodes.iter().map(|node| node.host.died).sum();
    if died > 0 {
        world.stats.faults.insert("vm", died);
    }
    let cores = world.nodes.iter().filter_map(|node| node.core.as_ref()).filter(|_| world.violation.is_none());
    let vitals = cores.map(|core| core.vitals(usize::MAX)).collect();
    let trace = std::mem::replace(&mut world.trace, Trace::new(false));
    let (trace, timeline) = trace.into_parts();
    let timeline = timeline.render(world.nodes.len());
    Outcome { seed: cfg.seed, stats: world.stats, violation: world.violation, vitals, trace, timeline }
}

/// Many runs.
#[derive(Debug, Default)]
pub struct Sweep {
    pub stats: Stats,
    /// By seed; at most a few, because the sweep stops soon after the first.
    pub failed: BTreeMap<u64, Violation>,
}

/// Runs `seeds` seeds from `cfg.seed` on, on `jobs` threads, until one fails (or all of them, if `keep_going`).
#[must_use]
pub fn sweep(cfg: &SimConfig, seeds: u64, jobs: usize, keep_going: bool) -> Sweep {
    sweep_watched(cfg, seeds, jobs, keep_going, &|_| {})
}

/// As [`sweep`]; `watch` sees what there is after each run.
#[must_use]
pub fn sweep_watched(
    cfg: &SimConfig,
    seeds: u64,
    jobs: usize,
    keep_going: bool,
    watch: &(dyn Fn(&Sweep) + Sync),
) -> Sweep {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let result = Mutex::new(Sweep::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= seeds || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = run(&SimConfig { seed: cfg.seed.wrapping_add(offset), ..cfg.clone() });
                    let mut result = result.lock().expect("no thread panics while it holds the results");
                    result.stats.add(&outcome.stats);
                    if let Some(violation) = outcome.violation {
                        stop.store(!keep_going, Ordering::Relaxed);
                        result.failed.insert(outcome.seed, violation);
                    }
                    watch(&result);
                }
            });
        }
    });
    result.into_inner().expect("no thread panicked while it held the results")
}

/// The command that runs one seed again and writes its trace.
#[must_use]
pub fn replay_command(cfg: &SimConfig) -> String {
    let SimConfig { seed, nodes, seconds, faults, only, clients, locks, plant, trace: _ } = cfg;
    let mut command = format!("muster-sim replay --seed {seed} --nodes {nodes} --seconds {seconds} --faults {faults}");
    if let Some(only) = only {
        command += &format!(" --only {}", Only(only.clone()));
    }
    if let Some(clients) = clients {
        command += &format!(" --clients {clients}");
    }
    if *locks {
        command += " --locks";
    }
    if let Some(plant) = plant {
        command += &format!(" --plant {plant}");
    }
    command
}

/// The commit of the sources: as told at build time, or as git says now.
#[must_use]
pub fn commit() -> String {
    if let Some(known) = option_env!("MUSTER_COMMIT") {
        return known.into();
    }
    let git = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().into(),
        _ => "unknown".into(),
    }
}
