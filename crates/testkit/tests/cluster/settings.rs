//! What nodes are told at their start: that it takes effect, and that the others get to know what concerns them.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, Start, wait_until};

use crate::support::{PATIENCE, machine_alone, machine_shared, scrape, wait_tolerant};

/// Not the defaults, 150 ms and 1 s: with those the last moment for an election is 2 s after the leader was heard last, and
/// the first one with these is later.
const INTERVAL: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_secs(3);
/// Timeouts are counted in ticks of 50 ms, the first and the last of which may come early.
const EARLY: Duration = Duration::from_millis(200);

fn pace(interval: Duration, timeout: Duration) -> Vec<String> {
    let flag = |name: &str, value: Duration| [format!("--{name}-ms"), value.as_millis().to_string()];
    [flag("heartbeat-interval", interval), flag("election-timeout", timeout)].concat()
}

/// Leaders of `__meta` that these nodes have come to know.
fn leaders_known(cluster: &Cluster, nodes: [usize; 2]) -> anyhow::Result<f64> {
    let mut known = 0.0;
    for at in nodes {
        known += scrape(&cluster.nodes[at])?.value("muster_group_leader_changes_total", &[("topic", "__meta")])?;
    }
    Ok(known)
}

fn warnings(node: &Node) -> anyhow::Result<Value> {
    Ok(node.cli_json(&["status"])?["warnings"].clone())
}

#[test]
fn a_killed_leader_is_replaced_within_the_election_timeout_that_was_set_and_not_before() {
    let _machine = machine_alone();
    Folder::scenario("pace", |folder| {
        let mut cluster = Cluster::prepare(folder, 3)?;
        cluster.nodes.iter_mut().for_each(|node| node.arguments = pace(INTERVAL, TIMEOUT));
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        wait_tolerant(&cluster.nodes[0])?;
        for node in &cluster.nodes {
            let aimed_for = scrape(node)?.value("muster_raft_heartbeat_interval_seconds", &[])?;
            ensure!(aimed_for == INTERVAL.as_secs_f64(), "{} beats every {aimed_for} s", node.name);
            ensure!(warnings(node)? == json!([]), "{} warns: {}", node.name, warnings(node)?);
        }

        let leader = cluster.meta_leader(PATIENCE)?;
        let survivors = [(leader + 1) % 3, (leader + 2) % 3];
        let before = leaders_known(&cluster, survivors)?;
        let start = Instant::now();
        cluster.nodes[leader].kill()?;
        // A timeout is less than twice the least. One candidate may come to nothing, then the other one's turn comes.
        wait_until(TIMEOUT * 4, "another node leads __meta", || {
            let now = leaders_known(&cluster, survivors)?;
            ensure!(now > before, "{now} leaders are known, as before");
            Ok(())
        })?;
        let took = start.elapsed();
        ensure!(took >= TIMEOUT - INTERVAL - EARLY, "there was an election after {took:?} already");
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)
    });
}

#[test]
fn a_node_that_does_not_keep_the_pace_of_the_others_is_named_until_it_does() {
    let _machine = machine_shared();
    Folder::scenario("uneven-pace", |folder| {
        let mut cluster = Cluster::prepare(folder, 2)?;
        cluster.nodes[1].arguments = pace(Duration::from_millis(300), Duration::from_secs(2));
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let theirs = "heartbeats every 300 ms and an election timeout of 2000 ms";
        let usual = "heartbeats every 150 ms and an election timeout of 1000 ms";
        wait_until(PATIENCE, "each of the two says in its log that the other one differs", || {
            for (at, other, has, mine) in [(0, 2, theirs, usual), (1, 1, usual, theirs)] {
                let says = format!("node {other} has {has}, this node {mine}: start all nodes with the same");
                let log = cluster.nodes[at].log();
                ensure!(log.contains(&says), "no line of the log says \"{says}\":\n{log}");
            }
            Ok(())
        })?;
        for node in &cluster.nodes {
            let told = warnings(node)?;
            let warning = told[0].as_str().with_context(|| format!("{} warns of nothing: {told}", node.name))?;
            for part in [format!("node1 with {usual}"), format!("node2 with {theirs}")] {
                ensure!(warning.contains(&part), "{} does not say \"{part}\": {warning}", node.name);
            }
        }
        let shown = cluster.nodes[0].cli(&["status"])?.text();
        ensure!(shown.contains("\nwarning: the nodes do not keep one pace: "), "{shown}");

        cluster.nodes[1].stop()?;
        cluster.nodes[1].arguments.clear();
        cluster.nodes[1].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        for node in &cluster.nodes {
            ensure!(warnings(node)? == json!([]), "{} still warns: {}", node.name, warnings(node)?);
        }
        Ok(())
    });
}

/// Waits until everybody shows the first node with this relay, and the second one with none.
fn wait_relay(cluster: &Cluster, relay: &Value) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("everybody knows that the relay of node1 is {relay}"), || {
        for node in &cluster.nodes {
            let members = node.members()?;
            let shown = |name: &str| members.iter().find(|member| member["name"] == name).map(|it| &it["relay"]);
            let right = shown("node1") == Some(relay) && shown("node2") == Some(&Value::Null);
            ensure!(right, "{} shows {members:?}", node.name);
        }
        Ok(())
    })
}

#[test]
fn a_node_with_a_relay_calls_it_and_the_others_know_of_it() {
    let _machine = machine_shared();
    Folder::scenario("relay", |folder| {
        let relay = TcpListener::bind("127.0.0.1:0")?;
        relay.set_nonblocking(true)?;
        let url = format!("http://{}", relay.local_addr()?);
        let mut cluster = Cluster::prepare(folder, 2)?;
        cluster.nodes[0].arguments = vec!["--relay-url".into(), url.clone()];
        cluster.form()?;
        wait_until(PATIENCE, "the relay is called", || {
            let (mut call, _) = relay.accept()?;
            call.set_nonblocking(false)?;
            call.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut start = [0; 10];
            call.read_exact(&mut start)?;
            ensure!(start == *b"GET /ping ", "it was asked for {:?}", String::from_utf8_lossy(&start));
            Ok(())
        })?;
        // That this one does not answer is no reason for a node not to work.
        cluster.wait_ready(PATIENCE)?;
        wait_relay(&cluster, &json!(url))?;

        cluster.nodes[0].stop()?;
        cluster.nodes[0].arguments.clear();
        cluster.nodes[0].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_relay(&cluster, &Value::Null)?;

        let mut stranger = Node::new("stranger", folder.path())?;
        stranger.arguments = vec!["--relay-url".into(), "relay.example.org".into()];
        let ended = stranger.start_again(&Start::Up)?;
        let says =
            "--relay-url: relay \"relay.example.org\" is not the URL of a relay, such as https://relay.example.org";
        ensure!(!ended.status.success() && ended.text().contains(says), "{}:\n{}", ended.status, ended.text());
        Ok(())
    });
}
