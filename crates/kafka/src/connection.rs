//! One connection: requests in, answers out in request order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base::limits::{KAFKA_CONNECTION_BYTES_MAX, KAFKA_PIPELINE_MAX, KAFKA_WRITE_TIMEOUT};
use bytes::{Buf, BytesMut};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use kafka_protocol::messages::ApiKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::{Instant, timeout};

use crate::Broker;
use crate::dispatch::{self, Outcome, Refused, Started};
use crate::frame::{FrameError, FrameReader};
use crate::listener::Shared;

/// Small answers that are ready are written together, up to this many bytes.
const WRITE_BYTES: usize = 256 << 10;

/// Why the listener closed a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("no request came for {0}")]
    Idle(base::Millis),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{0}")]
    Request(String),
    #[error("the client takes no answers")]
    WriteTimeout,
    #[error("writing failed")]
    Write(#[source] std::io::Error),
    #[error("an answer cannot be encoded: {0}")]
    Encode(String),
}

impl Closed {
    /// The whole chain of causes.
    pub(crate) fn full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// A request under way.
struct Account {
    api: ApiKey,
    began: Instant,
    /// That count towards the connection's bound.
    bytes: usize,
}

/// Serves one client until it leaves or has to go. Never reads ahead of what it may hold.
pub(crate) async fn serve<B: Broker>(shared: Arc<Shared<B>>, mut stream: TcpStream) -> Result<(), Closed> {
    let (mut from, mut to) = stream.split();
    let mut frames = FrameReader::new(shared.config.frame_bytes_max);
    let mut under_way = FuturesOrdered::new();
    let mut accounts: VecDeque<Account> = VecDeque::new();
    let mut weight = 0usize;
    let idle_timeout = Duration::from_millis(shared.config.idle_timeout.0);
    let mut last_activity = Instant::now();
    loop {
        let room =
            under_way.is_empty() || (under_way.len() < KAFKA_PIPELINE_MAX && weight < KAFKA_CONNECTION_BYTES_MAX);
        tokio::select! {
            frame = frames.next(&mut from), if room => {
                let Some(frame) = frame? else { return Ok(()) };
                let frame_bytes = frame.len();
                shared.metrics.bytes_in.add(frame_bytes as u64);
                last_activity = Instant::now();
                let Started { api, outcome, answer_bytes_max } = dispatch::start(&shared, frame)?;
                under_way.push_back(outcome);
                let bytes = frame_bytes + answer_bytes_max;
                accounts.push_back(Account { api, began: last_activity, bytes });
                weight += bytes;
            }
            Some(outcome) = under_way.next(), if !under_way.is_empty() => {
                let mut out = BytesMut::new();
                let mut next = Some(outcome);
                while let Some(outcome) = next {
                    if let Some(Account { api, began, bytes }) = accounts.pop_front() {
                        shared.metrics.answered(api, began.elapsed().as_secs_f64());
                        weight -= bytes;
                    }
                    if let Err(closed) = put(outcome, &mut out) {
                        // What was answered before the failure still belongs to the client.
                        write(&mut to, out).await?;
                        return Err(closed);
                    }
                    next = if out.len() < WRITE_BYTES { under_way.next().now_or_never().flatten() } else { None };
                }
                shared.metrics.bytes_out.add(out.len() as u64);
                write(&mut to, out).await?;
                last_activity = Instant::now();
            }
            () = tokio::time::sleep_until(last_activity + idle_timeout), if under_way.is_empty() => {
                return Err(Closed::Idle(shared.config.idle_timeout));
            }
        }
    }
}

fn put(outcome: Outcome, out: &mut BytesMut) -> Result<(), Closed> {
    match outcome {
        Outcome::Answer(answer) => answer.encode(out).map_err(Closed::Encode),
        Outcome::Silence => Ok(()),
        Outcome::Close(reason) => Err(Closed::Request(reason)),
    }
}

async fn write(to: &mut WriteHalf<'_>, mut out: BytesMut) -> Result<(), Closed> {
    let patience = Duration::from_millis(KAFKA_WRITE_TIMEOUT.0);
    while out.has_remaining() {
        match timeout(patience, to.write_buf(&mut out)).await {
            Ok(Ok(0)) => return Err(Closed::Write(std::io::ErrorKind::WriteZero.into())),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(Closed::Write(error)),
            Err(_) => return Err(Closed::WriteTimeout),
        }
    }
    Ok(())
}
