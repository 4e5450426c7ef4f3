//! What is done beside the core for it, and how it comes back.
//!
//! A checkpoint of the cluster's state is made on a thread of its own, behind everything else: to encode a large state takes
//! a core for a good while, on every node at about the same time, and nobody waits for it.

use std::sync::mpsc as std_mpsc;

use base::limits::DRIVER_QUESTIONS_MAX;
use engine::{Event, Work, Worked};
use runtime::spawn_priority_thread;
use tokio::sync::mpsc;

/// Works that the core has under way at once: one checkpoint is encoded or decoded at a time, and one that became needless
/// may still run.
const WORKS_MAX: usize = 4;
/// Beside one thread that always has something to do this one gets a quarter of a core.
const CHECKPOINT_NICE: i32 = 5;

/// The ways out and back.
pub(crate) struct Beside {
    checkpoints: std_mpsc::SyncSender<Work>,
    answers: mpsc::Sender<Event>,
    answered: mpsc::Receiver<Event>,
}

impl Beside {
    /// Starts the thread. It ends after this has been dropped.
    ///
    /// # Errors
    /// If the thread cannot be made.
    pub fn start() -> std::io::Result<Beside> {
        // The core asks no more at once than there is room for.
        let (answers, answered) = mpsc::channel(DRIVER_QUESTIONS_MAX + WORKS_MAX);
        let (checkpoints, waiting) = std_mpsc::sync_channel::<Work>(WORKS_MAX);
        let done = answers.clone();
        spawn_priority_thread("checkpoint", CHECKPOINT_NICE, move || {
            for work in waiting {
                // The core may be gone by now.
                let _ = done.blocking_send(Event::Worked(work.carry_out()));
            }
        })?;
        Ok(Beside { checkpoints, answers, answered })
    }

    /// Has something done that takes long.
    pub fn work(&self, work: Work) {
        let work = match work {
            Work::Encode { .. } => match self.checkpoints.try_send(work) {
                Ok(()) => return,
                Err(std_mpsc::TrySendError::Full(work) | std_mpsc::TrySendError::Disconnected(work)) => work,
            },
            Work::Decode { .. } => work,
        };
        let answers = self.answers();
        let (Work::Encode { index, .. } | Work::Decode { index, .. }) = work;
        tokio::task::spawn_blocking(move || {
            // Without an answer the core would wait for ever, and not say for what.
            let panicked = |_| Worked::Decoded { index, state: Err("reading it panicked".into()) };
            let worked = std::panic::catch_unwind(|| work.carry_out()).unwrap_or_else(panicked);
            // The core may be gone by now.
            let _ = answers.blocking_send(Event::Worked(worked));
        });
    }

    /// Where to send what the core is to hear.
    pub fn answers(&self) -> mpsc::Sender<Event> {
        self.answers.clone()
    }

    /// The next that came back.
    pub async fn next(&mut self) -> Option<Event> {
        self.answered.recv().await
    }
}
