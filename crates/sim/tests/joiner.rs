//! A joiner of `__meta`, message by message: orders of events that runs by chance hardly meet, and what a node must not
//! survive.

use base::{ClusterId, GroupId, Incarnation, Mono, NodeId, Now, ReplicaId, Wall, limits};
use bytes::Bytes;
use engine::{CoreConfig, Effect, Event, Formation, NodeCore};
use metadata::{Command, CommandEnvelope, Metadata, ReplicaRecord};
use sim::disk::VirtualDisk;
use wire::{
    CheckpointChunk, Entry, EntryKind, JoinAccepted, Member, Membership, PeerMessage, RaftMessage, RaftMessageKind,
    SnapshotMeta,
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
    /// Why it stopped.
    stopped: Option<String>,
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
        Joiner::with(Formation::Join(Box::new(accepted)), CLUSTER, VirtualDisk::new(1), 1)
    }

    fn with(formation: Formation, cluster: ClusterId, disk: VirtualDisk, incarnation: u64) -> Joiner {
        let now = Now { mono: Mono(0), wall: Wall(0) };
        let config = CoreConfig {
            me: member(JOINER.0),
            cluster,
            formation,
            incarnation: Incarnation(incarnation),
            seed: 1,
            segment_bytes: 1 << 20,
            election_timeout: limits::ELECTION_TIMEOUT_MIN,
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            checkpoint_entries: 1_000,
            checkpoint_keep_entries: 10,
            checkpoint_part_bytes: 1 << 10,
            node_lost_after: base::limits::NODE_LOST_AFTER,
            observe: false,
        };
        let mut joiner = Joiner { core: NodeCore::new(config, now), disk, now, stopped: None };
        joiner.settle();
        joiner
    }

    /// Its process ends, and another one begins on the same disk.
    fn restart(self, cluster: ClusterId) -> Joiner {
        Joiner::with(Formation::Restart, cluster, self.disk, 2)
    }

    /// Time passes; every second it calls a member of a newer incarnation, and is refused. `meanwhile` happens as often.
    fn superseded_for(&mut self, seconds: u64, meanwhile: impl Fn(&mut Joiner)) {
        for _ in 0..seconds {
            for _ in 0..20 {
                self.now.mono = self.now.mono.plus(base::Millis(50));
                self.core.handle(self.now, Event::Tick);
                self.settle();
            }
            meanwhile(self);
            self.core.handle(self.now, Event::Superseded { by: NodeId(9) });
        }
    }

    /// Why it stopped.
    fn last_words(&self) -> &str {
        self.stopped.as_deref().expect("it stopped")
    }

    /// Flushes, and carries out what is asked of the disk, until nothing more is asked.
    fn settle(&mut self) {
        loop {
            let mut operations = Vec::new();
            for effect in self.core.flush(self.now) {
                match effect {
                    Effect::Disk(op) => operations.push(op),
                    Effect::Fatal(reason) | Effect::Departed { reason, .. } => self.stopped = Some(reason),
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

    /// The leader of `term` sends entries behind `index`, and says that they are committed.
    fn append(&mut self, term: u64, index: u64, entries: Vec<Entry>) {
        let commit = index + entries.len() as u64;
        let append = message(RaftMessageKind::Append, term);
        self.raft(RaftMessage { log_term: 1, index, entries, commit, ..append });
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
            partition.replicas.push(ReplicaRecord {
                replica: ReplicaId(9),
                node: JOINER.0,
                voter: false,
                retired: false,
            });
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

/// One that has installed the checkpoint at index 100, of term 1.
fn installed() -> Joiner {
    let mut joiner = Joiner::start();
    joiner.offer(1, 100);
    joiner.deliver(100);
    assert_eq!((joiner.core.metadata().applied, joiner.stopped.as_deref()), (100, None));
    joiner
}

fn entry(index: u64, kind: EntryKind, data: Bytes) -> Entry {
    Entry { index, term: 1, kind, data }
}

fn command(index: u64) -> Entry {
    let command = Command::RevokeToken { token_id: 9 };
    let envelope = CommandEnvelope::new(None, Wall(1), command);
    entry(index, EntryKind::Command, wire::encode(&envelope))
}

#[test]
fn a_checkpoint_that_was_pulled_is_installed() {
    let mut joiner = Joiner::start();
    joiner.offer(5, 100);
    joiner.deliver(100);
    assert_eq!(joiner.core.metadata().applied, 100);
}

#[test]
fn an_entry_that_cannot_be_applied_stops_the_node_and_nothing_behind_it_is_applied() {
    let garbage = entry(102, EntryKind::Command, Bytes::from_static(b"no command"));
    let batch = entry(102, EntryKind::Batch, Bytes::from_static(b"no place for a batch"));
    for bad in [garbage, batch] {
        let mut joiner = installed();
        joiner.append(1, 100, vec![command(101), bad, command(103)]);
        assert!(joiner.last_words().starts_with("__meta entry 102: "), "{:?}", joiner.stopped);
        assert_eq!(joiner.core.metadata().applied, 101);
        // It is no better after a restart: nothing is skipped.
        let mut joiner = joiner.restart(CLUSTER);
        joiner.append(1, 103, vec![command(104)]);
        assert!(joiner.last_words().starts_with("__meta entry 102: "), "{:?}", joiner.stopped);
        assert_eq!(joiner.core.metadata().applied, 101);
    }
}

#[test]
fn a_replica_that_lost_what_it_acknowledged_says_so_and_stops() {
    let mut joiner = installed();
    joiner.append(1, 100, vec![command(101)]);
    let heartbeat = |commit| RaftMessage { commit, ..message(RaftMessageKind::Heartbeat, 1) };
    joiner.raft(heartbeat(101));
    assert_eq!(joiner.stopped, None);
    joiner.raft(heartbeat(102));
    assert!(joiner.last_words().contains("entries up to 102; it has them up to 101"), "{:?}", joiner.stopped);
}

#[test]
fn a_member_with_an_empty_journal_does_not_start() {
    let joiner = Joiner::with(Formation::Restart, CLUSTER, VirtualDisk::new(1), 2);
    assert!(joiner.last_words().contains("the journal is empty, but this node was a member"), "{:?}", joiner.stopped);
}

#[test]
fn a_journal_of_another_cluster_is_refused() {
    let joiner = installed().restart(ClusterId([8; 16]));
    assert!(joiner.last_words().contains("do not belong together"), "{:?}", joiner.stopped);
    assert_eq!(installed().restart(CLUSTER).stopped, None);
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

#[test]
fn a_node_of_an_older_incarnation_goes_on_with_its_leader_and_ends_without_one() {
    let mut joiner = installed();
    joiner.superseded_for(20, |joiner| joiner.raft(message(RaftMessageKind::Heartbeat, 1)));
    assert_eq!(joiner.stopped, None, "its majority is there: somebody recovered what was none");
    joiner.superseded_for(10, |_| ());
    assert!(joiner.last_words().contains("the cluster was recovered without this node"), "{:?}", joiner.stopped);

    // Brought back long after, it finds nobody but the one that refuses it.
    let mut joiner = installed().restart(CLUSTER);
    joiner.superseded_for(10, |_| ());
    assert!(joiner.last_words().contains("join anew with a token"), "{:?}", joiner.stopped);
}
