//! Random faults over many seeds. A failure names its seed; `MULTIRAFT_SEED=<seed> cargo test -p multiraft <test>` runs
//! that one alone, `MULTIRAFT_SEEDS=<count>` the first so many.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base::ReplicaId;
use base::limits::APPLY_ENTRY_BYTES_MIN;
use base::simulation::{Plant, with_plant};
use wire::{MembershipOp, RaftMessageKind};

use super::GROUP;
use super::cluster::{Cluster, step};

const SEEDS: u64 = 200;

/// The seeds to run, and whether they are too few to ask for totals.
pub fn seeds(usual: u64) -> (std::ops::Range<u64>, bool) {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    match (number("MULTIRAFT_SEED"), number("MULTIRAFT_SEEDS")) {
        (Some(seed), _) => (seed..seed + 1, true),
        (None, count) => (0..count.unwrap_or(usual), count.is_some_and(|count| count < usual)),
    }
}

/// What a run did, so that a run in which nothing happened does not count as success.
#[derive(Default, Debug)]
struct Totals {
    committed: u64,
    reads: u64,
    log_reads: u64,
    installs: u64,
    crashes: u64,
    leaders: u64,
    changes: u64,
    delivered: BTreeMap<RaftMessageKind, u64>,
}

/// One fault or disturbance.
fn disturb(cluster: &mut Cluster, totals: &mut Totals, kinds: u64) {
    let ids: Vec<u64> = cluster.nodes.keys().copied().collect();
    let id = ids[cluster.random.below(ids.len() as u64) as usize];
    let other = ids[cluster.random.below(ids.len() as u64) as usize];
    let until = cluster.now_ms + cluster.random.below(4_000);
    match cluster.random.below(kinds) {
        0 | 1 => {
            let keep = cluster.random.below(3) as usize;
            totals.crashes += 1;
            cluster.crash(id, keep);
        }
        2 | 3 => cluster.start_all(),
        4 => cluster.isolate(id),
        5 => drop(cluster.cut.insert((id, other))),
        6 | 7 => cluster.cut.clear(),
        8 => cluster.node(id).paused_until_ms = until,
        9 => cluster.node(id).disk_ms = 1 + until % 300,
        10 => cluster.node(id).disk_ms = 2,
        11 => cluster.node(id).apply_ms = until % 100,
        12 => {
            cluster.faults.loss_per_million = until % 200_000;
            cluster.faults.double_per_million = until % 100_000;
            cluster.faults.delay_ms = 1 + until % 80;
        }
        13 => {
            if let Some(leader) = cluster.leader() {
                cluster.raft(leader).transfer_leader(GROUP, ReplicaId(other));
            }
        }
        14 | 15 => cluster.checkpoint(id, until % 4),
        16 => {
            if let Some(leader) = cluster.leader() {
                cluster.raft(leader).unreachable(GROUP, ReplicaId(other));
            }
        }
        _ => change(cluster, totals),
    }
}

/// A membership change by whoever leads, if it is not refused.
fn change(cluster: &mut Cluster, totals: &mut Totals) {
    let Some((leader, members)) = cluster.leader().and_then(|id| Some((id, cluster.status(id)?.membership))) else {
        return;
    };
    let pick = cluster.random.below(5);
    let voter = members.voters[cluster.random.below(members.voters.len() as u64) as usize].0;
    let learner = members.learners.first().map(|id| id.0);
    let fresh = cluster.nodes.keys().next_back().copied().unwrap_or(0) + 1;
    let room = members.voters.len() + members.learners.len() < 6 && cluster.nodes.len() < 12;
    let steps = match (pick, learner) {
        (0, _) if room => vec![step(MembershipOp::AddLearner, fresh)],
        (1, Some(id)) => vec![step(MembershipOp::AddVoter, id)],
        (2, Some(id)) => vec![step(MembershipOp::AddVoter, id), step(MembershipOp::Remove, voter)],
        (3, Some(id)) if members.voters.len() > 2 => vec![step(MembershipOp::Remove, id)],
        (4, _) if members.voters.len() > 2 => vec![step(MembershipOp::Remove, voter)],
        _ => return,
    };
    if cluster.change(leader, &steps).is_ok() {
        totals.changes += 1;
        if steps[0].replica.0 == fresh {
            cluster.add_blank(fresh);
        }
    }
}

fn run(seed: u64, voters: &[u64], learners: &[u64], kinds: u64, lenient: bool) -> Result<Totals, String> {
    let mut cluster = Cluster::new(seed, voters, learners);
    let mut totals = Totals::default();
    cluster.checker.lenient = lenient;
    // In every other run replicas are behind with what is committed now and then.
    cluster.room = (seed % 2 == 1).then_some(2 * APPLY_ENTRY_BYTES_MIN);
    cluster.start_all();
    while cluster.now_ms < 20_000 {
        if cluster.random.chance(40_000) {
            disturb(&mut cluster, &mut totals, kinds);
        }
        if let Some(leader) = cluster.leader().filter(|_| cluster.random.chance(300_000)) {
            let len = if cluster.random.chance(20_000) { 400_000 } else { 8 };
            cluster.propose(leader, len);
            if cluster.random.chance(200_000) {
                cluster.read(leader);
            }
        }
        cluster.advance().map_err(|error| format!("seed {seed} at {} ms: {error}", cluster.now_ms))?;
    }
    cluster.finish().map_err(|error| format!("seed {seed} in the end: {error}"))?;
    totals.committed = cluster.checker.committed.len() as u64;
    totals.reads = cluster.reads_answered;
    totals.leaders = cluster.checker.leaders_seen;
    totals.log_reads = cluster.nodes.values().map(|node| node.log_reads).sum();
    totals.installs = cluster.nodes.values().map(|node| node.installs).sum();
    totals.delivered = cluster.delivered;
    Ok(totals)
}

/// A run in which a panic of any layer counts as a violation.
fn caught(seed: u64, voters: &[u64], learners: &[u64], kinds: u64, lenient: bool) -> Result<Totals, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, voters, learners, kinds, lenient))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("seed {seed}: panic: {}", text.unwrap_or_default()))
    })
}

/// `None`: too few seeds for totals to mean anything.
fn all(voters: &[u64], learners: &[u64], kinds: u64) -> Option<Totals> {
    let mut sum = Totals::default();
    let (range, few) = seeds(SEEDS);
    for seed in range {
        let totals = caught(seed, voters, learners, kinds, false).unwrap_or_else(|error| panic!("{error}"));
        sum.committed += totals.committed;
        sum.reads += totals.reads;
        sum.log_reads += totals.log_reads;
        sum.installs += totals.installs;
        sum.crashes += totals.crashes;
        sum.leaders += totals.leaders;
        sum.changes += totals.changes;
        for (kind, count) in totals.delivered {
            *sum.delivered.entry(kind).or_default() += count;
        }
    }
    println!("{sum:?}");
    (!few).then_some(sum)
}

#[test]
fn three_voters_under_all_faults_keep_what_they_committed() {
    let Some(sum) = all(&[1, 2, 3], &[], 17) else { return };
    assert!(sum.committed > SEEDS * 100 && sum.reads > SEEDS && sum.leaders > SEEDS * 2, "{sum:?}");
    assert!(sum.log_reads > 0 && sum.installs > 0 && sum.crashes > SEEDS, "{sum:?}");
    assert!(sum.delivered[&RaftMessageKind::TimeoutNow] > 0, "{sum:?}");
}

#[test]
fn membership_changes_under_all_faults_keep_what_was_committed() {
    let Some(sum) = all(&[1, 2, 3], &[], 24) else { return };
    assert!(sum.committed > SEEDS * 50 && sum.changes > SEEDS && sum.installs > SEEDS / 2, "{sum:?}");
}

#[test]
fn a_single_voter_with_a_learner_keeps_one_history() {
    let Some(sum) = all(&[1], &[2], 17) else { return };
    assert!(sum.committed > SEEDS * 100 && sum.crashes > SEEDS, "{sum:?}");
}

#[test]
fn five_voters_under_all_faults_keep_what_they_committed() {
    all(&[1, 2, 3, 4, 5], &[6], 17);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut cluster = Cluster::new(seed, &[1, 2, 3], &[]);
        cluster.tracing = true;
        cluster.start_all();
        let mut totals = Totals::default();
        while cluster.now_ms < 10_000 {
            if cluster.random.chance(40_000) {
                disturb(&mut cluster, &mut totals, 24);
            }
            if let Some(leader) = cluster.leader() {
                cluster.propose(leader, 8);
            }
            cluster.advance().expect("no violation");
        }
        cluster.trace
    };
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace(1), trace(2));
}

/// The seed that a planted bug is found with, of the first `SEEDS`.
fn found(bug: Plant, voters: &[u64], learners: &[u64], lenient: bool) -> Option<String> {
    with_plant(bug, || (0..SEEDS).find_map(|seed| caught(seed, voters, learners, 17, lenient).err()))
}

#[test]
fn planted_bugs_are_caught_by_the_message_rules() {
    for bug in [
        Plant::TermNeedNotBeDurable,
        Plant::AcknowledgeBeforeDurable,
        Plant::ForgetPersistedMessages,
        Plant::LeadBeforeDurable,
    ] {
        let error = found(bug, &[1, 2, 3], &[], false).or_else(|| found(bug, &[1], &[2], false));
        println!("{bug:?}: {}", error.as_deref().unwrap_or("not found").lines().next().unwrap_or_default());
        assert!(error.is_some(), "{bug:?} was not found");
    }
}

/// The rule matters: without the checks of single messages, what clients see goes wrong.
#[test]
fn acknowledging_before_it_is_durable_loses_what_was_committed() {
    let error = found(Plant::AcknowledgeBeforeDurable, &[1, 2, 3], &[], true);
    println!("{}", error.as_deref().unwrap_or("not found").lines().next().unwrap_or_default());
    assert!(error.is_some());
}
