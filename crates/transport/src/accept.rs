//! Being called: a bounded number of handshakes, a hello with a deadline, and then the frames of a member.

use std::sync::Arc;
use std::time::Duration;

use base::limits::{
    HANDSHAKES_MAX, HELLO_DEADLINE, HELLO_FRAME_BYTES_MAX, JOIN_DEADLINE, PEER_BULK_STREAMS, PEER_FRAME_BYTES_MAX,
};
use base::{EndpointId, ErrorCode, NodeId};
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use runtime::{TaskContext, TaskResult};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::{Channel, Hello, HelloAck, JoinRequest, PeerFrame, Refusal};

use crate::dial::{BULK_STREAM, CONTROL_STREAM};
use crate::frame::FrameError;
use crate::peer::Peer;
use crate::roster::Verdict;
use crate::transport::Shared;
use crate::twins::Process;
use crate::{Incoming, close, frame};

/// How long the other side gets to read a refusal or an acceptance before the connection is closed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Bytes of one member's connection that may be under way to this node: all its streams' windows, and some.
const MEMBER_RECEIVE_WINDOW: VarInt = VarInt::from_u32(8 << 20);

/// The task that takes calls.
pub async fn take_calls(shared: Arc<Shared>, context: TaskContext) -> TaskResult {
    let mut calls = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = shared.endpoint.accept() => incoming,
            Some(_) = calls.join_next() => continue,
            () = context.cancel.cancelled() => break,
        };
        let Some(incoming) = incoming else { break };
        let handshakes = shared.gate.handshakes.clone();
        // When many are half-way, make callers prove their address first, so that spoofed ones cost nothing.
        if handshakes.available_permits() < HANDSHAKES_MAX / 2 && !incoming.remote_addr_validated() {
            // It fails only for validated addresses.
            let _ = incoming.retry();
            continue;
        }
        match handshakes.try_acquire_owned() {
            Ok(permit) => {
                calls.spawn(take_call(shared.clone(), incoming, permit));
            }
            Err(_) => incoming.refuse(),
        }
    }
    calls.shutdown().await;
    Ok(())
}

/// One call, from its first packet to its end.
async fn take_call(shared: Arc<Shared>, incoming: iroh::endpoint::Incoming, handshake: OwnedSemaphorePermit) {
    let from = format!("{:?}", incoming.remote_addr());
    let deadline = Duration::from_millis(HELLO_DEADLINE.0);
    let shaken = match incoming.accept() {
        Ok(accepting) => match timeout(deadline, accepting).await {
            Ok(shaken) => shaken.map_err(|error| error.to_string()),
            Err(_) => Err("it was not finished in time".to_owned()),
        },
        Err(error) => Err(error.to_string()),
    };
    let conn = match shaken {
        Ok(conn) => conn,
        Err(reason) => return shared.handshake_failed(&from, &reason),
    };
    let endpoint = EndpointId(*conn.remote_id().as_bytes());
    let stranger = if shared.gate.roster().is_member(&endpoint) {
        None
    } else {
        match shared.gate.strangers.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => return close::close(&conn, close::BUSY, "too many strangers are calling; try again"),
        }
    };
    let caller = Caller { shared, conn, endpoint, from };
    let heard = timeout(deadline, caller.hear_hello()).await;
    drop(handshake);
    match heard {
        Ok(Some((send, Verdict::Member { node, process }))) => caller.serve_member(send, node, process).await,
        Ok(Some((send, Verdict::Join(request)))) => caller.serve_joiner(send, request).await,
        Ok(Some((send, Verdict::Refused(refusal)))) => caller.refuse(send, refusal).await,
        Ok(None) => {}
        Err(_) => {
            caller.complain("no hello came in time");
            close::close(&caller.conn, close::VIOLATION, "no hello came in time");
        }
    }
    drop(stranger);
}

/// Somebody who called.
struct Caller {
    shared: Arc<Shared>,
    conn: Connection,
    endpoint: EndpointId,
    from: String,
}

impl Caller {
    /// Reads and judges the hello. None: the connection is gone.
    async fn hear_hello(&self) -> Option<(SendStream, Verdict)> {
        let (send, mut recv) = self.conn.accept_bi().await.ok()?;
        let bytes = match frame::read(&mut recv, HELLO_FRAME_BYTES_MAX).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(FrameError::Lost(_)) => return None,
            Err(error) => return Some((send, unintelligible(error.to_string()))),
        };
        let verdict = match wire::decode::<Hello>(&bytes) {
            Ok(hello) => self.shared.gate.roster().judge(self.endpoint, hello),
            Err(error) => unintelligible(error.to_string()),
        };
        Some((send, verdict))
    }

    async fn refuse(&self, send: SendStream, refusal: Refusal) {
        self.shared.refused(self.endpoint, &self.from, &refusal);
        let reason = refusal.reason.clone();
        self.last_words(send, HelloAck::Refused(refusal)).await;
        close::close(&self.conn, close::REFUSED, &reason);
    }

    /// Answers, and gives the caller a moment to read the answer and hang up.
    async fn last_words(&self, mut send: SendStream, answer: HelloAck) {
        if frame::write(&mut send, wire::encode(&answer)).await.is_ok() && send.finish().is_ok() {
            // The caller hangs up as soon as it has read; one that does not is cut off.
            let _ = timeout(LAST_WORDS, self.conn.closed()).await;
        }
    }

    async fn serve_joiner(&self, send: SendStream, request: Box<JoinRequest>) {
        let (reply, answer) = oneshot::channel();
        let join = Incoming::Join { request, endpoint: self.endpoint, reply };
        let decided = async {
            self.shared.control.send(join, HELLO_FRAME_BYTES_MAX).await.ok()?;
            answer.await.ok()
        };
        let refused = |code, reason: &str| HelloAck::Refused(Refusal::new(code, reason));
        let answer = tokio::select! {
            decided = timeout(Duration::from_millis(JOIN_DEADLINE.0), decided) => match decided {
                Ok(Some(answer)) => answer,
                Ok(None) => refused(ErrorCode::Busy, "this node cannot take joins just now; try again"),
                Err(_) => refused(ErrorCode::DeadlineExceeded, "the cluster did not decide in time; try again"),
            },
            _ = self.conn.closed() => return,
        };
        match answer {
            HelloAck::Refused(refusal) => self.refuse(send, refusal).await,
            answer => {
                self.last_words(send, answer).await;
                close::close(&self.conn, close::GOODBYE, "call again as a member");
            }
        }
    }

    async fn serve_member(&self, mut send: SendStream, node: NodeId, process: Process) {
        // The member may have been removed since the hello was judged.
        let (Some(peer), Some(local)) = (self.shared.peer(node), self.shared.gate.roster().local()) else { return };
        if let Err(refusal) = peer.called(&self.conn, process) {
            return self.refuse(send, refusal).await;
        }
        self.conn.set_receive_window(MEMBER_RECEIVE_WINDOW);
        self.conn.set_max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX));
        let home = Some(local.home);
        let welcome = HelloAck::Welcome { node: local.node, incarnation: local.incarnation, home };
        if frame::write(&mut send, wire::encode(&welcome)).await.is_ok() && send.finish().is_ok() {
            self.read_streams(&peer).await;
        }
        peer.call_ended(&self.conn);
    }

    /// Reads every stream until the connection ends or carries what it must not.
    async fn read_streams(&self, peer: &Arc<Peer>) {
        let mut readers = JoinSet::new();
        let violation = loop {
            tokio::select! {
                stream = self.conn.accept_uni() => match stream {
                    Ok(_) if readers.len() >= STREAMS_MAX as usize => break "too many streams".to_owned(),
                    Ok(stream) => { readers.spawn(read_stream(self.shared.clone(), peer.clone(), stream)); }
                    Err(_) => return,
                },
                Some(ended) = readers.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(FrameError::Lost(_))) if self.conn.close_reason().is_some() => return,
                    Ok(Err(error)) => break error.to_string(),
                    Err(error) => break format!("a reader died: {error}"),
                },
            }
        };
        self.complain(&violation);
        close::close(&self.conn, close::VIOLATION, &violation);
    }

    /// One line about a connection that is being closed for what it sent.
    fn complain(&self, reason: &str) {
        self.shared.metrics.violations.inc();
        if let Some(held_back) = self.shared.log.allow(&format!("violation {} {reason}", self.endpoint)) {
            let (endpoint, from) = (self.endpoint, &self.from);
            tracing::warn!(%endpoint, from, reason, held_back, "closing a peer connection for what it sent");
        }
    }
}

/// One control stream and the bulk streams.
const STREAMS_MAX: u32 = 1 + PEER_BULK_STREAMS as u32;

fn unintelligible(why: String) -> Verdict {
    let reason = format!("its hello cannot be understood ({why}); is it muster, and of which version?");
    Verdict::Refused(Refusal::new(ErrorCode::UnsupportedVersion, reason))
}

/// Reads the first byte, which says what the stream is, and then its frames, on the thread where they belong.
async fn read_stream(shared: Arc<Shared>, peer: Arc<Peer>, mut stream: RecvStream) -> Result<(), FrameError> {
    let kind = match stream.read_chunk(1).await? {
        Some(kind) => kind[0],
        None => return Ok(()),
    };
    match kind {
        CONTROL_STREAM => read_frames(shared, peer, Channel::Control, stream).await,
        BULK_STREAM => {
            let ordinary = shared.ordinary.clone();
            let mut reader = JoinSet::new();
            reader.spawn_on(read_frames(shared, peer, Channel::Bulk, stream), &ordinary);
            // Dropping the set, when this future is dropped, drops the reader too.
            match reader.join_next().await {
                Some(Ok(ended)) => ended,
                _ => Err(FrameError::Cut),
            }
        }
        other => Err(FrameError::Malformed(wire::WireError::Malformed {
            what: "stream",
            reason: format!("kind {other} is neither control nor bulk"),
        })),
    }
}

async fn read_frames(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    channel: Channel,
    mut stream: RecvStream,
) -> Result<(), FrameError> {
    let metrics = peer.metrics.channel(channel);
    let inbox = match channel {
        Channel::Control => &shared.control,
        Channel::Bulk => &shared.bulk,
    };
    while let Some(bytes) = frame::read(&mut stream, PEER_FRAME_BYTES_MAX).await? {
        metrics.frames_in.inc();
        metrics.bytes_in.add(bytes.len() as u64);
        let PeerFrame { messages, unknown } = PeerFrame::decode(&bytes)?;
        if unknown > 0 {
            metrics.not_understood.add(unknown);
            if let Some(held_back) = shared.log.allow(&format!("unknown messages {}", peer.node)) {
                tracing::warn!(peer = %peer.node, unknown, held_back, "left out messages of a kind that only a newer muster knows");
            }
        }
        let size = bytes.len();
        drop(bytes);
        if inbox.send(Incoming::Peer { from: peer.node, channel, messages }, size).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
