//! The listener: bounded connections, each in a task of its own, so that whatever bytes arrive on one disturb no other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::Millis;
use base::limits::{
    API_CONNECTIONS_MAX, API_CONNECTIONS_RESERVED, API_HEAD_BYTES_MAX, API_HEADER_TIMEOUT, API_WAITS_MAX,
};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::RestDoor;
use super::complaints::Complaints;
use super::handler::{ProbesOnly, router};
use super::waits::Waits;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    pub connections_max: usize,
    /// Connections beyond these, each of which is for one probe.
    pub reserved: usize,
    /// Streams and calls that may wait for long.
    pub waits_max: usize,
    /// A connection that has not sent a whole request head after this long is closed, also between requests.
    pub header_timeout: Millis,
    /// How long requests may go on once the server is asked to stop, except for those that wait: these end at once.
    pub drain: Millis,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            connections_max: API_CONNECTIONS_MAX,
            reserved: API_CONNECTIONS_RESERVED,
            waits_max: API_WAITS_MAX as usize,
            header_timeout: API_HEADER_TIMEOUT,
            drain: Millis(2_000),
        }
    }
}

/// What a listener did, once it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub connections: u64,
    /// Turned away because there were too many.
    pub refused: u64,
    /// Streams and waiting calls that were ended, and told so, when the server stopped.
    pub ended: u64,
    /// Connections still busy when the time to drain was up.
    pub cut: usize,
}

/// Serves until `stop` is ready, then ends what waits, and lets other requests under way end within [`ServerLimits::drain`].
pub async fn serve<C: Send + Sync + 'static>(
    listener: TcpListener,
    door: Arc<RestDoor<C>>,
    limits: ServerLimits,
    stop: impl Future<Output = ()> + Send,
) -> Served {
    let (stopping, watching) = watch::channel(false);
    let waits = Waits::new(limits.waits_max, watching.clone());
    let router = router(door, &waits);
    let complaints = Arc::new(Complaints::default());
    let room = Arc::new(Semaphore::new(limits.connections_max));
    let reserve = Arc::new(Semaphore::new(limits.reserved));
    let mut connections = JoinSet::new();
    let mut served = Served::default();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the API listener cannot accept connections now");
                // Most likely out of file descriptors: trying again at once would only burn the CPU.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let probes_only = room.available_permits() == 0;
        let places = if probes_only { &reserve } else { &room };
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            served.refused += 1;
            turn_away(stream, peer);
            continue;
        };
        served.connections += 1;
        let (service, watching) = (TowerToHyperService::new(router.clone()), watching.clone());
        let complaints = complaints.clone();
        connections.spawn(async move {
            let asked = AtomicBool::new(false);
            let serving = Serving { peer, probes_only, header_timeout: limits.header_timeout };
            if let Err(error) = connection(stream, serving, service, watching, &asked).await {
                tell(peer, &error, asked.into_inner(), &complaints);
            }
            drop(permit);
        });
    }
    drop(listener);
    let _ = stopping.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_millis(limits.drain.0), drained).await;
    served.cut = connections.len();
    connections.shutdown().await;
    served.ended = waits.ended();
    served
}

/// What is known of a connection.
#[derive(Clone, Copy)]
struct Serving {
    peer: SocketAddr,
    /// It has a place in reserve.
    probes_only: bool,
    header_timeout: Millis,
}

/// Serves one connection to its end; `asked` becomes true with the first request that can be understood.
async fn connection(
    stream: TcpStream,
    Serving { peer, probes_only, header_timeout }: Serving,
    service: TowerToHyperService<axum::Router>,
    mut stopping: watch::Receiver<bool>,
    asked: &AtomicBool,
) -> hyper::Result<()> {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        if probes_only {
            request.extensions_mut().insert(ProbesOnly);
        }
        service.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(header_timeout.0))
        .keep_alive(!probes_only)
        .max_buf_size(API_HEAD_BYTES_MAX);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let stop = async {
        // An error means that the server is gone: stop all the same.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    }
}

/// One line, but not too many of them, about a connection that is closed for what it sent. A client that hangs up while
/// it waits for an answer, or that keeps a connection for later, does nothing wrong.
fn tell(peer: SocketAddr, error: &hyper::Error, asked: bool, complaints: &Complaints) {
    let reason = error as &dyn std::error::Error;
    let garbage = error.is_parse() || (!asked && (error.is_incomplete_message() || error.is_timeout()));
    if !garbage {
        tracing::debug!(%peer, reason, "API connection ended");
    } else if let Some(held_back) = complaints.allow() {
        tracing::warn!(%peer, reason, held_back, "API connection closed: what it sent is no request");
    }
}

/// Says that there are too many connections, without waiting for the other side to listen.
fn turn_away(stream: TcpStream, peer: SocketAddr) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
        content-length: 136\r\nretry-after: 1\r\nconnection: close\r\n\r\n";
    const BODY: &[u8] = br#"{"type":"urn:muster:error:busy","title":"busy","status":503,"detail":"too many connections","code":"busy","hint":"try again in a while"}"#;
    tracing::warn!(%peer, "API connection refused: too many connections");
    let Ok(stream) = stream.into_std() else { return };
    // The socket is non-blocking and its buffer empty, so that this either fits at once or fails.
    let mut stream = stream;
    let _ = std::io::Write::write_all(&mut stream, ANSWER).and_then(|()| std::io::Write::write_all(&mut stream, BODY));
}
