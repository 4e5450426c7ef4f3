//! `muster-sim`: runs seeds, replays one, shrinks a failure, plants mistakes, explores.

mod report;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use sim::plants::{hunt, markdown};
use sim::{Explorer, FaultSet, Mistake, Only, SimConfig, commit};

/// Between two lines about how far a long run is.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// A run is made of small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "muster-sim",
    version,
    about = "Simulates whole muster clusters, deterministically",
    after_help = "Examples:\n  muster-sim run --seeds 500 --seconds 8 --marks\n  muster-sim replay --seed 7 --timeline\n  \
                  muster-sim shrink --seed 7 --plant vote-twice\n  muster-sim plants --only vote-twice\n  \
                  muster-sim explore --minutes 30"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs many seeds; exits with 1 at the first violation.
    Run {
        /// How many seeds, from `--seed` on.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// Threads; as many as there are cores by default.
        #[arg(long)]
        jobs: Option<usize>,
        /// Do not stop at the first violation.
        #[arg(long)]
        keep_going: bool,
        /// Where the event log of a failing seed goes.
        #[arg(long, default_value = ".")]
        logs: PathBuf,
        /// Say which rare states were reached, how often, and what they mean.
        #[arg(long)]
        marks: bool,
        #[command(flatten)]
        world: WorldArgs,
    },
    /// Runs one seed again and keeps its trace.
    Replay {
        /// Where the trace goes; to the standard output by default.
        #[arg(long)]
        trace: Option<PathBuf>,
        /// Print the incidents, with a column for each node, in the place of the trace.
        #[arg(long)]
        timeline: bool,
        #[command(flatten)]
        world: WorldArgs,
    },
    /// Makes a failing run small, and reports what is left of it.
    Shrink {
        /// Where the event log and the timeline go.
        #[arg(long, default_value = ".")]
        logs: PathBuf,
        #[command(flatten)]
        world: WorldArgs,
    },
    /// Runs other clusters, lengths and faults for a while, and says which rare states were never reached.
    Explore {
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Where the search begins.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Threads; as many as there are cores by default.
        #[arg(long)]
        jobs: Option<usize>,
        /// Where the event logs of failing seeds go.
        #[arg(long, default_value = ".")]
        logs: PathBuf,
    },
    /// Plants each mistake in turn and looks for the first seed that shows it; exits with 1 if one stays hidden.
    Plants {
        /// Seeds tried for each.
        #[arg(long, default_value_t = 2_000)]
        seeds_max: u64,
        /// Virtual seconds per seed; what suits the mistake by default.
        #[arg(long)]
        seconds: Option<u64>,
        /// Only these.
        #[arg(long, value_delimiter = ',')]
        only: Vec<Mistake>,
        /// Threads; as many as there are cores by default.
        #[arg(long)]
        jobs: Option<usize>,
        /// Write the page of the documentation.
        #[arg(long)]
        markdown: bool,
    },
}

#[derive(Args)]
struct WorldArgs {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes in the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    nodes: u8,
    /// Virtual seconds of load and faults, before the finale.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// `all`, `none`, or names joined by commas.
    #[arg(long, default_value = "all")]
    faults: FaultSet,
    /// Of the seed's faults, only those at these places: `none`, or numbers joined by commas.
    #[arg(long)]
    only: Option<Only>,
    /// Clients; two per node by default.
    #[arg(long)]
    clients: Option<usize>,
    /// Clients contend for locks, too.
    #[arg(long)]
    locks: bool,
    /// Plants a mistake (`muster-sim plants` names them).
    #[arg(long)]
    plant: Option<Mistake>,
}

impl WorldArgs {
    fn config(self, trace: bool) -> SimConfig {
        let WorldArgs { seed, nodes, seconds, faults, only, clients, locks, plant } = self;
        let only = only.map(|only| only.0);
        SimConfig { seed, nodes: usize::from(nodes), seconds, faults, only, clients, locks, plant, trace }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    // A panic of the code under test is reported as a violation, with its seed; the default hook would only add noise,
    // except for the place.
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match Cli::parse().command {
        Command::Run { seeds, jobs, keep_going, logs, marks, world } => {
            run(&world.config(false), seeds, jobs.unwrap_or_else(cores), keep_going, marks, &logs)
        }
        Command::Replay { trace, timeline, world } => replay(&world.config(true), trace, timeline),
        Command::Shrink { logs, world } => shrink(&world.config(false), &logs),
        Command::Explore { minutes, seed, jobs, logs } => explore(minutes, seed, jobs.unwrap_or_else(cores), &logs),
        Command::Plants { seeds_max, seconds, only, jobs, markdown } => {
            // Panics are expected here.
            std::panic::set_hook(Box::new(|_| {}));
            let of = |mistake| {
                let cfg = SimConfig::with_mistake(mistake, 1);
                SimConfig { seconds: seconds.unwrap_or(cfg.seconds), ..cfg }
            };
            let wanted = Mistake::all().filter(|mistake| only.is_empty() || only.contains(mistake));
            Ok(plants(wanted.map(of), seeds_max, jobs.unwrap_or_else(cores), markdown))
        }
    }
}

fn plants(cfgs: impl Iterator<Item = SimConfig>, seeds_max: u64, jobs: usize, as_markdown: bool) -> ExitCode {
    let mut hunts = Vec::new();
    for cfg in cfgs {
        let hunt = hunt(&cfg, seeds_max, jobs);
        if !as_markdown {
            println!("{hunt}");
        }
        hunts.push(hunt);
    }
    if as_markdown {
        print!("{}", markdown(&hunts));
    }
    if hunts.iter().all(|hunt| hunt.found.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(
    cfg: &SimConfig,
    seeds: u64,
    jobs: usize,
    keep_going: bool,
    marks: bool,
    logs: &Path,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let told = Mutex::new((started, BTreeSet::new()));
    let sweep = sim::sweep_watched(cfg, seeds, jobs, keep_going, &|so_far| {
        let (at, failed) = &mut *told.lock().expect("nobody panics while telling");
        for (seed, violation) in so_far.failed.iter().filter(|(seed, _)| failed.insert(**seed)) {
            eprintln!("seed {seed}: {}", violation.invariant);
        }
        if at.elapsed() >= PROGRESS_EVERY {
            *at = Instant::now();
            eprintln!("{}", progress(so_far, seeds, started.elapsed()));
        }
    });
    let real = started.elapsed().as_secs_f64();
    println!("{}", sweep.stats);
    let virtual_s = sweep.stats.virtual_time as f64 / 1e9;
    println!("speed               {:.0} virtual s per real s, on {jobs} threads ({real:.1} s)", virtual_s / real);
    if marks {
        print!("{}", sim::marks_table(&sweep.stats));
    }
    report::sweep(cfg, &sweep, logs)?;
    Ok(if sweep.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a long run is.
fn progress(so_far: &sim::Sweep, seeds: u64, passed: Duration) -> String {
    let (runs, failed) = (so_far.stats.runs, so_far.failed.len());
    let left = passed.as_secs_f64() / runs.max(1) as f64 * seeds.saturating_sub(runs) as f64;
    format!("{runs} of {seeds} seeds, {failed} failed, about {:.0} min left", (left / 60.0).ceil())
}

fn replay(cfg: &SimConfig, trace: Option<PathBuf>, timeline: bool) -> anyhow::Result<ExitCode> {
    let outcome = sim::run(cfg);
    if let Some(path) = &trace {
        std::fs::write(path, &outcome.trace).with_context(|| format!("writing the trace to {}", path.display()))?;
    }
    match (timeline, trace) {
        (true, _) => print!("{}", outcome.timeline),
        (false, None) => print!("{}", outcome.trace),
        (false, Some(_)) => println!("{}", outcome.stats),
    }
    match outcome.violation {
        None => Ok(ExitCode::SUCCESS),
        Some(violation) => {
            eprintln!("VIOLATION with seed {} at commit {}\n  {violation}", cfg.seed, commit());
            Ok(ExitCode::FAILURE)
        }
    }
}

fn shrink(cfg: &SimConfig, logs: &Path) -> anyhow::Result<ExitCode> {
    match sim::run(cfg).violation {
        Some(violation) => {
            report::violation(cfg, &violation, logs)?;
            Ok(ExitCode::FAILURE)
        }
        None => {
            println!("seed {} breaks no invariant: there is nothing to shrink", cfg.seed);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn explore(minutes: u64, seed: u64, jobs: usize, logs: &Path) -> anyhow::Result<ExitCode> {
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    let mut explorer = Explorer::new(seed);
    let mut failed = 0;
    while Instant::now() < until {
        let (cfg, sweep) = explorer.batch(jobs);
        failed += sweep.failed.len();
        report::sweep(&cfg, &sweep, logs)?;
        let reached = explorer.stats.marks.len();
        println!("{:6} runs, {reached} states reached, {failed} failed", explorer.runs);
    }
    println!("\n{}\n{}", explorer.stats, sim::marks_table(&explorer.stats));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
