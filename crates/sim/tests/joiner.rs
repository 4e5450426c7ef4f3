//! A joiner of `__meta`, message by message: orders of events that runs by chance hardly meet, and what a node must not
//! survive.

mod common;

use std::ops::Range;

use base::limits::{APPLY_BYTES_MAX, APPLY_ENTRY_BYTES_MIN};
use base::simulation::{Plant, with_plant};
use base::{
    ClusterId, ClusterVersion, ErrorCode, GroupId, Incarnation, Millis, NodeId, ReplicaId, RequestId, SessionId,
    VersionRange, Wall,
};
use bytes::Bytes;
use common::{CLUSTER, LoneNode as Joiner, config};
use engine::{CoreConfig, Event, Formation, Reply, Request, Target};
use metadata::{Command, CommandEnvelope, CommandOrigin, CommandResult, Metadata, ReplicaRecord};
use multiraft::Role;
use sim::disk::VirtualDisk;
use wire::{
    CheckpointChunk, Entry, EntryKind, ForwardReply, Gossip, JoinAccepted, LeaderClaim, Member, Membership,
    MembershipChange, MembershipOp, MembershipStep, PeerMessage, RaftMessage, RaftMessageKind, SnapshotMeta,
};

const LEADER: (NodeId, ReplicaId) = (NodeId(1), ReplicaId(1));
const JOINER: (NodeId, ReplicaId) = (NodeId(2), ReplicaId(2));

fn member(node: NodeId) -> Member {
    Member { node, name: format!("node-{node}"), ..Member::default() }
}

/// It was admitted, and told of the leader.
fn admitted() -> Formation {
    Formation::Join(Box::new(JoinAccepted {
        cluster: CLUSTER,
        cluster_incarnation: Incarnation(1),
        node: JOINER.0,
        meta_replica: JOINER.1,
        members: vec![member(LEADER.0), member(JOINER.0)],
        meta_replicas: vec![LEADER.1, JOINER.1],
        recovery: None,
    }))
}

fn of_joiner(formation: Formation, incarnation: u64) -> CoreConfig {
    config(member(JOINER.0), formation, incarnation)
}

impl Joiner {
    fn start() -> Joiner {
        Joiner::run(of_joiner(admitted(), 1), VirtualDisk::new(1))
    }

    /// Its process ends, and another one begins on the same disk.
    fn restart(self, cluster: ClusterId) -> Joiner {
        Joiner::run(CoreConfig { cluster, ..of_joiner(Formation::Restart, 2) }, self.disk)
    }

    /// As [`Joiner::restart`], with a newer muster.
    fn upgrade(self) -> Joiner {
        let mut config = of_joiner(Formation::Restart, 2);
        config.me.versions = VersionRange::BINARY;
        Joiner::run(config, self.disk)
    }

    /// Time passes; every second it calls a member of a newer incarnation, and is refused. `meanwhile` happens as often.
    fn superseded_for(&mut self, seconds: u64, meanwhile: impl Fn(&mut Joiner)) {
        for _ in 0..seconds {
            self.pass(1_000);
            meanwhile(self);
            self.tell(Event::Superseded { by: NodeId(9) });
        }
    }

    fn hear(&mut self, message: PeerMessage) {
        self.tell(Event::Peer { from: LEADER.0, messages: vec![message] });
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
        self.offer_among(membership, term, index);
    }

    fn offer_among(&mut self, membership: Membership, term: u64, index: u64) {
        let snapshot = Some(SnapshotMeta { index, term: 1, membership });
        self.raft(RaftMessage { snapshot, ..message(RaftMessageKind::Snapshot, term) });
    }

    /// The bytes of the checkpoint at `index` arrive.
    fn deliver(&mut self, index: u64) {
        let whole = checkpoint(index);
        self.hear(part(index, &whole, 0..whole.len()));
    }

    /// The bytes of the checkpoint at `index` arrive, but for one, in which a bit is another.
    fn deliver_damaged(&mut self, index: u64, at: usize) {
        let whole = checkpoint(index);
        let PeerMessage::CheckpointChunk(chunk) = part(index, &whole, 0..whole.len()) else { return };
        let mut data = chunk.data.to_vec();
        data[at] ^= 1;
        self.hear(PeerMessage::CheckpointChunk(CheckpointChunk { data: Bytes::from(data), ..chunk }));
    }

    /// The offsets from which on it asked for parts of a checkpoint, since the last time.
    fn asked_for(&mut self) -> Vec<u64> {
        let pulled = |sent: PeerMessage| match sent {
            PeerMessage::CheckpointPull(pull) => Some(pull.offset),
            _ => None,
        };
        std::mem::take(&mut self.sent).into_iter().filter_map(pulled).collect()
    }
}

/// The bytes of the checkpoint at `index`.
fn checkpoint(index: u64) -> Bytes {
    let mut state = Metadata::bootstrap(CLUSTER, member(NodeId(0)), Wall(0));
    state.applied = index;
    // The joiner has a replica of the topic of events.
    for partition in state.partitions.values().cloned().collect::<Vec<_>>() {
        let mut partition = partition;
        partition.replicas.push(ReplicaRecord { replica: ReplicaId(9), node: JOINER.0, voter: false, retired: false });
        state.partitions.insert(partition.group, partition);
    }
    state.encode()
}

/// Some of them.
fn part(index: u64, whole: &Bytes, range: Range<usize>) -> PeerMessage {
    let (offset, total, crc) = (range.start as u64, whole.len() as u64, crc32c::crc32c(whole));
    let data = whole.slice(range);
    PeerMessage::CheckpointChunk(CheckpointChunk { group: GroupId::META, index, offset, total, crc, data })
}

fn message(kind: RaftMessageKind, term: u64) -> RaftMessage {
    RaftMessage::new(kind, LEADER.1, JOINER.1, term)
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
fn a_checkpoint_larger_than_a_message_comes_in_parts() {
    const PART: usize = 200;
    let mut joiner = Joiner::start();
    joiner.offer(5, 100);
    let whole = checkpoint(100);
    for start in (0..whole.len()).step_by(PART) {
        assert_eq!(joiner.core.metadata().applied, 0, "a part of a state is none");
        joiner.hear(part(100, &whole, start..whole.len().min(start + PART)));
    }
    assert_eq!(joiner.core.metadata().applied, 100);
    let asked = joiner.asked_for();
    let each: Vec<u64> = (0..whole.len() as u64).step_by(PART).collect();
    assert!(each.len() > 2 && asked == each, "{asked:?} of {}", whole.len());
}

#[test]
fn a_part_that_is_lost_is_asked_for_again_and_no_other_is() {
    const PART: usize = 200;
    let mut joiner = Joiner::start();
    joiner.offer(5, 100);
    let whole = checkpoint(100);
    joiner.hear(part(100, &whole, 0..PART));
    assert_eq!(joiner.asked_for(), [0, PART as u64]);
    joiner.pass(500);
    assert_eq!(joiner.asked_for(), [] as [u64; 0], "it may still come");
    joiner.pass(50);
    assert_eq!(joiner.asked_for(), [PART as u64]);
    for start in (PART..whole.len()).step_by(PART) {
        assert_eq!(joiner.core.metadata().applied, 0, "a part of a state is none");
        joiner.hear(part(100, &whole, start..whole.len().min(start + PART)));
    }
    assert_eq!((joiner.core.metadata().applied, joiner.stopped.as_deref()), (100, None));
    assert_eq!(joiner.core.metadata().encode(), whole);
    let others: Vec<u64> = (2 * PART as u64..whole.len() as u64).step_by(PART).collect();
    assert_eq!(joiner.asked_for(), others, "each of the others once");
}

#[test]
fn a_checkpoint_damaged_on_its_way_is_refused_and_pulled_anew() {
    let mut joiner = Joiner::start();
    joiner.offer(5, 100);
    assert_eq!(joiner.asked_for(), [0u64]);
    for (round, at) in (0..checkpoint(100).len()).step_by(9).enumerate() {
        joiner.deliver_damaged(100, at);
        let (applied, stopped) = (joiner.core.metadata().applied, joiner.stopped.as_deref());
        assert_eq!((applied, stopped), (0, None), "damaged at byte {at}");
        let [said] = &joiner.warnings[..] else { panic!("damaged at byte {at}: {:?}", joiner.warnings) };
        assert!(said.contains("at index 100") && said.contains("node 1") && said.contains("damaged"), "{said}");
        joiner.warnings.clear();
        assert_eq!(joiner.asked_for(), [] as [u64; 0], "not at once: what damages may still be there");
        joiner.pass(600);
        if round % 3 == 2 {
            assert_eq!(
                joiner.asked_for(),
                [] as [u64; 0],
                "always damaged, it is left alone until it is offered again"
            );
            joiner.offer(5, 100);
        }
        let asked = joiner.asked_for();
        assert!(!asked.is_empty() && asked.iter().all(|offset| *offset == 0), "from the beginning: {asked:?}");
    }
    joiner.deliver(100);
    assert_eq!((joiner.core.metadata().applied, joiner.warnings.len()), (100, 0));
    assert_eq!(joiner.core.metadata().encode(), checkpoint(100));
}

/// What the test above is for: without the checksum, the damage would be the node's state.
#[test]
fn a_damaged_checkpoint_that_is_taken_is_another_state() {
    let name = |joiner: &Joiner| joiner.core.metadata().nodes.get(&LEADER.0).map(|it| it.member.name.clone());
    assert_eq!(name(&installed()).as_deref(), Some("node-0"));
    let taken = with_plant(Plant::DamagedCheckpointTaken, || {
        let at = checkpoint(100).windows(6).position(|part| part == b"node-0").expect("the name of its node");
        let mut joiner = Joiner::start();
        joiner.offer(1, 100);
        joiner.deliver_damaged(100, at + 5);
        joiner
    });
    assert_eq!((name(&taken).as_deref(), taken.warnings.len()), (Some("node-1"), 0));
}

#[test]
fn the_empty_entry_of_a_new_leader_is_no_command() {
    let mut joiner = installed();
    joiner.append(1, 100, vec![command(101), entry(102, EntryKind::Noop, Bytes::new()), command(103)]);
    assert_eq!((joiner.core.metadata().applied, joiner.stopped.as_deref()), (103, None));
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
fn an_older_node_stops_at_what_it_cannot_read_and_goes_on_from_there_once_it_is_upgraded() {
    let envelope = CommandEnvelope::new(None, Wall(1), Command::HoldVersion { at: None });
    let newer = entry(102, EntryKind::Command, wire::encode(&envelope));
    let mut joiner = installed();
    joiner.append(1, 100, vec![command(101), newer, command(103)]);
    let expected =
        "__meta entry 102: this node's version cannot read a command of cluster version 2, it can 1: upgrade muster";
    assert!(joiner.last_words().starts_with(expected), "{:?}", joiner.stopped);
    assert_eq!(joiner.core.metadata().applied, 101);
    let mut joiner = joiner.upgrade();
    joiner.append(1, 103, vec![command(104)]);
    assert_eq!((joiner.core.metadata().applied, joiner.stopped.as_deref()), (104, None));
}

#[test]
fn a_node_that_is_refused_as_outdated_stops_and_says_what_to_do() {
    let mut joiner = installed();
    for (active, stops) in [(ClusterVersion::V1, false), (ClusterVersion::V2, true)] {
        joiner.core.handle(joiner.now, Event::Outdated { by: LEADER.0, active });
        joiner.settle();
        assert_eq!(joiner.stopped.is_some(), stops, "{:?}", joiner.stopped);
    }
    let expected =
        "node 1 refuses this node: the cluster is at cluster version 2, this node can 1: upgrade muster on this node";
    assert!(joiner.last_words().starts_with(expected), "{:?}", joiner.stopped);
}

#[test]
fn a_node_far_behind_applies_no_more_in_one_flush_than_the_bound_and_answers_heartbeats_in_between() {
    let most = APPLY_BYTES_MAX / APPLY_ENTRY_BYTES_MIN;
    let last = 100 + 3 * most;
    let mut joiner = installed();
    joiner.disk_stuck = true;
    joiner.append(1, 100, (101..=last).map(command).collect());
    joiner.disk_stuck = false;
    let message = RaftMessage { commit: 100, ..message(RaftMessageKind::Heartbeat, 1) };
    let answers = |sent: &PeerMessage| match sent {
        PeerMessage::Raft { message, .. } => message.kind == RaftMessageKind::HeartbeatResponse,
        _ => false,
    };
    let mut largest = 0;
    loop {
        joiner.sent.clear();
        let messages = vec![PeerMessage::Raft { group: GroupId::META, message: message.clone() }];
        joiner.core.handle(joiner.now, Event::Peer { from: LEADER.0, messages });
        let before = joiner.core.metadata().applied;
        let more = joiner.turn();
        assert!(joiner.sent.iter().any(answers), "{:?}", joiner.sent);
        let applied = joiner.core.metadata().applied;
        largest = largest.max(applied - before);
        // All was committed before the first turn.
        let queues = joiner.core.vitals(0).queues;
        assert_eq!(
            (queues.unapplied, queues.unapplied_max),
            (last - applied, last - applied),
            "it says how far behind"
        );
        if !more {
            break;
        }
    }
    assert_eq!((joiner.core.metadata().applied, joiner.stopped.as_deref()), (last, None));
    // One more for each further look at the group in the same flush.
    assert!((most / 2..most + 10).contains(&largest), "{largest} entries in one flush");
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
fn a_node_that_speaks_as_another_nodes_replica_is_not_believed() {
    let mut joiner = installed();
    let append = RaftMessage {
        log_term: 1,
        index: 100,
        entries: vec![command(101)],
        commit: 101,
        ..message(RaftMessageKind::Append, 1)
    };
    for (from, applied) in [(NodeId(3), 100), (LEADER.0, 101)] {
        let message = PeerMessage::Raft { group: GroupId::META, message: append.clone() };
        joiner.tell(Event::Peer { from, messages: vec![message] });
        assert_eq!(joiner.core.metadata().applied, applied, "said by node {from}");
    }
}

#[test]
fn a_member_with_an_empty_journal_does_not_start() {
    let joiner = Joiner::run(of_joiner(Formation::Restart, 2), VirtualDisk::new(1));
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
fn voters_are_told_as_the_configuration_has_them_and_not_as_the_table_does() {
    let mut joiner = installed();
    let told = |joiner: &Joiner| {
        let status = joiner.core.status();
        (status.meta_voters, status.meta_learners)
    };
    assert!(!joiner.core.metadata().nodes.contains_key(&JOINER.0), "the table has not heard of it yet");
    assert_eq!(told(&joiner), (vec![LEADER.0], vec![JOINER.0]));
    let promote = MembershipStep { op: MembershipOp::AddVoter, replica: JOINER.1 };
    let change = wire::encode(&MembershipChange { steps: vec![promote], basis: 0 });
    joiner.append(1, 100, vec![entry(101, EntryKind::Membership, change)]);
    assert_eq!(told(&joiner), (vec![LEADER.0, JOINER.0], vec![]));
}

#[test]
fn a_vote_asked_for_before_the_replica_runs_is_answered_once_it_does() {
    // Its process has just begun, and has not read its journal.
    let mut joiner = Joiner::new(of_joiner(Formation::Restart, 2), installed().disk);
    joiner.raft(RaftMessage { log_term: 1, index: 100, ..message(RaftMessageKind::Vote, 2) });
    let granted = |sent: &PeerMessage| match sent {
        PeerMessage::Raft { message, .. } => {
            message.kind == RaftMessageKind::VoteResponse && message.term == 2 && !message.reject
        }
        _ => false,
    };
    assert!(joiner.sent.iter().any(granted), "{:?}", joiner.sent);
}

/// Longer than any request waits.
const LONG_MS: u64 = 15 * 60_000;

#[test]
fn a_node_registers_however_late_a_leader_comes() {
    let mut joiner = installed();
    joiner.pass(LONG_MS);
    joiner.sent.clear();
    let claim = LeaderClaim { group: GroupId::META, term: 1, replica: LEADER.1, rests: None };
    joiner.hear(PeerMessage::Gossip(Gossip { leaders: vec![claim], ..Gossip::default() }));
    joiner.pass(1_000);
    let open = Request::Command(Command::OpenSession { node: JOINER.0, incarnation: Incarnation(1) });
    // Inside of the request that is passed on, without a byte for the format.
    let open = wire::encode(&open).slice(1..);
    let registers = |sent: &PeerMessage| match sent {
        PeerMessage::Forward(forward) => forward.body.windows(open.len()).any(|part| *part == open[..]),
        _ => false,
    };
    assert!(joiner.sent.iter().any(registers), "it gave up: {:?}", joiner.sent);
}

impl Joiner {
    /// What it has passed on, since the last time: the names that it gave them, the commands, and under which session.
    fn passed_on(&mut self) -> Vec<(u64, Command, Option<SessionId>)> {
        let command = |sent: PeerMessage| {
            let PeerMessage::Forward(forward) = sent else { return None };
            let read = wire::decode::<(Request, Option<CommandOrigin>)>(&forward.body);
            // Of a command without a session nothing else is written.
            let read = read.or_else(|_| wire::decode::<(Request,)>(&forward.body).map(|(request,)| (request, None)));
            let (Request::Command(command), origin) = read.ok()? else { return None };
            Some((forward.id, command, origin.map(|origin| origin.session)))
        };
        std::mem::take(&mut self.sent).into_iter().filter_map(command).collect()
    }

    /// The leader says what came of something that it passed on, at an index that it has applied.
    fn answer(&mut self, id: u64, result: CommandResult) {
        // As the engine has it: what was done, with a reply.
        let body = wire::encode(&(0_u32, (Reply::Command { index: 100, result },)));
        self.hear(PeerMessage::ForwardReply(ForwardReply { id, body }));
    }

    /// It asks for a session within a second, before it passes on what its clients want; it gets this one.
    fn opens(&mut self, session: SessionId) {
        self.pass(1_000);
        let asked = self.passed_on();
        let of_client = |command: &Command| matches!(command, Command::RevokeToken { .. });
        assert!(!asked.iter().any(|(_, command, _)| of_client(command)), "{asked:?}");
        let opens = |command: &Command| matches!(command, Command::OpenSession { node, .. } if *node == JOINER.0);
        // It may have asked more than once.
        let last = asked.iter().rev().find(|(_, command, _)| opens(command));
        let Some((id, ..)) = last else { panic!("it asks for no session: {asked:?}") };
        self.answer(*id, CommandResult::SessionOpened { session });
    }
}

#[test]
fn whose_session_is_unknown_is_told_so_and_opens_another_one() {
    let mut joiner = installed();
    joiner.pass(2_000);
    joiner.sent.clear();
    let claim = LeaderClaim { group: GroupId::META, term: 1, replica: LEADER.1, rests: None };
    joiner.hear(PeerMessage::Gossip(Gossip { leaders: vec![claim], ..Gossip::default() }));
    joiner.opens(SessionId(7));
    joiner.sent.clear();

    joiner.command(5, Command::RevokeToken { token_id: 9 });
    let revokes = |(_, command, _): &(u64, Command, Option<SessionId>)| matches!(command, Command::RevokeToken { .. });
    let asked = joiner.passed_on();
    let Some((id, _, Some(SessionId(7)))) = asked.iter().find(|it| revokes(it)) else { panic!("{asked:?}") };
    let message = "session 7 is unknown or ended".to_owned();
    joiner.answer(*id, CommandResult::Refused { code: ErrorCode::UnknownSession, message });
    let [(RequestId(5), Err(told))] = &joiner.replies[..] else { panic!("{:?}", joiner.replies) };
    assert_eq!(told.code, ErrorCode::UnknownSession);

    // What is asked next waits for another one, and goes under that.
    joiner.command(6, Command::RevokeToken { token_id: 9 });
    joiner.opens(SessionId(8));
    joiner.pass(100);
    let asked = joiner.passed_on();
    assert!(asked.iter().any(|it| revokes(it) && it.2 == Some(SessionId(8))), "{asked:?}");
    assert!(joiner.stopped.is_none(), "{:?}", joiner.stopped);
}

#[test]
fn who_waited_for_a_leader_in_vain_is_told_of_term_vote_voters_and_who_was_heard() {
    let mut joiner = installed();
    // Its leader is silent, then wants to be one again, and is silent once more.
    joiner.pass(10_000);
    joiner.raft(RaftMessage { log_term: 1, index: 100, ..message(RaftMessageKind::Vote, 2) });
    let heard = joiner.now.mono;
    joiner.pass(10_000);
    let (id, deadline) = (RequestId(7), joiner.now.mono.plus(Millis(2_000)));
    let target = Target::Leader(GroupId::META);
    joiner.tell(Event::Request { id, deadline, target, request: Request::ReadPoint });
    while joiner.replies.is_empty() && joiner.now.mono < deadline {
        joiner.pass(1);
    }
    let [(RequestId(7), Err(told))] = &joiner.replies[..] else { panic!("{:?}", joiner.replies) };
    let silence = joiner.now.mono.since(heard);
    let expected =
        format!("no leader yet for group 0: term 2, voted for replica 1, voters [1]; node 1 heard {silence} ago");
    assert_eq!((told.code, &told.message), (ErrorCode::NoLeader, &expected));
}

#[test]
fn who_waited_for_a_leader_in_vain_is_told_of_the_votes_of_an_election_under_way() {
    let grant = message(RaftMessageKind::PreVoteResponse, 2);
    let refusal = RaftMessage { reject: true, ..message(RaftMessageKind::VoteResponse, 2) };
    for (answers, expected) in [
        (vec![], "term 1, voted for replica 0, pre-votes 1 for it and 0 against, voters [1, 2, 3]"),
        (vec![grant.clone()], "term 2, voted for replica 2, votes 1 for it and 0 against, voters [1, 2, 3]"),
        (vec![grant, refusal], "term 2, voted for replica 2, votes 1 for it and 1 against, voters [1, 2, 3]"),
    ] {
        let mut joiner = Joiner::start();
        let voters = vec![LEADER.1, JOINER.1, ReplicaId(3)];
        joiner.offer_among(Membership { voters, ..Membership::default() }, 1, 100);
        joiner.deliver(100);
        joiner.raft(message(RaftMessageKind::Heartbeat, 1));
        // Its leader is silent for so long that nothing is passed on to it any more.
        joiner.pass(10_000);
        let role = |joiner: &Joiner| joiner.core.raft_status(GroupId::META).map(|status| status.role);
        let patience = joiner.now.mono.plus(Millis(10_000));
        while role(&joiner) != Some(Role::PreCandidate) && joiner.now.mono < patience {
            joiner.pass(50);
        }
        answers.into_iter().for_each(|answer| joiner.raft(answer));
        // Before it stands anew.
        let (id, deadline) = (RequestId(7), joiner.now.mono.plus(Millis(100)));
        let target = Target::Leader(GroupId::META);
        joiner.tell(Event::Request { id, deadline, target, request: Request::ReadPoint });
        joiner.pass(200);
        let [(RequestId(7), Err(told))] = &joiner.replies[..] else { panic!("{:?}", joiner.replies) };
        assert!(told.message.contains(expected), "{}", told.message);
    }
}

#[test]
fn a_campaign_begins_when_the_configured_timeout_is_over() {
    for timeout_ms in [1_000, 4_000] {
        let config = CoreConfig { election_timeout: Millis(timeout_ms), ..of_joiner(admitted(), 1) };
        let mut joiner = Joiner::run(config, VirtualDisk::new(1));
        let voters = vec![LEADER.1, JOINER.1, ReplicaId(3)];
        joiner.offer_among(Membership { voters, ..Membership::default() }, 1, 100);
        joiner.deliver(100);
        joiner.raft(message(RaftMessageKind::Heartbeat, 1));
        let role = |joiner: &Joiner| joiner.core.raft_status(GroupId::META).map(|status| status.role);
        let mut waited_ms = 0;
        while role(&joiner) == Some(Role::Follower) && waited_ms < 3 * timeout_ms {
            joiner.pass(50);
            waited_ms += 50;
        }
        assert_eq!(role(&joiner), Some(Role::PreCandidate), "after {waited_ms} ms");
        // Up to twice the timeout, and a tick for each end.
        assert!((timeout_ms..=2 * timeout_ms + 100).contains(&waited_ms), "{waited_ms} ms instead of {timeout_ms}");
    }
}

/// What a process says at its end that is told of another one of its node, every half a second for so long.
fn told_of_twin_for(joiner: &mut Joiner, other: u64, ms: u64) -> Option<String> {
    for _ in 0..ms / 500 {
        joiner.tell(Event::Twin { by: LEADER.0, other: Incarnation(other) });
        joiner.pass(500);
    }
    joiner.stopped.clone()
}

#[test]
fn a_process_that_is_told_for_long_of_another_one_of_its_node_ends_and_says_what_to_do() {
    let mut joiner = installed();
    for _ in 0..3 {
        // Whoever was moved hears of the process before until its connections have ended.
        assert_eq!(told_of_twin_for(&mut joiner, 1, 4_000), None);
        joiner.pass(6_000);
    }
    let said = told_of_twin_for(&mut joiner, 1, 6_000).expect("it ends");
    assert!(said.starts_with("node 1 says that another process of this node is there (incarnation 1;"), "{said}");
    assert!(said.contains("If this one is the copy, remove it"), "{said}");

    let said = told_of_twin_for(&mut installed(), 7, 6_000).expect("it ends");
    assert!(said.starts_with("node 1 says that a later process of this node than this one was there"), "{said}");
}

#[test]
fn a_node_of_an_older_incarnation_goes_on_with_its_leader_and_ends_without_one() {
    let mut joiner = installed();
    joiner.superseded_for(60, |joiner| joiner.raft(message(RaftMessageKind::Heartbeat, 1)));
    assert_eq!(joiner.stopped, None, "its majority is there: somebody recovered what was none");
    joiner.superseded_for(20, |_| ());
    assert_eq!(joiner.stopped, None, "its majority may still come together");
    joiner.superseded_for(20, |_| ());
    assert!(joiner.last_words().contains("the cluster was recovered without this node"), "{:?}", joiner.stopped);

    // Brought back long after, it finds nobody but the one that refuses it.
    let mut joiner = installed().restart(CLUSTER);
    joiner.superseded_for(40, |_| ());
    assert!(joiner.last_words().contains("join anew with a token"), "{:?}", joiner.stopped);
}
