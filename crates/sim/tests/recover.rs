//! The majority is gone for good, and one survivor is made the whole cluster: what it held stays, and the cluster goes on.

use sim::{FaultSet, SimConfig, Stats, commit, recover_in_the_middle};

fn check(nodes: usize, first: u64, seeds: u64, faults: &str) -> Stats {
    let mut all = Stats::default();
    for seed in first..first + seeds {
        let faults = faults.parse::<FaultSet>().expect("faults");
        let cfg = SimConfig { nodes, seconds: 5, faults, ..SimConfig::new(seed) };
        match recover_in_the_middle(&cfg) {
            Ok(stats) => all.add(&stats),
            Err(violation) => panic!(
                "seed {seed} of {nodes} nodes with {faults} at commit {}: {violation}",
                commit(),
                faults = cfg.faults
            ),
        }
    }
    all
}

/// Machines are lost for good at once, in the middle: not one by one as well.
const FAULTS: &str = "loss,delay,duplicate,reset,flap,partition,crash,kill,power-loss,pause,slow-disk,stuck-disk,vm,transfer,\
                      wall-jump,join,drain";

#[test]
fn a_survivor_becomes_the_cluster_and_others_join_it() {
    let stats = check(3, 1, 40, FAULTS);
    assert!(stats.records_acknowledged > 500 && stats.elections > 40, "hardly any load afterwards:\n{stats}");
    check(5, 100, 10, FAULTS);
    check(1, 200, 4, FAULTS);
}
