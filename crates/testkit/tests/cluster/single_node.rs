//! `muster up`, alone.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Cluster, Folder, Signal, Start, wait_until};

use crate::support::{PATIENCE, borrowed, ensure_exactly, ensure_measured, machine_alone, machine_shared, numbered};

/// From the start of the process to its first answer "ready".
const READY_LIMIT: Duration = Duration::from_secs(1);

#[test]
fn it_is_ready_in_under_a_second() {
    let _machine = machine_alone();
    Folder::scenario("ready", |folder| {
        let mut times = Vec::new();
        for mut node in Cluster::prepare(folder, 3)?.nodes {
            let start = Instant::now();
            node.start(&Start::Up)?;
            node.wait_ready(PATIENCE)?;
            times.push(start.elapsed());
            node.stop()?;
        }
        // The best of three: the machine may be busy with something else for a moment, but not each time.
        ensure!(times.iter().any(|time| *time < READY_LIMIT), "ready after {times:?}");
        Ok(())
    });
}

#[test]
fn it_keeps_everything_over_stops_and_kills() {
    let _machine = machine_shared();
    Folder::scenario("restart", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &mut cluster.nodes[0];
        let records = numbered("kept", 0..500);
        node.kcat().produce("kept", borrowed(&records[..200]), &[], &[])?;
        node.api().post("/v1/topics", &json!({ "name": "wide", "partitions": 3 }))?.ok()?;
        let members = node.members()?;

        node.signal(Signal::Interrupt)?;
        let ended = node.wait_for_end(PATIENCE)?;
        ensure!(ended.status.success(), "Ctrl-C ended it with {}:\n{}", ended.status, ended.text());
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        ensure_exactly(&node.kcat().consume("kept")?, &records[..200])?;
        node.kcat().produce("kept", borrowed(&records[200..]), &[], &[])?;

        node.kill()?;
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        ensure_exactly(&node.kcat().consume("kept")?, &records)?;
        ensure!(node.kcat().partitions("wide")?.len() == 3, "the topic `wide` lost partitions");
        ensure!(node.members()?[0]["id"] == members[0]["id"], "it became another member");
        Ok(())
    });
}

#[test]
fn a_second_start_on_the_same_data_is_refused_naming_the_first() {
    let _machine = machine_shared();
    Folder::scenario("second-start", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let first = &mut cluster.nodes[0];
        let pid = first.process()?.pid();

        let mut second = Cluster::prepare(folder, 1)?.nodes.remove(0);
        second.data_dir = first.data_dir.clone();
        let ended = second.start_again(&Start::Up)?;
        ensure!(!ended.status.success(), "it ran beside the first:\n{}", ended.text());
        ensure!(ended.text().contains(&pid.to_string()), "the running pid {pid} is not named:\n{}", ended.text());
        let data_dir = first.data_dir.display().to_string();
        ensure!(ended.text().contains(&data_dir), "the data directory is not named:\n{}", ended.text());
        first.ensure_ready()?;
        first.kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])
    });
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_changes_it() {
    let _machine = machine_shared();
    Folder::scenario("port-in-use", |folder| {
        let node = Cluster::prepare(folder, 1)?.nodes.remove(0);
        let refused = |flag: &str, port: u16| {
            let ended = node.start_again(&Start::Up)?;
            let text = ended.text();
            ensure!(!ended.status.success(), "it started without its port {port}:\n{text}");
            ensure!(text.contains(&port.to_string()), "port {port} is not named:\n{text}");
            ensure!(text.contains(flag), "the flag {flag} is not named:\n{text}");
            Ok(())
        };
        {
            let _taken = TcpListener::bind(node.kafka)?;
            refused("--kafka-listen", node.kafka.port())?;
        }
        {
            let _taken = TcpListener::bind(node.api)?;
            refused("--api-listen", node.api.port())?;
        }
        {
            let _taken = UdpSocket::bind(node.peer)?;
            refused("--peer-listen", node.peer.port())?;
        }
        // With its ports free again, the same folder starts: the refusals left nothing behind.
        let mut node = node;
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)
    });
}

#[test]
fn a_configuration_file_starts_it_and_a_mistake_in_one_is_named_with_its_line() {
    let _machine = machine_shared();
    Folder::scenario("config", |folder| {
        let mut node = Cluster::prepare(folder, 1)?.nodes.remove(0);
        let mistaken = node.write_config("kafka_lisen = \"127.0.0.1:1\"\n")?;
        let ended = node.start_again(&Start::Config(mistaken.clone()))?;
        let text = ended.text();
        ensure!(!ended.status.success(), "it started with an unknown key:\n{text}");
        let place = format!("{}:6", mistaken.display());
        ensure!(
            text.contains(&place) && text.contains("kafka_listen"),
            "{place} and the right key are missing:\n{text}"
        );
        let ended = node.start_again(&Start::Config(folder.path().join("nothing.toml")))?;
        ensure!(!ended.status.success() && ended.text().contains("nothing.toml"), "{}", ended.text());

        let file = node.write_config("labels = { zone = \"a\" }\n")?;
        node.start(&Start::Config(file))?;
        node.wait_ready(PATIENCE)?;
        let member = node.members()?.remove(0);
        ensure!(member["labels"]["zone"] == "a" && member["name"] == node.name.as_str(), "the member is {member}");
        ensure_measured(&node, &member)
    });
}

#[test]
fn it_listens_everywhere_and_tells_clients_the_one_address_that_it_was_given() {
    let _machine = machine_shared();
    Folder::scenario("advertise", |folder| {
        let mut node = Cluster::prepare(folder, 1)?.nodes.remove(0);
        let loopback = node.kafka;
        let advertised = loopback.to_string();
        node.arguments = vec!["--kafka-advertise".into(), advertised.clone()];
        node.kafka.set_ip(Ipv4Addr::UNSPECIFIED.into());
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        let member = node.members()?.remove(0);
        ensure!(member["kafka"] == advertised.as_str(), "the member is {member}");
        wait_until(PATIENCE, "it says what clients are told", || {
            let said = node.process()?.output();
            ensure!(said.contains(&format!("(clients are told {advertised})")), "{said}");
            Ok(())
        })?;
        node.kafka = loopback;
        node.kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])?;
        ensure!(node.kcat().consume("t")?.len() == 1, "a client that was told {advertised} read nothing");
        Ok(())
    });
}

#[test]
fn it_says_where_it_listens_and_what_to_try() {
    let _machine = machine_shared();
    Folder::scenario("greeting", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &mut cluster.nodes[0];
        let (kafka, api) = (node.kafka.to_string(), node.api.to_string());
        wait_until(PATIENCE, "it names its addresses and a command to try", || {
            let said = node.process()?.output() + &node.process()?.log();
            ensure!(said.contains(&kafka) && said.contains(&api) && said.contains("muster "), "{said}");
            Ok(())
        })
    });
}
