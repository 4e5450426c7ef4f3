//! Threads that the scheduler prefers, or puts off.
//!
//! A lower nice value needs CAP_SYS_NICE (or RLIMIT_NICE); without, the thread runs at normal priority, which is correct and
//! merely less punctual.

use std::io;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::punctual::{PULSE, Pulse, spawn_punctual_thread};

/// Starts a thread named `name` that tries to set its nice value to `nice` (-20..=19) and then runs `body`. Raising it is
/// always granted.
///
/// # Errors
/// If the thread cannot be made. A nice value that was not granted is no error; it is logged once.
pub fn spawn_priority_thread<T: Send + 'static>(
    name: &str,
    nice: i32,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let label = name.to_owned();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // On Linux PRIO_PROCESS with 0 means the calling thread alone.
        if let Err(error) = rustix::process::setpriority_process(None, nice) {
            tracing::info!(thread = label, nice, %error, "thread runs at normal priority (CAP_SYS_NICE would raise it)");
        }
        body()
    })
}

/// What is in a queue by now. Unlike `try_recv` it never waits for a sender that is in the middle of its send: that one may
/// have lost its core to the very thread that asks, and get it back only after many others.
pub fn take_ready<T>(queue: &mut mpsc::Receiver<T>) -> Option<T> {
    let next = std::pin::pin!(tokio::task::unconstrained(queue.recv()));
    match next.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(item) => item,
        Poll::Pending => None,
    }
}

/// A tokio runtime of one thread that must be on time ([`spawn_punctual_thread`]). Whatever is spawned on its
/// [`handle`](Self::handle) runs there and nowhere else, so nothing spawned there may block or compute for long.
#[derive(Debug)]
pub struct PriorityRuntime {
    handle: Handle,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl PriorityRuntime {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses a thread or the descriptors that tokio needs.
    pub fn start(name: &str) -> io::Result<PriorityRuntime> {
        let runtime = Builder::new_current_thread().enable_all().thread_name(name).build()?;
        let handle = runtime.handle().clone();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (stopped, done) = (stop.clone(), ended.clone().drop_guard());
        spawn_punctual_thread(name, move |pulse| {
            runtime.block_on(beat_until(stopped, pulse));
            // Drops every task that is left, and with them their sockets, before `ended` is told.
            runtime.shutdown_timeout(Duration::from_millis(100));
            drop(done);
        })?;
        Ok(PriorityRuntime { handle, stop, ended })
    }

    /// Where to spawn.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops the thread, dropping every task on it at its next await; returns when all are gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for PriorityRuntime {
    /// Asks the thread to end, without waiting: the last owner may be a task on this very thread.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn beat_until(stopped: CancellationToken, pulse: Pulse) {
    let mut beats = tokio::time::interval(PULSE);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stopped.cancelled() => return,
            _ = beats.tick() => pulse.beat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nice_value_is_that_of_the_one_thread() {
        let before = rustix::process::getpriority_process(None).expect("readable");
        let inside = spawn_priority_thread("prio", -5, || rustix::process::getpriority_process(None))
            .expect("thread")
            .join()
            .expect("no panic")
            .expect("readable");
        // With the privilege the thread gets what it asked for, without it what it had; never anything else.
        assert!(inside == -5 || inside == before, "nice is {inside}");
        assert_eq!(rustix::process::getpriority_process(None).expect("readable"), before);
        // Raising the nice value needs no privilege, so this must have an effect everywhere.
        let raised = spawn_priority_thread("meek", before + 1, || rustix::process::getpriority_process(None));
        assert_eq!(raised.expect("thread").join().expect("no panic").expect("readable"), before + 1);
    }

    #[tokio::test]
    async fn what_is_in_a_queue_is_taken_and_the_next_one_wakes_who_waits_for_it() {
        let (sender, mut queue) = mpsc::channel(4);
        assert_eq!(take_ready(&mut queue), None);
        // More than a task may take before it is to let others go first (tokio's budget).
        for number in 0..1_000 {
            sender.try_send(number).expect("there is room");
            assert_eq!(take_ready(&mut queue), Some(number));
        }
        assert_eq!(take_ready(&mut queue), None);
        let waiting = tokio::spawn(async move { queue.recv().await });
        tokio::task::yield_now().await;
        sender.try_send(7).expect("there is room");
        assert_eq!(waiting.await.expect("no panic"), Some(7));
        drop(sender);
    }

    #[tokio::test]
    async fn stopping_a_priority_runtime_drops_its_tasks() {
        let runtime = PriorityRuntime::start("net").expect("starts");
        let name = runtime.handle().spawn(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.expect("ran").as_deref(), Some("net"));
        let held = CancellationToken::new();
        let guard = held.clone().drop_guard();
        let stuck = runtime.handle().spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        runtime.stop().await;
        assert!(held.is_cancelled(), "the task was dropped before stop returned");
        assert!(stuck.await.expect_err("never finished").is_cancelled());
    }
}
