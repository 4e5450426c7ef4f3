//! Hypervisors behind one trait. A backend knows its program: how to find it, what to call it with, how to control it.
//! It does not supervise: see [`crate::supervisor`].

mod qemu;
mod qmp;

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::event::Hypervisor;
use crate::image::BootFiles;

/// Files that a hypervisor makes in the directory in which it runs.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
pub(crate) const AGENT_SOCKET: &str = "agent.sock";
pub(crate) const PID_FILE: &str = "hypervisor.pid";

/// Events of one control connection that wait; the supervisor takes them at once.
const CONTROL_QUEUE: usize = 64;

/// What a hypervisor is to run.
pub(crate) struct Guest<'a> {
    /// Where it runs: its working directory, in which it makes its sockets.
    pub(crate) directory: &'a Path,
    /// One argument that no other VM of this host has.
    pub(crate) token: &'a str,
    pub(crate) boot: &'a BootFiles,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    /// What the guest's agent reads on the kernel command line.
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    pub(crate) tsc_khz: u64,
}

/// Something that the hypervisor says by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ControlEvent {
    /// The machine is going down; the process will end.
    ShuttingDown {
        /// In the hypervisor's words, such as `guest-shutdown`.
        reason: String,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// The connection is over: the hypervisor closed it, or said what cannot be understood.
    Closed { reason: String },
}

/// Something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ControlCommand {
    /// Run the machine, which starts halted.
    Resume,
    /// Press the power button.
    PowerDown,
    /// End the process.
    Quit,
    /// Say how the machine is.
    Status,
}

/// The answer to a [`ControlCommand`]: the machine's status where it was asked for.
pub(crate) type ControlAnswer = Result<String, String>;

/// A connection to a hypervisor's control interface, served by a task of its own, so that nothing else can block it.
pub(crate) struct Control {
    pub(crate) commands: mpsc::Sender<(ControlCommand, oneshot::Sender<ControlAnswer>)>,
    pub(crate) events: mpsc::Receiver<ControlEvent>,
}

impl Control {
    /// Carries out `command`; waits for the hypervisor's answer.
    pub(crate) async fn call(&self, command: ControlCommand) -> ControlAnswer {
        let (answer, answers) = oneshot::channel();
        if self.commands.send((command, answer)).await.is_err() {
            return Err("the control connection is closed".to_owned());
        }
        answers.await.unwrap_or_else(|_| Err("the control connection was closed before the answer".to_owned()))
    }

    /// Hands `command` in; whether it worked shows in what follows. Never waits.
    pub(crate) fn request(&self, command: ControlCommand) {
        let (answer, _) = oneshot::channel();
        if let Err(error) = self.commands.try_send((command, answer)) {
            tracing::debug!(?command, %error, "the hypervisor does not take commands");
        }
    }
}

pub(crate) type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Control>> + Send + 'a>>;

/// One kind of hypervisor.
pub(crate) trait Backend: Send + Sync {
    /// Its name in records and reports.
    fn kind(&self) -> &'static str;
    /// Looks for it on this host, at `path` or where programs are. Blocks.
    fn detect(&self, path: Option<&Path>) -> Option<Hypervisor>;
    /// The command that runs `guest`, halted until [`ControlCommand::Resume`].
    fn command(&self, hypervisor: &Hypervisor, guest: &Guest<'_>) -> Command;
    /// Opens the control interface of the hypervisor that runs in `directory`.
    fn connect<'a>(&self, directory: &'a Path) -> Connecting<'a>;
}

/// Every backend, the preferred one first.
pub(crate) static ALL: [&'static dyn Backend; 1] = [&qemu::Qemu];

/// The backend of that name.
pub(crate) fn by_kind(kind: &str) -> Option<&'static dyn Backend> {
    ALL.into_iter().find(|backend| backend.kind() == kind)
}

/// Connects to the socket `name` in `directory`, however long the directory's path is: a socket address holds 108
/// bytes, so it is reached through the directory's descriptor.
pub(crate) async fn connect_socket(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let held = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&held));
    UnixStream::connect(path).await
}
