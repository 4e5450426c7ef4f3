//! Several nodes that form a cluster, and the folder that they live in.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::kcat::Kcat;
use crate::node::{Node, Start};
use crate::wait::wait_until;

/// Longest time that a first node may take to be ready. Tests that are about this time measure it themselves.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A temporary folder that stays if its test did not pass.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    passed: Cell<bool>,
}

impl Folder {
    /// Runs a test in a folder of its own. If `body` fails, folder and logs are kept, and the panic says where.
    ///
    /// # Panics
    /// If `body` fails.
    pub fn scenario(name: &str, body: impl FnOnce(&Folder) -> anyhow::Result<()>) {
        let made = tempfile::Builder::new().prefix(&format!("muster-{name}-")).tempdir();
        let path = made.map(tempfile::TempDir::keep).expect("the temporary folder of the system is writable");
        let folder = Folder { path, passed: Cell::new(false) };
        match body(&folder) {
            Ok(()) => folder.passed.set(true),
            Err(error) => panic!("{name}: {error:#}"),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.passed.get() {
            eprintln!("testkit: data and logs are kept in {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("testkit: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Nodes that belong together. The first formed the cluster, the others joined it.
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    folder: PathBuf,
}

impl Cluster {
    /// Starts `size` nodes in `folder` and waits until every one sees every one ready.
    ///
    /// # Errors
    /// If that does not come about, with what was seen instead.
    pub fn start(folder: &Folder, size: usize) -> anyhow::Result<Self> {
        let mut cluster = Cluster::prepare(folder, size)?;
        cluster.form()?;
        cluster.wait_ready(READY_LIMIT)?;
        Ok(cluster)
    }

    /// `size` nodes in `folder`, none of which runs yet.
    ///
    /// # Errors
    /// If no ports are free.
    pub fn prepare(folder: &Folder, size: usize) -> anyhow::Result<Self> {
        let nodes = (1..=size).map(|number| Node::new(&format!("node{number}"), folder.path()));
        Ok(Cluster { nodes: nodes.collect::<anyhow::Result<_>>()?, folder: folder.path().to_owned() })
    }

    /// Starts the first node, makes a token, and lets all others join at once. Does not wait for them.
    ///
    /// # Errors
    /// If the first node does not become ready or gives no token.
    pub fn form(&mut self) -> anyhow::Result<()> {
        let (first, others) = self.nodes.split_first_mut().context("a cluster of no nodes")?;
        first.start(&Start::Up)?;
        first.wait_ready(READY_LIMIT)?;
        if !others.is_empty() {
            let token = token(first, others.len())?;
            others.iter_mut().try_for_each(|node| node.start(&Start::Join(token.clone())))?;
        }
        Ok(())
    }

    /// One more node, named but not started.
    ///
    /// # Errors
    /// If no ports are free.
    pub fn add(&mut self) -> anyhow::Result<&mut Node> {
        let name = format!("node{}", self.nodes.len() + 1);
        self.nodes.push(Node::new(&name, &self.folder)?);
        self.nodes.last_mut().context("a node was just added")
    }

    /// A token with which `uses` nodes may join.
    ///
    /// # Errors
    /// If no node gives one.
    pub fn token(&self, uses: usize) -> anyhow::Result<String> {
        token(self.running().next().context("no node runs")?, uses)
    }

    /// The nodes whose process runs.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.pid().is_some())
    }

    /// Waits until every running node is ready and sees every running node ready.
    ///
    /// # Errors
    /// If that does not come about, with what was seen instead.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let what = format!("{} nodes are ready, and see each other so", self.running().count());
        wait_until(limit, &what, || self.ensure_ready())
    }

    fn ensure_ready(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.running().map(|node| node.name.clone()).collect();
        for node in self.nodes.iter_mut().filter(|node| node.pid().is_some()) {
            node.ensure_ready()?;
            let members = node.members()?;
            for name in &names {
                let state = members.iter().find(|member| member["name"] == name.as_str()).map(|m| &m["state"]);
                ensure!(
                    state.is_some_and(|state| state == "ready"),
                    "{} sees {name} as {state:?}; all it sees: {members:?}",
                    node.name
                );
            }
        }
        Ok(())
    }

    /// The place in [`Cluster::nodes`] of the node that leads `__meta`, as the running nodes agree on.
    ///
    /// # Errors
    /// If they do not agree before `limit`.
    pub fn meta_leader(&self, limit: Duration) -> anyhow::Result<usize> {
        wait_until(limit, "all running nodes agree on a leader of __meta", || {
            let mut leaders = Vec::new();
            for node in self.running() {
                let members = node.members()?;
                let leader = members.iter().find(|member| member["meta_role"] == "leader");
                let leader = leader.with_context(|| format!("{} knows no leader: {members:?}", node.name))?;
                leaders.push(leader["name"].as_str().unwrap_or_default().to_owned());
            }
            leaders.dedup();
            let [leader] = &leaders[..] else { anyhow::bail!("they name {leaders:?}") };
            self.nodes.iter().position(|node| node.name == *leader).with_context(|| format!("{leader} is not ours"))
        })
    }

    /// Waits until all nodes but the one at `at` follow another leader than that one: of `__meta`, and of a partition of
    /// `topic` that it led under its id ([`Node::leads`]).
    ///
    /// # Errors
    /// If that does not come about before `limit`, with what was seen instead.
    pub fn wait_led_by_others(
        &self,
        at: usize,
        topic: &str,
        (id, partition): (i64, i64),
        limit: Duration,
    ) -> anyhow::Result<()> {
        let name = self.nodes[at].name.as_str();
        wait_until(limit, &format!("all but {name} follow another leader than {name}"), || {
            for node in self.nodes.iter().filter(|node| node.name != name) {
                let leader = node.api().get("/v1/status")?.ok()?["meta"]["leader"].clone();
                ensure!(leader.is_string() && leader != name, "{} follows {leader}", node.name);
                let led = node.kcat().partitions(topic)?.get(&partition).map(|(leader, _)| *leader);
                ensure!(led.is_some_and(|by| by >= 0 && by != id), "{} says that {led:?} leads", node.name);
            }
            Ok(())
        })
    }

    /// kcat, knowing every node.
    #[must_use]
    pub fn kcat(&self) -> Kcat {
        let brokers: Vec<SocketAddr> = self.nodes.iter().map(|node| node.kafka).collect();
        Kcat::at_any(&brokers)
    }
}

fn token(node: &Node, uses: usize) -> anyhow::Result<String> {
    let answer = node.api().post("/v1/tokens", &json!({ "uses": uses }))?.ok()?;
    answer["token"].as_str().map(str::to_owned).with_context(|| format!("no token in {answer}"))
}
