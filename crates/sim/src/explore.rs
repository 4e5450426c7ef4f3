//! Runs for as long as it is given, with ever other clusters, lengths and faults, and looks for rare states: a batch that
//! reached what few had reached is tried again with other seeds, longer and larger.

use std::collections::BTreeMap;

use base::simulation::Mark;
use base::{SplitMix64, hash64};

use crate::config::{Fault, FaultSet, SimConfig};
use crate::run::{Sweep, sweep};
use crate::stats::Stats;

/// Seeds of one batch.
const BATCH: u64 = 16;
/// Batches worth another try that are remembered.
const PROMISING_MAX: usize = 12;
/// A state reached in no more batches than this is rare.
const RARE_BATCHES: u64 = 3;

/// A search that goes on from batch to batch.
pub struct Explorer {
    random: SplitMix64,
    /// In how many batches each state was reached.
    batches: BTreeMap<Mark, u64>,
    promising: Vec<SimConfig>,
    pub stats: Stats,
    pub runs: u64,
}

impl Explorer {
    /// A search that begins at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let random = SplitMix64::new(hash64(&[seed, 60]));
        Explorer { random, batches: BTreeMap::new(), promising: Vec::new(), stats: Stats::default(), runs: 0 }
    }

    /// Runs the next batch, and says with which configuration and what came of it.
    pub fn batch(&mut self, jobs: usize) -> (SimConfig, Sweep) {
        let cfg = self.next();
        let result = sweep(&cfg, BATCH, jobs, true);
        self.stats.add(&result.stats);
        self.runs += BATCH;
        let mut rare = false;
        for mark in result.stats.marks.keys() {
            let seen = self.batches.entry(*mark).or_default();
            *seen += 1;
            rare |= *seen <= RARE_BATCHES;
        }
        if rare {
            if self.promising.len() == PROMISING_MAX {
                self.promising.remove(0);
            }
            self.promising.push(cfg.clone());
        }
        (cfg, result)
    }

    fn next(&mut self) -> SimConfig {
        let seed = self.random.next_u64() >> 16;
        let again = !self.promising.is_empty() && self.random.chance(400_000);
        if again {
            let like = self.promising[self.random.below(self.promising.len() as u64) as usize].clone();
            let seconds = (like.seconds + self.random.between(0, 20)).min(60);
            let nodes = if self.random.chance(250_000) { (like.nodes + 1).min(5) } else { like.nodes };
            return SimConfig { seed, seconds, nodes, ..like };
        }
        let nodes = [3, 3, 3, 5, 5, 4, 2, 1][self.random.below(8) as usize];
        let seconds = self.random.between(5, 40);
        SimConfig { nodes, seconds, faults: self.faults(), locks: seed.is_multiple_of(2), ..SimConfig::new(seed) }
    }

    /// All faults, or a few that then come often.
    fn faults(&mut self) -> FaultSet {
        if self.random.chance(500_000) {
            return FaultSet::all();
        }
        let count = self.random.between(2, 5);
        let one = |random: &mut SplitMix64| Fault::ALL[random.below(Fault::ALL.len() as u64) as usize].0;
        FaultSet((0..count).map(|_| one(&mut self.random)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_tries_other_clusters_and_faults_and_begins_the_same_for_one_seed() {
        let configs = |seed| {
            let mut explorer = Explorer::new(seed);
            (0..50).map(|_| explorer.next()).collect::<Vec<_>>()
        };
        let drawn = configs(1);
        assert_eq!(drawn, configs(1));
        assert_ne!(drawn, configs(2));
        let distinct =
            |of: fn(&SimConfig) -> String| drawn.iter().map(of).collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(distinct(|cfg| cfg.nodes.to_string()), 5);
        assert!(distinct(|cfg| cfg.faults.to_string()) > 10);
    }
}
