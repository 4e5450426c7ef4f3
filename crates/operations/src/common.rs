//! What several operations do alike.

use std::sync::Arc;

use base::{ErrorCode, GroupId, Millis, Mono, NodeId, Wall};
use engine::{NodeStatus, Reply, Request, RequestError, Target};
use futures::FutureExt;
use futures::future::{Either, join_all, select};
use metadata::{Command, CommandResult, Metadata, NodeRecord, OnceKey};
use ops::{Call, OpError};

use crate::Ports;

/// What any change to the cluster's state may fail with.
pub(crate) const WRITE_ERRORS: &[ErrorCode] = &[
    ErrorCode::NotFound,
    ErrorCode::AlreadyExists,
    ErrorCode::FailedPrecondition,
    ErrorCode::NoLeader,
    ErrorCode::NotLeader,
    ErrorCode::LeaderChanged,
    ErrorCode::Unreachable,
    ErrorCode::UnknownSession,
    ErrorCode::DiskFull,
    ErrorCode::TooLarge,
    ErrorCode::StaleEpoch,
    ErrorCode::UnsupportedVersion,
    ErrorCode::ShuttingDown,
];

/// What any read of the cluster's state may fail with.
pub(crate) const READ_ERRORS: &[ErrorCode] = &[
    ErrorCode::NotFound,
    ErrorCode::NoLeader,
    ErrorCode::NotLeader,
    ErrorCode::LeaderChanged,
    ErrorCode::Unreachable,
    ErrorCode::ShuttingDown,
];

/// How long a node may take to say how it is, before it counts as unreachable.
const STATUS_WAIT: Millis = Millis(2_000);
/// How much of a call's time is kept for putting the answer together.
const ANSWER_RESERVE: Millis = Millis(100);

/// A core's refusal as an operation's failure.
pub(crate) fn failure(error: RequestError) -> OpError {
    let hint = match error.code {
        ErrorCode::NoLeader => Some("look at `muster status`: a majority of the voters must be reachable"),
        ErrorCode::NotLeader | ErrorCode::Busy => Some("try again"),
        ErrorCode::DeadlineExceeded | ErrorCode::LeaderChanged => {
            Some("it may still have been done: look before you ask again")
        }
        ErrorCode::DiskFull => Some("free space on the node's data directory; writes then go on by themselves"),
        ErrorCode::Unreachable => Some("look at `muster status` for what does not answer"),
        _ => None,
    };
    let failed = OpError::new(error.code, error.message);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

/// Has a command applied, and returns its result with the cluster's state of then or later. Durable on return: a
/// majority of the voters has it on disk.
pub(crate) async fn command(call: &Call<Ports>, command: Command) -> Result<(CommandResult, Arc<Metadata>), OpError> {
    let (index, result) = applied(call, command).await?;
    Ok((result, call.context.core.metadata_after(index.saturating_sub(1)).await))
}

/// The same, without waiting for the state.
pub(crate) async fn command_result(call: &Call<Ports>, command: Command) -> Result<CommandResult, OpError> {
    applied(call, command).await.map(|(_, result)| result)
}

/// As [`command`], of a command that may be carried out again: a call that is repeated under its key has it applied anew.
pub(crate) async fn command_again(
    call: &Call<Ports>,
    deadline: Mono,
    command: Command,
) -> Result<(CommandResult, Arc<Metadata>), OpError> {
    let (index, result) = proposed(call, deadline, command).await?;
    Ok((result, call.context.core.metadata_after(index.saturating_sub(1)).await))
}

async fn applied(call: &Call<Ports>, command: Command) -> Result<(u64, CommandResult), OpError> {
    let command = match &call.once {
        Some(once) => Command::Once { key: OnceKey(once.next_command()), command: Box::new(command) },
        None => command,
    };
    proposed(call, call.deadline, command).await
}

async fn proposed(call: &Call<Ports>, deadline: Mono, command: Command) -> Result<(u64, CommandResult), OpError> {
    let target = Target::Leader(GroupId::META);
    let asked = call.context.core.request(target, deadline, Request::Command(command));
    match asked.await.map_err(failure)? {
        Reply::Command { result: CommandResult::Refused { code, message }, .. } => Err(OpError::new(code, message)),
        Reply::Command { index, result } => Ok((index, result)),
        _ => Err(unexpected()),
    }
}

/// The cluster's state: with everything in it that was committed when the call came, or as far as this node knows.
pub(crate) async fn read(call: &Call<Ports>, stale: bool) -> Result<Arc<Metadata>, OpError> {
    if stale {
        return Ok(call.context.core.metadata());
    }
    latest(call).await.map_err(|failed| match failed.code {
        ErrorCode::NoLeader | ErrorCode::DeadlineExceeded => {
            failed.hint("with `--stale` this node answers from what it knows")
        }
        _ => failed,
    })
}

/// The same for a call that cannot do without the leader.
pub(crate) async fn latest(call: &Call<Ports>) -> Result<Arc<Metadata>, OpError> {
    let barrier = call.context.core.request(Target::Here, call.deadline, Request::Barrier);
    barrier.await.map_err(failure)?;
    Ok(call.context.core.metadata())
}

/// One node and how it says it is.
pub(crate) struct Asked<T = NodeStatus> {
    pub record: NodeRecord,
    pub answer: Result<T, RequestError>,
}

/// Asks every member how it is, all at once, under one deadline.
pub(crate) async fn ask_every_node(call: &Call<Ports>, metadata: &Metadata) -> Vec<Asked> {
    ask_every(call, metadata, &Request::Status, |reply| match reply {
        Reply::Status(status) => Some(*status),
        _ => None,
    })
    .await
}

/// Asks every member the same, all at once, under one deadline; `take` takes the answer that was meant.
pub(crate) async fn ask_every<T>(
    call: &Call<Ports>,
    metadata: &Metadata,
    request: &Request,
    take: fn(Reply) -> Option<T>,
) -> Vec<Asked<T>> {
    let deadline = fan_out_deadline(call);
    let one = |record: NodeRecord| async move {
        let node = record.member.node;
        let target = if node == call.context.core.me() { Target::Here } else { Target::Node(node) };
        let answer = call.context.core.request(target, deadline, request.clone());
        let answer = within(call, deadline, answer).await.and_then(|reply| {
            let message = "it answered something else".into();
            take(reply).ok_or(RequestError { code: ErrorCode::Internal, message, leader: None })
        });
        Asked { record, answer }
    };
    join_all(metadata.nodes.values().cloned().map(one)).await
}

/// Until when nodes may answer a question to all of them.
pub(crate) fn fan_out_deadline(call: &Call<Ports>) -> Mono {
    let reserve = Mono(call.deadline.0.saturating_sub(ANSWER_RESERVE.0 * 1_000_000));
    call.clock.now().mono.plus(STATUS_WAIT).min(reserve)
}

/// The answer, or that there was none by the deadline: one node that hangs must not take the others' answers along.
pub(crate) async fn within<T>(
    call: &Call<Ports>,
    deadline: Mono,
    answer: impl Future<Output = Result<T, RequestError>> + Send,
) -> Result<T, RequestError> {
    match select(answer.boxed(), call.clock.sleep_until(deadline)).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(RequestError {
            code: ErrorCode::Unreachable,
            message: format!("no answer within {STATUS_WAIT}"),
            leader: None,
        }),
    }
}

/// A member by name or id; none if several can be meant.
pub(crate) fn find_node(metadata: &Metadata, wanted: &str) -> Result<NodeId, OpError> {
    let id: Option<NodeId> = wanted.parse().ok();
    let meant = |record: &&NodeRecord| Some(record.member.node) == id || record.member.name == wanted;
    let found: Vec<&NodeRecord> = metadata.nodes.values().filter(meant).collect();
    match found[..] {
        [one] => Ok(one.member.node),
        [] => {
            let names: Vec<&str> = metadata.nodes.values().map(|node| node.member.name.as_str()).collect();
            let error = OpError::new(ErrorCode::NotFound, format!("no node is named {wanted:?} or has that id"));
            Err(match ops::nearest(wanted, names.iter().copied()) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!("the nodes are {}", names.join(", "))),
            })
        }
        // Members do not get one name any more, but may have had it.
        _ => {
            let each = found.iter().map(|record| format!("node {} ({})", record.member.node, record.member.name));
            let message = format!("{wanted:?} can mean {}", each.collect::<Vec<_>>().join(" or "));
            Err(OpError::new(ErrorCode::InvalidArgument, message).hint("say its id, or a name that no other one has"))
        }
    }
}

/// A member's name; its id if it is not (or no longer) a member.
pub(crate) fn node_name(metadata: &Metadata, node: NodeId) -> String {
    metadata.nodes.get(&node).map_or_else(|| format!("#{node}"), |record| record.member.name.clone())
}

/// Milliseconds from `then` until now, by the wall clock; 0 if it was set back.
pub(crate) fn age_ms(call: &Call<Ports>, then: Wall) -> u64 {
    u64::try_from(call.clock.now().wall.0.saturating_sub(then.0)).unwrap_or(0)
}

pub(crate) fn unexpected() -> OpError {
    OpError::new(ErrorCode::Internal, "the core answered something that was not asked for")
        .hint("this is a bug in muster: please report it")
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use base::ReplicaId;
    use metadata::NodeLifecycle;
    use wire::Member;

    use super::*;

    #[test]
    fn an_order_by_a_name_that_can_mean_two_nodes_reaches_neither() {
        let mut metadata = Metadata::default();
        for (node, name) in (1..).map(NodeId).zip(["box", "box", "shed", "3"]) {
            let (lifecycle, meta_replica) = (NodeLifecycle::Active, ReplicaId(node.0));
            let member = Member { node, name: name.into(), ..Member::default() };
            let record = NodeRecord { member, meta_replica, joined: Wall(0), lifecycle, successor: None };
            metadata.nodes.insert(node, record);
        }
        let found = |wanted: &str| find_node(&metadata, wanted).map_err(|error| (error.code, error.message));
        for (wanted, node) in [("1", 1), ("2", 2), ("shed", 3), ("4", 4)] {
            assert_eq!(found(wanted), Ok(NodeId(node)), "{wanted}");
        }
        for (wanted, both) in [("box", "node 1 (box) or node 2 (box)"), ("3", "node 3 (shed) or node 4 (3)")] {
            let refused = Err((ErrorCode::InvalidArgument, format!("{wanted:?} can mean {both}")));
            assert_eq!(found(wanted), refused, "{wanted}");
        }
        assert_eq!(found("barn").map_err(|(code, _)| code), Err(ErrorCode::NotFound));
    }
}
