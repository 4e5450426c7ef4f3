//! A small cluster for tests: the real tables of `__meta`, and nodes that answer, fail, or never answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use base::{ClusterId, EndpointId, ErrorCode, GroupId, Histogram, Millis, Mono, NodeId, Now, ReplicaId, VmEpoch, Wall};
use engine::{
    Arrivals, Elections, GroupTotals, GroupView, GroupVitals, NodeStatus, Queues, Reply, Request, RequestError, Target,
    Ticks, Vitals,
};
use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::{BoxFuture, pending, ready};
use futures::{FutureExt, StreamExt};
use metadata::{Command, CommandEnvelope, Metadata};
use ops::{Clock, Ended, Invocation, LoopbackOnly, Observer, OpError, Output, Pipeline, Record};
use serde_json::Value;
use wire::{Capabilities, Member, NodeAddress, Pace};

use crate::{ConsoleFrom, ConsoleLine, ConsoleLog, Core, Images, LineStream, Ports, Random, TaskView, Tasks};

/// How a node takes questions.
#[derive(Clone)]
pub(crate) enum Mood {
    Ready,
    Joining(&'static str),
    Fails(&'static str),
    Hangs,
}

struct State {
    metadata: Metadata,
    moods: BTreeMap<NodeId, Mood>,
    paces: BTreeMap<NodeId, Pace>,
    waiting: Vec<(u64, oneshot::Sender<Arc<Metadata>>)>,
    leader: Option<NodeId>,
    now: Mono,
    /// The latest deadline of what the core was asked.
    last_deadline: Mono,
    renewals_hang: bool,
    answers_lost: bool,
}

/// The tables and the nodes.
pub(crate) struct World {
    state: Mutex<State>,
    /// Whether sleepers wake at once (nothing else is going to happen).
    hurry: AtomicBool,
    /// Whether callers may hang up.
    hang_ups: AtomicBool,
    records: Mutex<Vec<Record>>,
    /// What the next random bytes all are.
    random: AtomicU8,
}

const WALL: i64 = 1_700_000_000_000;

impl World {
    /// A cluster of ready nodes `node1`.. of which the first leads everything.
    pub fn new(nodes: u64) -> Arc<World> {
        let mut metadata = Metadata::bootstrap(ClusterId([0xab; 16]), member(1), Wall(WALL));
        let hash = metadata::token_hash(&[0; 32]);
        let uses = u32::try_from(nodes).unwrap();
        let token = Command::CreateToken { secret_hash: hash, expires: Wall(WALL * 2), uses };
        apply(&mut metadata, Wall(WALL), token);
        for node in 2..=nodes {
            let admitted = Command::AdmitNode { token_id: 1, secret: [0; 32], member: member(node) };
            apply(&mut metadata, Wall(WALL), admitted);
        }
        apply(&mut metadata, Wall(WALL), Command::RevokeToken { token_id: 1 });
        let moods = (1..=nodes).map(|node| (NodeId(node), Mood::Ready)).collect();
        Arc::new(World {
            state: Mutex::new(State {
                metadata,
                moods,
                paces: BTreeMap::new(),
                waiting: Vec::new(),
                leader: Some(NodeId(1)),
                now: Mono(0),
                last_deadline: Mono(0),
                renewals_hang: false,
                answers_lost: false,
            }),
            hurry: true.into(),
            hang_ups: false.into(),
            records: Mutex::default(),
            random: AtomicU8::new(7),
        })
    }

    pub fn mood(&self, node: u64, mood: Mood) {
        self.state.lock().unwrap().moods.insert(NodeId(node), mood);
    }

    /// A node says from now on how fast its groups beat and elect.
    pub fn pace(&self, node: u64, pace: Pace) {
        self.state.lock().unwrap().paces.insert(NodeId(node), pace);
    }

    pub fn no_leader(&self) {
        self.state.lock().unwrap().leader = None;
    }

    /// Whoever renews a lease waits for the answer from now on.
    pub fn renewals_hang(&self) {
        self.state.lock().unwrap().renewals_hang = true;
    }

    /// Commands are carried out from now on, and whoever gave them waits for the answer.
    pub fn answers_are_lost(&self, lost: bool) {
        self.state.lock().unwrap().answers_lost = lost;
    }

    /// Time passes; nobody wakes of it.
    pub fn pass(&self, span: Millis) {
        let mut state = self.state.lock().unwrap();
        state.now = state.now.plus(span);
    }

    /// Until when the last of all that the core was asked so far may take.
    pub fn last_deadline(&self) -> Mono {
        self.state.lock().unwrap().last_deadline
    }

    /// Sleepers no longer wake by themselves.
    pub fn patient(&self) {
        self.hurry.store(false, Ordering::SeqCst);
    }

    /// Callers may hang up from now on.
    pub fn hang_ups(&self) {
        self.hang_ups.store(true, Ordering::SeqCst);
    }

    /// Applies a command, as if it came from elsewhere.
    pub fn apply(&self, command: Command) -> metadata::CommandResult {
        let mut state = self.state.lock().unwrap();
        let wall = wall_at(state.now);
        let result = apply(&mut state.metadata, wall, command);
        let (applied, now) = (state.metadata.applied, Arc::new(state.metadata.clone()));
        let (due, waiting) = std::mem::take(&mut state.waiting).into_iter().partition(|(after, _)| applied > *after);
        state.waiting = waiting;
        let due: Vec<(u64, oneshot::Sender<Arc<Metadata>>)> = due;
        due.into_iter().for_each(|(_, sender)| drop(sender.send(Arc::clone(&now))));
        result
    }

    /// Places a VM and says what its node reports.
    pub fn vm_events(&self, name: &str, node: u64, events: &[compute::VmReportEvent]) {
        let (vm, epoch) = {
            let state = self.state.lock().unwrap();
            let vm = state.metadata.vm(name).unwrap();
            (vm.id, VmEpoch(vm.epoch.0 + 1))
        };
        self.apply(Command::AssignVm { vm, node: NodeId(node), epoch, placement: "the only one".into() });
        for event in events {
            let incarnation = self.state.lock().unwrap().metadata.vm(name).unwrap().incarnation;
            let report = compute::VmReport { vm, epoch, incarnation, event: event.clone() };
            let result = self.apply(Command::ReportVm { node: NodeId(node), report });
            assert_eq!(result, metadata::CommandResult::Done);
        }
    }

    /// Where the calls of a node are carried out; each is another node's.
    pub fn pipeline(self: &Arc<Self>) -> Pipeline<Ports> {
        let ports = Ports {
            core: Arc::clone(self) as Arc<dyn Core>,
            console: Arc::clone(self) as Arc<dyn ConsoleLog>,
            images: Arc::clone(self) as Arc<dyn Images>,
            random: Arc::clone(self) as Arc<dyn Random>,
            tasks: Arc::clone(self) as Arc<dyn Tasks>,
        };
        Pipeline::new(
            Arc::new(crate::registry().unwrap()),
            Arc::new(ports),
            Arc::clone(self) as Arc<dyn Clock>,
            Arc::new(LoopbackOnly),
            Arc::clone(self) as Arc<dyn Observer>,
        )
    }

    /// Carries out an operation as the principal `local`.
    pub fn output(self: &Arc<Self>, operation: &str, input: Value) -> Result<Output, OpError> {
        self.output_of(call(operation, input))
    }

    fn output_of(self: &Arc<Self>, invocation: Invocation) -> Result<Output, OpError> {
        let operation = invocation.operation.clone();
        let result = block_on(self.pipeline().invoke(invocation));
        for record in self.records.lock().unwrap().drain(..) {
            assert!(!record.undeclared, "{operation} fails with what it does not declare: {record:?}");
        }
        result
    }

    /// The same, of one value.
    pub fn value(self: &Arc<Self>, operation: &str, input: Value) -> Result<Value, OpError> {
        match self.output(operation, input)? {
            Output::Value(value) => Ok(value),
            Output::Stream(_) => panic!("{operation} streams"),
        }
    }

    /// The same, under an Idempotency-Key.
    pub fn keyed(self: &Arc<Self>, key: &str, operation: &str, input: Value) -> Result<Value, OpError> {
        match self.output_of(Invocation { idempotency_key: Some(key.into()), ..call(operation, input) })? {
            Output::Value(value) => Ok(value),
            Output::Stream(_) => panic!("{operation} streams"),
        }
    }

    /// The same, of a stream, to its end.
    pub fn items(self: &Arc<Self>, operation: &str, input: Value) -> Result<Vec<Result<Value, OpError>>, OpError> {
        match self.output(operation, input)? {
            Output::Stream(items) => Ok(block_on(items.collect())),
            Output::Value(_) => panic!("{operation} does not stream"),
        }
    }

    /// The output as people see it.
    pub fn shown(self: &Arc<Self>, operation: &str, input: Value) -> String {
        let value = self.value(operation, input).unwrap();
        let registry = crate::registry().unwrap();
        match registry.get(operation).unwrap().spec().human {
            ops::Human::Fields => ops::human::fields(&value),
            ops::Human::Record(columns) => ops::human::record(columns, &value),
            ops::Human::Text(text) | ops::Human::Bytes { text, .. } => text(&value),
            ops::Human::Table { rows, columns, empty } => match value.pointer(rows).and_then(Value::as_array) {
                Some(rows) if !rows.is_empty() => ops::human::json_table(columns, rows),
                _ => empty.into(),
            },
        }
    }
}

/// A call as a test makes it.
pub(crate) fn call(operation: &str, input: Value) -> Invocation {
    Invocation { door: "test", operation: operation.into(), input, ..Default::default() }
}

fn member(node: u64) -> Member {
    let byte = u8::try_from(node).unwrap();
    Member {
        node: NodeId(node),
        name: format!("node{node}"),
        address: NodeAddress {
            endpoint: EndpointId([byte; 32]),
            direct: vec![format!("10.0.0.{node}:7401")],
            relay_url: None,
            kafka: format!("10.0.0.{node}:9092"),
            api: format!("10.0.0.{node}:7400"),
        },
        capabilities: Capabilities { cores: 4, memory_mib: 2048, ..Capabilities::default() },
        labels: BTreeMap::new(),
        store: node,
        versions: base::VersionRange::BINARY,
    }
}

fn apply(metadata: &mut Metadata, wall: Wall, command: Command) -> metadata::CommandResult {
    let index = metadata.applied + 1;
    metadata.apply(index, &CommandEnvelope::new(None, wall, command))
}

/// What a clock on the wall shows then.
fn wall_at(now: Mono) -> Wall {
    Wall(WALL).plus(now.since(Mono(0)))
}

fn error(code: ErrorCode, message: &str) -> RequestError {
    RequestError { code, message: message.into(), leader: None }
}

impl State {
    fn status(&self, node: NodeId) -> BoxFuture<'static, Result<Reply, RequestError>> {
        let (is_ready, reason) = match self.moods.get(&node) {
            Some(Mood::Ready) => (true, ""),
            Some(Mood::Joining(reason)) => (false, *reason),
            Some(Mood::Fails(reason)) => return ready(Err(error(ErrorCode::Unreachable, reason))).boxed(),
            Some(Mood::Hangs) | None => return pending().boxed(),
        };
        let groups = [GroupId::META].into_iter().chain(self.metadata.partitions.keys().copied());
        let status = NodeStatus {
            node,
            ready: is_ready,
            reason: reason.into(),
            meta_applied: self.metadata.applied,
            groups: groups.map(|group| self.view(node, group)).collect(),
            meta_voters: self.metadata.nodes.keys().copied().collect(),
            pace: self.paces.get(&node).copied(),
            ..NodeStatus::default()
        };
        ready(Ok(Reply::Status(Box::new(status)))).boxed()
    }

    /// A node that answers beat three times, once late, and committed something in 1.5 ms. Whatever else it counts is another
    /// number each time, and on each node.
    fn vitals(&self, node: NodeId) -> BoxFuture<'static, Result<Reply, RequestError>> {
        match self.moods.get(&node) {
            Some(Mood::Fails(reason)) => return ready(Err(error(ErrorCode::Unreachable, reason))).boxed(),
            Some(Mood::Hangs) | None => return pending().boxed(),
            Some(Mood::Ready | Mood::Joining(_)) => {}
        }
        let (mut sent, mut committed) = (Histogram::default(), Histogram::default());
        [150_000, 200_000, 200_001].into_iter().for_each(|us| sent.observe_us(us));
        committed.observe_us(1_500);
        let view = |(group, term): (GroupId, u64)| GroupVitals {
            group,
            term,
            leader: self.leader,
            elections: Elections { started: 2, leader_changes: term - 1, ..Elections::default() },
            commit: 9,
            applied: 9 - node.0,
        };
        let groups = [(GroupId::META, 2)].into_iter().chain(self.metadata.partitions.keys().map(|group| (*group, 5)));
        let its = |number: u64| 100 * node.0 + number;
        let vitals = Vitals {
            node,
            counted_ms: 61_000,
            elections: Elections {
                pre_votes: its(21),
                started: its(22),
                won: its(23),
                term_changes: its(24),
                leader_changes: its(25),
                step_downs: its(26),
            },
            ticks: Ticks { passed: its(31), skipped: its(32), pauses: its(33) },
            heartbeats_sent: sent.distribution(),
            committed: committed.distribution(),
            heartbeat_interval_ms: 150,
            queues: Queues {
                requests: its(41),
                requests_waiting: its(42),
                proposals: its(43),
                rounds: its(44),
                unapplied: its(45),
                unapplied_max: its(46),
                log_reads: its(47),
                questions: its(48),
                outbox: its(49),
            },
            groups: GroupTotals {
                all: its(51),
                led: its(52),
                without_leader: its(53),
                recovering: its(54),
                term_max: its(55),
            },
            arrivals: Some(Arrivals {
                control: its(61),
                bulk: its(62),
                disk: its(63),
                vms: its(64),
                requests: its(65),
            }),
            listed: groups.map(view).collect(),
            ..Vitals::default()
        };
        ready(Ok(Reply::Vitals(Box::new(vitals)))).boxed()
    }

    fn view(&self, node: NodeId, group: GroupId) -> GroupView {
        GroupView {
            group,
            replica: ReplicaId(node.0),
            role: if self.leader == Some(node) { "leader" } else { "follower" }.into(),
            term: 2,
            leader: self.leader,
            commit: self.metadata.applied,
            applied: self.metadata.applied,
            last_index: self.metadata.applied,
            high_watermark: (group != GroupId::META).then_some(5),
        }
    }
}

impl Core for World {
    fn me(&self) -> NodeId {
        NodeId(1)
    }

    fn request(
        &self,
        target: Target,
        deadline: Mono,
        request: Request,
    ) -> BoxFuture<'static, Result<Reply, RequestError>> {
        let leader = {
            let mut state = self.state.lock().unwrap();
            state.last_deadline = state.last_deadline.max(deadline);
            state.leader
        };
        match (request, target) {
            (Request::Status, Target::Here) => self.state.lock().unwrap().status(NodeId(1)),
            (Request::Status, Target::Node(node)) => self.state.lock().unwrap().status(node),
            (Request::Vitals { .. }, Target::Here) => self.state.lock().unwrap().vitals(NodeId(1)),
            (Request::Vitals { .. }, Target::Node(node)) => self.state.lock().unwrap().vitals(node),
            (Request::Command(_) | Request::Barrier | Request::KeepLease { .. }, _) if leader.is_none() => {
                ready(Err(error(ErrorCode::NoLeader, "no leader yet: term 7, 1 of 3 votes"))).boxed()
            }
            (Request::Command(command), Target::Leader(GroupId::META)) => {
                let result = self.apply(command);
                let state = self.state.lock().unwrap();
                if state.answers_lost {
                    return pending().boxed();
                }
                ready(Ok(Reply::Command { index: state.metadata.applied, result })).boxed()
            }
            (Request::KeepLease { lease }, Target::Leader(GroupId::META)) => {
                let state = self.state.lock().unwrap();
                if state.renewals_hang {
                    return pending().boxed();
                }
                let kept =
                    state.metadata.kv.leases.get(&lease).map(|record| Reply::LeaseKept { ttl_ms: record.ttl_ms });
                ready(kept.ok_or_else(|| error(ErrorCode::NotFound, &metadata::no_lease(lease)))).boxed()
            }
            (Request::Barrier, Target::Here) => ready(Ok(Reply::Done)).boxed(),
            (request, target) => panic!("{request:?} is not for {target:?}"),
        }
    }

    fn metadata(&self) -> Arc<Metadata> {
        Arc::new(self.state.lock().unwrap().metadata.clone())
    }

    fn metadata_after(&self, applied: u64) -> BoxFuture<'static, Arc<Metadata>> {
        let mut state = self.state.lock().unwrap();
        if state.metadata.applied > applied {
            return ready(Arc::new(state.metadata.clone())).boxed();
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.push((applied, sender));
        receiver.map(|metadata| metadata.unwrap()).boxed()
    }
}

impl Clock for World {
    fn now(&self) -> Now {
        let mono = self.state.lock().unwrap().now;
        Now { mono, wall: wall_at(mono) }
    }

    fn sleep_until(&self, _: Mono) -> BoxFuture<'static, ()> {
        if self.hurry.load(Ordering::SeqCst) { YieldOnce(false).boxed() } else { pending().boxed() }
    }
}

/// Lets everything else that is ready go first, so that a sleeper never wins against an answer that is there.
struct YieldOnce(bool);

impl Future for YieldOnce {
    type Output = ();
    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    }
}

impl ConsoleLog for World {
    fn read(
        &self,
        topic: &str,
        from: ConsoleFrom,
        follow: bool,
        _: Mono,
    ) -> BoxFuture<'static, Result<LineStream, RequestError>> {
        let line = format!("{topic} {from:?} {follow}");
        let lines = [Ok(ConsoleLine { offset: 0, timestamp_ms: 1, line })];
        ready(Ok(futures::stream::iter(lines).boxed())).boxed()
    }
}

impl Images for World {
    fn names(&self) -> Vec<String> {
        vec!["minimal".into(), "full".into()]
    }
}

impl Random for World {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RequestError> {
        bytes.fill(self.random.fetch_add(1, Ordering::SeqCst));
        Ok(())
    }
}

impl Tasks for World {
    fn list(&self, node: NodeId, _: Mono) -> BoxFuture<'static, Result<Vec<TaskView>, RequestError>> {
        match self.state.lock().unwrap().moods.get(&node) {
            Some(Mood::Fails(reason)) => ready(Err(error(ErrorCode::Unreachable, reason))).boxed(),
            Some(Mood::Hangs) | None => pending().boxed(),
            _ => ready(Ok(vec![TaskView {
                path: "engine".into(),
                state: "running".into(),
                since_ms: 5_000,
                restarts: 0,
                cause: None,
            }]))
            .boxed(),
        }
    }
}

impl Observer for World {
    fn audit(&self, record: &Record) {
        assert!(record.ended != Ended::Abandoned || self.hang_ups.load(Ordering::SeqCst), "{record:?}");
        self.records.lock().unwrap().push(record.clone());
    }
    fn metrics(&self, _: &Record) {}
}
