//! What several tests do alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Kcat, Node, Record, Scrape, wait_until};

/// Long enough for anything that has no limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(60);

static MACHINE: RwLock<()> = RwLock::new(());

/// Held by a test that measures a time, so that no other test takes the machine from it.
pub fn machine_alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Held by every other test.
pub fn machine_shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// What a node counts, at this moment.
pub fn scrape(node: &Node) -> anyhow::Result<Scrape> {
    let answer = node.api().text("/metrics")?;
    ensure!(answer.status == 200, "{} answered {}", node.name, answer.status);
    ensure!(answer.content_type == "text/plain; version=0.0.4; charset=utf-8", "it is {}", answer.content_type);
    Scrape::parse(&answer.body).with_context(|| format!("what {} tells is not valid", node.name))
}

/// One replica of a group, as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub node: String,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
}

/// Every group by its name, with its replicas on nodes that answer: `GET /v1/groups`.
pub fn groups(node: &Node) -> anyhow::Result<BTreeMap<String, Vec<Replica>>> {
    let body = node.api().get("/v1/groups")?.ok()?;
    let mut groups: BTreeMap<String, Vec<Replica>> = BTreeMap::new();
    for (node, group) in entries(&body).with_context(|| format!("no list of groups in {body}"))? {
        let number = |field: &str| group[field].as_u64().with_context(|| format!("no {field} in {group}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        groups.entry(text(&group["name"])).or_default().push(Replica {
            node: text(node),
            term: number("term")?,
            commit: number("commit")?,
            applied: number("applied")?,
        });
    }
    ensure!(groups.contains_key("__meta"), "no group __meta in {body}");
    Ok(groups)
}

fn entries(body: &Value) -> Option<Vec<(&Value, &Value)>> {
    let mut entries = Vec::new();
    for node in body["nodes"].as_array()? {
        entries.extend(node["groups"].as_array()?.iter().map(|group| (&node["node"], group)));
    }
    Some(entries)
}

/// Waits until `name` has applied, in each of its groups, all that is committed there now.
pub fn wait_caught_up(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let witness = cluster.running().find(|node| node.name != name).context("nobody else runs")?;
    let committed: BTreeMap<String, u64> = groups(witness)?
        .into_iter()
        .map(|(group, replicas)| (group, replicas.iter().map(|replica| replica.commit).max().unwrap_or_default()))
        .collect();
    wait_until(PATIENCE, &format!("{name} has applied all of {committed:?}"), || {
        let groups = groups(witness)?;
        for (group, commit) in &committed {
            let replicas = groups.get(group).with_context(|| format!("{group} is gone"))?;
            if let Some(replica) = replicas.iter().find(|replica| replica.node == name) {
                ensure!(replica.applied >= *commit, "{group} is at {} of {commit}", replica.applied);
            }
        }
        let mine = groups["__meta"].iter().any(|replica| replica.node == name);
        ensure!(mine, "{name} has no replica of __meta: {groups:?}");
        Ok(())
    })
}

/// Waits until every partition of `topic` has that many voters.
pub fn wait_voters(node: &Node, topic: &str, voters: usize) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("{topic} has {voters} voters"), || {
        let body = node.api().get(&format!("/v1/topics/{topic}"))?.ok()?;
        let partitions = body["partitions"].as_array().context("no partitions")?;
        let enough = |partition: &Value| partition["voters"].as_array().is_some_and(|names| names.len() == voters);
        ensure!(!partitions.is_empty() && partitions.iter().all(enough), "{body}");
        Ok(())
    })
}

/// Waits until the cluster can lose a node: before, `__meta` may still be on its way to three voters.
pub fn wait_tolerant(node: &Node) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the cluster can lose a node", || {
        let status = node.api().get("/v1/status")?.ok()?;
        ensure!(status["fault_tolerance"] == "survives the loss of 1 node", "{}", status["fault_tolerance"]);
        Ok(())
    })
}

/// Waits until a VM is as `condition` says: `GET /v1/vms/NAME`.
pub fn wait_vm(
    node: &Node,
    name: &str,
    limit: Duration,
    what: &str,
    condition: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    wait_until(limit, &format!("VM {name}: {what}"), || {
        let vm = node.api().get(&format!("/v1/vms/{name}"))?.ok()?;
        ensure!(condition(&vm), "{vm}");
        Ok(vm)
    })
}

/// What follows `flag` on the command line with which a hypervisor was started.
pub fn hypervisor_argument(pid: u32, flag: &str) -> anyhow::Result<String> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let mut words = line.split('\0').skip_while(|word| *word != flag);
    Ok(words.nth(1).with_context(|| format!("no {flag} in {line:?}"))?.to_owned())
}

/// A key and a value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Keys and values `key-NUMBER`, `PREFIX-NUMBER`.
pub fn numbered(prefix: &str, numbers: Range<usize>) -> Vec<Pair> {
    numbers.map(|n| (format!("key-{n}").into_bytes(), format!("{prefix}-{n}").into_bytes())).collect()
}

/// Borrows what [`numbered`] made.
pub fn borrowed(records: &[Pair]) -> impl Iterator<Item = (&[u8], &[u8])> {
    records.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
}

/// Fails unless `records` are exactly `expect`, in order, with offsets from 0 up.
pub fn ensure_exactly(records: &[Record], expect: &[Pair]) -> anyhow::Result<()> {
    ensure!(records.len() == expect.len(), "{} records were read, {} written", records.len(), expect.len());
    for (number, (record, (key, value))) in records.iter().zip(expect).enumerate() {
        let same = &record.key == key && &record.value == value && record.offset == i64::try_from(number)?;
        ensure!(same, "record {number} came back as {record:?}; it was {:?}", String::from_utf8_lossy(value));
    }
    Ok(())
}

/// What a node says that it can carry is what its host, this one, says of itself.
pub fn ensure_measured(node: &Node, member: &Value) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(member["cores"] == cores, "{cores} cores are shown as {}", member["cores"]);
    let architecture = output_of(Command::new("uname").arg("-m"))?;
    ensure!(member["architecture"] == architecture, "{architecture} is shown as {}", member["architecture"]);
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"));
    let memory_mib = total.with_context(|| format!("no total in {memory}"))?.trim().parse::<u64>()? / 1024;
    ensure!(member["memory_mib"] == memory_mib, "{memory_mib} MiB are shown as {}", member["memory_mib"]);
    // How much of it is free changes all the time.
    let size = output_of(Command::new("df").args(["-B1M", "--output=size"]).arg(&node.data_dir))?;
    let size: u64 = size.lines().last().unwrap_or_default().trim().parse()?;
    let free = member["disk_mib"].as_u64();
    ensure!(free.is_some_and(|free| free > 0 && free <= size), "{free:?} of {size} MiB of disk are free");

    let qemu = output_of(Command::new("qemu-system-x86_64").arg("--version"))?;
    let version = qemu.split_whitespace().nth(3).unwrap_or_default();
    let accelerator = member["accelerator"].as_str().unwrap_or_default();
    // Where there is KVM it may still not be fit for use.
    let may_be = accelerator == "tcg" || accelerator == "kvm" && Path::new("/dev/kvm").exists();
    ensure!(may_be, "no accelerator of this host: {accelerator:?}");
    let expected = json!([format!("qemu {version} ({accelerator})")]);
    ensure!(member["hypervisors"] == expected, "{expected} is shown as {}", member["hypervisors"]);
    Ok(())
}

/// Produces `WHAT-PARTITION` to each partition of a topic through the nodes that run, as soon as that has a leader; the
/// values. One of them may be there twice.
pub fn produce_to_each(cluster: &Cluster, topic: &str, partitions: usize, what: &str) -> anyhow::Result<Vec<String>> {
    let brokers: Vec<SocketAddr> = cluster.running().map(|node| node.kafka).collect();
    let kcat = Kcat::at_any(&brokers);
    let values: Vec<String> = (0..partitions).map(|partition| format!("{what}-{partition}")).collect();
    for (partition, value) in values.iter().enumerate() {
        let number = partition.to_string();
        let extra = ["-p", &number, "-X", "message.timeout.ms=4000", "-X", "topic.metadata.refresh.interval.ms=200"];
        wait_until(PATIENCE, &format!("partition {partition} of {topic} takes {value}"), || {
            kcat.produce(topic, [(&b"k"[..], value.as_bytes())], &[], &extra)
        })?;
    }
    Ok(values)
}

/// Fails unless all of `values` are read from a topic through every node that runs.
pub fn ensure_all_read(cluster: &Cluster, topic: &str, values: &[String]) -> anyhow::Result<()> {
    for node in cluster.running() {
        wait_until(PATIENCE, &format!("{} reads all of {topic}", node.name), || {
            let read: BTreeSet<String> = node.kcat().consume(topic)?.iter().map(Record::text).collect();
            let missing: Vec<_> = values.iter().filter(|value| !read.contains(*value)).collect();
            ensure!(missing.is_empty(), "{missing:?} are not among {read:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// From the return of a node until it leads again what it is to lead.
const HOME_MAX: Duration = Duration::from_secs(60);

/// Waits until each partition of the topics is led by its first replica.
pub fn wait_home(kcat: &Kcat, topics: &[&str]) -> anyhow::Result<()> {
    wait_until(HOME_MAX, "each partition is led by its first replica", || {
        for topic in topics {
            let partitions = kcat.partitions(topic)?;
            let strays: Vec<_> = partitions.iter().filter(|(_, (leader, all))| all.first() != Some(leader)).collect();
            ensure!(strays.is_empty() && !partitions.is_empty(), "of {topic}, others lead {strays:?}");
        }
        Ok(())
    })
}
