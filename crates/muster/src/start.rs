//! `up`, `join`, `node`: this process becomes a node.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::ArgMatches;
use doors::render::Format;
use node::{Config, Node};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::{remote, terminal};

/// What is logged, if nothing else is said.
const LOG_ENV: &str = "MUSTER_LOG";

/// `muster up`.
pub(crate) fn up(args: &ArgMatches) -> anyhow::Result<()> {
    start(from_flags(args)?, args)
}

/// `muster join TOKEN`.
pub(crate) fn join(args: &ArgMatches) -> anyhow::Result<()> {
    let mut config = from_flags(args)?;
    let text = match args.get_one::<String>("token").map(String::as_str) {
        Some("-") => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("cannot read the token from standard input")?;
            line
        }
        Some(token) => token.to_owned(),
        None => bail!("a token is needed: make one with `muster token create`"),
    };
    config.join = Some(text.parse()?);
    start(config, args)
}

/// `muster node --config FILE`.
pub(crate) fn node(args: &ArgMatches) -> anyhow::Result<()> {
    let Some(path) = args.get_one::<PathBuf>("config") else { bail!("--config FILE is needed") };
    start(Config::from_file(path)?, args)
}

fn from_flags(args: &ArgMatches) -> anyhow::Result<Config> {
    let data_dir = args.get_one::<PathBuf>("data-dir").cloned().unwrap_or_else(|| "muster-data".into());
    let mut config = Config::embedded(data_dir);
    if let Some(name) = args.get_one::<String>("name") {
        config.name = node::valid_name(name).map_err(anyhow::Error::msg)?.to_owned();
    }
    for text in args.get_many::<String>("label").into_iter().flatten() {
        let (key, value) = node::parse_label(text).map_err(anyhow::Error::msg)?;
        config.labels.insert(key, value);
    }
    let address = |flag: &str| args.get_one::<SocketAddr>(flag).copied();
    config.kafka_listen = address("kafka-listen").unwrap_or(config.kafka_listen);
    config.api_listen = address("api-listen").unwrap_or(config.api_listen);
    config.peer_listen = address("peer-listen").unwrap_or(config.peer_listen);
    for (flag, told) in [("kafka-advertise", &mut config.kafka_advertise), ("api-advertise", &mut config.api_advertise)]
    {
        if let Some(text) = args.get_one::<String>(flag) {
            *told = Some(node::valid_advertise(&format!("--{flag}"), text).map_err(anyhow::Error::msg)?.to_owned());
        }
    }
    if let Some(text) = args.get_one::<String>("node-lost-after") {
        config.node_lost_after = Some(node::parse_duration("--node-lost-after", text).map_err(anyhow::Error::msg)?);
    }
    if let Some(text) = args.get_one::<String>("cluster-version-max") {
        let version = node::parse_cluster_version("--cluster-version-max", text);
        config.cluster_version_max = Some(version.map_err(anyhow::Error::msg)?);
    }
    if let Some(text) = args.get_one::<String>("heartbeat-interval-ms") {
        let interval = node::parse_heartbeat_interval("--heartbeat-interval-ms", text);
        config.heartbeat_interval = interval.map_err(anyhow::Error::msg)?;
    }
    if let Some(text) = args.get_one::<String>("election-timeout-ms") {
        let timeout = node::parse_election_timeout("--election-timeout-ms", text);
        config.election_timeout = timeout.map_err(anyhow::Error::msg)?;
    }
    if let Some(text) = args.get_one::<String>("relay-url") {
        config.relay = Some(node::valid_relay("--relay-url", text).map_err(anyhow::Error::msg)?.to_owned());
    }
    config.peers = args.get_many::<SocketAddr>("peer").into_iter().flatten().copied().collect();
    config.kernel = args.get_one::<PathBuf>("kernel").cloned();
    Ok(config)
}

fn start(config: Config, args: &ArgMatches) -> anyhow::Result<()> {
    if let Some(parent) = args.get_one::<i32>("parent") {
        end_with(*parent)?;
    }
    log_to_stderr()?;
    open_many_files();
    let (format, began) = (remote::format(args), Instant::now());
    node::run(config, |node| announce(format, began, node))?;
    Ok(())
}

/// The kernel ends this process when the one that started it ends, however that came about.
fn end_with(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("cannot tie this process to the one that started it")?;
    // It may have ended before that.
    if rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero).map(i32::from) != Some(parent) {
        bail!("the process {parent} that started this one has ended");
    }
    Ok(())
}

/// Connections, segments and guests are open files: as many as the host allows, where shells begin with 1,024.
fn open_many_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the number of files that this process may open");
    }
}

fn log_to_stderr() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env(LOG_ENV).unwrap_or_else(|_| EnvFilter::new("info,iroh=warn,noq=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Says what listens where and what to try next.
fn announce(format: Format, began: Instant, node: &Node) {
    let (name, kafka, api, told) = (node.name(), node.kafka, node.api, &node.kafka_advertised);
    let for_clients = if *told == kafka.to_string() { String::new() } else { format!(" (clients are told {told})") };
    let muster = terminal::program();
    let peers: Vec<String> = node.peer.iter().map(SocketAddr::to_string).collect();
    let (peer, seconds) = (peers.join(", "), terminal::seconds_since(began));
    let fields = json!({
        "name": name, "node": node.id().0, "pid": std::process::id(), "seconds": seconds, "kafka": kafka.to_string(),
        "kafka_advertised": told, "api": api.to_string(), "peers": peers,
    });
    let api_flag = if api.port() == node::API_PORT { String::new() } else { format!(" --api {api}") };
    let text = format!(
        "{name} (node {}) is ready after {seconds:.2} s\n  Kafka  {kafka}{for_clients}\n  API    {api}\n  Peers  {peer} (UDP)\n\nTry next:\n  \
         {muster}{api_flag} status\n  {muster}{api_flag} vm create hello --wait\n  \
         kcat -b {told} -C -t muster.events -o beginning -e\n  {muster}{api_flag} token create",
        node.id()
    );
    // Whoever started this process may have closed its output; the node runs all the same.
    let _ = terminal::tell(format, "ready", fields, text);
}
