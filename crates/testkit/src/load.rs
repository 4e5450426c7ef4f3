//! Load whose every acknowledgement is remembered, so that it can be asked afterwards whether anything acknowledged is
//! missing: writers of keys over REST, and producers of records over Kafka with acks=all. Meanwhile a reader of each writer's
//! keys reads some of them back through other nodes, and a watcher at each node is told of the keys.
//!
//! A writer or reader tries an operation again, through the next node, until its deadline is over; only then has it failed. A
//! producer is a kcat, which does the same by itself.

mod given;
mod producer;
mod reader;
mod verify;
mod watcher;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde_json::json;

use crate::cluster::Cluster;
use crate::kcat::Kcat;
use crate::node::Node;
pub use given::Given;
pub use producer::Produced;
pub use reader::ReadBack;
pub use watcher::Watched;
pub use writer::Written;

/// What is to be done at once, and until when each operation may be tried.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Threads that put keys, each one after the other.
    pub writers: usize,
    /// Between two keys of one writer.
    pub writer_pause: Duration,
    /// A writer begins with its first key again after so many, so that what the nodes hold in memory is bounded. An
    /// attempt must be over (3 s) long before its key is written again.
    pub keys: u64,
    /// Bytes of a value, at least: it holds a number in any case.
    pub value_bytes: usize,
    /// A writer's reader reads one of so many keys back, at most, right after it was acknowledged; 0: there is no reader.
    pub puts_per_read: u64,
    /// kcats at once.
    pub producers: usize,
    /// Records that one run of kcat produces.
    pub batch_records: usize,
    /// Bytes of one record, about.
    pub record_bytes: usize,
    /// Between two runs of kcat of one producer.
    pub producer_pause: Duration,
    /// Gets as many partitions as there are producers, on all nodes.
    pub topic: String,
    /// An operation that has not succeeded by then has failed.
    pub deadline: Duration,
}

impl LoadPlan {
    /// Steady, and far from what the cluster can do: nothing hides behind a queue.
    #[must_use]
    pub fn moderate() -> Self {
        LoadPlan {
            writers: 4,
            writer_pause: Duration::from_millis(5),
            keys: 20_000,
            value_bytes: 0,
            puts_per_read: 5,
            producers: 3,
            batch_records: 50,
            record_bytes: 100,
            producer_pause: Duration::from_millis(50),
            topic: "load".to_owned(),
            deadline: Duration::from_secs(10),
        }
    }

    /// As much as the cluster takes: nobody rests, and records come in large batches. Nobody reads: what it measures are
    /// writes.
    #[must_use]
    pub fn saturating() -> Self {
        LoadPlan {
            writers: 8,
            writer_pause: Duration::ZERO,
            puts_per_read: 0,
            producers: 4,
            batch_records: 2_000,
            record_bytes: 200,
            producer_pause: Duration::ZERO,
            deadline: Duration::from_secs(30),
            ..LoadPlan::moderate()
        }
    }
}

/// Load under way. It goes on until [`Load::stop`], or until this value goes.
#[derive(Debug)]
pub struct Load {
    plan: LoadPlan,
    stop: Arc<AtomicBool>,
    /// The revision with which the watchers have seen all.
    until: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Written>>,
    readers: Vec<JoinHandle<ReadBack>>,
    watchers: Vec<JoinHandle<Watched>>,
    producers: Vec<JoinHandle<anyhow::Result<Produced>>>,
}

/// What the load came to.
#[derive(Debug)]
pub struct Outcome {
    plan: LoadPlan,
    pub writers: Vec<Written>,
    pub readers: Vec<ReadBack>,
    pub watchers: Vec<Watched>,
    pub producers: Vec<Produced>,
}

/// An operation that was acknowledged: when its last attempt began, and when the acknowledgement came.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub attempted: Instant,
    pub at: Instant,
}

impl Load {
    /// Makes the topic and begins.
    ///
    /// # Errors
    /// If the topic cannot be made, or the cluster does not say at which revision its keys are.
    pub fn start(cluster: &Cluster, plan: LoadPlan) -> anyhow::Result<Self> {
        Load::start_at(&cluster.nodes.iter().collect::<Vec<_>>(), plan)
    }

    /// As [`Load::start`], but only these nodes are asked for anything.
    ///
    /// # Errors
    /// As [`Load::start`].
    pub fn start_at(nodes: &[&Node], plan: LoadPlan) -> anyhow::Result<Self> {
        let first = nodes.iter().find(|node| node.pid().is_some()).context("no node runs")?;
        if plan.producers > 0 {
            let topic = json!({ "name": plan.topic, "partitions": plan.producers });
            let made = first.api().post("/v1/topics", &topic)?;
            // Made before, with as many partitions.
            if made.status != 409 {
                made.ok()?;
            }
        }
        let apis: Arc<[SocketAddr]> = nodes.iter().map(|node| node.api).collect();
        let brokers: Vec<SocketAddr> = nodes.iter().map(|node| node.kafka).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (until, from) = (Arc::new(AtomicU64::new(watcher::ENDLESS)), revision(first, &plan.topic)?);
        let watchers = apis
            .iter()
            .filter(|_| plan.writers > 0)
            .map(|node| {
                let (node, plan, until) = (*node, plan.clone(), Arc::clone(&until));
                std::thread::spawn(move || watcher::watch(node, &plan, from, &until))
            })
            .collect();
        let mut readers = Vec::new();
        let writers = (0..plan.writers)
            .map(|number| {
                let (plan, stop, apis) = (plan.clone(), Arc::clone(&stop), Arc::clone(&apis));
                let offer = (plan.puts_per_read > 0).then(|| {
                    let (offer, reader) = reader::start(number, &plan, &apis);
                    readers.push(reader);
                    offer
                });
                std::thread::spawn(move || writer::write(number, &plan, &apis, &stop, offer.as_ref()))
            })
            .collect();
        let producers = (0..plan.producers)
            .map(|number| {
                let (plan, stop, kcat) = (plan.clone(), Arc::clone(&stop), Kcat::at_any(&brokers));
                std::thread::spawn(move || producer::produce(number, &plan, &kcat, &stop))
            })
            .collect();
        Ok(Load { plan, stop, until, writers, readers, watchers, producers })
    }

    /// Ends it, and waits for what is under way.
    ///
    /// # Errors
    /// If kcat cannot be run.
    pub fn stop(mut self) -> anyhow::Result<Outcome> {
        self.stop.store(true, Ordering::SeqCst);
        let writers =
            std::mem::take(&mut self.writers).into_iter().map(|it| it.join().map_err(|_| anyhow!("a writer panicked")));
        let writers = writers.collect::<anyhow::Result<Vec<_>>>()?;
        self.until.store(watcher::last_put(&writers), Ordering::SeqCst);
        // Their writers are gone: nobody offers them anything any more.
        let readers =
            std::mem::take(&mut self.readers).into_iter().map(|it| it.join().map_err(|_| anyhow!("a reader panicked")));
        let readers = readers.collect::<anyhow::Result<_>>()?;
        let producers = std::mem::take(&mut self.producers).into_iter().map(|it| match it.join() {
            Ok(produced) => produced,
            Err(_) => Err(anyhow!("a producer panicked")),
        });
        let producers = producers.collect::<anyhow::Result<_>>()?;
        let watchers = std::mem::take(&mut self.watchers)
            .into_iter()
            .map(|it| it.join().map_err(|_| anyhow!("a watcher panicked")));
        let watchers = watchers.collect::<anyhow::Result<_>>()?;
        Ok(Outcome { plan: self.plan.clone(), writers, readers, watchers, producers })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.until.store(0, Ordering::SeqCst);
    }
}

impl Outcome {
    /// Operations that did not succeed by their deadline, with what was said last.
    #[must_use]
    pub fn failures(&self) -> Vec<&str> {
        let writers = self.writers.iter().flat_map(|it| &it.failures);
        let readers = self.readers.iter().flat_map(|it| &it.failures);
        writers.chain(readers).chain(self.producers.iter().flat_map(|it| &it.failures)).map(String::as_str).collect()
    }

    /// Keys put, and records produced, that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> (usize, u64) {
        let keys = self.writers.iter().map(|it| it.acknowledged.len()).sum();
        (keys, self.producers.iter().map(Produced::count).sum())
    }

    /// Keys read back while the load went on.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.readers.iter().map(|it| it.found.len()).sum()
    }

    /// From `moment` until a key was acknowledged whose writing began after it.
    #[must_use]
    pub fn accepted_after(&self, moment: Instant) -> Option<Duration> {
        let all = self.writers.iter().flat_map(|it| &it.acknowledged);
        all.filter(|it| it.attempted >= moment).map(|it| it.at - moment).min()
    }

    /// The longest time without an acknowledged key between two moments.
    #[must_use]
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(self.writers.iter().flat_map(|it| &it.acknowledged).map(|it| it.at), from, to)
    }

    /// How long each acknowledged key took, retries included.
    #[must_use]
    pub fn latencies(&self) -> Vec<Duration> {
        self.writers.iter().flat_map(|it| it.took.iter().copied()).collect()
    }

    /// The same of those that were acknowledged between two moments.
    #[must_use]
    pub fn latencies_between(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let all = self.writers.iter().flat_map(|it| it.acknowledged.iter().zip(&it.took));
        all.filter(|(key, _)| (from..to).contains(&key.at)).map(|(_, took)| *took).collect()
    }
}

/// At which revision the load's keys are.
fn revision(node: &Node, topic: &str) -> anyhow::Result<u64> {
    let list = node.api().get(&format!("/v1/kv?prefix={topic}%2F&limit=1"))?.ok()?;
    list["revision"].as_u64().with_context(|| format!("no revision in {list}"))
}

/// The longest time between two moments in which none of the others lies.
pub(crate) fn longest_gap(all: impl Iterator<Item = Instant>, from: Instant, to: Instant) -> Duration {
    let mut times: Vec<Instant> = all.filter(|at| (from..to).contains(at)).chain([from, to]).collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}
