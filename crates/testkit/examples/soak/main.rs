//! `make soak-consensus`: whether consensus and formation can be shaken, on real processes, in about an hour and a half. Each
//! scenario measures against limits; a table at the end says how far each was kept, and the program fails if one was not.
//!
//! ```text
//! cargo run --release -p testkit --example soak -- [SCENARIO...] [--cold-starts N] [--kills N] ...
//! ```
//!
//! Without names, all scenarios run. `--help` lists them, and how often each does what.

mod cold;
mod counts;
mod dataset;
mod figures;
mod groups;
mod handover;
mod idle;
mod kills;
mod look;
mod machines;
mod options;
mod partitions;
mod rebuild;
mod rolling;
mod snapshot;
mod starved;
mod steady;

use std::process::ExitCode;

use testkit::muster_binary;

use figures::Figures;
use options::Options;

type Scenario = fn(&Options, &mut Figures);

const SCENARIOS: [(&str, &str, Scenario); 12] = [
    ("cold", "three nodes form a cluster, over and over", cold::run),
    ("steady", "saturating load, and no election", steady::run),
    ("kills", "kill -9 of the leader under load", kills::run),
    ("handover", "the leader hands over as planned, under load", handover::run),
    ("rolling", "all nodes are restarted in turn, under load", rolling::run),
    ("partitions", "nodes that cannot reach each other, in a network of their own", partitions::run),
    ("idle", "many partitions that nobody uses", idle::run),
    ("snapshot", "a node is a whole data set behind, while others are written to", snapshot::run),
    ("resume", "a node is cut off for a moment while it pulls a data set", snapshot::resume::run),
    ("rebuild", "a node dies for good, and what it held is made anew, under load", rebuild::run),
    ("starved", "no core to spare, and no election", starved::run),
    ("groups", "as many partitions as a cluster is meant to hold, and nodes that die", groups::run),
];

fn main() -> ExitCode {
    match soak() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every limit was kept.
fn soak() -> anyhow::Result<bool> {
    let names = SCENARIOS.map(|(name, says, _)| (name, says));
    let Some(options) = Options::read(std::env::args().skip(1), &names)? else { return Ok(true) };
    let _ = muster_binary()?;
    let mut figures = Figures::default();
    for (name, says, run) in SCENARIOS {
        if options.wants(name) {
            eprintln!("== {name}: {says}");
            // The others go on: what one finds does not depend on another.
            run(&options, &mut figures);
        }
    }
    Ok(figures.show())
}
