//! Threads that the scheduler prefers.
//!
//! Heartbeats must leave and arrive while the rest of the node burns all cores. What carries them runs on its own
//! thread with a lower nice value. Lowering it needs CAP_SYS_NICE (or RLIMIT_NICE); without, the thread runs at normal
//! priority, which is correct and merely less punctual.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The nice value of threads that heartbeats pass through: the core's and the network's. They sleep most of the time; where
/// nothing is idle, they get a core before clients, guests and the disk's threads do.
pub const PUNCTUAL_NICE: i32 = -15;

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

/// A tokio runtime of one thread with raised priority. Whatever is spawned on its [`handle`](Self::handle) runs there
/// and nowhere else, so nothing spawned there may block or compute for long.
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
    pub fn start(name: &str, nice: i32) -> io::Result<PriorityRuntime> {
        let runtime = Builder::new_current_thread().enable_all().thread_name(name).build()?;
        let handle = runtime.handle().clone();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (stopped, done) = (stop.clone(), ended.clone().drop_guard());
        spawn_priority_thread(name, nice, move || {
            runtime.block_on(stopped.cancelled());
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
    async fn stopping_a_priority_runtime_drops_its_tasks() {
        let runtime = PriorityRuntime::start("net", -5).expect("starts");
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
