//! Reaching out: one supervised task per peer dials it, says hello, sends what its lanes hold, and starts over when
//! the connection is lost, for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::limits::{HELLO_FRAME_BYTES_MAX, PEER_FRAME_BYTES_MAX};
use base::{EndpointId, ErrorCode, SplitMix64};
use bytes::Bytes;
use iroh::endpoint::{Connection, ConnectionError, SendStream};
use iroh::{EndpointAddr, RelayUrl};
use runtime::{TaskContext, TaskResult};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::{Channel, Hello, HelloAck, HelloPurpose, NodeAddress, PROTOCOL_VERSION, PeerFrame, PeerMessage, Refusal};

use crate::lane::{Frame, Lane};
use crate::peer::{Peer, rtt};
use crate::transport::Shared;
use crate::twins::Process;
use crate::{ALPN, Incoming, close, frame};

/// From the first packet to the end of the handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// So long an attempt is not given up in favour of another one.
const ATTEMPT_UNDISTURBED: Duration = Duration::from_millis(100);
/// From the hello to its answer, by a member.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between attempts: doubles from the first to the second, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Between two readings of the round trip time.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// First byte of a stream of frames: what it carries.
pub const CONTROL_STREAM: u8 = 1;
/// See [`CONTROL_STREAM`].
pub const BULK_STREAM: u8 = 2;
/// Bulk streams have the default, 0.
const CONTROL_PRIORITY: i32 = 100;

/// Why a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It has no address that could be tried.
    #[error("no usable address: {0}")]
    Address(String),
    /// Nothing answered in time.
    #[error("no answer within {DIAL_TIMEOUT:?}")]
    Timeout,
    /// The handshake failed.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// It hung up during the hello.
    #[error("{0}")]
    Lost(String),
    /// It answered what no peer answers.
    #[error("it answered nonsense: {0}")]
    Nonsense(String),
    /// Another process answered than the one that speaks for the peer.
    #[error("another process of the peer answered: {0}")]
    Twin(String),
    /// It said no.
    #[error("it refused this node ({}): {}", .0.code, .0.reason)]
    Refused(Refusal),
    /// This node does not know yet who it is.
    #[error("this node has not joined a cluster yet")]
    Homeless,
}

/// The addresses of a peer in iroh's form.
pub fn endpoint_addr(endpoint: EndpointId, direct: &[String], relay: Option<&str>) -> Result<EndpointAddr, DialError> {
    let id = iroh::EndpointId::from_bytes(&endpoint.0)
        .map_err(|_| DialError::Address(format!("{endpoint} is not an Ed25519 public key")))?;
    let mut addr = EndpointAddr::new(id);
    let mut bad = Vec::new();
    for text in direct {
        match text.parse::<SocketAddr>() {
            Ok(ip) => addr = addr.with_ip_addr(ip),
            Err(_) => bad.push(format!("\"{text}\" is not ip:port")),
        }
    }
    if let Some(url) = relay {
        match url.parse::<RelayUrl>() {
            Ok(url) => addr = addr.with_relay_url(url),
            Err(_) => bad.push(format!("\"{url}\" is not a relay URL")),
        }
    }
    if addr.is_empty() {
        return Err(DialError::Address(if bad.is_empty() { "none is known".to_owned() } else { bad.join(", ") }));
    }
    Ok(addr)
}

/// Connects and finishes the TLS handshake. That the peer takes calls from this node is not known before the answer
/// to the hello.
pub async fn connect(endpoint: &iroh::Endpoint, addr: EndpointAddr) -> Result<Connection, DialError> {
    match timeout(DIAL_TIMEOUT, endpoint.connect(addr, ALPN)).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(error)) => Err(DialError::Connect(error.to_string())),
        Err(_) => Err(DialError::Timeout),
    }
}

/// Says hello and waits for the answer.
pub async fn say_hello(
    conn: &Connection,
    hello: &Hello,
    answer_max: usize,
    wait: Duration,
) -> Result<HelloAck, DialError> {
    let talk = async {
        let (mut send, mut recv) = conn.open_bi().await.map_err(|error| DialError::Lost(close::describe(&error)))?;
        let sent = frame::write(&mut send, wire::encode(hello)).await;
        let answer = match sent {
            Ok(()) => frame::read(&mut recv, answer_max).await,
            Err(_) => Ok(None),
        };
        match answer {
            Ok(Some(bytes)) => wire::decode::<HelloAck>(&bytes).map_err(|error| DialError::Nonsense(error.to_string())),
            Ok(None) | Err(frame::FrameError::Lost(_)) => Err(DialError::Lost(match conn.close_reason() {
                Some(error) => close::describe(&error),
                None => "it closed the stream without an answer".to_owned(),
            })),
            Err(error) => Err(DialError::Nonsense(error.to_string())),
        }
    };
    timeout(wait, talk).await.map_err(|_| DialError::Lost(format!("no answer to the hello within {wait:?}")))?
}

/// The task of one peer.
pub async fn keep_connected(shared: Arc<Shared>, peer: Arc<Peer>, context: TaskContext) -> TaskResult {
    let mut backoff = Backoff::new(&peer);
    while !context.cancel.is_cancelled() {
        let attempt = tokio::select! {
            attempt = call(&shared, &peer, backoff.attempts) => attempt,
            () = overtaken(&peer) => continue,
            () = context.cancel.cancelled() => break,
        };
        match attempt {
            Ok((conn, process)) => {
                backoff.reset();
                let reason = serve(&shared, &peer, &conn, process, &context).await;
                tracing::info!(peer = %peer.node, reason, "connection to peer ended");
            }
            Err(error) => {
                let reason = error.to_string();
                peer.unreachable(&reason);
                if matches!(&error, DialError::Refused(refusal) if refusal.code == ErrorCode::Expelled) {
                    // Said again at the next attempt, should there be no room for it now.
                    shared.control.try_send(Incoming::Expelled { by: peer.node });
                }
                if let DialError::Refused(Refusal { other: Some(other), .. }) = error {
                    shared.control.try_send(Incoming::Twin { by: peer.node, other });
                }
                if let DialError::Refused(Refusal { active: Some(active), .. }) = error {
                    shared.control.try_send(Incoming::Outdated { by: peer.node, active });
                }
                if matches!(&error, DialError::Refused(refusal) if refusal.code == ErrorCode::StaleEpoch) {
                    shared.control.try_send(Incoming::Superseded { by: peer.node });
                }
                if matches!(error, DialError::Timeout) {
                    peer.hang_up_on_caller();
                }
                if let Some(held_back) = shared.log.allow(&format!("dial {} {reason}", peer.node)) {
                    let addresses = peer.address().direct.join(", ");
                    // That the peer has no cluster yet is part of every start.
                    if matches!(&error, DialError::Refused(refusal) if refusal.code == ErrorCode::FailedPrecondition) {
                        tracing::info!(peer = %peer.node, addresses, reason, held_back, "peer cannot be reached yet");
                    } else {
                        tracing::warn!(peer = %peer.node, addresses, reason, held_back, "peer cannot be reached");
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = peer.wake.notified() => {}
            () = context.cancel.cancelled() => {}
        }
    }
    Ok(())
}

/// Resolves when a fresh attempt is better than the one under way: the peer itself called, or has a new address, while
/// the attempt's first packets most likely went to nobody (QUIC repeats them only after a while). An attempt that began
/// just now is left alone, so that two nodes that call each other at once do not give up in turns.
async fn overtaken(peer: &Peer) {
    tokio::time::sleep(ATTEMPT_UNDISTURBED).await;
    peer.wake.notified().await;
}

/// Where to look at the nth attempt: where the table of members has the peer, and, if it is not found there, in turn with that
/// wherever it may be as well. Not at first: iroh remembers for a minute where it looked and looks there as well, and whoever
/// else is there, and refuses to be taken for the peer, may be the first to answer.
fn place_to_try(attempt: u32, table: NodeAddress, hints: &[SocketAddr]) -> NodeAddress {
    let (round, elsewhere) = ((attempt as usize / 2).saturating_sub(1), attempt >= 2 && attempt % 2 == 1);
    match hints.get(round.checked_rem(hints.len()).unwrap_or(0)).filter(|_| elsewhere) {
        Some(hint) => NodeAddress { direct: vec![hint.to_string()], relay_url: None, ..table },
        None => table,
    }
}

/// One attempt, up to the welcome.
async fn call(shared: &Arc<Shared>, peer: &Peer, attempt: u32) -> Result<(Connection, Process), DialError> {
    let local = shared.gate.roster().local().ok_or(DialError::Homeless)?;
    let address = place_to_try(attempt, peer.address(), &shared.hints);
    let addr = endpoint_addr(peer.endpoint, &address.direct, address.relay_url.as_deref())?;
    let began = Instant::now();
    let conn = connect(&shared.endpoint, addr).await?;
    let purpose = HelloPurpose::Member {
        cluster: local.cluster,
        cluster_incarnation: local.cluster_incarnation,
        node: local.node,
        incarnation: local.incarnation,
        recovery: local.recovery,
        home: Some(local.home),
    };
    let hello = Hello { protocol: PROTOCOL_VERSION, purpose, versions: local.versions };
    match say_hello(&conn, &hello, HELLO_FRAME_BYTES_MAX, ANSWER_TIMEOUT).await {
        Ok(HelloAck::Welcome { node, incarnation, home }) if node == peer.node => {
            let process = Process { incarnation, home };
            if let Err(refusal) = peer.answered(process) {
                close::close(&conn, close::GOODBYE, "you are not the process that speaks for the node");
                return Err(DialError::Twin(refusal.reason));
            }
            shared.metrics.connect_seconds.observe(began.elapsed().as_secs_f64());
            Ok((conn, process))
        }
        Ok(HelloAck::Welcome { node, .. }) => {
            close::close(&conn, close::VIOLATION, "you are not the node that was called");
            Err(DialError::Nonsense(format!("it calls itself node {node}")))
        }
        Ok(HelloAck::Refused(refusal)) => {
            close::close(&conn, close::GOODBYE, "understood");
            Err(DialError::Refused(refusal))
        }
        Ok(HelloAck::Joined(_)) => Err(DialError::Nonsense("it answered a hello as if it were a join".to_owned())),
        Err(error) => {
            close::close(&conn, close::GOODBYE, "the hello came to nothing");
            Err(error)
        }
    }
}

/// Sends what there is until the connection is lost; returns why it was.
async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    conn: &Connection,
    process: Process,
    context: &TaskContext,
) -> String {
    // First, so that what is sent in answer to `Up` is not dropped for want of a connection.
    peer.connected(conn, process);
    let incarnation = process.incarnation;
    let up = shared.control.send(Incoming::Up { node: peer.node, incarnation }, 0);
    let told = tokio::select! { told = up => told.is_ok(), () = context.cancel.cancelled() => false };
    if !told {
        close::close(conn, close::GOODBYE, "stopping");
        peer.disconnected("this node is stopping");
        return "this node is stopping".to_owned();
    }
    tracing::info!(peer = %peer.node, %incarnation, rtt = ?rtt(conn), "connected to peer");
    let mut writers = JoinSet::new();
    for channel in [Channel::Control, Channel::Bulk] {
        for lane in peer.lanes(channel).lanes() {
            let writer = write_lane(conn.clone(), peer.clone(), channel, lane.clone());
            match channel {
                Channel::Control => writers.spawn(writer),
                Channel::Bulk => writers.spawn_on(writer, &shared.ordinary),
            };
        }
    }
    let mut sample = tokio::time::interval(SAMPLE_INTERVAL);
    let reason = loop {
        tokio::select! {
            error = conn.closed() => {
                if matches!(error, ConnectionError::TimedOut) {
                    peer.forget_caller();
                }
                break close::describe(&error);
            }
            Some(ended) = writers.join_next() => break match ended {
                Ok(reason) => reason,
                Err(error) => format!("a writer died: {error}"),
            },
            _ = sample.tick() => peer.metrics.rtt_seconds.set(rtt(conn).map_or(f64::NAN, |rtt| rtt.as_secs_f64())),
            () = context.cancel.cancelled() => break "this node is stopping".to_owned(),
        }
    };
    close::close(conn, close::GOODBYE, &reason);
    writers.shutdown().await;
    peer.disconnected(&reason);
    let down = shared.control.send(Incoming::Down { node: peer.node }, 0);
    // Once the engine has stopped reading there is nobody left to tell.
    tokio::select! { _ = down => {} () = context.cancel.cancelled() => { shared.control.try_send(Incoming::Down { node: peer.node }); } }
    reason
}

/// Writes one lane's messages to one stream; returns why it stopped.
async fn write_lane(conn: Connection, peer: Arc<Peer>, channel: Channel, lane: Arc<Lane>) -> String {
    let lost =
        |conn: &Connection| conn.close_reason().map_or("a stream was stopped".to_owned(), |e| close::describe(&e));
    let Ok(mut stream) = open_stream(&conn, channel).await else { return lost(&conn) };
    let metrics = peer.metrics.channel(channel);
    let mut last_heartbeat: Option<Instant> = None;
    loop {
        let Frame { messages, oldest } = lane.next().await;
        let heartbeat = messages.iter().any(|message| matches!(message, PeerMessage::Gossip(_)));
        let count = messages.len();
        let body = PeerFrame::encode(&messages);
        let bytes = body.len();
        if bytes > PEER_FRAME_BYTES_MAX {
            metrics.dropped.add(count as u64);
            tracing::error!(peer = %peer.node, bytes, "a message is larger than a frame may be; it was not sent");
            continue;
        }
        if frame::write(&mut stream, body).await.is_err() {
            metrics.dropped.add(count as u64);
            return lost(&conn);
        }
        metrics.frames_out.inc();
        metrics.bytes_out.add(bytes as u64);
        let written = Instant::now();
        metrics.delay.observe((written - oldest).as_secs_f64());
        if heartbeat && let Some(last) = last_heartbeat.replace(written) {
            peer.metrics.heartbeat_gap.observe((written - last).as_secs_f64());
        }
    }
}

async fn open_stream(conn: &Connection, channel: Channel) -> Result<SendStream, String> {
    let mut stream = conn.open_uni().await.map_err(|error| error.to_string())?;
    let kind = match channel {
        Channel::Control => {
            stream.set_priority(CONTROL_PRIORITY).map_err(|error| error.to_string())?;
            CONTROL_STREAM
        }
        Channel::Bulk => BULK_STREAM,
    };
    stream.write_chunk(Bytes::from(vec![kind])).await.map_err(|error| error.to_string())?;
    Ok(stream)
}

/// How long to wait before the next attempt.
struct Backoff {
    random: SplitMix64,
    attempts: u32,
}

impl Backoff {
    fn new(peer: &Peer) -> Self {
        let mut seed = [0; 8];
        // Jitter needs no secret; without randomness the peer's id spreads it well enough.
        let seed = getrandom::fill(&mut seed).map_or(peer.node.0, |()| u64::from_le_bytes(seed));
        Backoff { random: SplitMix64::new(seed), attempts: 0 }
    }

    fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Doubles up to the maximum; between half of it and the whole.
    fn next(&mut self) -> Duration {
        let whole = (BACKOFF_MIN * 2u32.pow(self.attempts.min(10))).min(BACKOFF_MAX);
        self.attempts += 1;
        let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.between(micros / 2, micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_address_and_hints_take_turns() {
        let table = NodeAddress { direct: vec!["10.0.0.9:1".to_owned()], ..NodeAddress::default() };
        let hints: Vec<SocketAddr> = ["10.0.0.1:1", "10.0.0.2:1"].map(|it| it.parse().unwrap()).to_vec();
        let tried = |hints: &[SocketAddr]| -> Vec<String> {
            (0..6).flat_map(|attempt| place_to_try(attempt, table.clone(), hints).direct).collect()
        };
        let turns = ["10.0.0.9:1", "10.0.0.9:1", "10.0.0.9:1", "10.0.0.1:1", "10.0.0.9:1", "10.0.0.2:1"];
        assert_eq!(tried(&hints), turns);
        assert_eq!(tried(&[]), ["10.0.0.9:1"; 6]);
    }
}
