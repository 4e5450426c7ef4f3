//! Real guests under a real QEMU. Needs what `make test` installs: qemu-system-x86, busybox-static, and either a
//! Debian archive within apt's reach or a kernel named by MUSTER_TEST_KERNEL.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::{VmEpoch, VmId, VmIncarnation};
use tokio::sync::mpsc;
use vmm::{ExitReason, IMAGE_MINIMAL, StartVm, VmEvent, VmEventKind, Vmm, VmmConfig, VmmError};

/// Boots take 2 s on an idle host; test hosts are not idle.
const WITHIN: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(30);
const ID: VmId = VmId(7);

/// One image directory for all test runs, so that the kernel is downloaded once.
fn images() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")
}

struct Host {
    data: PathBuf,
    vmm: Vmm,
    events: mpsc::Receiver<VmEvent>,
    seen: Vec<VmEvent>,
}

impl Host {
    fn new(data: &Path) -> Host {
        Host::with_qemu(data, None)
    }

    /// Whose guests can be broken through a [`Monitor`].
    fn with_monitors(data: &Path) -> Host {
        Host::with_qemu(data, Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu_with_monitor")))
    }

    fn with_qemu(data: &Path, qemu: Option<PathBuf>) -> Host {
        let (sender, events) = mpsc::channel(64);
        let kernel = std::env::var_os("MUSTER_TEST_KERNEL").map(PathBuf::from);
        let config = VmmConfig { images: images(), kernel, qemu, ..VmmConfig::new(data, "node-a") };
        let data = data.canonicalize().unwrap();
        Host { data, vmm: Vmm::new(config, sender).unwrap(), events, seen: Vec::new() }
    }

    async fn require_qemu(&self) {
        assert!(self.vmm.detect().await.is_some(), "no QEMU on this host: install qemu-system-x86 (`make test` does)");
    }

    /// Waits for an event that `wanted` makes something of.
    async fn wait<T>(&mut self, what: &str, wanted: impl Fn(&VmEventKind) -> Option<T>) -> (VmEvent, T) {
        let deadline = tokio::time::Instant::now() + WITHIN;
        loop {
            let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.events.recv()).await else {
                panic!("no {what} within {WITHIN:?}; seen: {:#?}", self.seen);
            };
            self.seen.push(event.clone());
            if let Some(found) = wanted(&event.kind) {
                return (event, found);
            }
            if let VmEventKind::Failed { reason } = &event.kind {
                panic!("waiting for {what}, but the VM failed: {reason}");
            }
        }
    }

    async fn started(&mut self) -> (u32, bool) {
        let wanted = |kind: &VmEventKind| match kind {
            VmEventKind::Started { pid, adopted, .. } => Some((*pid, *adopted)),
            _ => None,
        };
        self.wait("Started", wanted).await.1
    }

    async fn ready(&mut self) -> vmm::AgentInfo {
        let wanted = |kind: &VmEventKind| match kind {
            VmEventKind::Ready { agent } => Some(agent.clone()),
            _ => None,
        };
        self.wait("Ready", wanted).await.1
    }

    async fn exited(&mut self) -> (VmEvent, ExitReason) {
        let wanted = |kind: &VmEventKind| match kind {
            VmEventKind::Exited { reason, .. } => Some(*reason),
            _ => None,
        };
        self.wait("Exited", wanted).await
    }

    async fn stopped(&mut self) -> bool {
        let wanted = |kind: &VmEventKind| match kind {
            VmEventKind::Stopped { graceful } => Some(*graceful),
            _ => None,
        };
        self.wait("Stopped", wanted).await.1
    }

    async fn removed(&mut self) {
        self.wait("Removed", |kind| matches!(kind, VmEventKind::Removed).then_some(())).await;
    }

    /// Waits until the guest has written a line with `text` on its console, if it has not yet.
    async fn console(&mut self, text: &str) {
        let wrote = |kind: &VmEventKind| match kind {
            VmEventKind::Console { lines, .. } => lines.iter().any(|line| line.contains(text)).then_some(()),
            _ => None,
        };
        if !self.seen.iter().any(|event| wrote(&event.kind).is_some()) {
            self.wait(text, wrote).await;
        }
    }
}

/// The second monitor of a guest of [`Host::with_monitors`].
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn of_guest(data: &Path) -> Monitor {
        let stream = UnixStream::connect(data.join(format!("vms/{ID}/test.sock"))).unwrap();
        stream.set_read_timeout(Some(WITHIN)).unwrap();
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.call(r#"{"execute":"qmp_capabilities"}"#);
        monitor
    }

    fn call(&mut self, command: &str) {
        self.0.get_mut().write_all(command.as_bytes()).unwrap();
        let mut said = String::new();
        while !said.starts_with(r#"{"return":"#) {
            assert!(!said.starts_with(r#"{"error":"#), "{command}: {said}");
            said.clear();
            assert_ne!(self.0.read_line(&mut said).unwrap(), 0, "{command}: the monitor was closed");
        }
    }
}

/// A failed test leaves no guest behind: those that it saw start and that work in its directory are killed.
impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for event in &self.seen {
            if let VmEventKind::Started { pid, .. } = event.kind
                && std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.data))
            {
                kill(pid);
            }
        }
    }
}

fn spec(epoch: u64, incarnation: u64) -> StartVm {
    StartVm {
        id: ID,
        name: "web-1".into(),
        epoch: VmEpoch(epoch),
        incarnation: VmIncarnation(incarnation),
        cpus: 1,
        memory_mib: 128,
        image: IMAGE_MINIMAL.into(),
    }
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn is_gone(pid: u32) -> bool {
    // A zombie would still have a directory there.
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_speaks_dies_starts_again_stops_and_is_removed() {
    // A path longer than a socket's address may be.
    let data = tempfile::Builder::new().prefix(&"long-".repeat(30)).tempdir().unwrap();
    let mut host = Host::new(data.path());
    host.require_qemu().await;

    host.vmm.start(spec(1, 1)).await.unwrap();
    host.vmm.start(spec(1, 1)).await.expect("the same start again has no effect");
    let (pid, adopted) = host.started().await;
    assert!(!adopted);
    let info = host.ready().await;
    assert_eq!((info.cpus, info.version.as_str()), (1, env!("CARGO_PKG_VERSION")));
    assert!((80..=128).contains(&info.memory_mib), "{info:?}");
    host.console("hello from web-1 on node-a").await;

    // Killed from outside: reported with its reason, and no zombie is left.
    kill(pid);
    let (event, reason) = host.exited().await;
    assert_eq!((reason, event.epoch, event.incarnation), (ExitReason::Killed, VmEpoch(1), VmIncarnation(1)));
    assert!(is_gone(pid));
    assert!(matches!(host.vmm.start(spec(1, 1)).await, Err(VmmError::AlreadyRan(..))));

    host.vmm.start(spec(2, 2)).await.unwrap();
    let (second, _) = host.started().await;
    assert_ne!(host.ready().await.boot_id, info.boot_id);
    assert!(matches!(host.vmm.stop(ID, VmEpoch(1), GRACE).await, Err(VmmError::Stale { .. })));
    assert!(matches!(host.vmm.start(spec(1, 3)).await, Err(VmmError::Stale { .. })));

    host.vmm.stop(ID, VmEpoch(2), GRACE).await.unwrap();
    assert!(host.stopped().await, "the guest did not power off by itself; seen: {:#?}", host.seen);
    assert!(is_gone(second));
    host.vmm.stop(ID, VmEpoch(2), GRACE).await.unwrap();
    assert!(host.stopped().await, "stopping what has stopped is done at once");

    host.vmm.remove(ID, VmEpoch(2)).await.unwrap();
    host.removed().await;
    assert!(!data.path().join("vms/7").exists());
    assert!(matches!(host.vmm.stop(ID, VmEpoch(2), GRACE).await, Err(VmmError::NotFound(_))));
}

/// One daemon: when it is dropped, none of its tasks runs on.
fn daemon() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

#[test]
fn a_guest_outlives_its_daemon_and_is_adopted_or_reported_lost() {
    let data = tempfile::tempdir().unwrap();
    let (pid, boot) = daemon().block_on(async {
        let mut host = Host::new(data.path());
        host.require_qemu().await;
        host.vmm.start(spec(3, 5)).await.unwrap();
        (host.started().await.0, host.ready().await.boot_id)
    });
    daemon().block_on(async {
        let mut host = Host::new(data.path());
        let adopted = host.vmm.adopt().await.unwrap();
        assert_eq!(adopted.len(), 1);
        assert_eq!((adopted[0].pid, adopted[0].epoch, adopted[0].incarnation), (pid, VmEpoch(3), VmIncarnation(5)));
        assert_eq!(host.started().await, (pid, true));
        assert_eq!(host.ready().await.boot_id, boot, "the same boot of the same guest");
        host.vmm.start(spec(3, 5)).await.expect("it runs: nothing to do");
    });

    // Ended while no daemon watched. Its parent would be another process than the next daemon; here it is this one.
    kill(pid);
    let child = rustix::process::Pid::from_raw(pid.cast_signed());
    // The runtime of another test may have been faster.
    let ended = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
    assert!(matches!(ended, Ok(_) | Err(rustix::io::Errno::CHILD)), "{ended:?}");
    assert!(is_gone(pid));
    daemon().block_on(async {
        let mut host = Host::new(data.path());
        assert_eq!(host.vmm.adopt().await.unwrap(), []);
        let (event, reason) = host.exited().await;
        assert_eq!((reason, event.incarnation), (ExitReason::Lost, VmIncarnation(5)));
        assert!(matches!(host.vmm.start(spec(3, 4)).await, Err(VmmError::Stale { .. })), "the record fences");

        // A graceful end of the daemon takes its guests along.
        host.vmm.start(spec(3, 6)).await.unwrap();
        let (pid, _) = host.started().await;
        host.ready().await;
        host.vmm.shutdown(GRACE).await;
        assert_eq!(host.exited().await.1, ExitReason::HostShutdown);
        assert!(is_gone(pid));
        assert!(matches!(host.vmm.start(spec(3, 7)).await, Err(VmmError::ShuttingDown(_))));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_start_takes_the_place_of_an_older() {
    let data = tempfile::tempdir().unwrap();
    let mut host = Host::new(data.path());
    host.require_qemu().await;
    host.vmm.start(spec(1, 1)).await.unwrap();
    let (pid, _) = host.started().await;
    host.vmm.start(spec(2, 2)).await.unwrap();
    let (event, reason) = host.exited().await;
    assert_eq!((reason, event.incarnation), (ExitReason::Superseded, VmIncarnation(1)));
    assert!(is_gone(pid));
    host.started().await;
    // Too early for the guest to hear of it: it is told once it says hello.
    host.vmm.stop(ID, VmEpoch(2), GRACE).await.unwrap();
    assert!(host.stopped().await, "seen: {:#?}", host.seen);
    assert!(matches!(host.vmm.start(spec(2, 2)).await, Err(VmmError::AlreadyRan(..))));

    host.vmm.start(spec(2, 3)).await.unwrap();
    host.started().await;
    host.vmm.stop(ID, VmEpoch(2), Duration::ZERO).await.unwrap();
    assert!(!host.stopped().await, "without grace it is not graceful");
    host.vmm.remove(ID, VmEpoch(2)).await.unwrap();
    host.removed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_guests_kernel_is_told_from_other_ends() {
    let data = tempfile::tempdir().unwrap();
    let mut host = Host::with_monitors(data.path());
    host.require_qemu().await;
    host.vmm.start(spec(1, 1)).await.unwrap();
    let (pid, _) = host.started().await;
    host.ready().await;
    Monitor::of_guest(data.path()).call(r#"{"execute":"inject-nmi"}"#);
    let (event, reason) = host.exited().await;
    assert_eq!((reason, event.incarnation), (ExitReason::GuestPanicked, VmIncarnation(1)), "seen: {:#?}", host.seen);
    assert!(is_gone(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_agent_does_not_hear_is_stopped_by_its_power_button() {
    let data = tempfile::tempdir().unwrap();
    let mut host = Host::with_monitors(data.path());
    host.require_qemu().await;
    let deaf = |incarnation| StartVm { name: "deaf".into(), ..spec(1, incarnation) };
    let pressed = "muster: the power button was pressed";

    // Its agent never said hello, and the first press comes before the guest has a button.
    host.vmm.start(deaf(1)).await.unwrap();
    host.started().await;
    host.vmm.stop(ID, VmEpoch(1), GRACE).await.unwrap();
    assert!(host.stopped().await, "seen: {:#?}", host.seen);
    host.console(pressed).await;

    // Its agent was heard, and then lost its way to the host.
    host.seen.clear();
    host.vmm.start(spec(1, 2)).await.unwrap();
    host.started().await;
    host.ready().await;
    let nobody = r#"{"execute":"chardev-change","arguments":{"id":"agent","backend":{"type":"null","data":{}}}}"#;
    Monitor::of_guest(data.path()).call(nobody);
    host.vmm.stop(ID, VmEpoch(1), GRACE).await.unwrap();
    assert!(host.stopped().await, "seen: {:#?}", host.seen);
    host.console(pressed).await;

    // A guest that does nothing any more ends all the same, which is not graceful.
    for grace in [Duration::from_secs(1), GRACE] {
        host.seen.clear();
        let incarnation = if grace == GRACE { 4 } else { 3 };
        host.vmm.start(spec(1, incarnation)).await.unwrap();
        let (pid, _) = host.started().await;
        host.ready().await;
        Monitor::of_guest(data.path()).call(r#"{"execute":"stop"}"#);
        host.vmm.stop(ID, VmEpoch(1), grace).await.unwrap();
        if grace == GRACE {
            kill(pid);
        }
        assert!(!host.stopped().await, "seen: {:#?}", host.seen);
        assert!(is_gone(pid));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_fails_with_the_hypervisors_words() {
    let data = tempfile::tempdir().unwrap();
    let mut host = Host::new(data.path());
    host.require_qemu().await;
    let failed = |kind: &VmEventKind| match kind {
        VmEventKind::Failed { reason } => Some(reason.clone()),
        _ => None,
    };
    host.vmm.start(StartVm { memory_mib: 1 << 40, ..spec(1, 1) }).await.unwrap();
    let (_, reason) = host.wait("Failed", failed).await;
    assert!(reason.starts_with("qemu") && reason.contains("it says:"), "{reason}");
    host.vmm.start(StartVm { image: "windows".into(), ..spec(1, 2) }).await.unwrap();
    let (_, reason) = host.wait("Failed", failed).await;
    assert!(reason.contains("windows"), "{reason}");
    for bad in [
        StartVm { cpus: 0, ..spec(1, 3) },
        StartVm { memory_mib: 1, ..spec(1, 3) },
        StartVm { name: "a b init=/bin/sh".into(), ..spec(1, 3) },
    ] {
        assert!(matches!(host.vmm.start(bad).await, Err(VmmError::Invalid { .. })));
    }
}

#[tokio::test]
async fn without_a_hypervisor_the_host_offers_none_and_says_what_to_install() {
    let data = tempfile::tempdir().unwrap();
    let (sender, mut events) = mpsc::channel(8);
    let config = VmmConfig { qemu: Some("/no/such/qemu".into()), ..VmmConfig::new(data.path(), "n") };
    let vmm = Vmm::new(config, sender).unwrap();
    assert_eq!(vmm.detect().await, None);
    vmm.start(spec(1, 1)).await.unwrap();
    let event = events.recv().await.unwrap();
    let VmEventKind::Failed { reason } = event.kind else { panic!("{event:?}") };
    assert!(reason.contains("install qemu-system-x86"), "{reason}");
}
