//! A process tree of its own, and a network if wanted: for commands that start processes themselves, on default ports.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, kill_process};

use crate::binary::muster_binary;
use crate::process::{Finished, Process, run};
use crate::wait::wait_until;

/// How long the first process of an enclave may take to appear, and the last one to go.
const TURN_LIMIT: Duration = Duration::from_secs(30);

/// Which network an enclave has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// A loopback of its own, on which every port is free, and nothing else.
    Loopback,
}

/// A running `muster` and what it starts. When this value goes, so does every process that was started inside.
#[derive(Debug)]
pub struct Enclave {
    /// `unshare`, which ends everything inside when it ends.
    shell: Process,
    /// The first process inside, by its id outside.
    first: i32,
}

impl Enclave {
    /// Runs `muster` with `arguments` in `folder`, in namespaces of its own. As root, or where users may make them.
    ///
    /// # Errors
    /// If the namespaces are refused, or there is no binary.
    pub fn start(network: Network, arguments: &[&str], name: &str, folder: &Path) -> anyhow::Result<Self> {
        let binary = muster_binary()?.canonicalize().context("the binary has no place")?;
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        match network {
            Network::Host => command.arg("--"),
            Network::Loopback => {
                command.args(["--net", "--", "sh", "-c", "busybox ip link set lo up && exec \"$0\" \"$@\""])
            }
        };
        command.arg(&binary).args(arguments).current_dir(folder);
        let mut shell = Process::start(&mut command, name, folder)?;
        let children = format!("/proc/{pid}/task/{pid}/children", pid = shell.pid());
        let first = wait_until(TURN_LIMIT, "muster runs in its namespaces", || {
            shell.ensure_running()?;
            let list = std::fs::read_to_string(&children)?;
            let first: i32 = list.split_whitespace().next().context("no process yet")?.parse()?;
            // What starts it becomes it.
            let program = std::fs::read_link(format!("/proc/{first}/exe"))?;
            ensure!(program == binary, "it is {} still", program.display());
            Ok(first)
        })?;
        Ok(Enclave { shell, first })
    }

    /// Runs a program inside to its end.
    ///
    /// # Errors
    /// If it cannot be run or does not end.
    pub fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Finished> {
        let target = self.first.to_string();
        let mut all = vec!["--target", &target];
        if !rustix::process::geteuid().is_root() {
            all.extend(["--user", "--preserve-credentials"]);
        }
        all.extend(["--net", "--pid", "--mount", "--", program]);
        all.extend(arguments);
        run("nsenter", &all, Stdio::null(), Duration::from_secs(60))
    }

    /// Runs `muster` inside with `--output json`, and gives what it says.
    ///
    /// # Errors
    /// If it fails or says no JSON.
    pub fn muster_json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let binary = muster_binary()?.display().to_string();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let finished = self.run(&binary, &arguments)?;
        ensure!(finished.status.success(), "`muster {}`: {}", arguments.join(" "), finished.text());
        serde_json::from_slice(&finished.stdout).with_context(|| finished.text())
    }

    /// The process tree's top, as seen from outside.
    pub fn process(&mut self) -> &mut Process {
        &mut self.shell
    }

    /// Ctrl-C to the first process, and waits until nothing is left inside.
    ///
    /// # Errors
    /// If it does not end, or not with success.
    pub fn interrupt(mut self) -> anyhow::Result<Finished> {
        let pid = Pid::from_raw(self.first).context("a strange process id")?;
        kill_process(pid, rustix::process::Signal::INT)?;
        let finished = self.shell.wait(TURN_LIMIT)?;
        ensure!(finished.status.success(), "it ended with {}:\n{}", finished.status, finished.text());
        Ok(finished)
    }
}
