//! Ctrl-C and SIGTERM, for the verbs that keep children.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Told when somebody wants the process to stop.
pub(crate) struct Signals {
    received: Receiver<()>,
}

impl Signals {
    /// From now on Ctrl-C and SIGTERM do not end the process but are told here.
    pub(crate) fn catch() -> anyhow::Result<Signals> {
        let (sender, received) = sync_channel(4);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("signal handling")?;
        let (ready, is_ready) = sync_channel(1);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async move {
                let both = signal(SignalKind::interrupt()).and_then(|a| Ok((a, signal(SignalKind::terminate())?)));
                let (mut interrupt, mut terminate) = match both {
                    Ok(both) => both,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let _ = ready.send(Ok(()));
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    // Whoever ignores four of them will not heed a fifth.
                    let _ = sender.try_send(());
                }
            });
        })?;
        is_ready.recv().context("the signal thread ended")?.context("cannot catch signals")?;
        Ok(Signals { received })
    }

    /// Forgets the signals that came until now: pressing Ctrl-C twice for one end is not to ask for a harder one.
    pub(crate) fn forget(&self) {
        while self.received.try_recv().is_ok() {}
    }

    /// Whether a signal came within `wait`.
    pub(crate) fn came_within(&self, wait: Duration) -> bool {
        match self.received.recv_timeout(wait) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        }
    }
}
