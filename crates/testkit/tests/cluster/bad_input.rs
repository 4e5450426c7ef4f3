//! Bytes and words that nobody should send.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use anyhow::{Context, ensure};
use testkit::{Cluster, Folder, Node, wait_until};

use crate::kafka::{drain, ensure_answers};
use crate::support::{PATIENCE, machine_shared};

/// Pieces of garbage sent to each port.
const PIECES: usize = 200;
/// Datagrams sent before the port is asked for an answer: few enough for a socket's buffer.
const PIECES_AT_ONCE: usize = 20;
/// What goes through as one datagram anywhere.
const DATAGRAM_BYTES_MAX: usize = 1_400;
/// A node says the same of its callers once in so many seconds.
const QUIET_S: u64 = 30;

#[test]
fn garbage_on_any_port_closes_its_connection_and_nothing_else() {
    let _machine = machine_shared();
    Folder::scenario("garbage", |folder| {
        let mut cluster = Cluster::start(folder, 2)?;
        let node = &mut cluster.nodes[0];
        let mut kafka_neighbour = TcpStream::connect(node.kafka)?;
        ensure_answers(&mut kafka_neighbour)?;
        let mut api_neighbour = TcpStream::connect(node.api)?;
        ensure_http(&mut api_neighbour)?;

        let mut chance = Chance(0x1234_5678_9abc_def1);
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..PIECES {
            send_garbage(node.kafka, &chance.piece()).context("the Kafka port")?;
            send_garbage(node.api, &chance.piece()).context("the API port")?;
            // A datagram that does not fit is no datagram.
            let piece = chance.piece();
            socket.send_to(&piece[..piece.len().min(DATAGRAM_BYTES_MAX)], node.peer)?;
        }
        for piece in [&b"GET / HTTP/9.9\r\n\r\n"[..], b"POST /v1/vms HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n{"]
        {
            send_garbage(node.api, piece).context("the API port")?;
        }
        send_garbage(node.kafka, b"GET / HTTP/1.1\r\n\r\n").context("the Kafka port")?;
        send_garbage(node.kafka, &[0x7f, 0xff, 0xff, 0xff, 0, 0]).context("the Kafka port")?;

        node.process()?.ensure_running()?;
        ensure_answers(&mut kafka_neighbour).context("a neighbour on the Kafka port")?;
        ensure_http(&mut api_neighbour).context("a neighbour on the API port")?;
        for line in ["Kafka connection closed", "API connection closed: what it sent is no request"] {
            ensure!(node.log().contains(line), "no line of the log says \"{line}\"");
        }
        cluster.wait_ready(PATIENCE)?;
        cluster.nodes[1].kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])?;
        ensure!(cluster.nodes[0].kcat().consume("t")?.len() == 1, "the cluster does not work any more");
        Ok(())
    });
}

#[test]
fn garbage_on_the_peer_port_harms_nobody_and_the_log_tells_of_it_once() {
    let _machine = machine_shared();
    Folder::scenario("peer-garbage", |folder| {
        let mut cluster = Cluster::start(folder, 2)?;
        let node = &cluster.nodes[0];
        let before = node.log();
        let mut chance = Chance(0x0fed_cba9_8765_4321);
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let start = Instant::now();
        for round in 0..PIECES / PIECES_AT_ONCE {
            for number in 0..PIECES_AT_ONCE {
                let mut piece = chance.piece();
                piece.truncate(DATAGRAM_BYTES_MAX);
                if number.is_multiple_of(2) {
                    pass_for_quic(&mut piece);
                }
                socket.send_to(&piece, node.peer)?;
            }
            // What comes after it is answered, so all of it has been looked at.
            ensure_negotiates(&socket, node.peer).with_context(|| format!("after round {round}"))?;
        }
        let said_since = |node: &Node| node.log().strip_prefix(&before).map(str::to_owned).context("the log was lost");
        wait_until(PATIENCE, "the log tells of it", || {
            let said = said_since(node)?;
            ensure!(said.contains("its handshake failed"), "{said}");
            Ok(())
        })?;

        cluster.nodes[1].kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])?;
        ensure!(cluster.nodes[0].kcat().consume("t")?.len() == 1, "the cluster does not work any more");
        cluster.nodes[0].ensure_ready()?;
        ensure_no_task_fell(&cluster.nodes[0])?;
        let said = said_since(&cluster.nodes[0])?;
        let lines: Vec<&str> = said.lines().filter(|line| !line.contains(" INFO ")).collect();
        // Who sends it is named, and nothing else is complained of.
        let from = format!("from=\"Ip({})\"", socket.local_addr()?);
        let expected = ["WARN", "closing an incoming connection: its handshake failed", &from];
        let strange = lines.iter().find(|line| !expected.iter().all(|part| line.contains(part)));
        ensure!(strange.is_none(), "the log says {strange:?}");
        let most = 1 + start.elapsed().as_secs() / QUIET_S;
        ensure!(lines.len() as u64 <= most, "{} lines in the log instead of {most}: {lines:?}", lines.len());
        ensure!(!said.contains("connection to peer ended"), "the peer was lost:\n{said}");
        Ok(())
    });
}

fn ensure_no_task_fell(node: &Node) -> anyhow::Result<()> {
    let tasks = node.api().get(&format!("/v1/tasks?node={}", node.name))?.ok()?;
    let tasks = tasks["nodes"][0]["tasks"].as_array().context("no tasks")?;
    let fell: Vec<_> = tasks.iter().filter(|task| task["restarts"] != 0).collect();
    ensure!(!tasks.is_empty() && fell.is_empty(), "of {} tasks these fell: {fell:?}", tasks.len());
    Ok(())
}

/// Makes bytes look like the beginning of a connection: QUIC version 1, a connection id of 8 bytes, no token, and all
/// the rest encrypted.
fn pass_for_quic(piece: &mut Vec<u8>) {
    piece.resize(DATAGRAM_BYTES_MAX, 0x5a);
    piece[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
    let rest = (0x4000 | (DATAGRAM_BYTES_MAX - 18) as u16).to_be_bytes();
    piece[14..18].copy_from_slice(&[0, 0, rest[0], rest[1]]);
}

/// Asks in a version of QUIC that nobody speaks, and reads which ones are spoken there (RFC 9000, 17.2.1).
fn ensure_negotiates(socket: &UdpSocket, address: SocketAddr) -> anyhow::Result<()> {
    let mut probe = vec![0; DATAGRAM_BYTES_MAX];
    probe[..16].copy_from_slice(b"\xc3\x1a\x2a\x3a\x4a\x08ask-them\x01\x07");
    socket.send_to(&probe, address)?;
    let mut answer = [0; 2048];
    loop {
        let length = socket.recv(&mut answer).context("no answer")?;
        // Version 0, to who asked: its source comes back as the destination, its destination as the source.
        if answer[..length].get(1..16) == Some(b"\0\0\0\0\x01\x07\x08ask-them") {
            return Ok(());
        }
    }
}

#[test]
fn mistyped_words_are_refused_with_the_nearest_right_ones() {
    let _machine = machine_shared();
    Folder::scenario("words", |folder| {
        let cluster = Cluster::start(folder, 1)?;
        let node = &cluster.nodes[0];
        let mistakes: [(&[&str], &str); 5] = [
            (&["statsu"], "status"),
            (&["vm", "creat", "web1"], "create"),
            (&["topic", "lst"], "list"),
            (&["status", "--outptu", "json"], "--output"),
            (&["vm", "create", "web1", "--image", "ubuntu"], "minimal"),
        ];
        for (words, near) in mistakes {
            let ended = node.cli(words)?;
            let line = words.join(" ");
            ensure!(!ended.status.success(), "`muster {line}` succeeded:\n{}", ended.text());
            ensure!(ended.text().contains(near), "`muster {line}` does not suggest {near}:\n{}", ended.text());
        }
        let missing = node.cli(&["vm", "inspect", "nobody"])?;
        ensure!(!missing.status.success(), "a VM that is not there was shown:\n{}", missing.text());
        ensure!(missing.text().contains("nobody"), "the name is missing:\n{}", missing.text());
        let status = node.cli_json(&["status"])?;
        ensure!(status["nodes"][0]["state"] == "ready", "status says {status}");
        Ok(())
    });
}

/// A seeded source of garbage.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 1 to 5,000 bytes; every other piece looks like a frame whose length is right.
    fn piece(&mut self) -> Vec<u8> {
        let length = self.next() % 5_000 + 1;
        let mut piece: Vec<u8> = (0..length).map(|_| self.next().to_le_bytes()[0]).collect();
        if self.next().is_multiple_of(2) && piece.len() > 8 {
            let inner = u32::try_from(piece.len() - 4).unwrap_or_default();
            piece[..4].copy_from_slice(&inner.to_be_bytes());
            // A request that exists, so that its body is looked at.
            let (api_key, version) = (u16::from(piece[5]) % 93, u16::from(piece[7]) % 14);
            piece[4..6].copy_from_slice(&api_key.to_be_bytes());
            piece[6..8].copy_from_slice(&version.to_be_bytes());
        }
        piece
    }
}

/// Sends bytes, says that no more will come, and waits until the other side closes.
fn send_garbage(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The other side may close before it has read all of it.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    drain(stream)
}

/// Asks for `/readyz` on a connection that stays open, and reads the answer's head.
fn ensure_http(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"HTTP/1.1 200", "/readyz was answered with {:?}", String::from_utf8_lossy(&answer));
    // The rest of the answer: one read is enough for what so short an answer leaves.
    let mut rest = [0; 4096];
    let _ = stream.read(&mut rest)?;
    Ok(())
}
