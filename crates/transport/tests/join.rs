//! Asking for membership with a token.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use base::{ClusterId, ErrorCode, Incarnation, NodeId, ReplicaId};
use common::*;
use transport::{Incoming, JoinError, Members};
use wire::{HelloAck, JoinAccepted, JoinRequest, Member, Refusal, TokenSeed};

fn request(cluster: ClusterId) -> JoinRequest {
    let member = Member { name: "new".into(), ..Member::default() };
    JoinRequest { cluster, token_id: 5, secret: [6; 32], member }
}

fn seed(node: &Node) -> TokenSeed {
    TokenSeed { endpoint: node.identity.endpoint(), direct: vec![node.address.to_string()], relay_url: None }
}

fn nobody() -> (TokenSeed, std::net::UdpSocket) {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let direct = vec![silent.local_addr().unwrap().to_string()];
    (TokenSeed { endpoint: identity(200).endpoint(), direct, relay_url: None }, silent)
}

async fn joiner() -> Node {
    Node::homeless(2, "127.0.0.1:0".parse().unwrap()).await
}

/// Answers the next join that reaches `node`.
async fn answer(node: &mut Node, answer: HelloAck) -> (Box<JoinRequest>, base::EndpointId) {
    match node.control().await {
        Incoming::Join { request, endpoint, reply } => {
            reply.send(answer).expect("the caller waits");
            (request, endpoint)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_becomes_a_member_through_the_first_seed_that_answers() {
    let mut first = Node::start(1).await;
    let mut second = joiner().await;
    // As large as the largest cluster.
    let name = "a node with a long name and many labels ".repeat(8);
    let members = vec![Member { name, ..Member::default() }; 512];
    let accepted = JoinAccepted {
        cluster: CLUSTER,
        cluster_incarnation: Incarnation(1),
        node: NodeId(2),
        meta_replica: ReplicaId(9),
        members,
        meta_replicas: vec![ReplicaId(1); 512],
        recovery: None,
    };
    let (dead, _silent) = nobody();
    let seeds = [dead, seed(&first)];
    let (joined, asked) = tokio::join!(
        second.transport.join(&seeds, request(CLUSTER)),
        answer(&mut first, HelloAck::Joined(Box::new(accepted.clone()))),
    );
    assert_eq!(joined.expect("joined"), accepted);
    assert_eq!(*asked.0, request(CLUSTER));
    assert_eq!(asked.1, second.identity.endpoint(), "the endpoint is the proven one");
    // And now as a member.
    second.transport.set_local(local(2, 1));
    let members: Arc<Members> = Arc::new([first.place(), second.place()].into_iter().collect());
    first.know(&members);
    second.know(&members);
    first.until_up(&[2]).await;
    second.until_up(&[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_joiner_hears_the_reason_and_asks_nobody_else() {
    let mut first = Node::start(1).await;
    let second = joiner().await;
    let refusal = Refusal::new(ErrorCode::PermissionDenied, "the token was used already");
    let (dead, _silent) = nobody();
    let seeds = [seed(&first), dead];
    let (joined, _) = tokio::join!(
        second.transport.join(&seeds, request(CLUSTER)),
        answer(&mut first, HelloAck::Refused(refusal.clone())),
    );
    match joined.expect_err("refused") {
        JoinError::Refused { endpoint, refusal: heard, .. } => {
            assert_eq!((endpoint, heard), (first.identity.endpoint(), refusal.clone()));
        }
        other => panic!("{other}"),
    }
    assert_eq!(first.transport.refusals().pop().unwrap().refusal, refusal, "told on the other side, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_cluster_is_refused_without_asking_the_cluster() {
    let mut first = Node::start(1).await;
    let second = joiner().await;
    let error = second.transport.join(&[seed(&first)], request(ClusterId([9; 16]))).await.expect_err("foreign");
    let text = error.to_string();
    assert!(text.contains("refused the join") && text.contains("token is for cluster 0909"), "{text}");
    assert!(first.inboxes.control.try_recv().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_to_ask_is_told_with_every_address_and_what_happened_there() {
    let homeless = Node::homeless(1, "127.0.0.1:0".parse().unwrap()).await;
    let mut busy = Node::start(3).await;
    let second = joiner().await;
    let (dead, _silent) = nobody();
    let (dead_address, mut odd) = (dead.direct[0].clone(), dead.clone());
    odd.direct = vec!["example".into()];
    let seeds = [dead, odd, seed(&homeless), seed(&busy)];
    let drop_it = async {
        // Dropping the reply is an answer as well.
        assert!(matches!(busy.control().await, Incoming::Join { .. }));
    };
    let (joined, ()) = tokio::join!(second.transport.join(&seeds, request(CLUSTER)), drop_it);
    let error = joined.expect_err("nobody");
    let text = error.to_string();
    for words in [
        format!("{dead_address}: no answer within 1s").as_str(),
        "\"example\" is not ip:port",
        &format!("{}: it refused this node (failed_precondition)", homeless.address),
        &format!("{}: it refused this node (busy)", busy.address),
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    let JoinError::Unreachable(tried) = error else { panic!("{error}") };
    assert_eq!(tried.len(), 4);
    assert!(matches!(second.transport.join(&[], request(CLUSTER)).await, Err(JoinError::NoSeeds)));
}
