//! What is handed out to be applied, and what a replica waits for before it takes part.

use wire::{EntryKind, MembershipOp};

use super::GROUP;
use super::cluster::{Cluster, step};
use super::rules::led;
use crate::Role;

#[test]
fn membership_entries_are_handed_out_in_their_place_among_the_others() {
    let (mut cluster, leader) = led(22);
    cluster.add_blank(4);
    assert!(cluster.propose(leader, 8));
    cluster.change(leader, &[step(MembershipOp::AddLearner, 4)]).unwrap();
    assert!(cluster.propose(leader, 8));
    cluster.run_until(8_000, "all four have applied all of it", Cluster::converged).unwrap();
    for (id, node) in &cluster.nodes {
        let kinds: Vec<EntryKind> = node.state.iter().map(|entry| entry.kind).collect();
        let expected = [EntryKind::Batch, EntryKind::Membership, EntryKind::Batch];
        assert!(kinds.ends_with(&expected), "replica {id}: {kinds:?}");
    }
}

#[test]
#[should_panic(expected = "never handed out")]
fn what_was_never_handed_out_cannot_count_as_applied() {
    let (mut cluster, leader) = led(23);
    assert!(cluster.propose(leader, 8));
    let proposed = cluster.status(leader).unwrap().last_index;
    cluster.raft(leader).applied(GROUP, proposed);
}

#[test]
fn a_replica_without_a_configuration_waits_for_one_and_never_campaigns() {
    let mut cluster = Cluster::new(24, &[1, 2, 3], &[]);
    cluster.add_blank(4);
    cluster.raft(4).campaign(GROUP);
    cluster.run(20_000).unwrap();
    let status = cluster.status(4).unwrap();
    assert_eq!((status.role, status.term, status.membership.voters), (Role::Follower, 0, vec![]));
    assert_eq!(cluster.nodes[&4].roles, []);
}
