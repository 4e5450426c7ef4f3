//! The one thing that neither the standard library nor rustix offers. Nothing else in this crate is unsafe.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::Pid;

/// How the scheduler chooses a thread, sched(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Fairly among all others, by its nice value: `SCHED_OTHER`.
    Fair,
    /// Before all that are fair, at the lowest real-time priority, in turns with others that have it: `SCHED_RR`.
    RealTime,
}

/// Has a thread chosen so from now on. What it starts, threads and processes, is chosen fairly (`SCHED_RESET_ON_FORK`).
///
/// # Errors
/// If the system does not grant it: it takes CAP_SYS_NICE or RLIMIT_RTPRIO, and the kernel's groups may forbid it.
pub fn set_policy(thread: Pid, policy: Policy) -> io::Result<()> {
    let (policy, priority) = match policy {
        Policy::Fair => (libc::SCHED_OTHER, 0),
        Policy::RealTime => (libc::SCHED_RR, 1),
    };
    // SAFETY: `sched_param` is plain integers, for which zero is valid.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = priority;
    let id = thread.as_raw_nonzero().get();
    // SAFETY: the call reads `param`, which outlives it, and takes any number for a thread: one that is gone is an error.
    match unsafe { libc::sched_setscheduler(id, policy | libc::SCHED_RESET_ON_FORK, &raw const param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How the scheduler chooses a thread.
#[cfg(test)]
pub fn policy(thread: Pid) -> Policy {
    // SAFETY: no memory is involved.
    match unsafe { libc::sched_getscheduler(thread.as_raw_nonzero().get()) } & !libc::SCHED_RESET_ON_FORK {
        libc::SCHED_OTHER => Policy::Fair,
        libc::SCHED_RR => Policy::RealTime,
        other => panic!("policy {other}"),
    }
}
