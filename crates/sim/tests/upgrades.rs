//! Rolling upgrades, alone and among other faults: the version becomes active when the last node can it, nobody comes upon
//! what it cannot read, and who goes back too late stops and says so.

use base::simulation::Mark;
use sim::{Fault, FaultSet, SimConfig, replay_command, sweep};

fn check(faults: &[Fault], seeds: u64, seconds: u64) -> sim::Stats {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let faults = FaultSet(faults.iter().copied().collect());
    let cfg = SimConfig { seconds, faults, ..SimConfig::new(20_000) };
    let sweep = sweep(&cfg, seeds, jobs, false);
    if let Some((seed, violation)) = sweep.failed.first_key_value() {
        panic!("seed {seed}: {violation}\nreplay: {}", replay_command(&SimConfig { seed: *seed, ..cfg }));
    }
    sweep.stats
}

#[test]
fn a_rolling_upgrade_ends_with_the_new_version_whatever_else_happens() {
    let reached = |stats: &sim::Stats, mark: Mark| stats.marks.get(&mark).copied().unwrap_or(0);
    let quiet = check(&[Fault::Upgrade], 40, 10);
    // By three nodes in each run, of which some end before the last node is upgraded.
    assert!(reached(&quiet, Mark::VersionRaised) > 60, "the version hardly ever rose:\n{quiet}");
    assert!(reached(&quiet, Mark::CommandTooEarly) > 5, "hardly anybody asked too early:\n{quiet}");
    let rough = check(&[Fault::Upgrade, Fault::Crash, Fault::Partition], 40, 10);
    assert!(reached(&rough, Mark::VersionRaised) > 40, "{rough}");
    check(&[Fault::Upgrade, Fault::Join, Fault::Leave], 30, 10);
}
