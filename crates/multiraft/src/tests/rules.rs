//! One test per rule, named after what happens where the rule is missing.

use std::collections::BTreeMap;

use base::simulation::{Plant, with_plant};
use base::{Mono, Now, ReplicaId, Wall};
use bytes::Bytes;
use wire::{EntryKind, MembershipOp, RaftMessage, RaftMessageKind};

use super::cluster::{Cluster, ids, step};
use super::{ELECTION_TICKS, GROUP};
use crate::{MultiRaft, MultiRaftConfig, Output, Proposal, ProposeError, Refused, Role};

/// Three voters with a leader.
pub fn led(seed: u64) -> (Cluster, u64) {
    let mut cluster = Cluster::new(seed, &[1, 2, 3], &[]);
    cluster.start_all();
    cluster.run_until(10_000, "a leader that applied its noop", has_leader).unwrap();
    let leader = cluster.leader().unwrap();
    (cluster, leader)
}

fn has_leader(cluster: &Cluster) -> bool {
    let leader = cluster.leader().and_then(|id| cluster.status(id));
    leader.is_some_and(|status| status.applied == status.last_index && status.commit > 1)
}

fn a_follower(cluster: &Cluster, leader: u64) -> u64 {
    cluster.nodes.keys().copied().find(|id| *id != leader).unwrap()
}

fn write(cluster: &mut Cluster, leader: u64, count: u64, len: usize) {
    for _ in 0..count {
        assert!(cluster.propose(leader, len));
        cluster.run(20).unwrap();
    }
}

/// A message that would be taken, to be spoilt.
fn message(cluster: &Cluster, kind: RaftMessageKind, from: u64, to: u64) -> RaftMessage {
    let status = cluster.status(to).unwrap();
    let last = cluster.nodes[&to].disk.durable.entries.values().next_back();
    RaftMessage {
        log_term: last.map_or(1, |entry| entry.term),
        index: status.last_index,
        commit: status.commit,
        ..RaftMessage::new(kind, ReplicaId(from), ReplicaId(to), status.term)
    }
}

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms * 1_000_000), wall: Wall(0) }
}

#[test]
fn failover_works_after_the_leader_dies() {
    let failover = || {
        let mut cluster = Cluster::new(1, &[1, 2, 3], &[]);
        cluster.start_all();
        cluster.run_until(10_000, "a leader", has_leader)?;
        let old = cluster.leader().unwrap_or(0);
        cluster.crash(old, 0);
        cluster.run_until(6_000, "another leader", has_leader)?;
        assert_ne!(cluster.leader(), Some(old));
        cluster.finish()
    };
    failover().unwrap();
    // Persisted messages not sent: votes and append replies are lost, so nobody is ever elected.
    assert!(with_plant(Plant::ForgetPersistedMessages, failover).is_err());
}

#[test]
fn nothing_of_a_term_leaves_before_it_is_durable() {
    let mut cluster = Cluster::new(1, &[1], &[2]);
    cluster.node(1).disk_ms = 1;
    cluster.start_all();
    cluster.raft(1).campaign(GROUP);
    let output = cluster.raft(1).flush(1_000);
    let written = output.appends[0].hard_state.unwrap();
    assert_eq!((written.term, written.vote), (2, ReplicaId(1)));
    assert_eq!(output.sends, []);
    assert!(output.roles.iter().all(|role| role.role != Role::Leader));
    let status = cluster.status(1).unwrap();
    let proposal =
        Proposal { group: GROUP, term: status.term, kind: EntryKind::Command, data: Bytes::from_static(b"x") };
    assert_eq!(cluster.raft(1).propose(proposal.clone()), Err(ProposeError::NotLeader));

    cluster.raft(1).persisted(1_000);
    let output = cluster.raft(1).flush(1_001);
    assert_eq!(output.roles.last().map(|role| (role.role, role.term)), Some((Role::Leader, 2)));
    assert!(!output.sends.is_empty());
    assert_eq!(output.committed[0].entries[0].kind, EntryKind::Noop);
    assert!(cluster.raft(1).propose(proposal).is_ok());
}

/// Power fails `after_ms` into the first term, then the replica leads again.
fn crash_between_campaign_and_persist(after_ms: u64) -> Result<(), String> {
    let mut cluster = Cluster::new(1, &[1], &[2]);
    cluster.checker.lenient = true;
    cluster.start(1, true);
    cluster.start(2, false);
    cluster.node(1).disk_ms = 400;
    while cluster.now_ms < after_ms {
        if cluster.leader() == Some(1) {
            cluster.propose(1, 8);
        }
        cluster.advance()?;
    }
    cluster.crash(1, 0);
    cluster.node(1).disk_ms = 2;
    cluster.start(1, true);
    cluster.run_until(5_000, "a leader", has_leader)?;
    for _ in 0..20 {
        cluster.propose(1, 8);
        cluster.run(20)?;
    }
    cluster.finish()
}

#[test]
fn a_single_voter_that_loses_power_before_its_vote_is_durable_makes_no_second_history() {
    for after_ms in (5..500).step_by(5) {
        crash_between_campaign_and_persist(after_ms).unwrap();
    }
    let forked = (5..500)
        .step_by(5)
        .find_map(|after_ms| with_plant(Plant::VoteNotAwaited, || crash_between_campaign_and_persist(after_ms)).err());
    assert!(forked.is_some_and(|error| error.contains("where another applied")));
}

#[test]
fn an_acknowledgement_of_what_is_only_in_memory_does_not_leave() {
    let (mut cluster, leader) = led(2);
    let follower = a_follower(&cluster, leader);
    cluster.node(follower).disk_ms = 3_000;
    write(&mut cluster, leader, 5, 8);
    let matched = |cluster: &Cluster| {
        let progress = cluster.status(leader).unwrap().progress;
        progress.iter().find(|known| known.replica.0 == follower).unwrap().matched
    };
    let durable = cluster.nodes[&follower].disk.durable.last();
    assert!(cluster.status(follower).unwrap().last_index > durable);
    assert!(matched(&cluster) <= durable);
    cluster.crash(follower, 0);
    cluster.start(follower, false);
    cluster.run(2_000).unwrap();
    cluster.finish().unwrap();
}

#[test]
fn heartbeats_are_answered_while_the_disk_is_stuck() {
    let (mut cluster, leader) = led(3);
    let followers: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    let term = cluster.status(leader).unwrap().term;
    for id in &followers {
        cluster.node(*id).disk_ms = 1_000_000;
    }
    write(&mut cluster, leader, 10, 8);
    cluster.run(6_000).unwrap();
    let status = cluster.status(leader).unwrap();
    assert_eq!((status.role, status.term), (Role::Leader, term), "lost its quorum over a slow disk");
    assert!(status.commit < status.last_index, "committed without a durable quorum");
}

#[test]
fn heartbeats_that_a_read_asks_for_are_not_those_that_the_clock_does() {
    let (mut cluster, leader) = led(3);
    write(&mut cluster, leader, 1, 10);
    let mut beats = [0, 0];
    let start = cluster.now_ms;
    for n in 0..60 {
        let now = at(start + n * 50);
        cluster.raft(leader).tick(now);
        // A read that begins in the same moment as a beat would go with it.
        let context = Bytes::copy_from_slice(&n.to_le_bytes());
        let ticked = cluster.raft(leader).flush(10_000 + 2 * n);
        let _ = cluster.raft(leader).read_index(GROUP, context);
        let read = cluster.raft(leader).flush(10_001 + 2 * n);
        let heartbeats = |output: Output| {
            output
                .sends
                .into_iter()
                .filter(|sent| sent.message.kind == RaftMessageKind::Heartbeat)
                .map(|sent| sent.beat)
        };
        heartbeats(ticked).chain(heartbeats(read)).for_each(|beat| beats[usize::from(beat)] += 1);
    }
    // Until the leader hears nobody and steps down: every three ticks one to each of two followers.
    assert!((20..=28).contains(&beats[1]) && beats[0] > 2 * beats[1], "{beats:?}");
}

#[test]
fn a_leader_without_a_quorum_steps_down_and_an_isolated_node_commits_nothing() {
    let (mut cluster, leader) = led(4);
    let commit = cluster.status(leader).unwrap().commit;
    cluster.isolate(leader);
    cluster.propose(leader, 8);
    cluster.run(4_000).unwrap();
    let status = cluster.status(leader).unwrap();
    assert_eq!((status.role, status.commit), (Role::PreCandidate, commit));
    assert!(!cluster.propose(leader, 8));
    cluster.finish().unwrap();
}

#[test]
fn a_paused_leader_steps_down_everywhere_and_skips_the_ticks_it_missed() {
    let mut cluster = Cluster::new(1, &[1], &[]);
    cluster.start(1, true);
    cluster.run_until(1_000, "a leader", has_leader).unwrap();
    let now = cluster.now_ms;
    cluster.raft(1).tick(at(now));
    cluster.raft(1).tick(at(now + 60_000));
    let term = cluster.status(1).unwrap().term;
    let proposal = Proposal { group: GROUP, term, kind: EntryKind::Command, data: Bytes::from_static(b"x") };
    assert_eq!(cluster.raft(1).propose(proposal), Err(ProposeError::NotLeader));
    let output = cluster.raft(1).flush(1_000);
    assert_eq!(output.roles.iter().map(|role| (role.role, role.leader.0)).collect::<Vec<_>>(), [(Role::Follower, 0)]);

    let (mut cluster, leader) = led(5);
    cluster.node(leader).paused_until_ms = cluster.now_ms + 5_000;
    cluster.run(6_000).unwrap();
    assert_eq!(cluster.status(leader).unwrap().role, Role::Follower);
    cluster.finish().unwrap();
}

/// How many campaigns a follower begins right after a stall in which the leader was fine.
fn campaigns_after_stalls() -> usize {
    let mut raft = MultiRaft::new(MultiRaftConfig { seed: 1, heartbeat_ticks: 3, election_ticks: ELECTION_TICKS });
    let cluster = Cluster::new(1, &[1, 2, 3], &[]);
    raft.create(cluster.nodes[&1].disk.durable.init(1, false));
    let mut heartbeat = message(&led(1).0, RaftMessageKind::Heartbeat, 2, 1);
    (heartbeat.term, heartbeat.commit) = (5, 1);
    let mut campaigns = 0;
    for n in 0..50 {
        raft.step(GROUP, heartbeat.clone()).unwrap();
        raft.flush(2 * n + 1);
        raft.persisted(2 * n + 1);
        raft.tick(at(n * 5_000));
        raft.tick(at(n * 5_000 + 900));
        let roles = raft.flush(2 * n + 2).roles;
        campaigns += roles.iter().filter(|role| role.role == Role::PreCandidate).count();
    }
    campaigns
}

#[test]
fn ticks_do_not_come_in_bursts_after_a_stall() {
    assert_eq!(campaigns_after_stalls(), 0);
    assert!(with_plant(Plant::ReplayMissedTicks, campaigns_after_stalls) > 10);
}

#[test]
fn a_dropped_proposal_leaves_no_trace() {
    let (mut cluster, leader) = led(6);
    let followers: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    for id in &followers {
        cluster.crash(*id, 0);
    }
    let term = cluster.status(leader).unwrap().term;
    let data = Bytes::from(vec![0; 1 << 20]);
    let propose = |cluster: &mut Cluster| {
        let proposal = Proposal { group: GROUP, term, kind: EntryKind::Batch, data: data.clone() };
        cluster.raft(leader).propose(proposal)
    };
    let taken = (0..100).take_while(|_| propose(&mut cluster).is_ok()).count();
    assert_eq!(taken as u64, base::limits::RAFT_UNCOMMITTED_BYTES_MAX >> 20);
    let last = cluster.status(leader).unwrap().last_index;
    assert_eq!(propose(&mut cluster), Err(ProposeError::Busy));
    assert_eq!(cluster.change(leader, &[step(MembershipOp::AddLearner, 9)]), Err(ProposeError::Busy));
    assert_eq!(cluster.status(leader).unwrap().last_index, last);
    for id in followers {
        cluster.start(id, false);
    }
    cluster.run_until(10_000, "all is committed", has_leader).unwrap();
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.change(leader, &[step(MembershipOp::AddLearner, 9)]), Ok(()));
}

#[test]
fn only_the_leader_of_the_expected_term_proposes() {
    let (mut cluster, leader) = led(7);
    let follower = a_follower(&cluster, leader);
    let last = cluster.status(leader).unwrap().last_index;
    let term = cluster.status(leader).unwrap().term;
    let proposal = |term| Proposal { group: GROUP, term, kind: EntryKind::Command, data: Bytes::from_static(b"x") };
    assert_eq!(cluster.raft(follower).propose(proposal(term)), Err(ProposeError::NotLeader));
    assert_eq!(cluster.raft(leader).propose(proposal(term - 1)), Err(ProposeError::NotLeader));
    assert_eq!(cluster.raft(leader).propose(proposal(term + 1)), Err(ProposeError::NotLeader));
    let noop = Proposal { kind: EntryKind::Noop, ..proposal(term) };
    assert!(matches!(cluster.raft(leader).propose(noop), Err(ProposeError::Invalid(_))));
    assert_eq!(cluster.raft(follower).read_index(GROUP, Bytes::from_static(b"r")), Err(ProposeError::NotLeader));
    cluster.run(200).unwrap();
    assert_eq!(cluster.status(leader).unwrap().last_index, last, "a follower forwarded it");
}

/// The layer above hears of the end of its leadership with the next flush. What it proposes until then would be answered by
/// the fate of the entry that stands last, which is another one's.
#[test]
fn a_leader_that_has_heard_its_successor_proposes_nothing_even_before_it_says_so() {
    let (mut cluster, leader) = led(7);
    let successor = a_follower(&cluster, leader);
    assert!(cluster.propose(leader, 8), "what another one waits for");
    let before = cluster.status(leader).unwrap();
    let heartbeat = message(&cluster, RaftMessageKind::Heartbeat, successor, leader);
    cluster.raft(leader).step(GROUP, RaftMessage { term: before.term + 1, ..heartbeat }).unwrap();
    let data = Bytes::from_static(b"x");
    let proposal = Proposal { group: GROUP, term: before.term, kind: EntryKind::Command, data };
    assert_eq!(cluster.raft(leader).propose(proposal), Err(ProposeError::NotLeader));
    assert_eq!(cluster.status(leader).unwrap().last_index, before.last_index);
}

#[test]
fn a_conflicting_suffix_is_truncated() {
    let (mut cluster, old) = led(8);
    cluster.isolate(old);
    for _ in 0..7 {
        cluster.propose(old, 8);
    }
    cluster.run(100).unwrap();
    let orphan = cluster.nodes[&old].disk.durable.entries.values().next_back().unwrap().clone();
    cluster.run_until(6_000, "another leader", |cluster| cluster.leader().is_some_and(|id| id != old)).unwrap();
    let new = cluster.leader().unwrap();
    write(&mut cluster, new, 3, 8);
    cluster.finish().unwrap();
    assert_ne!(cluster.nodes[&old].disk.durable.entries.get(&orphan.index), Some(&orphan));
    assert_eq!(cluster.nodes[&old].disk.durable.entries, cluster.nodes[&new].disk.durable.entries);
}

#[test]
fn what_would_break_the_log_is_refused() {
    let (mut cluster, leader) = led(9);
    let follower = a_follower(&cluster, leader);
    let good = message(&cluster, RaftMessageKind::Append, leader, follower);
    let entry = wire::Entry { index: good.index + 1, term: good.term, kind: EntryKind::Batch, data: Bytes::new() };
    let bad: Vec<(&str, RaftMessage)> = vec![
        ("gap", RaftMessage { entries: vec![wire::Entry { index: good.index + 2, ..entry.clone() }], ..good.clone() }),
        (
            "terms of entries",
            RaftMessage { entries: vec![wire::Entry { term: good.term + 1, ..entry.clone() }], ..good.clone() },
        ),
        (
            "a noop that carries",
            RaftMessage {
                entries: vec![wire::Entry { kind: EntryKind::Noop, data: Bytes::from_static(b"x"), ..entry.clone() }],
                ..good.clone()
            },
        ),
        ("cannot be", RaftMessage { log_term: 0, index: good.index + 5, ..good.clone() }),
        ("no term", RaftMessage { term: 0, ..good.clone() }),
        ("out of range", RaftMessage { term: u64::MAX, ..good.clone() }),
        (
            "malformed",
            RaftMessage {
                entries: vec![wire::Entry {
                    kind: EntryKind::Membership,
                    data: Bytes::from_static(b"\x08\x01"),
                    ..entry.clone()
                }],
                ..good.clone()
            },
        ),
        ("forwarded", RaftMessage { kind: RaftMessageKind::ReadIndex, ..good.clone() }),
        ("without a snapshot", RaftMessage { kind: RaftMessageKind::Snapshot, ..good.clone() }),
    ];
    let before = cluster.status(follower);
    for (what, message) in bad {
        match cluster.raft(follower).step(GROUP, message) {
            Err(Refused::Invalid(why)) => assert!(why.contains(what), "{why} does not speak of {what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let beyond = RaftMessage { kind: RaftMessageKind::Heartbeat, commit: good.index + 1, ..good.clone() };
    let lost = Refused::LogLost { acknowledged: good.index + 1, last: good.index };
    assert_eq!(cluster.raft(follower).step(GROUP, beyond), Err(lost));
    let wrong = RaftMessage { to: ReplicaId(leader), ..good.clone() };
    assert_eq!(cluster.raft(follower).step(GROUP, wrong), Err(Refused::WrongReplica));
    assert_eq!(cluster.status(follower), before, "a refused message changed something");
    // The commit of a leader that is ahead of what it sends is no damage: Raft takes the least of both.
    let ahead = RaftMessage { commit: good.index + 100, entries: vec![entry], ..good.clone() };
    assert_eq!(cluster.raft(follower).step(GROUP, ahead), Ok(()));
    assert_eq!(cluster.status(follower).unwrap().commit, good.index + 1);
    // Votes come from where they were asked, answers from members.
    let stranger = message(&cluster, RaftMessageKind::AppendResponse, 77, leader);
    assert_eq!(cluster.raft(leader).step(GROUP, stranger), Err(Refused::Stranger));
    let handover = message(&cluster, RaftMessageKind::TimeoutNow, a_follower(&cluster, follower), follower);
    let handover = RaftMessage { from: ReplicaId(6 - leader - follower), ..handover };
    assert!(matches!(cluster.raft(follower).step(GROUP, handover), Err(Refused::Invalid(_))));
}

#[test]
fn a_removed_replica_disturbs_nobody() {
    let (mut cluster, leader) = led(10);
    let removed = a_follower(&cluster, leader);
    cluster.change(leader, &[step(MembershipOp::Remove, removed)]).unwrap();
    cluster.isolate(removed);
    let gone = |cluster: &Cluster| cluster.status(leader).unwrap().membership.voters.len() == 2;
    cluster.run_until(5_000, "the change is made", gone).unwrap();
    cluster.run(5_000).unwrap();
    let term = cluster.status(leader).unwrap().term;
    cluster.cut.clear();
    write(&mut cluster, leader, 100, 8);
    let status = cluster.status(leader).unwrap();
    assert_eq!((status.role, status.term), (Role::Leader, term));
    let vote = RaftMessage { term: term + 9, ..message(&cluster, RaftMessageKind::Vote, removed, leader) };
    assert_eq!(cluster.raft(leader).step(GROUP, vote), Err(Refused::Stranger));
    cluster.finish().unwrap();
}

#[test]
fn a_candidate_that_a_lagging_voter_does_not_know_gets_an_answer() {
    let (mut cluster, leader) = led(11);
    let lagging = a_follower(&cluster, leader);
    let last = cluster.status(lagging).unwrap().last_index + 5;
    let vote = message(&cluster, RaftMessageKind::Vote, 42, lagging);
    let vote =
        RaftMessage { term: vote.term + 1, index: last, context: Bytes::from_static(b"CampaignTransfer"), ..vote };
    cluster.raft(lagging).step(GROUP, vote).unwrap();
    let output = cluster.raft(lagging).flush(1_000_000);
    assert_eq!(output.sends, [], "the vote is not durable yet");
    cluster.raft(lagging).persisted(1_000_000);
    let sends = cluster.raft(lagging).flush(1_000_001).sends;
    let granted = |m: &RaftMessage| m.kind == RaftMessageKind::VoteResponse && !m.reject && m.to.0 == 42;
    assert!(sends.iter().any(|sent| granted(&sent.message)));
}

#[test]
fn a_follower_that_lags_is_fed_from_disk() {
    let (mut cluster, leader) = led(12);
    let follower = a_follower(&cluster, leader);
    cluster.crash(follower, 0);
    write(&mut cluster, leader, 40, 100_000);
    assert_eq!(cluster.nodes[&leader].log_reads, 0);
    cluster.finish().unwrap();
    assert!(cluster.nodes[&leader].log_reads > 0);
    assert_eq!(cluster.nodes[&follower].installs, 0);
}

#[test]
fn a_learner_is_fed_by_a_checkpoint_older_than_itself_and_promoted() {
    let (mut cluster, leader) = led(13);
    write(&mut cluster, leader, 30, 50_000);
    cluster.checkpoint(leader, 3);
    write(&mut cluster, leader, 10, 50_000);
    cluster.add_blank(4);
    cluster.change(leader, &[step(MembershipOp::AddLearner, 4)]).unwrap();
    cluster.run_until(8_000, "the learner catches up", Cluster::converged).unwrap();
    assert_eq!(cluster.nodes[&4].installs, 1);
    let status = cluster.status(4).unwrap();
    assert_eq!(status.membership, cluster.status(leader).unwrap().membership);
    assert_eq!(status.membership.learners, ids(&[4]));
    assert!(!cluster.nodes[&4].disk.durable.checkpoint.meta.membership.learners.contains(&ReplicaId(4)));

    let others: Vec<u64> = cluster.nodes.keys().copied().filter(|id| ![leader, 4].contains(id)).collect();
    cluster.change(leader, &[step(MembershipOp::AddVoter, 4)]).unwrap();
    let promoted = |cluster: &Cluster| cluster.status(4).unwrap().membership.voters == ids(&[1, 2, 3, 4]);
    cluster.run_until(5_000, "the learner is a voter", promoted).unwrap();
    // It counts: with one of the old ones gone, three of four still commit.
    cluster.crash(others[0], 0);
    write(&mut cluster, leader, 5, 8);
    cluster.finish().unwrap();
}

#[test]
fn a_lost_snapshot_message_is_repeated() {
    let (mut cluster, leader) = led(14);
    let follower = a_follower(&cluster, leader);
    cluster.crash(follower, 0);
    write(&mut cluster, leader, 10, 8);
    cluster.checkpoint(leader, 0);
    cluster.start(follower, false);
    let waits = |cluster: &Cluster| {
        let progress = cluster.status(leader).unwrap().progress;
        progress.iter().any(|known| known.replica.0 == follower && known.snapshot)
    };
    cluster.run_until(5_000, "a snapshot is sent", waits).unwrap();
    cluster.crash(follower, 0);
    cluster.run(50).unwrap();
    cluster.finish().unwrap();
    assert_eq!(cluster.nodes[&follower].installs, 1);
}

#[test]
fn one_voter_becomes_three_and_three_become_one_whoever_leads() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, &[1], &[]);
        cluster.start(1, true);
        cluster.run_until(1_000, "a leader", has_leader).unwrap();
        for id in [2, 3] {
            cluster.add_blank(id);
            cluster.change(1, &[step(MembershipOp::AddLearner, id)]).unwrap();
            cluster.run_until(3_000, "the learner catches up", Cluster::converged).unwrap();
        }
        cluster.change(1, &[step(MembershipOp::AddVoter, 2), step(MembershipOp::AddVoter, 3)]).unwrap();
        let three = |cluster: &Cluster| {
            let members = cluster.status(1).unwrap().membership;
            members.voters == ids(&[1, 2, 3]) && members.voters_outgoing.is_empty() && !members.auto_leave
        };
        cluster.run_until(3_000, "three voters, not joint", three).unwrap();
        write(&mut cluster, 1, 3, 8);

        // Down to one, which is not the leader: the leader removes itself.
        let leader = cluster.leader().unwrap();
        let heir = a_follower(&cluster, leader);
        let gone: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != heir).collect();
        let steps: Vec<_> = gone.iter().map(|id| step(MembershipOp::Remove, *id)).collect();
        cluster.change(leader, &steps).unwrap();
        let alone = |cluster: &Cluster| {
            let members = cluster.status(heir).unwrap().membership;
            cluster.leader() == Some(heir) && members.voters == ids(&[heir]) && members.voters_outgoing.is_empty()
        };
        cluster.run_until(6_000, "one voter, that leads, not joint", alone).unwrap();
        assert_ne!(cluster.status(leader).unwrap().role, Role::Leader);
        for id in gone {
            cluster.crash(id, 0);
        }
        write(&mut cluster, heir, 3, 8);
        let refused = cluster.change(heir, &[step(MembershipOp::Remove, heir)]);
        assert!(matches!(refused, Err(ProposeError::Invalid("the change leaves no voters"))), "{seed}: {refused:?}");
    }
}

/// One voter becomes three, nothing is written any more, all lose power, and the first one does not come back.
fn lose_the_first_after_growing(seed: u64) -> Result<(), String> {
    let mut cluster = Cluster::new(seed, &[1], &[]);
    cluster.start(1, true);
    cluster.run_until(1_000, "a leader", has_leader)?;
    for id in [2, 3] {
        cluster.add_blank(id);
        cluster.change(1, &[step(MembershipOp::AddLearner, id)]).expect("nothing else is changed");
        cluster.run_until(3_000, "the learner catches up", Cluster::converged)?;
    }
    cluster.change(1, &[step(MembershipOp::AddVoter, 2), step(MembershipOp::AddVoter, 3)]).expect("one change");
    let three = |cluster: &Cluster, id| {
        let members = cluster.status(id).expect("it runs").membership;
        members.voters == ids(&[1, 2, 3]) && members.voters_outgoing.is_empty()
    };
    cluster.run_until(3_000, "all have three voters", |cluster| (1..=3).all(|id| three(cluster, id)))?;
    cluster.run(1_000)?;
    for id in 1..=3 {
        cluster.crash(id, 0);
    }
    cluster.start(2, false);
    cluster.start(3, false);
    cluster.run_until(10_000, "a leader without the first", |cluster| [Some(2), Some(3)].contains(&cluster.leader()))
}

/// Three voters become one, nothing is written any more, all lose power, and only that one comes back.
fn lose_the_others_after_shrinking(seed: u64) -> Result<(), String> {
    let (mut cluster, leader) = led(seed);
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let steps: Vec<_> = others.iter().map(|id| step(MembershipOp::Remove, *id)).collect();
    cluster.change(leader, &steps).expect("nothing else is changed");
    let alone = |cluster: &Cluster| {
        let members = cluster.status(leader).expect("it runs").membership;
        members.voters == ids(&[leader]) && members.voters_outgoing.is_empty()
    };
    cluster.run_until(3_000, "one voter, not joint", alone)?;
    cluster.run(1_000)?;
    for id in 1..=3 {
        cluster.crash(id, 0);
    }
    cluster.start(leader, false);
    cluster.run_until(10_000, "a leader without the others", |cluster| cluster.leader() == Some(leader))
}

#[test]
fn who_decides_is_not_forgotten_in_a_crash() {
    for seed in 0..10 {
        assert_eq!(lose_the_first_after_growing(seed), Ok(()), "seed {seed}");
        assert_eq!(lose_the_others_after_shrinking(seed), Ok(()), "seed {seed}");
    }
    let forgot = with_plant(Plant::MembersCommitNotSaved, || lose_the_first_after_growing(1));
    assert!(forgot.is_err_and(|error| error.contains("a leader without the first")));
    let forgot = with_plant(Plant::MembersCommitNotSaved, || lose_the_others_after_shrinking(1));
    assert!(forgot.is_err_and(|error| error.contains("a leader without the others")));
}

#[test]
fn membership_changes_that_make_no_sense_are_refused() {
    let (mut cluster, leader) = led(15);
    let invalid = |result| matches!(result, Err(ProposeError::Invalid(_)));
    assert!(invalid(cluster.change(leader, &[])), "leaves no joint membership");
    assert!(invalid(cluster.change(leader, &[step(MembershipOp::Remove, 9)])));
    assert!(invalid(cluster.change(leader, &[step(MembershipOp::AddVoter, 0)])));
    let twice = [step(MembershipOp::AddVoter, 4), step(MembershipOp::Remove, 4)];
    assert!(invalid(cluster.change(leader, &twice)));
    cluster.change(leader, &[step(MembershipOp::AddLearner, 4)]).unwrap();
    let second = cluster.change(leader, &[step(MembershipOp::AddLearner, 5)]);
    assert_eq!(second, Err(ProposeError::Busy), "one at a time");
    cluster.run(500).unwrap();
    cluster.change(leader, &[step(MembershipOp::Remove, 4)]).unwrap();
    cluster.run(500).unwrap();
    assert!(invalid(cluster.change(leader, &[step(MembershipOp::AddLearner, 4)])), "ids are never reused");
}

#[test]
fn leadership_is_handed_over_on_request() {
    let (mut cluster, leader) = led(16);
    let heir = a_follower(&cluster, leader);
    cluster.raft(leader).transfer_leader(GROUP, ReplicaId(heir));
    assert!(!cluster.propose(leader, 8), "busy until it is done");
    cluster.run_until(500, "the heir leads", |cluster| cluster.leader() == Some(heir)).unwrap();
    cluster.finish().unwrap();
}

#[test]
fn a_node_with_a_stuck_disk_does_not_campaign() {
    let (mut cluster, leader) = led(17);
    let stuck = a_follower(&cluster, leader);
    cluster.raft(stuck).set_electable(false);
    cluster.raft(leader).transfer_leader(GROUP, ReplicaId(stuck));
    cluster.run(3_000).unwrap();
    assert_eq!(cluster.leader(), Some(leader), "leadership was handed to a stuck node");
    cluster.crash(leader, 0);
    cluster.run_until(6_000, "the other one leads", has_leader).unwrap();
    let roles = &cluster.nodes[&stuck].roles;
    assert!(roles.iter().all(|(role, _)| *role == Role::Follower), "{roles:?}");
    // It still votes; and campaigns again once it may.
    let other = cluster.leader().unwrap();
    cluster.start(leader, false);
    cluster.raft(stuck).set_electable(true);
    cluster.run_until(5_000, "all caught up", Cluster::converged).unwrap();
    cluster.raft(other).transfer_leader(GROUP, ReplicaId(stuck));
    cluster.run_until(1_000, "it leads", |cluster| cluster.leader() == Some(stuck)).unwrap();
}

#[test]
fn transfers_asked_for_again_and_again_keep_no_leader_that_hears_nobody() {
    let (mut cluster, leader) = led(21);
    cluster.isolate(leader);
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    for turn in 0..14 {
        cluster.raft(leader).transfer_leader(GROUP, ReplicaId(others[turn % 2]));
        cluster.run(250).unwrap();
    }
    // Two election timeouts and the one that a transfer may add, of a second each.
    assert_ne!(cluster.status(leader).unwrap().role, Role::Leader);
}

#[test]
fn a_wish_to_lead_does_not_outlive_the_election_of_another() {
    let mut cluster = Cluster::new(20, &[1, 2, 3], &[]);
    cluster.start_all();
    cluster.raft(1).set_electable(false);
    cluster.raft(1).campaign(GROUP);
    cluster.run_until(6_000, "another one leads", has_leader).unwrap();
    cluster.run(500).unwrap();
    cluster.raft(1).set_electable(true);
    cluster.run(2_000).unwrap();
    let roles = &cluster.nodes[&1].roles;
    assert!(roles.iter().all(|(role, _)| *role == Role::Follower), "{roles:?}");
}

#[test]
fn no_campaign_while_entries_are_not_durable() {
    let (mut cluster, leader) = led(18);
    let followers: Vec<u64> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    for id in &followers {
        cluster.node(*id).disk_ms = 8_000;
    }
    write(&mut cluster, leader, 3, 8);
    cluster.crash(leader, 0);
    let due = cluster.nodes[&followers[0]].disk.rounds.back().unwrap().done_ms;
    let campaigning = |cluster: &Cluster, id| cluster.nodes[id].roles.iter().any(|role| role.0 != Role::Follower);
    while cluster.now_ms + 100 < due {
        assert!(!campaigning(&cluster, &followers[0]), "campaigns on a log that it may lose");
        cluster.advance().unwrap();
    }
    cluster.finish().unwrap();
}

#[test]
fn reads_are_answered_by_a_quorum_or_dropped_by_name() {
    let (mut cluster, leader) = led(19);
    cluster.read(leader);
    cluster.run(300).unwrap();
    assert_eq!(cluster.reads_answered, 1);
    cluster.isolate(leader);
    let context = Bytes::from_static(b"dropped");
    cluster.raft(leader).read_index(GROUP, context.clone()).unwrap();
    assert_eq!(cluster.raft(leader).read_index(GROUP, context.clone()), Err(ProposeError::Busy), "not fresh");
    let mut answers = Vec::new();
    for n in 0..80 {
        let now = at(cluster.now_ms + n * 50);
        cluster.raft(leader).tick(now);
        answers.extend(cluster.raft(leader).flush(10_000 + n).read_states);
    }
    assert_eq!(answers.iter().map(|read| (read.context.clone(), read.index)).collect::<Vec<_>>(), [(context, None)]);
}

#[test]
fn three_nodes_started_cold_need_one_election_in_29_of_30_starts_and_never_more_than_three() {
    let distribution = |tries: u64| {
        let mut terms: BTreeMap<u64, u64> = BTreeMap::new();
        for seed in 0..tries {
            let mut cluster = Cluster::new(seed, &[1, 2, 3], &[]);
            cluster.start_all();
            let elected = cluster.run_until(20_000, "a leader", has_leader).is_ok();
            for _ in 0..if elected { 20 } else { 0 } {
                let leader = cluster.leader().unwrap();
                cluster.propose(leader, 8);
                cluster.run(500).unwrap();
            }
            let term = cluster.nodes.keys().filter_map(|id| cluster.status(*id)).map(|status| status.term).max();
            *terms.entry(term.unwrap()).or_default() += 1;
        }
        terms
    };
    let terms = distribution(300);
    println!("terms after 10 s, from birth in term 1: {terms:?}");
    // Each election is a term. Two nodes whose timeouts are nearly the same may split the votes now and then.
    let in_one = terms.range(..=2).map(|(_, count)| count).sum::<u64>();
    assert!(in_one >= 290 && terms.keys().all(|term| *term <= 4), "{terms:?}");
    let same = with_plant(Plant::SameTimeouts, || distribution(100));
    println!("with the same timeout everywhere: {same:?}");
    assert!(same.keys().any(|term| *term > 4), "{same:?}");
}

#[test]
fn a_preferred_leader_leads_a_newborn_group_at_once() {
    let mut cluster = Cluster::new(1, &[1, 2, 3], &[]);
    cluster.start(3, false);
    cluster.start(2, false);
    cluster.start(1, true);
    cluster.run_until(200, "the preferred leader leads", |cluster| cluster.leader() == Some(1)).unwrap();
}

#[test]
fn election_timeouts_follow_from_seed_replica_group_and_term() {
    let timeout = |seed, replica| {
        let mut raft = MultiRaft::new(MultiRaftConfig { seed, heartbeat_ticks: 3, election_ticks: ELECTION_TICKS });
        let cluster = Cluster::new(1, &[1, 2, 3], &[]);
        raft.create(cluster.nodes[&replica].disk.durable.init(replica, false));
        raft.tick(at(0));
        let campaigns = |raft: &mut MultiRaft, n| {
            raft.tick(at(n * 50));
            raft.flush(n).roles.iter().any(|role| role.role == Role::PreCandidate)
        };
        (1..100).find(|n| campaigns(&mut raft, *n)).unwrap()
    };
    let all: Vec<u64> = (0..20).flat_map(|seed| (1..4).map(move |replica| timeout(seed, replica))).collect();
    let again: Vec<u64> = (0..20).flat_map(|seed| (1..4).map(move |replica| timeout(seed, replica))).collect();
    assert_eq!(all, again);
    assert!(all.iter().all(|ticks| (20..40).contains(ticks)), "{all:?}");
    assert!(all.iter().collect::<std::collections::BTreeSet<_>>().len() > 10, "{all:?}");
}
