//! Requests under way: who asked what of which node, and what the answer means to the checkers.

use std::collections::BTreeMap;

use base::{ErrorCode, GroupId, LeaseId, RequestId};
use compute::VmDesired;
use engine::{Event, Reply, Request, RequestError, Target};
use metadata::{Command, CommandResult};

use crate::check::{Ack, AckedCommand, Asked};
use crate::intruders::Flaw;
use crate::mistake::Seam;
use crate::queue::{Ev, NodeIx};
use crate::shared::{self, Shared};
use crate::time::{Nanos, ms};
use crate::world::World;

/// How late after its deadline an answer may come (the core keeps its own pace of timers).
const OVERDUE: Nanos = ms(500);

/// Who waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Client(usize),
    Consumer(usize),
    /// An operation that a client called, by ticket.
    Operation(u64),
    /// A node's driver, which reads a log for another node, with what else belongs into its answer.
    Driver {
        node: NodeIx,
        boot: u64,
        ticket: u64,
        high_watermark: i64,
        log_start_offset: i64,
    },
    /// The admission of a node.
    Joining(NodeIx),
    /// The token for admissions.
    Token,
    /// A token that is to let nobody in.
    FlawedToken(Flaw),
    /// The admission of a node that must not be admitted.
    Intruder(NodeIx),
    /// The fault injector, which does not care.
    Nemesis,
    /// An operator, who looks for himself.
    Operator,
    /// The finale's probe of a node.
    ProbeNode(NodeIx),
    /// The finale's probe of a partition.
    ProbeGroup(GroupId),
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Command(CommandKind),
    Produce {
        group: GroupId,
        values: Vec<u64>,
        /// So many of them are in the first batch. Where the second batch stands is not said.
        first: usize,
        /// Retries carry the same values until one succeeds.
        idempotent: bool,
        /// Acks::All.
        all: bool,
    },
    /// A producer writes under an epoch that is over.
    Fenced(GroupId),
    ReadLog(GroupId),
    /// A consumer reads a log from an offset on.
    Fetch {
        group: GroupId,
        position: i64,
    },
    /// A consumer reads through the core of a node that may have no replica.
    ReadPartition {
        group: GroupId,
        position: i64,
    },
    Barrier,
    /// A key under a lease, which then lives until `since`; or the renewal of a lease, which was asked for then.
    Lease {
        lease: Option<LeaseId>,
        since: Nanos,
    },
    /// Something about a contended name.
    Shared(Asked, Shared),
    Other,
}

/// Commands, as the checkers tell them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandKind {
    CreateTopic(String),
    CreateVm(String),
    DeleteVm(String),
    /// Starts or stops a machine.
    WantVm(String, VmDesired),
    CreateToken,
    RevokeToken(u64),
    Admit(NodeIx),
    Other,
}

/// A request under way.
#[derive(Clone, Debug)]
pub struct Pending {
    pub node: NodeIx,
    pub owner: Owner,
    pub what: What,
    pub command: Option<Command>,
    /// What was acknowledged when it was made: an offset or an index of `__meta`, as it concerns.
    pub floor: u64,
}

/// How a request ended, as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Ok(Reply),
    Failed(RequestError),
    /// The node died: the connection broke.
    Lost,
}

/// All requests under way.
#[derive(Default)]
pub struct Requests {
    pending: BTreeMap<u64, Pending>,
    last: u64,
}

impl World {
    /// Makes a request of a node.
    pub fn ask(&mut self, owner: Owner, node: NodeIx, target: Target, request: Request, what: What, timeout: Nanos) {
        let floor = match &what {
            What::Produce { group, .. } => self.checks.partitions.acked_end(*group) as u64,
            _ => self.checks.states.acked_index(),
        };
        self.ask_from(owner, node, target, request, what, timeout, floor);
    }

    /// As [`World::ask`], for a retry of what was first asked when `floor` was acknowledged.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of a request")]
    pub fn ask_from(
        &mut self,
        owner: Owner,
        node: NodeIx,
        target: Target,
        request: Request,
        what: What,
        timeout: Nanos,
        floor: u64,
    ) {
        self.requests.last += 1;
        let id = self.requests.last;
        self.stats.requests += 1;
        let command = match &request {
            Request::Command(command) => Some(command.clone()),
            _ => None,
        };
        self.requests.pending.insert(id, Pending { node, owner, what, command, floor });
        if self.nodes[node].core.is_none() {
            // Nobody listens.
            return self.end(id, Outcome::Lost);
        }
        let deadline = self.nodes[node].now(self.queue.now).mono.plus(base::Millis(timeout / 1_000_000));
        // What operations ask for may take so long that a slow clock counts.
        let slow = if matches!(owner, Owner::Operation(_)) { timeout / 40 } else { 0 };
        self.queue.after(timeout + slow + OVERDUE, Ev::Overdue { request: id });
        self.tell(node, Event::Request { id: RequestId(id), deadline, target, request });
    }

    /// The core answered.
    pub fn replied(&mut self, node: NodeIx, id: RequestId, outcome: Result<Reply, RequestError>) {
        if self.cfg.breaks(Seam::LostReplies) && id.0.is_multiple_of(5) {
            return;
        }
        match self.requests.pending.get(&id.0) {
            Some(pending) if pending.node == node => {}
            _ => {
                return self
                    .fail("one answer per request", format!("n{node} answers request {id}, which waits for none"));
            }
        }
        self.end(id.0, outcome.map_or_else(Outcome::Failed, Outcome::Ok));
    }

    /// The deadline and some more have passed.
    pub fn overdue(&mut self, id: u64) {
        let Some(pending) = self.requests.pending.get(&id) else { return };
        let it = &self.nodes[pending.node];
        if it.runs() && self.queue.now >= it.resumed + OVERDUE {
            let what = format!("n{} did not answer request {id} by its deadline: {:?}", pending.node, pending.what);
            return self.fail("one answer per request", what);
        }
        self.queue.after(OVERDUE, Ev::Overdue { request: id });
    }

    /// The node died: nobody will answer.
    pub fn requests_lost(&mut self, node: NodeIx) {
        let lost: Vec<u64> = self.requests.pending.iter().filter(|(_, p)| p.node == node).map(|(id, _)| *id).collect();
        lost.into_iter().for_each(|id| self.end(id, Outcome::Lost));
    }

    /// Requests of clients under way.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        let of_clients = |owner| matches!(owner, Owner::Client(_) | Owner::Operation(_));
        self.requests.pending.values().filter(|p| of_clients(p.owner)).count()
    }

    /// The fault injector has a request under way.
    #[must_use]
    pub fn injector_waits(&self) -> bool {
        self.requests.pending.values().any(|p| p.owner == Owner::Nemesis)
    }

    /// An operator has a request under way, or whoever must not join.
    #[must_use]
    pub fn operator_waits(&self) -> bool {
        self.requests.pending.values().any(|p| matches!(p.owner, Owner::Operator | Owner::Intruder(_)))
    }

    fn end(&mut self, id: u64, outcome: Outcome) {
        let Some(pending) = self.requests.pending.remove(&id) else { return };
        match &outcome {
            Outcome::Ok(_) => self.stats.acknowledged += 1,
            // An answer like any other, of a name that others change.
            Outcome::Failed(error) if matches!(pending.what, What::Shared(..)) && shared::tells(error) => {
                self.stats.acknowledged += 1;
            }
            Outcome::Failed(error) if matches!(pending.what, What::Lease { .. }) && shared::tells(error) => {
                self.stats.acknowledged += 1;
            }
            Outcome::Failed(_) if self.is_gone(&pending.what) => self.stats.gone += 1,
            Outcome::Failed(error) => *self.stats.failures.entry(error.code).or_default() += 1,
            Outcome::Lost => self.stats.unknown += 1,
        }
        let outcome = self.falsify(&pending, outcome);
        self.judge(&pending, &outcome);
        match pending.owner {
            Owner::Client(client) => self.client_answered(client, &pending, &outcome),
            Owner::Joining(node) => self.admission_answered(node, &pending, &outcome),
            Owner::Token => self.token_answered(&outcome),
            Owner::FlawedToken(flaw) => self.flawed_token_answered(flaw, &pending, &outcome),
            Owner::Intruder(node) => self.intruder_answered(node, &outcome),
            Owner::ProbeNode(node) => self.probe_answered(Ok(node), &outcome),
            Owner::ProbeGroup(group) => self.probe_answered(Err(group), &outcome),
            Owner::Consumer(consumer) => self.consumer_answered(consumer, &pending, &outcome),
            Owner::Operation(ticket) => self.operation_answered(ticket, &pending, &outcome),
            Owner::Driver { .. } => self.driver_read(pending.owner, &outcome),
            Owner::Nemesis => self.disturbed(),
            Owner::Operator => {}
        }
    }

    /// The request is about a partition that was deleted.
    fn is_gone(&self, what: &What) -> bool {
        let (What::Produce { group, .. }
        | What::Fenced(group)
        | What::ReadLog(group)
        | What::Fetch { group, .. }
        | What::ReadPartition { group, .. }) = what
        else {
            return false;
        };
        self.checks.commands.is_deleted(*group)
    }

    /// What a planted mistake of the driver does.
    fn falsify(&mut self, pending: &Pending, outcome: Outcome) -> Outcome {
        match (&pending.what, &outcome) {
            (What::Produce { group, .. }, Outcome::Failed(_)) if self.cfg.breaks(Seam::FalseAcknowledgement) => {
                let base_offset = self.checks.partitions.acked_end(*group);
                Outcome::Ok(Reply::Produced { base_offset, log_start_offset: 0 })
            }
            _ => outcome,
        }
    }

    /// Tells the checkers what the answer promises.
    fn judge(&mut self, pending: &Pending, outcome: &Outcome) {
        match (&pending.what, outcome) {
            (What::Shared(asked, shared), outcome) => {
                self.judge_shared(pending.node, *asked, shared, outcome);
                self.judge_plain(pending, outcome);
            }
            (What::Command(kind), Outcome::Ok(Reply::Command { index, result })) => {
                self.judge_command(pending, kind, *index, result);
            }
            (
                What::Produce { group, values, first, all: true, .. },
                Outcome::Ok(Reply::Produced { base_offset, .. }),
            ) => {
                self.stats.records_acknowledged += values.len() as u64;
                let (floor, values) = (pending.floor as i64, values[..*first].to_vec());
                let ack = Ack { group: *group, base_offset: *base_offset, values, floor };
                let verdict = self.checks.partitions.acked(&ack);
                self.check("acknowledged records stay", verdict);
            }
            (What::Produce { group, values, first, idempotent, .. }, Outcome::Failed(error)) => match error.code {
                ErrorCode::NotLeader | ErrorCode::Busy | ErrorCode::DiskFull | ErrorCode::InvalidArgument
                    if !idempotent =>
                {
                    let verdict = self.checks.partitions.refused(*group, values);
                    self.check("refused records do not appear", verdict);
                }
                // A request that is partly a repeat is refused as a whole.
                ErrorCode::OutOfOrder if *first < values.len() => {}
                ErrorCode::OutOfOrder | ErrorCode::StaleEpoch | ErrorCode::Corrupt | ErrorCode::Internal => {
                    self.fail("producers are not refused for nothing", format!("{:?}: {error:?}", pending.what));
                }
                _ => {}
            },
            (What::Fenced(group), Outcome::Ok(Reply::Produced { .. })) => {
                self.fail("producers of an earlier epoch are fenced", format!("group {group}: {:?}", pending.what));
            }
            (What::ReadLog(group) | What::Fetch { group, .. }, Outcome::Ok(Reply::Batches { indexes, batches })) => {
                self.stats.reads += 1;
                let verdict = self.checks.partitions.read(*group, indexes, batches);
                self.check("reads give what was committed", verdict);
            }
            (What::Lease { lease: None, .. }, Outcome::Ok(Reply::Command { index, result })) => {
                self.judge_command(pending, &CommandKind::Other, *index, result);
            }
            (What::Barrier, Outcome::Ok(Reply::Done)) => self.judge_plain(pending, outcome),
            // Names are used once: whoever finds his own name taken was carried out twice.
            (
                What::Command(kind @ (CommandKind::CreateTopic(_) | CommandKind::CreateVm(_))),
                Outcome::Failed(RequestError { code: ErrorCode::AlreadyExists, message, .. }),
            ) => self.fail("commands are applied once", format!("{kind:?}: {message}")),
            // Only its owner deletes a machine or revokes a token, and once.
            (
                What::Command(kind @ (CommandKind::DeleteVm(_) | CommandKind::RevokeToken(_))),
                Outcome::Failed(RequestError { code: ErrorCode::NotFound, message, .. }),
            ) => self.fail("acknowledged commands stay", format!("{kind:?}: {message}")),
            // The consumer judges what it gets.
            (What::ReadPartition { .. }, Outcome::Ok(Reply::PartitionBatches(_)))
            | (What::Other | What::Lease { lease: Some(_), .. }, _)
            | (_, Outcome::Failed(_) | Outcome::Lost)
            | (What::Produce { .. }, Outcome::Ok(Reply::Produced { .. })) => {}
            (what, Outcome::Ok(reply)) => self.fail("answers fit", format!("{what:?} was answered by {reply:?}")),
        }
    }

    /// Read points, and commands about names that others change.
    fn judge_plain(&mut self, pending: &Pending, outcome: &Outcome) {
        match outcome {
            Outcome::Ok(Reply::Done) => {
                let applied = self.nodes[pending.node].shown.applied;
                let verdict = self.checks.states.barrier(pending.node, applied, pending.floor);
                self.check("read points are linearizable", verdict);
            }
            Outcome::Ok(Reply::Command { index, result }) => {
                self.judge_command(pending, &CommandKind::Other, *index, result);
            }
            _ => {}
        }
    }

    fn judge_command(&mut self, pending: &Pending, kind: &CommandKind, index: u64, result: &CommandResult) {
        let acked = match (kind, result) {
            (CommandKind::CreateTopic(name), CommandResult::TopicCreated { .. }) => AckedCommand::Topic(name.clone()),
            (CommandKind::CreateVm(name), CommandResult::VmCreated { .. }) => AckedCommand::Vm(name.clone()),
            (CommandKind::DeleteVm(name), CommandResult::Done) => AckedCommand::NoVm(name.clone()),
            (CommandKind::CreateToken, CommandResult::TokenCreated { token_id }) => AckedCommand::Token(*token_id),
            (CommandKind::RevokeToken(token_id), CommandResult::Done) => AckedCommand::NoToken(*token_id),
            (CommandKind::WantVm(name, desired), CommandResult::Done) => {
                self.checks.machines.acked(name, *desired);
                AckedCommand::Other
            }
            _ => AckedCommand::Other,
        };
        self.stats.commands_acknowledged += 1;
        if self.checks.commands.command(index) != pending.command.as_ref() {
            let stands = self.checks.commands.command(index);
            let what = format!("{:?} was acknowledged at index {index}, where {stands:?} stands", pending.command);
            return self.fail("acknowledged commands stay", what);
        }
        // A node that asks to be admitted again gets its first answer, but at the index of the second question.
        let verdict = self.checks.states.acked(index, pending.floor, acked);
        self.check("commands are linearizable", verdict);
        let applied = self.nodes[pending.node].core.as_ref().map_or(0, |core| core.metadata().applied);
        if applied < index {
            let what = format!("n{} answers for index {index} at index {applied}", pending.node);
            self.fail("who answers has applied", what);
        }
    }
}
