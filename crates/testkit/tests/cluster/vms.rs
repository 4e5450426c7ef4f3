//! Virtual machines on real hypervisors, and without one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, Record, Start, wait_until};

use crate::support::{PATIENCE, hypervisor_argument, machine_shared, wait_vm};

/// From the order to the agent's hello: the image is made on the way, and the CPU may be emulated.
const RUNNING_LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_vm_runs_survives_its_hypervisor_stops_and_goes() {
    let _machine = machine_shared();
    Folder::scenario("vm", |folder| {
        let cluster = Cluster::start(folder, 1)?;
        let node = &cluster.nodes[0];
        node.api().post("/v1/vms", &json!({ "name": "web1" }))?.ok()?;
        let vm = wait_vm(node, "web1", RUNNING_LIMIT, "it runs", |vm| vm["phase"] == "Running")?;
        ensure!(vm["node"] == node.name.as_str() && vm["incarnation"] == 1, "it runs as {vm}");

        let [(_, hypervisor)] = node.hypervisors()[..] else { anyhow::bail!("hypervisors: {:?}", node.hypervisors()) };
        let pid = i32::try_from(hypervisor).ok().and_then(Pid::from_raw).context("a strange process id")?;
        kill_process(pid, Signal::KILL)?;
        let again = wait_vm(node, "web1", RUNNING_LIMIT, "it runs again", |vm| {
            vm["phase"] == "Running" && vm["incarnation"] == 2
        })?;
        ensure!(again["epoch"] == vm["epoch"], "it was assigned anew: {again}");
        wait_event(node, "that it is started again, with the reason", |event| {
            event["phase"] == "Restarting" && event["reason"] != "" && event["vm"] == "web1"
        })?;
        wait_event(node, "the new incarnation, running", |event| {
            event["incarnation"] == 2
                && event["phase"] == "Running"
                && event["vm"] == "web1"
                && event["node_name"] == node.name.as_str()
                && event["epoch"] == again["epoch"]
        })?;

        // A hypervisor outlives its daemon, and is the same VM afterwards.
        let mut cluster = cluster;
        let before = cluster.nodes[0].hypervisors();
        cluster.nodes[0].kill()?;
        cluster.nodes[0].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let node = &cluster.nodes[0];
        wait_vm(node, "web1", PATIENCE, "it is taken over", |vm| vm["phase"] == "Running")?;
        ensure!(node.hypervisors() == before, "{before:?} became {:?}", node.hypervisors());

        node.api().post("/v1/vms/web1/stop", &json!({}))?.ok()?;
        wait_vm(node, "web1", PATIENCE, "it has stopped", |vm| vm["phase"] == "Stopped")?;
        ensure!(node.hypervisors().is_empty(), "it stopped, but {:?} run", node.hypervisors());
        let commit = |node: &Node| -> anyhow::Result<u64> {
            node.api().get("/v1/status")?.ok()?["meta"]["commit"].as_u64().context("no commit index")
        };
        let before = commit(node)?;
        node.api().delete("/v1/vms/web1")?.ok()?;
        wait_until(PATIENCE, "it is gone", || {
            let answer = node.api().get("/v1/vms/web1")?;
            ensure!(answer.status == 404, "{}", answer.body);
            Ok(())
        })?;
        let commands = commit(node)? - before;
        ensure!(commands < 20, "a deletion took {commands} commands: something is said again and again");
        let console = node.kcat().consume("vm.web1.console")?;
        ensure!(!console.is_empty(), "the console went with the VM");
        Ok(())
    });
}

#[test]
fn without_a_hypervisor_a_vm_stays_pending_and_says_what_to_install() {
    let _machine = machine_shared();
    Folder::scenario("no-qemu", |folder| {
        let mut cluster = Cluster::prepare(folder, 1)?;
        let nowhere = folder.path().join("nowhere").display().to_string();
        cluster.nodes[0].environment.push(("PATH".into(), nowhere));
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let node = &cluster.nodes[0];
        node.api().post("/v1/vms", &json!({ "name": "web1" }))?.ok()?;
        let vm = wait_vm(node, "web1", PATIENCE, "the reason names the package", |vm| {
            vm["reason"].as_str().is_some_and(|reason| reason.contains("qemu-system-x86"))
        })?;
        ensure!(vm["phase"] == "Pending", "it is {vm}");
        node.kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])?;
        ensure!(node.kcat().consume("t")?.len() == 1, "the rest does not work without a hypervisor");
        for console in ["vm.web1.console", "vm.nobody.console"] {
            let forged = node.kcat().produce(console, [(&b"web1"[..], &b"forged"[..])], &[], &[]);
            ensure!(forged.is_err(), "a client wrote to {console}");
        }
        ensure!(node.kcat().consume("vm.web1.console")?.is_empty(), "the console holds a client's words");
        let topics = node.api().get("/v1/topics")?.ok()?;
        ensure!(!topics.to_string().contains("vm.nobody.console"), "a console without a VM: {topics}");
        node.api().delete("/v1/vms/web1")?.ok()?;
        Ok(())
    });
}

#[test]
fn a_kernel_that_is_named_is_what_vms_boot_and_none_is_fetched() {
    let _machine = machine_shared();
    Folder::scenario("kernel", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let fetched = booted_kernel(&cluster.nodes[0], "fetched")?;
        // IMAGES/HASH/kernel is made of IMAGES/kernels/PACKAGE/vmlinuz: the newest, if there are several.
        let images = fetched.ancestors().nth(2).context("the image is in no folder")?;
        let mut packages: Vec<PathBuf> = Vec::new();
        for package in std::fs::read_dir(images.join("kernels"))? {
            packages.push(package?.path());
        }
        let package = packages.iter().max().context("no kernel was fetched")?;
        let release = package.file_name().and_then(|name| name.to_str()?.strip_prefix("linux-image-"));
        let release = release.with_context(|| format!("{} is named otherwise", package.display()))?;
        cluster.nodes[0].api().delete("/v1/vms/fetched")?.ok()?;
        cluster.nodes[0].stop()?;

        // On a host without images and without a way to any kernel but the one that is named.
        let (named, cache) = (folder.path().join("named"), folder.path().join("cache"));
        copy_folder(&package.join("modules"), &named.join("modules"))?;
        std::fs::copy(package.join("vmlinuz"), named.join("vmlinuz"))?;
        let programs = folder.path().join("programs");
        std::fs::create_dir(&programs)?;
        std::os::unix::fs::symlink(program("qemu-system-x86_64")?, programs.join("qemu-system-x86_64"))?;
        let node = &mut cluster.nodes[0];
        node.arguments = vec!["--kernel".into(), named.join("vmlinuz").display().to_string()];
        node.environment.push(("PATH".into(), programs.display().to_string()));
        node.environment.push(("XDG_CACHE_HOME".into(), cache.display().to_string()));
        node.start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        let booted = booted_kernel(&cluster.nodes[0], "named")?;
        ensure!(booted.starts_with(&cache), "it booted {}", booted.display());
        ensure!(std::fs::read(&booted)? == std::fs::read(&fetched)?, "{} is another kernel", booted.display());
        ensure!(!cache.join("muster/images/kernels").exists(), "a kernel was fetched beside the one named");
        let console = cluster.nodes[0].kcat().consume("vm.named.console")?;
        let says_so = |record: &Record| record.text().starts_with(&format!("muster: linux {release},"));
        ensure!(console.iter().any(says_so), "the guest does not say that it is {release}: {console:?}");
        Ok(())
    });
}

/// Creates a VM, waits until it runs and has said so on its console, and tells which kernel its hypervisor was given.
fn booted_kernel(node: &Node, name: &str) -> anyhow::Result<PathBuf> {
    node.api().post("/v1/vms", &json!({ "name": name }))?.ok()?;
    wait_vm(node, name, RUNNING_LIMIT, "it runs", |vm| vm["phase"] == "Running")?;
    wait_until(PATIENCE, "its console says so", || {
        let console = node.kcat().consume(&format!("vm.{name}.console"))?;
        let after_greeting = console.iter().any(|record| record.text().starts_with("muster: agent "));
        ensure!(after_greeting, "it says {console:?}");
        Ok(())
    })?;
    let mut hypervisors = node.hypervisors();
    ensure!(hypervisors.len() == 1, "hypervisors: {hypervisors:?}");
    let (_, pid) = hypervisors.remove(0);
    Ok(hypervisor_argument(pid, "-kernel")?.into())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Where a program is.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file());
    found.with_context(|| format!("{name} is not installed"))
}

/// Waits for an event like that in the topic of all events.
fn wait_event(node: &Node, what: &str, condition: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    wait_until(PATIENCE, what, || {
        let records = node.kcat().consume("muster.events")?;
        let mut events = Vec::new();
        for record in &records {
            events.push(serde_json::from_slice(&record.value).with_context(|| format!("no JSON: {}", record.text()))?);
        }
        let found = events.iter().find(|event| condition(event)).cloned();
        found.with_context(|| format!("the events are {events:?}"))
    })
}
