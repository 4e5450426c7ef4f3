//! Whoever does not belong here, or does not speak as a peer speaks.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use base::limits::{HELLO_FRAME_BYTES_MAX, PEER_FRAME_BYTES_MAX, STRANGERS_MAX};
use base::{ClusterId, ClusterVersion, ErrorCode, Incarnation, NodeId, RecoveryId, SplitMix64, VersionRange};
use common::*;
use iroh::endpoint::{Connection, ConnectionError};
use runtime::{Registry, Supervisor};
use tokio::runtime::Handle;
use transport::{Incoming, Local, Members, PeerLink, Transport, TransportConfig};
use wire::{Channel, Hello, HelloAck, PROTOCOL_VERSION};

/// Two nodes of which the second says that it is `claim`; both sides must tell the reason.
async fn check_refused_on_both_sides(claim: Local, known: bool, code: ErrorCode, words: &str) {
    let first = Node::start(1).await;
    let second = Node::homeless(2, "127.0.0.1:0".parse().unwrap()).await;
    second.transport.set_local(claim);
    let one: Arc<Members> = Arc::new([first.place()].into_iter().collect());
    let both: Arc<Members> = Arc::new([first.place(), second.place()].into_iter().collect());
    first.know(if known { &both } else { &one });
    second.know(&both);
    let told = |error: &str| error.contains("refused this node") && error.contains(words);
    let status = second.until_status(1, |status| status.last_error.as_deref().is_some_and(told)).await;
    assert_eq!(status.connected_since, None);
    let record = until(|| format!("{:?}", first.transport.refusals()), || first.transport.refusals().pop()).await;
    assert_eq!((record.endpoint, record.refusal.code), (second.identity.endpoint(), code));
    assert!(record.refusal.reason.contains(words), "{record:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let claim = Local { cluster: ClusterId([9; 16]), ..local(2, 1) };
    check_refused_on_both_sides(claim, true, ErrorCode::PermissionDenied, "belongs to cluster 0909").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_an_older_incarnation_of_the_cluster_is_refused_on_both_sides() {
    let claim = Local { cluster_incarnation: Incarnation(0), ..local(2, 1) };
    check_refused_on_both_sides(claim, true, ErrorCode::StaleEpoch, "the cluster was recovered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_cluster_that_was_recovered_apart_is_refused_on_both_sides() {
    let claim = Local { recovery: Some(RecoveryId([6; 16])), ..local(2, 1) };
    check_refused_on_both_sides(claim, true, ErrorCode::PermissionDenied, "two survivors were recovered apart").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_on_both_sides() {
    check_refused_on_both_sides(local(2, 1), false, ErrorCode::PermissionDenied, "is not a member of this cluster")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_under_another_number_is_refused_on_both_sides() {
    check_refused_on_both_sides(local(5, 1), true, ErrorCode::PermissionDenied, "calls itself node 5").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_version_is_refused_with_both_versions_named() {
    let first = Node::start(1).await;
    let raw = Raw::start([2; 32]).await;
    let hello = Hello { protocol: PROTOCOL_VERSION + 1, ..member_hello(2) };
    let (conn, answer) = raw.hello(&first, &hello).await;
    let Some(HelloAck::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.code, ErrorCode::UnsupportedVersion);
    assert!(refusal.reason.contains("peer protocol 2") && refusal.reason.contains("speaks 1"), "{}", refusal.reason);
    let closed = conn.closed().await;
    assert!(matches!(&closed, ConnectionError::ApplicationClosed(close) if close.reason == refusal.reason), "{closed}");
    assert_eq!(first.transport.refusals().pop().unwrap().refusal, refusal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_tells_why_the_other_side_refused_its_version() {
    // A peer of the future, made by hand, that no longer understands this version.
    let raw = Raw::start([2; 32]).await;
    let address = raw.endpoint.bound_sockets()[0];
    let first = Node::start(1).await;
    first.know(&Arc::new([first.place(), place(2, &identity(2), address)].into_iter().collect()));
    let conn = raw.endpoint.accept().await.unwrap().accept().unwrap().await.unwrap();
    let (mut send, mut recv) = conn.accept_bi().await.unwrap();
    let hello: Hello = wire::decode(&read_frame(&mut recv).await.unwrap()).unwrap();
    assert_eq!(hello, member_hello(1));
    let refusal = wire::Refusal::new(ErrorCode::UnsupportedVersion, "I speak 7 to 9");
    write_frame(&mut send, &wire::encode(&HelloAck::Refused(refusal))).await;
    let told = |error: &str| error.contains("unsupported_version") && error.contains("I speak 7 to 9");
    first.until_status(2, |status| status.last_error.as_deref().is_some_and(told)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_is_named_with_the_flag_that_changes_it() {
    let first = Node::start(1).await;
    let config = TransportConfig { identity: identity(2), listen: first.address, relay: None, hints: Vec::new() };
    let supervisor = Supervisor::new(Handle::current());
    let error = Transport::bind(config.clone(), &supervisor, &Registry::new()).await.err().expect("in use").to_string();
    assert!(error.contains(&first.address.to_string()) && error.contains("--peer-listen"), "{error}");
    assert!(supervisor.list().is_empty(), "nothing is left running");
    let elsewhere = TransportConfig { listen: "192.0.2.1:7401".parse().unwrap(), ..config.clone() };
    let error = Transport::bind(elsewhere, &supervisor, &Registry::new()).await.err().expect("not ours").to_string();
    assert!(error.contains("192.0.2.1:7401") && error.contains("--peer-listen"), "{error}");
    let relay = Some("not a url".to_owned());
    let listen = "127.0.0.1:0".parse().unwrap();
    let bad_relay = TransportConfig { listen, relay, ..config };
    let error = Transport::bind(bad_relay, &supervisor, &Registry::new()).await.err().expect("no url").to_string();
    assert!(error.contains("\"not a url\""), "{error}");
}

/// Two connected nodes, and a third member made by hand that node 1 welcomed.
async fn with_a_bad_member() -> (Vec<Node>, Raw, Connection) {
    let mut nodes = vec![Node::start(1).await, Node::start(2).await];
    let raw = Raw::start([3; 32]).await;
    let bad = place(3, &identity(3), raw.endpoint.bound_sockets()[0]);
    let members: Arc<Members> = Arc::new(nodes.iter().map(Node::place).chain([bad]).collect());
    nodes.iter().for_each(|node| node.know(&members));
    nodes[0].until_up(&[2]).await;
    let (conn, answer) = raw.hello(&nodes[0], &member_hello(3)).await;
    assert!(matches!(answer, Some(HelloAck::Welcome { node: NodeId(1), .. })), "{answer:?}");
    (nodes, raw, conn)
}

async fn check_closed(conn: &Connection, words: &str) {
    let closed = tokio::time::timeout(PATIENCE, conn.closed()).await.expect("closed");
    let ConnectionError::ApplicationClosed(close) = &closed else { panic!("{closed}") };
    let reason = String::from_utf8_lossy(&close.reason);
    assert!(reason.contains(words), "{reason}");
}

async fn check_unharmed(nodes: &mut [Node]) {
    nodes[0].transport.send(NodeId(2), Channel::Control, vec![ping(42)]);
    while pinged(&nodes[1].control().await) != Some(42) {}
    assert_eq!(nodes[0].status(2).connects, 1, "the connection between the others was never lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_sends_nonsense_is_cut_off_and_the_others_are_unharmed() {
    let huge = (PEER_FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    let mut truncated = vec![2];
    truncated.extend(1_000u32.to_be_bytes());
    let mut foreign = vec![1, 0, 0, 0, 3];
    foreign.extend([9, 9, 9]);
    // A message of 4 GiB in a frame of 10 bytes.
    let counted = [2, 0, 0, 0, 10, 1, 0xff, 0xff, 0xff, 0xff, 0x81, 1, 0, 0, 0];
    let cases: [(&[u8], &str); 5] = [
        (&[77, 1, 2, 3], "kind 77"),
        (&[&[1], huge.as_slice()].concat(), "was announced"),
        (&truncated, "ended inside a frame"),
        (&foreign, "unknown format 9"),
        (&counted, "malformed PeerFrame"),
    ];
    let (mut nodes, raw, first_conn) = with_a_bad_member().await;
    let mut conn = first_conn;
    for (bytes, words) in cases {
        let mut stream = conn.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
        check_closed(&conn, words).await;
        let (again, answer) = raw.hello(&nodes[0], &member_hello(3)).await;
        assert!(matches!(answer, Some(HelloAck::Welcome { .. })), "{answer:?}");
        conn = again;
    }
    assert!(nodes[0].registry.render().contains("muster_peer_violations_total 5\n"));
    check_unharmed(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_only_a_newer_muster_knows_costs_only_itself() {
    let (mut nodes, _raw, conn) = with_a_bad_member().await;
    // Between two known messages one of kind 99.
    let unknown = [7, 0, 0, 0, 0x82, 0x18, 99, 0x81, 0xa1, 1, 2];
    let known = |n: u64| wire::PeerFrame::encode(&[ping(n)]).to_vec();
    let frame = [known(1).as_slice(), &unknown, &known(2)[1..]].concat();
    let mut stream = conn.open_uni().await.unwrap();
    stream.write_all(&[1]).await.unwrap();
    write_frame(&mut stream, &frame).await;
    let two = loop {
        if let Incoming::Peer { from: NodeId(3), messages, .. } = nodes[0].control().await {
            break messages;
        }
    };
    assert_eq!(two, [ping(1), ping(2)]);
    write_frame(&mut stream, &known(3)).await;
    while pinged(&nodes[0].control().await) != Some(3) {}
    let counted = nodes[0].registry.render();
    let name = "muster_peer_messages_not_understood_total";
    let counts: Vec<&str> = counted.lines().filter(|line| line.starts_with(name) && line.ends_with(" 1")).collect();
    assert!(counts.len() == 1 && counts[0].contains("peer=\"3\""), "{counted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_work_at_the_active_version_is_refused_and_learns_which_that_is() {
    let mut nodes = [Node::start(1).await, Node::start(2).await];
    let older = Local { versions: VersionRange::default(), ..local(2, 1) };
    nodes[1].transport.set_local(older);
    nodes[0].transport.set_cluster_version(ClusterVersion(2));
    let members: Arc<Members> = Arc::new(nodes.iter().map(Node::place).collect());
    nodes.iter().for_each(|node| node.know(&members));
    let told = loop {
        if let Incoming::Outdated { by, active } = nodes[1].control().await {
            break (by, active);
        }
    };
    assert_eq!(told, (NodeId(1), ClusterVersion(2)));
    let status = nodes[1].until_status(1, |status| status.last_error.is_some()).await;
    assert!(format!("{status:?}").contains("that node can 1: upgrade muster there"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_of_a_member_takes_the_place_of_its_older_one() {
    let (mut nodes, raw, conn) = with_a_bad_member().await;
    let (_second, answer) = raw.hello(&nodes[0], &member_hello(3)).await;
    assert!(matches!(answer, Some(HelloAck::Welcome { .. })));
    check_closed(&conn, "newer connection").await;
    check_unharmed(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_member_is_refused_as_long_as_that_one_is_there_and_takes_its_place_for_good() {
    let mut nodes = connected(2).await;
    let members: Arc<Members> = Arc::new(nodes.iter().map(Node::place).collect());
    let mut copy = Node::homeless(2, "127.0.0.1:0".parse().unwrap()).await;
    copy.transport.set_local(Local { home: 99, ..local(2, 2) });
    copy.know(&members);
    assert_eq!(told_of_twin(&mut copy).await, (NodeId(1), Incarnation(1)));
    check_unharmed(&mut nodes).await;

    let address = kill(nodes.pop().unwrap()).await;
    copy.until_up(&[1]).await;
    let mut original = Node::homeless(2, address).await;
    original.transport.set_local(local(2, 1));
    original.know(&members);
    assert_eq!(told_of_twin(&mut original).await, (NodeId(1), Incarnation(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_before_the_last_that_the_cluster_heard_of_is_hung_up_on_and_refused() {
    let mut nodes = connected(2).await;
    nodes[0].transport.set_latest([(NodeId(1), Incarnation(9)), (NodeId(2), Incarnation(2))]);
    nodes[1].until_down(1).await;
    assert_eq!(told_of_twin(&mut nodes[1]).await, (NodeId(1), Incarnation(2)));
    let refused = nodes[0].transport.refusals().pop().unwrap().refusal;
    assert!(refused.code == ErrorCode::AlreadyExists && refused.reason.contains("an older copy"), "{refused:?}");
}

async fn told_of_twin(node: &mut Node) -> (NodeId, Incarnation) {
    loop {
        if let Incoming::Twin { by, other } = node.control().await {
            return (by, other);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hellos_that_are_none_are_refused_and_strangers_cannot_send_frames() {
    let first = Node::start(1).await;
    let raw = Raw::start([50; 32]).await;
    let mut random = SplitMix64::new(1);
    for size in [0, 1, 100, HELLO_FRAME_BYTES_MAX] {
        let conn = raw.call(&first).await;
        let (mut send, mut recv) = conn.open_bi().await.unwrap();
        let garbage: Vec<u8> = (0..size).map(|_| random.next_u64() as u8).collect();
        write_frame(&mut send, &garbage).await;
        let answer: HelloAck = wire::decode(&read_frame(&mut recv).await.expect("an answer")).unwrap();
        let HelloAck::Refused(refusal) = answer else { panic!("{answer:?}") };
        assert!(refusal.reason.contains("cannot be understood"), "{}", refusal.reason);
        // Streams of frames are not to be had before the welcome.
        let stream = tokio::time::timeout(Duration::from_millis(50), conn.open_uni()).await;
        assert!(!matches!(stream, Ok(Ok(_))), "a stranger was given a stream");
    }
    let conn = raw.call(&first).await;
    let (mut send, mut recv) = conn.open_bi().await.unwrap();
    send.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let answer: HelloAck = wire::decode(&read_frame(&mut recv).await.expect("an answer")).unwrap();
    assert!(matches!(&answer, HelloAck::Refused(refusal) if refusal.reason.contains("was announced")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_are_bounded_and_members_pass_all_the_same() {
    let mut first = Node::start(1).await;
    let raw = Raw::start([60; 32]).await;
    let mut silent = Vec::new();
    for _ in 0..STRANGERS_MAX {
        silent.push(raw.call(&first).await);
    }
    // All places are taken once the node has counted them; from then on strangers are sent away at the door.
    let turned_away = async {
        loop {
            let conn = raw.call(&first).await;
            match tokio::time::timeout(Duration::from_millis(200), conn.closed()).await {
                Ok(ConnectionError::ApplicationClosed(close)) => {
                    break String::from_utf8_lossy(&close.reason).into_owned();
                }
                Ok(_) => {}
                Err(_) => silent.push(conn),
            }
        }
    };
    let reason = tokio::time::timeout(PATIENCE, turned_away).await.expect("somebody is turned away");
    assert!(reason.contains("too many strangers"), "{reason}");
    assert!(silent.len() <= STRANGERS_MAX + 2, "{} strangers are inside", silent.len());
    let mut second = Node::start(2).await;
    let members: Arc<Members> = Arc::new([first.place(), second.place()].into_iter().collect());
    first.know(&members);
    second.know(&members);
    first.until_up(&[2]).await;
    second.until_up(&[1]).await;
    // The silent ones are sent away after the deadline, and there is room again.
    check_closed(&silent[0], "no hello came in time").await;
    let (_, answer) = raw.hello(&first, &member_hello(9)).await;
    assert!(matches!(answer, Some(HelloAck::Refused(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_harms_nobody() {
    let mut nodes = connected(2).await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = SplitMix64::new(7);
    for n in 0..5_000u64 {
        let size = random.between(0, 1_400) as usize;
        let mut datagram: Vec<u8> = (0..size).map(|_| random.next_u64() as u8).collect();
        // Half of them look like the beginning of a QUIC connection.
        if n % 2 == 0 && size > 30 {
            datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            datagram[14] = 8;
        }
        socket.send_to(&datagram, nodes[0].address).unwrap();
        if n % 500 == 0 {
            nodes[0].transport.send(NodeId(2), Channel::Control, vec![ping(n)]);
            while pinged(&nodes[1].control().await) != Some(n) {}
        }
    }
    check_unharmed(&mut nodes).await;
    assert!(nodes[0].supervisor.list().iter().all(|task| task.history.is_empty()), "no task fell");
    assert!(nodes[0].inboxes.control.try_recv().is_none_or(|incoming| matches!(incoming, Incoming::Up { .. })));
}
