//! What nodes count of their consensus, where time is exact.

use base::limits::{HEARTBEAT_INTERVAL, HEARTBEAT_LATE_AFTER};
use engine::Vitals;
use sim::{FaultSet, SimConfig, run};

fn vitals(faults: &str, seconds: u64) -> Vec<Vitals> {
    let faults: FaultSet = faults.parse().expect("a set of faults");
    let outcome = run(&SimConfig { seconds, faults, ..SimConfig::new(21) });
    assert_eq!(outcome.violation, None);
    outcome.vitals
}

#[test]
fn without_faults_heartbeats_are_on_time_and_nobody_is_elected_twice() {
    let in_time_us = (HEARTBEAT_INTERVAL.0 + HEARTBEAT_LATE_AFTER.0) * 1_000;
    let all = vitals("none", 30);
    assert_eq!(all.len(), 3);
    for node in &all {
        assert_eq!((node.ticks.skipped, node.ticks.pauses), (0, 0), "node {}", node.node);
        assert!(node.ticks.passed > 30 * 18, "{:?}", node.ticks);
        assert_eq!(node.elections.started, node.elections.won, "an election was lost: {:?}", node.elections);
        assert!(node.groups.term_max <= 2 && node.elections.step_downs == 0, "{node:?}");
        assert_eq!(node.groups.without_leader, 0);
        for gaps in [&node.heartbeats_sent, &node.heartbeats_received] {
            let late = gaps.count() - gaps.at_most(in_time_us);
            assert_eq!(late, 0, "node {}: {:?} is the longest gap", node.node, gaps.max_us());
        }
        assert_eq!(node.queues.unapplied, 0, "everything committed is applied in the same flush");
        assert_eq!(node.listed.len() as u64, node.groups.all);
        assert!(node.synced.count() > 0 && node.log_bytes > 0);
    }
    let sum = |of: fn(&Vitals) -> u64| all.iter().map(of).sum::<u64>();
    assert!(sum(|it| it.heartbeats_sent.count()) > 30 * 6 && sum(|it| it.heartbeats_received.count()) > 2 * 30 * 6);
    assert!(sum(|it| it.committed.count()) > 100);
    // Heartbeats that reads asked for came in between; those sent by the clock are none of them.
    let shortest = all.iter().filter_map(|it| it.heartbeats_sent.quantile_us(0)).min();
    assert!(shortest.is_some_and(|us| us > 90_000), "{shortest:?}");
}

#[test]
fn a_paused_process_knows_of_it_and_the_others_of_the_election() {
    let all = vitals("pause", 30);
    assert!(all.iter().any(|it| it.ticks.pauses > 0 && it.ticks.skipped > 0), "nobody was paused for long");
    assert!(all.iter().any(|it| it.elections.step_downs > 0 || it.elections.leader_changes > it.groups.all));
    assert!(all.iter().all(|it| it.elections.won <= it.elections.started), "{all:?}");
}
