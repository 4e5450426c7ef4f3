//! Child processes: output in files, ended by id, never left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, kill_process};

use crate::wait::wait_until;

/// What can be done to a process from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL: no last words.
    Kill,
    /// SIGTERM: an orderly stop.
    Terminate,
    /// SIGINT, as from Ctrl-C.
    Interrupt,
    /// SIGSTOP: frozen until [`Signal::Continue`].
    Stop,
    /// SIGCONT.
    Continue,
}

/// A running child. Its standard output and error go to files, so that it never waits for a reader.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A child that ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Both outputs as text, for messages and for looking into.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}

impl Process {
    /// Starts `command` with its output in `folder/NAME.out` and `folder/NAME.err` (appended to) and no input.
    ///
    /// # Errors
    /// If the files or the process cannot be made.
    pub fn start(command: &mut Command, name: &str, folder: &Path) -> anyhow::Result<Self> {
        Self::start_with_input(command, Stdio::null(), name, folder)
    }

    /// As [`Process::start`], reading `input`.
    ///
    /// # Errors
    /// If the files or the process cannot be made.
    pub fn start_with_input(command: &mut Command, input: Stdio, name: &str, folder: &Path) -> anyhow::Result<Self> {
        let (stdout, stderr) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.err")));
        let child = command
            .stdin(input)
            .stdout(append(&stdout)?)
            .stderr(append(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Process { child, name: name.into(), stdout, stderr })
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. A child is not reaped before [`Process::wait`] or drop, so that its id is still its own.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process id out of range")?;
        let number = match signal {
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Interrupt => rustix::process::Signal::INT,
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Continue => rustix::process::Signal::CONT,
        };
        kill_process(pid, number).with_context(|| format!("cannot send {signal:?} to {} ({})", self.name, self.pid()))
    }

    /// The status, if it has ended.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails if the process has ended, with its last words.
    ///
    /// # Errors
    /// With status and the end of its log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}); it said last:\n{}", self.name, self.last_words()),
        }
    }

    /// Waits for the end, at most `limit` long.
    ///
    /// # Errors
    /// If it still runs then.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<Finished> {
        let (name, stderr) = (self.name.clone(), self.stderr.clone());
        let status = wait_until(limit, &format!("{name} has ended"), || {
            self.child.try_wait()?.with_context(|| format!("it runs, and said last:\n{}", tail(&stderr)))
        })?;
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Finished { status, stdout: read(&self.stdout)?, stderr: read(&self.stderr)? })
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// If the kernel does not let go of it.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::Kill)?;
            self.wait(Duration::from_secs(20))?;
        }
        Ok(())
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.stdout).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.stderr).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of both outputs.
    #[must_use]
    pub fn last_words(&self) -> String {
        format!("{}\n{}", tail(&self.stdout), tail(&self.stderr))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("testkit: {error:#}");
        }
    }
}

/// Runs `program` to its end, at most `limit` long.
///
/// # Errors
/// If it cannot be started or does not end.
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str], input: Stdio, limit: Duration) -> anyhow::Result<Finished> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let name = command.get_program().display().to_string().rsplit('/').next().unwrap_or("child").to_owned();
    Process::start_with_input(&mut command, input, &name, folder.path())?.wait(limit)
}

/// Longest time that a command as root may take.
const ROOT_LIMIT: Duration = Duration::from_secs(20);

/// The words that carry out `command` as root: sudo's before them, unless this is root.
pub(crate) fn as_root<'w>(command: &[&'w str]) -> Vec<&'w str> {
    let sudo: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["sudo", "-n"] };
    [sudo, command].concat()
}

/// Runs `command` as root to its end. Needs root, or sudo without a password.
pub(crate) fn run_as_root(command: &[&str]) -> anyhow::Result<()> {
    let words = as_root(command);
    let finished = run(words[0], &words[1..], Stdio::null(), ROOT_LIMIT)?;
    ensure!(finished.status.success(), "`{}` failed (it needs root): {}", command.join(" "), finished.text());
    Ok(())
}

fn append(path: &Path) -> anyhow::Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path) -> String {
    const LINES: usize = 25;
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_run_watched_and_killed() -> anyhow::Result<()> {
        let finished = run("sh", &["-c", "cat; echo no >&2; exit 3"], Stdio::null(), Duration::from_secs(20))?;
        assert_eq!((finished.status.code(), finished.text().as_str()), (Some(3), "no\n"));

        let folder = tempfile::tempdir()?;
        // It writes more than a pipe holds; nobody reads.
        let script = "head -c 200000 /dev/zero; echo done >&2; exec tail -f /dev/null";
        let mut child = Process::start(Command::new("sh").args(["-c", script]), "child", folder.path())?;
        wait_until(Duration::from_secs(20), "the child has written", || {
            anyhow::ensure!(child.log().contains("done"), "{} bytes", child.output().len());
            Ok(())
        })?;
        child.ensure_running()?;
        let pid = child.pid();
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the child outlived its owner");
        Ok(())
    }

    #[test]
    fn a_child_that_does_not_end_is_told_of() {
        let error =
            run("tail", &["-f", "/dev/null"], Stdio::null(), Duration::from_millis(50)).expect_err("it runs on");
        assert!(format!("{error:#}").contains("still not: tail has ended"), "{error:#}");
    }
}
