//! What the operating system knows of the process. What it does not tell is left out.

use std::collections::BTreeMap;
use std::path::Path;

use runtime::{Clock, Exposition, Kind};
use rustix::time::{ClockId, clock_gettime};

/// What the names of threads that keep a cluster together begin with: the core, peers' QUIC and control channel, the journal's
/// disk.
const THREADS: &[&str] = &["core", "network", "disk-"];

pub(super) fn write(out: &mut Exposition, data_dir: &Path) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    out.counter("process_cpu_seconds_total", "CPU time of the process; hypervisors are others.", cpu);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, name, help) in [
        ("VmRSS", "process_resident_memory_bytes", "Memory of the process that is in RAM."),
        ("VmSize", "process_virtual_memory_bytes", "Address space of the process."),
    ] {
        if let Some(kib) = kib(&status, field) {
            out.gauge(name, help, kib * 1024.0);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the listing's own.
        out.gauge("process_open_fds", "Open file descriptors.", open.count().saturating_sub(1) as f64);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        out.gauge("process_max_fds", "File descriptors that may be open.", limit as f64);
    }
    if let Some(started) = started() {
        out.gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", started);
    }
    threads(out);
    if let Ok(space) = rustix::fs::statvfs(data_dir) {
        let bytes = |blocks: u64| blocks as f64 * space.f_frsize as f64;
        let help = "Free bytes of the file system that holds the data directory.";
        out.gauge("muster_data_dir_free_bytes", help, bytes(space.f_bavail));
        let help = "Size of the file system that holds the data directory.";
        out.gauge("muster_data_dir_size_bytes", help, bytes(space.f_blocks));
    }
}

fn kib(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// From the time since boot at which it did, in hundredths of a second (the kernel's USER_HZ, which is the same everywhere).
fn started() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let now = Clock.now();
    Some(now.wall.0 as f64 / 1e3 - (now.mono.0 as f64 / 1e9 - ticks / 100.0))
}

/// Time that threads ran, and time that they could have run and no core was free, which delays heartbeats. Only of threads
/// that live as long as the process: of others the sums would fall when one ends.
fn threads(out: &mut Exposition) {
    let mut by_name: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        let Some(name) = read("comm").filter(|name| THREADS.iter().any(|known| name.starts_with(known))) else {
            continue;
        };
        let stat = read("schedstat").unwrap_or_default();
        let mut ns = stat.split_whitespace().filter_map(|number| number.parse::<f64>().ok());
        if let (Some(ran), Some(waited)) = (ns.next(), ns.next()) {
            let sum = by_name.entry(name.trim().to_owned()).or_default();
            *sum = (sum.0 + ran / 1e9, sum.1 + waited / 1e9);
        }
    }
    let help = "CPU time of the threads that keep a cluster together.";
    let mut family = out.family("muster_thread_cpu_seconds_total", Kind::Counter, help);
    for (thread, (ran, _)) in &by_name {
        family.sample(&[("thread", thread)], *ran);
    }
    let help = "Time that the threads that keep a cluster together were ready to run and waited for a CPU.";
    let mut family = out.family("muster_thread_wait_seconds_total", Kind::Counter, help);
    for (thread, (_, waited)) in &by_name {
        family.sample(&[("thread", thread)], *waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_itself() {
        let mut out = Exposition::new();
        write(&mut out, Path::new("/"));
        let text = out.finish();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        assert!(value("process_resident_memory_bytes") > 1e5 && value("process_open_fds") >= 3.0);
        let age = Clock.now().wall.0 as f64 / 1e3 - value("process_start_time_seconds");
        assert!((-1.0..3_600.0).contains(&age), "started {age} s ago");
        assert!(value("muster_data_dir_free_bytes") <= value("muster_data_dir_size_bytes"));
    }
}
