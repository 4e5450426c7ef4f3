//! Learners of partitions are replicas that are being made, and each is sent its partition's log from the first entry on. So
//! that many at once do not take all of the memory, network and disks that there is, a leader has few messages under way to
//! each ([`RAFT_LEARNER_INFLIGHT_MAX`]). Those of `__meta` begin with a checkpoint and go on learning: they are not meant.
//!
//! The crate alone does not keep to that. An answer to a heartbeat makes it send one message more than it may, because what
//! it has sent may be lost: where a disk takes longer than the time between heartbeats, that comes to no end. So a learner
//! that acknowledges nothing is not sent more for its answers. After [`PATIENCE`] of them what was sent counts as lost, and
//! the crate sends it again, one message at a time.

use base::GroupId;
use base::limits::{RAFT_INFLIGHT_MAX, RAFT_LEARNER_INFLIGHT_MAX};
use raft::{ProgressState, StateRole};
use wire::{RaftMessage, RaftMessageKind};

use crate::convert;
use crate::group::Group;

/// With the usual times these take nearly as long as an election timeout: few disks are slower than that.
const PATIENCE: u32 = 6;

impl Group {
    /// The members are others: what may be under way to each follows from what it is.
    pub(crate) fn pace_learners(&mut self) {
        let learners = &self.membership.learners;
        self.unacknowledged.retain(|id, _| learners.iter().any(|learner| learner.0 == *id));
        if self.id == GroupId::META {
            return;
        }
        for id in convert::members(&self.membership) {
            let most = if learners.contains(&id) { RAFT_LEARNER_INFLIGHT_MAX } else { RAFT_INFLIGHT_MAX };
            self.raw.raft.adjust_max_inflight_msgs(id.0, most);
        }
    }

    /// Whether this is an answer to a heartbeat for which the crate would send more than may be under way. It counts as a
    /// sign of life.
    pub(crate) fn is_fed_enough(&mut self, message: &RaftMessage) -> bool {
        let learner = self.id != GroupId::META && self.membership.learners.contains(&message.from);
        let raft = &mut self.raw.raft;
        let current = raft.state == StateRole::Leader && raft.term == message.term;
        if !learner || !current || message.kind != RaftMessageKind::HeartbeatResponse {
            return false;
        }
        let id = message.from.0;
        let Some(progress) = raft.mut_prs().get_mut(id) else { return false };
        // What has acknowledged nothing yet may not have been there when it was sent the first message.
        let waits = progress.matched > 0 && progress.state != ProgressState::Snapshot && progress.is_paused();
        if !waits {
            self.unacknowledged.remove(&id);
            return false;
        }
        let (acknowledged, answers) = self.unacknowledged.entry(id).or_default();
        *answers = if *acknowledged == progress.matched { *answers + 1 } else { 1 };
        *acknowledged = progress.matched;
        if *answers < PATIENCE {
            progress.recent_active = true;
            return true;
        }
        self.unacknowledged.remove(&id);
        self.raw.report_unreachable(id);
        false
    }
}
