//! Who leads what, as nodes tell their clients: for one term never two leaders, and never an older term after a newer
//! one (a client that is told of an older leader hangs until its metadata expire).

use std::collections::BTreeMap;

use base::{GroupId, NodeId};
use engine::LeaderInfo;

use crate::queue::NodeIx;

/// See the module.
#[derive(Default)]
pub struct Leaders {
    /// The term last told of, per process.
    told: BTreeMap<(NodeIx, GroupId), u64>,
    leaders: BTreeMap<(GroupId, u64), NodeId>,
}

impl Leaders {
    /// A node tells its clients.
    ///
    /// # Errors
    /// It contradicts what was told before.
    pub fn told(&mut self, node: NodeIx, info: &LeaderInfo) -> Result<(), String> {
        let LeaderInfo { group, leader, term } = *info;
        match self.told.insert((node, group), term) {
            Some(before) if before > term => {
                return Err(format!("n{node} tells of term {term} of group {group} after term {before}"));
            }
            _ => {}
        }
        let Some(leader) = leader else { return Ok(()) };
        match self.leaders.insert((group, term), leader) {
            Some(other) if other != leader => {
                Err(format!("n{node} tells of node {leader} as leader of group {group} in term {term}, it was {other}"))
            }
            _ => Ok(()),
        }
    }

    /// The process ended.
    pub fn restarted(&mut self, node: NodeIx) {
        self.told.retain(|(of, _), _| *of != node);
    }

    /// The group is gone from a node.
    pub fn removed(&mut self, node: NodeIx, group: GroupId) {
        self.told.remove(&(node, group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_term_and_a_second_leader_are_noticed() {
        let mut leaders = Leaders::default();
        let mut told = |node, leader: Option<u64>, term| {
            leaders.told(node, &LeaderInfo { group: GroupId(1), leader: leader.map(NodeId), term })
        };
        assert_eq!(told(0, Some(1), 2), Ok(()));
        assert_eq!(told(0, None, 3), Ok(()));
        assert_eq!(told(1, Some(1), 2), Ok(()), "another node may lag");
        assert!(told(0, Some(1), 2).is_err(), "goes back");
        assert_eq!(told(1, Some(2), 3), Ok(()));
        assert!(told(2, Some(3), 3).is_err(), "two leaders");
    }
}
