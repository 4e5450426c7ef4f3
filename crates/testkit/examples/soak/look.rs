//! What the scenarios look at alike, through a node's API.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use testkit::{Cluster, Folder, Given, Kcat, Node, Outcome, enter_own_network, wait_until};

use crate::figures::Figures;

/// Long enough for anything that has no limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a scenario in a folder of its own, which stays if the scenario fails or misses a limit.
pub fn in_folder(name: &str, figures: &mut Figures, body: impl FnOnce(&Folder, &mut Figures) -> anyhow::Result<()>) {
    let before = figures.missed();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        Folder::scenario(name, |folder| {
            body(folder, figures)?;
            ensure!(figures.missed() == before, "limits were missed");
            Ok(())
        });
    }));
    if ended.is_err() && figures.missed() == before {
        figures.verdict(&format!("{name} runs to its end"), false, "see above");
    }
}

/// As [`in_folder`], in a network namespace of its own, in which this program runs the scenario once more with `arguments`.
pub fn in_own_network(
    name: &str,
    arguments: &[&str],
    figures: &mut Figures,
    body: impl FnOnce(&Folder, &mut Figures) -> anyhow::Result<()>,
) {
    match enter_own_network(&[&[name][..], arguments].concat()) {
        Ok(false) => in_folder(&format!("soak-{name}"), figures, body),
        outside => {
            let seen = outside.err().map_or("yes, see its own table".to_owned(), |error| format!("{error:#}"));
            figures.verdict(&format!("{name}: every limit is kept"), seen.starts_with("yes"), &seen);
        }
    }
}

/// In what the kernel counts CPU time.
const TICK_MS: u64 = 10;

/// Groups whose term rose: from, to.
pub fn risen(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<(String, u64, u64)> {
    let both = after.iter().filter_map(|(name, now)| Some((name, before.get(name)?, now)));
    both.filter(|(_, was, now)| was != now).map(|(name, was, now)| (name.clone(), *was, *now)).collect()
}

/// Waits until the cluster can lose a node, and every partition has all its voters.
pub fn wait_whole(node: &Node) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the cluster can lose a node", || ensure_whole(node))
}

/// Whether the cluster can lose a node, and every partition has all its voters.
pub fn ensure_whole(node: &Node) -> anyhow::Result<()> {
    let status = node.api().get("/v1/status")?.ok()?;
    ensure!(status["fault_tolerance"] == "survives the loss of 1 node", "{}", status["fault_tolerance"]);
    let topics = status["topics"].as_array().context("no topics")?;
    let lacking: Vec<&str> =
        topics.iter().filter(|topic| topic["voters_min"] != 3).filter_map(|topic| topic["name"].as_str()).collect();
    ensure!(lacking.is_empty(), "not all replicas vote: {lacking:?}");
    Ok(())
}

/// As [`wait_until`], looking at most once in `every`: for looks that cost the nodes something.
pub fn wait_sparing<T>(
    limit: Duration,
    every: Duration,
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut looked: Option<(Instant, String)> = None;
    wait_until(limit, what, || {
        if let Some((at, seen)) = &looked
            && at.elapsed() < every
        {
            bail!("{seen}");
        }
        condition().inspect_err(|seen| looked = Some((Instant::now(), format!("{seen:#}"))))
    })
}

/// Which partitions have no leader, or another than their first replica, as one broker tells clients: (none, another). A
/// broker that was killed leads nothing, whatever others still believe.
pub fn strays(kcat: &Kcat, topic: &str, killed: Option<i64>) -> anyhow::Result<(usize, usize)> {
    let partitions = kcat.partitions(topic)?;
    ensure!(!partitions.is_empty(), "{topic} has no partitions");
    let none = partitions.values().filter(|(leader, _)| *leader < 0 || Some(*leader) == killed).count();
    let elsewhere = partitions.values().filter(|(leader, all)| *leader >= 0 && all.first() != Some(leader)).count();
    Ok((none, elsewhere))
}

/// Waits until every partition is led by its first replica.
pub fn wait_home(kcat: &Kcat, topic: &str, limit: Duration) -> anyhow::Result<Duration> {
    let start = Instant::now();
    wait_until(limit, &format!("the leaders of {topic} are on their first replicas"), || {
        let (none, elsewhere) = strays(kcat, topic, None)?;
        ensure!(none + elsewhere == 0, "{none} partitions have no leader, {elsewhere} another");
        Ok(start.elapsed())
    })
}

/// Whether every group of the cluster, `__meta` and those of muster's own topics too, is led by one node that all of its
/// replicas name, as all nodes tell; and how many groups there are. Every node has a replica of each.
pub fn ensure_all_led(cluster: &Cluster) -> anyhow::Result<usize> {
    let first = cluster.running().next().context("no node runs")?;
    let body = first.api().get("/v1/groups")?.ok()?;
    let nodes = body["nodes"].as_array().context("no list of nodes")?;
    let silent: Vec<&Value> = nodes.iter().filter(|node| node["reachable"] != true).map(|node| &node["node"]).collect();
    let all = cluster.nodes.len();
    ensure!(nodes.len() == all && silent.is_empty(), "of {} nodes these do not answer: {silent:?}", nodes.len());
    // Of each group, who says that it leads, and whom its replicas name.
    let mut groups: BTreeMap<&str, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for node in nodes {
        for group in node["groups"].as_array().into_iter().flatten() {
            let (lead, named) = groups.entry(group["name"].as_str().context("a group without a name")?).or_default();
            if group["role"] == "leader" {
                lead.push(&node["node"]);
            }
            named.push(&group["leader"]);
        }
    }
    let led = |(lead, named): &(Vec<&Value>, Vec<&Value>)| {
        named.len() == all && lead.len() == 1 && named.iter().all(|name| *name == lead[0])
    };
    let others: Vec<_> = groups.iter().filter(|(_, told)| !led(told)).collect();
    let (some, count) = (&others[..others.len().min(3)], others.len());
    ensure!(
        others.is_empty(),
        "of {} groups {count} are not, such as (who leads, whom they name) {some:?}",
        groups.len()
    );
    Ok(groups.len())
}

/// Gives a partition one more record, which has to be acknowledged.
pub fn give(kcat: &Kcat, topic: &str, partition: i64, given: &mut Given) -> anyhow::Result<()> {
    let (number, run) = (partition.to_string(), given.next_run(1));
    let mut extra = vec!["-p", &number];
    // kcat's own are made for networks far away.
    let quick = ["topic.metadata.refresh.interval.ms=50", "retry.backoff.ms=20", "reconnect.backoff.max.ms=100"];
    quick.iter().for_each(|setting| extra.extend(["-X", *setting]));
    let said = kcat.try_produce(topic, run.iter().map(|(key, value)| (*key, value.as_bytes())), &[], &extra)?;
    given.ran(1, said.delivered());
    ensure!(said.delivered(), "{topic}/{partition} did not take a record: {}", said.text());
    Ok(())
}

/// Reads back what was given to some partitions of a topic, and says how it went.
pub fn judge_given(figures: &mut Figures, scenario: &str, kcat: &Kcat, topic: &str, given: &BTreeMap<i64, Given>) {
    let read = given.iter().try_for_each(|(partition, given)| {
        let read = kcat.consume_partition(topic, partition)?;
        given.check(&read).with_context(|| format!("{topic}/{partition}"))
    });
    let count: u64 = given.values().map(Given::acknowledged).sum();
    let seen = match &read {
        Ok(()) => format!("{count} records of {} partitions, byte by byte and in order", given.len()),
        Err(error) => format!("{error:#}"),
    };
    figures.verdict(&format!("{scenario}: what was given to {topic} is read back"), read.is_ok(), &seen);
}

/// Reads everything back, and says how it went.
pub fn judge(figures: &mut Figures, scenario: &str, outcome: &Outcome, cluster: &Cluster) {
    let failures = outcome.failures();
    failures.iter().take(5).for_each(|failure| eprintln!("   failed: {failure}"));
    let (keys, records) = outcome.acknowledged();
    let reads = outcome.reads();
    let seen = format!("{} failed of {keys} puts, {reads} reads and {records} records", failures.len());
    figures.verdict(
        &format!("{scenario}: no request fails that is retried for its deadline"),
        failures.is_empty(),
        &seen,
    );
    let verified = outcome.verify(cluster);
    let seen = match &verified {
        Ok(()) => format!("{keys} puts, {records} records, each read from every node"),
        Err(error) => format!("{error:#}"),
    };
    figures.verdict(&format!("{scenario}: nothing acknowledged is lost"), verified.is_ok(), &seen);
}

/// CPU time of a process, user and system.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * TICK_MS))
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("an empty VmRSS")?.parse()?;
    Ok(kib / 1_024.0)
}

/// CPU in percent of a core and memory in MiB of each node that runs, over a time in which nobody asks for anything.
pub fn cost(cluster: &mut Cluster, window: Duration) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let pids: Vec<u32> = cluster.nodes.iter().filter_map(Node::pid).collect();
    let used = |pid: &u32| cpu_time(*pid);
    let (began, before) = (Instant::now(), pids.iter().map(used).collect::<anyhow::Result<Vec<_>>>()?);
    let_pass(cluster, window)?;
    let (elapsed, after) = (began.elapsed().as_secs_f64(), pids.iter().map(used).collect::<anyhow::Result<Vec<_>>>()?);
    let percent = before.iter().zip(&after).map(|(before, after)| (*after - *before).as_secs_f64() / elapsed * 100.0);
    Ok((percent.collect(), pids.iter().map(|pid| resident_mib(*pid)).collect::<anyhow::Result<_>>()?))
}

/// What the machine's cores did since it started, in the kernel's ticks: nothing, or waited for a disk; and all of it.
pub fn machine_time() -> anyhow::Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).context("no cores in /proc/stat")?;
    let ticks = line.split_whitespace().map(str::parse::<u64>).collect::<Result<Vec<_>, _>>()?;
    // User, nice, system, idle, waiting for a disk, interrupts, soft ones, stolen; guests are in the first two.
    let [_, _, _, idle, waiting, ..] = ticks[..] else { bail!("/proc/stat says of the cores only {line:?}") };
    Ok((idle + waiting, ticks.iter().take(8).sum()))
}

/// For how much of the time since `before` ([`machine_time`]) the cores did nothing, or waited for a disk, in percent.
pub fn idle_percent(before: (u64, u64)) -> anyhow::Result<f64> {
    let now = machine_time()?;
    Ok(now.0.saturating_sub(before.0) as f64 / now.1.saturating_sub(before.1).max(1) as f64 * 100.0)
}

/// Judges for how much of the time the machine was idle. The limits are for one of two cores, like the one of
/// docs/figures.md: the same load leaves a larger one more to spare, and whoever misses a limit there is told.
pub fn judge_idle(figures: &mut Figures, scenario: &str, idle: f64, most: Option<f64>) {
    let missed = most.is_some_and(|most| idle > most);
    let note = if missed { " (the limit is for a machine of two cores)" } else { "" };
    figures.number(&format!("{scenario}: idle time of the machine{note}"), &[idle], "%", most);
}

/// Lets time pass that is to be measured, looking at the nodes meanwhile.
pub fn let_pass(cluster: &mut Cluster, time: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    wait_until(time + PATIENCE, "the time has passed", || {
        for node in cluster.nodes.iter_mut().filter(|node| node.pid().is_some()) {
            if let Err(ended) = node.process()?.ensure_running() {
                return Ok(Err(ended));
            }
        }
        ensure!(start.elapsed() >= time, "not yet");
        Ok(Ok(()))
    })?
}
