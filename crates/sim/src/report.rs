//! What the command line says of runs that failed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use sim::{SimConfig, Sweep, TRIES_MAX, Violation, commit, replay_command, shrink};

/// Violations that are reported in full, with their event logs.
const REPORTS_MAX: usize = 3;
/// Seeds named per invariant.
const SEEDS_SHOWN: usize = 12;

/// Reports the first failures of a sweep, and counts all.
pub fn sweep(cfg: &SimConfig, sweep: &Sweep, logs: &Path) -> anyhow::Result<()> {
    for (seed, found) in sweep.failed.iter().take(REPORTS_MAX) {
        violation(&SimConfig { seed: *seed, ..cfg.clone() }, found, logs)?;
    }
    if sweep.failed.is_empty() {
        return Ok(());
    }
    println!("\n{} of {} seeds failed:", sweep.failed.len(), sweep.stats.runs);
    let mut by_invariant: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (seed, violation) in &sweep.failed {
        by_invariant.entry(violation.invariant).or_default().push(*seed);
    }
    for (invariant, seeds) in by_invariant {
        let first: Vec<String> = seeds.iter().take(SEEDS_SHOWN).map(u64::to_string).collect();
        let more = if seeds.len() > SEEDS_SHOWN { " ..." } else { "" };
        println!("  {:4}  {invariant} (seeds {}{more})", seeds.len(), first.join(" "));
    }
    Ok(())
}

/// Says what a run did wrong, in the smallest run that still does it: its faults, its timeline, its event log, and the
/// command that runs it again.
pub fn violation(cfg: &SimConfig, violation: &Violation, logs: &Path) -> anyhow::Result<()> {
    println!("\nVIOLATION with seed {} at commit {}", cfg.seed, commit());
    println!("  {violation}");
    println!("  replay: {}", replay_command(cfg));
    let small = shrink(cfg, violation, TRIES_MAX);
    let again = sim::run(&SimConfig { trace: true, ..small.cfg.clone() });
    if again.violation.as_ref() != Some(&small.violation) {
        println!("  the second run of this seed ended differently: something is not deterministic");
    }
    println!("  shrunk in {} runs to {} of {} faults:", small.tries, small.faults.len(), small.faults_before);
    for fault in &small.faults {
        println!("    {fault}");
    }
    println!("  {}", small.violation);
    println!("  replay: {}", replay_command(&small.cfg));
    for (what, ending, text) in [("event log", "trace", &again.trace), ("timeline", "timeline", &again.timeline)] {
        let path = logs.join(format!("seed-{}.{ending}", cfg.seed));
        std::fs::write(&path, text).with_context(|| format!("writing the {what} to {}", path.display()))?;
        println!("  {what}: {}", path.display());
    }
    Ok(())
}
