//! What nodes count of themselves (`/metrics`), read at two moments: what came in between. A node that was started anew
//! meanwhile has counted from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::{Buckets, Cluster, Labels, Node, Scrape, wait_until};

use crate::figures::Figures;
use crate::look::{PATIENCE, risen};

const SEND_GAP: &str = "muster_raft_heartbeat_send_gap_seconds";
const SEND_DELAY: &str = "muster_peer_send_delay_seconds";
const WRITTEN_GAP: &str = "muster_peer_heartbeat_gap_seconds";
const RECEIVE_GAP: &str = "muster_raft_heartbeat_receive_gap_seconds";
const INTERVAL: &str = "muster_raft_heartbeat_interval_seconds";
const TURN: &str = "muster_core_turn_seconds";
/// By so much a heartbeat may be off its interval, in 999 of 1,000 cases.
const TOLERANCE: Duration = Duration::from_millis(50);
/// The same in percent.
const LATE_PERCENT_MAX: f64 = 0.1;
/// Of fewer heartbeats, a node that was started and finds what has waited for it makes out as much by itself.
const LATE_COUNT_MIN: f64 = 10_000.0;
/// A node's own heartbeats are due at its ticks, every 25 ms, and have the same 150 ms between them as those of groups: one
/// tick that comes a moment early puts them off by another. With the tolerance of 50 ms the next bound that is counted is 250.
const WRITTEN_LATE_MS: f64 = 50.0;
/// The interval, 50 ms of the sender's, and a turn of the receiver's core as long as `snapshot` allows one (250 ms). The next
/// bound that is counted; half of what makes a follower ask for an election.
const RECEIVE_GAP_MAX_MS: f64 = 500.0;
/// A group that is born elects its first leader in term 2.
const BORN_TERM_MAX: f64 = 2.0;
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

    /// A histogram of each node; of several series, their sum.
    fn each(&self, name: &str, labels: &[(&str, &str)]) -> Vec<Buckets> {
        let since = |(now, before): (&Counted, Option<&Scrape>)| {
            let now = Buckets::of(&now.scrape, name, labels);
            match before {
                Some(before) => now.without(&Buckets::of(before, name, labels)),
                None => now,
            }
        };
        self.nodes().into_iter().map(since).collect()
    }

    /// A histogram of all nodes together.
    fn all(&self, name: &str, labels: &[(&str, &str)]) -> Buckets {
        self.each(name, labels).into_iter().fold(Buckets::default(), Buckets::with)
    }

    /// A histogram of those nodes together that sent heartbeats for groups.
    fn of_leaders(&self, name: &str, labels: &[(&str, &str)]) -> Buckets {
        let sent = self.each(SEND_GAP, &[]);
        let led = self.each(name, labels).into_iter().zip(sent).filter(|(_, sent)| sent.count() > 0.0);
        led.map(|(one, _)| one).fold(Buckets::default(), Buckets::with)
    }
}

fn group_of(labels: &Labels) -> String {
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    format!("{}/{}", label("topic"), label("partition"))
}

/// Whether heartbeats left in time and came in time: [`TOLERANCE`]. If it is not `judged`, no limits hold.
///
/// - By the gaps between those of every group that the nodes led, as their cores send them; and by the same with the time
///   that messages wait for the control stream to a peer, as if that came to them by chance.
/// - A stream that stalls makes one long wait, of a frame with all that came together in it. Beside thousands of quick ones
///   that is nothing, and yet all heartbeats of that time were late. So there is a limit for what was written to each peer,
///   waits included: a node's own heartbeats (gossip), which leave with those of its groups. Only of nodes that led: others'
///   silence ends no leadership.
/// - By the gaps as they come in, whoever is to blame: the sender, the network, or the receiver, whose core does something
///   else.
pub fn heartbeats(figures: &mut Figures, scenario: &str, span: &Span<'_>, judged: bool) {
    let gaps = span.all(SEND_GAP, &[]);
    let delays = span.of_leaders(SEND_DELAY, &[("channel", "control")]);
    let limit = |most: f64| judged.then_some(most);
    let most_s = span.after.interval_s + TOLERANCE.as_secs_f64();
    let timeout_ms = ELECTION_TIMEOUT.as_secs_f64() * 1_000.0;
    let kinds = [
        ("between heartbeats", &gaps, most_s * 1_000.0),
        (
            "between a node's heartbeats written to a peer",
            &span.of_leaders(WRITTEN_GAP, &[]),
            most_s * 1_000.0 + WRITTEN_LATE_MS,
        ),
        ("between heartbeats that come in", &span.all(RECEIVE_GAP, &[]), RECEIVE_GAP_MAX_MS),
    ];
    for (which, gaps, most_ms) in kinds {
        eprintln!("   {scenario}: {} gaps {which}: {gaps:?}", gaps.count());
        let what = format!("{scenario}: p99.9 of the gaps {which}");
        if gaps.count() == 0.0 {
            // A leader that is well sends several in that time.
            if span.time() >= ELECTION_TIMEOUT {
                figures.verdict(&what, false, "none were counted");
            }
            continue;
        }
        figures.number(&what, &[gaps.bound_ms(0.999)], " ms", limit(most_ms));
        let what = format!("{scenario}: longest gap {which}, at most");
        figures.number(&what, &[gaps.bound_ms(1.0)], " ms", limit(timeout_ms));
    }
    if gaps.count() > 0.0 {
        eprintln!("   {scenario}: {} waits for a control stream: {delays:?}", delays.count());
        let what = format!("{scenario}: heartbeats more than {TOLERANCE:?} late, waits for the stream included");
        let most = limit(LATE_PERCENT_MAX).filter(|_| gaps.count() >= LATE_COUNT_MIN);
        figures.number(&what, &[gaps.above_with(&delays, most_s) * 100.0], "%", most);
    }
}

/// The longest turn of each node's core: nothing else happens meanwhile.
pub fn turns(figures: &mut Figures, scenario: &str, span: &Span<'_>, most_ms: Option<f64>) {
    let longest: Vec<f64> = span.each(TURN, &[]).iter().map(|turns| turns.bound_ms(1.0)).collect();
    let names = span.after.nodes.iter().map(|node| node.name.as_str());
    let by_name: Vec<String> = names.zip(&longest).map(|(name, ms)| format!("{name} {ms} ms")).collect();
    eprintln!("   {scenario}: longest turns are at most: {}", by_name.join(", "));
    figures.number(&format!("{scenario}: longest turn of a node's core, at most"), &longest, " ms", most_ms);
}

/// Terms tell of elections, and the counters of leaders that came and went in between, if any did. Groups that are born
/// meanwhile have their first election, and no other.
pub fn elections(
    figures: &mut Figures,
    scenario: &str,
    span: &Span<'_>,
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) {
    elections_but(figures, scenario, span, (before, after), &BTreeSet::new());
}

/// As [`elections`], but for some groups, which may have one: their leadership goes to another first replica.
pub fn elections_but(
    figures: &mut Figures,
    scenario: &str,
    span: &Span<'_>,
    (before, after): (&BTreeMap<String, u64>, &BTreeMap<String, u64>),
    moving: &BTreeSet<String>,
) {
    let mut risen = risen(before, after);
    risen.retain(|(name, was, now)| !moving.contains(name) || *now > *was + 1);
    let stood = &span.groups_grown("muster_group_elections_total") - moving;
    let seen = format!("{} groups, risen: {risen:?}, candidates in: {stood:?}", before.len());
    figures.verdict(&format!("{scenario}: no elections"), risen.is_empty() && stood.is_empty(), &seen);
    let changed = &span.groups_grown("muster_group_leader_changes_total") - moving;
    let seen = format!("leaders changed in: {changed:?}");
    figures.verdict(&format!("{scenario}: no leader changes"), changed.is_empty(), &seen);
    let born = after.iter().filter(|(name, _)| !before.contains_key(*name));
    let terms: Vec<f64> = born.map(|(_, term)| *term as f64).collect();
    if !terms.is_empty() {
        let what = format!("{scenario}: highest term of groups that are born");
        figures.number(&what, &terms, "", Some(BORN_TERM_MAX));
    }
}
