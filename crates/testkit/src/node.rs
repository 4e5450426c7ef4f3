//! One node under test: where it is, how it is started, stopped, killed and asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::binary::muster_binary;
use crate::http::Api;
use crate::kcat::Kcat;
use crate::ports::free_port;
use crate::process::{Finished, Process, Signal, run};
use crate::wait::wait_until;

/// Longest time that an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Longest time that one command line may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How a node comes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// `muster up`: forms a cluster on an empty data directory, goes on with a full one.
    Up,
    /// `muster join TOKEN`: becomes a member and runs.
    Join(String),
    /// `muster node --config FILE`, with a file that [`Node::write_config`] wrote, or another.
    Config(PathBuf),
}

/// A node; its process may or may not be running.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub data_dir: PathBuf,
    pub kafka: SocketAddr,
    pub api: SocketAddr,
    pub peer: SocketAddr,
    /// Set in the process's environment.
    pub environment: Vec<(String, String)>,
    /// Added to its command line.
    pub arguments: Vec<String>,
    logs: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// A node of that name on free ports, with its data in `folder/NAME` and its output in `folder/NAME.err` and
    /// `folder/NAME.out`. Nothing runs yet.
    ///
    /// # Errors
    /// If no port is free.
    pub fn new(name: &str, folder: &Path) -> anyhow::Result<Self> {
        let address = || Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], free_port()?)));
        Ok(Node {
            name: name.into(),
            data_dir: folder.join(name),
            kafka: address()?,
            api: address()?,
            peer: address()?,
            environment: Vec::new(),
            arguments: Vec::new(),
            logs: folder.to_owned(),
            process: None,
        })
    }

    /// The command line that starts this node.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn command(&self, start: &Start) -> anyhow::Result<Command> {
        let mut command = Command::new(muster_binary()?);
        match start {
            Start::Up => command.arg("up"),
            Start::Join(token) => command.args(["join", token]),
            Start::Config(file) => {
                command.args(["node", "--config"]).arg(file).args(&self.arguments);
                command.envs(self.environment.iter().map(|(name, value)| (name, value)));
                return Ok(command);
            }
        };
        command.arg("--data-dir").arg(&self.data_dir).args(["--name", &self.name]);
        command.args(["--kafka-listen", &self.kafka.to_string()]);
        command.args(["--api-listen", &self.api.to_string()]);
        command.args(["--peer-listen", &self.peer.to_string()]);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Writes a configuration file that says what the flags would say, and `more`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self, more: &str) -> anyhow::Result<PathBuf> {
        let path = self.logs.join(format!("{}.toml", self.name));
        let text = format!(
            "name = \"{}\"\ndata_dir = \"{}\"\nkafka_listen = \"{}\"\napi_listen = \"{}\"\npeer_listen = \"{}\"\n{more}",
            self.name,
            self.data_dir.display(),
            self.kafka,
            self.api,
            self.peer
        );
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Starts the process and does not wait for anything.
    ///
    /// # Errors
    /// If it runs already or cannot be started.
    pub fn start(&mut self, start: &Start) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "{} was started already", self.name);
        self.process = Some(Process::start(&mut self.command(start)?, &self.name, &self.logs)?);
        Ok(())
    }

    /// Runs a second process with this node's command line to its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn start_again(&self, start: &Start) -> anyhow::Result<Finished> {
        Process::start(&mut self.command(start)?, &format!("{}-again", self.name), &self.logs)?.wait(COMMAND_LIMIT)
    }

    /// The running process.
    ///
    /// # Errors
    /// If there is none.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} is not running", self.name))
    }

    /// Its process id, if it was started and not yet stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Sends a signal and does not wait.
    ///
    /// # Errors
    /// If it is not running.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.process()?.signal(signal)
    }

    /// SIGKILL, and waits until it is gone. Its hypervisors live on.
    ///
    /// # Errors
    /// If it is not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// As if its machine lost power: SIGKILL, for its hypervisors, too.
    ///
    /// # Errors
    /// If it is not running, or a hypervisor cannot be ended.
    pub fn kill_machine(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.hypervisors().into_iter().try_for_each(|(_, pid)| end(pid))
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// If it is not running, does not end in time, or ends with a failure.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::Terminate)?;
        let finished = self.process()?.wait(STOP_LIMIT)?;
        self.process = None;
        ensure!(finished.status.success(), "{} ended with {}:\n{}", self.name, finished.status, finished.text());
        Ok(())
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// If it is not running or runs on.
    pub fn wait_for_end(&mut self, limit: Duration) -> anyhow::Result<Finished> {
        let finished = self.process()?.wait(limit)?;
        self.process = None;
        Ok(finished)
    }

    /// A client of its API.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::at(self.api)
    }

    /// kcat, pointed at its Kafka listener.
    #[must_use]
    pub fn kcat(&self) -> Kcat {
        Kcat::at(self.kafka)
    }

    /// Whether it says that it is ready.
    ///
    /// # Errors
    /// What it says instead, or how it ended.
    pub fn ensure_ready(&mut self) -> anyhow::Result<()> {
        self.process()?.ensure_running()?;
        let answer = Api::with_limit(self.api, Duration::from_secs(3)).get("/readyz");
        match answer {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => bail!("{} is not ready: {} {}", self.name, answer.status, answer.body),
            Err(error) => Err(error.context(format!("{} does not say whether it is ready", self.name))),
        }
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// If it does not, with what it says, or at once if it ended.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        wait_until(limit, &format!("{} is ready", self.name.clone()), || {
            // One that ended will never be ready: do not wait for the deadline.
            if let Err(ended) = self.process()?.ensure_running() {
                return Ok(Err(ended));
            }
            self.ensure_ready().map(Ok)
        })?
    }

    /// The members as it sees them: `GET /v1/nodes`.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn members(&self) -> anyhow::Result<Vec<Value>> {
        let body = self.api().get("/v1/nodes")?.ok()?;
        body["nodes"].as_array().cloned().with_context(|| format!("no list of nodes in {body}"))
    }

    /// Its id, as it says itself.
    ///
    /// # Errors
    /// If it does not say.
    pub fn id(&self) -> anyhow::Result<i64> {
        let members = self.members()?;
        let me = members.iter().find(|member| member["name"] == self.name.as_str());
        me.and_then(|member| member["id"].as_i64()).with_context(|| format!("no id of {} in {members:?}", self.name))
    }

    /// Its id, and a partition of `topic` that it leads as the first replica: nobody takes that from a node that is well.
    ///
    /// # Errors
    /// If it leads none.
    pub fn leads(&self, topic: &str) -> anyhow::Result<(i64, i64)> {
        let (id, partitions) = (self.id()?, self.kcat().partitions(topic)?);
        let led = partitions.iter().find(|(_, (leader, all))| *leader == id && all.first() == Some(leader));
        let led = led.map(|(partition, _)| *partition);
        Ok((id, led.with_context(|| format!("of {topic}, {} leads none of {partitions:?}", self.name))?))
    }

    /// Runs the command line against this node.
    ///
    /// # Errors
    /// If it cannot be run or does not end; a command that fails is not an error here.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Finished> {
        let api = self.api.to_string();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--api", api.as_str()]).collect();
        run(muster_binary()?, &arguments, Stdio::null(), COMMAND_LIMIT)
    }

    /// Starts the command line against this node and leaves it running, its output in `NAME.out` and `NAME.err`. Ctrl-C ends
    /// it, also where the tests run in the background of a script: there SIGINT is ignored, and children inherit that.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn cli_start(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Process> {
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(muster_binary()?);
        command.args(arguments).args(["--api", &self.api.to_string()]);
        Process::start(&mut command, name, &self.logs)
    }

    /// Runs the command line with `--output json`, and gives what it says.
    ///
    /// # Errors
    /// If it fails or says no JSON.
    pub fn cli_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let finished = self.cli(&arguments)?;
        let line = arguments.join(" ");
        ensure!(finished.status.success(), "`muster {line}` ended with {}:\n{}", finished.status, finished.text());
        serde_json::from_slice(&finished.stdout).with_context(|| format!("`muster {line}` said {}", finished.text()))
    }

    /// The process ids of hypervisors that work in its data directory, each by the VM directory it works in.
    #[must_use]
    pub fn hypervisors(&self) -> Vec<(PathBuf, u32)> {
        let Ok(data_dir) = self.data_dir.canonicalize() else { return Vec::new() };
        let mut found = Vec::new();
        let mut folders = vec![data_dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "pid")
                    && let Some(pid) = running_in(&path, &data_dir)
                {
                    found.push((folder.clone(), pid));
                }
            }
        }
        found
    }

    /// The highest term of each group on any node that answers this one.
    ///
    /// # Errors
    /// If this one does not answer.
    pub fn terms(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let body = self.api().get("/v1/groups")?.ok()?;
        let mut terms = BTreeMap::new();
        let nodes = body["nodes"].as_array().context("no list of nodes")?;
        for group in nodes.iter().filter_map(|node| node["groups"].as_array()).flatten() {
            let name = group["name"].as_str().unwrap_or_default().to_owned();
            let term = group["term"].as_u64().with_context(|| format!("no term in {group}"))?;
            let highest = terms.entry(name).or_insert(term);
            *highest = term.max(*highest);
        }
        Ok(terms)
    }

    /// What it wrote to standard error, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let path = self.logs.join(format!("{}.err", self.name));
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The daemon first: it would start its guests again.
        self.process = None;
        for (_, pid) in self.hypervisors() {
            if let Err(error) = end(pid) {
                eprintln!("testkit: {}: {error:#}", self.name);
            }
        }
    }
}

/// SIGKILL for a hypervisor.
fn end(pid: u32) -> anyhow::Result<()> {
    let id = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("a process id out of range")?;
    match rustix::process::kill_process(id, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot end the hypervisor {pid}")),
    }
}

/// The process that `pid_file` names, if it works in `directory`: a file may outlive its process, and ids are given
/// out again.
fn running_in(pid_file: &Path, directory: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    works_in.starts_with(directory).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_that_work_in_the_folder_are_hypervisors() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let node = Node::new("node1", folder.path())?;
        let vm = node.data_dir.join("vms/1");
        std::fs::create_dir_all(&vm)?;
        let mut command = Command::new("tail");
        let mine = Process::start(command.args(["-f", "/dev/null"]).current_dir(&vm), "mine", folder.path())?;
        let strange = std::process::id();
        std::fs::write(vm.join("hypervisor.pid"), format!("{}\n", mine.pid()))?;
        std::fs::write(vm.join("other.pid"), format!("{strange}\n"))?;
        let found: Vec<u32> = node.hypervisors().into_iter().map(|(_, pid)| pid).collect();
        assert_eq!(found, [mine.pid()], "{strange} is the test itself");
        Ok(())
    }
}
