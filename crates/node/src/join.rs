//! Strangers with a token: the member that they call asks the cluster and tells them the outcome.

use std::time::Duration;

use base::{EndpointId, ErrorCode, GroupId, Millis, NodeId, ReplicaId};
use engine::{Reply, Request, Target};
use metadata::{Command, CommandResult};
use tokio::sync::{mpsc, oneshot};
use wire::{HelloAck, JoinAccepted, JoinRequest, Refusal};

use crate::handle::NodeHandle;

/// How long the cluster may take to decide.
const DECIDE_WITHIN: Millis = Millis(8_000);

/// A stranger's call.
pub(crate) struct JoinCall {
    pub request: Box<JoinRequest>,
    pub endpoint: EndpointId,
    pub reply: oneshot::Sender<HelloAck>,
}

/// Answers calls, each in its own task, until the queue closes.
pub(crate) async fn take_calls(handle: NodeHandle, mut calls: mpsc::Receiver<JoinCall>) {
    while let Some(call) = calls.recv().await {
        let handle = handle.clone();
        tokio::spawn(async move {
            let endpoint = call.endpoint;
            let answer = match admit(&handle, *call.request, endpoint).await {
                Ok(accepted) => {
                    tracing::info!(node = %accepted.node, %endpoint, "a node joined");
                    HelloAck::Joined(Box::new(accepted))
                }
                Err(refusal) => {
                    tracing::warn!(%endpoint, reason = refusal.reason, "a node was refused");
                    HelloAck::Refused(refusal)
                }
            };
            // The stranger may have hung up; it asks again and gets the same answer.
            let _ = call.reply.send(answer);
        });
    }
}

/// A token for another cluster has been refused by then, with the hello.
async fn admit(handle: &NodeHandle, request: JoinRequest, endpoint: EndpointId) -> Result<JoinAccepted, Refusal> {
    let mut member = request.member;
    member.address.endpoint = endpoint; // Proven by the connection, never claimed.
    let command = Command::AdmitNode { token_id: request.token_id, secret: request.secret, member };
    let reply = handle.request_within(DECIDE_WITHIN, Target::Leader(GroupId::META), Request::Command(command)).await;
    match reply {
        Ok(Reply::Command { index, result: CommandResult::NodeAdmitted { node, meta_replica } }) => {
            accepted(handle, index, node, meta_replica).await
        }
        Ok(other) => Err(Refusal::new(ErrorCode::Internal, format!("unexpected answer {other:?}"))),
        Err(error) => Err(Refusal::new(error.code, error.message)),
    }
}

async fn accepted(
    handle: &NodeHandle,
    index: u64,
    node: NodeId,
    meta_replica: ReplicaId,
) -> Result<JoinAccepted, Refusal> {
    // The reply comes when this node has applied the command.
    let shown = handle.metadata_after(index.saturating_sub(1));
    let metadata = match tokio::time::timeout(Duration::from_secs(2), shown).await {
        Ok(Some(metadata)) => metadata,
        _ => {
            let reason = "this node is stopping: ask another member".to_owned();
            return Err(Refusal::new(ErrorCode::ShuttingDown, reason));
        }
    };
    Ok(JoinAccepted {
        cluster: metadata.cluster,
        cluster_incarnation: metadata.cluster_incarnation,
        node,
        meta_replica,
        members: metadata.nodes.values().map(|n| n.member.clone()).collect(),
        meta_replicas: metadata.nodes.values().map(|n| n.meta_replica).collect(),
        recovery: metadata.recovery,
    })
}
