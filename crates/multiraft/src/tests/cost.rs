//! What the layer costs, in figures printed for whoever asks (`--nocapture`); the bounds are wide enough for a busy
//! machine with an unoptimized build.

use std::collections::BTreeMap;
use std::time::Instant;

use base::{GroupId, Mono, Now, ReplicaId, Wall};
use bytes::Bytes;
use wire::{EntryKind, HardState, Membership, SnapshotMeta};

use super::ELECTION_TICKS;
use super::cluster::ids;
use crate::{GroupInit, MultiRaft, MultiRaftConfig, Proposal, Role};

/// Three nodes with perfect disks and network, and replicas of the same groups.
struct Nodes {
    rafts: BTreeMap<u64, MultiRaft>,
    round: u64,
    now_ms: u64,
    committed: u64,
    sent: u64,
}

impl Nodes {
    fn new(groups: u64) -> Nodes {
        let membership = Membership { voters: ids(&[1, 2, 3]), ..Default::default() };
        let init = |group, replica| GroupInit {
            group: GroupId(group),
            replica: ReplicaId(replica),
            hard_state: HardState { term: 1, vote: ReplicaId(0), commit: 1 },
            checkpoint: SnapshotMeta { index: 1, term: 1, membership: membership.clone() },
            membership: membership.clone(),
            first_index: 2,
            last_index: 1,
            term_runs: Vec::new(),
            applied: 1,
            unapplied: Vec::new(),
            campaign: replica == 1,
        };
        let raft = |replica| {
            let mut raft =
                MultiRaft::new(MultiRaftConfig { seed: replica, heartbeat_ticks: 3, election_ticks: ELECTION_TICKS });
            (0..groups).for_each(|group| raft.create(init(group, replica)));
            (replica, raft)
        };
        let mut nodes = Nodes { rafts: [3, 2, 1].map(raft).into(), round: 0, now_ms: 0, committed: 0, sent: 0 };
        nodes.settle();
        nodes
    }

    /// Flushes and delivers until nothing is left to do.
    fn settle(&mut self) {
        loop {
            let mut idle = true;
            let mut sends = Vec::new();
            for raft in self.rafts.values_mut().filter(|raft| raft.is_dirty()) {
                idle = false;
                self.round += 1;
                let output = raft.flush(self.round);
                raft.persisted(self.round);
                for committed in output.committed {
                    self.committed += committed.entries.len() as u64;
                    raft.applied(committed.group, committed.entries.last().map_or(0, |entry| entry.index));
                }
                sends.extend(output.sends);
            }
            self.sent += sends.len() as u64;
            for sent in sends {
                let to = self.rafts.get_mut(&sent.message.to.0).expect("a node");
                to.step(sent.group, sent.message).expect("nothing is refused in a healthy cluster");
            }
            if idle {
                return;
            }
        }
    }

    fn tick(&mut self) {
        self.now_ms += 50;
        let now = Now { mono: Mono(self.now_ms * 1_000_000), wall: Wall(0) };
        self.rafts.values_mut().for_each(|raft| raft.tick(now));
        self.settle();
    }
}

#[test]
fn proposals_per_second_of_three_nodes_in_memory() {
    for (len, batch, batches) in [(1_024, 64, 200), (1_024, 1, 2_000), (16_384, 64, 50)] {
        let mut nodes = Nodes::new(1);
        let term = nodes.rafts[&1].role(GroupId(0)).unwrap().term;
        let data = Bytes::from(vec![0; len]);
        let (before, begin) = (nodes.committed, Instant::now());
        for _ in 0..batches {
            for _ in 0..batch {
                let proposal = Proposal { group: GroupId(0), term, kind: EntryKind::Batch, data: data.clone() };
                nodes.rafts.get_mut(&1).unwrap().propose(proposal).unwrap();
            }
            nodes.settle();
        }
        let seconds = begin.elapsed().as_secs_f64();
        let count = batch * batches;
        println!("{len} B, {batch} per flush: {:.0} proposals/s on all three nodes", count as f64 / seconds);
        assert_eq!(nodes.committed - before, 3 * count);
    }
}

#[test]
fn a_thousand_idle_groups() {
    let mut nodes = Nodes::new(1_000);
    nodes.tick();
    assert!((0..1_000).all(|group| nodes.rafts[&1].role(GroupId(group)).unwrap().role == Role::Leader));
    let (sent, begin) = (nodes.sent, Instant::now());
    (0..60).for_each(|_| nodes.tick());
    let micros = begin.elapsed().as_secs_f64() * 1e6;
    let heartbeats = 20 * 1_000;
    println!(
        "{:.2} us per group and heartbeat for all three nodes, {} messages",
        micros / f64::from(heartbeats),
        nodes.sent - sent
    );
    assert_eq!(nodes.sent - sent, 4 * 20 * 1_000, "an idle group sends heartbeats and nothing else");

    // Between heartbeats.
    let follower = nodes.rafts.get_mut(&2).unwrap();
    let begin = Instant::now();
    for n in 0..15 {
        follower.tick(Now { mono: Mono((nodes.now_ms + n * 50) * 1_000_000), wall: Wall(0) });
    }
    let nanos = begin.elapsed().as_secs_f64() * 1e9;
    println!("{:.0} ns per group and tick of a follower", nanos / 15.0 / 1_000.0);
    assert!(!follower.is_dirty(), "a tick in which nothing happens touches no group");
}
