//! The one thing that neither the standard library nor rustix offers. Nothing else in this crate is unsafe.
#![allow(unsafe_code)]

use std::io;

/// Gives the calling thread the lowest real-time priority, in turns with others that have it (`SCHED_RR`, sched(7)). What
/// it starts, threads and processes, runs at normal priority (`SCHED_RESET_ON_FORK`).
///
/// # Errors
/// If the system does not grant it: it takes CAP_SYS_NICE or RLIMIT_RTPRIO, and the kernel's groups may forbid it.
pub fn run_in_real_time() -> io::Result<()> {
    // SAFETY: `sched_param` is plain integers, for which zero is valid.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the thread that calls is alive meanwhile, and `param` outlives the call, which only reads it.
    match unsafe { libc::pthread_setschedparam(libc::pthread_self(), policy, &raw const param) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The scheduling policy of the calling thread, without flags: `SCHED_OTHER`, `SCHED_RR`, ...
#[cfg(test)]
pub fn policy() -> i32 {
    // SAFETY: no memory is involved; 0 is the calling thread.
    unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
}
