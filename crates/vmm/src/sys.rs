//! The few things that the standard library and rustix do not offer safely. Nothing else in this crate is unsafe.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the child the leader of a session of its own: neither Ctrl-C nor the end of the terminal reaches it.
pub(crate) fn in_own_session(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed. It makes one
    // system call and touches no memory that another thread could hold locked; it does not allocate.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}

/// Lets the runtime wait until `fd` is readable. To be called inside a tokio runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives and always names the same descriptor; it moves into the
    // result, which hands out only shared references to it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// The time stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: reading the counter has no precondition on any x86-64 processor in user mode of Linux, which never sets
    // CR4.TSD unless the process asked for it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Gives a virtual machine `memory` as its physical memory from address 0.
///
/// The memory is lent for as long as the machine lives: it must outlive `vm` and not be touched from here while a
/// processor of it runs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn lend_memory(vm: &kvm_ioctls::VmFd, memory: &mut [u8]) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.len() as u64,
        userspace_addr: memory.as_mut_ptr() as u64,
    };
    // SAFETY: the region is one live allocation of exactly this length, borrowed mutably, and it is the machine's only
    // slot. The one caller (`kvm::time_loop`) owns memory and machine, drops the machine first, and reads the memory
    // only through the processor's registers.
    unsafe { vm.set_user_memory_region(region) }
}
