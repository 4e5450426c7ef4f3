//! Which rare states were reached: those that the product's own code marks ([`base::simulation::Mark`]), and those that
//! only the world can know, marked here.

use std::fmt::Write as _;

use base::GroupId;
use base::simulation::{Mark, mark, mark_if};
use journal::{DiskOpKind, FileId};

use crate::queue::NodeIx;
use crate::stats::Stats;
use crate::world::World;

impl World {
    /// A node is about to lose power.
    pub(crate) fn mark_crash(&mut self, node: NodeIx) {
        let in_install = self.mark_files_cut_off(node);
        self.nodes[node].last_install_failed |= in_install;
        let it = &self.nodes[node];
        let leads = self.leads(node, |_| true);
        mark_if(Mark::AllNodesDown, || self.nodes.iter().all(|other| other.ix == node || other.core.is_none()));
        mark_if(Mark::CrashedInRecovery, || !it.recovered);
        mark_if(Mark::LeaderCrashedInSend, || leads && self.net.carries_from(node, self.queue.now));
        let writes = |kind: &DiskOpKind| matches!(kind, DiskOpKind::Write { file: FileId::Wal(_), .. });
        mark_if(Mark::LeaderCrashedInWrite, || leads && it.disk.under_way().any(writes));
    }

    /// Whether an install is cut off.
    fn mark_files_cut_off(&self, node: NodeIx) -> bool {
        let it = &self.nodes[node];
        let applied = it.core.as_ref().map_or(0, |core| core.metadata().applied);
        let mut in_install = false;
        for kind in it.disk.under_way() {
            match kind {
                DiskOpKind::Create { file: FileId::CheckpointTemporary { index, .. }, .. }
                | DiskOpKind::Write { file: FileId::CheckpointTemporary { index, .. }, .. }
                | DiskOpKind::Rename { from: FileId::CheckpointTemporary { index, .. }, .. } => {
                    // A node's own checkpoints are of what it has applied.
                    in_install |= *index > applied;
                    mark(if *index > applied { Mark::CrashedInInstall } else { Mark::CrashedInCheckpoint });
                }
                _ => {}
            }
        }
        mark_if(Mark::CrashedInInstallAgain, || in_install && it.last_install_failed);
        in_install
    }

    /// A process is about to stand still.
    pub(crate) fn mark_freeze(&self, node: NodeIx) {
        mark_if(Mark::PausedWhileLeading, || self.leads(node, |_| true));
    }

    /// Some directions have just been blocked.
    pub(crate) fn mark_partition(&self) {
        let cut = |one: NodeIx, other: NodeIx| !self.net.open(one, other) || !self.net.open(other, one);
        let alone = |node: NodeIx| (0..self.nodes.len()).all(|other| other == node || cut(node, other));
        mark_if(Mark::MetaLeaderIsolated, || {
            (0..self.nodes.len()).any(|node| alone(node) && self.leads(node, |group| group == GroupId::META))
        });
    }

    fn leads(&self, node: NodeIx, which: impl Fn(GroupId) -> bool) -> bool {
        let status = self.nodes[node].core.as_ref().map(engine::NodeCore::status);
        status.is_some_and(|status| status.groups.iter().any(|view| view.role == "leader" && which(view.group)))
    }
}

/// Every rare state with how often it was reached and what it means; those that were not come last.
#[must_use]
pub fn marks_table(stats: &Stats) -> String {
    let mut table = String::new();
    let (reached, missed): (Vec<Mark>, Vec<Mark>) = Mark::ALL.iter().partition(|mark| stats.marks.contains_key(mark));
    for (heading, marks) in [("states reached", reached), ("states never reached", missed)] {
        if marks.is_empty() {
            continue;
        }
        let _ = writeln!(table, "\n{heading}:");
        for mark in marks {
            let count = stats.marks.get(&mark).copied().unwrap_or(0);
            let _ = writeln!(table, "  {:33} {count:>9}  {}", mark.name(), mark.meaning());
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_in_the_table_and_those_never_reached_come_last() {
        let reached = *Mark::ALL.last().expect("there are marks");
        let stats = Stats { marks: [(reached, 3)].into(), ..Stats::default() };
        let table = marks_table(&stats);
        let lines: Vec<_> = table.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), Mark::ALL.len() + 2, "a line each, and two headings");
        assert_eq!(lines[0], "states reached:");
        assert!(lines[1].contains(reached.name()) && lines[1].contains(" 3 ") && lines[1].contains(reached.meaning()));
        assert_eq!(lines[2], "states never reached:");
    }

    #[test]
    fn names_are_told_apart_and_follow_from_the_variants() {
        let names: std::collections::BTreeSet<_> = Mark::ALL.iter().map(|mark| mark.name()).collect();
        assert_eq!(names.len(), Mark::ALL.len());
        for mark in Mark::ALL {
            assert_eq!(mark.name().replace('-', ""), format!("{mark:?}").to_lowercase());
        }
    }
}
