//! A node that is a whole data set behind comes back, while others are written to: the logs of those do not reach back
//! to what it has, so it gets a checkpoint of everything, hundreds of MiB that are encoded, sent, written and decoded.
//! None of it may hold up heartbeats or puts. It comes through when it is killed on the way, and when who it pulls from
//! is.
//!
//! That it was a checkpoint, and not the log, is seen in two ways: before it starts, the others' checkpoints lie
//! further ahead than they keep entries behind them; and in its own journal there comes to be a checkpoint of an index
//! that it has not applied, which no node makes by itself.

pub mod resume;

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use testkit::{Cluster, Folder, Load, LoadPlan, Node, Outcome, Start, wait_until};

use crate::counts::{Moment, Span, heartbeats, scrape, turns};
use crate::dataset::DataSet;
use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, judge, let_pass, risen, wait_home, wait_sparing, wait_whole};
use crate::options::Options;

/// The store takes 256 MiB, and the load's own keys and each key's overhead (some 26 MiB) lie beside the data set.
const FILL_MIB_MAX: usize = 220;
/// How long the cluster is looked at before anything happens.
const QUIET: Duration = Duration::from_secs(30);
/// So many entries of `__meta` lie between what the node has and the others' checkpoints. They keep 1,000 behind one.
const FAR_BEHIND: u64 = 3_000;
/// Until the others' logs do not reach back: some 30,000 puts, behind a checkpoint that each of them writes.
const AWAY_MAX: Duration = Duration::from_secs(900);
/// A node that has not caught up by then will not.
const BACK_PATIENCE: Duration = Duration::from_secs(300);
/// From its start until it has caught up, ...
const CAUGHT_UP_MAX: Duration = Duration::from_secs(60);
/// ... and from the death of its source, with an election in between.
const SOURCE_KILLED_MAX: Duration = Duration::from_secs(90);
/// It has caught up when it lacks no more entries than come in while one looks.
const LAG: u64 = 100;
/// So much of a checkpoint has come when a node is killed in the middle of it.
const MIDDLE: f64 = 0.25;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
const TURN_MAX_MS: f64 = 250.0;
/// No worse for clients than the death of a leader.
const PUT_MAX: Duration = Duration::from_secs(2);

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-snapshot", figures, |folder, figures| {
        let mut cluster = prepared(folder, options.fill_mib)?;
        behind(&mut cluster, &DataSet::of_mib(options.fill_mib), figures)
    });
}

/// Three nodes, for a data set of so many MiB.
fn prepared(folder: &Folder, mib: usize) -> anyhow::Result<Cluster> {
    ensure!((1..=FILL_MIB_MAX).contains(&mib), "--fill-mib {mib}: the store has room for 1 to {FILL_MIB_MAX}");
    let mut cluster = Cluster::prepare(folder, 3)?;
    for node in &mut cluster.nodes {
        // However slow the machine: nobody makes its replicas anew elsewhere.
        node.arguments = vec!["--node-lost-after".to_owned(), "24h".to_owned()];
    }
    cluster.form()?;
    cluster.wait_ready(PATIENCE)?;
    wait_whole(&cluster.nodes[0])?;
    Ok(cluster)
}

fn behind(cluster: &mut Cluster, data: &DataSet, figures: &mut Figures) -> anyhow::Result<()> {
    let at = bystander(cluster)?;
    let others = [(at + 1) % 3, (at + 2) % 3];
    let load = {
        let cluster: &Cluster = cluster;
        Load::start_at(&others.map(|other| &cluster.nodes[other]), plan())?
    };
    let mut scene = Scene { cluster: &mut *cluster, figures: &mut *figures, at, others, windows: Vec::new() };
    let before = scene.cluster.nodes[others[0]].terms()?;
    scene.quiet()?;
    scene.comes_back(data)?;
    scene.is_killed_on_the_way()?;
    let risen = risen(&before, &scene.cluster.nodes[others[0]].terms()?);
    let seen = format!("{} groups, risen: {risen:?}", before.len());
    scene.figures.verdict("snapshot: no elections while leaders live", risen.is_empty(), &seen);
    let killed = scene.source_is_killed()?;
    let Scene { windows, .. } = scene;

    let outcome = load.stop()?;
    judge_puts(figures, &outcome, &windows);
    let next = outcome.accepted_after(killed).context("after the source's death no key was put at all")?;
    figures.times("snapshot, source killed: to the next key that is put", vec![next], Limit::max(SOURCE_KILLED_MAX));
    let verified = data.verify(&cluster.nodes[at]);
    let seen = match &verified {
        Ok(()) => format!("{} keys, {} MiB, byte by byte", data.count(), data.mib()),
        Err(error) => format!("{error:#}"),
    };
    figures.verdict("snapshot: the node that was behind holds the whole data set", verified.is_ok(), &seen);
    judge(figures, "snapshot", &outcome, cluster);
    Ok(())
}

fn plan() -> LoadPlan {
    LoadPlan {
        writers: 16,
        writer_pause: Duration::ZERO,
        keys: 4_000,
        value_bytes: 256,
        // The puts' times are measured.
        puts_per_read: 0,
        producers: 0,
        // Without its leader the cluster has no majority until the node that is behind has caught up.
        deadline: BACK_PATIENCE,
        ..LoadPlan::moderate()
    }
}

/// A node that leads nothing and is not meant to: nobody has to be elected when it goes, and nobody when it comes.
fn bystander(cluster: &Cluster) -> anyhow::Result<usize> {
    const EVENTS: &str = "muster.events";
    let kcat = cluster.nodes[0].kcat();
    wait_home(&kcat, EVENTS, PATIENCE)?;
    let leader = cluster.meta_leader(PATIENCE)?;
    let partitions = kcat.partitions(EVENTS)?;
    let homes: Vec<i64> = partitions.values().filter_map(|(_, replicas)| replicas.first().copied()).collect();
    for at in (0..cluster.nodes.len()).filter(|at| *at != leader) {
        if !homes.contains(&cluster.nodes[at].id()?) {
            return Ok(at);
        }
    }
    bail!("every node leads something: node {} __meta, and {partitions:?}", leader + 1)
}

/// How long puts took between two moments, with or without a limit.
fn judge_puts(figures: &mut Figures, outcome: &Outcome, windows: &[Window]) {
    for window in windows {
        let took = outcome.latencies_between(window.from, window.to);
        if took.is_empty() && window.to - window.from < PUT_MAX {
            eprintln!("   {}: over before a put was acknowledged", window.what);
            continue;
        }
        let limit = if window.judged { Limit::max(PUT_MAX) } else { Limit::default() };
        figures.times(&format!("snapshot, {}: a key is put", window.what), took, limit);
    }
}

/// A time whose puts are looked at by themselves once the load has ended.
struct Window {
    what: &'static str,
    from: Instant,
    to: Instant,
    /// Limits hold.
    judged: bool,
}

/// The cluster, and the node that is behind, by its place.
struct Scene<'a> {
    cluster: &'a mut Cluster,
    figures: &'a mut Figures,
    at: usize,
    others: [usize; 2],
    windows: Vec<Window>,
}

/// A node that is away.
struct Behind {
    /// It has nothing of `__meta` above this index, ...
    has: u64,
    /// ... and the others have checkpoints of this one or above, and few entries below them.
    ahead: u64,
    /// Of the checkpoint that it needs.
    bytes: u64,
}

/// How it came back: a checkpoint was there, and was in force, and everything was.
struct Back {
    index: u64,
    pulled: Moment,
    installed: Moment,
    caught_up: Moment,
    /// Bytes from others, in sizes of the checkpoint.
    received: f64,
}

impl Scene<'_> {
    fn node(&self) -> &Node {
        &self.cluster.nodes[self.at]
    }

    /// All are there, and there is hardly any data: what the machine does by itself.
    fn quiet(&mut self) -> anyhow::Result<()> {
        let from = Moment::now(self.cluster)?;
        let_pass(self.cluster, QUIET)?;
        let to = Moment::now(self.cluster)?;
        self.window("quiet", &from, &to, false);
        Ok(())
    }

    /// It stops with a tenth of the data set, and starts when the others have all of it.
    fn comes_back(&mut self, data: &DataSet) -> anyhow::Result<()> {
        let tenth = data.count() / 10;
        data.put(&self.cluster.nodes[self.others[0]], 0..tenth)?;
        let has = self.leaves(Node::stop)?;
        data.put(&self.cluster.nodes[self.others[0]], tenth..data.count())?;
        eprintln!("   {} keys of {} MiB are put, {tenth} of them while all nodes ran", data.count(), data.mib());
        let filled = Moment::now(self.cluster)?;
        let whole = applied(&self.cluster.nodes[self.others[0]])?;
        let behind = self.is_left_behind(has, whole)?;
        let start = Moment::now(self.cluster)?;
        self.window("the others write checkpoints", &filled, &start, true);

        self.cluster.nodes[self.at].start(&Start::Up)?;
        let back = self.follow(&behind, &self.others)?;
        let seen =
            format!("it had {}, the others' checkpoints {} or more, it got {}", behind.has, behind.ahead, back.index);
        self.figures.verdict("snapshot: a checkpoint is installed, no log replayed", true, &seen);
        self.window("transfer", &start, &back.pulled, true);
        self.window("install", &back.pulled, &back.installed, true);
        self.caught_up("a node that is a data set behind", &start, &back, CAUGHT_UP_MAX);
        Ok(())
    }

    /// `kill -9` while it pulls, and it starts anew.
    fn is_killed_on_the_way(&mut self) -> anyhow::Result<()> {
        let behind = self.falls_behind()?;
        let start = Moment::now(self.cluster)?;
        self.cluster.nodes[self.at].start(&Start::Up)?;
        self.wait_received(&behind, MIDDLE)?;
        self.cluster.nodes[self.at].kill()?;
        self.ensure_in_the_middle(&behind)?;
        let again = Moment::now(self.cluster)?;
        self.cluster.nodes[self.at].start(&Start::Up)?;
        let back = self.follow(&behind, &self.others)?;
        self.window("puller killed", &start, &back.caught_up, true);
        self.caught_up("a node that was killed while it pulled", &again, &back, CAUGHT_UP_MAX);
        Ok(())
    }

    /// `kill -9` of the leader while the node pulls from it. Only who is left has the data, and the two have to go on
    /// alone. Gives the moment of the kill.
    fn source_is_killed(&mut self) -> anyhow::Result<Instant> {
        let behind = self.falls_behind()?;
        let leader = self.cluster.meta_leader(PATIENCE)?;
        let left = self.others.into_iter().find(|other| *other != leader).context("somebody is left")?;
        self.cluster.nodes[self.at].start(&Start::Up)?;
        self.wait_received(&behind, MIDDLE)?;
        self.cluster.nodes[leader].kill()?;
        let killed = Moment::now(self.cluster)?;
        self.ensure_in_the_middle(&behind)?;
        let back = self.follow(&behind, &[left])?;
        // What puts took is told by the time until the next one.
        let span = Span::between(&killed, &back.caught_up);
        heartbeats(self.figures, "snapshot, source killed", &span, true);
        turns(self.figures, "snapshot, source killed", &span, Some(TURN_MAX_MS));
        self.caught_up("a node whose source was killed", &killed, &back, SOURCE_KILLED_MAX);
        self.cluster.nodes[leader].start(&Start::Up)?;
        self.cluster.wait_ready(BACK_PATIENCE)?;
        wait_whole(&self.cluster.nodes[left])?;
        Ok(killed.at)
    }

    fn falls_behind(&mut self) -> anyhow::Result<Behind> {
        let has = self.leaves(Node::kill)?;
        self.is_left_behind(has, 0)
    }

    /// It goes, and has nothing above the index that comes back.
    fn leaves(&mut self, how: fn(&mut Node) -> anyhow::Result<()>) -> anyhow::Result<u64> {
        let node = &mut self.cluster.nodes[self.at];
        let applied = applied(node)?;
        how(node)?;
        // It went on until it was gone.
        let checkpoint = newest_checkpoint(node, true)?;
        Ok(applied.max(checkpoint.index))
    }

    /// Waits until the others' logs do not reach back to what it has, and their checkpoints hold all up to an index.
    fn is_left_behind(&self, has: u64, whole: u64) -> anyhow::Result<Behind> {
        let wanted = whole.max(has + FAR_BEHIND);
        let began = Instant::now();
        let bytes = wait_sparing(AWAY_MAX, LOOK, "the others' checkpoints leave it behind", || {
            let mut bytes = 0;
            for other in self.others {
                let node = &self.cluster.nodes[other];
                let checkpoint = newest_checkpoint(node, false)?;
                ensure!(checkpoint.index >= wanted, "{} has one at {} of {wanted}", node.name, checkpoint.index);
                bytes = checkpoint.bytes.max(bytes);
            }
            Ok(bytes)
        })?;
        eprintln!("   it has index {has}, the others' checkpoints {wanted} or more, after {:?}", began.elapsed());
        Ok(Behind { has, ahead: wanted, bytes })
    }

    /// Waits until a part of the checkpoint has come to it.
    fn wait_received(&self, behind: &Behind, part: f64) -> anyhow::Result<()> {
        let wanted = behind.bytes as f64 * part;
        wait_until(PATIENCE, "a part of the checkpoint has come", || {
            let received = received(self.node())?;
            ensure!(received >= wanted, "{received} bytes came, of {}", behind.bytes);
            Ok(())
        })
    }

    /// It has begun to pull, and nothing of it is in force or written.
    fn ensure_in_the_middle(&mut self, behind: &Behind) -> anyhow::Result<()> {
        let checkpoint = newest_checkpoint(self.node(), true)?;
        // One of its own, which was being written when it went, lies far below those of the others.
        let in_the_middle = checkpoint.index < behind.ahead;
        let seen = format!("its journal holds a checkpoint of index {}, the others {}", checkpoint.index, behind.ahead);
        self.figures.verdict("snapshot: a node is killed while a checkpoint is pulled", in_the_middle, &seen);
        Ok(())
    }

    /// Waits until it has what the others have, and takes down when a checkpoint came and when it was in force.
    fn follow(&self, behind: &Behind, others: &[usize]) -> anyhow::Result<Back> {
        let (mut pulled, mut installed) = (None, None);
        let (caught_up, received) = wait_sparing(BACK_PATIENCE, LOOK, "it has what the others have", || {
            let mut ahead = 0;
            for other in others {
                ahead = applied(&self.cluster.nodes[*other])?.max(ahead);
            }
            // In this order: a checkpoint of its own is never above what it has applied by then.
            let checkpoint = newest_checkpoint(self.node(), true)?;
            let applied = applied(self.node())?;
            if pulled.is_none() && checkpoint.index >= behind.ahead && checkpoint.index > applied {
                pulled = Some((checkpoint.index, Moment::now(self.cluster)?));
            }
            let in_force = pulled.as_ref().is_some_and(|(index, _)| applied >= *index);
            if installed.is_none() && in_force {
                installed = Some(Moment::now(self.cluster)?);
            }
            let received = received(self.node())? / behind.bytes as f64;
            ensure!(
                applied > behind.has && applied + LAG >= ahead,
                "it has applied {applied}, the others {ahead}; {received:.2} times the checkpoint's bytes have come"
            );
            Ok((Moment::now(self.cluster)?, received))
        })?;
        let (index, pulled) = pulled.context("it caught up, and no checkpoint was seen to come")?;
        let installed = installed.unwrap_or_else(|| caught_up.clone());
        Ok(Back { index, pulled, installed, caught_up, received })
    }

    /// What nodes counted in a time, and that its puts are to be looked at.
    fn window(&mut self, what: &'static str, from: &Moment, to: &Moment, judged: bool) {
        let (scenario, span) = (format!("snapshot, {what}"), Span::between(from, to));
        eprintln!("   {scenario}: {:?}", span.time());
        heartbeats(self.figures, &scenario, &span, judged);
        turns(self.figures, &scenario, &span, judged.then_some(TURN_MAX_MS));
        self.windows.push(Window { what, from: from.at, to: to.at, judged });
    }

    fn caught_up(&mut self, who: &str, from: &Moment, back: &Back, most: Duration) {
        let took = Span::between(from, &back.caught_up).time();
        eprintln!("   {who} has caught up after {took:?}: checkpoint {}", back.index);
        self.figures.times(&format!("snapshot: {who} has caught up"), vec![took], Limit::max(most));
        let what = format!("snapshot: {who}: bytes that came, in sizes of the checkpoint");
        self.figures.number(&what, &[back.received], "", None);
    }
}

/// Up to where a node has applied `__meta`; 0 while it recovers.
fn applied(node: &Node) -> anyhow::Result<u64> {
    Ok(scrape(node)?.value("muster_meta_applied_index", &[])? as u64)
}

/// Bytes that came to a node from others since it started.
fn received(node: &Node) -> anyhow::Result<f64> {
    Ok(scrape(node)?.sum("muster_peer_bytes_received_total", &[("channel", "bulk")]))
}

/// A checkpoint of `__meta`.
#[derive(Default)]
struct Checkpoint {
    index: u64,
    bytes: u64,
}

/// The newest in a node's journal, `checkpoint-GROUP-INDEX`; if wanted also one that is being written.
fn newest_checkpoint(node: &Node, unfinished: bool) -> anyhow::Result<Checkpoint> {
    let journal = node.data_dir.join("journal");
    let mut newest = Checkpoint::default();
    for entry in std::fs::read_dir(&journal).with_context(|| format!("cannot list {}", journal.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(index) = name.to_str().and_then(|name| name.strip_prefix("checkpoint-0-")) else { continue };
        let index = if unfinished { index.strip_suffix(".tmp").unwrap_or(index) } else { index };
        let Ok(index) = index.parse::<u64>() else { continue };
        // One that has just been replaced is gone.
        let Ok(about) = entry.metadata() else { continue };
        if index > newest.index {
            newest = Checkpoint { index, bytes: about.len() };
        }
    }
    Ok(newest)
}
