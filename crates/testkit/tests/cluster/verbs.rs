//! The command line's verbs, as people and programs use them.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, Process, Signal, Start, free_port, wait_until};

use crate::support::{PATIENCE, hypervisor_argument, machine_shared};

/// SIGINT, as a process's status tells it.
const INTERRUPTED: i32 = 2;
/// What a guest takes of its memory before it counts it.
const GUEST_OVERHEAD_MIB: u64 = 40;

#[test]
fn a_vm_lives_from_create_to_delete_by_commands_and_its_console_is_followed() {
    let _machine = machine_shared();
    Folder::scenario("verbs", |folder| {
        let mut cluster = Cluster::start(folder, 2)?;
        let (asked, host) = (&cluster.nodes[0], &cluster.nodes[1]);
        ensure!(said(asked, &["vm", "list"])?.contains("no VMs: make one with `muster vm create NAME`"));
        ensure!(asked.cli_json(&["vm", "list"])? == json!({ "vms": [] }), "there is a VM already");
        let create = ["vm", "create", "web1", "--cpus", "2", "--memory-mib", "192", "--node", &host.name];
        let made = asked.cli_json(&create)?;
        ensure_made(&made, host)?;

        // Before there is a line of it.
        let mut follow = asked.cli_start("follow", &["vm", "logs", "-f", "web1"])?;
        let mut follow_json = asked.cli_start("follow-json", &["vm", "logs", "-f", "web1", "--output", "json"])?;
        let steps = json_values(asked, &["vm", "wait", "web1"])?;
        let running = steps.last().map(|step| &step["vm"]).context("nothing happened")?;
        ensure!(running["phase"] == "Running" && running["incarnation"] == 1, "the last step is {running}");
        ensure_runs_as_asked(asked, host, running, &follow)?;
        ensure_shown(asked, host)?;

        stop_and_start(asked, &mut follow)?;
        // Without -f it ends by itself, with all of what is followed.
        let greetings = |text: &str| text.matches(&greeting(host)).count();
        let logs = said(asked, &["vm", "logs", "web1"])?;
        ensure!(greetings(&logs) == 2, "two starts, but the console is\n{logs}");
        wait_until(PATIENCE, "all of the console is followed", || {
            ensure!(follow.output().starts_with(&logs), "it is {:?} of {logs:?}", follow.output());
            Ok(())
        })?;
        let last = said(asked, &["vm", "logs", "--tail", "2", "web1"])?;
        ensure!(last.lines().count() == 2, "the last two lines are {last:?}");

        delete(asked)?;
        ensure!(said(asked, &["vm", "logs", "web1"])?.starts_with(&logs), "the console went with the VM");
        follow.ensure_running()?;
        follow.signal(Signal::Interrupt)?;
        let ended = follow.wait(PATIENCE)?;
        ensure!(ended.status.signal() == Some(INTERRUPTED), "Ctrl-C ended it with {}: {}", ended.status, ended.text());
        // The other one ends with the node that it asks, which waits for nobody who only listens, and says so.
        follow_json.ensure_running()?;
        cluster.nodes[0].stop()?;
        ensure_cut_off(&mut follow_json, &cluster.nodes[1])
    });
}

/// What `vm create` answered.
fn ensure_made(made: &Value, host: &Node) -> anyhow::Result<()> {
    let expected = json!({
        "name": "web1", "cpus": 2, "memory_mib": 192, "pinned_to": host.name, "desired": "running",
        "image": "minimal", "console_topic": "vm.web1.console",
    });
    for (field, value) in expected.as_object().into_iter().flatten() {
        ensure!(made[field] == *value, "{field} is not {value} in {made}");
    }
    let phase = made["phase"].as_str();
    ensure!(phase.is_some_and(|phase| ["Pending", "Starting", "Booting"].contains(&phase)), "at first it is {phase:?}");
    Ok(())
}

fn greeting(host: &Node) -> String {
    format!("hello from web1 on {}\n", host.name)
}

/// One hypervisor, on the node that was asked for, with the processors and the memory that were, as the guest sees too.
fn ensure_runs_as_asked(asked: &Node, host: &Node, vm: &Value, follow: &Process) -> anyhow::Result<()> {
    ensure!(vm["node"] == host.name.as_str() && vm["cpus"] == 2 && vm["memory_mib"] == 192, "it runs as {vm}");
    ensure!(asked.hypervisors().is_empty(), "{} runs {:?}", asked.name, asked.hypervisors());
    let [(_, pid)] = host.hypervisors()[..] else { anyhow::bail!("hypervisors: {:?}", host.hypervisors()) };
    for (flag, value) in [("-smp", "2"), ("-m", "192")] {
        let given = hypervisor_argument(pid, flag)?;
        ensure!(given == value, "the hypervisor was given {flag} {given}");
    }
    // "muster: linux RELEASE, N cpu, N MiB, boot ID", by the guest's own count.
    let counted = wait_until(PATIENCE, "the guest has greeted and says what it has", || {
        let output = follow.output();
        ensure!(output.contains(&greeting(host)), "no greeting: {output}");
        let line = output.lines().find(|line| line.starts_with("muster: linux ")).map(str::to_owned);
        line.with_context(|| output.clone())
    })?;
    let count = |unit: &str| counted.split(", ").find_map(|part| part.strip_suffix(unit)?.parse::<u64>().ok());
    ensure!(count(" cpu") == Some(2), "the guest counts otherwise: {counted}");
    let memory_mib = count(" MiB");
    ensure!(
        memory_mib.is_some_and(|mib| (192 - GUEST_OVERHEAD_MIB..=192).contains(&mib)),
        "of 192 MiB the guest has {memory_mib:?}: {counted}"
    );
    Ok(())
}

/// `vm list` and `vm inspect`, for people and for programs.
fn ensure_shown(asked: &Node, host: &Node) -> anyhow::Result<()> {
    let list = said(asked, &["vm", "list"])?;
    let row: Vec<&str> = list.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(list.starts_with("VM ") && row.starts_with(&["web1", "Running", &host.name]), "the list is\n{list}");
    let record = said(asked, &["vm", "inspect", "web1"])?;
    let field = |name: &str| record.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let expected = [("name ", "web1"), ("phase ", "Running"), ("pinned to ", &host.name), ("cpus ", "2")];
    for (name, value) in expected {
        ensure!(field(name) == Some(value), "{name}is not {value} in\n{record}");
    }

    let listed = asked.cli_json(&["vm", "list"])?;
    let mut inspected = asked.cli_json(&["vm", "inspect", "web1"])?;
    ensure!(inspected["phase"] == "Running" && inspected["node"] == host.name.as_str(), "it is {inspected}");
    let mut vms = listed["vms"].as_array().cloned().unwrap_or_default();
    // Both are the same, but for the time between the two questions.
    for vm in vms.iter_mut().chain([&mut inspected]) {
        for clock in ["age_ms", "phase_ms"] {
            ensure!(vm[clock].take().is_u64(), "no {clock} in {vm}");
        }
    }
    ensure!(vms == [inspected.clone()], "the list says {vms:?}, alone it is {inspected}");
    Ok(())
}

/// Stops and starts `web1`; who follows its console sees it go and come.
fn stop_and_start(asked: &Node, follow: &mut Process) -> anyhow::Result<()> {
    let stopping = said(asked, &["vm", "stop", "web1"])?;
    ensure!(stopping.starts_with("vm web1 will stop"), "stop says {stopping:?}");
    said(asked, &["vm", "wait", "web1", "--until", "stopped"])?;
    wait_until(PATIENCE, "the guest's last words are followed", || {
        follow.ensure_running()?;
        ensure!(follow.output().contains("muster: powering off"), "{}", follow.output());
        Ok(())
    })?;
    let again = asked.cli_json(&["vm", "stop", "web1"])?;
    ensure!(again["phase"] == "Stopped" && again["desired"] == "stopped", "stopped once more it is {again}");

    let started = asked.cli_json(&["vm", "start", "web1"])?;
    ensure!(started["desired"] == "running", "started it is {started}");
    let shown = said(asked, &["vm", "wait", "web1"])?;
    ensure!(shown.lines().last().is_some_and(|line| line.contains("Running on ")), "waiting shows\n{shown}");
    let vm = asked.cli_json(&["vm", "inspect", "web1"])?;
    ensure!(vm["phase"] == "Running" && vm["incarnation"] == 2, "started again it is {vm}");
    wait_until(PATIENCE, "the second greeting is followed", || {
        follow.ensure_running()?;
        let output = follow.output();
        let (_, after) = output.split_once("muster: powering off").context("it begins elsewhere")?;
        ensure!(after.contains("hello from web1 on "), "{output}");
        Ok(())
    })
}

fn delete(asked: &Node) -> anyhow::Result<()> {
    let deleted = asked.cli_json(&["vm", "delete", "web1"])?;
    ensure!(deleted["name"] == "web1" && deleted["gone"].is_boolean(), "delete says {deleted}");
    let shown = said(asked, &["vm", "wait", "web1", "--until", "gone"])?;
    ensure!(shown.lines().last().is_some_and(|line| line.ends_with(" gone")), "waiting shows\n{shown}");
    ensure!(asked.cli_json(&["vm", "list"])? == json!({ "vms": [] }), "it is in the list still");
    let missing = asked.cli(&["vm", "inspect", "web1"])?;
    ensure!(missing.status.code() == Some(1), "it is shown still: {}", missing.text());
    Ok(())
}

/// One who followed with `--output json` has had whole lines, and is told that there will be no more.
fn ensure_cut_off(follow: &mut Process, host: &Node) -> anyhow::Result<()> {
    let ended = follow.wait(PATIENCE)?;
    ensure!(ended.status.code() == Some(1), "it ended with {}: {}", ended.status, ended.text());
    let lines = String::from_utf8(ended.stdout)?;
    let lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    for (number, line) in lines.iter().enumerate() {
        ensure!(line["offset"] == number && line["timestamp_ms"].is_i64() && line["line"].is_string(), "{line}");
    }
    let greetings = lines.iter().filter(|line| line["line"] == greeting(host).trim_end()).count();
    ensure!(greetings == 2, "{greetings} greetings among {lines:?}");
    let failure: Value = serde_json::from_slice(&ended.stderr)?;
    let error = &failure["error"];
    let names_a_way = error["hint"].as_str().is_some_and(|hint| hint.contains("--api"));
    ensure!(error["code"] == "shutting_down" && names_a_way, "the end is told as {failure}");
    Ok(())
}

#[test]
fn tokens_are_made_listed_and_revoked_by_commands() {
    let _machine = machine_shared();
    Folder::scenario("token-verbs", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &cluster.nodes[0];
        ensure!(said(node, &["token", "list"])?.contains("no tokens: make one with `muster token create`"));
        // For people: the token alone on the first line, and what to do with it.
        let shown = said(node, &["token", "create"])?;
        let first = shown.lines().next().unwrap_or_default().to_owned();
        ensure!(first.starts_with("muster1_") && shown.contains(&format!("\n  muster join {first}\n")), "{shown}");
        let made = node.cli_json(&["token", "create", "--uses", "3", "--expires-in-minutes", "5"])?;
        let second = made["token"].as_str().context("no token")?;
        let command = made["command"].as_str().unwrap_or_default();
        let whole = made["id"].is_u64() && made["uses"] == 3 && made["expires_ms"].is_u64() && command.contains(second);
        ensure!(whole && second != first, "the second token is {made}");

        cluster.add()?.start(&Start::Join(first.clone()))?;
        cluster.wait_ready(PATIENCE)?;
        // Any node knows them, and none knows their secrets.
        let other = &cluster.nodes[1];
        let listed = other.cli_json(&["token", "list"])?;
        let tokens = listed["tokens"].as_array().context("no list")?;
        let [used, usable] = &tokens[..] else { anyhow::bail!("the tokens are {tokens:?}") };
        ensure!(used["state"] == "used" && used["uses_left"] == 0, "after its use it is {used}");
        ensure!(usable["id"] == made["id"] && usable["state"] == "usable" && usable["uses_left"] == 3, "{usable}");
        let left = usable["expires_in_ms"].as_u64();
        ensure!(left.is_some_and(|left| (1..=300_000).contains(&left)), "of five minutes {left:?} ms are left");
        let table = said(other, &["token", "list"])?;
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        let id = made["id"].to_string();
        ensure!(rows.len() == 3 && rows[2].starts_with(&[&id, "usable", "3"]), "the list is\n{table}");
        ensure!(!table.contains("muster1_") && !listed.to_string().contains("muster1_"), "secrets: {table}\n{listed}");

        let revoked = said(other, &["token", "revoke", &id])?;
        ensure!(revoked == format!("join token {id} is revoked\n"), "revoke says {revoked:?}");
        let stranger = Node::new("stranger", folder.path())?;
        let refused = stranger.start_again(&Start::Join(second.to_owned()))?;
        ensure!(!refused.status.success() && refused.text().contains("was revoked"), "{}", refused.text());
        let id = used["id"].to_string();
        ensure!(other.cli_json(&["token", "revoke", &id])? == json!({ "id": used["id"] }), "it is not revoked");
        ensure!(other.cli_json(&["token", "list"])? == json!({ "tokens": [] }), "tokens are left");
        Ok(())
    });
}

#[test]
fn commands_that_fail_say_what_to_do_and_end_with_1_or_if_misused_with_2() {
    let _machine = machine_shared();
    Folder::scenario("failures", |folder| {
        let mut cluster = Cluster::prepare(folder, 1)?;
        // No guest is needed: without a hypervisor a VM waits.
        cluster.nodes[0].environment.push(("PATH".into(), folder.path().join("nowhere").display().to_string()));
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let node = &cluster.nodes[0];
        said(node, &["vm", "create", "web1"])?;
        for verb in ["inspect", "stop", "start", "delete", "logs", "wait"] {
            ensure_fails(node, &["vm", verb, "nobody"], "not_found", &["no VM \"nobody\"", "`muster vm list`"])?;
            ensure_fails(node, &["vm", verb, "web2"], "not_found", &["no VM \"web2\"", "did you mean `web1`?"])?;
        }
        ensure_fails(node, &["vm", "logs", "-f", "nobody"], "not_found", &["no VM \"nobody\"", "`muster vm list`"])?;
        ensure_fails(node, &["vm", "create", "web1"], "already_exists", &["`muster vm inspect web1`"])?;
        let nowhere = ["vm", "create", "web2", "--node", "mars"];
        ensure_fails(node, &nowhere, "not_found", &["\"mars\"", &format!("the nodes are {}", node.name)])?;
        ensure_fails(node, &["token", "revoke", "77"], "not_found", &["no join token 77", "`muster token list`"])?;

        let misuses: [(&[&str], &str); 9] = [
            (&["vm"], "create"),
            (&["vm", "create"], "NAME"),
            (&["vm", "inspect"], "NAME"),
            (&["vm", "create", "web2", "--cpus", "many"], "cpus"),
            (&["vm", "create", "web2", "--cpus", "0"], "cpus"),
            (&["vm", "create", "web2", "--memory-mib", "1"], "memory_mib"),
            (&["vm", "logs", "web1", "--tail", "-1"], "tail"),
            (&["token", "create", "--uses", "0"], "uses"),
            (&["token", "revoke", "first"], "id"),
        ];
        for (words, named) in misuses {
            let ended = node.cli(words)?;
            let line = words.join(" ");
            ensure!(ended.status.code() == Some(2), "`muster {line}` ended with {}: {}", ended.status, ended.text());
            let said = String::from_utf8_lossy(&ended.stderr).to_lowercase();
            ensure!(said.contains(&named.to_lowercase()), "`muster {line}` does not name {named}:\n{said}");
            ensure!(ended.stdout.is_empty(), "`muster {line}` printed {}", ended.text());
        }
        // A wait shows what it saw, and then fails.
        let late = node.cli(&["vm", "wait", "web1", "--timeout-s", "1"])?;
        let (seen, told) = (String::from_utf8_lossy(&late.stdout), String::from_utf8_lossy(&late.stderr));
        let both = seen.contains("Pending: no node offers qemu") && told.contains("after 1 s VM web1 is Pending");
        ensure!(late.status.code() == Some(1) && both, "a wait in vain ended with {}: {}", late.status, late.text());
        let vms = node.cli_json(&["vm", "list"])?;
        ensure!(vms["vms"].as_array().is_some_and(|vms| vms.len() == 1), "something was made by mistake: {vms}");

        let mut nobody = Node::new("nobody", folder.path())?;
        nobody.api.set_port(free_port()?);
        ensure_fails(&nobody, &["vm", "list"], "unreachable", &["no node answers at", "`muster up`", "--api"])
    });
}

/// The command ends with 1, nothing on standard output, and the parts in what it says: to people, and to programs under
/// `code`.
fn ensure_fails(node: &Node, words: &[&str], code: &str, parts: &[&str]) -> anyhow::Result<()> {
    let line = words.join(" ");
    let ended = node.cli(words)?;
    let said = String::from_utf8_lossy(&ended.stderr);
    let told = ended.status.code() == Some(1) && ended.stdout.is_empty() && said.starts_with("error: ");
    ensure!(told, "`muster {line}` ended with {}: {}", ended.status, ended.text());
    ensure!(parts.iter().all(|part| said.contains(part)), "`muster {line}` does not say {parts:?}:\n{said}");

    let words: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
    let ended = node.cli(&words)?;
    let told = ended.status.code() == Some(1) && ended.stdout.is_empty();
    ensure!(told, "`muster {line}` as JSON ended with {}: {}", ended.status, ended.text());
    let failure: Value = serde_json::from_slice(&ended.stderr).with_context(|| ended.text())?;
    let error = &failure["error"];
    let text = [&error["message"], &error["hint"]].map(|text| text.as_str().unwrap_or_default()).join("\n");
    let same = error["code"] == code && parts.iter().all(|part| text.contains(part));
    ensure!(same, "`muster {line}` fails not with {code} and {parts:?}, but with {failure}");
    Ok(())
}

/// What a command that succeeds prints for people.
fn said(node: &Node, words: &[&str]) -> anyhow::Result<String> {
    let ended = node.cli(words)?;
    let line = words.join(" ");
    ensure!(ended.status.code() == Some(0), "`muster {line}` ended with {}: {}", ended.status, ended.text());
    ensure!(ended.stderr.is_empty(), "`muster {line}` complains: {}", ended.text());
    String::from_utf8(ended.stdout).with_context(|| format!("`muster {line}` prints no text"))
}

/// The items that a command prints for programs, one a line.
fn json_values(node: &Node, words: &[&str]) -> anyhow::Result<Vec<Value>> {
    let words: Vec<&str> = words.iter().copied().chain(["--output", "json"]).collect();
    let lines = said(node, &words)?;
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}
