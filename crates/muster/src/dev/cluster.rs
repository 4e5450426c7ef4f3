//! A whole development cluster: started, formed, watched, stopped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use operations::Ports;
use ops::Registry;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::child::NodeProcess;
use super::layout::{HeldPorts, Layout, NodePlace};
use crate::client::Client;
use crate::signals::Signals;
use crate::terminal;

/// How long the cluster may take to form.
const FORM_WAIT: Duration = Duration::from_secs(90);
/// How long nodes may take to stop by themselves.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Between looks at the cluster.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The nodes of a development cluster; dropping it kills them.
pub(crate) struct Cluster {
    pub nodes: Vec<NodeProcess>,
    pub client: Client,
}

/// What a start needs.
pub(crate) struct Plan<'a> {
    pub registry: &'a Registry<Ports>,
    pub dir: PathBuf,
    pub layout: Layout,
    pub kernel: Option<PathBuf>,
    pub signals: &'a Signals,
}

impl Cluster {
    /// Starts all nodes, each on the ports that were held for it, and waits until all are ready members. `None` if somebody
    /// wanted to stop meanwhile.
    pub(crate) fn start(plan: &Plan<'_>, mut held: HeldPorts) -> anyhow::Result<Option<Cluster>> {
        let first = plan.layout.nodes.first().context("a cluster has at least one node")?;
        let mut cluster = Cluster { nodes: Vec::new(), client: Client::new(&first.api.to_string()) };
        // Members of before start at once, for one alone has no majority. A first start forms the cluster.
        let (members, strangers): (Vec<_>, Vec<_>) = plan
            .layout
            .nodes
            .iter()
            .enumerate()
            .partition(|(index, place)| *index == 0 || node::Config::is_member(&plan.dir.join(&place.name)));
        let mut start = |place: &NodePlace, token: Option<&str>| {
            held.release(&place.name);
            NodeProcess::start(&plan.dir, place, plan.kernel.as_deref(), token)
        };
        for (_, place) in &members {
            cluster.nodes.push(start(place, None)?);
        }
        if !cluster.wait_for(plan, members.len())? {
            return Ok(cluster.stopped(plan.signals));
        }
        if strangers.is_empty() {
            return Ok(Some(cluster));
        }
        let token = cluster.token(plan.registry, strangers.len())?;
        for (_, place) in &strangers {
            cluster.nodes.push(start(place, Some(token.as_str()))?);
        }
        let all = plan.layout.nodes.len();
        if !cluster.wait_for(plan, all)? {
            return Ok(cluster.stopped(plan.signals));
        }
        Ok(Some(cluster))
    }

    fn stopped(self, signals: &Signals) -> Option<Cluster> {
        self.stop(signals);
        None
    }

    fn token(&self, registry: &Registry<Ports>, uses: usize) -> anyhow::Result<String> {
        let create = registry.get("token.create").context("there is no operation token.create")?;
        let input = json!({ "uses": uses, "expires_in_minutes": 10 });
        let answer = self.client.value(create.spec(), &input).map_err(|error| anyhow!("no join token: {error}"))?;
        answer["token"].as_str().map(str::to_owned).context("the answer holds no token")
    }

    /// Waits until `wanted` members are ready; `false` if somebody wants to stop.
    fn wait_for(&mut self, plan: &Plan<'_>, wanted: usize) -> anyhow::Result<bool> {
        let status = plan.registry.get("cluster.status").context("there is no operation cluster.status")?;
        let began = Instant::now();
        loop {
            if let Some(dead) = self.nodes.iter_mut().find_map(|node| node.ended().map(|status| node.obituary(status)))
            {
                bail!("{dead}");
            }
            let seen = match self.client.value(status.spec(), &json!({})) {
                Ok(answer) if ready(&answer) >= wanted => return Ok(true),
                Ok(answer) => states(&answer),
                Err(error) => error.message,
            };
            if began.elapsed() > FORM_WAIT {
                bail!(
                    "after {} s not all of {wanted} nodes are ready: {seen}; the logs are in {}",
                    FORM_WAIT.as_secs(),
                    plan.dir.display()
                );
            }
            if plan.signals.came_within(LOOK_INTERVAL) {
                return Ok(false);
            }
        }
    }

    /// Tells of nodes that ended since the last look; they are not started again.
    pub(crate) fn bury(&mut self) {
        for mut node in std::mem::take(&mut self.nodes) {
            match node.ended() {
                Some(status) => terminal::complain(&node.obituary(status)),
                None => self.nodes.push(node),
            }
        }
    }

    /// Stays until somebody wants to stop, telling of nodes that end.
    pub(crate) fn watch(&mut self, signals: &Signals) -> anyhow::Result<()> {
        while !signals.came_within(Duration::from_millis(200)) {
            self.bury();
            if self.nodes.is_empty() {
                bail!("no node is left");
            }
        }
        Ok(())
    }

    /// Asks all nodes to stop, and kills those that do not within [`STOP_WAIT`], or at once on a signal that comes after
    /// this began.
    pub(crate) fn stop(mut self, signals: &Signals) {
        signals.forget();
        self.nodes.iter().for_each(NodeProcess::ask_to_stop);
        let began = Instant::now();
        loop {
            self.nodes.retain_mut(|node| node.ended().is_none());
            if self.nodes.is_empty() {
                return;
            }
            if began.elapsed() > STOP_WAIT || signals.came_within(LOOK_INTERVAL) {
                break;
            }
        }
        for node in &mut self.nodes {
            terminal::complain(&format!("{} did not stop and is killed", node.place.name));
            node.kill();
        }
    }
}

fn ready(status: &Value) -> usize {
    status["nodes"].as_array().into_iter().flatten().filter(|node| node["state"] == "ready").count()
}

fn states(status: &Value) -> String {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let one = |node: &Value| {
        let text = |name: &str| ops::human::text(&node[name]);
        format!("{} {} {}", text("name"), text("state"), text("reason")).trim_end().to_owned()
    };
    nodes.map(one).collect::<Vec<_>>().join(", ")
}

/// A cluster's data directory, held by this process: another one's nodes would answer in place of its own.
pub(crate) struct ClusterDir {
    /// Absolute.
    pub path: PathBuf,
    _lock: File,
}

impl ClusterDir {
    /// Makes the directory if need be and holds it.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<ClusterDir> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let path = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
        let file = path.join("dev.lock");
        let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&file);
        let mut lock = open().with_context(|| format!("cannot open {}", file.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            bail!(
                "{} is in use by the muster process {}: stop that one first, or choose another --data-dir",
                path.display(),
                pid.trim()
            );
        }
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id()).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(ClusterDir { path, _lock: lock })
    }
}
