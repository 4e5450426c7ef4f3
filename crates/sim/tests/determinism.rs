//! The same seed gives the same bytes: in one process, and in two.

use std::process::Command;

use sim::{SimConfig, run};

#[test]
fn the_same_seed_gives_the_same_trace_in_one_process_and_another_seed_another_one() {
    let trace = |seed| run(&SimConfig { seconds: 5, trace: true, ..SimConfig::new(seed) }).trace;
    let (one, again, other) = (trace(7), trace(7), trace(8));
    assert!(one.lines().count() > 5_000, "{} lines are no trace", one.lines().count());
    if let Some((at, (left, right))) = one.lines().zip(again.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("line {at} differs:\n{left}\n{right}");
    }
    assert!(one == again, "one trace is longer");
    assert!(one != other, "the seed makes no difference");
}

#[test]
fn the_trace_does_not_change_the_run() {
    let stats = |trace| run(&SimConfig { seconds: 5, trace, ..SimConfig::new(9) }).stats;
    assert_eq!(stats(true), stats(false));
}

#[test]
fn two_processes_write_the_same_trace() {
    let replay = || {
        let output = Command::new(env!("CARGO_BIN_EXE_muster-sim"))
            .args(["replay", "--seed", "11", "--seconds", "4"])
            .output()
            .expect("muster-sim starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let (one, two) = (replay(), replay());
    assert!(one.len() > 100_000, "{} bytes are no trace", one.len());
    assert!(one == two, "two processes ran differently");
}

#[test]
fn the_command_line_reports_in_its_exit_code_and_refuses_nonsense() {
    let code = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_muster-sim")).args(args).output().expect("muster-sim starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(code(&["run", "--seed", "3", "--seeds", "2", "--seconds", "2", "--faults", "none"]).0, Some(0));
    let (bad, why) = code(&["run", "--faults", "crash,fire"]);
    assert!(bad == Some(2) && why.contains("fire"), "{why}");
    assert_eq!(code(&["run", "--nodes", "6"]).0, Some(2));
}
