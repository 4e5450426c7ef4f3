//! A partition's reader, shared between the engine's driver, which feeds it, and the connections that fetch.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use stream::{Reader, Update, UpdateError};
use tokio::sync::watch;

/// A [`Reader`] behind a lock, with a signal for long polls.
#[derive(Debug)]
pub struct PartitionReader {
    reader: RwLock<Reader>,
    changed: watch::Sender<()>,
}

impl Default for PartitionReader {
    fn default() -> Self {
        Self::new()
    }
}

impl PartitionReader {
    /// A reader that knows nothing yet and leads nothing.
    #[must_use]
    pub fn new() -> PartitionReader {
        PartitionReader { reader: RwLock::new(Reader::new()), changed: watch::Sender::new(()) }
    }

    /// Takes in news (`Effect::Publish`), in order, and wakes who waits for it.
    ///
    /// # Errors
    /// The update does not continue what came before: a bug. The reader serves nothing from then on, until an update
    /// with `reset`.
    pub fn publish(&self, update: Update) -> Result<(), UpdateError> {
        let result = {
            let mut reader = self.reader.write().unwrap_or_else(PoisonError::into_inner);
            let result = reader.apply(update);
            if result.is_err() {
                *reader = Reader::new();
            }
            result
        };
        self.changed.send_replace(());
        result
    }

    /// The partition left this node (`Effect::Unpublish`): who waits is told that this node does not lead.
    pub fn close(&self) {
        *self.reader.write().unwrap_or_else(PoisonError::into_inner) = Reader::new();
        self.changed.send_replace(());
    }

    /// The reader as of now. Decisions only: the guard must not live across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Reader> {
        self.reader.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marked as changed after every [`PartitionReader::publish`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
