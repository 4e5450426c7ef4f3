//! How many nodes the cluster can lose and go on.

use std::collections::{BTreeMap, BTreeSet};

use base::NodeId;

use crate::common::count;

/// The voters of one group, by node.
pub(crate) struct Voters<'a> {
    /// Such as `__meta`.
    pub name: &'a str,
    pub nodes: Vec<NodeId>,
}

/// One line: what can be lost, or what is missing already. `alive` are the nodes that answer and are ready; `zones` those
/// of the nodes that have one.
pub(crate) fn describe(
    nodes: usize,
    alive: &BTreeSet<NodeId>,
    zones: &BTreeMap<NodeId, &str>,
    groups: &[Voters<'_>],
) -> String {
    let mut least: Option<(usize, &Voters<'_>)> = None;
    for group in groups.iter().filter(|group| !group.nodes.is_empty()) {
        let majority = group.nodes.len() / 2 + 1;
        let answering = group.nodes.iter().filter(|node| alive.contains(node)).count();
        let Some(spare) = answering.checked_sub(majority) else {
            return format!(
                "no majority for {}: {answering} of {} answer, {majority} are needed; its writes wait",
                group.name,
                count(group.nodes.len(), "voter")
            );
        };
        if least.is_none_or(|(other, _)| spare < other) {
            least = Some((spare, group));
        }
    }
    match least {
        None => "fault tolerance unknown: no node says who votes".into(),
        Some((0, _)) if nodes <= 2 => format!("no fault tolerance: {}", count(nodes, "node")),
        Some((0, group)) => {
            let voters = count(group.nodes.len(), "voter");
            let answering = group.nodes.iter().filter(|node| alive.contains(node)).count();
            if answering == group.nodes.len() {
                format!("no fault tolerance: {} has {voters}", group.name)
            } else {
                format!("no further fault tolerance: {answering} of {voters} of {} answer", group.name)
            }
        }
        Some((spare, _)) => format!("survives the loss of {}{}", count(spare, "node"), of_zones(alive, zones, groups)),
    }
}

/// What of whole zones: each can be lost, or one cannot because of a group that has its majority there.
fn of_zones(alive: &BTreeSet<NodeId>, zones: &BTreeMap<NodeId, &str>, groups: &[Voters<'_>]) -> String {
    let fatal = zones.values().collect::<BTreeSet<_>>().into_iter().find_map(|zone| {
        let outside = |node: &&NodeId| alive.contains(node) && zones.get(node) != Some(zone);
        let needs = |group: &&Voters<'_>| group.nodes.iter().filter(outside).count() < group.nodes.len() / 2 + 1;
        groups.iter().filter(|group| !group.nodes.is_empty()).find(needs).map(|group| (zone, group))
    });
    match fatal {
        _ if zones.is_empty() => String::new(),
        None => ", and of any one zone".into(),
        Some((zone, group)) => format!(", but not of zone {zone}, where the majority of {} is", group.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nodes: usize, alive: &[u64], groups: &[(&str, &[u64])], expect: &str) {
        check_zones(nodes, alive, &[], groups, expect);
    }

    fn check_zones(nodes: usize, alive: &[u64], zones: &[&'static str], groups: &[(&str, &[u64])], expect: &str) {
        let zones = (1..).map(NodeId).zip(zones.iter().copied()).filter(|(_, zone)| !zone.is_empty()).collect();
        let alive = alive.iter().copied().map(NodeId).collect();
        let groups: Vec<_> = groups
            .iter()
            .map(|(name, nodes)| Voters { name, nodes: nodes.iter().copied().map(NodeId).collect() })
            .collect();
        assert_eq!(describe(nodes, &alive, &zones, &groups), expect);
    }

    #[test]
    fn the_weakest_group_decides() {
        check(1, &[1], &[("__meta", &[1])], "no fault tolerance: 1 node");
        check(2, &[1, 2], &[("__meta", &[1, 2])], "no fault tolerance: 2 nodes");
        check(3, &[1, 2, 3], &[("__meta", &[1, 2, 3])], "survives the loss of 1 node");
        check(5, &[1, 2, 3, 4, 5], &[("__meta", &[1, 2, 3, 4, 5])], "survives the loss of 2 nodes");
        check(3, &[1, 2, 3], &[("__meta", &[1, 2, 3]), ("t/0", &[2])], "no fault tolerance: t/0 has 1 voter");
        check(3, &[1, 2], &[("__meta", &[1, 2, 3])], "no further fault tolerance: 2 of 3 voters of __meta answer");
        check(
            3,
            &[1],
            &[("__meta", &[1, 2, 3])],
            "no majority for __meta: 1 of 3 voters answer, 2 are needed; its writes wait",
        );
        check(1, &[], &[("__meta", &[])], "fault tolerance unknown: no node says who votes");
    }
    #[test]
    fn a_zone_that_holds_a_majority_is_named() {
        let meta: &[(&str, &[u64])] = &[("__meta", &[1, 2, 3])];
        let all = [1, 2, 3, 4];
        check_zones(4, &all, &["a", "b", "c", "a"], meta, "survives the loss of 1 node, and of any one zone");
        check_zones(4, &all, &["a", "", "", ""], meta, "survives the loss of 1 node, and of any one zone");
        let bad = "survives the loss of 1 node, but not of zone a, where the majority of __meta is";
        check_zones(4, &all, &["a", "a", "b", "c"], meta, bad);
        let groups: &[(&str, &[u64])] = &[("__meta", &[1, 2, 3]), ("t/0", &[1, 2, 4])];
        let bad = "survives the loss of 1 node, but not of zone c, where the majority of t/0 is";
        check_zones(4, &all, &["a", "c", "b", "c"], groups, bad);
    }
}
