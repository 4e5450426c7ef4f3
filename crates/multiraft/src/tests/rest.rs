//! Groups at rest: their leaders' nodes speak for them, and they wake.

use base::ReplicaId;
use base::simulation::{Plant, with_plant};

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

/// Role changes of all replicas while the group has so long a time of nothing to do.
fn changes_at_rest(cluster: &mut Cluster, ms: u64) -> usize {
    let count = |cluster: &Cluster| cluster.nodes.values().map(|node| node.roles.len()).sum::<usize>();
    let before = count(cluster);
    run_with_claims(cluster, ms, |_, _| true);
    count(cluster) - before
}

#[test]
fn claims_keep_the_followers_of_a_leader_at_rest_from_standing_for_election() {
    let (mut cluster, _) = at_rest();
    assert_eq!(changes_at_rest(&mut cluster, 10_000), 0, "{}", cluster.describe());
    let changes = with_plant(Plant::ClaimsNotBelieved, || changes_at_rest(&mut cluster, 5_000));
    assert!(changes > 0, "nobody missed the heartbeats: {}", cluster.describe());
}

#[test]
fn a_leader_at_rest_looks_for_a_quorum() {
    let role_when_alone = || {
        let (mut cluster, leader) = at_rest();
        cluster.isolate(leader);
        run_with_claims(&mut cluster, 3_000, |from, to| from != leader && to != leader);
        cluster.status(leader).expect("it runs").role
    };
    assert_ne!(role_when_alone(), Role::Leader);
    assert_eq!(with_plant(Plant::RestWithoutQuorum, role_when_alone), Role::Leader);
}

#[test]
fn claims_of_an_older_term_or_of_another_leader_put_no_election_off() {
    let (mut cluster, leader) = at_rest();
    let term = cluster.status(leader).expect("it runs").term;
    let followers: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    cluster.isolate(leader);
    for _ in 0..5_000 / 50 {
        cluster.run(50).unwrap();
        for id in &followers {
            let follows = cluster.status(*id).expect("it runs").leader == ReplicaId(leader);
            let raft = cluster.raft(*id);
            assert!(!raft.hear_leader(GROUP, term - 1, ReplicaId(leader)), "of an older term");
            let another = follows && raft.hear_leader(GROUP, term, ReplicaId(9));
            assert!(!another, "of another leader");
        }
    }
    let leads = |id: &u64| cluster.status(*id).is_some_and(|status| status.role == Role::Leader);
    assert!(followers.iter().any(leads), "the claims kept all from standing: {}", cluster.describe());
}

#[test]
fn a_node_that_came_back_does_not_answer_for_its_replica_before_that_has_answered_itself() {
    let (mut cluster, leader) = at_rest();
    let followers: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    let (silent, present) = (followers[0], followers[1]);
    cluster.crash(silent, 0);
    cluster.raft(leader).wake(GROUP, ReplicaId(silent));
    // The process is there again, and its replica does not run yet. The other one is enough.
    run_with_claims(&mut cluster, 5_000, |_, to| to != silent);
    assert_eq!(cluster.status(leader).expect("it runs").role, Role::Leader, "{}", cluster.describe());
    assert!(cluster.raft(leader).rests(GROUP), "it has a quorum, and nothing to do: {}", cluster.describe());
    cluster.crash(present, 0);
    run_with_claims(&mut cluster, 5_000, |from, to| from == silent && to == leader);
    let role = cluster.status(leader).expect("it runs").role;
    assert_ne!(role, Role::Leader, "one replica is left, and leads: {}", cluster.describe());
}

#[test]
fn a_leader_at_rest_beats_again_for_a_node_that_came_back() {
    let (mut cluster, leader) = at_rest();
    let term = cluster.status(leader).expect("it runs").term;
    let back = if leader == 1 { 2 } else { 1 };
    cluster.crash(back, 0);
    cluster.start(back, false);
    cluster.raft(leader).wake(GROUP, ReplicaId(back));
    assert!(!cluster.raft(leader).rests(GROUP), "it was not woken");
    // No claim reaches the replica: only a heartbeat tells it whom it follows.
    run_with_claims(&mut cluster, 500, |_, to| to != back);
    let found = cluster.status(back).expect("it runs");
    let expected = (Role::Follower, ReplicaId(leader), term);
    assert_eq!((found.role, found.leader, found.term), expected, "{}", cluster.describe());
}
