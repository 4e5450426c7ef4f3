//! `muster demo`: the main thing in one command. Three nodes form a cluster, a VM boots, its console is read out of
//! Kafka by a stock client.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::ArgMatches;
use doors::render::{self, Format};
use operations::Ports;
use ops::{OpError, Registry, Spec};
use serde_json::{Value, json};

use crate::client::Answer;
use crate::dev::{Cluster, ClusterDir, Layout, Plan, api_flag, first_node, ready_fields, starting_fields};
use crate::signals::Signals;
use crate::{remote, terminal};

/// The VM that the demo makes.
const VM: &str = "hello";
/// How long the guest's words may take to come out of Kafka.
const CONSOLE_WAIT: Duration = Duration::from_secs(60);
/// Between looks for Ctrl-C.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How the reason of a VM begins that waits for a hypervisor to be installed (`compute::place`).
const NO_HYPERVISOR: &str = "no node offers qemu";
/// How long that reason must stand to be believed: in a data directory of before, the tables first say what the nodes
/// offered when they ran last, and the reason that followed from that.
const NO_HYPERVISOR_STANDS: Duration = Duration::from_secs(5);

struct Demo<'a> {
    plan: Plan<'a>,
    cluster: Cluster,
    told: Progress,
}

/// Tells how far the demo is.
#[derive(Clone, Copy)]
struct Progress {
    began: Instant,
    format: Format,
}

impl Progress {
    /// A line of progress; programs also get `fields`.
    fn step(self, event: &str, fields: Value, text: &str) -> anyhow::Result<()> {
        let seconds = terminal::seconds_since(self.began);
        let mut all = json!({ "seconds": seconds, "text": text });
        if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
            all.extend(fields);
        }
        terminal::tell(self.format, event, all, format!("[{seconds:5.1} s] {text}"))
    }
}

/// Runs the demo and stays until Ctrl-C, or leaves at once with `--exit`.
pub(crate) fn run(registry: &Registry<Ports>, args: &ArgMatches) -> anyhow::Result<()> {
    let began = Instant::now();
    let signals = Signals::catch()?;
    let first = first_node(args)?;
    let (dir, temporary) = match args.get_one::<PathBuf>("data-dir") {
        Some(dir) => (ClusterDir::open(dir)?, None),
        None => {
            let made = Temporary::make()?;
            (ClusterDir::open(&made.0)?, Some(made))
        }
    };
    let (layout, held) = Layout::open(&dir.path, None, first)?;
    let kernel = args.get_one::<PathBuf>("kernel").cloned();
    let plan = Plan { registry, dir: dir.path.clone(), layout, kernel, signals: &signals };
    let told = Progress { began, format: remote::format(args) };
    let starting = format!("starting {} nodes in {}", plan.layout.nodes.len(), plan.dir.display());
    told.step("starting", starting_fields(&plan), &starting)?;
    let Some(cluster) = Cluster::start(&plan, held)? else { return Ok(()) };
    let ready = ready_fields(&plan, terminal::seconds_since(began));
    told.step("ready", ready, "the cluster is formed: every node is ready")?;
    let mut demo = Demo { plan, cluster, told };
    let mut shown = demo.show();
    if shown.is_ok() && !args.get_flag("exit") {
        terminal::tell(told.format, "running", Value::Null, "\nThe cluster keeps running. Ctrl-C stops it.")?;
        shown = demo.cluster.watch(&signals);
    }
    told.step("stopping", Value::Null, "stopping")?;
    demo.cluster.stop(&signals);
    if shown.is_err()
        && let Some(kept) = temporary
    {
        let logs = kept.keep();
        return shown.with_context(|| format!("the demo did not work; the nodes' logs are kept in {}", logs.display()));
    }
    shown
}

impl Demo<'_> {
    fn show(&mut self) -> anyhow::Result<()> {
        self.create_vm()?;
        self.wait_for_vm()?;
        let line = self.read_console()?;
        self.told.step("greeting", json!({ "line": line }), &format!("out of Kafka: {line}"))?;
        let status = self.spec("cluster.status")?;
        let value = self.call(status, &json!({}))?;
        let shown = render::output(status, &value, Format::Human);
        let text = format!("\n$ muster status\n{shown}\n\n{}", self.suggestions());
        terminal::tell(self.told.format, "status", json!({ "status": value }), text)
    }

    fn spec(&self, name: &str) -> anyhow::Result<&Spec> {
        Ok(self.plan.registry.get(name).with_context(|| format!("there is no operation {name}"))?.spec())
    }

    fn call(&self, spec: &Spec, input: &Value) -> anyhow::Result<Value> {
        self.cluster.client.value(spec, input).map_err(told)
    }

    fn create_vm(&self) -> anyhow::Result<()> {
        match self.cluster.client.value(self.spec("vm.create")?, &json!({ "name": VM })) {
            Ok(_) => self.told.step("vm", json!({ "vm": VM }), &format!("VM {VM} is created")),
            Err(error) if error.code == base::ErrorCode::AlreadyExists => {
                self.told.step("vm", json!({ "vm": VM }), &format!("VM {VM} is there from before"))
            }
            Err(error) => Err(told(error)),
        }
    }

    /// Shows each change until the VM runs.
    fn wait_for_vm(&self) -> anyhow::Result<()> {
        let items = match self.cluster.client.call(self.spec("vm.wait")?, &json!({ "name": VM })).map_err(told)? {
            Answer::Items(items) => items,
            Answer::Value(_) => bail!("vm.wait answered with one value"),
        };
        let (sender, changes) = sync_channel(1);
        // Detached, for a read cannot be given up: the thread ends with the stream or with the process.
        std::thread::Builder::new().name("vm.wait".into()).spawn(move || {
            for item in items {
                if sender.send(item).is_err() {
                    return;
                }
            }
        })?;
        let mut lacking: Option<(Instant, String)> = None;
        loop {
            let vm = match changes.recv_timeout(LOOK_INTERVAL) {
                Ok(item) => item.map_err(|error| anyhow!("{}", error.message))?["vm"].clone(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if self.plan.signals.came_within(Duration::ZERO) => bail!("interrupted"),
                Err(RecvTimeoutError::Timeout) => match &lacking {
                    Some((since, reason)) if since.elapsed() > NO_HYPERVISOR_STANDS => bail!("{reason}"),
                    _ => continue,
                },
            };
            let place = vm["node"].as_str().map(|node| format!(" on {node}")).unwrap_or_default();
            let reason = ops::human::text(&vm["reason"]);
            let phase = ops::human::text(&vm["phase"]);
            let shown = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let fields = json!({ "vm": VM, "phase": phase, "node": vm["node"], "reason": reason });
            self.told.step("vm", fields, &format!("VM {VM} is {phase}{place}{shown}"))?;
            lacking = (phase == "Pending" && reason.starts_with(NO_HYPERVISOR)).then(|| (Instant::now(), reason));
        }
    }

    /// The guest's greeting, read out of the console's topic: by kcat, or, where that is missing, by muster itself.
    fn read_console(&self) -> anyhow::Result<String> {
        let first = self.plan.layout.nodes.first().context("a cluster has at least one node")?;
        let topic = format!("vm.{VM}.console");
        let fields = json!({ "topic": topic });
        let mut kcat = Command::new("kcat");
        let broker = first.kafka.to_string();
        kcat.args(["-b", &broker, "-C", "-t", &topic, "-o", "beginning", "-u", "-q"]);
        let spawned = kcat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        match spawned {
            Ok(mut child) => {
                self.told.step("reading", fields, &format!("reading the topic {topic} with kcat"))?;
                let out = child.stdout.take().context("kcat has no output")?;
                let lines = BufReader::new(out).lines().map_while(Result::ok);
                let found = self.find_greeting(lines);
                let _ = child.kill();
                let _ = child.wait();
                found
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = format!("reading the topic {topic} with `muster vm logs` (kcat is not installed)");
                self.told.step("reading", fields, &text)?;
                let input = json!({ "name": VM, "follow": true });
                let items = match self.cluster.client.call(self.spec("vm.logs")?, &input).map_err(told)? {
                    Answer::Items(items) => items,
                    Answer::Value(_) => bail!("vm.logs answered with one value"),
                };
                self.find_greeting(items.map_while(Result::ok).map(|item| ops::human::text(&item["line"])))
            }
            Err(error) => Err(error).context("cannot run kcat"),
        }
    }

    /// The line that the guest greets with, within [`CONSOLE_WAIT`].
    fn find_greeting(&self, lines: impl Iterator<Item = String> + Send + 'static) -> anyhow::Result<String> {
        let greeting = format!("hello from {VM} on ");
        let (sender, found) = sync_channel(1);
        // Detached, for a read cannot be given up: the thread ends with its source or with the process.
        std::thread::Builder::new().name("console".into()).spawn({
            let greeting = greeting.clone();
            move || {
                let line = lines.map(|line| ops::human::one_line(&line)).find(|line| line.contains(&greeting));
                let _ = sender.send(line);
            }
        })?;
        let deadline = Instant::now() + CONSOLE_WAIT;
        loop {
            match found.recv_timeout(LOOK_INTERVAL) {
                Ok(Some(line)) => return Ok(line),
                Ok(None) | Err(RecvTimeoutError::Disconnected) => bail!("the console ended without \"{greeting}\""),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("no \"{greeting}\" came out of Kafka within {} s", CONSOLE_WAIT.as_secs())
                }
                Err(RecvTimeoutError::Timeout) if self.plan.signals.came_within(Duration::ZERO) => bail!("interrupted"),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn suggestions(&self) -> String {
        let Some(first) = self.plan.layout.nodes.first() else { return String::new() };
        let (api, kafka, muster) = (api_flag(first.api), first.kafka, terminal::program());
        format!(
            "Three things to try:\n  {muster} vm logs -f {VM}{api}\n  kcat -b {kafka} -C -t muster.events -o beginning -e\n  \
             echo hello | kcat -b {kafka} -P -t greetings && kcat -b {kafka} -C -t greetings -e"
        )
    }
}

fn told(error: OpError) -> anyhow::Error {
    match error.hint {
        Some(hint) => anyhow!("{} ({hint})", error.message),
        None => anyhow!("{}", error.message),
    }
}

/// A directory that goes when the demo ends well.
struct Temporary(PathBuf);

impl Temporary {
    fn make() -> anyhow::Result<Temporary> {
        let base = std::env::temp_dir();
        let dir = (0..100u32).map(|n| base.join(format!("muster-demo-{}-{n}", std::process::id())));
        for dir in dir {
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Temporary(dir)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
            }
        }
        bail!("cannot make a directory in {}", base.display())
    }

    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
