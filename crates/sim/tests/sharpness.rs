//! The checkers can fail: each mistake planted in the simulator's own seams ends in a violation.

use sim::plants::{RARE, hunt_all, is_rare};
use sim::{Fault, FaultSet, Mistake, Seam, SimConfig, sweep};

/// Runs seeds with the mistake until one fails, and says which invariant broke.
fn caught(plant: Seam, faults: &[Fault], seeds: u64) -> Option<&'static str> {
    let cfg = SimConfig {
        seconds: 8,
        faults: FaultSet(faults.iter().copied().collect()),
        plant: Some(Mistake::Seam(plant)),
        ..SimConfig::new(1)
    };
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failed = sweep(&cfg, seeds, jobs, false).failed;
    let (seed, violation) = failed.first_key_value()?;
    println!("{plant:?}: seed {seed}, {violation}");
    Some(violation.invariant)
}

#[track_caller]
fn check(plant: Seam, faults: &[Fault], expected: &[&str]) {
    match caught(plant, faults, 100) {
        Some(invariant) => assert!(expected.contains(&invariant), "{plant:?} broke {invariant:?} instead"),
        None => panic!("{plant:?} went unnoticed for 100 seeds"),
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    assert!(caught(Seam::LyingDisk, &[Fault::Crash, Fault::PowerLoss], 100).is_some());
}

#[test]
fn a_disk_restored_from_a_backup_is_caught() {
    let expected = [
        "terms survive a restart",
        "terms never go back",
        // What others acknowledge to it is gone.
        "no node stops by itself",
        "one vote per term",
        "log matching",
        "election safety",
        "leader completeness",
        "partitions",
    ];
    check(Seam::RestoredDisk, &[Fault::Crash, Fault::PowerLoss, Fault::Partition], &expected);
}

#[test]
fn a_node_that_comes_back_without_its_disk_is_caught() {
    assert!(caught(Seam::AmnesiacNode, &[Fault::Crash], 100).is_some());
}

#[test]
fn forged_votes_are_caught() {
    check(
        Seam::ForgedVotes,
        // Late frames and crashes make two candidates in one term.
        &[Fault::Delay, Fault::Crash],
        &[
            "election safety",
            "leader completeness",
            "log matching",
            "partitions",
            "state machines are equal",
            "no node stops by itself",
        ],
    );
}

#[test]
fn raised_terms_are_caught() {
    check(Seam::RaisedTerms, &[], &["no elections in a healthy cluster", "election safety"]);
}

#[test]
fn false_acknowledgements_are_caught() {
    check(Seam::FalseAcknowledgement, &[Fault::Crash], &["acknowledged records stay", "partitions"]);
}

#[test]
fn lost_replies_are_caught() {
    check(Seam::LostReplies, &[], &["one answer per request"]);
}

#[test]
fn entries_changed_on_their_way_are_caught() {
    check(Seam::FlippedEntries, &[], &["log matching", "partitions", "no node stops by itself", "nothing panics"]);
}

#[test]
fn mistakes_in_the_code_are_caught() {
    let quick = |mistake| matches!(mistake, Mistake::Code(_)) && !is_rare(mistake);
    let (hunted, hidden) = hunt_all(100, quick);
    assert!(hidden.is_empty(), "not found in 100 seeds: {hidden:?}");
    assert_eq!(hunted + RARE.len(), base::simulation::Plant::ALL.len());
}
