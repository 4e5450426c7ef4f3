//! What `GET /metrics` tells: what the parts of the node count in the registry, what the core tells when it is asked, and
//! what the operating system knows of the process.
//!
//! Names follow Prometheus' conventions: base units, `_total` for counters. Series by peer, task, operation or group are
//! bounded by what there is of these, groups by [`METRICS_GROUPS_MAX`], because a scrape of ten thousand groups would be
//! megabytes of text that nobody reads; the totals count all.

mod process;
mod turns;
mod vitals;

use std::path::Path;
use std::sync::Arc;

use base::Millis;
use base::limits::METRICS_GROUPS_MAX;
use engine::{Reply, Request, Target};
use metadata::Metadata;
use runtime::{Exposition, Kind, Registry, Supervisor};
use tokio::sync::Mutex;
use transport::Transport;

use crate::handle::{NodeHandle, REQUEST_QUEUE};

pub(crate) use turns::Turns;

/// How long the core may take to answer a scrape. Without its answer the rest is told all the same.
const CORE_WITHIN: Millis = Millis(1_000);

/// Puts together what a scrape gets.
#[derive(Clone)]
pub(crate) struct Scraper {
    pub handle: NodeHandle,
    pub registry: Registry,
    pub supervisor: Supervisor,
    pub transport: Transport,
    pub data_dir: Arc<Path>,
    /// One scrape at a time, however many ask.
    pub turn: Arc<Mutex<()>>,
}

impl Scraper {
    pub fn new(
        handle: NodeHandle,
        registry: Registry,
        supervisor: Supervisor,
        transport: Transport,
        data_dir: &Path,
    ) -> Scraper {
        Scraper { handle, registry, supervisor, transport, data_dir: Arc::from(data_dir), turn: Arc::default() }
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub async fn scrape(self) -> String {
        let _turn = self.turn.lock().await;
        let request = Request::Vitals { listed_max: METRICS_GROUPS_MAX };
        let vitals = match self.handle.request_within(CORE_WITHIN, Target::Here, request).await {
            Ok(Reply::Vitals(vitals)) => Some(vitals),
            _ => None,
        };
        let metadata = self.handle.metadata();
        let mut out = Exposition::new();
        build_info(&mut out);
        process::write(&mut out, &self.data_dir);
        let answered = f64::from(u8::from(vitals.is_some()));
        out.gauge("muster_core_answered", "1 if the node's core answered this scrape in time.", answered);
        let waiting = (REQUEST_QUEUE - self.handle.queue.capacity().min(REQUEST_QUEUE)) as f64;
        out.gauge("muster_core_requests_queued", "Requests that the core has not seen yet.", waiting);
        if let Some(vitals) = vitals {
            vitals::write(&mut out, &vitals, &metadata);
        }
        tables(&mut out, &metadata);
        tasks(&mut out, &self.supervisor);
        self.transport.count_waiting();
        self.registry.render_into(&mut out);
        out.finish()
    }
}

fn build_info(out: &mut Exposition) {
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)];
    out.family("muster_build_info", Kind::Gauge, "1, with the build's version.").sample(&labels, 1.0);
}

/// The cluster, as this node's copy of the tables has it: the same on every node, sooner or later.
fn tables(out: &mut Exposition, metadata: &Metadata) {
    let applied = metadata.applied as f64;
    out.gauge("muster_meta_applied_index", "Index of __meta up to which this node has applied it.", applied);
    out.gauge("muster_cluster_topics", "Topics.", metadata.topics.len() as f64);
    out.gauge("muster_cluster_partitions", "Partitions.", metadata.partitions.len() as f64);
    let lifecycles = metadata.nodes.values().map(|node| node.lifecycle.as_str().to_owned());
    let nodes = "Members, by where they are in their life.";
    by(out, "muster_cluster_nodes", nodes, "lifecycle", lifecycles);
    let phases = metadata.vms.values().map(|vm| format!("{:?}", vm.phase).to_lowercase());
    by(out, "muster_cluster_vms", "Virtual machines, by phase.", "phase", phases);
    let dropped = metadata.outbox_dropped as f64;
    let help = "Events of the cluster that were lost because too many waited for being published.";
    out.counter("muster_cluster_events_dropped_total", help, dropped);
}

/// How many there are of each value.
fn by(out: &mut Exposition, name: &'static str, help: &str, label: &str, values: impl Iterator<Item = String>) {
    let mut counts: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let mut family = out.family(name, Kind::Gauge, help);
    for (value, count) in counts {
        family.sample(&[(label, &value)], count as f64);
    }
}

fn tasks(out: &mut Exposition, supervisor: &Supervisor) {
    let tasks = supervisor.list();
    let help = "Starts of a task of the node's supervision tree after its first.";
    let mut family = out.family("muster_task_restarts_total", Kind::Counter, help);
    for task in &tasks {
        family.sample(&[("task", &task.name)], task.run.saturating_sub(1) as f64);
    }
    let running = |task: &runtime::TaskSnapshot| f64::from(u8::from(task.state == runtime::TaskState::Running));
    let mut family = out.family("muster_task_running", Kind::Gauge, "1 while a task of the supervision tree runs.");
    for task in &tasks {
        family.sample(&[("task", &task.name)], running(task));
    }
}
