//! The soak suite's `steady` in small: load that takes all there is of the machine. Nobody may be taken for dead.

use std::time::{Duration, Instant};

use anyhow::ensure;
use testkit::{Cluster, Folder, Load, LoadPlan, wait_until};

use crate::support::{PATIENCE, machine_alone, wait_home, wait_tolerant, wait_voters};

const LOADED: Duration = Duration::from_secs(10);

#[test]
fn a_cluster_without_a_core_to_spare_elects_nobody() {
    let _machine = machine_alone();
    Folder::scenario("saturated", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let load = Load::start(&cluster, LoadPlan::saturating())?;
        wait_voters(&cluster.nodes[0], "load", 3)?;
        wait_home(&cluster.nodes[0].kcat(), &["load"])?;
        let (before, began) = (cluster.nodes[0].terms()?, Instant::now());
        wait_until(LOADED + PATIENCE, "the time is over", || {
            ensure!(began.elapsed() >= LOADED, "{:?} passed", began.elapsed());
            Ok(())
        })?;
        let after = cluster.nodes[0].terms()?;
        let outcome = load.stop()?;
        ensure!(before == after, "terms rose under load: {before:?}, then {after:?}");
        ensure!(outcome.failures().is_empty(), "{:?}", outcome.failures());
        let (keys, records) = outcome.acknowledged();
        ensure!(keys > 500 && records > 50_000, "that was no load: {keys} keys and {records} records");
        outcome.verify(&cluster)
    });
}
