//! Learners are fed no faster than they acknowledge.

use base::limits::{RAFT_INFLIGHT_MAX, RAFT_LEARNER_INFLIGHT_MAX, RAFT_MESSAGE_BYTES_MAX};
use wire::MembershipOp;

use super::GROUP;
use super::cluster::{Cluster, step};

const ENTRY_BYTES: usize = 400_000;

/// A leader, and a learner that has acknowledged something and whose disk then gets stuck.
fn stuck_learner() -> Cluster {
    let mut cluster = Cluster::new(31, &[1], &[2]);
    cluster.start(1, true);
    cluster.start(2, false);
    cluster.run_until(1_000, "a leader", |cluster| cluster.leader() == Some(1)).unwrap();
    assert!(cluster.propose(1, 8));
    cluster.run_until(1_000, "the learner has all", Cluster::converged).unwrap();
    cluster.node(2).disk_ms = 1_000_000_000;
    cluster
}

fn write(cluster: &mut Cluster, count: usize) {
    for _ in 0..count {
        assert!(cluster.propose(1, ENTRY_BYTES));
        cluster.run(20).unwrap();
    }
}

/// Bytes of entries that the learner was sent and that are on no disk there.
fn under_way(cluster: &Cluster) -> usize {
    let rounds = &cluster.nodes[&2].disk.rounds;
    rounds.iter().flat_map(|round| &round.append.entries).map(|entry| entry.data.len()).sum()
}

#[test]
fn a_learner_whose_disk_is_stuck_has_no_more_under_way_than_the_bound() {
    let mut cluster = stuck_learner();
    write(&mut cluster, 40);
    let most = RAFT_LEARNER_INFLIGHT_MAX * usize::try_from(RAFT_MESSAGE_BYTES_MAX).unwrap();
    // Longer than all of it takes with a message more for each heartbeat that is answered.
    for _ in 0..20 {
        cluster.run(500).unwrap();
        let bytes = under_way(&cluster);
        assert!((ENTRY_BYTES..=most).contains(&bytes), "{bytes} bytes of {} are under way", 40 * ENTRY_BYTES);
    }
    let heard = |cluster: &Cluster| cluster.status(1).unwrap().progress.iter().all(|known| known.active);
    cluster.run_until(1_000, "it counts as heard of", heard).unwrap();
    cluster.crash(2, 0);
    cluster.finish().unwrap();
}

#[test]
fn what_a_learner_lost_is_sent_again_without_being_asked_for() {
    let mut cluster = stuck_learner();
    write(&mut cluster, 10);
    assert!(under_way(&cluster) > ENTRY_BYTES);
    cluster.crash(2, 0);
    cluster.node(2).disk_ms = 2;
    cluster.start(2, false);
    cluster.run_until(5_000, "the learner has all", Cluster::converged).unwrap();
    cluster.finish().unwrap();
}

/// Messages that may be under way from the leader to a member.
fn window(cluster: &Cluster, to: u64) -> usize {
    let raft = cluster.nodes[&1].raft.as_ref().expect("it runs");
    let mut window = raft.groups[&GROUP].raw.raft.prs().get(to).expect("a member").ins.clone();
    window.reset();
    let mut count = 0;
    while !window.full() {
        count += 1;
        window.add(count as u64);
    }
    count
}

#[test]
fn a_member_has_the_window_of_what_it_is() {
    let mut cluster = Cluster::new(32, &[1], &[2]);
    cluster.start(1, true);
    cluster.start(2, false);
    cluster.run_until(1_000, "a leader", |cluster| cluster.leader() == Some(1)).unwrap();
    assert_eq!(window(&cluster, 2), RAFT_LEARNER_INFLIGHT_MAX);
    let windows = [(MembershipOp::AddVoter, RAFT_INFLIGHT_MAX), (MembershipOp::AddLearner, RAFT_LEARNER_INFLIGHT_MAX)];
    for (op, expected) in windows {
        cluster.run_until(2_000, "it has caught up", Cluster::converged).unwrap();
        cluster.change(1, &[step(op, 2)]).unwrap();
        cluster.run(500).unwrap();
        assert_eq!(window(&cluster, 2), expected, "{op:?}");
    }
    cluster.add_blank(3);
    cluster.change(1, &[step(MembershipOp::AddLearner, 3)]).unwrap();
    cluster.run(500).unwrap();
    assert_eq!(window(&cluster, 3), RAFT_LEARNER_INFLIGHT_MAX);
}
