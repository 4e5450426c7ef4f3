//! The soak suite (examples/soak) in small: under load, nodes die, restart, hand over and lose sight of each other.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::{
    Api, Cluster, Cuts, Folder, Kcat, Load, LoadPlan, Node, Outcome, Start, Trickle, enter_own_network, wait_until,
};

use crate::support::{PATIENCE, machine_alone, machine_shared, wait_home, wait_tolerant, wait_voters};

/// Without an accepted key or record while a leader hands over; a machine that does other things takes its own time.
const HANDOVER_MAX: Duration = Duration::from_millis(500);
/// Followers that were not handed anything elect somebody after so long at the earliest.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// From the start of all nodes until every group is led.
const LED_MAX: Duration = Duration::from_secs(10);
/// How long a request to a minority may wait.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
/// Is there before anything is cut.
const TOPIC: &str = "minority";
/// Whoever leads other partitions already gets fewer of the topic's; of so many, each node leads one.
const PARTITIONS: u32 = 6;

#[test]
fn nothing_acknowledged_is_lost_while_leaders_die_hand_over_and_restart() {
    let _machine = machine_alone();
    Folder::scenario("shaken", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let load = Load::start(&cluster, LoadPlan::moderate())?;
        wait_voters(&cluster.nodes[0], "load", 3)?;

        let leader = cluster.meta_leader(PATIENCE)?;
        cluster.nodes[leader].kill()?;
        let name = cluster.nodes[leader].name.clone();
        wait_until(PATIENCE, "another node leads", || {
            ensure!(cluster.nodes[cluster.meta_leader(PATIENCE)?].name != name, "it is {name} still");
            Ok(())
        })?;
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;

        for at in 0..3 {
            wait_tolerant(&cluster.nodes[(at + 1) % 3])?;
            cluster.nodes[at].stop()?;
            cluster.nodes[at].start(&Start::Up)?;
            cluster.wait_ready(PATIENCE)?;
        }

        wait_tolerant(&cluster.nodes[0])?;
        let window = hand_over(&cluster)?;
        let outcome = load.stop()?;
        ensure!(outcome.failures().is_empty(), "{:?}", outcome.failures());
        let gap = outcome.longest_gap(window.0, window.1);
        ensure!(gap < HANDOVER_MAX, "for {gap:?} nothing was accepted while a leader handed over");
        outcome.verify(&cluster)
    });
}

/// Drains the leader, and gives the time that it took.
fn hand_over(cluster: &Cluster) -> anyhow::Result<(Instant, Instant)> {
    let leader = cluster.meta_leader(PATIENCE)?;
    let (name, other) = (&cluster.nodes[leader].name, cluster.nodes[(leader + 1) % 3].api());
    let began = Instant::now();
    other.post(&format!("/v1/nodes/{name}/drain"), &json!({}))?.ok()?;
    wait_until(PATIENCE, "another node leads", || {
        ensure!(cluster.meta_leader(PATIENCE)? != leader, "it is {name} still");
        Ok(())
    })?;
    let ended = Instant::now();
    other.post(&format!("/v1/nodes/{name}/resume"), &json!({}))?.ok()?;
    Ok((began, ended))
}

/// Makes a topic of which each node is to lead a partition.
fn make_topic(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let topic = json!({ "name": name, "partitions": PARTITIONS, "replication_factor": 3 });
    cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
    wait_voters(&cluster.nodes[0], name, 3)
}

#[test]
fn a_leader_that_is_stopped_hands_over_first() {
    let _machine = machine_alone();
    Folder::scenario("stopped", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        make_topic(&cluster, "stopped")?;
        let load = Load::start(&cluster, LoadPlan::moderate())?;
        wait_voters(&cluster.nodes[0], "load", 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        let led = wait_until(PATIENCE, "it leads a partition", || cluster.nodes[leader].leads("stopped"))?;
        let trickle = Trickle::start(&cluster.kcat(), "stopped", led.1, "record")?;
        let began = Instant::now();
        cluster.nodes[leader].stop()?;
        let stopped = Instant::now();
        // Had nobody been handed anything, it is only now that nothing is accepted.
        wait_until(PATIENCE, "another node leads, an election timeout later", || {
            ensure!(stopped.elapsed() >= ELECTION_TIMEOUT, "it stopped just now");
            ensure!(cluster.meta_leader(PATIENCE)? != leader, "{} leads still", cluster.nodes[leader].name);
            Ok(())
        })?;
        let ended = Instant::now();
        // Before the node is back, and is given the partition back.
        let records = trickle.stop()?;
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])?;
        let outcome = load.stop()?;
        ensure!(outcome.failures().is_empty(), "{:?}", outcome.failures());
        for (what, gap) in [("key", outcome.longest_gap(began, ended)), ("record", records.longest_gap(began, ended))] {
            ensure!(gap < HANDOVER_MAX, "for {gap:?} no {what} was accepted while a leader stopped");
        }
        outcome.verify(&cluster)
    });
}

#[test]
fn a_leader_that_is_cut_off_accepts_nothing_and_says_why() -> anyhow::Result<()> {
    let _machine = machine_shared();
    let test = "shaken::a_leader_that_is_cut_off_accepts_nothing_and_says_why";
    if enter_own_network(&["--exact", test, "--nocapture"])? {
        return Ok(());
    }
    Folder::scenario("cut", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let cuts = Cuts::none()?;
        make_topic(&cluster, TOPIC)?;
        let load = Load::start(&cluster, LoadPlan { deadline: Duration::from_secs(30), ..LoadPlan::moderate() })?;
        wait_voters(&cluster.nodes[0], "load", 3)?;
        let mut moments = Vec::new();
        // Once from all and to all, once so that it is heard, and hears nobody.
        for both_ways in [true, false] {
            wait_tolerant(&cluster.nodes[0])?;
            wait_home(&cluster.nodes[0].kcat(), &[TOPIC])?;
            let at = cluster.meta_leader(PATIENCE)?;
            let [alone, one, two] = [at, (at + 1) % 3, (at + 2) % 3].map(|at| &cluster.nodes[at]);
            let led = wait_until(PATIENCE, "it leads a partition", || alone.leads(TOPIC))?;
            for other in [one, two] {
                cuts.one_way(other, alone)?;
                if both_ways {
                    cuts.one_way(alone, other)?;
                }
            }
            moments.push(Instant::now());
            cluster.wait_led_by_others(at, TOPIC, led, PATIENCE)?;
            // Its client is to find no way to those who can take the record.
            [one, two].into_iter().try_for_each(|other| cuts.clients_of(other))?;
            refused(alone, led)?;
            cuts.heal()?;
            cluster.wait_ready(PATIENCE)?;
            nothing_of_it_is_there(&cluster, led.1)?;
        }
        wait_tolerant(&cluster.nodes[0])?;
        let outcome = load.stop()?;
        accepted_soon(&outcome, &moments)?;
        ensure!(outcome.failures().is_empty(), "{:?}", outcome.failures());
        outcome.verify(&cluster)
    });
    Ok(())
}

fn refused(node: &Node, led: (i64, i64)) -> anyhow::Result<()> {
    let answer = Api::with_deadline(node.api, REFUSED_WITHIN).put("/v1/kv/minority", &json!({ "value": "no" }))?;
    let reason = answer.body["detail"].as_str().unwrap_or_default();
    let says_why = ["leader", "majority", "did not answer"].iter().any(|word| reason.contains(word));
    ensure!(answer.status >= 500 && says_why, "a node that is cut off answered {answer:?}");
    node.kcat().refused(TOPIC, led, "minority", REFUSED_WITHIN).context("of a node that is cut off")?;
    Ok(())
}

/// The others led already when it was asked, so that what it was given can be in no log that counts.
fn nothing_of_it_is_there(cluster: &Cluster, partition: i64) -> anyhow::Result<()> {
    let partition = partition.to_string();
    wait_until(PATIENCE, "the partition takes records again", || {
        let extra = ["-p", &partition, "-X", "message.timeout.ms=4000"];
        cluster.nodes[0].kcat().produce(TOPIC, [(&b"whole"[..], &b"yes"[..])], &[], &extra)
    })?;
    for node in &cluster.nodes {
        let records = node.kcat().consume(TOPIC)?;
        let alien = records.iter().find(|record| record.key != b"whole");
        ensure!(alien.is_none() && !records.is_empty(), "{} gives {} records, {alien:?}", node.name, records.len());
        let key = node.api().get("/v1/kv/minority")?;
        ensure!(key.status == 404, "{} refused the key, and it is there: {key:?}", node.name);
    }
    Ok(())
}

fn accepted_soon(outcome: &Outcome, moments: &[Instant]) -> anyhow::Result<()> {
    for moment in moments {
        let after = outcome.accepted_after(*moment).context("nothing was accepted any more")?;
        ensure!(after < Duration::from_secs(5), "after a cut nothing was accepted for {after:?}");
    }
    Ok(())
}

#[test]
fn leaders_go_back_to_their_first_replicas() {
    let _machine = machine_shared();
    Folder::scenario("home", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        let topic = json!({ "name": "many", "partitions": 30, "replication_factor": 3 });
        cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
        wait_home(&cluster.nodes[0].kcat(), &["many"])?;
        let id = cluster.nodes[1].id()?;
        cluster.nodes[1].kill()?;
        wait_led(&cluster.nodes[0].kcat(), Some(id))?;
        cluster.nodes[1].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_home(&cluster.nodes[0].kcat(), &["many"])?;
        for node in &mut cluster.nodes {
            node.kill()?;
        }
        let start = Instant::now();
        for node in &mut cluster.nodes {
            node.start(&Start::Up)?;
        }
        wait_led(&cluster.nodes[0].kcat(), None)?;
        let took = start.elapsed();
        ensure!(took < LED_MAX, "after a start of all nodes, all groups were led only after {took:?}");
        Ok(())
    });
}

/// Waits until each partition is led, and not by a node that is dead.
fn wait_led(kcat: &Kcat, dead: Option<i64>) -> anyhow::Result<()> {
    wait_until(PATIENCE, "each partition is led", || {
        let partitions = kcat.partitions("many")?;
        let without = partitions.values().filter(|(leader, _)| *leader < 0 || Some(*leader) == dead).count();
        ensure!(without == 0 && !partitions.is_empty(), "{without} of {} have no leader", partitions.len());
        Ok(())
    })
}
