//! Many seeds, with every fault: the invariants hold, and the faults really happened.

use base::ErrorCode;
use sim::{Fault, FaultSet, SimConfig, Sweep, commit, replay_command, sweep};

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn assert_clean(cfg: &SimConfig, sweep: &Sweep) {
    if let Some((seed, violation)) = sweep.failed.first_key_value() {
        let replay = replay_command(&SimConfig { seed: *seed, ..cfg.clone() });
        panic!("seed {seed} at commit {}: {violation}\nreplay: {replay}", commit());
    }
}

#[test]
fn five_hundred_seeds_with_every_fault_break_no_invariant() {
    let cfg = SimConfig { seconds: 8, ..SimConfig::new(1) };
    let sweep = sweep(&cfg, 500, cores(), false);
    assert_clean(&cfg, &sweep);
    let stats = &sweep.stats;
    println!("{stats}");
    for (fault, name) in Fault::ALL {
        // A bit flips only if it was at rest for a while, which restarts and upgrades of its node make rare.
        let least = if fault == Fault::BitRot { 4 } else { 10 };
        assert!(stats.faults.get(name).copied().unwrap_or(0) >= least, "{fault:?} hardly happened:\n{stats}");
    }
    assert!(stats.records_acknowledged > 10_000 && stats.commands_acknowledged > 2_000, "hardly any load:\n{stats}");
    assert!(stats.unknown > 50 && stats.elections > 200, "the faults did not bite:\n{stats}");
    let count = |what| stats.faults.get(what).copied().unwrap_or(0);
    assert!(
        stats.retired > 0 && count("bit-rot-undone") > 0 && count("power-off") > 10,
        "hardly any bad end:\n{stats}"
    );
    assert!(
        stats.tokens_refused > 50 && stats.impostors_refused > 5,
        "hardly anybody asked who must not join:\n{stats}"
    );
    assert!(stats.taken_over > 50, "hardly anybody was replaced:\n{stats}");
    assert!(stats.replicas_compared > 100_000, "hardly any replica was compared:\n{stats}");
    assert!(stats.states_compared > 50_000 && stats.consumed > 10_000, "hardly anything was compared:\n{stats}");
    assert!(stats.names > 500 && stats.names_operations > 5_000, "hardly any name was contended:\n{stats}");
    assert!(stats.names_undecided * 100 <= stats.names, "too many searches were given up:\n{stats}");
}

#[test]
fn clusters_of_every_size_survive_every_fault() {
    for nodes in [1, 2, 4, 5] {
        let cfg = SimConfig { nodes, seconds: 6, ..SimConfig::new(1_000) };
        assert_clean(&cfg, &sweep(&cfg, 8, cores(), false));
    }
}

#[test]
fn reads_that_share_what_is_asked_of_the_leader_see_every_write() {
    // Two clients of a node, as elsewhere, never have to share: two reads may be under way.
    let cfg = SimConfig { seconds: 6, clients: Some(24), ..SimConfig::new(2_000) };
    assert_clean(&cfg, &sweep(&cfg, 30, cores(), false));
}

#[test]
fn successors_take_over_whatever_else_happens() {
    for nodes in [3, 4, 5] {
        let faults = FaultSet([Fault::Replace, Fault::Crash, Fault::Partition].into());
        let cfg = SimConfig { nodes, seconds: 6, faults, ..SimConfig::new(3_000) };
        let sweep = sweep(&cfg, 8, cores(), false);
        assert_clean(&cfg, &sweep);
        assert!(sweep.stats.taken_over > 0, "nobody was replaced:\n{}", sweep.stats);
    }
}

#[test]
fn whoever_goes_already_gets_a_successor_and_another_one_when_that_goes_too() {
    let faults = FaultSet([Fault::Replace, Fault::Leave, Fault::Drain].into());
    let cfg = SimConfig { seconds: 6, faults, ..SimConfig::new(4_000) };
    let sweep = sweep(&cfg, 40, cores(), false);
    assert_clean(&cfg, &sweep);
    let stats = &sweep.stats;
    assert!(stats.named_late > 0 && stats.successors_changed > 0, "nobody was named later:\n{stats}");
}

#[test]
fn a_healthy_cluster_forms_in_one_election_and_needs_no_other() {
    let cfg = SimConfig { seconds: 12, faults: FaultSet::none(), ..SimConfig::new(5_000) };
    let sweep = sweep(&cfg, 20, cores(), false);
    assert_clean(&cfg, &sweep);
    let stats = &sweep.stats;
    assert!(stats.max_term <= 2, "terms grew:\n{stats}");
    assert_eq!(stats.elections_meta, stats.runs, "one election of __meta per run:\n{stats}");
    // A client may know a new leader before that leader is ready, and may read a follower ahead of its commit index.
    // A fenced producer finds that it is fenced. Clients that contend for a name find it taken, gone, or not in the state that they ask from.
    let harmless = [
        ErrorCode::NotLeader,
        ErrorCode::OffsetOutOfRange,
        ErrorCode::AlreadyExists,
        ErrorCode::NotFound,
        ErrorCode::FailedPrecondition,
        ErrorCode::StaleEpoch,
    ];
    let failures: Vec<_> = stats.failures.keys().filter(|code| !harmless.contains(code)).collect();
    assert!(failures.is_empty() && stats.unknown == 0, "requests failed and nothing was wrong:\n{stats}");
}

/// Requests without a pause, from every node: that a group elects a second time, or a term grows, fails the run itself.
#[test]
fn ten_minutes_of_load_need_no_election() {
    let cfg = SimConfig { seconds: 600, faults: FaultSet::none(), ..SimConfig::new(6_000) };
    let sweep = sweep(&cfg, 1, 1, false);
    assert_clean(&cfg, &sweep);
    let stats = &sweep.stats;
    assert!(stats.virtual_time > 600_000_000_000 && stats.acknowledged > 50_000, "hardly any load:\n{stats}");
    assert!(stats.max_term <= 2 && stats.elections_meta == 1, "terms grew:\n{stats}");
}
