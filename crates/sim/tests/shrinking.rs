//! A failure is made small before it is reported, and what is reported fails the same way.

use std::process::Command;

use sim::{FaultSet, Mistake, SimConfig, run, shrink};

/// A run of 8 seconds that fails, with the seed that shows the mistake first.
fn failing(plant: &str) -> (SimConfig, sim::Violation) {
    let plant: Mistake = plant.parse().expect("a mistake");
    (1..100)
        .find_map(|seed| {
            let cfg = SimConfig { seconds: 8, plant: Some(plant), ..SimConfig::new(seed) };
            run(&cfg).violation.map(|violation| (cfg, violation))
        })
        .expect("the mistake shows in 100 seeds")
}

#[test]
fn a_failure_shrinks_to_what_it_needs_and_still_fails() {
    // Needs no fault at all, and hardly any time.
    let (cfg, violation) = failing("flipped-entries");
    let small = shrink(&cfg, &violation, 100);
    assert!(small.faults.is_empty() && small.faults_before > 0, "{:?} of {}", small.faults, small.faults_before);
    assert!(small.cfg.seconds < cfg.seconds, "{} s", small.cfg.seconds);
    assert!(small.tries <= 100);
    let again = run(&small.cfg).violation.expect("fails again");
    assert_eq!(again, small.violation);
    assert_eq!(again.invariant, violation.invariant);
}

#[test]
fn a_failure_that_needs_a_fault_keeps_it() {
    let (cfg, violation) = failing("amnesiac-node");
    let small = shrink(&cfg, &violation, 200);
    assert!(!small.faults.is_empty() && small.faults.len() < 4, "{:?}", small.faults);
}

#[test]
fn the_command_of_a_report_reproduces_it_and_the_timeline_shows_it() {
    let (cfg, violation) = failing("flipped-entries");
    let small = shrink(&cfg, &violation, 60);
    let command = sim::replay_command(&small.cfg);
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_muster-sim")).args(&words).arg("--timeline").output();
    let output = output.expect("muster-sim starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{command}: {err}");
    assert!(err.contains(&small.violation.to_string()), "{err}");
    assert!(out.contains("n0") && out.contains("leads g0, term 2") && out.contains("VIOLATION"), "{out}");
}

#[test]
fn a_run_that_does_not_fail_is_not_shrunk() {
    let cfg = SimConfig { seconds: 2, faults: FaultSet::none(), ..SimConfig::new(1) };
    assert_eq!(run(&cfg).violation, None);
    let output = Command::new(env!("CARGO_BIN_EXE_muster-sim"))
        .args(["shrink", "--seconds", "2", "--faults", "none"])
        .output()
        .expect("muster-sim starts");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("nothing to shrink"));
}
