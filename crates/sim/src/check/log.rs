//! Log matching: an entry that was applied anywhere is the same everywhere, for all time, and is applied in order.

use std::collections::BTreeMap;

use base::GroupId;

use crate::queue::NodeIx;

/// See the module.
#[derive(Default)]
pub struct Logs {
    applied: BTreeMap<GroupId, BTreeMap<u64, (u64, u64)>>,
    /// Per node and group: the last index applied since the process started.
    cursors: BTreeMap<(NodeIx, GroupId), u64>,
    /// Entries seen for the first time.
    pub commits: u64,
    /// Cursors that jumped: installed snapshots.
    pub jumps: u64,
}

impl Logs {
    /// A node applied an entry.
    ///
    /// # Errors
    /// It differs from what was applied at that index before, its term does not fit its neighbours, or it comes out of
    /// order.
    pub fn applied(&mut self, node: NodeIx, group: GroupId, index: u64, term: u64, digest: u64) -> Result<(), String> {
        if let Some(last) = self.cursors.insert((node, group), index) {
            if index <= last {
                return Err(format!("n{node} applied index {index} of group {group} after {last}"));
            }
            self.jumps += u64::from(index > last + 1);
        }
        let log = self.applied.entry(group).or_default();
        if let Some((_, (before, _))) = log.range(..index).next_back()
            && *before > term
        {
            return Err(format!("n{node} applied index {index} of group {group} in term {term} behind term {before}"));
        }
        if let Some((_, (after, _))) = log.range(index + 1..).next()
            && *after < term
        {
            return Err(format!("n{node} applied index {index} of group {group} in term {term} before term {after}"));
        }
        match log.insert(index, (term, digest)) {
            None => {
                self.commits += 1;
                Ok(())
            }
            Some(known) if known == (term, digest) => Ok(()),
            Some((known_term, known_digest)) => Err(format!(
                "n{node} applied index {index} of group {group} as term {term} digest {digest:016x}; it was \
                 term {known_term} digest {known_digest:016x}"
            )),
        }
    }

    /// A node's process starts again: it may apply again what lies behind its checkpoints.
    pub fn restarted(&mut self, node: NodeIx) {
        self.cursors.retain(|(of, _), _| *of != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    #[test]
    fn the_same_log_everywhere_is_fine_and_restarts_apply_again() {
        let mut logs = Logs::default();
        for node in 0..3 {
            for index in 2..10 {
                logs.applied(node, GROUP, index, 1 + index / 5, index).expect("the same everywhere");
            }
        }
        logs.restarted(1);
        logs.applied(1, GROUP, 5, 2, 5).expect("again after a restart");
        assert_eq!((logs.commits, logs.jumps), (8, 0));
    }

    #[test]
    fn another_entry_at_a_committed_index_is_noticed() {
        for (term, digest) in [(1, 99), (2, 7)] {
            let mut logs = Logs::default();
            logs.applied(0, GROUP, 7, 1, 7).expect("first");
            assert!(logs.applied(1, GROUP, 7, term, digest).is_err());
        }
    }

    #[test]
    fn terms_out_of_order_and_indexes_twice_are_noticed() {
        let mut logs = Logs::default();
        logs.applied(0, GROUP, 7, 3, 7).expect("first");
        assert!(logs.applied(0, GROUP, 8, 2, 8).is_err(), "term goes back");
        assert!(logs.applied(1, GROUP, 6, 4, 6).is_err(), "term too high before");
        let mut logs = Logs::default();
        logs.applied(0, GROUP, 7, 3, 7).expect("first");
        assert!(logs.applied(0, GROUP, 7, 3, 7).is_err(), "twice without a restart");
    }
}
