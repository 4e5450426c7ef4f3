//! The main job: three processes, a VM, its console in Kafka, a leader lost and nothing else.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Kcat, Node, Start, wait_until};

use crate::support::{
    PATIENCE, borrowed, ensure_measured, hypervisor_argument, machine_shared, numbered, wait_caught_up, wait_voters,
};

/// From the order to the guest's greeting: the image is made on the way, and the CPU may be emulated.
const GREETING_LIMIT: Duration = Duration::from_secs(120);
/// Records in one run of the producer.
const RUN: usize = 50;

#[test]
fn a_vm_greets_through_kafka_and_no_acknowledged_record_is_lost_with_the_leader() {
    let _machine = machine_shared();
    Folder::scenario("main-job", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        cluster.nodes[1].api().post("/v1/vms", &json!({ "name": "web1" }))?.ok()?;
        let greeting = wait_for_greeting(&cluster.nodes[2].kcat(), "web1")?;
        let host = greeting.rsplit("hello from web1 on ").next().unwrap_or_default().to_owned();
        ensure!(cluster.nodes.iter().any(|node| host.starts_with(&node.name)), "no node of ours: {greeting:?}");

        let leader = cluster.meta_leader(PATIENCE)?;
        let before = cluster.nodes[leader].members()?;
        for node in &cluster.nodes {
            let member = before.iter().find(|member| member["name"] == node.name.as_str());
            ensure_measured(node, member.with_context(|| format!("no {} in {before:?}", node.name))?)?;
        }
        // The guest runs by what its node said, which is what the others say of the same host.
        let used = accelerator_in_use(cluster.nodes.iter().find(|node| host.starts_with(&node.name)))?;
        ensure!(before.iter().all(|member| member["accelerator"] == used), "{used} is in use, shown is {before:?}");
        cluster.nodes[leader].kcat().produce("ledger", [(&b"first"[..], &b"first"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[leader], "ledger", 3)?;
        lose_the_leader_under_load(&mut cluster, leader)?;

        // It comes back as who it was, without a token, and has all that the others have.
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let name = cluster.nodes[leader].name.clone();
        wait_caught_up(&cluster, &name)?;
        let after = cluster.nodes[leader].members()?;
        let who = |members: &[Value]| {
            let fields = |member: &Value| ["name", "id", "endpoint"].map(|field| member[field].to_string());
            members.iter().map(fields).collect::<BTreeSet<_>>()
        };
        ensure!(who(&before) == who(&after), "the members were {before:?} and are {after:?}");
        let endpoints: BTreeSet<_> = before.iter().filter_map(|member| member["endpoint"].as_str()).collect();
        let keys = endpoints.iter().all(|key| key.len() == 64 && key.chars().all(|char| char.is_ascii_hexdigit()));
        ensure!(keys && endpoints.len() == 3, "the nodes' identities are {endpoints:?}");
        Ok(())
    });
}

/// With what the hypervisor of the one VM on `node` runs its guest.
fn accelerator_in_use(node: Option<&Node>) -> anyhow::Result<String> {
    let hypervisors = node.context("no such node")?.hypervisors();
    let [(_, pid)] = hypervisors[..] else { anyhow::bail!("hypervisors: {hypervisors:?}") };
    hypervisor_argument(pid, "-accel")
}

/// Waits for "hello from VM on NODE" in the VM's console topic.
fn wait_for_greeting(kcat: &Kcat, vm: &str) -> anyhow::Result<String> {
    let greeting = format!("hello from {vm} on ");
    wait_until(GREETING_LIMIT, &format!("{greeting:?} in the topic vm.{vm}.console"), || {
        let records = kcat.consume(&format!("vm.{vm}.console"))?;
        let found = records.iter().map(testkit::Record::text).find(|text| text.contains(&greeting));
        found.with_context(|| {
            let last: Vec<_> = records.iter().rev().take(5).map(testkit::Record::text).collect();
            format!("{} records, the last ones {last:?}", records.len())
        })
    })
}

/// Produces with acks=all while the leader is killed; everything acknowledged must be there afterwards, in order.
fn lose_the_leader_under_load(cluster: &mut Cluster, leader: usize) -> anyhow::Result<()> {
    let (stop, acknowledged_runs) = (AtomicBool::new(false), AtomicUsize::new(0));
    let producer = cluster.kcat();
    let acknowledged = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for run in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let records = numbered("entry", run * RUN..(run + 1) * RUN);
                let outcome = producer.produce("ledger", borrowed(&records), &[], &["-X", "message.timeout.ms=4000"]);
                // A run that failed may have stored some of its records; nothing was promised about them.
                if outcome.is_ok() {
                    acknowledged.extend(records.into_iter().map(|(_, value)| value));
                    acknowledged_runs.fetch_add(1, Ordering::SeqCst);
                }
            }
            acknowledged
        });
        let outcome = kill_in_the_middle(cluster, leader, &acknowledged_runs);
        stop.store(true, Ordering::SeqCst);
        let acknowledged = load.join().map_err(|_| anyhow::anyhow!("the producer panicked"));
        outcome.and(acknowledged)
    })?;

    for node in cluster.running() {
        let records = node.kcat().consume("ledger")?;
        let mut wanted = acknowledged.iter();
        let mut next = wanted.next();
        // In order, whatever stands between: a run without an answer may have been stored, even twice.
        for record in &records {
            if Some(&record.value) == next {
                next = wanted.next();
            }
        }
        let missing = next.map(|value| String::from_utf8_lossy(value).into_owned());
        let total = acknowledged.len();
        ensure!(missing.is_none(), "{missing:?} was acknowledged (one of {total}) but {} lacks it", node.name);
    }
    Ok(())
}

/// Kills the leader after a few acknowledged runs, and waits for a few more after it.
fn kill_in_the_middle(cluster: &mut Cluster, leader: usize, runs: &AtomicUsize) -> anyhow::Result<()> {
    let more = |from: usize| {
        wait_until(PATIENCE, "five more acknowledged runs", || {
            let now = runs.load(Ordering::SeqCst);
            ensure!(now >= from + 5, "{now} after {from}");
            Ok(now)
        })
    };
    let before = more(0)?;
    cluster.nodes[leader].kill()?;
    // One run may have been on its way back when the leader died.
    more(before + 1)?;
    Ok(())
}
