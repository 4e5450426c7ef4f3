//! What a survivor says of itself, so that survivors can be compared, and how they compare.

use std::path::Path;

use base::NodeId;
use engine::recover::{LogEnd, Survivor};
use serde::{Deserialize, Serialize};

/// What is left on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In hexadecimal digits.
    pub cluster: String,
    /// Of the cluster: raised by each recovery.
    pub incarnation: u64,
    /// Which recovery that incarnation came of, in hexadecimal digits; null if there was none.
    #[serde(default)]
    pub recovery: Option<String>,
    /// That recovery was here, and no other node has joined since: nobody is lost, and there is nothing to recover from.
    #[serde(default)]
    pub recovered: bool,
    pub node: u64,
    pub name: String,
    pub data_dir: String,
    /// The log of the cluster's own state.
    pub meta: LogReport,
    /// All members, as this node knows them.
    pub members: Vec<MemberReport>,
    pub partitions: Vec<PartitionReport>,
    /// VMs that ran on other nodes: they are stopped by a recovery.
    pub vms_elsewhere: Vec<String>,
    /// Join tokens, which a recovery revokes.
    pub tokens: usize,
}

/// How far a log goes. Whoever has the highest (last_term, last_index) knows most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    pub last_term: u64,
    pub last_index: u64,
    /// Known here to be committed; entries behind it may be, too.
    pub commit: u64,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    pub node: u64,
    pub name: String,
    /// Where other nodes reached it, `ip:port`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether it votes in the cluster's own group.
    pub voter: bool,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionReport {
    pub topic: String,
    pub partition: u32,
    /// The nodes that have replicas of it.
    pub replicas: Vec<u64>,
    /// The replica here; null: there is none, and a recovery loses the partition.
    pub here: Option<ReplicaReport>,
}

/// A replica of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    #[serde(flatten)]
    pub log: LogReport,
    /// Records in it.
    pub records: i64,
    /// If not, it may be far behind.
    pub voter: bool,
}

impl LogReport {
    fn of(end: &LogEnd) -> LogReport {
        LogReport { last_term: end.last_term, last_index: end.last_index, commit: end.commit }
    }

    fn place(&self) -> (u64, u64) {
        (self.last_term, self.last_index)
    }
}

impl Report {
    pub(super) fn of(survivor: &Survivor, data_dir: &Path) -> Report {
        let state = &survivor.metadata;
        let name = |node: NodeId| state.nodes.get(&node).map(|it| it.member.name.clone()).unwrap_or_default();
        let voters = survivor.membership.voters.iter().chain(&survivor.membership.voters_outgoing);
        let voters: Vec<_> = voters.copied().collect();
        let members = state.nodes.values().map(|record| MemberReport {
            node: record.member.node.0,
            name: record.member.name.clone(),
            addresses: record.member.address.direct.clone(),
            voter: voters.contains(&record.meta_replica),
        });
        let partitions = state.topics.values().flat_map(|topic| &topic.partitions);
        let partitions = partitions.filter_map(|group| state.partitions.get(group)).map(|record| PartitionReport {
            topic: record.topic.clone(),
            partition: record.partition,
            replicas: record.replicas.iter().map(|replica| replica.node.0).collect(),
            here: survivor.partitions.get(&record.group).map(|remains| ReplicaReport {
                log: LogReport::of(&remains.end),
                records: remains.next_offset,
                voter: remains.voter,
            }),
        });
        let losses = survivor.losses();
        let vms = losses.vms.iter().filter_map(|id| state.vms.get(id)).map(|vm| vm.name.clone());
        Report {
            cluster: state.cluster.to_string(),
            incarnation: state.cluster_incarnation.0,
            recovery: state.recovery.map(|recovery| recovery.to_string()),
            recovered: false,
            node: survivor.node.0,
            name: name(survivor.node),
            data_dir: data_dir.display().to_string(),
            meta: LogReport::of(&survivor.meta),
            members: members.collect(),
            partitions: partitions.collect(),
            vms_elsewhere: vms.collect(),
            tokens: losses.tokens,
        }
    }

    /// The other members, which a recovery removes.
    pub fn others(&self) -> impl Iterator<Item = &MemberReport> {
        self.members.iter().filter(|member| member.node != self.node)
    }

    /// The partitions that a recovery loses.
    pub fn lost(&self) -> impl Iterator<Item = &PartitionReport> {
        self.partitions.iter().filter(|partition| partition.here.is_none())
    }
}

/// What the reports of other survivors say about a recovery here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Why not here.
    pub refusals: Vec<String>,
    /// What is lost that another survivor has.
    pub warnings: Vec<String>,
}

/// Whether a recovery where `mine` comes from loses what another survivor has.
#[must_use]
pub fn compare(mine: &Report, others: &[Report]) -> Comparison {
    let mut found = Comparison::default();
    for other in others {
        let who = format!("node {} ({}, {})", other.node, other.name, other.data_dir);
        if other.cluster != mine.cluster {
            found.refusals.push(format!("{who} is of another cluster, {}", other.cluster));
            continue;
        }
        if other.incarnation > mine.incarnation {
            let incarnation = other.incarnation;
            found
                .refusals
                .push(format!("{who} was recovered already, as incarnation {incarnation}: let this node join it"));
            continue;
        }
        if let (Some(theirs), Some(here)) = (&other.recovery, &mine.recovery)
            && other.incarnation == mine.incarnation
            && theirs != here
        {
            found.refusals.push(format!(
                "{who} was recovered apart from this one (recovery {theirs}, here {here}): they are two clusters now. Keep one, \
                 wipe the other, and let it join anew"
            ));
            continue;
        }
        if other.meta.place() > mine.meta.place() {
            let ((term, index), (my_term, my_index)) = (other.meta.place(), mine.meta.place());
            found.refusals.push(format!(
                "{who} knows more: its log ends at term {term}, index {index}, the one here at term {my_term}, index \
                 {my_index}. Recover that one instead"
            ));
        }
        for partition in &other.partitions {
            let same = |it: &&PartitionReport| (&it.topic, it.partition) == (&partition.topic, partition.partition);
            let here = mine.partitions.iter().find(same).and_then(|it| it.here);
            let Some(there) = partition.here else { continue };
            if here.is_none_or(|here| there.log.place() > here.log.place()) {
                let have = here.map_or("none".to_owned(), |here| here.records.to_string());
                let (topic, number) = (&partition.topic, partition.partition);
                found
                    .warnings
                    .push(format!("{who} has {} records of {topic}/{number}, this node {have}", there.records));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(last_term: u64, last_index: u64) -> LogReport {
        LogReport { last_term, last_index, commit: 1 }
    }

    fn report(node: u64, meta: (u64, u64), partition: Option<(u64, u64)>) -> Report {
        let here = partition.map(|(term, index)| ReplicaReport { log: log(term, index), records: 7, voter: true });
        Report {
            cluster: "ab".into(),
            incarnation: 0,
            recovery: None,
            recovered: false,
            node,
            name: format!("node{node}"),
            data_dir: "/data".into(),
            meta: log(meta.0, meta.1),
            members: Vec::new(),
            partitions: vec![PartitionReport { topic: "t".into(), partition: 0, replicas: vec![1, 2], here }],
            vms_elsewhere: Vec::new(),
            tokens: 0,
        }
    }

    fn check(mine: Report, other: Report, refused: Option<&str>, warned: Option<&str>) {
        let found = compare(&mine, &[other]);
        let says = |all: &[String], what: Option<&str>| match what {
            Some(what) => assert!(all.len() == 1 && all[0].contains(what), "{all:?}"),
            None => assert!(all.is_empty(), "{all:?}"),
        };
        says(&found.refusals, refused);
        says(&found.warnings, warned);
    }

    #[test]
    fn who_knows_most_is_to_be_recovered() {
        let one = |meta, partition| report(1, meta, partition);
        let two = |meta, partition| report(2, meta, partition);
        check(one((2, 9), Some((2, 5))), two((2, 9), Some((2, 5))), None, None);
        check(one((2, 9), Some((2, 5))), two((2, 8), Some((2, 4))), None, None);
        check(one((2, 9), None), two((2, 10), None), Some("term 2, index 10"), None);
        check(one((2, 90), None), two((3, 10), None), Some("knows more"), None);
        check(one((2, 9), Some((2, 5))), two((2, 9), Some((2, 6))), None, Some("has 7 records of t/0, this node 7"));
        check(one((2, 9), None), two((2, 9), Some((1, 2))), None, Some("this node none"));
        let other = Report { cluster: "cd".into(), ..two((9, 9), None) };
        check(one((2, 9), None), other, Some("another cluster"), None);
        let other = Report { incarnation: 1, ..two((1, 1), None) };
        check(one((2, 9), None), other, Some("recovered already"), None);
    }

    #[test]
    fn survivors_that_were_recovered_apart_are_told_so() {
        let of = |node, incarnation, recovery: Option<&str>| Report {
            incarnation,
            recovery: recovery.map(str::to_owned),
            ..report(node, (2, 9), None)
        };
        check(of(1, 1, Some("aa")), of(2, 1, Some("bb")), Some("recovery bb, here aa"), None);
        check(of(1, 1, Some("aa")), of(2, 1, Some("aa")), None, None);
        check(of(1, 1, Some("aa")), of(2, 1, None), None, None);
        check(of(1, 1, Some("aa")), of(2, 2, Some("bb")), Some("recovered already"), None);
        check(of(1, 1, Some("aa")), of(2, 0, None), None, None);
    }

    #[test]
    fn a_report_of_an_older_muster_can_be_read() {
        let mut told = serde_json::to_value(report(1, (2, 9), None)).expect("it is told");
        let fields = told.as_object_mut().expect("an object");
        assert!(fields.remove("recovery").is_some() && fields.remove("recovered").is_some());
        assert_eq!(serde_json::from_value::<Report>(told).expect("readable"), report(1, (2, 9), None));
    }
}
