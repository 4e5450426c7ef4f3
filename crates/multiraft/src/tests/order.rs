//! What is handed out to be applied and to be sent, step by step, and what a replica waits for before it takes part.

use base::ReplicaId;
use bytes::Bytes;
use wire::{Entry, EntryKind, MembershipOp, RaftMessage, RaftMessageKind};

use super::cluster::{Cluster, step};
use super::rules::led;
use super::{ELECTION_TICKS, GROUP};
use crate::{MultiRaft, MultiRaftConfig, Output, Role};

/// Replica 1 of three, newly born: its log ends at index 1, of term 1.
fn first_of_three(campaign: bool) -> MultiRaft {
    let mut raft = MultiRaft::new(MultiRaftConfig { seed: 1, heartbeat_ticks: 3, election_ticks: ELECTION_TICKS });
    raft.create(Cluster::new(1, &[1, 2, 3], &[]).nodes[&1].disk.durable.init(1, campaign));
    raft
}

/// A message from replica 2, in term 2.
fn from_second(kind: RaftMessageKind) -> RaftMessage {
    RaftMessage::new(kind, ReplicaId(2), ReplicaId(1), 2)
}

/// What leaves with one flush: kind, to whom, and the index that it speaks of.
fn sent(output: &Output) -> Vec<(RaftMessageKind, u64, u64)> {
    let mut sent: Vec<_> = output.sends.iter().map(|it| (it.message.kind, it.message.to.0, it.message.index)).collect();
    sent.sort_unstable();
    sent
}

#[test]
fn all_that_a_follower_owes_leaves_with_the_write_that_it_waits_for() {
    use RaftMessageKind::{Append, AppendResponse, Heartbeat, HeartbeatResponse, Vote, VoteResponse};
    let mut raft = first_of_three(false);
    raft.step(GROUP, RaftMessage { log_term: 1, index: 1, ..from_second(Vote) }).unwrap();
    assert_eq!(sent(&raft.flush(1)), [], "the vote is on no disk");
    raft.persisted(1);
    assert_eq!(sent(&raft.flush(2)), [(VoteResponse, 2, 0)]);

    // Its candidate leads, and sends more than one thing before the disk has any of it.
    for (index, log_term) in [(1, 1), (2, 2)] {
        let entry = Entry { index: index + 1, term: 2, kind: EntryKind::Batch, data: Bytes::from_static(b"x") };
        let append = RaftMessage { log_term, index, entries: vec![entry], commit: 1, ..from_second(Append) };
        raft.step(GROUP, append).unwrap();
    }
    raft.step(GROUP, RaftMessage { commit: 1, ..from_second(Heartbeat) }).unwrap();
    let output = raft.flush(3);
    assert_eq!(sent(&output), [(HeartbeatResponse, 2, 0)], "an answer to a heartbeat waits for no entries");
    assert_eq!((output.round, output.appends.len()), (3, 1));
    raft.persisted(3);
    assert_eq!(sent(&raft.flush(4)), [(AppendResponse, 2, 2), (AppendResponse, 2, 3)]);
    assert_eq!((raft.is_dirty(), sent(&raft.flush(5))), (false, vec![]), "once");
}

/// Driven the other way, the crate would hand out the last of these as a "light Ready", after the write.
#[test]
fn all_that_a_leader_has_to_say_leaves_what_follows_from_its_own_write_too() {
    use RaftMessageKind::{Append, AppendResponse, PreVote, PreVoteResponse, Vote, VoteResponse};
    let mut raft = first_of_three(true);
    assert_eq!(sent(&raft.flush(1)), [(PreVote, 2, 1), (PreVote, 3, 1)]);
    raft.step(GROUP, from_second(PreVoteResponse)).unwrap();
    assert_eq!(sent(&raft.flush(2)), [], "its term is on no disk");
    raft.persisted(2);
    assert_eq!(sent(&raft.flush(3)), [(Vote, 2, 1), (Vote, 3, 1)]);
    raft.step(GROUP, from_second(VoteResponse)).unwrap();
    let output = raft.flush(4);
    assert_eq!(sent(&output), [(Append, 2, 1), (Append, 3, 1)], "beside its own write");
    assert_eq!((output.round, output.committed.len()), (4, 0));

    // One follower has the entry before the leader's own disk does, whose word then makes the majority. The other one does
    // not answer, and is sent no more before it does.
    raft.step(GROUP, RaftMessage { index: 2, ..from_second(AppendResponse) }).unwrap();
    let commits = |output: &Output| output.sends.iter().map(|it| it.message.commit).collect::<Vec<_>>();
    let output = raft.flush(5);
    assert_eq!((sent(&output), commits(&output), output.committed.len()), (vec![(Append, 2, 2)], vec![1], 0));
    raft.persisted(4);
    let output = raft.flush(6);
    let committed: Vec<u64> = output.committed.iter().flat_map(|it| &it.entries).map(|entry| entry.index).collect();
    assert_eq!((sent(&output), commits(&output), committed), (vec![(Append, 2, 2)], vec![2], vec![2]));
}

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
fn no_more_bytes_are_handed_out_at_once_than_may_be_applied() {
    const ENTRY_BYTES: usize = 400_000;
    let (room, last) = (1 << 20, 31);
    let mut raft = first_of_three(false);
    for index in 1..last {
        let data = Bytes::from(vec![0; ENTRY_BYTES]);
        let entry = Entry { index: index + 1, term: 2, kind: EntryKind::Batch, data };
        let log_term = if index == 1 { 1 } else { 2 };
        let append = RaftMessage { log_term, index, entries: vec![entry], ..from_second(RaftMessageKind::Append) };
        raft.step(GROUP, append).unwrap();
    }
    raft.flush(1);
    raft.persisted(1);
    raft.step(GROUP, RaftMessage { commit: last, ..from_second(RaftMessageKind::Heartbeat) }).unwrap();

    let mut at_once = Vec::new();
    for round in 2.. {
        raft.let_apply(room);
        let output = raft.flush(round);
        let handed_out = output.committed.iter().flat_map(|it| &it.entries);
        at_once.push(handed_out.clone().map(|entry| entry.data.len() as u64).sum::<u64>());
        raft.applied(GROUP, handed_out.last().expect("one at least").index);
        if !raft.is_behind() {
            break;
        }
    }
    assert_eq!(at_once.iter().sum::<u64>(), (last - 1) * ENTRY_BYTES as u64);
    // The entry with which the room is used up is whole.
    assert!(at_once.iter().all(|bytes| *bytes < room + ENTRY_BYTES as u64), "{at_once:?}");
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
