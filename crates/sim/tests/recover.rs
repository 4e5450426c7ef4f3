//! The majority is gone for good, and one survivor is made the whole cluster: what it held stays, and the cluster goes on.

mod common;

use base::GroupId;
use common::LoneNode;
use engine::Event;
use multiraft::Role;
use sim::{FaultSet, Forgotten, SimConfig, Stats, commit, recover_in_the_middle};

fn check(nodes: usize, first: u64, seeds: u64, faults: &str) -> Stats {
    let mut all = Stats::default();
    for seed in first..first + seeds {
        let faults = faults.parse::<FaultSet>().expect("faults");
        let cfg = SimConfig { nodes, seconds: 5, faults, ..SimConfig::new(seed) };
        match recover_in_the_middle(&cfg) {
            Ok(lives) => {
                all.add(&lives.stats);
                let verdict = lives.forgotten.map_or(Ok(()), comes_back);
                verdict.unwrap_or_else(|why| panic!("seed {seed} of {nodes} nodes with {}: {why}", cfg.faults));
            }
            Err(violation) => panic!(
                "seed {seed} of {nodes} nodes with {faults} at commit {}: {violation}",
                commit(),
                faults = cfg.faults
            ),
        }
    }
    all
}

/// A machine of the first half comes back as it was. Whoever it calls refuses it, again and again, and nobody else is there:
/// it ends, and says why, unless it is a majority of its own (the others had not come to vote yet).
fn comes_back(Forgotten { config, disk, refused_by }: Forgotten) -> Result<(), String> {
    let mut node = LoneNode::run(config, disk);
    for _ in 0..40 {
        node.pass(1_000);
        node.tell(Event::Superseded { by: refused_by });
    }
    let leads = node.core.raft_status(GroupId::META).is_some_and(|status| status.role == Role::Leader);
    match node.stopped {
        None if leads => Ok(()),
        None => Err("who was refused by all waits for a majority that is gone".into()),
        Some(why) if why.contains("the cluster was recovered without this node") => Ok(()),
        Some(why) => Err(format!("who was refused by all ended because of something else: {why}")),
    }
}

/// In both halves; none is left out. So of the machines of the first half one may be lost, have left, been replaced or stopped
/// for good when the others go at once, and members may be of two versions.
const FAULTS: &str = "all";

#[test]
fn a_survivor_becomes_the_cluster_and_others_join_it() {
    let stats = check(3, 1, 40, FAULTS);
    assert!(stats.records_acknowledged > 500 && stats.elections > 40, "hardly any load afterwards:\n{stats}");
    assert!(stats.leases_outlived > 0, "nobody held a lease through a recovery:\n{stats}");
    check(5, 100, 10, FAULTS);
    check(1, 200, 4, FAULTS);
}
