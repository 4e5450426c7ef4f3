//! `muster-sim`: runs seeds, and replays one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use sim::plants::{hunt, markdown};
use sim::{FaultSet, Mistake, SimConfig, Violation, commit, replay_command};

/// Violations that are reported in full, with their event logs.
const REPORTS_MAX: usize = 3;
/// Seeds named per invariant.
const SEEDS_SHOWN: usize = 12;

#[derive(Parser)]
#[command(name = "muster-sim", version, about = "Simulates whole muster clusters, deterministically")]
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
        #[command(flatten)]
        world: WorldArgs,
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
    /// Plants a mistake (`muster-sim plants` names them).
    #[arg(long)]
    plant: Option<Mistake>,
}

impl WorldArgs {
    fn config(self, trace: bool) -> SimConfig {
        let WorldArgs { seed, nodes, seconds, faults, plant } = self;
        SimConfig { nodes: usize::from(nodes), seconds, faults, plant, trace, ..SimConfig::new(seed) }
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
        Command::Replay { trace, world } => replay(&world.config(true), trace),
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
    logs: &std::path::Path,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let sweep = sim::sweep(cfg, seeds, jobs, keep_going);
    let real = started.elapsed().as_secs_f64();
    println!("{}", sweep.stats);
    let virtual_s = sweep.stats.virtual_time as f64 / 1e9;
    println!("speed               {:.0} virtual s per real s, on {jobs} threads ({real:.1} s)", virtual_s / real);
    if marks {
        print!("{}", sim::marks_table(&sweep.stats));
    }
    for (seed, violation) in sweep.failed.iter().take(REPORTS_MAX) {
        report(&SimConfig { seed: *seed, ..cfg.clone() }, violation, logs)?;
    }
    match sweep.failed.len() {
        0 => Ok(ExitCode::SUCCESS),
        count => {
            println!("\n{count} of {} seeds failed:", sweep.stats.runs);
            let mut by_invariant: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
            for (seed, violation) in &sweep.failed {
                by_invariant.entry(violation.invariant).or_default().push(*seed);
            }
            for (invariant, seeds) in by_invariant {
                let first: Vec<String> = seeds.iter().take(SEEDS_SHOWN).map(u64::to_string).collect();
                println!(
                    "  {:4}  {invariant} (seeds {}{})",
                    seeds.len(),
                    first.join(" "),
                    if seeds.len() > SEEDS_SHOWN { " ..." } else { "" }
                );
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Says what a seed did wrong, how to see it again, and writes its event log.
fn report(cfg: &SimConfig, violation: &Violation, logs: &std::path::Path) -> anyhow::Result<()> {
    println!("\nVIOLATION with seed {} at commit {}", cfg.seed, commit());
    println!("  {violation}");
    println!("  replay: {}", replay_command(cfg));
    let again = sim::run(&SimConfig { trace: true, ..cfg.clone() });
    let path = logs.join(format!("seed-{}.trace", cfg.seed));
    std::fs::write(&path, again.trace).with_context(|| format!("writing the event log to {}", path.display()))?;
    println!("  event log: {}", path.display());
    if again.violation.as_ref() != Some(violation) {
        println!("  the second run of this seed ended differently: something is not deterministic");
    }
    Ok(())
}

fn replay(cfg: &SimConfig, trace: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let outcome = sim::run(cfg);
    match trace {
        Some(path) => {
            std::fs::write(&path, &outcome.trace)
                .with_context(|| format!("writing the trace to {}", path.display()))?;
            println!("{}", outcome.stats);
        }
        None => print!("{}", outcome.trace),
    }
    match outcome.violation {
        None => Ok(ExitCode::SUCCESS),
        Some(violation) => {
            eprintln!("VIOLATION with seed {} at commit {}\n  {violation}", cfg.seed, commit());
            Ok(ExitCode::FAILURE)
        }
    }
}
