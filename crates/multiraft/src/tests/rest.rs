//! Groups at rest: their leaders' nodes speak for them, and they wake.

use base::ReplicaId;

use super::GROUP;
use super::cluster::Cluster;
use crate::Role;

/// Runs for so long, every node saying 20 times a second what it leads, as far as `hears` lets it be heard (from, to).
fn run_with_claims(cluster: &mut Cluster, ms: u64, hears: impl Fn(u64, u64) -> bool) {
    let nodes: Vec<u64> = cluster.nodes.keys().copied().collect();
    for _ in 0..ms / 50 {
        cluster.run(50).unwrap();
        for from in &nodes {
            let said = cluster.status(*from).map(|status| (status.role == Role::Leader, status.term));
            for to in nodes.iter().filter(|to| *to != from && hears(*from, **to)) {
                let raft = cluster.raft(*to);
                raft.let_rest(true);
                raft.hear_follower(GROUP, ReplicaId(*from));
                if let Some((true, term)) = said {
                    raft.hear_leader(GROUP, term, ReplicaId(*from));
                }
            }
        }
    }
}

fn at_rest() -> (Cluster, u64) {
    let mut cluster = Cluster::new(11, &[1, 2, 3], &[]);
    cluster.start_all();
    run_with_claims(&mut cluster, 8_000, |_, _| true);
    let leader = cluster.leader().expect("somebody leads");
    assert!(
        cluster.raft(leader).rests(GROUP),
        "eight seconds of nothing, and it does not rest: {}",
        cluster.describe()
    );
    (cluster, leader)
}

#[test]
fn a_group_at_rest_keeps_its_leader_and_wakes_for_a_proposal() {
    let (mut cluster, leader) = at_rest();
    let term = cluster.status(leader).expect("it runs").term;
    run_with_claims(&mut cluster, 20_000, |_, _| true);
    let now = cluster.status(leader).expect("it runs");
    assert_eq!((now.role, now.term), (Role::Leader, term), "an election among those at rest");
    assert!(cluster.propose(leader, 10));
    run_with_claims(&mut cluster, 500, |_, _| true);
    assert!(!cluster.raft(leader).rests(GROUP));
    for id in [1, 2, 3] {
        let status = cluster.status(id).expect("it runs");
        assert_eq!(status.applied, now.last_index + 1, "node {id}: {}", cluster.describe());
    }
}

#[test]
fn a_leader_at_rest_that_falls_silent_is_replaced() {
    let (mut cluster, leader) = at_rest();
    cluster.isolate(leader);
    run_with_claims(&mut cluster, 5_000, |from, to| from != leader && to != leader);
    let others: Vec<Role> =
        [1, 2, 3].iter().filter(|id| **id != leader).filter_map(|id| Some(cluster.status(*id)?.role)).collect();
    assert!(others.contains(&Role::Leader), "{}", cluster.describe());
    let old = cluster.status(leader).expect("it runs").role;
    assert_ne!(old, Role::Leader, "it hears nobody, and leads at rest");
}

#[test]
fn a_follower_that_lost_sight_of_a_leader_at_rest_wakes_it() {
    let (mut cluster, leader) = at_rest();
    let term = cluster.status(leader).expect("it runs").term;
    let lost = if leader == 1 { 2 } else { 1 };
    // Claims do not reach it, messages of its own do.
    run_with_claims(&mut cluster, 3_000, |_, to| to != lost);
    assert_eq!(cluster.status(lost).expect("it runs").leader, ReplicaId(leader), "{}", cluster.describe());
    assert!(!cluster.raft(leader).rests(GROUP), "nothing has woken it: {}", cluster.describe());
    run_with_claims(&mut cluster, 3_000, |_, _| true);
    let follower = cluster.status(lost).expect("it runs");
    assert_eq!((follower.leader, follower.term), (ReplicaId(leader), term), "{}", cluster.describe());
}

#[test]
fn a_follower_that_restarted_hears_from_the_leaders_node_whom_it_follows() {
    let (mut cluster, leader) = at_rest();
    let term = cluster.status(leader).expect("it runs").term;
    let follower = if leader == 1 { 2 } else { 1 };
    cluster.crash(follower, 0);
    cluster.start(follower, false);
    assert_eq!(cluster.status(follower).expect("it runs").leader, ReplicaId(0));
    assert!(cluster.raft(follower).hear_leader(GROUP, term, ReplicaId(leader)), "{}", cluster.describe());
    assert!(!cluster.raft(follower).hear_leader(GROUP, term - 1, ReplicaId(9)), "an older one is none");
    run_with_claims(&mut cluster, 5_000, |_, _| true);
    let found = cluster.status(follower).expect("it runs");
    assert_eq!((found.leader, found.term), (ReplicaId(leader), term), "{}", cluster.describe());
    assert!(cluster.raft(leader).rests(GROUP), "it was not disturbed: {}", cluster.describe());
}
