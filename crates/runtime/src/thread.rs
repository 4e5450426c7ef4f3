//! Threads that the scheduler prefers.
//!
//! Heartbeats must leave and arrive while the rest of the node burns all cores. What carries them runs on its own
//! thread with a priority of its own. That needs CAP_SYS_NICE (or RLIMIT_RTPRIO, RLIMIT_NICE); without, the thread runs at
//! normal priority, which is correct and merely less punctual.

use std::io;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::sys::run_in_real_time;

/// How the scheduler treats a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Before all that are not real-time threads: for threads that heartbeats pass through, and that sleep most of the time.
    /// Nice values do not do: they count only among threads of one group (a session, a control group), and a group of
    /// guests that boot gets its share whatever the nice value of a thread in another.
    Punctual,
    /// A nice value, -20..=19.
    Nice(i32),
}

/// What is asked for where real-time priority is not granted.
const PUNCTUAL_NICE: i32 = -15;

/// Starts a thread named `name` that asks for `priority` and then runs `body`. A nice value above the present one is
/// always granted.
///
/// # Errors
/// If the thread cannot be made. A priority that was not granted is no error; it is logged once.
pub fn spawn_priority_thread<T: Send + 'static>(
    name: &str,
    priority: Priority,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let label = name.to_owned();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        ask_for(priority, &label);
        body()
    })
}

fn ask_for(priority: Priority, thread: &str) {
    let nice = match priority {
        Priority::Nice(nice) => nice,
        Priority::Punctual => match run_in_real_time() {
            Ok(()) => return,
            Err(error) => {
                tracing::info!(thread, %error, "thread gets no real-time priority (CAP_SYS_NICE would give it)");
                PUNCTUAL_NICE
            }
        },
    };
    // On Linux PRIO_PROCESS with 0 means the calling thread alone.
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::info!(thread, nice, %error, "thread runs at normal priority (CAP_SYS_NICE would raise it)");
    }
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
    pub fn start(name: &str, priority: Priority) -> io::Result<PriorityRuntime> {
        let runtime = Builder::new_current_thread().enable_all().thread_name(name).build()?;
        let handle = runtime.handle().clone();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (stopped, done) = (stop.clone(), ended.clone().drop_guard());
        spawn_priority_thread(name, priority, move || {
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
        let inside = spawn_priority_thread("prio", Priority::Nice(-5), || rustix::process::getpriority_process(None))
            .expect("thread")
            .join()
            .expect("no panic")
            .expect("readable");
        // With the privilege the thread gets what it asked for, without it what it had; never anything else.
        assert!(inside == -5 || inside == before, "nice is {inside}");
        assert_eq!(rustix::process::getpriority_process(None).expect("readable"), before);
        // Raising the nice value needs no privilege, so this must have an effect everywhere.
        let raised =
            spawn_priority_thread("meek", Priority::Nice(before + 1), || rustix::process::getpriority_process(None));
        assert_eq!(raised.expect("thread").join().expect("no panic").expect("readable"), before + 1);
    }

    #[test]
    fn a_punctual_thread_comes_before_all_others_and_what_it_starts_does_not() {
        use crate::sys::policy;

        let before = policy();
        let inside = spawn_priority_thread("punctual", Priority::Punctual, || {
            let (own, nice) = (policy(), rustix::process::getpriority_process(None));
            (own, nice, std::thread::spawn(policy).join().expect("no panic"))
        });
        let (own, nice, started) = inside.expect("thread").join().expect("no panic");
        // Without the privilege it gets the nice value, or nothing.
        if let Some(granted) = is_granted() {
            assert_eq!(own, if granted { libc::SCHED_RR } else { before }, "nice is {nice:?}");
        }
        assert_eq!((started, policy()), (before, before), "neither what it starts nor who started it");
    }

    /// Whether real-time priority is granted here, as another program finds out; `None`: there is no such program.
    fn is_granted() -> Option<bool> {
        let tried = std::process::Command::new("chrt").args(["--reset-on-fork", "--rr", "1", "true"]).status();
        tried.ok().map(|status| status.success())
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
        let runtime = PriorityRuntime::start("net", Priority::Punctual).expect("starts");
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
