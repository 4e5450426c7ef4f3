//! Threads that heartbeats pass through.
//!
//! Such a thread runs as others do, at a low nice value, for as long as it is on time: a thread in real time takes a core from
//! whoever hands it work after each single piece, and does its work in pieces. It gives a sign of life, its *pulse*, at
//! each tick. When that stays away, a guard has it run in real time until it comes again. A nice value alone does not do, since
//! it counts only among the threads of one group (a session, a control group).
//!
//! ```text
//!   thread:   beat ---- 25 ms ---- beat ---- waits for a core ... runs, beat ----
//!   guard:                       35 ms:    late! real time -------^  on time: fair again
//! ```

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{Pid, gettid};

use crate::sys::{Policy, set_policy};
use crate::thread::spawn_priority_thread;

/// The nice value: they get a core before clients, guests and the disk's threads of their group do.
const NICE: i32 = -15;
/// A thread has to give its sign of life so often.
pub const PULSE: Duration = Duration::from_millis(25);
/// The guard of a thread that runs in real time looks so often whether it has to.
const LOOK: Duration = Duration::from_millis(5);
/// ... and that of another one when the pulse would be late, but not more often than this.
const LOOK_MIN: Duration = Duration::from_millis(1);
/// A pulse that is older than this is late: the time between two, and some that a turn may take.
const LATE: Duration = Duration::from_millis(35);

/// Where a thread gives its signs of life.
#[derive(Clone, Debug)]
pub struct Pulse {
    began: Instant,
    /// Microseconds from `began` to the last one.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    /// One that nobody looks at yet.
    fn default() -> Self {
        Pulse { began: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// What was due is done: the thread is on time.
    pub fn beat(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// How long it may still stay away; nothing: it is late.
    fn left(&self) -> Duration {
        LATE.saturating_sub(Duration::from_micros(self.now().saturating_sub(self.last.load(Ordering::Relaxed))))
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
}

/// Starts a thread named `name` that must be on time and gives its `Pulse` every [`PULSE`], and the one that guards it. Without
/// CAP_SYS_NICE (or RLIMIT_RTPRIO) there is no guard; it is logged once.
///
/// # Errors
/// If a thread cannot be made.
pub fn spawn_punctual_thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce(Pulse) -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let (pulse, guarded) = (Pulse::default(), Arc::new(Mutex::new(None)));
    guard(name, pulse.clone(), Arc::clone(&guarded))?;
    spawn_priority_thread(name, NICE, move || {
        let _running = Running::of_this_thread(guarded);
        body(pulse)
    })
}

/// Guards the thread until it ends.
fn guard(name: &str, pulse: Pulse, guarded: Arc<Mutex<Option<Pid>>>) -> io::Result<()> {
    let label = name.to_owned();
    // The kernel keeps 15 bytes of a name.
    let guard = std::thread::Builder::new().name(format!("{name}-guard"));
    guard.spawn(move || {
        if let Err(error) = set_policy(gettid(), Policy::RealTime) {
            tracing::info!(thread = label, %error, "thread gets no real-time priority when it is late (CAP_SYS_NICE would allow it)");
            return;
        }
        let (mut policy, mut begun) = (Policy::Fair, false);
        loop {
            std::thread::sleep(if policy == Policy::Fair { pulse.left().max(LOOK_MIN) } else { LOOK });
            // Held while its policy is set: until then the thread does not end, and its number belongs to no other.
            let thread = guarded.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(thread) = *thread else {
                // It has not begun, or it has ended: then this is the last owner.
                if begun || Arc::strong_count(&guarded) == 1 {
                    return;
                }
                continue;
            };
            begun = true;
            let wanted = if pulse.left().is_zero() { Policy::RealTime } else { Policy::Fair };
            if wanted != policy && set_policy(thread, wanted).is_ok() {
                policy = wanted;
            }
        }
    })?;
    Ok(())
}

/// For as long as it is there, the thread that made it can be guarded.
struct Running(Arc<Mutex<Option<Pid>>>);

impl Running {
    fn of_this_thread(guarded: Arc<Mutex<Option<Pid>>>) -> Running {
        *guarded.lock().unwrap_or_else(PoisonError::into_inner) = Some(gettid());
        Running(guarded)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::policy;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Whether real-time priority is granted here, as another program finds out; `None`: there is no such program.
    fn is_granted() -> Option<bool> {
        let tried = std::process::Command::new("chrt").args(["--reset-on-fork", "--rr", "1", "true"]).status();
        tried.ok().map(|status| status.success())
    }

    #[test]
    fn a_thread_that_is_late_runs_in_real_time_until_it_is_on_time_again() {
        if is_granted() != Some(true) {
            eprintln!("no real-time priority is granted here");
            return;
        }
        let thread = spawn_punctual_thread("late", |pulse| {
            let began = Instant::now();
            let becomes = |wanted: Policy, beat: &dyn Fn()| {
                while policy(gettid()) != wanted {
                    beat();
                    assert!(began.elapsed() < PATIENCE, "it does not become {wanted:?}");
                }
            };
            becomes(Policy::RealTime, &|| ());
            let started = std::thread::spawn(|| policy(gettid())).join().expect("no panic");
            assert_eq!(started, Policy::Fair, "what it starts is no matter of life");
            becomes(Policy::Fair, &|| pulse.beat());
        });
        thread.expect("it starts").join().expect("no panic");
        assert_eq!(policy(gettid()), Policy::Fair);
    }

    #[test]
    fn a_guard_ends_with_its_thread() {
        let guarded = Arc::new(Mutex::new(None));
        guard("short", Pulse::default(), Arc::clone(&guarded)).expect("it starts");
        let ends = Arc::downgrade(&guarded);
        drop(Running::of_this_thread(guarded));
        let began = Instant::now();
        while ends.upgrade().is_some() {
            assert!(began.elapsed() < PATIENCE, "the guard goes on");
            std::thread::yield_now();
        }
    }
}
