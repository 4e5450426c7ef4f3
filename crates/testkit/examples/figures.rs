//! `make bench`: the figures that the notes and docs quote, measured on real clusters of the built binary.
//!
//! Prints one line per figure. Medians and extremes, because single runs on a small machine mean little.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Kcat, Node, Start, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const RUNS: usize = 5;
const COLD_STARTS: usize = 20;
const KILLS: usize = 10;
const RECORDS: usize = 100_000;
const COMMITS: usize = 500;
const BATCHES: usize = 50_000;
const VMS: usize = 10;
/// Its name, as the kernel shows it.
const CORE_THREAD: &str = "core";

fn main() {
    Folder::scenario("figures", |_| {
        single_node()?;
        one_node_at_work();
        cold_starts()?;
        let mut cluster_cost = None;
        Folder::scenario("figures-cluster", |folder| {
            let mut cluster = Cluster::start(folder, 3)?;
            throughput(&cluster)?;
            commit_latency(&cluster)?;
            cluster_cost = Some(idle_cost(&cluster.nodes)?);
            failover(&mut cluster)
        });
        for line in cluster_cost.unwrap_or_default() {
            println!("{line}");
        }
        Ok(())
    });
}

/// Smallest, median and largest, in milliseconds.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let ms = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    format!(
        "min {:.1} ms, median {:.1} ms, max {:.1} ms (n = {})",
        ms(0),
        ms(times.len() / 2),
        ms(times.len().saturating_sub(1)),
        times.len()
    )
}

fn single_node() -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        Folder::scenario("figures-single", |folder| {
            let mut node = Node::new("node1", folder.path())?;
            let start = Instant::now();
            node.start(&Start::Up)?;
            node.wait_ready(PATIENCE)?;
            times.push(start.elapsed());
            node.stop()
        });
    }
    println!("ready, one node, from exec: {}", spread(times));
    Ok(())
}

fn cold_starts() -> anyhow::Result<()> {
    let mut times = Vec::new();
    let mut finals: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..COLD_STARTS {
        Folder::scenario("figures-cold", |folder| {
            let mut cluster = Cluster::prepare(folder, 3)?;
            let start = Instant::now();
            cluster.form()?;
            cluster.wait_ready(PATIENCE)?;
            times.push(start.elapsed());
            wait_until(PATIENCE, "all replicas of every group vote", || voters_everywhere(&cluster.nodes[0], 3))?;
            let groups = cluster.nodes[0].api().get("/v1/groups")?.ok()?;
            let highest = numbers(&groups, "term").into_iter().max().context("no group")?;
            *finals.entry(highest).or_default() += 1;
            Ok(())
        });
    }
    println!("ready, three nodes, from exec of the first: {}", spread(times));
    println!("highest term of any group after a cold start of three nodes: {finals:?} (term: starts)");
    Ok(())
}

/// Every number under `key`, wherever it stands.
fn numbers(value: &Value, key: &str) -> Vec<u64> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| match value.as_u64() {
                Some(number) if name == key => vec![number],
                _ => numbers(value, key),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(|item| numbers(item, key)).collect(),
        _ => Vec::new(),
    }
}

fn voters_everywhere(node: &Node, voters: u64) -> anyhow::Result<()> {
    let topics = node.api().get("/v1/status")?.ok()?;
    let seen = numbers(&topics["topics"], "voters_min");
    ensure!(!seen.is_empty() && seen.iter().all(|count| *count == voters), "voters are {seen:?}");
    Ok(())
}

fn throughput(cluster: &Cluster) -> anyhow::Result<()> {
    let values: Vec<String> = (0..RECORDS).map(|number| format!("value-{number:0>94}")).collect();
    for (name, extra) in [("plain", vec![]), ("lz4", vec!["-X", "compression.codec=lz4"])] {
        let topic = format!("speed-{name}");
        cluster.kcat().produce(&topic, [(&b"k"[..], &b"first"[..])], &[], &[])?;
        let records = values.iter().map(|value| (&b"key"[..], value.as_bytes()));
        let start = Instant::now();
        cluster.kcat().produce(&topic, records, &[], &extra)?;
        let produced = start.elapsed();
        let start = Instant::now();
        let read = cluster.kcat().consume(&topic)?.len();
        let consumed = start.elapsed();
        ensure!(read == RECORDS + 1, "{read} records came back");
        let rate = |time: Duration| RECORDS as f64 / time.as_secs_f64();
        println!(
            "kcat, {RECORDS} records of 100 B, {name}, acks=all, factor 3: produce {:.0}/s, consume {:.0}/s",
            rate(produced),
            rate(consumed)
        );
    }
    Ok(())
}

/// One topic made after the other: each is one command through `__meta`, over HTTP, applied when it is answered.
fn commit_latency(cluster: &Cluster) -> anyhow::Result<()> {
    let api = cluster.nodes[cluster.meta_leader(PATIENCE)?].api();
    let mut times = Vec::new();
    for number in 0..COMMITS {
        let start = Instant::now();
        api.post("/v1/tokens", &json!({}))?.ok().with_context(|| format!("token {number}"))?;
        times.push(start.elapsed());
    }
    println!("one command through __meta over the API, three nodes, one client: {}", spread(times));
    Ok(())
}

/// CPU time of a process or thread, in hundredths of a second.
fn ticks(proc: &Path) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(proc.join("stat"))?;
    let after = stat.rsplit_once(')').context("no command in stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// One node: what it costs idle, what its core does with a full thread, and how long a VM takes from the order on.
fn one_node_at_work() {
    Folder::scenario("figures-one", |folder| {
        let cluster = Cluster::start(folder, 1)?;
        for line in idle_cost(&cluster.nodes)? {
            println!("{line}");
        }
        core_thread(&cluster.nodes[0])?;
        vms(&cluster.nodes[0])
    });
}

/// Batches of one record each, so that each is a proposal: how many the core's thread commits in a second of its CPU time.
fn core_thread(node: &Node) -> anyhow::Result<()> {
    let process = Path::new("/proc").join(node.pid().context("it runs")?.to_string()).join("task");
    let named = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == CORE_THREAD)
    };
    let tasks: Vec<_> = std::fs::read_dir(process)?.collect::<Result<_, _>>()?;
    let core = tasks.iter().find(|task| named(task)).context("no thread is the core's")?.path();
    let kcat = node.kcat();
    kcat.produce("single", [(&b"k"[..], &b"first"[..])], &[], &[])?;
    let value = "x".repeat(100);
    let (before, start) = (ticks(&core)?, Instant::now());
    kcat.produce("single", (0..BATCHES).map(|_| (&b"k"[..], value.as_bytes())), &[], &["-X", "batch.num.messages=1"])?;
    let (cpu, real) = ((ticks(&core)? - before) as f64 / 100.0, start.elapsed().as_secs_f64());
    println!(
        "{BATCHES} batches of one record, one node, synced: {:.0}/s; {:.0} per CPU second of the core's thread",
        BATCHES as f64 / real,
        BATCHES as f64 / cpu
    );
    Ok(())
}

/// From the order over the API to the report that the guest's agent is there, all of it through `__meta`.
fn vms(node: &Node) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for number in 0..=VMS {
        let (api, name) = (node.api(), format!("vm{number}"));
        let start = Instant::now();
        api.post("/v1/vms", &json!({ "name": name }))?.ok()?;
        wait_until(PATIENCE, "the VM runs", || {
            let vm = api.get(&format!("/v1/vms/{name}"))?.ok()?;
            ensure!(vm["phase"] == "Running", "it is {vm}");
            Ok(())
        })?;
        // The first one waits for the image.
        if number > 0 {
            times.push(start.elapsed());
        }
        api.delete(&format!("/v1/vms/{name}"))?.ok()?;
    }
    println!("VM, from the order over the API to its agent ready: {}", spread(times));
    Ok(())
}

/// Resident memory and CPU of each node over ten idle seconds.
fn idle_cost(nodes: &[Node]) -> anyhow::Result<Vec<String>> {
    let pids: Vec<u32> = nodes.iter().filter_map(Node::pid).collect();
    let cpu = |pid: u32| ticks(&Path::new("/proc").join(pid.to_string()));
    let before: Vec<u64> = pids.iter().map(|pid| cpu(*pid)).collect::<anyhow::Result<_>>()?;
    let window = Instant::now();
    wait_until(PATIENCE, "ten seconds pass", || {
        ensure!(window.elapsed() >= Duration::from_secs(10), "not yet");
        Ok(())
    })?;
    let elapsed = window.elapsed().as_secs_f64();
    let mut lines = Vec::new();
    for (pid, before) in pids.iter().zip(before) {
        let ticks = cpu(*pid)?.saturating_sub(before);
        let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("?").trim().to_owned();
        let share = ticks as f64 / elapsed;
        lines.push(format!("idle node of {}: {share:.2}% of a core, resident {rss}", nodes.len()));
    }
    Ok(lines)
}

/// From `kill -9` of the leader to the next command and the next record that are accepted.
fn failover(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.kcat().produce("failover", [(&b"k"[..], &b"first"[..])], &[], &[])?;
    let (mut commands, mut records) = (Vec::new(), Vec::new());
    for round in 0..KILLS {
        let leader = cluster.meta_leader(PATIENCE)?;
        let others: Vec<usize> = (0..cluster.nodes.len()).filter(|at| *at != leader).collect();
        let start = Instant::now();
        cluster.nodes[leader].kill()?;
        let survivor = &cluster.nodes[others[0]];
        wait_until(PATIENCE, "a command is taken", || survivor.api().post("/v1/tokens", &json!({}))?.ok())?;
        commands.push(start.elapsed());
        let brokers: Vec<_> = others.iter().map(|at| cluster.nodes[*at].kafka).collect();
        let kcat = Kcat::at_any(&brokers);
        let quick = ["-X", "topic.metadata.refresh.interval.ms=100", "-X", "retry.backoff.ms=50"];
        let value = format!("round-{round}");
        // kcat also complains of the broker that is gone; what counts is whether the record was delivered.
        let finished = kcat.try_produce("failover", [(&b"k"[..], value.as_bytes())], &[], &quick)?;
        let delivered = finished.status.success() && !finished.text().contains("Delivery failed");
        ensure!(delivered, "round {round}: {}", finished.text());
        records.push(start.elapsed());
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
    }
    let read = cluster.kcat().consume("failover")?.len();
    ensure!(read == KILLS + 1, "{read} of {} acknowledged records came back", KILLS + 1);
    println!("kill -9 of the leader of __meta to the next command: {}", spread(commands));
    println!("kill -9 of the leader of __meta to the next record (after that command): {}", spread(records));
    Ok(())
}
