//! Nodes that come back at other addresses.

use anyhow::ensure;
use std::net::SocketAddr;
use std::time::Duration;
use testkit::{Cluster, Folder, Node, Start, free_port, wait_until};

use crate::support::{PATIENCE, machine_shared, wait_caught_up, wait_tolerant, wait_voters};

/// From now on it listens on other ports.
fn moves(node: &mut Node) -> anyhow::Result<()> {
    for address in [&mut node.kafka, &mut node.api, &mut node.peer] {
        *address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    }
    Ok(())
}

/// Everybody that runs shows where everybody that runs is now.
fn wait_known(cluster: &Cluster) -> anyhow::Result<()> {
    wait_until(PATIENCE, "everybody knows where everybody is", || {
        for node in cluster.running() {
            let members = node.members()?;
            for other in cluster.running() {
                let shown = members.iter().find(|member| member["name"] == other.name.as_str());
                let here = shown.is_some_and(|shown| {
                    let says = |field: &str, address: SocketAddr| shown[field] == address.to_string().as_str();
                    let peer = shown["peer"] == serde_json::json!([other.peer.to_string()]);
                    says("kafka", other.kafka) && says("api", other.api) && peer
                });
                ensure!(here, "{} shows {}, which is at {}, as {shown:?}", node.name, other.name, other.peer);
            }
        }
        Ok(())
    })
}

#[test]
fn a_node_that_moved_is_found_by_one_that_was_down_meanwhile() {
    let _machine = machine_shared();
    Folder::scenario("moved", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"before"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[0], "t", 3)?;
        wait_tolerant(&cluster.nodes[0])?;

        cluster.nodes[2].stop()?;
        cluster.nodes[1].stop()?;
        moves(&mut cluster.nodes[1])?;
        cluster.nodes[1].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_known(&cluster)?;
        // It knows where the first node is, and where the second one was. Those two decide without the first one.
        cluster.nodes[0].kill()?;
        cluster.nodes[2].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        cluster.nodes[2].kcat().produce("t", [(&b"k"[..], &b"after"[..])], &[], &[])?;
        cluster.nodes[0].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        wait_known(&cluster)?;
        wait_caught_up(&cluster, "node1")?;
        let texts: Vec<_> = cluster.kcat().consume("t")?.iter().map(testkit::Record::text).collect();
        ensure!(texts == ["before", "after"], "{texts:?}");
        Ok(())
    });
}

/// None of them is where the tables have it, until an operator says where one is.
#[test]
fn nodes_that_all_moved_at_once_find_each_other_with_a_hint() {
    let _machine = machine_shared();
    Folder::scenario("moved-all", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        cluster.kcat().produce("t", [(&b"k"[..], &b"before"[..])], &[], &[])?;
        wait_voters(&cluster.nodes[0], "t", 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        cluster.nodes.iter_mut().try_for_each(Node::kill)?;
        cluster.nodes.iter_mut().try_for_each(moves)?;
        let hint = cluster.nodes[0].peer.to_string();
        for node in [0, 1] {
            cluster.nodes[node].start(&Start::Up)?;
        }
        let alone = cluster.wait_ready(Duration::from_secs(5));
        ensure!(alone.is_err(), "they found each other by themselves: this shows nothing");
        cluster.nodes[1].kill()?;
        for node in [1, 2] {
            cluster.nodes[node].arguments = vec!["--peer".into(), hint.clone()];
            cluster.nodes[node].start(&Start::Up)?;
        }
        cluster.wait_ready(PATIENCE)?;
        wait_known(&cluster)?;
        let texts: Vec<_> = cluster.kcat().consume("t")?.iter().map(testkit::Record::text).collect();
        ensure!(texts == ["before"], "{texts:?}");
        Ok(())
    });
}

#[test]
fn a_node_that_moved_while_all_others_were_down_finds_them() {
    let _machine = machine_shared();
    Folder::scenario("moved-alone", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        cluster.nodes.iter_mut().try_for_each(Node::kill)?;
        moves(&mut cluster.nodes[0])?;
        for node in [0, 1, 2] {
            cluster.nodes[node].start(&Start::Up)?;
        }
        cluster.wait_ready(PATIENCE)?;
        wait_known(&cluster)
    });
}
