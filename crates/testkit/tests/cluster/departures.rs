//! Nodes are drained, leave, are removed, replaced and lost. The leader leaves and is replaced under load; a VM is on the node
//! that is drained, and on the one that is removed. Those that come back uninvited are told what they are.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, Start, wait_until};

use crate::support::{PATIENCE, ensure_all_read, machine_shared, produce_to_each, wait_tolerant, wait_vm, wait_voters};

/// A VM is stopped and another one started, perhaps on an emulated CPU; its image is made on the way.
const MOVED_LIMIT: Duration = Duration::from_secs(120);
/// For so long a node is silent until it is lost.
const LOST_AFTER: &str = "3s";
/// Of so many partitions with three replicas each of four nodes holds some, and with one replica each of three nodes.
const PARTITIONS: usize = 4;

#[test]
fn the_leader_leaves_under_load_and_nothing_is_lost() {
    let _machine = machine_shared();
    Folder::scenario("leave", |folder| {
        let mut cluster = Cluster::start(folder, 4)?;
        wait_tolerant(&cluster.nodes[0])?;
        let leaver = cluster.meta_leader(PATIENCE)?;
        let name = cluster.nodes[leaver].name.clone();
        let witness = (leaver + 1) % 4;
        cluster.kcat().produce("t", [(&b"k"[..], &b"first"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[witness], "t", 3)?;

        let others: Vec<&Node> = cluster.nodes.iter().filter(|node| node.name != name).collect();
        let count = under_load(&others, || leave(others[0], &name))?;
        let ended = cluster.nodes[leaver].wait_for_end(PATIENCE)?;
        ensure!(ended.status.success(), "it left with {}:\n{}", ended.status, cluster.nodes[leaver].log());
        ensure!(cluster.nodes[leaver].log().contains("this node has left the cluster"), "it does not say why it ended");

        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[witness])?;
        ensure_loaded(&cluster, count)?;
        // Its data directory is of no use any more, and says so.
        let ended = cluster.nodes[leaver].start_again(&Start::Up)?;
        ensure!(!ended.status.success(), "it runs again:\n{}", ended.text());
        ensure!(ended.text().contains("was removed from the cluster"), "the reason is not given:\n{}", ended.text());
        leaves_only_by_force(&mut cluster, witness, (leaver + 2) % 4)
    });
}

/// The three nodes that are left have a topic that needs all three: one leaves only if it is said that the topic may have fewer
/// replicas, and then that has them.
fn leaves_only_by_force(cluster: &mut Cluster, by: usize, next: usize) -> anyhow::Result<()> {
    let (node, name) = (&cluster.nodes[by], cluster.nodes[next].name.as_str());
    let topic = json!({ "name": "three", "partitions": 1, "replication_factor": 3 });
    node.api().post("/v1/topics", &topic)?.ok()?;
    node.kcat().produce("three", [(&b"k"[..], &b"kept"[..])], &[], &[])?;
    let refused = node.cli(&["node", "leave", name])?;
    let why = format!("1 topic would have fewer replicas than asked for without {name}, such as three");
    for expect in [why.as_str(), "say --force"] {
        let told = !refused.status.success() && refused.text().contains(expect);
        ensure!(told, "it is not refused by {expect:?}:\n{}", refused.text());
    }
    let stays = member(node, name)?.context("it is a member")?;
    ensure!(stays["lifecycle"] == "active", "{stays}");

    let told = node.cli_json(&["node", "leave", name, "--force"])?;
    ensure!(told["lifecycle"] == "leaving", "{told}");
    wait_gone(node, name)?;
    wait_voters(node, "three", 2)?;
    let values: Vec<String> = node.kcat().consume("three")?.iter().map(testkit::Record::text).collect();
    ensure!(values == ["kept"], "{} reads {values:?}", node.name);
    let ended = cluster.nodes[next].wait_for_end(PATIENCE)?;
    ensure!(ended.status.success(), "it left with {}:\n{}", ended.status, cluster.nodes[next].log());
    Ok(())
}

/// Does something while one record after the other is produced to `t` through these nodes: `v0`, `v1`, and so on. How many.
fn under_load(nodes: &[&Node], act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let (stop, produced) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| -> anyhow::Result<()> {
            while !stop.load(Ordering::SeqCst) {
                let n = produced.load(Ordering::SeqCst);
                let (key, value) = (format!("k{n}"), format!("v{n}"));
                nodes[n % nodes.len()].kcat().produce("t", [(key.as_bytes(), value.as_bytes())], &[], &[])?;
                produced.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let acted = act();
        stop.store(true, Ordering::SeqCst);
        let load = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        acted.and(load)
    })?;
    Ok(produced.into_inner())
}

/// Every node that runs reads `first` and then what [`under_load`] produced, in order.
fn ensure_loaded(cluster: &Cluster, count: usize) -> anyhow::Result<()> {
    ensure!(count > 3, "the load made only {count} records");
    for node in cluster.running() {
        let mut values: Vec<String> = node.kcat().consume("t")?.iter().map(testkit::Record::text).collect();
        ensure!(values.len() > count, "{} reads {} of {count} records", node.name, values.len());
        values.dedup();
        let expected = std::iter::once("first".to_owned()).chain((0..count).map(|n| format!("v{n}")));
        ensure!(values == expected.collect::<Vec<_>>(), "{} reads {values:?}", node.name);
    }
    Ok(())
}

#[test]
fn the_leader_is_replaced_under_load_and_its_successor_has_all_that_it_had() {
    let _machine = machine_shared();
    Folder::scenario("replace-leader", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"first"[..])], &[], &[])?;
        for topic in ["t", "muster.events"] {
            wait_voters(&cluster.nodes[0], topic, 3)?;
        }
        let leader = cluster.meta_leader(PATIENCE)?;
        join_two(&mut cluster)?;
        let name = cluster.nodes[leader].name.clone();
        let others: Vec<&Node> = cluster.nodes.iter().filter(|node| node.name != name).collect();
        let replace = || others[0].cli_json(&["node", "replace", &name, "--with", "node5"]);
        let count = under_load(&others, || {
            let told = replace()?;
            ensure!(told["lifecycle"] == "leaving", "a node that lives does not leave: {told}");
            wait_gone(others[0], &name)
        })?;
        // Said again by somebody who did not hear that it is done.
        let again = replace()?;
        ensure!(again["lifecycle"] == "gone" && again["name"] == name.as_str(), "{again}");

        for topic in ["t", "muster.events"] {
            wait_taken_over(others[0], topic, "node5")?;
        }
        let ended = cluster.nodes[leader].wait_for_end(PATIENCE)?;
        ensure!(ended.status.success(), "it left with {}:\n{}", ended.status, cluster.nodes[leader].log());
        cluster.wait_ready(PATIENCE)?;
        ensure_loaded(&cluster, count)
    });
}

/// Two more nodes, with room for whatever is to go: one after the other, so that without a word the first one would be chosen.
fn join_two(cluster: &mut Cluster) -> anyhow::Result<()> {
    let token = cluster.token(2)?;
    for _ in 0..2 {
        cluster.add()?.start(&Start::Join(token.clone()))?;
        cluster.wait_ready(PATIENCE)?;
    }
    Ok(())
}

/// Waits until a topic of one partition has three voters; the one that had to be made is on `successor`.
fn wait_taken_over(by: &Node, topic: &str, successor: &str) -> anyhow::Result<()> {
    wait_voters(by, topic, 3)?;
    let shown = by.api().get(&format!("/v1/topics/{topic}"))?.ok()?;
    let voters = shown["partitions"][0]["voters"].as_array().context("no voters")?;
    ensure!(voters.iter().any(|voter| voter == successor), "others took over {topic}: {shown}");
    Ok(())
}

/// Lets a node leave, and waits until the others have forgotten it.
fn leave(by: &Node, name: &str) -> anyhow::Result<()> {
    let told = by.cli_json(&["node", "leave", name])?;
    ensure!(told["lifecycle"] == "leaving", "{told}");
    wait_gone(by, name)
}

fn wait_gone(by: &Node, name: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("{name} is forgotten"), || {
        let member = member(by, name)?;
        ensure!(member.is_none(), "{member:?}");
        Ok(())
    })
}

fn member(by: &Node, name: &str) -> anyhow::Result<Option<Value>> {
    Ok(by.members()?.into_iter().find(|member| member["name"] == name))
}

#[test]
fn a_dead_node_is_removed_and_its_machine_comes_back_only_as_another_node() {
    let _machine = machine_shared();
    Folder::scenario("remove", |folder| {
        let mut cluster = Cluster::start(folder, 4)?;
        wait_tolerant(&cluster.nodes[0])?;
        cluster.nodes[0].api().post("/v1/vms", &json!({ "name": "web1" }))?.ok()?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"kept"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[0], "t", 3)?;
        let runs = |vm: &Value| vm["phase"] == "Running";
        let vm = wait_vm(&cluster.nodes[0], "web1", MOVED_LIMIT, "it runs", runs)?;
        let dead = cluster.nodes.iter().position(|node| vm["node"] == node.name.as_str()).context("it runs nowhere")?;
        let (name, by) = (cluster.nodes[dead].name.clone(), (dead + 1) % 4);
        let early = cluster.nodes[by].cli(&["node", "remove", &name])?;
        ensure!(!early.status.success(), "a node that answers was removed:\n{}", early.text());
        ensure!(early.text().contains(&format!("node leave {name}")), "no hint:\n{}", early.text());
        cluster.nodes[dead].kill_machine()?;
        let late = cluster.nodes[by].cli(&["node", "leave", &name])?;
        ensure!(!late.status.success(), "a dead node leaves:\n{}", late.text());
        ensure!(late.text().contains(&format!("node remove {name}")), "no hint:\n{}", late.text());

        let told = cluster.nodes[by].cli_json(&["node", "remove", &name])?;
        ensure!(told["lifecycle"] == "removing", "{told}");
        wait_gone(&cluster.nodes[by], &name)?;
        wait_tolerant(&cluster.nodes[by])?;
        let topics = cluster.nodes[by].api().get("/v1/topics")?.ok()?;
        for topic in topics["topics"].as_array().context("no topics")? {
            wait_voters(&cluster.nodes[by], topic["name"].as_str().context("no name")?, 3)?;
        }
        let elsewhere = |vm: &Value| runs(vm) && vm["node"] != name.as_str();
        let moved = wait_vm(&cluster.nodes[by], "web1", MOVED_LIMIT, "it runs elsewhere", elsewhere)?;
        ensure!(moved["epoch"].as_u64() > vm["epoch"].as_u64(), "{vm} became {moved}");

        // It is told so, whoever it calls, and does not start what its own tables say that it runs.
        let ended = cluster.nodes[dead].start_again(&Start::Up)?;
        ensure!(!ended.status.success(), "it is a member again:\n{}", ended.text());
        for expect in ["was removed from the cluster", "join anew with a token"] {
            ensure!(ended.text().contains(expect), "it does not say {expect:?}:\n{}", ended.text());
        }
        let hypervisors = cluster.nodes[dead].hypervisors();
        ensure!(hypervisors.is_empty(), "a VM that runs elsewhere was started: {hypervisors:?}");
        std::fs::remove_dir_all(&cluster.nodes[dead].data_dir)?;
        let token = cluster.token(1)?;
        cluster.nodes[dead].start(&Start::Join(token))?;
        cluster.wait_ready(PATIENCE)?;
        let again = member(&cluster.nodes[by], &name)?.context("it is no member")?;
        ensure!(again["id"] == 5, "it has the id of the node before: {again}");
        let values: Vec<String> = cluster.nodes[dead].kcat().consume("t")?.iter().map(testkit::Record::text).collect();
        ensure!(values == ["kept"], "it reads {values:?}");
        Ok(())
    });
}

#[test]
fn a_drained_node_gives_up_leaderships_and_vms_and_takes_nothing_until_it_resumes() {
    let _machine = machine_shared();
    Folder::scenario("drain", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        cluster.nodes[0].api().post("/v1/vms", &json!({ "name": "web1" }))?.ok()?;
        let runs = |vm: &Value| vm["phase"] == "Running";
        let vm = wait_vm(&cluster.nodes[0], "web1", MOVED_LIMIT, "it runs", runs)?;
        let name = vm["node"].as_str().context("no node")?.to_owned();
        let by = cluster.nodes.iter().find(|node| node.name != name).context("three nodes")?;

        let told = by.cli(&["node", "drain", &name])?;
        ensure!(told.status.success() && told.text().contains("is draining"), "{}", told.text());
        let moved =
            wait_vm(by, "web1", MOVED_LIMIT, "it runs elsewhere", |vm| runs(vm) && vm["node"] != name.as_str())?;
        ensure!(moved["epoch"].as_u64() > vm["epoch"].as_u64(), "{vm} became {moved}");
        let drained = cluster.nodes.iter().find(|node| node.name == name).context("it is one of them")?;
        wait_until(PATIENCE, "its hypervisor is gone and it leads nothing", || {
            ensure!(drained.hypervisors().is_empty(), "{:?} run", drained.hypervisors());
            let groups = by.api().get("/v1/groups")?.ok()?;
            let lists = groups["nodes"].as_array().context("no nodes")?;
            let mine = lists.iter().find(|list| list["node"] == name.as_str()).context("it does not answer")?;
            let led = mine["groups"].as_array().context("no groups")?.iter().filter(|group| group["role"] == "leader");
            ensure!(led.clone().next().is_none(), "it leads {:?}", led.collect::<Vec<_>>());
            Ok(())
        })?;
        let shown = member(by, &name)?.context("it is a member")?;
        ensure!(shown["lifecycle"] == "draining" && shown["vms_assigned"] == 0, "{shown}");
        ensure!(shown["replicas"].as_u64() > Some(0), "its replicas went: {shown}");

        // So many that all three would share them; of one replica each, for which one other node is enough.
        let topic = json!({ "name": "new", "partitions": PARTITIONS, "replication_factor": 1 });
        by.api().post("/v1/topics", &topic)?.ok()?;
        let refused = by.api().post("/v1/vms", &json!({ "name": "pinned", "node": name }))?.ok()?;
        let pinned = wait_vm(by, "pinned", PATIENCE, "it says why it waits", |vm| {
            vm["reason"].as_str().is_some_and(|reason| reason.contains("draining"))
        })?;
        ensure!(pinned["phase"] == "Pending", "{refused} became {pinned}");
        let new = by.api().get("/v1/topics/new")?.ok()?;
        let replicas: Vec<&Value> =
            new["partitions"].as_array().into_iter().flatten().map(|it| &it["replicas"]).collect();
        let elsewhere = |names: &&Value| names.as_array().is_some_and(|it| it.len() == 1 && it[0] != name.as_str());
        ensure!(replicas.len() == PARTITIONS && replicas.iter().all(elsewhere), "{name} has some of it: {replicas:?}");
        by.cli_json(&["node", "resume", &name])?;
        wait_vm(by, "pinned", MOVED_LIMIT, "it runs where it belongs", |vm| runs(vm) && vm["node"] == name.as_str())?;
        Ok(())
    });
}

#[test]
fn a_new_node_takes_the_place_of_a_dead_one() {
    let _machine = machine_shared();
    Folder::scenario("replace", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        for topic in ["a", "b"] {
            cluster.kcat().produce(topic, [(&b"k"[..], &b"v"[..])], &[], &[])?;
            wait_voters(&cluster.nodes[0], topic, 3)?;
        }
        let dead = cluster.meta_leader(PATIENCE)?;
        let (name, by) = (cluster.nodes[dead].name.clone(), (dead + 1) % 3);
        cluster.nodes[dead].kill()?;
        join_two(&mut cluster)?;
        cluster.nodes[by].cli_json(&["node", "replace", &name, "--with", "node5"])?;
        wait_gone(&cluster.nodes[by], &name)?;
        wait_tolerant(&cluster.nodes[by])?;
        for topic in ["a", "b"] {
            wait_taken_over(&cluster.nodes[by], topic, "node5")?;
            ensure!(cluster.nodes[4].kcat().consume(topic)?.len() == 1, "{topic} is not whole");
        }
        Ok(())
    });
}

#[test]
fn what_a_lost_node_held_is_made_anew_elsewhere_and_it_comes_back_as_a_member() {
    let _machine = machine_shared();
    Folder::scenario("lost", |folder| {
        let mut cluster = Cluster::prepare(folder, 4)?;
        for node in &mut cluster.nodes {
            node.arguments = vec!["--node-lost-after".to_owned(), LOST_AFTER.to_owned()];
        }
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let topic = json!({ "name": "t", "partitions": PARTITIONS, "replication_factor": 3 });
        cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
        wait_tolerant(&cluster.nodes[0])?;
        let lost = cluster.meta_leader(PATIENCE)?;
        let (name, by) = (cluster.nodes[lost].name.clone(), (lost + 1) % 4);
        let held = replicas_on(&cluster.nodes[by], &name)?;
        ensure!(!held.is_empty(), "{name} holds no partition");
        let mut kept = produce_to_each(&cluster, "t", PARTITIONS, "whole")?;

        cluster.nodes[lost].kill()?;
        kept.extend(produce_to_each(&cluster, "t", PARTITIONS, "silent")?);
        let leader = wait_made_anew(&cluster.nodes[by], &name)?;
        // Without what was made anew, some partition would now be left with one replica of three, and take nothing.
        let next = (0..4).find(|at| ![lost, by].contains(at) && cluster.nodes[*at].name != leader);
        let next = next.context("four nodes")?;
        cluster.nodes[next].kill()?;
        kept.extend(produce_to_each(&cluster, "t", PARTITIONS, "fewer")?);
        ensure_all_read(&cluster, "t", &kept)?;

        for at in [lost, next] {
            cluster.nodes[at].start(&Start::Up)?;
        }
        cluster.wait_ready(PATIENCE)?;
        let node = &cluster.nodes[by];
        wait_until(PATIENCE, "all are active members", || {
            let members = node.members()?;
            let active = |member: &Value| member["lifecycle"] == "active" && member["meta_role"].is_string();
            ensure!(members.len() == 4 && members.iter().all(active), "{members:?}");
            Ok(())
        })?;
        wait_tolerant(node)?;
        wait_voters(node, "t", 3)?;
        wait_until(PATIENCE, "it drops what the others have replaced", || {
            let left = replicas_on(node, &name)?;
            ensure!(left.is_disjoint(&held), "it held {held:?}, and holds {left:?}");
            Ok(())
        })?;
        ensure_all_read(&cluster, "t", &kept)
    });
}

/// The ids of the replicas of partitions that a node holds, as it says itself.
fn replicas_on(by: &Node, name: &str) -> anyhow::Result<BTreeSet<u64>> {
    let body = by.api().get("/v1/groups")?.ok()?;
    let lists = body["nodes"].as_array().with_context(|| format!("no list of nodes in {body}"))?;
    let mine = lists.iter().find(|list| list["node"] == name && list["reachable"] == true);
    let groups = mine.and_then(|list| list["groups"].as_array());
    let groups = groups.with_context(|| format!("{name} does not answer: {body}"))?;
    let partitions = groups.iter().filter(|group| group["name"] != "__meta");
    partitions.map(|group| group["replica"].as_u64().with_context(|| format!("no replica in {group}"))).collect()
}

/// Waits until a node is lost and nothing of it is missing any more: no group has it among its voters, and each has
/// three. The leader of `__meta`.
fn wait_made_anew(by: &Node, lost: &str) -> anyhow::Result<String> {
    wait_until(PATIENCE, &format!("{lost} is lost, and others have what it held"), || {
        let status = by.api().get("/v1/status")?.ok()?;
        let node = status["nodes"].as_array().and_then(|nodes| nodes.iter().find(|node| node["name"] == lost));
        let node = node.with_context(|| format!("{lost} is no member: {status}"))?;
        ensure!(node["lifecycle"] == "lost" && node["replicas"] == 0, "{node}");
        let voters = status["meta"]["voters"].as_array().context("nobody says who votes")?;
        ensure!(voters.len() == 3 && !voters.iter().any(|voter| voter == lost), "voters of __meta: {voters:?}");
        let topics = status["topics"].as_array().context("no topics")?;
        ensure!(topics.iter().all(|topic| topic["voters_min"] == 3), "{topics:?}");
        Ok(status["meta"]["leader"].as_str().context("nobody leads __meta")?.to_owned())
    })
}
