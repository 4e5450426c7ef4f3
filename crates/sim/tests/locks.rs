//! Clients that contend for locks through the operations, with every fault.

use sim::{SimConfig, Stats, commit, replay_command, run, sweep};

fn check(cfg: &SimConfig, seeds: u64) -> Stats {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let sweep = sweep(cfg, seeds, jobs, false);
    if let Some((seed, violation)) = sweep.failed.first_key_value() {
        let replay = replay_command(&SimConfig { seed: *seed, ..cfg.clone() });
        panic!("seed {seed} at commit {}: {violation}\nreplay: {replay}", commit());
    }
    sweep.stats
}

#[test]
fn a_lock_has_one_holder_whatever_happens() {
    let cfg = SimConfig { seconds: 10, locks: true, ..SimConfig::new(30_000) };
    let mut stats = check(&cfg, 60);
    stats.add(&check(&SimConfig { nodes: 5, ..cfg }, 20));
    println!("{stats}");
    assert!(stats.locks_acquired > 200 && stats.locks_lapsed > 20, "hardly anybody got a lock:\n{stats}");
    assert!(stats.locks_joined > 0, "no call took up the place of an earlier one:\n{stats}");
    assert!(stats.locks_hung_up > 20 && stats.locks_left > 20, "hardly anybody hung up, or left:\n{stats}");
}

#[test]
fn operations_run_the_same_for_the_same_seed() {
    let trace = || run(&SimConfig { seconds: 6, locks: true, trace: true, ..SimConfig::new(7) }).trace;
    let (one, again) = (trace(), trace());
    assert!(one.contains(" lock client "), "nobody got a lock");
    if let Some((at, (left, right))) = one.lines().zip(again.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("line {at} differs:\n{left}\n{right}");
    }
    assert!(one == again, "one trace is longer");
}

#[test]
fn whoever_does_not_contend_for_locks_runs_as_if_there_were_none() {
    let stats = run(&SimConfig { seconds: 5, ..SimConfig::new(9) }).stats;
    assert_eq!((stats.locks_acquired, stats.locks_hung_up), (0, 0));
    assert!(replay_command(&SimConfig { locks: true, ..SimConfig::new(9) }).contains(" --locks"));
}
