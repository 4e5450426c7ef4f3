//! Which relays a node calls. Those here pass nothing on: they only hear what is asked of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use base::NodeId;
use common::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use transport::Members;
use wire::NodeAddress;

/// Asked of a node's own relay, to measure the way there.
const PROBE: &str = "GET /ping ";
/// Asked of any relay, to pass packets on.
const PASS_ON: &str = "GET /relay ";

async fn relay() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

async fn until_asked(relay: &TcpListener, request: &str) {
    let asked = async {
        loop {
            let (mut stream, _) = relay.accept().await.expect("a connection");
            let mut start = vec![0; request.len()];
            let read = tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut start)).await;
            if matches!(read, Ok(Ok(_))) && start == request.as_bytes() {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, asked).await;
    assert!(in_time.is_ok(), "the relay was never asked for {request:?}");
}

/// Itself, and node 2, which can be reached by its relay alone.
fn members(node: &Node, relay: String) -> Arc<Members> {
    let endpoint = identity(2).endpoint();
    let address = NodeAddress { endpoint, relay_url: Some(relay), ..NodeAddress::default() };
    Arc::new([node.place(), (endpoint, (NodeId(2), address))].into_iter().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_relay_calls_it_and_looks_for_its_peers_at_theirs() {
    let ((own, own_url), (theirs, their_url)) = (relay().await, relay().await);
    let node = Node::with_relay(1, "127.0.0.1:0".parse().unwrap(), Some(own_url)).await;
    until_asked(&own, PROBE).await;
    node.transport.set_local(local(1, 1));
    node.know(&members(&node, their_url));
    until_asked(&theirs, PASS_ON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_relay_calls_none() {
    let (theirs, their_url) = relay().await;
    let node = Node::start(1).await;
    node.know(&members(&node, their_url));
    // An attempt is over: whoever is called has been called.
    node.until_status(2, |status| status.last_error.is_some()).await;
    let called = tokio::time::timeout(Duration::from_millis(100), theirs.accept()).await;
    assert!(called.is_err(), "it called the relay of a peer");
}
