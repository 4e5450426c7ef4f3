//! Members that talk: channels, order, restarts, loss, and bulk beside control.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::limits::{PEER_BULK_QUEUE_BYTES_MAX, PEER_CONTROL_QUEUE_BYTES_MAX};
use base::{EndpointId, NodeId};
use common::*;
use transport::{Inboxes, Incoming, Members, PeerLink};
use wire::{Channel, PeerMessage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_exchange_messages_in_order_on_both_channels() {
    let began = Instant::now();
    let mut nodes = connected(3).await;
    println!("three nodes, six connections, bind included: {:?}", began.elapsed());
    for from in &nodes {
        for to in (1..=3).map(NodeId).filter(|to| *to != from.id) {
            for n in 0..100 {
                from.transport.send(to, Channel::Control, vec![ping(n)]);
                from.transport.send(to, Channel::Bulk, vec![load(1, 1_000), load(1, n as usize)]);
            }
        }
    }
    for node in &mut nodes {
        let mut next = std::collections::BTreeMap::new();
        let mut received = 0;
        while received < 2 * 100 + 2 * 200 {
            let incoming = tokio::select! { i = node.inboxes.control.recv() => i, i = node.inboxes.bulk.recv() => i };
            let Some(Incoming::Peer { from, channel, messages }) = incoming else { panic!("{incoming:?}") };
            received += messages.len();
            for message in messages {
                let n = match message {
                    PeerMessage::Gossip(gossip) => gossip.meta_applied,
                    PeerMessage::ForwardReply(reply) if reply.body.len() == 1_000 => continue,
                    PeerMessage::ForwardReply(reply) => reply.body.len() as u64,
                    other => panic!("{other:?}"),
                };
                let expected = next.entry((from, channel)).or_insert(0);
                assert_eq!(n, *expected, "from {from} on {channel:?}");
                *expected += 1;
            }
        }
        assert!(next.values().all(|n| *n == 100), "{next:?}");
        assert_eq!(node.transport.peers().len(), 2);
        assert!(
            node.transport.peers().iter().all(|p| p.dropped == 0 && p.connected_since.is_some() && p.rtt.is_some())
        );
    }
    let metrics = nodes[0].registry.render();
    assert!(metrics.contains("muster_peer_connects_total{peer=\"2\"} 1\n"), "{metrics}");
    let tasks: Vec<_> = nodes[0].supervisor.list().into_iter().map(|task| task.name).collect();
    assert_eq!(tasks, ["transport/endpoint", "transport/accept", "transport/peer/2", "transport/peer/3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_takes_milliseconds() {
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut nodes = [Node::start(1).await, Node::start(2).await];
        let members: Arc<Members> = Arc::new(nodes.iter().map(Node::place).collect());
        let began = Instant::now();
        nodes.iter().for_each(|node| node.know(&members));
        nodes[0].until_up(&[2]).await;
        nodes[1].until_up(&[1]).await;
        times.push(began.elapsed());
    }
    let median = percentile(&mut times, 50);
    println!("two nodes connected both ways: median {median:?}, max {:?}", times.last().unwrap());
    assert!(median < Duration::from_secs(1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_is_noticed_and_back_soon_after_its_restart() {
    let mut nodes = connected(2).await;
    let mut first = nodes.remove(0);
    let killed = nodes.remove(0);
    let members: Arc<Members> = Arc::new([first.place(), killed.place()].into_iter().collect());
    let began = Instant::now();
    let address = kill(killed).await;
    first.until_down(2).await;
    println!("a killed peer is noticed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(first.status(2).last_error.is_some());

    let restarted = Instant::now();
    let mut second = Node::homeless(2, address).await;
    second.transport.set_local(local(2, 2));
    second.know(&members);
    assert_eq!(first.until_up(&[2]).await[&2], 2, "the new incarnation");
    second.until_up(&[1]).await;
    println!("restarted peer is back both ways after {:?}", restarted.elapsed());
    assert!(restarted.elapsed() < Duration::from_secs(2), "{:?}", restarted.elapsed());
    first.transport.send(NodeId(2), Channel::Control, vec![ping(5)]);
    assert_eq!(pinged(&second.control().await), Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarted_before_its_death_was_noticed_is_back_at_once() {
    let mut nodes = connected(2).await;
    let mut first = nodes.remove(0);
    let killed = nodes.remove(0);
    let members: Arc<Members> = Arc::new([first.place(), killed.place()].into_iter().collect());
    let address = kill(killed).await;
    let restarted = Instant::now();
    let mut second = Node::homeless(2, address).await;
    second.transport.set_local(local(2, 2));
    second.know(&members);
    first.until_down(2).await;
    assert_eq!(first.until_up(&[2]).await[&2], 2);
    second.until_up(&[1]).await;
    println!("peer restarted at once is back after {:?}", restarted.elapsed());
    assert!(restarted.elapsed() < Duration::from_secs(2), "{:?}", restarted.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_properly_says_so() {
    let mut nodes = connected(2).await;
    let began = Instant::now();
    let report = nodes[1].supervisor.shutdown(Duration::from_secs(5)).await;
    assert_eq!(report.aborted, Vec::<String>::new());
    assert_eq!(report.stopped, ["transport/peer/1", "transport/accept", "transport/endpoint"]);
    let stopped = began.elapsed();
    nodes[0].until_down(2).await;
    println!("stopped in {stopped:?}, peer knew after {:?}", began.elapsed());
    // Well before it would have been missed.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_of_bulk_do_not_delay_control() {
    const TOTAL: usize = 100 << 20;
    const PIECE: usize = 1 << 20;
    let mut nodes = connected(2).await;
    let second = nodes.remove(1);
    let mut first = nodes.remove(0);
    let echo_link = second.transport.clone();
    let Inboxes { mut control, mut bulk } = second.inboxes;
    let echo = tokio::spawn(async move {
        while let Some(incoming) = control.recv().await {
            if let Some(n) = pinged(&incoming) {
                echo_link.send(NodeId(1), Channel::Control, vec![ping(n)]);
            }
        }
    });
    let mut quiet = Vec::new();
    for n in 0..200 {
        quiet.push(round_trip(&mut first, n).await);
    }
    let began = Instant::now();
    let link = first.transport.clone();
    let transfer = tokio::spawn(async move {
        let (mut sent, mut received) = (0, 0);
        while received < TOTAL {
            // Keeps 16 MiB under way, as Raft's window of append messages would.
            while sent < TOTAL && sent - received < 16 << 20 {
                link.send(NodeId(2), Channel::Bulk, vec![load((sent / PIECE) as u64, PIECE)]);
                sent += PIECE;
            }
            match tokio::time::timeout(PATIENCE, bulk.recv()).await.expect("bulk flows") {
                Some(Incoming::Peer { messages, .. }) => received += messages.len() * PIECE,
                other => panic!("{other:?}"),
            }
        }
        began.elapsed()
    });
    let mut loaded = Vec::new();
    while !transfer.is_finished() {
        loaded.push(round_trip(&mut first, loaded.len() as u64).await);
    }
    let took = transfer.await.unwrap();
    assert_eq!(first.status(2).dropped, 0);
    let rate = 100.0 / took.as_secs_f64();
    let (q50, q99) = (percentile(&mut quiet, 50), percentile(&mut quiet, 99));
    let (l50, l99) = (percentile(&mut loaded, 50), percentile(&mut loaded, 99));
    println!(
        "control RTT quiet p50 {q50:?} p99 {q99:?}; under bulk ({rate:.0} MiB/s) p50 {l50:?} p99 {l99:?} max {:?} of {}",
        loaded.last().unwrap(),
        loaded.len()
    );
    assert!(loaded.len() > 10, "control hardly moved: {loaded:?}");
    // Two heartbeats' time, on a machine that may be busy with other things; an election starts after a second.
    assert!(l99 < Duration::from_millis(300), "{l99:?}");
    echo.abort();
}

async fn round_trip(node: &mut Node, n: u64) -> Duration {
    let began = Instant::now();
    node.transport.send(NodeId(2), Channel::Control, vec![ping(n)]);
    while pinged(&node.control().await) != Some(n) {}
    began.elapsed()
}

/// What a message to a living peer may take beside a dead one. Who waits for a dial to that one waits for a second.
const BESIDE_A_DEAD_PEER: Duration = Duration::from_millis(600);

/// Two nodes that know a third, which never answers, with its socket; and what the slowest of 500 messages from the first to
/// the second took from being sent, behind two to the third, to being received.
async fn beside_a_dead_peer() -> ([Node; 2], std::net::UdpSocket, Duration) {
    let mut nodes = [Node::start(1).await, Node::start(2).await];
    // Node 3 has an address where somebody listens and never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = place(3, &identity(3), silent.local_addr().unwrap());
    let members: Arc<Members> = Arc::new(nodes.iter().map(Node::place).chain([dead]).collect());
    nodes.iter().for_each(|node| node.know(&members));
    nodes[0].until_up(&[2]).await;
    let mut slowest = Duration::ZERO;
    for n in 0..500 {
        let began = Instant::now();
        nodes[0].transport.send(NodeId(3), Channel::Bulk, vec![load(n, 1 << 20)]);
        nodes[0].transport.send(NodeId(3), Channel::Control, vec![ping(n)]);
        nodes[0].transport.send(NodeId(2), Channel::Control, vec![ping(n)]);
        while pinged(&nodes[1].control().await) != Some(n) {}
        slowest = slowest.max(began.elapsed());
        let queued = nodes[0].status(3).queued_bytes;
        assert!(queued <= PEER_BULK_QUEUE_BYTES_MAX + PEER_CONTROL_QUEUE_BYTES_MAX, "{queued}");
    }
    (nodes, silent, slowest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_delays_nobody_and_costs_no_memory() {
    // A dial to it is under way nearly all the time: whoever waits for one does so in each try. What else holds up a busy
    // machine does not come each time.
    let mut slowest = Vec::new();
    let (nodes, _silent) = loop {
        let (nodes, silent, took) = beside_a_dead_peer().await;
        println!("slowest of 500 messages beside a dead peer: {took:?}");
        slowest.push(took);
        if took < BESIDE_A_DEAD_PEER {
            break (nodes, silent);
        }
        assert!(slowest.len() < 3, "a message to a living peer waits for a dead one: {slowest:?}");
    };
    let status = nodes[0].until_status(3, |status| status.queued_bytes == 0 && status.dropped == 1_000).await;
    assert!(status.last_error.as_deref().unwrap().contains("no answer within"), "{status:?}");
    assert_eq!(nodes[0].status(2).dropped, 0);
    // What goes to nobody is counted, too.
    nodes[0].transport.send(NodeId(77), Channel::Control, vec![ping(0)]);
    assert!(nodes[0].registry.render().contains("muster_peer_messages_unknown_total 1\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_read_bulk_costs_bounded_memory_and_still_gets_control() {
    let mut nodes = connected(2).await;
    for n in 0..400 {
        nodes[0].transport.send(NodeId(2), Channel::Bulk, vec![load(n, 1 << 20)]);
        let status = nodes[0].status(2);
        assert!(status.queued_bytes <= PEER_BULK_QUEUE_BYTES_MAX, "{status:?}");
        nodes[0].transport.send(NodeId(2), Channel::Control, vec![ping(n)]);
        while pinged(&nodes[1].control().await) != Some(n) {}
    }
    let status = nodes[0].until_status(2, |status| status.dropped > 0).await;
    assert!(status.connected_since.is_some(), "{status:?}");
    // Once it reads again, all that was not dropped arrives.
    let mut received = 0;
    while received < 400 - status.dropped {
        match nodes[1].bulk().await {
            Incoming::Peer { messages, .. } => received += messages.len() as u64,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(nodes[0].until_status(2, |status| status.queued_bytes == 0).await.dropped, status.dropped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moves_is_found_even_before_its_death_was_noticed() {
    for noticed in [true, false] {
        let mut nodes = connected(2).await;
        let mut first = nodes.remove(0);
        let old = kill(nodes.remove(0)).await;
        if noticed {
            first.until_down(2).await;
        }
        let mut moved = Node::homeless(2, "127.0.0.1:0".parse().unwrap()).await;
        assert_ne!(moved.address, old);
        moved.transport.set_local(local(2, 2));
        let members: Arc<Members> = Arc::new([first.place(), moved.place()].into_iter().collect());
        let began = Instant::now();
        moved.know(&members);
        first.know(&members);
        assert_eq!(first.until_up(&[2]).await[&2], 2);
        println!("a peer that moved (death noticed: {noticed}) is found after {:?}", began.elapsed());
        first.transport.send(NodeId(2), Channel::Control, vec![ping(8)]);
        while pinged(&moved.control().await) != Some(8) {}
        moved.transport.send(NodeId(1), Channel::Control, vec![ping(9)]);
        until_pinged(&mut first, &moved, 9).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

/// Sends until it arrives: the link in this direction may just be starting over.
async fn until_pinged(to: &mut Node, from: &Node, n: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        from.transport.send(to.id, Channel::Control, vec![ping(n)]);
        let wait = tokio::time::timeout(Duration::from_millis(50), to.inboxes.control.recv());
        if wait.await.ok().flatten().is_some_and(|incoming| pinged(&incoming) == Some(n)) {
            return;
        }
        assert!(Instant::now() < deadline, "{:?}", from.transport.peers());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_removed_is_hung_up_on_and_told_so() {
    let mut nodes = connected(2).await;
    let first = nodes.remove(0);
    let mut moved = nodes.remove(0);
    let departed = Arc::new([(moved.identity.endpoint(), NodeId(2))].into_iter().collect());
    first.transport.set_members(&Arc::new([first.place()].into_iter().collect()), departed).expect("peers start");
    moved.until_down(1).await;
    let expelled =
        async { while !matches!(moved.inboxes.control.recv().await, Some(Incoming::Expelled { by: NodeId(1) })) {} };
    tokio::time::timeout(PATIENCE, expelled).await.expect("it is told");
    let refused = moved.until_status(1, |status| {
        status.last_error.as_deref().is_some_and(|error| error.contains("refused this node"))
    });
    let error = refused.await.last_error.unwrap();
    assert!(error.contains("node 2 was removed from the cluster"), "{error}");
    assert!(first.transport.peers().is_empty());
    assert!(!first.registry.render().contains("peer=\"2\""), "its metrics are gone");
    let endpoint: EndpointId = moved.identity.endpoint();
    assert!(first.transport.refusals().iter().any(|record| record.endpoint == endpoint));
}
