//! What nodes count of themselves (`/metrics`), read at two moments: what came in between. A node that was started anew
//! meanwhile has counted from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::{Cluster, Labels, Node, Scrape, wait_until};

use crate::figures::Figures;
use crate::look::PATIENCE;

const SEND_GAP: &str = "muster_raft_heartbeat_send_gap_seconds";
const INTERVAL: &str = "muster_raft_heartbeat_interval_seconds";
const TURN: &str = "muster_core_turn_seconds";
/// By so much a heartbeat may be off its interval, in 999 of 1,000 cases.
const TOLERANCE_S: f64 = 0.050;
/// Followers that hear nothing for this long ask for an election.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a node says of itself now.
pub fn scrape(node: &Node) -> anyhow::Result<Scrape> {
    let answer = node.api().text("/metrics")?;
    ensure!(answer.status == 200, "{} answered {}", node.name, answer.status);
    Scrape::parse(&answer.body).with_context(|| format!("what {} tells is not valid", node.name))
}

/// What all nodes that run have counted, at about one moment.
#[derive(Clone)]
pub struct Moment {
    pub at: Instant,
    interval_s: f64,
    nodes: Vec<Counted>,
}

#[derive(Clone)]
struct Counted {
    name: String,
    pid: u32,
    scrape: Scrape,
}

impl Moment {
    /// This one.
    ///
    /// # Errors
    /// If a node does not tell.
    pub fn now(cluster: &Cluster) -> anyhow::Result<Moment> {
        let nodes = cluster.running().map(counted).collect::<anyhow::Result<Vec<_>>>()?;
        let first = nodes.first().context("no node runs")?;
        let interval_s = first.scrape.value(INTERVAL, &[])?;
        Ok(Moment { at: Instant::now(), interval_s, nodes })
    }
}

fn counted(node: &Node) -> anyhow::Result<Counted> {
    let pid = node.pid().context("it runs")?;
    let scrape = wait_until(PATIENCE, &format!("the core of {} answers a scrape", node.name), || {
        let scrape = scrape(node)?;
        ensure!(scrape.value("muster_core_answered", &[])? == 1.0, "it does not in time");
        Ok(scrape)
    })?;
    Ok(Counted { name: node.name.clone(), pid, scrape })
}

/// What nodes counted between two moments, those that ran at its end.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    before: &'a Moment,
    after: &'a Moment,
}

impl<'a> Span<'a> {
    pub fn between(before: &'a Moment, after: &'a Moment) -> Span<'a> {
        Span { before, after }
    }

    pub fn time(&self) -> Duration {
        self.after.at - self.before.at
    }

    /// The nodes, and what the same process had counted before, if it ran then.
    fn nodes(&self) -> Vec<(&'a Counted, Option<&'a Scrape>)> {
        let (before, after): (&'a Moment, &'a Moment) = (self.before, self.after);
        let known = |pid: u32| before.nodes.iter().find(|node| node.pid == pid).map(|node| &node.scrape);
        after.nodes.iter().map(|node| (node, known(node.pid))).collect()
    }

    /// By how much a counter grew on each node; of several series, their sum.
    pub fn grown(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let grown = |(now, before): (&Counted, Option<&Scrape>)| {
            now.scrape.sum(name, labels) - before.map_or(0.0, |before| before.sum(name, labels))
        };
        self.nodes().into_iter().map(grown).collect()
    }

    /// The groups of which a counter grew on a node that had counted them before, as `TOPIC/PARTITION`.
    pub fn groups_grown(&self, name: &str) -> BTreeSet<String> {
        let mut grown = BTreeSet::new();
        for (now, before) in self.nodes() {
            let Some(before) = before else { continue };
            let known: BTreeMap<&Labels, f64> = before.series(name, &[]).collect();
            for (labels, value) in now.scrape.series(name, &[]) {
                if known.get(labels).is_some_and(|before| value > *before) {
                    grown.insert(group_of(labels));
                }
            }
        }
        grown
    }

    /// A histogram of each node.
    fn each(&self, name: &str) -> Vec<Buckets> {
        let since = |(now, before): (&Counted, Option<&Scrape>)| {
            let now = Buckets::of(&now.scrape, name);
            match before {
                Some(before) => now.without(&Buckets::of(before, name)),
                None => now,
            }
        };
        self.nodes().into_iter().map(since).collect()
    }

    /// A histogram of all nodes together.
    fn all(&self, name: &str) -> Buckets {
        self.each(name).into_iter().fold(Buckets::default(), Buckets::with)
    }
}

fn group_of(labels: &Labels) -> String {
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    format!("{}/{}", label("topic"), label("partition"))
}

/// A histogram: upper bounds in seconds, ascending, the last one of all; and how many values are at most that.
#[derive(Clone, Debug, Default)]
struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    fn of(scrape: &Scrape, name: &str) -> Buckets {
        let name = format!("{name}_bucket");
        let bound = |labels: &Labels| match labels.get("le")?.as_str() {
            "+Inf" => Some(f64::INFINITY),
            bound => bound.parse::<f64>().ok(),
        };
        let series = scrape.series(&name, &[]);
        let buckets = series.filter_map(|(labels, count)| Some((bound(labels)?, count))).collect();
        Buckets(buckets)
    }

    fn without(mut self, before: &Buckets) -> Buckets {
        self.0.iter_mut().zip(&before.0).for_each(|(now, before)| now.1 -= before.1);
        self
    }

    fn with(mut self, other: Buckets) -> Buckets {
        if self.0.is_empty() {
            return other;
        }
        self.0.iter_mut().zip(&other.0).for_each(|(sum, one)| sum.1 += one.1);
        self
    }

    fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |last| last.1)
    }

    /// The least bound, in milliseconds, that so large a part of the values keeps; 0 if there are no values.
    fn bound_ms(&self, part: f64) -> f64 {
        let count = self.count();
        if count == 0.0 {
            return 0.0;
        }
        let found = self.0.iter().find(|(_, up_to)| *up_to >= count * part);
        found.map_or(f64::INFINITY, |(bound, _)| bound * 1_000.0)
    }
}

/// Whether heartbeats left in time, by the gaps between those of every group that the nodes led. `judged`: limits hold.
pub fn heartbeats(figures: &mut Figures, scenario: &str, span: &Span<'_>, judged: bool) {
    let gaps = span.all(SEND_GAP);
    eprintln!("   {scenario}: {} heartbeats, by upper bounds of the gaps before them: {:?}", gaps.count(), gaps.0);
    let what = format!("{scenario}: p99.9 of the gaps between heartbeats");
    if gaps.count() == 0.0 {
        // A leader that is well sends several in that time.
        if span.time() >= ELECTION_TIMEOUT {
            figures.verdict(&what, false, "no heartbeats were counted");
        }
        return;
    }
    let most = (span.after.interval_s + TOLERANCE_S) * 1_000.0;
    figures.number(&what, &[gaps.bound_ms(0.999)], " ms", judged.then_some(most));
    let what = format!("{scenario}: longest gap between heartbeats, at most");
    figures.number(&what, &[gaps.bound_ms(1.0)], " ms", judged.then_some(ELECTION_TIMEOUT.as_secs_f64() * 1_000.0));
}

/// The longest turn of each node's core: nothing else happens meanwhile.
pub fn turns(figures: &mut Figures, scenario: &str, span: &Span<'_>, most_ms: Option<f64>) {
    let longest: Vec<f64> = span.each(TURN).iter().map(|turns| turns.bound_ms(1.0)).collect();
    let names = span.after.nodes.iter().map(|node| node.name.as_str());
    let by_name: Vec<String> = names.zip(&longest).map(|(name, ms)| format!("{name} {ms} ms")).collect();
    eprintln!("   {scenario}: longest turns are at most: {}", by_name.join(", "));
    figures.number(&format!("{scenario}: longest turn of a node's core, at most"), &longest, " ms", most_ms);
}
