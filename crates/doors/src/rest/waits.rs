//! Streams and calls that may wait for long: so many at once, and none for longer than the server serves. Most of them would
//! never end by themselves, and a server that stops must not wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::ErrorCode;
use futures::{Stream, StreamExt};
use ops::{ItemStream, OpError};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// All of one server's.
#[derive(Clone)]
pub(super) struct Waits {
    places: Arc<Semaphore>,
    ended: Arc<AtomicU64>,
    stopping: watch::Receiver<bool>,
}

impl Waits {
    /// So many at once, until `stopping` becomes true or its sender is gone.
    pub fn new(max: usize, stopping: watch::Receiver<bool>) -> Waits {
        Waits { places: Arc::new(Semaphore::new(max)), ended: Arc::default(), stopping }
    }

    /// A place for one more.
    pub fn enter(self) -> Result<Wait, OpError> {
        let Waits { places, ended, stopping } = self;
        let place = places.try_acquire_owned().map_err(|_| {
            OpError::new(ErrorCode::Busy, "too many streams and waiting calls are under way on this node")
                .hint("ask another node, or try again when some have ended")
        })?;
        Ok(Wait { _place: place, ended, stopping })
    }

    /// How many were ended because the server stopped.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }
}

/// One of them. Its place is free again when this is dropped.
pub(super) struct Wait {
    _place: OwnedSemaphorePermit,
    ended: Arc<AtomicU64>,
    stopping: watch::Receiver<bool>,
}

impl Wait {
    /// What comes of a call, unless the server stops before. Then the call is dropped, as when its caller hangs up: what it
    /// began is ended by its own guards, before this returns.
    pub async fn call<T>(&mut self, call: impl Future<Output = Result<T, OpError>>) -> Result<T, OpError> {
        tokio::select! {
            biased;
            ended = call => ended,
            () = self.server_stops() => Err(self.cut_short()),
        }
    }

    /// The items of a stream, until the server stops: then the last one says so.
    pub fn stream(self, items: ItemStream) -> impl Stream<Item = Result<Value, OpError>> + Send + 'static {
        futures::stream::unfold(Some((self, items)), |state| async move {
            let (mut wait, mut items) = state?;
            tokio::select! {
                // A stream that always has something to say must not outlast the server either.
                biased;
                () = wait.server_stops() => Some((Err(wait.cut_short()), None)),
                item = items.next() => item.map(|item| (item, Some((wait, items)))),
            }
        })
    }

    async fn server_stops(&mut self) {
        // An error means that the server is gone: that is an end all the same.
        let _ = self.stopping.wait_for(|stopping| *stopping).await;
    }

    fn cut_short(&self) -> OpError {
        self.ended.fetch_add(1, Ordering::Relaxed);
        OpError::new(ErrorCode::ShuttingDown, "this node is stopping, and ends what waits")
            .hint("ask another node (`--api`); who follows a stream goes on there behind the last item that came")
    }
}
