//! The first node of a cluster, alone on a disk that the test can hold up: what it says before something is committed,
//! and what it does when nothing is to be done.

mod common;

use base::limits::{HEARTBEAT_INTERVAL, REQUEST_DEADLINE_DEFAULT, TICK};
use base::simulation::{Plant, with_plant};
use base::{
    EndpointId, ErrorCode, GroupId, Incarnation, Millis, NodeId, ReplicaId, RequestId, TopicId, VersionRange, Wall,
};
use bytes::Bytes;
use common::{LoneNode, config};
use compute::{VmAction, VmPhase, VmReport, VmReportEvent, VmSpec};
use engine::{Acks, CoreConfig, Event, Formation, Produce, Reply, Request, Target, Work};
use journal::DiskError;
use metadata::{Command, CommandOrigin, CommandResult, KeyLife, Metadata, token_hash};
use sim::disk::VirtualDisk;
use sim::records::{self, Producer};
use wire::{
    Capabilities, Channel, CheckpointPull, Forward, Member, NodeAddress, PeerMessage, RaftMessage, RaftMessageKind,
};

/// One that is ready.
fn founder() -> LoneNode {
    let mut founder = LoneNode::run(of_founder(Formation::Bootstrap, 1), VirtualDisk::new(1));
    founder.pass(1_000);
    let status = founder.core.status();
    assert!(status.ready, "{}", status.reason);
    founder
}

fn of_founder(formation: Formation, incarnation: u64) -> CoreConfig {
    let capabilities = Capabilities {
        cores: 4,
        memory_mib: 4_096,
        hypervisors: vec!["qemu 7.2.22".into()],
        ..Capabilities::default()
    };
    let me = Member { node: NodeId(1), name: "founder".into(), capabilities, ..Member::default() };
    config(me, formation, incarnation)
}

fn create_vm(name: &str, memory_mib: u64) -> Command {
    Command::CreateVm { name: name.into(), spec: VmSpec { cpus: 1, memory_mib, image: "minimal".into(), node: None } }
}

const SECOND: NodeId = NodeId(2);

/// A second node is admitted, which does nothing by itself: its replica of `__meta`.
fn admit_second(founder: &mut LoneNode) -> ReplicaId {
    let secret = [9; 32];
    founder.command(1, Command::CreateToken { secret_hash: token_hash(&secret), expires: Wall(1_000_000), uses: 1 });
    let address = NodeAddress { endpoint: EndpointId([2; 32]), ..NodeAddress::default() };
    let member = Member { name: "second".into(), address, versions: VersionRange::BINARY, ..Member::default() };
    founder.command(2, Command::AdmitNode { token_id: 1, secret, member });
    let admitted = founder.replies.iter().find_map(|(_, outcome)| match outcome {
        Ok(Reply::Command { result: CommandResult::NodeAdmitted { node: SECOND, meta_replica }, .. }) => {
            Some(*meta_replica)
        }
        _ => None,
    });
    admitted.unwrap_or_else(|| panic!("{:?}", founder.replies))
}

#[test]
fn a_join_is_answered_when_it_is_committed_and_not_before() {
    let mut founder = founder();
    let secret = [9; 32];
    founder.command(1, Command::CreateToken { secret_hash: token_hash(&secret), expires: Wall(1_000_000), uses: 1 });
    let [(RequestId(1), Ok(Reply::Command { result: CommandResult::TokenCreated { token_id }, .. }))] =
        founder.replies[..]
    else {
        panic!("{:?}", founder.replies)
    };
    founder.replies.clear();

    founder.disk_stuck = true;
    let address = NodeAddress { endpoint: EndpointId([2; 32]), ..NodeAddress::default() };
    let member = Member { name: "second".into(), address, ..Member::default() };
    founder.command(2, Command::AdmitNode { token_id, secret, member });
    founder.pass(500);
    assert!(founder.replies.is_empty(), "it is on no disk yet: {:?}", founder.replies);
    assert_eq!(founder.core.metadata().nodes.len(), 1);

    founder.disk_stuck = false;
    founder.settle();
    let admitted = |result: &CommandResult| matches!(result, CommandResult::NodeAdmitted { node: NodeId(2), .. });
    let [(RequestId(2), Ok(Reply::Command { result, .. }))] = &founder.replies[..] else {
        panic!("{:?}", founder.replies)
    };
    assert!(admitted(result) && founder.core.metadata().nodes.contains_key(&NodeId(2)), "{result:?}");
}

#[test]
fn a_write_that_fails_ends_the_node_and_nobody_is_told_of_success() {
    let mut founder = founder();
    founder.disk_stuck = true;
    founder.command(1, create_vm("web", 128));
    assert!(founder.replies.is_empty() && founder.stopped.is_none(), "{:?}", founder.replies);

    founder.disk_error = Some(DiskError::Io("the disk is broken".into()));
    founder.disk_stuck = false;
    founder.settle();
    let last_words = founder.last_words();
    assert!(last_words.ends_with("failed: the disk is broken"), "{last_words}");
    let [(RequestId(1), Err(told))] = &founder.replies[..] else { panic!("{:?}", founder.replies) };
    assert!(told.code == ErrorCode::ShuttingDown && told.message.contains(last_words), "{told}");
    let applied = founder.core.metadata().vm("web");
    assert!(applied.is_none() && founder.actions.is_empty(), "{applied:?}");

    // Behind its end nothing is carried out any more.
    founder.disk_error = None;
    founder.command(2, Command::RevokeToken { token_id: 9 });
    founder.pass(1_000);
    let [_, (RequestId(2), Err(told))] = &founder.replies[..] else { panic!("{:?}", founder.replies) };
    assert_eq!(told.code, ErrorCode::ShuttingDown);
}

/// What it sends to somebody who pulls the checkpoint that it was born with: bytes of it, if any.
fn pulled(founder: &mut LoneNode) -> Option<usize> {
    founder.sent.clear();
    let pull = CheckpointPull { group: GroupId::META, index: 1, offset: 0 };
    founder.tell(Event::Peer { from: NodeId(2), messages: vec![PeerMessage::CheckpointPull(pull)] });
    founder.sent.iter().find_map(|sent| match sent {
        PeerMessage::CheckpointChunk(chunk) => Some(chunk.data.len()),
        _ => None,
    })
}

#[test]
fn a_checkpoint_that_rotted_ends_its_node_and_is_sent_to_nobody() {
    let mut founder = founder();
    assert!(pulled(&mut founder).is_some_and(|bytes| bytes > 100) && founder.stopped.is_none());
    let of_checkpoint = |salt| founder.disk.some_bit(salt).filter(|bit| bit.to_string().starts_with("Checkpoint"));
    let bit = (0..1_000).find_map(of_checkpoint).expect("there is one");
    assert!(founder.disk.flip(&bit));
    assert_eq!(pulled(&mut founder), None);
    let last_words = founder.last_words();
    assert!(last_words.starts_with("checkpoint-0-1 is damaged at byte"), "{last_words}");
}

fn put(key: &str) -> Command {
    Command::PutKey { key: key.into(), value: Bytes::from_static(b"x"), expect: None, life: KeyLife::Lasting }
}

#[test]
fn a_checkpoint_is_of_one_moment_though_its_node_goes_on_while_it_is_made() {
    let mut config =
        CoreConfig { checkpoint_entries: 30, checkpoint_part_bytes: 1 << 20, ..of_founder(Formation::Bootstrap, 1) };
    config.me.versions = VersionRange::BINARY;
    let mut founder = LoneNode::run(config, VirtualDisk::new(1));
    founder.pass(1_000);
    let learner = admit_second(&mut founder);
    // Nobody waits for the checkpoint that is there: what is not heard is not waited for.
    founder.pass(5_000);
    let term = |founder: &LoneNode| founder.core.raft_status(GroupId::META).map(|status| status.term);
    let first_term = term(&founder).expect("it runs");

    // It begins, and does not end. Meanwhile there is more, also of another term.
    founder.work_stuck = true;
    for id in 100.. {
        founder.command(id, put(&format!("before{id}")));
        match founder.works[..] {
            [] => assert!(id < 200, "no checkpoint is made"),
            _ => break,
        }
    }
    let [Work::Encode { index, .. }] = founder.works[..] else { panic!("{:?}", founder.works) };
    founder.command(201, put("after201"));
    founder.now.mono = founder.now.mono.plus(Millis(10_000));
    founder.pass(5_000);
    founder.command(202, put("after202"));
    assert!(term(&founder) > Some(first_term) && founder.core.metadata().applied > index + 2);
    founder.work_stuck = false;
    founder.settle();

    // The learner says that it has nothing, and is offered the checkpoint.
    let to_learner = |sent: &PeerMessage| match sent {
        PeerMessage::Raft { message, .. } if message.to == learner => Some(message.clone()),
        _ => None,
    };
    let append = founder.sent.iter().rev().filter_map(to_learner).find(|it| it.kind == RaftMessageKind::Append);
    let RaftMessage { term, index: rejected, .. } = append.expect("it was told of the new leader");
    let answer = RaftMessage::new(RaftMessageKind::AppendResponse, learner, ReplicaId(1), term);
    let message = RaftMessage { reject: true, index: rejected, ..answer };
    founder.sent.clear();
    let messages = vec![PeerMessage::Raft { group: GroupId::META, message }];
    founder.tell(Event::Peer { from: SECOND, messages });
    let offered = founder.sent.iter().filter_map(to_learner).find_map(|it| it.snapshot).expect("it is offered");
    assert_eq!((offered.index, offered.term, offered.membership.learners), (index, first_term, vec![learner]));
    let pull = CheckpointPull { group: GroupId::META, index, offset: 0 };
    founder.tell(Event::Peer { from: SECOND, messages: vec![PeerMessage::CheckpointPull(pull)] });
    let chunk = founder.sent.iter().find_map(|sent| match sent {
        PeerMessage::CheckpointChunk(chunk) => Some(chunk),
        _ => None,
    });
    let state = Metadata::decode(&chunk.expect("it is sent").data).expect("all of it");
    let keys = |prefix| state.kv.range(prefix, None).count();
    assert_eq!((state.applied, keys("after")), (index, 0));
    assert_eq!(keys("before"), founder.core.metadata().kv.range("before", None).count());
}

#[test]
fn heartbeats_of_all_groups_to_one_node_leave_together() {
    let mut founder = founder();
    admit_second(&mut founder);
    let topic_id = TopicId([3; 16]);
    let (name, replication_factor, config) = ("many".to_owned(), None, Vec::new());
    founder.command(3, Command::CreateTopic { name, topic_id, partitions: 200, replication_factor, config });
    // The other node is there, and gets replicas. It acknowledges nothing.
    let tick = |founder: &mut LoneNode| {
        founder.tell(Event::Peer { from: SECOND, messages: Vec::new() });
        founder.pass(TICK.0);
    };
    (0..100).for_each(|_| tick(&mut founder));
    founder.sends.clear();
    let intervals = 20;
    (0..intervals * HEARTBEAT_INTERVAL.0 / TICK.0).for_each(|_| tick(&mut founder));

    let heartbeats = |messages: &[PeerMessage]| {
        let beats = |sent: &&PeerMessage| match sent {
            PeerMessage::Raft { message, .. } => message.kind == RaftMessageKind::Heartbeat,
            _ => false,
        };
        messages.iter().filter(beats).count() as u64
    };
    let control = founder.sends.iter().filter(|(to, channel, _)| (*to, *channel) == (SECOND, Channel::Control));
    let each: Vec<u64> = control.map(|(_, _, messages)| heartbeats(messages)).collect();
    let (sends, beats) = (each.len() as u64, each.iter().sum::<u64>());
    assert!(beats > intervals * 50, "{beats} heartbeats: hardly any group has a replica there");
    // Groups begin at one of the ticks of an interval, and each tick is a flush: so many sends, and no more.
    assert!(sends <= intervals * HEARTBEAT_INTERVAL.0 / TICK.0, "{sends} sends for {beats} heartbeats");
    assert!(each.iter().any(|together| *together >= 50), "{each:?}");
}

/// By how many entries all logs grow in a minute in which nobody asks for anything, while a VM waits for a node that
/// has room for it.
fn growth() -> u64 {
    let mut founder = founder();
    founder.command(1, create_vm("large", 1 << 20));
    founder.pass(5_000);
    assert!(founder.core.metadata().vm("large").is_some_and(|vm| vm.reason.contains("no node can take it")));
    let ends = |founder: &LoneNode| founder.core.status().groups.iter().map(|view| view.last_index).sum::<u64>();
    let before = ends(&founder);
    founder.pass(60_000);
    ends(&founder) - before
}

#[test]
fn a_cluster_that_nobody_asks_for_anything_stops_writing() {
    assert_eq!(growth(), 0);
    assert!(with_plant(Plant::ReasonsRepeated, growth) > 10);
}

#[test]
fn an_outage_of_the_metadata_group_stops_no_vm() {
    let mut founder = founder();
    founder.command(1, create_vm("web", 128));
    founder.pass(1_000);
    let [VmAction::Start(start)] = &founder.actions[..] else { panic!("{:?}", founder.actions) };
    let (vm, epoch, incarnation) = (start.vm, start.epoch, start.incarnation);
    for event in [VmReportEvent::Started, VmReportEvent::Ready] {
        founder.tell(Event::Vm(VmReport { vm, epoch, incarnation, event }));
    }
    let phase = |founder: &LoneNode| founder.core.metadata().vm("web").map(|vm| vm.phase);
    assert_eq!(phase(&founder), Some(VmPhase::Running));
    founder.actions.clear();

    // Nothing is decided any more. Then the process stands still for a while, after which nobody even leads.
    founder.disk_stuck = true;
    founder.command(2, Command::RevokeToken { token_id: 9 });
    founder.pass(10_000);
    founder.now.mono = founder.now.mono.plus(Millis(10_000));
    founder.pass(10 * 60_000);
    assert!(!founder.core.status().ready, "somebody leads");
    assert_eq!(founder.actions, []);

    founder.disk_stuck = false;
    founder.settle();
    founder.pass(5_000);
    let status = founder.core.status();
    assert!(status.ready, "{}", status.reason);
    assert_eq!((phase(&founder), founder.actions.len()), (Some(VmPhase::Running), 0), "{:?}", founder.actions);
}

/// Its process stands still for longer than an election timeout. Nobody else votes, so nobody else leads then.
fn stand_still(founder: &mut LoneNode) {
    founder.now.mono = founder.now.mono.plus(Millis(10_000));
}

/// A record for a partition (request 12), a VM (request 13), and what another node passed on (`FORWARDED`) are on their way to
/// a disk that is stuck.
fn with_requests_under_way() -> LoneNode {
    let mut founder = founder();
    let (name, topic_id, replication_factor) = ("kept".to_owned(), TopicId([3; 16]), None);
    founder.command(1, Command::CreateTopic { name, topic_id, partitions: 1, replication_factor, config: Vec::new() });
    founder.pass(5_000);
    let group = founder.core.metadata().topics.get("kept").expect("it was created").partitions[0];
    founder.replies.clear();
    founder.disk_stuck = true;
    let batches = vec![records::encode(&[1], 0, Producer::NONE)];
    let request = Request::Produce(Produce { group, acks: Acks::All, batches });
    let deadline = founder.now.mono.plus(REQUEST_DEADLINE_DEFAULT);
    founder.tell(Event::Request { id: RequestId(12), deadline, target: Target::Here, request });
    founder.command(13, create_vm("web", 128));
    let body = wire::encode(&(Request::Command(Command::RevokeToken { token_id: 9 }), None::<CommandOrigin>));
    let forward = Forward { id: FORWARDED, deadline_ms: REQUEST_DEADLINE_DEFAULT.0, body };
    founder.tell(Event::Peer { from: SECOND, messages: vec![PeerMessage::Forward(forward)] });
    // While it leads, it may yet learn what becomes of them.
    founder.pass(3_000);
    assert!(founder.replies.is_empty() && answers(&founder).is_empty(), "{:?}", founder.replies);
    founder
}

const FORWARDED: u64 = 7;

/// What it answered other nodes, as text where it is text.
fn answers(founder: &LoneNode) -> Vec<(u64, String)> {
    let answer = |sent: &PeerMessage| match sent {
        PeerMessage::ForwardReply(reply) => Some((reply.id, String::from_utf8_lossy(&reply.body).into_owned())),
        _ => None,
    };
    founder.sent.iter().filter_map(answer).collect()
}

/// A command that the second node passed on under its session comes right behind what else is on its way to the disk, which
/// is, if it is `forgotten`, that it is removed.
fn late_command_of_second(forgotten: bool) -> LoneNode {
    let mut founder = founder();
    admit_second(&mut founder);
    founder.command(3, Command::OpenSession { node: SECOND, incarnation: Incarnation(1) });
    let sessions = &founder.core.metadata().sessions;
    let session = sessions.iter().find(|(_, of)| of.node == SECOND).map(|(session, _)| *session);
    let origin = CommandOrigin { session: session.expect("it was opened"), sequence: 1, acknowledged: 0 };
    founder.disk_stuck = true;
    if forgotten {
        founder.command(4, Command::RemoveNode { node: SECOND, dead: true, successor: None });
        founder.command(5, Command::ForgetNode { node: SECOND });
    }
    let body = wire::encode(&(Request::Command(create_vm("late", 128)), Some(origin)));
    let forward = Forward { id: FORWARDED, deadline_ms: REQUEST_DEADLINE_DEFAULT.0, body };
    founder.tell(Event::Peer { from: SECOND, messages: vec![PeerMessage::Forward(forward)] });
    assert!(answers(&founder).is_empty(), "it is on no disk yet");
    founder.disk_stuck = false;
    founder.settle();
    founder
}

#[test]
fn a_command_of_a_node_that_is_forgotten_meanwhile_is_refused_and_not_applied() {
    let founder = late_command_of_second(false);
    assert!(founder.core.metadata().vm("late").is_some(), "{:?}", answers(&founder));

    let founder = late_command_of_second(true);
    let state = founder.core.metadata();
    assert!(state.departed.contains_key(&SECOND), "{:?}", founder.replies);
    let answered = answers(&founder);
    let [(FORWARDED, text)] = &answered[..] else { panic!("{answered:?}") };
    assert!(text.contains("is unknown or ended") && state.vm("late").is_none(), "{text:?}");
    assert!(founder.stopped.is_none(), "{:?}", founder.stopped);
}

#[test]
fn who_waits_at_a_former_leader_whose_disk_is_stuck_is_told_and_a_command_is_still_carried_out_once() {
    let mut founder = with_requests_under_way();
    stand_still(&mut founder);
    founder.pass(500);
    let [(RequestId(12), Err(told))] = &founder.replies[..] else { panic!("{:?}", founder.replies) };
    assert!(told.code == ErrorCode::LeaderChanged && told.message.contains("disk is stuck"), "{told}");
    let answered = answers(&founder);
    let [(FORWARDED, text)] = &answered[..] else { panic!("{answered:?}") };
    assert!(text.contains("disk is stuck"), "{text:?}");
    assert!(founder.core.metadata().vm("web").is_none());
    assert!(founder.core.vitals(0).queues.requests_waiting > 0, "the command waits for a leader");

    // What its own client asked for is tried again, and stood in the log all the while.
    founder.disk_stuck = false;
    founder.settle();
    founder.pass(5_000);
    let [_, (RequestId(13), Ok(_))] = &founder.replies[..] else { panic!("{:?}", founder.replies) };
    assert!(founder.core.metadata().vm("web").is_some());
    assert_eq!(answers(&founder).len(), 1, "it was answered");
}

#[test]
fn what_waits_for_a_stuck_disk_is_told_as_the_depths_of_queues() {
    let mut founder = with_requests_under_way();
    let queues = founder.core.vitals(0).queues;
    // The record, the command, and what was forwarded, which is another node's request.
    assert!(queues.requests >= 2 && queues.proposals >= 3 && queues.rounds > 0, "{queues:?}");
    assert_eq!((queues.requests_waiting, queues.unapplied), (0, 0), "it leads, and nothing new is committed");
    founder.disk_stuck = false;
    founder.settle();
    founder.pass(5_000);
    let queues = founder.core.vitals(0).queues;
    assert_eq!((queues.requests, queues.proposals, queues.rounds), (0, 0, 0), "{queues:?}");
}

#[test]
fn who_waits_at_a_former_leader_whose_disk_moves_is_told_what_became_of_it() {
    let mut founder = with_requests_under_way();
    stand_still(&mut founder);
    founder.disk_stuck = false;
    founder.pass(5_000);
    let mut answered: Vec<(u64, bool)> = founder.replies.iter().map(|(id, outcome)| (id.0, outcome.is_ok())).collect();
    answered.sort_unstable();
    assert_eq!(answered, [(12, true), (13, true)], "{:?}", founder.replies);
    assert!(founder.core.metadata().vm("web").is_some());
}

/// Bytes of a checkpoint, at most, and what the state may have of it.
const CONFINED: u64 = 4 << 20;
const ROOM: u64 = 3 << 20;
/// What each topic takes.
const LARGE: usize = 64 << 10;

/// One that cannot make large checkpoints, after it has done what it can by itself.
fn confined(formation: Formation, incarnation: u64, disk: VirtualDisk) -> LoneNode {
    let (checkpoint_bytes_max, checkpoint_part_bytes) = (CONFINED, 256 << 10);
    let config = CoreConfig { checkpoint_bytes_max, checkpoint_part_bytes, ..of_founder(formation, incarnation) };
    let mut node = LoneNode::run(config, disk);
    node.pass(5_000);
    let status = node.core.status();
    assert!(status.ready, "{}", status.reason);
    node
}

impl LoneNode {
    /// What came of a command; `Err` with what was said to its client.
    fn outcome(&mut self, id: u64, command: Command) -> Result<(), (ErrorCode, String)> {
        self.replies.clear();
        self.command(id, command);
        let mut waited_ms = 0;
        while self.replies.is_empty() && waited_ms < 10_000 {
            self.pass(50);
            waited_ms += 50;
        }
        match &self.replies[..] {
            [(RequestId(asked), outcome)] if *asked == id => match outcome {
                Ok(_) => Ok(()),
                Err(refused) => Err((refused.code, refused.message.clone())),
            },
            other => panic!("{other:?}"),
        }
    }

    fn create_large(&mut self, id: u64) -> Result<(), (ErrorCode, String)> {
        let config = vec![("note".to_owned(), "x".repeat(LARGE))];
        let topic_id = TopicId([id as u8; 16]);
        let name = format!("t{id}");
        let replication_factor = None;
        self.outcome(id, Command::CreateTopic { name, topic_id, partitions: 1, replication_factor, config })
    }

    fn state_bytes(&self) -> u64 {
        self.core.metadata().encode().len() as u64
    }
}

#[test]
fn the_state_is_full_before_it_outgrows_what_a_checkpoint_can_carry() {
    let mut node = confined(Formation::Bootstrap, 1, VirtualDisk::new(1));
    // Made and deleted again: that fills nothing, however often it counted for more than it was.
    for id in 1..=60 {
        node.create_large(id).expect("there is room");
        node.outcome(1_000 + id, Command::DeleteTopic { name: format!("t{id}") }).expect("it goes");
    }
    let mut id = 100;
    let refused = loop {
        match node.create_large(id) {
            Ok(()) => id += 1,
            Err(refused) => break refused,
        }
        assert!(id < 200, "never full, with {} bytes", node.state_bytes());
    };
    assert!(refused.0 == ErrorCode::TooLarge && refused.1.contains("Delete topics, VMs or keys"), "{refused:?}");
    // Full is full: not long before, and never beyond.
    let full = node.state_bytes();
    assert!((ROOM / 3 * 2..=ROOM).contains(&full), "{full} of {ROOM} bytes");
    assert_eq!((node.stopped.as_deref(), &node.warnings[..]), (None, &[] as &[String]));

    // The next process knows it, before it has made a checkpoint of its own.
    let mut node = confined(Formation::Restart, 2, node.disk);
    assert_eq!(node.create_large(id).expect_err("full").0, ErrorCode::TooLarge);
    for gone in 100..105 {
        node.outcome(1_000 + gone, Command::DeleteTopic { name: format!("t{gone}") }).expect("it goes");
    }
    // What was full is measured anew once somebody was refused; the next one finds room.
    if let Err(refused) = node.create_large(id) {
        assert_eq!(refused.0, ErrorCode::TooLarge);
        node.pass(1_000);
        node.create_large(id).expect("there is room again");
    }
    assert!(node.state_bytes() < full && node.stopped.is_none(), "{:?}", node.stopped);
}
