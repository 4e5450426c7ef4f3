//! Three nodes form a cluster from nothing: how long it takes, and how many elections.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::Cluster;

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, wait_whole};
use crate::options::Options;

/// From the start of the first process until every member sees every member ready.
const FORMED: Duration = Duration::from_secs(3);
/// Groups are born in term 1 and elect their first leader in term 2.
const TERM_MAX: f64 = 2.0;

pub fn run(options: &Options, figures: &mut Figures) {
    let (mut times, mut highest) = (Vec::new(), Vec::new());
    for round in 1..=options.cold_starts {
        in_folder("soak-cold", figures, |folder, _| {
            let mut cluster = Cluster::prepare(folder, 3)?;
            let start = Instant::now();
            cluster.form()?;
            cluster.wait_ready(PATIENCE)?;
            let took = start.elapsed();
            wait_whole(&cluster.nodes[0])?;
            let terms = cluster.nodes[0].terms()?;
            let highest_now = terms.values().max().copied().context("no groups")?;
            times.push(took);
            highest.push(highest_now as f64);
            // Its folder is kept.
            ensure!(took <= FORMED && highest_now as f64 <= TERM_MAX, "cold start {round}: {took:?}, terms {terms:?}");
            Ok(())
        });
        if round % 10 == 0 {
            eprintln!("   {round} of {} cold starts", options.cold_starts);
        }
    }
    figures.times("cold start of three nodes, formed", times, Limit::max(FORMED));
    figures.number("cold start of three nodes, highest term", &highest, "", Some(TERM_MAX));
}
