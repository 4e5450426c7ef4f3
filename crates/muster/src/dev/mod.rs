//! `muster dev`: a real cluster on one machine, each node a process of its own.

mod child;
mod cluster;
mod layout;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use clap::ArgMatches;
use serde_json::{Value, json};

pub(crate) use cluster::{Cluster, ClusterDir, Plan};
pub(crate) use layout::{FirstNode, Layout};

use crate::signals::Signals;
use crate::{remote, terminal};

/// Starts the cluster, stays until Ctrl-C, stops it.
pub(crate) fn run(args: &ArgMatches) -> anyhow::Result<()> {
    let began = Instant::now();
    let signals = Signals::catch()?;
    let first = first_node(args)?;
    let registry = operations::registry()?;
    let dir = ClusterDir::open(&args.get_one::<PathBuf>("data-dir").cloned().unwrap_or_else(|| "muster-dev".into()))?;
    let nodes = args.get_one::<u16>("nodes").map(|nodes| usize::from(*nodes));
    let (layout, held) = Layout::open(&dir.path, nodes, first)?;
    let kernel = args.get_one::<PathBuf>("kernel").cloned();
    let plan = Plan { registry: &registry, dir: dir.path.clone(), layout, kernel, signals: &signals };
    let format = remote::format(args);
    let starting = format!("starting {} nodes in {}", plan.layout.nodes.len(), plan.dir.display());
    terminal::tell(format, "starting", starting_fields(&plan), starting)?;
    let Some(mut cluster) = Cluster::start(&plan, held)? else { return Ok(()) };
    let (ready, seconds) = (cluster.nodes.len(), terminal::seconds_since(began));
    let text = format!("all {ready} nodes are ready after {seconds:.1} s\n\n{}", welcome(&plan));
    terminal::tell(format, "ready", ready_fields(&plan, seconds), text)?;
    let watched = cluster.watch(&signals);
    terminal::tell(format, "stopping", Value::Null, "stopping")?;
    cluster.stop(&signals);
    watched
}

/// Where the first node is to listen.
pub(crate) fn first_node(args: &ArgMatches) -> anyhow::Result<FirstNode> {
    let address = |flag: &str| match args.get_one::<SocketAddr>(flag).copied() {
        Some(every) if every.ip().is_unspecified() => bail!(
            "--{flag} {every}: name one address of this host, such as 127.0.0.1:{}, for clients and nodes are told one",
            every.port()
        ),
        told => Ok(told),
    };
    Ok(FirstNode { kafka: address("kafka-listen")?, api: address("api-listen")?, peer: address("peer-listen")? })
}

/// What is being started, for programs.
pub(crate) fn starting_fields(plan: &Plan<'_>) -> Value {
    json!({ "nodes": plan.layout.nodes.len(), "data_dir": plan.dir })
}

/// What listens where, for programs.
pub(crate) fn ready_fields(plan: &Plan<'_>, seconds: f64) -> Value {
    let nodes: Vec<Value> = plan
        .layout
        .nodes
        .iter()
        .map(|node| {
            let (kafka, api, peers) = (node.kafka.to_string(), node.api.to_string(), node.peer.to_string());
            json!({ "name": node.name, "kafka": kafka, "api": api, "peers": [peers] })
        })
        .collect();
    json!({ "seconds": seconds, "nodes": nodes })
}

/// What listens where, and what to try next.
fn welcome(plan: &Plan<'_>) -> String {
    let rows: Vec<Vec<String>> = plan
        .layout
        .nodes
        .iter()
        .map(|node| vec![node.name.clone(), node.kafka.to_string(), node.api.to_string(), node.peer.to_string()])
        .collect();
    let table = ops::human::table(&["NODE", "KAFKA", "API", "PEERS (UDP)"], &rows);
    let (api, kafka) = match plan.layout.nodes.first() {
        Some(first) => (api_flag(first.api), first.kafka.to_string()),
        None => (String::new(), String::new()),
    };
    format!(
        "{table}\n\nTry next:\n  muster status{api}\n  muster vm create hello --wait{api}\n  \
         echo hello | kcat -b {kafka} -P -t greetings\n\nLogs are in {}. Ctrl-C stops everything.",
        plan.dir.join("*.log").display()
    )
}

/// ` --api ADDR`, unless that is where the command line looks anyway.
pub(crate) fn api_flag(api: std::net::SocketAddr) -> String {
    if api.to_string() == crate::command::API_DEFAULT { String::new() } else { format!(" --api {api}") }
}
