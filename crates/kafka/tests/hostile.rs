//! Bytes that mean harm, in a process with the allocator that muster uses.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

mod common;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base::{Millis, SplitMix64};
use common::{Client, Node, batch, encode_request, until};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ApiKey, MetadataRequest, MetadataResponse, ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

async fn alive(address: SocketAddr) {
    let mut client = Client::connect(address).await;
    let request = MetadataRequest::default().with_topics(Some(vec![]));
    let response: MetadataResponse = client.ask(ApiKey::Metadata, 9, &request).await;
    assert_eq!(response.brokers.len(), 1, "the listener lives");
}

/// Requests of a few bytes whose count fields claim the most that there is.
fn greedy() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    // Old encodings: API, version, correlation id, null client id; then what stands before the first count.
    let before_count: [(u8, u8, usize); 8] =
        [(0, 3, 8), (1, 4, 17), (2, 1, 4), (3, 0, 0), (3, 1, 0), (19, 2, 0), (20, 1, 0), (20, 3, 0)];
    for (api, version, fill) in before_count {
        for count in [i32::MAX, i32::MAX - 1, 1 << 24] {
            let mut frame = vec![0, api, 0, version, 0, 0, 0, 1, 0xff, 0xff];
            frame.extend(std::iter::repeat_n(0xff, if api == 0 { 2 } else { 0 }));
            frame.extend(std::iter::repeat_n(0, if api == 0 { fill - 2 } else { fill }));
            frame.extend(count.to_be_bytes());
            out.push(frame);
        }
    }
    // The 12 bytes that end a process under glibc's allocator.
    out.push(vec![0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0, 0xff]);
    // Flexible encodings: a count of 2^32 - 2.
    for (api, version, fill) in
        [(0u8, 9u8, 7), (1, 12, 25), (2, 6, 5), (3, 9, 0), (3, 12, 0), (19, 5, 0), (20, 6, 0), (10, 4, 1)]
    {
        let mut frame = vec![0, api, 0, version, 0, 0, 0, 1, 0xff, 0xff, 0];
        frame.extend(std::iter::repeat_n(0, fill));
        frame.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
        out.push(frame);
    }
    out
}

async fn withstands_greed(address: SocketAddr) {
    for frame in greedy() {
        let mut client = Client::connect(address).await;
        client.send_bytes(&frame).await;
        assert_eq!(client.receive_bytes().await, None, "closed without an answer: {frame:?}");
    }
    alive(address).await;
}

#[tokio::test]
async fn counts_larger_than_the_request_close_the_connection_and_nothing_else() {
    let (_node, address) = Node::start().await;
    let mut bystander = Client::connect(address).await;
    withstands_greed(address).await;
    let request = MetadataRequest::default().with_topics(Some(vec![]));
    let response: MetadataResponse = bystander.ask(ApiKey::Metadata, 9, &request).await;
    assert_eq!(response.brokers.len(), 1, "others are unharmed");
}

/// The same where the kernel gives no address space for nothing: counts are checked before memory is reserved.
#[test]
fn so_they_do_where_address_space_is_limited() {
    let own = std::env::current_exe().unwrap();
    let test = "counts_larger_than_the_request_close_the_connection_and_nothing_else";
    let limited = format!("ulimit -v 4194304 && exec '{}' --exact {test} --test-threads 1", own.display());
    let output = Command::new("sh").args(["-c", &limited]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn garbage_of_any_kind_closes_its_connection_only() {
    let (node, address) = Node::start().await;
    node.create("t", 1);
    let mut random = SplitMix64::new(11);
    let record = PartitionProduceData::default().with_records(Some(batch(&["v"])));
    let topic = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("t")))
        .with_partition_data(vec![record]);
    let produce = ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic]);
    for round in 0..300 {
        let mut client = Client::connect(address).await;
        let bytes = match round % 4 {
            // Another protocol altogether.
            0 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            // Random bytes behind a random, mostly plausible length.
            1 => {
                let length = random.below(64) as usize;
                let body = (0..length).map(|_| random.next_u64() as u8);
                (length as u32).to_be_bytes().into_iter().chain(body).collect()
            }
            // A plausible head, then random bytes.
            2 => {
                let api = [0u8, 1, 2, 3, 10, 18, 19, 20][random.below(8) as usize];
                let head = [0, api, 0, random.below(14) as u8, 0, 0, 0, 1, 0xff, 0xff];
                let body: Vec<u8> = (0..random.below(80)).map(|_| random.next_u64() as u8).collect();
                let length = (head.len() + body.len()) as u32;
                length.to_be_bytes().into_iter().chain(head).chain(body).collect()
            }
            // A good request with one byte wrong.
            _ => {
                let mut good = encode_request(ApiKey::Produce, 3 + random.below(10) as i16, 1, &produce).to_vec();
                let at = 4 + random.below(good.len() as u64 - 4) as usize;
                good[at] ^= 1 << random.below(8);
                good
            }
        };
        use tokio::io::AsyncWriteExt;
        // The listener may close before all is written.
        let _ = client.stream.write_all(&bytes).await;
        let _ = client.stream.shutdown().await;
        while client.receive_bytes().await.is_some() {}
    }
    alive(address).await;
}

#[tokio::test]
async fn unknown_requests_and_versions_are_closed_as_kafka_does() {
    let (_node, address) = Node::start().await;
    for head in [[0u8, 99, 0, 0], [0, 0, 0, 2], [0, 3, 0, 99], [0, 3, 0xff, 0xff], [0xff, 0xff, 0, 0], [0, 22, 0, 0]] {
        let mut client = Client::connect(address).await;
        client.send_bytes(&[&head[..], &[0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0]].concat()).await;
        assert_eq!(client.receive_bytes().await, None, "{head:?}");
    }
    alive(address).await;
}

/// Everything that is logged on this thread, where a single-threaded test runs all its tasks.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn one_line_in_the_log_names_the_peer_and_the_reason() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (_node, address) = Node::start().await;
    let mut client = Client::connect(address).await;
    let peer = client.stream.local_addr().unwrap().to_string();
    client.send_bytes(&[0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0, 0xff]).await;
    assert_eq!(client.receive_bytes().await, None);
    let lines = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    until("the close is logged", || lines().contains("closed")).await;
    let about: Vec<String> = lines().lines().filter(|line| line.contains(&peer)).map(str::to_owned).collect();
    assert_eq!(about.len(), 1, "{about:?}");
    assert!(about[0].contains("malformed Metadata request (version 9)"), "{}", about[0]);
    assert!(about[0].contains("larger than the request"), "the whole chain of causes: {}", about[0]);
}

#[tokio::test]
async fn frames_and_connections_and_idleness_are_bounded() {
    let (_node, address) = Node::start_with(|config| {
        config.frame_bytes_max = 1000;
        config.connections_max = 2;
        config.idle_timeout = Millis(400);
    })
    .await;
    let mut client = Client::connect(address).await;
    client.send_bytes(&[0; 1001]).await;
    assert_eq!(client.receive_bytes().await, None, "a frame that is too large");
    // Two connections are held open; the third is turned away, and let in when one has gone.
    let mut first = Client::connect(address).await;
    let request = MetadataRequest::default().with_topics(Some(vec![]));
    let _: MetadataResponse = first.ask(ApiKey::Metadata, 9, &request).await;
    let mut second = Client::connect(address).await;
    let _: MetadataResponse = second.ask(ApiKey::Metadata, 9, &request).await;
    let mut third = Client::connect(address).await;
    assert_eq!(third.receive_bytes().await, None, "too many connections");
    // Both say nothing more, and are closed for it.
    assert_eq!(first.receive_bytes().await, None);
    assert_eq!(second.receive_bytes().await, None);
    alive(address).await;
}
