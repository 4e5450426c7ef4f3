//! Makes a failing run small: fewer nodes, less time, fewer faults, fewer clients, as long as the same invariant breaks.
//! Faults are left out by delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input",
//! 2002): halves first, then ever smaller parts. Each try is a whole run, so the number of tries is bounded.

use std::collections::BTreeSet;

use crate::check::Violation;
use crate::config::SimConfig;
use crate::run::run;
use crate::schedule::{Injection, Schedule};

/// Tries that a report spends on a failure.
pub const TRIES_MAX: usize = 300;

/// A small run that fails like a large one.
#[derive(Clone, Debug)]
pub struct Shrunk {
    pub cfg: SimConfig,
    pub violation: Violation,
    /// The faults that are left, of so many.
    pub faults: Vec<Injection>,
    pub faults_before: usize,
    /// Runs that it took.
    pub tries: usize,
}

struct Search {
    /// The smallest that failed so far.
    best: SimConfig,
    violation: Violation,
    tries: usize,
    tries_max: usize,
}

/// Shrinks the run `cfg`, which ended in `violation`, with at most `tries_max` runs.
#[must_use]
pub fn shrink(cfg: &SimConfig, violation: &Violation, tries_max: usize) -> Shrunk {
    let faults_before = Schedule::new(cfg).injections.len();
    let best = SimConfig { trace: false, ..cfg.clone() };
    let mut search = Search { best, violation: violation.clone(), tries: 0, tries_max };
    search.nodes();
    search.seconds();
    search.faults();
    search.clients();
    search.seconds();
    let Search { best, violation, tries, .. } = search;
    Shrunk { faults: Schedule::new(&best).injections, faults_before, cfg: best, violation, tries }
}

impl Search {
    /// Whether this run breaks the same invariant; then it is the best so far.
    fn fails(&mut self, cfg: SimConfig) -> bool {
        if self.tries >= self.tries_max || cfg == self.best {
            return false;
        }
        self.tries += 1;
        match run(&cfg).violation {
            Some(violation) if violation.invariant == self.violation.invariant => {
                (self.best, self.violation) = (cfg, violation);
                true
            }
            _ => false,
        }
    }

    fn nodes(&mut self) {
        for nodes in 1..self.best.nodes {
            if self.fails(SimConfig { nodes, ..self.best.clone() }) {
                return;
            }
        }
    }

    fn seconds(&mut self) {
        let needed = self.violation.at / 1_000_000_000 + 1;
        if needed < self.best.seconds {
            self.fails(SimConfig { seconds: needed, ..self.best.clone() });
        }
        while self.best.seconds > 1 && self.fails(SimConfig { seconds: self.best.seconds / 2, ..self.best.clone() }) {}
    }

    fn faults(&mut self) {
        let all = Schedule::new(&SimConfig { only: None, ..self.best.clone() }).injections.len();
        let mut kept: Vec<usize> = match &self.best.only {
            Some(only) => only.iter().copied().filter(|place| *place < all).collect(),
            None => (0..all).collect(),
        };
        let mut parts = 1;
        while !kept.is_empty() {
            let size = kept.len().div_ceil(parts);
            let smaller = (0..kept.len()).step_by(size).find_map(|start| {
                let rest: Vec<usize> = kept
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| !(start..start + size).contains(i))
                    .map(|(_, p)| *p)
                    .collect();
                let only: BTreeSet<usize> = rest.iter().copied().collect();
                self.fails(SimConfig { only: Some(only), ..self.best.clone() }).then_some(rest)
            });
            match smaller {
                Some(rest) => {
                    kept = rest;
                    parts = parts.saturating_sub(1).max(1);
                }
                None if size == 1 => break,
                None => parts = (parts * 2).min(kept.len()),
            }
        }
    }

    fn clients(&mut self) {
        self.fails(SimConfig { locks: false, ..self.best.clone() });
        for clients in 0..self.best.clients.unwrap_or(self.best.nodes * 2) {
            if self.fails(SimConfig { clients: Some(clients), ..self.best.clone() }) {
                return;
            }
        }
    }
}
