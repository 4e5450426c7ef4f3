//! A network that can be cut, between nodes that run on it.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::node::Node;
use crate::process::run;

/// Set in the environment of a process that has a network of its own.
const INSIDE: &str = "MUSTER_OWN_NETWORK";
const TABLE: &[&str] = &["inet", "muster_cuts"];
const NFT_LIMIT: Duration = Duration::from_secs(20);

/// Runs this program once more with `arguments` in a network namespace of its own, a loopback and nothing else, to its
/// end. Whether that was done: `false` means that this *is* the process inside, which goes on with what is to be done.
///
/// # Errors
/// If the namespace is refused (it needs root, or user namespaces), or the program inside fails.
pub fn enter_own_network(arguments: &[&str]) -> anyhow::Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(false);
    }
    let program = std::env::current_exe().context("where does this program run from?")?;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    // Whatever is left inside ends with the first process.
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c"]);
    command.arg("busybox ip link set lo up && exec \"$0\" \"$@\"").arg(program).args(arguments);
    let status = command.env(INSIDE, "1").stdin(Stdio::null()).status().context("cannot run unshare")?;
    ensure!(status.success(), "in a network of its own it failed ({status}), see above");
    Ok(true)
}

/// Who cannot reach whom, by rules of the packet filter. Only inside [`enter_own_network`].
#[derive(Debug)]
pub struct Cuts(());

impl Cuts {
    /// A network without cuts.
    ///
    /// # Errors
    /// Outside of a network of its own, or without nft.
    pub fn none() -> anyhow::Result<Self> {
        ensure!(std::env::var_os(INSIDE).is_some(), "the host's network is not to be cut");
        nft(&["add", "table"], TABLE, &[])?;
        nft(&["add", "chain"], TABLE, &["input", "{ type filter hook input priority 0 ; }"])?;
        Ok(Cuts(()))
    }

    /// What `from` sends does not reach `to` any more.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn one_way(&self, from: &Node, to: &Node) -> anyhow::Result<()> {
        let (source, destination) = (from.peer.port().to_string(), to.peer.port().to_string());
        let rule = ["input", "udp", "sport", &source, "udp", "dport", &destination, "counter", "drop"];
        nft(&["add", "rule"], TABLE, &rule)
    }

    /// Neither reaches the other.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn between(&self, one: &Node, other: &Node) -> anyhow::Result<()> {
        self.one_way(one, other)?;
        self.one_way(other, one)
    }

    /// What Kafka's clients send does not reach `node` any more; what its peers and callers of its API send does.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn clients_of(&self, node: &Node) -> anyhow::Result<()> {
        let port = node.kafka.port().to_string();
        let rule = ["input", "tcp", "dport", &port, "counter", "drop"];
        nft(&["add", "rule"], TABLE, &rule)
    }

    /// Everybody reaches everybody again.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn heal(&self) -> anyhow::Result<()> {
        nft(&["flush", "chain"], TABLE, &["input"])
    }
}

fn nft(verb: &[&str], table: &[&str], rest: &[&str]) -> anyhow::Result<()> {
    let arguments = [verb, table, rest].concat();
    let finished = run("nft", &arguments, Stdio::null(), NFT_LIMIT).context("is nftables installed? `make setup`")?;
    ensure!(finished.status.success(), "`nft {}`: {}", arguments.join(" "), finished.text());
    Ok(())
}
