//! The commands that start whole clusters on one machine.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use testkit::{Cluster, Enclave, Folder, Network, Process, muster_binary, wait_until};

use crate::support::{PATIENCE, machine_shared};

/// The default addresses.
const API: &str = "127.0.0.1:7400";
const KAFKA: &str = "127.0.0.1:9092";
/// Held by whoever starts nodes on the host's own ports next to the default ones: one that looks for free ports in the moment
/// in which another's node starts may find that node's.
static PORTS_OF_THE_HOST: Mutex<()> = Mutex::new(());
/// From the start of the demo to its last line: the image is made on the way.
const DEMO_LIMIT: Duration = Duration::from_secs(90);

#[test]
fn dev_starts_three_nodes_on_the_default_ports_and_starts_them_again() {
    let _machine = machine_shared();
    Folder::scenario("dev", |folder| {
        let data_dir = folder.path().join("data").display().to_string();
        let start = || {
            Enclave::start(Network::Loopback, &["dev", "--nodes", "3", "--data-dir", &data_dir], "dev", folder.path())
        };
        let mut enclave = start()?;
        let before = wait_three_ready(&mut enclave, API, KAFKA)?;
        let sent = enclave.run("sh", &["-c", "echo kept | kcat -P -b 127.0.0.1:9092 -t notes"])?;
        ensure!(sent.status.success() && !sent.text().contains("ERROR"), "kcat: {}", sent.text());
        enclave.interrupt()?;

        let mut enclave = start()?;
        let after = wait_three_ready(&mut enclave, API, KAFKA)?;
        ensure!(before == after, "the members were {before:?} and are {after:?}");
        let notes = enclave.run("kcat", &["-C", "-b", "127.0.0.1:9092", "-t", "notes", "-e", "-q"])?;
        ensure!(notes.stdout == b"kept\n", "the topic holds {}", notes.text());
        enclave.interrupt()?;
        Ok(())
    });
}

#[test]
fn the_demo_greets_shows_the_status_and_stays_until_ctrl_c() {
    let _machine = machine_shared();
    let _ports = PORTS_OF_THE_HOST.lock().unwrap_or_else(PoisonError::into_inner);
    Folder::scenario("demo", |folder| {
        // On the host's network: the image's kernel is downloaded. So not on the default ports, which may be taken.
        let ports = Cluster::prepare(folder, 1)?.nodes.remove(0);
        let (kafka, api, peer) = (ports.kafka.to_string(), ports.api.to_string(), ports.peer.to_string());
        let arguments = ["demo", "--kafka-listen", &kafka, "--api-listen", &api, "--peer-listen", &peer];
        let mut enclave = Enclave::start(Network::Host, &arguments, "demo", folder.path())?;
        wait_until(DEMO_LIMIT, "the demo has shown a greeting, the status, and what to try", || {
            enclave.process().ensure_running()?;
            let said = enclave.process().output();
            let shown = ["hello from ", "__meta: leader", "muster vm", "kcat"].iter().all(|part| said.contains(part));
            ensure!(shown, "it said so far:\n{}", enclave.process().last_words());
            Ok(())
        })?;
        wait_three_ready(&mut enclave, &api, &kafka)?;
        enclave.interrupt()?;
        Ok(())
    });
}

#[test]
fn the_demo_finds_a_hypervisor_that_was_installed_since_it_ran_last() {
    let _machine = machine_shared();
    let _ports = PORTS_OF_THE_HOST.lock().unwrap_or_else(PoisonError::into_inner);
    Folder::scenario("demo-again", |folder| {
        let ports = Cluster::prepare(folder, 1)?.nodes.remove(0);
        let data_dir = folder.path().join("data");
        let demo = |path: Option<&Path>| {
            let mut command = Command::new(muster_binary()?);
            command.args(["demo", "--exit", "--data-dir"]).arg(&data_dir);
            command.args(["--kafka-listen", &ports.kafka.to_string(), "--api-listen", &ports.api.to_string()]);
            command.args(["--peer-listen", &ports.peer.to_string()]);
            if let Some(path) = path {
                command.env("PATH", path);
            }
            Process::start(&mut command, "demo", folder.path())?.wait(DEMO_LIMIT)
        };
        let without = demo(Some(&folder.path().join("nowhere")))?;
        let said = without.text();
        ensure!(!without.status.success() && said.contains("no node offers qemu"), "without a hypervisor: {said}");
        let with = demo(None)?;
        let said = with.text();
        ensure!(with.status.success() && said.contains("hello from hello on "), "with a hypervisor again: {said}");
        Ok(())
    });
}

/// Name and id of three ready members, one of which listens at `api` and `kafka`, as that one sees them.
fn wait_three_ready(enclave: &mut Enclave, api: &str, kafka: &str) -> anyhow::Result<Vec<(String, String)>> {
    wait_until(PATIENCE, "three nodes are ready", || {
        enclave.process().ensure_running()?;
        let status = enclave.muster_json(&["status", "--api", api])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|node| node["state"] == "ready").count();
        ensure!(ready == 3, "{ready} are ready of {nodes:?}");
        let first = nodes.iter().any(|node| node["kafka"] == kafka && node["api"] == api);
        ensure!(first, "no node listens at {api} and {kafka}: {nodes:?}");
        Ok(nodes.iter().map(|node| (node["name"].to_string(), node["id"].to_string())).collect())
    })
}
