//! A joiner of `__meta`, message by message: orders of events that runs by chance hardly meet.

use base::{ClusterId, GroupId, Incarnation, Mono, NodeId, Now, ReplicaId, Wall, limits};
use bytes::Bytes;
use engine::{CoreConfig, Effect, Event, Formation, NodeCore};
use metadata::{Metadata, ReplicaRecord};
use sim::disk::VirtualDisk;
use wire::{
    CheckpointChunk, JoinAccepted, Member, Membership, PeerMessage, RaftMessage, RaftMessageKind, SnapshotMeta,
};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const LEADER: (NodeId, ReplicaId) = (NodeId(1), ReplicaId(1));
const JOINER: (NodeId, ReplicaId) = (NodeId(2), ReplicaId(2));

fn member(node: NodeId) -> Member {
    Member { node, name: format!("node-{node}"), ..Member::default() }
}

/// The joiner with a disk that does everything at once.
struct Joiner {
    core: NodeCore,
    disk: VirtualDisk,
    now: Now,
}

impl Joiner {
    fn start() -> Joiner {
        let accepted = JoinAccepted {
            cluster: CLUSTER,
            cluster_incarnation: Incarnation(1),
            node: JOINER.0,
            meta_replica: JOINER.1,
            members: vec![member(LEADER.0), member(JOINER.0)],
            meta_replicas: vec![LEADER.1, JOINER.1],
        };
        let now = Now { mono: Mono(0), wall: Wall(0) };
        let config = CoreConfig {
            me: member(JOINER.0),
            cluster: CLUSTER,
            formation: Formation::Join(Box::new(accepted)),
            incarnation: Incarnation(1),
            seed: 1,
            segment_bytes: 1 << 20,
            election_timeout: limits::ELECTION_TIMEOUT_MIN,
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            checkpoint_entries: 1_000,
            checkpoint_keep_entries: 10,
            checkpoint_part_bytes: 1 << 10,
            observe: false,
        };
        let mut joiner = Joiner { core: NodeCore::new(config, now), disk: VirtualDisk::new(1), now };
        joiner.settle();
        joiner
    }

    /// Flushes, and carries out what is asked of the disk, until nothing more is asked.
    fn settle(&mut self) {
        loop {
            let mut operations = Vec::new();
            for effect in self.core.flush(self.now) {
                match effect {
                    Effect::Disk(op) => operations.push(op),
                    Effect::Fatal(reason) => panic!("the joiner stops: {reason}"),
                    _ => {}
                }
            }
            if operations.is_empty() {
                return;
            }
            for op in operations {
                let id = op.id;
                self.disk.submit(op, 0).expect("independent operations");
                let result = self.disk.complete(id).expect("under way");
                self.core.handle(self.now, Event::Disk { op: id, result });
            }
        }
    }

    fn hear(&mut self, message: PeerMessage) {
        self.core.handle(self.now, Event::Peer { from: LEADER.0, messages: vec![message] });
        self.settle();
    }

    fn raft(&mut self, message: RaftMessage) {
        self.hear(PeerMessage::Raft { group: GroupId::META, message });
    }

    /// A leader of `term` offers its checkpoint at `index`.
    fn offer(&mut self, term: u64, index: u64) {
        let membership = Membership { voters: vec![LEADER.1], learners: vec![JOINER.1], ..Membership::default() };
        let snapshot = Some(SnapshotMeta { index, term: 1, membership });
        self.raft(RaftMessage { snapshot, ..message(RaftMessageKind::Snapshot, term) });
    }

    /// The bytes of the checkpoint at `index` arrive.
    fn deliver(&mut self, index: u64) {
        let mut state = Metadata::bootstrap(CLUSTER, member(NodeId(0)), Wall(0));
        state.applied = index;
        // The joiner has a replica of the topic of events.
        for partition in state.partitions.values().cloned().collect::<Vec<_>>() {
            let mut partition = partition;
            partition.replicas.push(ReplicaRecord { replica: ReplicaId(9), node: JOINER.0, voter: false });
            state.partitions.insert(partition.group, partition);
        }
        let data = state.encode();
        let (total, crc) = (data.len() as u64, crc32c::crc32c(&data));
        let chunk = CheckpointChunk { group: GroupId::META, index, offset: 0, total, crc, data };
        self.hear(PeerMessage::CheckpointChunk(chunk));
    }
}

fn message(kind: RaftMessageKind, term: u64) -> RaftMessage {
    RaftMessage {
        kind,
        from: LEADER.1,
        to: JOINER.1,
        term,
        log_term: 0,
        index: 0,
        entries: Vec::new(),
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        request_snapshot: 0,
        context: Bytes::new(),
        priority: 0,
        snapshot: None,
    }
}

#[test]
fn a_checkpoint_that_was_pulled_is_installed() {
    let mut joiner = Joiner::start();
    joiner.offer(5, 100);
    joiner.deliver(100);
    assert_eq!(joiner.core.metadata().applied, 100);
}

#[test]
fn checkpoints_pulled_in_vain_do_not_stand_in_the_way_of_the_next_one() {
    let mut joiner = Joiner::start();
    for (term, index) in [(5, 100), (6, 110), (7, 120), (8, 130)] {
        joiner.offer(term, index);
        // A newer term begins while the bytes are on their way: Raft ignores the offer of the older one.
        joiner.raft(message(RaftMessageKind::Heartbeat, term + 1));
        joiner.deliver(index);
        assert_eq!(joiner.core.metadata().applied, 0);
    }
    joiner.offer(9, 140);
    joiner.deliver(140);
    assert_eq!(joiner.core.metadata().applied, 140, "the joiner would wait for ever");
}

#[test]
fn no_replica_is_born_from_tables_that_may_be_older_than_its_removal() {
    let mut joiner = Joiner::start();
    joiner.offer(5, 100);
    joiner.deliver(100);
    let mut replicas = joiner.core.metadata().partitions.values().flat_map(|partition| &partition.replicas);
    assert!(replicas.any(|replica| replica.node == JOINER.0), "the tables give it one");
    // A restarted process would look the same to itself: its tables are from its journal, and nobody confirmed them.
    let groups: Vec<_> = joiner.core.status().groups.iter().map(|view| view.group).collect();
    assert_eq!(groups, [GroupId::META]);
}
