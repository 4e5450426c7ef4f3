//! Requests: taken anywhere, carried out where they belong, answered exactly once, by the deadline.
//!
//! A request that this node took is *pending* here until it is answered, wherever it is carried out. It waits while no
//! leader is known, is forwarded to the leader (which carries it out or refuses it, and never passes it on), and is
//! tried again when that is safe: commands carry a session and sequence, so a retry is applied once.

mod forwards;
mod held;
mod reads;
mod shared;

use std::collections::{BTreeMap, BTreeSet};

use base::limits::{DRIVER_QUESTIONS_MAX, REQUEST_DEADLINE_MAX, REQUESTS_PENDING_MAX, STEP_DOWN_HOLD};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{ErrorCode, GroupId, Incarnation, Millis, Mono, NodeId, RequestId};
use metadata::{Command, CommandEnvelope, CommandOrigin, CommandResult};
use multiraft::{Proposal, Role};
use wire::EntryKind;

use crate::core::{NodeCore, Stage};
use crate::groups::{Awaited, Group, Waiter};
use crate::once::Once;
use crate::requests::reads::{OnceConfirmed, ReadPoints};
use crate::requests::shared::SharedReads;
use crate::{Effect, Event, Reply, Request, RequestError, Target};

/// Who was silent for this long has no replicas born on it: some rounds of gossip ([`base::limits::GOSSIP_INTERVAL`]).
const BIRTH_SILENCE: Millis = Millis(500);

/// Who is to be answered by whoever carries a request out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A pending request of this node.
    Local(u64),
    /// Another node's.
    Remote {
        node: NodeId,
        id: u64,
        /// When that node stops waiting.
        deadline: Mono,
    },
}

impl Origin {
    /// When nobody waits any more; of this node's own requests that is known elsewhere.
    fn deadline(self) -> Option<Mono> {
        match self {
            Origin::Local(_) => None,
            Origin::Remote { deadline, .. } => Some(deadline),
        }
    }
}

/// Who is to be told in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Somebody outside.
    Request(RequestId),
    /// The core itself.
    Internal(Internal),
}

/// What the core asks of the cluster on its own behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Internal {
    OpenSession,
    UpdateNode,
    VmReport,
    VmBarrier,
    Publish { sequence: u64 },
    MembersTold(GroupId),
}

/// Where a pending request stands.
#[derive(Clone, Debug, PartialEq)]
enum Wait {
    /// For a leader, a session, or the end of recovery: tried again each tick.
    Queued,
    /// For another request of this node.
    Held,
    /// For another node's answer to what was sent under that name.
    Forwarded { to: NodeId, send: u64 },
    /// Carried out here.
    Executing,
    /// Done elsewhere; this node has yet to apply that index.
    Applied { index: u64, reply: Reply },
}

struct Pending {
    client: Client,
    deadline: Mono,
    target: Target,
    request: Request,
    command: Option<CommandOrigin>,
    wait: Wait,
    /// The names under which it was sent to other nodes.
    sends: Vec<u64>,
    /// An earlier try may have been carried out, or may still be.
    tried: bool,
    /// The last try was refused so, and another is due.
    busy: Option<RequestError>,
}

/// The requests that this node took.
#[derive(Default)]
pub(crate) struct Requests {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    queued: BTreeSet<u64>,
    /// By the request whose outcome they wait for.
    held: BTreeMap<u64, Vec<u64>>,
    deadlines: BTreeSet<(Mono, u64)>,
    /// Requests by the names under which they were sent. Each sending has one of its own, so that neither a second copy of it
    /// nor a second copy of its answer passes for a later one.
    sent: BTreeMap<u64, u64>,
    /// When to look whether something that was sent is still unanswered.
    forward_again: BTreeSet<(Mono, u64)>,
    applied: BTreeSet<(u64, u64)>,
    /// Questions that the driver answers, by ticket.
    tickets: BTreeMap<u64, Origin>,
    next_ticket: u64,
    /// What other nodes asked for: no copy is carried out, or refused, again.
    once: BTreeMap<NodeId, Once>,
    reads: ReadPoints,
    shared: SharedReads,
}

impl Requests {
    /// A question that the driver will answer; `None` while it has as many as it may.
    fn ticket(&mut self, origin: Origin) -> Option<u64> {
        if self.tickets.len() >= DRIVER_QUESTIONS_MAX {
            return None;
        }
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, origin);
        Some(self.next_ticket)
    }

    /// How many there are, and wait.
    pub fn depths(&self, queues: &mut crate::Queues) {
        queues.requests = self.pending.len() as u64;
        queues.requests_waiting = self.queued.len() as u64;
        queues.questions = self.tickets.len() as u64;
    }

    /// Whether a node asks this for the first time.
    fn first_time(&mut self, from: NodeId, id: u64) -> bool {
        planted(Plant::ForwardsCarriedOutTwice) || self.once.entry(from).or_default().first_time(id)
    }
}

impl Requests {
    /// None yet. Names of requests are never used again by a later process of the node: an answer to the process before
    /// must not pass for one to this.
    pub fn new(incarnation: Incarnation) -> Self {
        let next = if planted(Plant::RequestNamesReused) { 0 } else { incarnation.0 << 40 };
        Requests { next, ..Requests::default() }
    }
}

pub(crate) fn error(code: ErrorCode, message: impl Into<String>) -> RequestError {
    RequestError { code, message: message.into(), leader: None }
}

/// So many of `what` are under way that no more are taken.
pub(crate) fn busy(most: usize, what: &str) -> RequestError {
    error(ErrorCode::Busy, format!("{most} {what} are under way: try again later"))
}

impl NodeCore {
    pub(crate) fn take_request(&mut self, id: RequestId, deadline: Mono, target: Target, request: Request) {
        if self.requests.pending.len() >= REQUESTS_PENDING_MAX {
            let outcome = Err(busy(REQUESTS_PENDING_MAX, "requests"));
            return self.effects.push(Effect::Reply { id, outcome });
        }
        let (target, request) = match (target, request) {
            // A barrier is a read point of the leader that is then waited for here.
            (_, Request::Barrier) => (Target::Leader(GroupId::META), Request::ReadPoint),
            other => other,
        };
        self.submit(Client::Request(id), deadline, target, request);
    }

    /// Asks something of the cluster on the core's own behalf.
    pub(crate) fn ask(&mut self, what: Internal, target: Target, request: Request) {
        let deadline = self.now.mono.plus(REQUEST_DEADLINE_MAX);
        self.submit(Client::Internal(what), deadline, target, request);
    }

    fn submit(&mut self, client: Client, deadline: Mono, target: Target, request: Request) {
        self.requests.next += 1;
        let key = self.requests.next;
        let wait = Wait::Queued;
        let pending = Pending {
            client,
            deadline,
            target,
            request,
            command: None,
            wait,
            sends: Vec::new(),
            tried: false,
            busy: None,
        };
        self.requests.pending.insert(key, pending);
        self.requests.deadlines.insert((deadline, key));
        self.begin(key);
    }

    /// Takes a queued request as far as it gets now.
    fn advance(&mut self, key: u64) {
        let Some(pending) = self.requests.pending.get_mut(&key) else { return };
        if pending.wait != Wait::Queued {
            return;
        }
        if self.stage < Stage::Running {
            match pending.request {
                Request::Status => {
                    let status = self.status();
                    self.resolve(key, Ok(Reply::Status(Box::new(status))));
                }
                Request::Vitals { listed_max } => {
                    let vitals = self.vitals(listed_max as usize);
                    self.resolve(key, Ok(Reply::Vitals(Box::new(vitals))));
                }
                _ => {}
            }
            return;
        }
        if matches!(&pending.request, Request::Command(command) if !matches!(command, Command::OpenSession { .. }))
            && pending.command.is_none()
        {
            match self.session.next() {
                Some(origin) => pending.command = Some(origin),
                None => return,
            }
        }
        let (request, command, target) = (pending.request.clone(), pending.command, pending.target);
        match target {
            Target::Here => self.execute_pending(key, request, command),
            Target::Node(node) if node == self.me() => self.execute_pending(key, request, command),
            Target::Node(node) => self.forward(key, node, request, command),
            Target::Leader(group) if self.groups.get(&group).is_some_and(|g| g.active) => {
                self.execute_pending(key, request, command);
            }
            Target::Leader(group) => {
                let leader = self.leaders.leader(group).filter(|node| *node != self.me());
                if let Some(node) = leader.filter(|node| self.peers.reachable(*node, self.now.mono))
                    && !(request == Request::ReadPoint && self.shares_read_point(key))
                {
                    self.forward(key, node, request, command);
                }
            }
        }
    }

    fn execute_pending(&mut self, key: u64, request: Request, command: Option<CommandOrigin>) {
        self.set_wait(key, Wait::Executing);
        self.execute(Origin::Local(key), request, command);
    }

    fn set_wait(&mut self, key: u64, wait: Wait) {
        match wait {
            Wait::Queued => drop(self.requests.queued.insert(key)),
            _ => drop(self.requests.queued.remove(&key)),
        }
        if let Some(pending) = self.requests.pending.get_mut(&key) {
            pending.wait = wait;
        }
    }

    /// Carries a request out on this node, or refuses it.
    fn execute(&mut self, origin: Origin, request: Request, command: Option<CommandOrigin>) {
        match request {
            Request::Command(body) => self.propose_command(Some(origin), command, body),
            Request::Produce(produce) => self.produce(origin, produce),
            Request::ReadLog(read) => self.read_log(origin, &read),
            Request::Status => {
                let status = self.status();
                self.answer(origin, Ok(Reply::Status(Box::new(status))));
            }
            Request::Vitals { listed_max } => {
                let vitals = self.vitals(listed_max as usize);
                self.answer(origin, Ok(Reply::Vitals(Box::new(vitals))));
            }
            Request::ReadPoint => self.ask_read_point(origin, OnceConfirmed::TellIndex),
            Request::KeepLease { lease } => self.ask_read_point(origin, OnceConfirmed::KeepLease(lease)),
            Request::Tasks => self.ask_driver(origin, |ticket| Effect::ListTasks { ticket }),
            Request::ReadPartition(read) if self.groups.get(&read.group).is_some_and(|g| g.active) => {
                self.ask_driver(origin, |ticket| Effect::ReadPartition { ticket, read });
            }
            Request::ReadPartition(read) => {
                let refusal = self.not_leader(read.group);
                self.answer(origin, Err(refusal));
            }
            Request::Barrier => {
                self.answer(origin, Err(error(ErrorCode::InvalidArgument, "a barrier is not forwarded")));
            }
            Request::TransferLeader { group, to } => self.transfer(origin, group, to),
            Request::StepDown => {
                // Otherwise two nodes that stop together would hand leadership to and fro, a term each time.
                self.abstains_until = Some(self.now.mono.plus(STEP_DOWN_HOLD));
                self.raft.set_electable(false);
                self.hand_over_leaderships();
                self.answer(origin, Ok(Reply::Done));
            }
        }
    }

    /// Proposes a command as leader of `__meta`. Without an origin it is the planner's own, and nobody waits for it.
    pub(crate) fn propose_command(&mut self, origin: Option<Origin>, command: Option<CommandOrigin>, body: Command) {
        let reply = |core: &mut NodeCore, failure| {
            if let Some(origin) = origin {
                core.answer(origin, Err(failure));
            }
        };
        if self.disk_full {
            let message = "the leader's disk is full: writes are refused until there is space, reads go on";
            return reply(self, error(ErrorCode::DiskFull, message));
        }
        let Some(term) = self.groups.get(&GroupId::META).filter(|g| g.active).map(|g| g.term) else {
            let refusal = self.not_leader(GroupId::META);
            return reply(self, refusal);
        };
        if let Some(reason) = self.metadata.too_early(body.since()).filter(|_| !planted(Plant::CommandsNotGated)) {
            mark(Mark::CommandTooEarly);
            return reply(self, error(ErrorCode::UnsupportedVersion, reason));
        }
        let gives_birth = matches!(body.body(), Command::CreateTopic { .. } | Command::CreateVm { .. });
        let silent = if gives_birth { self.silent_nodes() } else { Vec::new() };
        let envelope = CommandEnvelope { silent, ..CommandEnvelope::new(command, self.now.wall, body) };
        let data = wire::encode(&envelope);
        if data.len() > base::limits::COMMAND_BYTES_MAX {
            let message = format!("the command has {} bytes, more than is allowed", data.len());
            return reply(self, error(ErrorCode::TooLarge, message));
        }
        let growth = match self.room_for(&envelope.command, data.len()) {
            Ok(growth) => growth,
            Err(refusal) => return reply(self, refusal),
        };
        match self.propose(Proposal { group: GroupId::META, term, kind: EntryKind::Command, data }) {
            Ok(proposed) => {
                self.room.proposed(proposed.index, growth);
                let Some(origin) = origin else { return self.planner.proposed(proposed.index) };
                if command.is_some() && planted(Plant::CommandsAnsweredBeforeCommit) {
                    let result = self.metadata.clone().apply(proposed.index, &envelope);
                    return self.answer(origin, Ok(Reply::Command { index: proposed.index, result }));
                }
                if let Some(meta) = self.groups.get_mut(&GroupId::META) {
                    meta.waiters.insert(proposed.index, Waiter { term, what: Awaited::Command(origin) });
                }
            }
            Err(refused) => {
                let refusal = self.refused(GroupId::META, refused);
                reply(self, refusal);
            }
        }
    }

    /// Members that have not been heard of for some rounds of gossip.
    fn silent_nodes(&self) -> Vec<NodeId> {
        let silent = |node: &NodeId| {
            *node != self.me()
                && self.peers.silence(*node, self.now.mono).is_none_or(|silence| silence >= BIRTH_SILENCE)
        };
        self.metadata.nodes.keys().copied().filter(silent).collect()
    }

    pub(crate) fn not_leader(&self, group: GroupId) -> RequestError {
        mark_if(Mark::RequestBeforeOwnNoop, || {
            self.groups.get(&group).is_some_and(|g| g.role == Role::Leader && !g.active)
        });
        let leader = self.leaders.leader(group).filter(|node| *node != self.me());
        let message = match leader {
            Some(node) => format!("node {} does not lead group {group}, node {node} does", self.me()),
            None => format!("node {} does not lead group {group} and knows of no leader", self.me()),
        };
        RequestError { code: ErrorCode::NotLeader, message, leader }
    }

    fn ask_driver(&mut self, origin: Origin, question: impl FnOnce(u64) -> Effect) {
        match self.requests.ticket(origin) {
            Some(ticket) => self.effects.push(question(ticket)),
            None => self.answer(origin, Err(busy(DRIVER_QUESTIONS_MAX, "questions to the node"))),
        }
    }

    pub(crate) fn driver_answered(&mut self, ticket: u64, outcome: Result<Reply, RequestError>) {
        if let Some(origin) = self.requests.tickets.remove(&ticket) {
            self.answer(origin, outcome);
        }
    }

    fn transfer(&mut self, origin: Origin, group: GroupId, to: NodeId) {
        let outcome = match self.replica_on(group, to) {
            Some(replica) => {
                self.raft.transfer_leader(group, replica);
                Ok(Reply::Done)
            }
            None => Err(error(ErrorCode::NotFound, format!("node {to} has no replica of group {group}"))),
        };
        self.answer(origin, outcome);
    }

    // ---- Answers ----

    /// Tells whoever asked how a request that was carried out here ended.
    pub(crate) fn answer(&mut self, origin: Origin, outcome: Result<Reply, RequestError>) {
        match origin {
            Origin::Local(key) => self.resolve(key, outcome),
            Origin::Remote { node, id, .. } => self.answer_forward(node, id, outcome),
        }
    }

    /// A pending request has an outcome: final, or a reason to try again.
    fn resolve(&mut self, key: u64, outcome: Result<Reply, RequestError>) {
        // Whose outcome is known already, and waited for here, is tried again by no other answer.
        let open = |it: &&Pending| !matches!(it.wait, Wait::Applied { .. });
        let Some(pending) = self.requests.pending.get(&key).filter(open) else { return };
        match outcome {
            Err(failure) if may_retry(pending, &failure) => {
                if let (Target::Leader(group), ErrorCode::NotLeader) = (pending.target, failure.code) {
                    let term = self.leaders.term(group);
                    let asked = match pending.wait {
                        Wait::Forwarded { to, .. } => Some(to),
                        _ => None,
                    };
                    if asked.is_some() && self.leaders.leader(group) == asked {
                        mark(Mark::LeaderUnlearned);
                        self.leaders.unlearn(group, term);
                    }
                }
                self.try_again(key, failure.code == ErrorCode::LeaderChanged);
                if let Some(pending) = self.requests.pending.get_mut(&key) {
                    pending.busy = Some(failure).filter(|failure| failure.code == ErrorCode::Busy);
                }
            }
            Ok(reply) if planted(Plant::AnsweredBeforeApplied) => {
                let read = matches!(reply, Reply::ReadPoint { .. });
                self.finish(key, Ok(if read { Reply::Done } else { reply }));
            }
            Ok(Reply::Command { index, result }) if index > self.metadata.applied => {
                self.requests.applied.insert((index, key));
                self.set_wait(key, Wait::Applied { index, reply: Reply::Command { index, result } });
            }
            Ok(Reply::ReadPoint { index }) => self.read_point_known(key, index),
            outcome => self.finish(key, outcome),
        }
    }

    /// Puts a request back into the queue; `open` if nobody knows what became of it so far.
    fn try_again(&mut self, key: u64, open: bool) {
        self.set_wait(key, Wait::Queued);
        if let Some(pending) = self.requests.pending.get_mut(&key) {
            pending.tried |= open;
        }
    }

    /// `__meta` was applied further: whoever waited for that is told.
    pub(crate) fn meta_advanced(&mut self) {
        while let Some((index, key)) = self.requests.applied.first().copied()
            && index <= self.metadata.applied
        {
            self.requests.applied.pop_first();
            let reply = match self.requests.pending.get(&key).map(|p| &p.wait) {
                Some(Wait::Applied { reply, .. }) => reply.clone(),
                _ => continue,
            };
            self.finish(key, Ok(reply));
        }
    }

    fn finish(&mut self, key: u64, outcome: Result<Reply, RequestError>) {
        let Some(pending) = self.requests.pending.remove(&key) else { return };
        let outcome = if pending.tried { no_certain_refusal(&pending.request, outcome) } else { outcome };
        for send in &pending.sends {
            self.requests.sent.remove(send);
        }
        self.requests.queued.remove(&key);
        self.requests.deadlines.remove(&(pending.deadline, key));
        if let Wait::Applied { index, .. } = pending.wait {
            self.requests.applied.remove(&(index, key));
        }
        if matches!(outcome, Ok(Reply::Done)) {
            self.shown.read();
        }
        if let Some(command) = pending.command {
            self.session.settled(command.sequence);
        }
        if let Ok(Reply::Command { result: CommandResult::Refused { code: ErrorCode::UnknownSession, .. }, .. }) =
            &outcome
        {
            self.session.lost();
        }
        match pending.client {
            Client::Request(id) => self.effects.push(Effect::Reply { id, outcome: refusal_as_error(outcome) }),
            Client::Internal(what) => self.internal_done(what, pending.request, outcome),
        }
        for held in self.requests.held.remove(&key).unwrap_or_default() {
            self.begin(held);
        }
        self.read_point_lost(key);
    }

    fn internal_done(&mut self, what: Internal, request: Request, outcome: Result<Reply, RequestError>) {
        match what {
            Internal::OpenSession => self.session_opened(outcome),
            Internal::UpdateNode => self.node_updated(outcome),
            Internal::VmReport => self.vm_report_done(request, outcome),
            Internal::VmBarrier => self.vm_barrier_done(outcome.is_ok()),
            Internal::Publish { sequence } => self.published(sequence, outcome.is_ok()),
            Internal::MembersTold(group) => self.planner.members_told(group),
        }
    }

    /// Deadlines, and another try for what is queued.
    pub(crate) fn requests_tick(&mut self) {
        let now = self.now.mono;
        self.requests.reads.drop_overdue(now);
        self.requests.tickets.retain(|_, origin| origin.deadline().is_none_or(|deadline| deadline > now));
        while let Some((deadline, key)) = self.requests.deadlines.first().copied()
            && deadline <= self.now.mono
        {
            self.requests.deadlines.pop_first();
            let failure = self.deadline_failure(key);
            self.finish(key, Err(failure));
        }
        while let Some((at, sending)) = self.requests.forward_again.first().copied()
            && at <= self.now.mono
        {
            self.requests.forward_again.pop_first();
            let Some(key) = self.requests.sent.get(&sending).copied() else { continue };
            let waits = |p: &Pending| matches!(p.wait, Wait::Forwarded { send, .. } if send == sending);
            let unanswered = |p: &Pending| waits(p) && may_repeat(&p.request);
            if self.requests.pending.get(&key).is_some_and(unanswered) {
                mark(Mark::ForwardRepeated);
                self.try_again(key, true);
            }
        }
        for key in self.requests.queued.iter().copied().collect::<Vec<_>>() {
            self.advance(key);
        }
    }

    fn deadline_failure(&self, key: u64) -> RequestError {
        let Some(pending) = self.requests.pending.get(&key) else {
            return error(ErrorCode::DeadlineExceeded, "the deadline passed");
        };
        if let (Wait::Queued, Some(busy)) = (&pending.wait, &pending.busy) {
            return busy.clone();
        }
        if let (Wait::Held, Request::ReadPoint, Some(carrier)) =
            (&pending.wait, &pending.request, self.requests.shared.carrier())
        {
            return self.deadline_failure(carrier);
        }
        match (&pending.wait, pending.target) {
            (Wait::Held, _) => {
                error(ErrorCode::DeadlineExceeded, "an earlier request had no outcome before the deadline: not tried")
            }
            (Wait::Queued, _) if self.stage < Stage::Running => {
                error(ErrorCode::NoLeader, "this node is still joining or recovering")
            }
            (Wait::Queued, Target::Leader(group)) => {
                mark(Mark::DeadlineWithoutLeader);
                error(ErrorCode::NoLeader, self.no_leader_yet(group))
            }
            (Wait::Forwarded { to: node, .. }, _) if !self.peers.reachable(*node, self.now.mono) => {
                error(ErrorCode::Unreachable, format!("node {node} did not answer before the deadline"))
            }
            (Wait::Forwarded { to: node, .. }, _) => {
                let message = format!("node {node} has the request and did not answer before the deadline");
                error(ErrorCode::DeadlineExceeded, message)
            }
            (Wait::Applied { .. }, _) => {
                let message = "the leader confirmed it, and this node did not come to apply it before the deadline";
                error(ErrorCode::DeadlineExceeded, message)
            }
            _ => {
                mark(Mark::DeadlineUnknownOutcome);
                error(
                    ErrorCode::DeadlineExceeded,
                    "the deadline passed before a majority confirmed; the outcome is unknown",
                )
            }
        }
    }

    /// A group goes away: nobody waits for it any more.
    pub(crate) fn abandon(&mut self, group: Group, reason: &str) {
        let mut origins: Vec<_> = group.unsynced.into_values().map(|(origin, _)| origin).collect();
        origins.extend(group.repeats.into_iter().map(|(_, origin, _)| origin));
        origins.extend(group.waiters.into_values().map(|waiter| match waiter.what {
            Awaited::Command(origin) | Awaited::Produced { origin, .. } => origin,
        }));
        for origin in origins {
            self.answer(origin, Err(error(ErrorCode::NotFound, reason)));
        }
    }

    pub(crate) fn fail_all_requests(&mut self, reason: &str) {
        for (_, pending) in std::mem::take(&mut self.requests.pending) {
            if let Client::Request(id) = pending.client {
                let outcome = Err(error(ErrorCode::ShuttingDown, format!("this node stops: {reason}")));
                self.effects.push(Effect::Reply { id, outcome });
            }
        }
    }

    pub(crate) fn refuse_when_stopped(&mut self, event: Event) {
        if let Event::Request { id, .. } = event {
            let outcome = Err(error(ErrorCode::ShuttingDown, "this node has stopped"));
            self.effects.push(Effect::Reply { id, outcome });
        }
    }
}

/// Whether a failed request can be tried again without a risk of doing it twice.
fn may_retry(pending: &Pending, failure: &RequestError) -> bool {
    if !matches!(pending.target, Target::Leader(_)) {
        return false;
    }
    match failure.code {
        // Refused before anything was done.
        ErrorCode::NotLeader => true,
        // May have been done: only what is applied once all the same.
        ErrorCode::LeaderChanged => may_repeat(&pending.request),
        ErrorCode::Busy => !matches!(pending.request, Request::Produce(_)) && may_repeat(&pending.request),
        // An idempotent producer's earlier batch is not there yet.
        ErrorCode::OutOfOrder => {
            matches!(&pending.request, Request::Produce(produce) if stamped(produce))
                && matches!(pending.client, Client::Internal(_))
        }
        _ => false,
    }
}

/// Whether doing it twice is the same as doing it once.
fn may_repeat(request: &Request) -> bool {
    match request {
        Request::Command(_) | Request::ReadPoint | Request::KeepLease { .. } | Request::ReadPartition(_) => true,
        Request::Status | Request::Tasks | Request::Vitals { .. } => true,
        Request::Produce(produce) => stamped(produce) || planted(Plant::PlainProduceRepeated),
        _ => false,
    }
}

/// Whether every batch carries a producer id and sequence, so that a repeat is recognised.
fn stamped(produce: &crate::Produce) -> bool {
    produce
        .batches
        .iter()
        .all(|batch| stream::batch::BatchHeader::read(batch).is_ok_and(|header| header.has_producer()))
}

/// What the last try was refused for says nothing of a change whose earlier try may have been carried out.
fn no_certain_refusal(request: &Request, outcome: Result<Reply, RequestError>) -> Result<Reply, RequestError> {
    let changes = matches!(request, Request::Command(_) | Request::Produce(_));
    let open = |code, last: &str| {
        Err(error(
            code,
            format!("an earlier try may have been carried out, the outcome is unknown; the last one: {last}"),
        ))
    };
    match &outcome {
        Err(last) if changes && last.code == ErrorCode::NoLeader => open(ErrorCode::DeadlineExceeded, &last.message),
        Err(last) if changes && matches!(last.code, ErrorCode::DiskFull | ErrorCode::Busy | ErrorCode::TooLarge) => {
            open(ErrorCode::LeaderChanged, &last.message)
        }
        // A full session remembers nothing of what it refuses: the earlier try may still find room in it.
        Ok(Reply::Command { result: CommandResult::Refused { code: ErrorCode::Busy, message }, .. }) => {
            open(ErrorCode::LeaderChanged, message)
        }
        _ => outcome,
    }
}

/// To the outside, a command that was refused is an error.
fn refusal_as_error(outcome: Result<Reply, RequestError>) -> Result<Reply, RequestError> {
    match outcome {
        Ok(Reply::Command { result: CommandResult::Refused { code, message }, .. }) => Err(error(code, message)),
        other => other,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use base::limits::READ_POINTS_MAX;
    use base::{ClusterId, Now, Wall};
    use wire::{Member, PeerMessage};

    use super::*;
    use crate::{CoreConfig, Formation};

    pub(crate) fn at(ms: u64) -> Now {
        Now { mono: Mono::default().plus(Millis(ms)), wall: Wall(0) }
    }

    /// A core that takes requests; it has no replica of anything.
    pub(crate) fn core() -> NodeCore {
        let config = CoreConfig {
            me: Member { node: NodeId(1), ..Member::default() },
            cluster: ClusterId([1; 16]),
            formation: Formation::Restart,
            incarnation: Incarnation(1),
            seed: 1,
            segment_bytes: 1 << 20,
            election_timeout: Millis(1_000),
            heartbeat_interval: Millis(150),
            checkpoint_entries: 100,
            checkpoint_keep_entries: 10,
            checkpoint_part_bytes: 1 << 10,
            checkpoint_bytes_max: base::limits::CHECKPOINT_BYTES_MAX,
            node_lost_after: base::limits::NODE_LOST_AFTER,
            observe: false,
        };
        let mut core = NodeCore::new(config, at(0));
        core.stage = Stage::Running;
        core
    }

    pub(super) fn refusals(core: &mut NodeCore) -> Vec<(u64, ErrorCode)> {
        let refusal = |effect| match effect {
            Effect::Reply { id, outcome: Err(refused) } => Some((id.0, refused.code)),
            _ => None,
        };
        std::mem::take(&mut core.effects).into_iter().filter_map(refusal).collect()
    }

    /// The names of the requests of other nodes that were answered.
    pub(super) fn answered_others(core: &mut NodeCore) -> Vec<u64> {
        let answered = |message| match message {
            PeerMessage::ForwardReply(reply) => Some(reply.id),
            _ => None,
        };
        std::mem::take(&mut core.sends).into_values().flatten().filter_map(answered).collect()
    }

    #[test]
    fn a_driver_with_too_many_questions_is_asked_no_more_until_it_answers() {
        let mut core = core();
        let most = DRIVER_QUESTIONS_MAX as u64;
        for id in 1..=most + 1 {
            core.take_request(RequestId(id), at(1_000).mono, Target::Here, Request::Tasks);
        }
        let asked = core.effects.iter().filter(|effect| matches!(effect, Effect::ListTasks { .. })).count();
        assert_eq!(asked, DRIVER_QUESTIONS_MAX);
        assert_eq!(refusals(&mut core), [(most + 1, ErrorCode::Busy)]);
        core.driver_answered(1, Ok(Reply::Tasks(Vec::new())));
        core.effects.clear();
        core.take_request(RequestId(most + 2), at(1_000).mono, Target::Here, Request::Tasks);
        assert!(matches!(core.effects[..], [Effect::ListTasks { .. }]), "{:?}", core.effects);
    }

    #[test]
    fn more_requests_than_may_wait_are_refused_and_those_that_wait_are_answered_at_their_deadline() {
        let mut core = core();
        let (most, target) = (REQUESTS_PENDING_MAX as u64, Target::Leader(GroupId::META));
        for id in 1..=most + 1 {
            core.take_request(RequestId(id), at(1_000).mono, target, Request::ReadPoint);
        }
        assert_eq!(refusals(&mut core), [(most + 1, ErrorCode::Busy)]);
        core.now = at(1_000);
        core.requests_tick();
        let each: Vec<_> = (1..=most).map(|id| (id, ErrorCode::NoLeader)).collect();
        assert!(refusals(&mut core) == each, "each that waited is answered, once");
        core.take_request(RequestId(most + 2), at(2_000).mono, target, Request::ReadPoint);
        assert!(core.effects.is_empty() && core.requests.pending.len() == 1, "{:?}", core.effects);
    }

    #[test]
    fn who_was_busy_until_the_deadline_is_told_of_as_busy() {
        let mut core = core();
        let target = Target::Leader(GroupId::META);
        for id in 1..=2 {
            core.take_request(RequestId(id), at(1_000).mono, target, Request::ReadPoint);
        }
        let first = *core.requests.pending.keys().next().expect("both wait for a leader");
        core.resolve(first, Err(busy(READ_POINTS_MAX, "reads")));
        assert!(core.effects.is_empty(), "it is tried again");
        core.now = at(1_000);
        core.requests_tick();
        assert_eq!(refusals(&mut core), [(1, ErrorCode::Busy), (2, ErrorCode::NoLeader)]);
    }

    #[test]
    fn who_waited_for_a_leader_in_vain_is_told_what_is_known_of_the_group() {
        let mut core = core();
        core.peers.heard(NodeId(2), at(400).mono);
        core.take_request(RequestId(1), at(1_000).mono, Target::Leader(GroupId(7)), Request::ReadPoint);
        core.now = at(1_000);
        core.requests_tick();
        let [Effect::Reply { outcome: Err(told), .. }] = &core.effects[..] else { panic!("{:?}", core.effects) };
        let expected = "no leader known for group 7, of which this node has no replica: last term heard of 0, replicas on \
                        nodes []; node 2 heard 600 ms ago";
        assert_eq!((told.code, told.message.as_str()), (ErrorCode::NoLeader, expected));
    }
}
