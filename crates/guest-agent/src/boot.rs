//! From the kernel's hand-over to a guest that can be spoken to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use wire::agent::{AGENT_PORT_NAME, AGENT_PROTOCOL_VERSION, AgentHello};

use crate::cmdline::Options;

/// Kernel modules in load order, one file name per line, beside the modules themselves.
const MODULE_LIST: &str = "/lib/muster/modules/order";
/// How long the port may take to appear after the modules are loaded: devices are probed in the background.
const PORT_APPEARS_WITHIN: Duration = Duration::from_secs(10);

pub fn mount_file_systems() {
    let none = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let plan = [
        ("proc", "/proc", none),
        ("sysfs", "/sys", none),
        ("devtmpfs", "/dev", MountFlags::NOSUID),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV),
    ];
    for (kind, target, flags) in plan {
        let _ = std::fs::create_dir(target);
        match mount(kind, target, kind, flags, None) {
            // The kernel may have mounted /dev itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => println!("muster: cannot mount {kind} on {target}: {error}"),
        }
    }
}

/// The lines by which people and tests see that the guest is up. The first one's form is fixed.
pub fn greet(options: &Options) {
    println!("hello from {} on {}", options.name, options.node);
    let hello = hello();
    println!("muster: linux {}, {} cpu, {} MiB, boot {}", hello.kernel, hello.cpus, hello.memory_mib, hello.boot_id);
    println!("muster: agent {} after {} ms", hello.version, hello.uptime_ms);
}

/// What the guest says of itself, as of now.
pub fn hello() -> AgentHello {
    let info = rustix::system::sysinfo();
    let memory = u128::from(info.totalram) * u128::from(info.mem_unit);
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    AgentHello {
        protocol: AGENT_PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
        kernel: read_line("/proc/sys/kernel/osrelease"),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        memory_mib: u64::try_from(memory >> 20).unwrap_or(u64::MAX),
        uptime_ms: uptime.tv_sec.unsigned_abs() * 1000 + uptime.tv_nsec.unsigned_abs() / 1_000_000,
    }
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Loads what the image brings along. A kernel with these drivers built in brings none.
pub fn load_modules() {
    let list = PathBuf::from(MODULE_LIST);
    let Ok(names) = std::fs::read_to_string(&list) else { return };
    for name in names.lines() {
        let loaded = File::open(list.with_file_name(name))
            .and_then(|file| rustix::system::finit_module(&file, c"", 0).map_err(io::Error::from));
        match loaded {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {}
            Err(error) => println!("muster: cannot load module {name}: {error}"),
        }
    }
}

/// Opens the virtio-serial port that leads to the host.
pub fn find_port() -> io::Result<File> {
    let deadline = Instant::now() + PORT_APPEARS_WITHIN;
    loop {
        if let Some(device) = port_device() {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
            return options.open(device);
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no virtio port named {AGENT_PORT_NAME} after {PORT_APPEARS_WITHIN:?}"),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn port_device() -> Option<PathBuf> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        std::fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == AGENT_PORT_NAME)
    })?;
    let device = PathBuf::from("/dev").join(port.file_name());
    device.exists().then_some(device)
}
