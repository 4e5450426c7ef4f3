//! A stock client, kcat (librdkafka), against the listener.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

mod common;

use std::net::SocketAddr;
use std::process::{Output, Stdio};

use common::{Node, PATIENCE};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

async fn kcat(address: SocketAddr, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("kcat")
        .args(["-b", &address.to_string(), "-X", "log_level=7"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kcat is installed (apt install kcat)");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("kcat ends").unwrap();
    writer.await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kcat {arguments:?}: {errors}");
    for bad in ["ERROR", "WARN", "FAIL", "nsupported", "not compress", "%3|", "%4|", "%5|"] {
        assert!(!errors.contains(bad), "kcat {arguments:?} complains: {errors}");
    }
    output
}

fn text(output: Output) -> String {
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_with_keys_and_headers_come_back_byte_for_byte_under_every_compression() {
    let (node, address) = Node::start().await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("records-{codec}");
        let lines: Vec<String> = (0..5_000).map(|n| format!("key-{n}:value {n} {}", "é".repeat(n % 50))).collect();
        let input = lines.join("\n") + "\n";
        let produce = ["-P", "-t", &topic, "-K:", "-z", codec, "-H", "colour=blue", "-H", "size=9", "-X", "acks=all"];
        kcat(address, &produce, &input).await;
        let consume = ["-C", "-t", &topic, "-o", "beginning", "-e", "-q", "-f", "%k:%s|%h\n"];
        let got = text(kcat(address, &consume, "").await);
        let expected: Vec<String> = lines.iter().map(|line| format!("{line}|colour=blue,size=9")).collect();
        assert_eq!(got.lines().collect::<Vec<_>>(), expected, "{codec}");
        let first = text(kcat(address, &["-C", "-t", &topic, "-o", "0", "-c", "1", "-q", "-f", "%o %p"], "").await);
        assert_eq!(first, "0 0", "the first record of a new topic is offset 0");
        assert_eq!(compression_of_first_batch(&node, &topic), codec, "batches are stored as they came");
    }
}

fn compression_of_first_batch(node: &Node, topic: &str) -> String {
    use kafka::Broker;
    let reader = node.reader(node.group(topic, 0)).unwrap();
    // Small topics are wholly in the tail; larger ones end in it.
    let end = reader.read().high_watermark();
    let stream::FetchPlan::Tail(batches) = reader.read().plan_fetch(end - 1, usize::MAX, None, true) else {
        panic!("the last batch is in the tail");
    };
    let header = stream::BatchHeader::parse(&batches[0]).unwrap();
    format!("{:?}", header.compression().unwrap()).to_lowercase()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_lists_offsets_and_partitions() {
    let (node, address) = Node::start().await;
    node.create("spread", 4);
    for acks in ["0", "1", "all"] {
        let arguments = ["-P", "-t", "spread", "-p", "2", "-X", &format!("acks={acks}")];
        kcat(address, &arguments, "one\ntwo\n").await;
    }
    let all = text(kcat(address, &["-C", "-t", "spread", "-o", "beginning", "-e", "-q", "-f", "%p/%o %s\n"], "").await);
    assert_eq!(all, "2/0 one\n2/1 two\n2/2 one\n2/3 two\n2/4 one\n2/5 two\n");
    let tail = text(kcat(address, &["-C", "-t", "spread", "-p", "2", "-o", "-1", "-e", "-q"], "").await);
    assert_eq!(tail, "two\n");
    let by_time = text(kcat(address, &["-Q", "-t", "spread:2:0"], "").await);
    assert!(by_time.contains("spread [2] offset 0"), "{by_time}");
    let late = text(kcat(address, &["-Q", "-t", "spread:2:32503680000000"], "").await);
    assert!(late.contains("spread [2] offset -1"), "{late}");
    let list = text(kcat(address, &["-L"], "").await);
    for expected in
        ["1 brokers", "broker 1 at 127.0.0.1:", "topic \"spread\" with 4 partitions", "leader 1, replicas: 1"]
    {
        assert!(list.contains(expected), "{expected} is missing: {list}");
    }
}
