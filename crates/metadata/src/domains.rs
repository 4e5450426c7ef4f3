//! Failure domains: what fails together. The label `zone` names a node's; a node without it is one of its own.

use std::collections::BTreeMap;

use base::NodeId;

use crate::{Metadata, NodeLifecycle, NodeRecord, PartitionRecord};

/// The label that names a node's failure domain: a rack, a room, a site; whatever loses power or network as a whole.
pub const ZONE_LABEL: &str = "zone";

/// What a node fails together with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Domain<'a> {
    /// All nodes with that label.
    Zone(&'a str),
    /// Nothing else.
    Own(NodeId),
}

impl NodeRecord {
    /// The zone that its label names.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.member.labels.get(ZONE_LABEL).map(String::as_str).filter(|zone| !zone.is_empty())
    }

    /// Its failure domain.
    #[must_use]
    pub fn domain(&self) -> Domain<'_> {
        self.zone().map_or(Domain::Own(self.member.node), Domain::Zone)
    }
}

/// `count` of the candidates, which are given in order of preference: the first ones, except where others spread strictly
/// better over the domains. So whoever comes first stays in, and what is spread well is not changed.
#[must_use]
pub fn spread<T: Copy, D: Ord + Copy>(candidates: &[(T, D)], count: usize) -> Vec<T> {
    let (mut chosen, mut others) = (candidates.to_vec(), Vec::new());
    if candidates.len() > count {
        others = chosen.split_off(count);
    }
    loop {
        let mut load: BTreeMap<D, usize> = BTreeMap::new();
        chosen.iter().for_each(|(_, domain)| *load.entry(*domain).or_default() += 1);
        let of = |domain: &D| load.get(domain).copied().unwrap_or(0);
        let most = load.values().copied().max().unwrap_or(0);
        let least = others.iter().enumerate().min_by_key(|(_, (_, domain))| of(domain));
        // One less where there is only one more elsewhere gains nothing.
        let better = least.filter(|(_, (_, domain))| most >= of(domain) + 2).map(|(at, _)| at);
        let (Some(into), Some(out)) = (better, chosen.iter().rposition(|(_, domain)| of(domain) == most)) else {
            return chosen.into_iter().map(|(candidate, _)| candidate).collect();
        };
        let (arrives, leaves) = (others.remove(into), chosen.remove(out));
        chosen.push(arrives);
        others.push(leaves);
    }
}

/// How many there are in each domain, the fullest first: of two choices the lower one is spread better.
#[must_use]
pub fn crowding<D: Ord>(domains: impl IntoIterator<Item = D>) -> Vec<usize> {
    let mut load: BTreeMap<D, usize> = BTreeMap::new();
    domains.into_iter().for_each(|domain| *load.entry(domain).or_default() += 1);
    let mut counts: Vec<usize> = load.into_values().collect();
    counts.sort_unstable_by(|one, other| other.cmp(one));
    counts
}

impl Metadata {
    /// The failure domain of a node, which need not be a member any more.
    #[must_use]
    pub fn domain_of(&self, node: NodeId) -> Domain<'_> {
        self.nodes.get(&node).map_or(Domain::Own(node), NodeRecord::domain)
    }

    /// How many of the partition's replicas that count are in a domain.
    #[must_use]
    pub fn replicas_in(&self, partition: &PartitionRecord, domain: Domain<'_>) -> usize {
        let counts = |r: &&crate::ReplicaRecord| !r.retired && self.holds(r.node) && self.domain_of(r.node) == domain;
        partition.replicas.iter().filter(counts).count()
    }

    /// Whether the partition, which has all its replicas and whose members do not change just now, is spread strictly
    /// better with one on that node in place of another one.
    #[must_use]
    pub fn spreads_better_on(&self, partition: &PartitionRecord, node: NodeId) -> bool {
        let replicas = &partition.replicas;
        let takes = self.nodes.get(&node).is_some_and(|record| record.lifecycle == NodeLifecycle::Active);
        let settled = replicas.iter().all(|r| r.voter && !r.retired && self.holds(r.node));
        if !takes || !settled || replicas.len() != self.replica_target(partition) {
            return false;
        }
        if replicas.iter().any(|r| r.node == node) {
            return false;
        }
        let most = replicas.iter().map(|r| self.replicas_in(partition, self.domain_of(r.node))).max().unwrap_or(0);
        most >= self.replicas_in(partition, self.domain_of(node)) + 2
    }

    pub(crate) fn holds(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.lifecycle.holds_replicas())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates in order of preference, by the letters of their domains; those chosen, by their places.
    fn check(domains: &str, count: usize, expect: &[usize]) {
        let candidates: Vec<_> = domains.chars().enumerate().collect();
        let mut chosen = spread(&candidates, count);
        chosen.sort_unstable();
        assert_eq!(chosen, expect, "{count} of {domains}");
        // Whatever was chosen comes first the next time, and is chosen again.
        let (first, rest): (Vec<_>, Vec<_>) = candidates.iter().copied().partition(|(at, _)| chosen.contains(at));
        let again: Vec<_> = first.into_iter().chain(rest).collect();
        let mut kept = spread(&again, count);
        kept.sort_unstable();
        assert_eq!(kept, expect, "{count} of {domains}, again");
    }

    #[test]
    fn the_first_stay_unless_others_spread_strictly_better() {
        check("abc", 3, &[0, 1, 2]);
        check("abcd", 3, &[0, 1, 2]);
        check("aab", 3, &[0, 1, 2]);
        check("aabb", 3, &[0, 1, 2]);
        check("aaab", 3, &[0, 1, 3]);
        check("aaabc", 3, &[0, 3, 4]);
        check("aaabbc", 5, &[0, 1, 3, 4, 5]);
        check("aaaabb", 5, &[0, 1, 2, 4, 5]);
        check("abaca", 3, &[0, 1, 3]);
        check("aaaaa", 3, &[0, 1, 2]);
        check("ab", 3, &[0, 1]);
        check("", 3, &[]);
        check("aabbccdd", 1, &[0]);
    }

    #[test]
    fn no_choice_is_spread_better() {
        for domains in 0..3_usize.pow(6) {
            let candidates: Vec<_> = (0..6).map(|at| (at, domains / 3_usize.pow(at as u32) % 3)).collect();
            for count in 1..=5 {
                let chosen = spread(&candidates, count);
                let score = crowding(chosen.iter().map(|at| candidates[*at].1));
                let all = (0..64_u32).filter(|set| set.count_ones() as usize == count);
                let best = all.map(|set| crowding((0..6).filter(|at| set >> at & 1 == 1).map(|at| candidates[at].1)));
                assert_eq!(Some(score), best.min(), "{count} of {candidates:?}");
                assert!(chosen.contains(&0), "the first one leads");
            }
        }
    }
}
