//! A hypervisor's process: ours to watch and to kill, whether we started it or an earlier daemon did.
//!
//! A process id alone proves nothing: ids are used again. A recorded process is itself only if the host has not
//! rebooted, the process started when the record says, and it runs in the VM's own directory. From then on it is held
//! by a pidfd, which never comes to mean another process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

/// What tells a process from all others on this host, ever.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: u32,
    /// Since the host booted, in clock ticks (`/proc/PID/stat`, field 22).
    pub(crate) start_ticks: u64,
    /// The host's boot, from which those ticks count.
    pub(crate) host_boot_id: String,
}

/// A running process.
pub(crate) struct Process {
    identity: ProcessIdentity,
    fd: AsyncFd<OwnedFd>,
    /// Present if we are its parent, who must collect its exit status.
    child: Option<Child>,
}

impl Process {
    /// Starts `command` in a session of its own.
    pub(crate) fn spawn(mut command: Command) -> io::Result<Process> {
        crate::sys::in_own_session(&mut command);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let held = child
            .id()
            .ok_or_else(|| io::Error::other("the process ended before it was seen"))
            // A child that ended already is a zombie until we wait for it, so this holds the right process.
            .and_then(|pid| Process::hold(open_pidfd(pid)?, pid));
        match held {
            Ok(process) => Ok(Process { child: Some(child), ..process }),
            Err(error) => {
                let _ = child.start_kill();
                Err(error)
            }
        }
    }

    fn hold(fd: OwnedFd, pid: u32) -> io::Result<Process> {
        let identity = ProcessIdentity { pid, start_ticks: start_ticks(pid)?, host_boot_id: host_boot_id()? };
        Ok(Process { identity, fd: crate::sys::watch(fd)?, child: None })
    }

    /// Takes hold of a recorded process, if it still is the one recorded and works in `directory`.
    /// None if that process has ended, whatever has its id now.
    pub(crate) fn find(identity: &ProcessIdentity, directory: &Path) -> io::Result<Option<Process>> {
        if identity.host_boot_id != host_boot_id()? {
            return Ok(None);
        }
        // First the handle, then the check: what the check finds is what the handle holds.
        let Ok(fd) = open_pidfd(identity.pid) else { return Ok(None) };
        let same = start_ticks(identity.pid).is_ok_and(|ticks| ticks == identity.start_ticks)
            && works_in(identity.pid, directory);
        if !same {
            return Ok(None);
        }
        Process::hold(fd, identity.pid).map(Some)
    }

    /// Takes hold of the process whose id a hypervisor left in `pid_file`, for a record whose daemon was killed
    /// between spawning and writing it down. The process must work in `directory` and have `token` as an argument.
    pub(crate) fn find_by_pid_file(pid_file: &Path, directory: &Path, token: &str) -> io::Result<Option<Process>> {
        let Ok(text) = std::fs::read_to_string(pid_file) else { return Ok(None) };
        let Ok(pid) = text.trim().parse::<u32>() else { return Ok(None) };
        let Ok(fd) = open_pidfd(pid) else { return Ok(None) };
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !works_in(pid, directory) || !arguments.split(|&byte| byte == 0).any(|word| word == token.as_bytes()) {
            return Ok(None);
        }
        Process::hold(fd, pid).map(Some)
    }

    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    pub(crate) fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Ends the process at once. One that has ended already is no error.
    pub(crate) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.fd.get_ref(), Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.identity.pid, %error, "cannot kill the hypervisor");
        }
    }

    /// Waits for the end. The status is known only of a child. Dropping the future loses nothing.
    pub(crate) async fn wait(&mut self) -> Option<ExitStatus> {
        if let Err(error) = self.fd.readable().await {
            tracing::error!(pid = self.identity.pid, %error, "cannot watch the hypervisor");
        }
        match &mut self.child {
            Some(child) => child.wait().await.ok(),
            None => None,
        }
    }
}

fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn works_in(pid: u32, directory: &Path) -> bool {
    let (Ok(cwd), Ok(directory)) = (std::fs::read_link(format!("/proc/{pid}/cwd")), directory.canonicalize()) else {
        return false;
    };
    cwd == directory
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as known"))
}

/// The second field is the program's name in parentheses, which may hold anything: count from its last one.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn host_boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("600").current_dir(directory);
        let process = Process::spawn(command).unwrap();
        // `spawn` returns as soon as exec closes its descriptors; the kernel sets the new arguments a moment later, and
        // shows none in between. A hypervisor that has left a pid file is past that.
        while std::fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        process
    }

    #[test]
    fn a_programs_name_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("1 (evil) name) ) {}", fields.join(" "));
        assert_eq!(parse_start_ticks(&stat), Some(22));
        assert_eq!(parse_start_ticks("garbage"), None);
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_a_stranger_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let mut process = sleeper(directory.path());
        let identity = process.identity().clone();
        let find = |identity: &ProcessIdentity, at: &Path| Process::find(identity, at).unwrap().is_some();
        assert!(find(&identity, directory.path()));
        assert!(!find(&identity, elsewhere.path()), "works elsewhere");
        assert!(!find(
            &ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity.clone() },
            directory.path()
        ));
        assert!(!find(&ProcessIdentity { host_boot_id: "other".into(), ..identity.clone() }, directory.path()));

        let pid_file = directory.path().join("pid");
        std::fs::write(&pid_file, identity.pid.to_string()).unwrap();
        assert!(Process::find_by_pid_file(&pid_file, directory.path(), "600").unwrap().is_some());
        assert!(Process::find_by_pid_file(&pid_file, directory.path(), "60").unwrap().is_none());

        process.kill();
        let status = process.wait().await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        assert!(!find(&identity, directory.path()), "has ended");
        process.kill();
    }

    #[tokio::test]
    async fn the_child_leads_a_session_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = sleeper(directory.path());
        let pid = Pid::from_raw(process.pid().cast_signed()).unwrap();
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
        process.kill();
        process.wait().await;
    }
}
