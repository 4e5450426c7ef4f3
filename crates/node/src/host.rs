//! What this host can carry, measured.

use std::path::Path;

use wire::Capabilities;

/// Measures cores, memory and disk; the hypervisor is found by `vmm`.
pub(crate) fn measure(data_dir: &Path, hypervisor: Option<&vmm::Hypervisor>) -> Capabilities {
    let mib = |bytes: u64| bytes >> 20;
    let memory = rustix::system::sysinfo();
    let disk = rustix::fs::statvfs(data_dir).map(|fs| fs.f_bavail * fs.f_frsize).unwrap_or(0);
    Capabilities {
        cores: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_mib: mib(memory.totalram.saturating_mul(u64::from(memory.mem_unit))),
        disk_mib: mib(disk),
        architecture: std::env::consts::ARCH.to_owned(),
        hypervisors: hypervisor.map(|h| vec![h.to_string()]).unwrap_or_default(),
        accelerator: hypervisor.map(|h| h.accelerator.to_string()).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
