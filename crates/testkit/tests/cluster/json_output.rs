//! `--output json` of what starts processes, and of command lines that are wrong.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::{Cluster, Finished, Folder, Process, Start, muster_binary, wait_until};

use crate::support::{PATIENCE, machine_shared};

#[test]
fn whatever_starts_processes_tells_programs_what_it_came_to() {
    let _machine = machine_shared();
    Folder::scenario("json-output", |folder| {
        let mut node = Cluster::prepare(folder, 1)?.nodes.remove(0);
        node.arguments = vec!["--output".into(), "json".into()];
        node.start(&Start::Up)?;
        node.wait_ready(PATIENCE)?;
        let ready = first_event(node.process()?)?;
        ensure!(ready["event"] == "ready" && ready["name"] == node.name.as_str(), "it says {ready}");
        ensure!(ready["kafka"] == node.kafka.to_string() && ready["api"] == node.api.to_string(), "it says {ready}");
        ensure!(ready["pid"] == node.pid().context("it runs")?, "it says {ready}");

        // A start that fails tells why in the same form.
        let mut second = Cluster::prepare(folder, 1)?.nodes.remove(0);
        second.name = "second".into();
        second.data_dir = node.data_dir.clone();
        second.arguments.clone_from(&node.arguments);
        let refused = failure(&second.start_again(&Start::Up)?, 1)?;
        let told = refused["message"].as_str().unwrap_or_default();
        ensure!(told.contains(&node.data_dir.display().to_string()), "it says {refused}");
        ensure!(refused["code"] == "failed_precondition", "it says {refused}");
        Ok(())
    });
}

#[test]
fn misuse_is_told_as_the_command_line_wants_it() {
    let _machine = machine_shared();
    Folder::scenario("json-misuse", |folder| {
        for (words, expect) in [
            (&["vn", "list", "--output", "json"][..], "'vm'"),
            (&["-o", "json", "vm", "create", "web", "--cpu", "2"], "--cpus"),
            (&["vm", "create", "--output=json"], "--help"),
        ] {
            let error = failure(&muster(words, folder.path())?, 2)?;
            ensure!(error["code"] == "invalid_argument", "{words:?}: {error}");
            ensure!(error["hint"].as_str().unwrap_or_default().contains(expect), "{words:?}: {error}");
        }
        let plain = muster(&["vn", "list"], folder.path())?;
        ensure!(plain.status.code() == Some(2) && plain.text().starts_with("error: "), "people get {}", plain.text());
        let help = muster(&["--help", "--output", "json"], folder.path())?;
        ensure!(help.status.success() && help.text().contains("Usage:"), "help is {}", help.text());
        Ok(())
    });
}

/// The first line that a process printed, as JSON. It may print it a moment after it is ready.
fn first_event(process: &mut Process) -> anyhow::Result<Value> {
    wait_until(PATIENCE, "it has printed a line of JSON", || {
        let said = process.output();
        let line = said.lines().next().context("it has said nothing")?;
        serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
    })
}

fn muster(words: &[&str], folder: &Path) -> anyhow::Result<Finished> {
    Process::start(Command::new(muster_binary()?).args(words), &words.join("_"), folder)?.wait(PATIENCE)
}

/// The error that ended a process with `code`: the last line of its standard error.
fn failure(ended: &Finished, code: i32) -> anyhow::Result<Value> {
    ensure!(ended.status.code() == Some(code), "it ended with {}:\n{}", ended.status, ended.text());
    let said = String::from_utf8_lossy(&ended.stderr);
    let line = said.lines().last().context("it said nothing")?;
    let told: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    Ok(told["error"].clone())
}
