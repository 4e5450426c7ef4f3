//! One node, one process. Two processes with one key are a node and its copy: a data directory that was copied, or restored
//! from a backup, or the disk of a machine that was cloned. What one of them acknowledged the other one does not have, so
//! they must not both take part. Pure.
//!
//! A process says its incarnation, which each start on a directory raises, and its home, which names the directory on its
//! machine. From the same home a later process takes the place of an earlier one at once: it holds the directory's lock, so
//! the other one is gone. From another home it has to wait until the other's connection has ended. And an older one never
//! comes back.

use base::{ErrorCode, Incarnation};
use wire::Refusal;

/// A process of a member, as it says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    pub incarnation: Incarnation,
    /// Where it works; None if it does not say, as older versions.
    pub home: Option<u64>,
}

impl Process {
    /// Whether both say where they work, and it is not the same place.
    fn works_elsewhere(self, other: Process) -> bool {
        matches!((self.home, other.home), (Some(here), Some(there)) if here != there)
    }
}

/// What is known of a member's processes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Known {
    /// The latest one that was heard of.
    latest: Option<Process>,
    /// The latest one of which the cluster has heard.
    table: Option<Incarnation>,
}

impl Known {
    /// The cluster has heard of a process of that incarnation.
    pub fn heard_of(&mut self, incarnation: Incarnation) {
        self.table = self.table.max(Some(incarnation));
        if self.latest.is_none_or(|latest| latest.incarnation < incarnation) {
            self.latest = Some(Process { incarnation, home: None });
        }
    }

    /// There is no connection any more: a process of which the cluster has not heard binds nobody.
    pub fn gone(&mut self) {
        if let (Some(latest), Some(table)) = (self.latest, self.table)
            && latest.incarnation > table
        {
            self.latest = Some(Process { incarnation: table, home: None });
        }
    }

    /// Whether a process of that incarnation has been followed by another one.
    pub fn is_past(&self, incarnation: Incarnation) -> bool {
        self.latest.is_some_and(|latest| incarnation < latest.incarnation)
    }

    /// Lets a process speak for the member, or says why not; `present`: those with which there are connections, one for each
    /// direction.
    ///
    /// # Errors
    /// With the words for the process, which names the other one.
    pub fn admit(&mut self, process: Process, present: [Option<Process>; 2]) -> Result<(), Refusal> {
        if let Some(latest) = self.latest
            && process.incarnation < latest.incarnation
        {
            return Err(refusal(latest, "a later process of this node was here: this one's data may be an older copy"));
        }
        let same = self.latest.filter(|latest| latest.incarnation == process.incarnation);
        if let Some(latest) = same.filter(|latest| latest.works_elsewhere(process)) {
            return Err(refusal(latest, "a process of this node with another data directory was here: one is a copy"));
        }
        if let Some(present) = present.into_iter().flatten().find(|present| present.works_elsewhere(process)) {
            return Err(refusal(present, "another process of this node, with another data directory, is connected"));
        }
        // One that says less than was known changes nothing.
        if same.is_none_or(|latest| latest.home.is_none()) {
            self.latest = Some(process);
        }
        Ok(())
    }
}

fn refusal(other: Process, why: &str) -> Refusal {
    let incarnation = other.incarnation;
    let reason = format!("{why} (incarnation {incarnation})");
    Refusal { other: Some(incarnation), ..Refusal::new(ErrorCode::AlreadyExists, reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(incarnation: u64, home: u64) -> Process {
        Process { incarnation: Incarnation(incarnation), home: Some(home) }
    }

    const NOBODY: [Option<Process>; 2] = [None; 2];

    /// Of the processes (incarnation, home) in the order in which they call, all while the last one that was admitted is
    /// there: which other one each is told of; 0: it is admitted.
    #[track_caller]
    fn check(calls: &[(u64, u64)], expect: &[u64]) {
        let (mut known, mut present) = (Known::default(), None);
        let mut told = Vec::new();
        for (incarnation, home) in calls {
            let caller = process(*incarnation, *home);
            match known.admit(caller, [None, present]) {
                Ok(()) => {
                    present = Some(caller);
                    told.push(0);
                }
                Err(refusal) => told.push(refusal.other.expect("it is named").0),
            }
        }
        assert_eq!(told, expect, "{calls:?}");
    }

    #[test]
    fn a_later_process_of_the_same_directory_takes_the_place_of_an_earlier_one() {
        check(&[(1, 7), (1, 7), (2, 7), (5, 7)], &[0, 0, 0, 0]);
        check(&[(2, 7), (1, 7)], &[0, 2]);
    }

    #[test]
    fn of_two_directories_the_one_that_is_there_stays() {
        check(&[(3, 7), (4, 8), (3, 7), (5, 7), (6, 8)], &[0, 3, 0, 0, 5]);
        check(&[(3, 7), (3, 8), (2, 8)], &[0, 3, 3]);
    }

    #[test]
    fn when_the_other_one_is_gone_a_later_process_may_come_from_elsewhere_but_no_older_one() {
        let mut known = Known::default();
        assert_eq!(known.admit(process(3, 7), NOBODY), Ok(()));
        let copy = known.admit(process(3, 8), NOBODY).expect_err("of the same incarnation");
        assert!(copy.code == ErrorCode::AlreadyExists && copy.reason.contains("one is a copy"), "{copy:?}");
        assert_eq!(known.admit(process(4, 8), NOBODY), Ok(()));
        let old = known.admit(process(3, 7), NOBODY).expect_err("it is past");
        assert!(old.other == Some(Incarnation(4)) && old.reason.contains("an older copy"), "{old:?}");
        assert!(known.is_past(Incarnation(3)) && !known.is_past(Incarnation(4)));
    }

    #[test]
    fn what_the_cluster_heard_of_counts_wherever_it_was() {
        let mut known = Known::default();
        known.heard_of(Incarnation(5));
        known.heard_of(Incarnation(4));
        assert!(known.admit(process(4, 7), NOBODY).is_err());
        assert_eq!(known.admit(process(5, 7), NOBODY), Ok(()));
        assert!(known.admit(process(5, 8), NOBODY).is_err(), "now it is known where that one works");
    }

    #[test]
    fn a_process_of_which_the_cluster_has_not_heard_binds_nobody_once_it_is_gone() {
        let mut known = Known::default();
        known.heard_of(Incarnation(5));
        assert_eq!(known.admit(process(6, 8), NOBODY), Ok(()));
        assert!(known.admit(process(5, 7), [Some(process(6, 8)), None]).is_err(), "it is there");
        known.gone();
        assert_eq!(known.admit(process(5, 7), NOBODY), Ok(()));
        assert!(known.admit(process(4, 7), NOBODY).is_err(), "of a later one the cluster has heard");
        assert_eq!(known.admit(process(6, 8), NOBODY), Ok(()));
        known.heard_of(Incarnation(6));
        known.gone();
        assert!(known.admit(process(5, 7), NOBODY).is_err(), "now it has heard of that one");
    }

    #[test]
    fn who_does_not_say_where_it_works_is_judged_by_its_incarnation() {
        let older = |incarnation| Process { incarnation: Incarnation(incarnation), home: None };
        let mut known = Known::default();
        assert_eq!(known.admit(process(3, 7), NOBODY), Ok(()));
        assert_eq!(known.admit(older(3), [Some(process(3, 7)), None]), Ok(()));
        assert!(known.admit(process(3, 8), NOBODY).is_err(), "what was known is not forgotten");
        assert_eq!(known.admit(older(4), [Some(process(3, 7)), None]), Ok(()));
        assert!(known.admit(older(3), NOBODY).is_err());
    }
}
