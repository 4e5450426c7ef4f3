//! Groups at rest. A leader whose group has nothing to do and whose followers have everything does not beat for it: its node
//! says all the time which groups it leads, in one message for all of them, and the layer above passes that on
//! ([`crate::MultiRaft::hear_leader`], [`crate::MultiRaft::hear_follower`]). An idle group costs less than half so, and not
//! nothing: each tick still looks at each group (docs/decisions/0018-groups-at-rest.md has the figures).
//!
//! Nothing is taken on trust for good. The leader looks each election timeout whether it hears a quorum, as ever, and beats
//! at every third look, so that whatever was lost is repaired late rather than never. It wakes, and beats as usual, as soon
//! as there is anything to do, a replica asks for votes, or a node with one of the replicas has come back
//! ([`crate::MultiRaft::wake`]). Rest begins only after [`CALM_TICKS`] of beats with nothing to say: by then followers
//! know what is committed. The beats end only once its node has had the time to say that it rests. `__meta` never rests.

use base::simulation::{Mark, Plant, mark_if, planted};
use base::{GroupId, ReplicaId};
use raft::StateRole;
use wire::{RaftMessage, RaftMessageKind};

use crate::Role;
use crate::group::Group;

/// Ticks of calm before a group rests; a heartbeat leaves every third.
const CALM_TICKS: u32 = 40;
/// ... and before the heartbeats end: by then its node has said that it rests.
const SILENT_TICKS: u32 = CALM_TICKS + 12;

/// What wakes a group at rest: whatever is not an answer to what its leader sent.
pub(crate) fn wakes(kind: RaftMessageKind) -> bool {
    !matches!(kind, RaftMessageKind::HeartbeatResponse | RaftMessageKind::AppendResponse)
}

impl Group {
    /// Whether the leader is at rest, which its node says for it.
    pub(crate) fn rests(&self) -> bool {
        self.calm_ticks > CALM_TICKS
    }

    /// It beats again, for a while at least.
    pub(crate) fn wake(&mut self) {
        self.calm_ticks = 0;
    }

    /// A follower answered. One that says that it knows less of what is committed has only heard that there is a leader: it
    /// needs a heartbeat that says more.
    pub(crate) fn note_answer(&mut self, message: &RaftMessage) {
        let answers = matches!(message.kind, RaftMessageKind::HeartbeatResponse | RaftMessageKind::AppendResponse);
        if !answers || self.raw.raft.state != StateRole::Leader || message.term != self.raw.raft.term {
            return;
        }
        self.answered.insert(message.from.0);
        if message.commit < self.raw.raft.raft_log.committed {
            self.wake();
        }
    }

    /// Whatever it answered is of a time that is over.
    pub(crate) fn forget_answer(&mut self, replica: u64) {
        self.answered.remove(&replica);
    }

    /// One tick of a leader at rest; `false` if the crate has to do it: this replica does not rest, or it is time to look
    /// for a quorum.
    pub(crate) fn tick_at_rest(&mut self, may_rest: bool) -> bool {
        let rested = self.rests();
        self.calm_ticks = if may_rest && self.is_calm() { self.calm_ticks.saturating_add(1) } else { 0 };
        mark_if(Mark::GroupWoke, || rested && !self.rests());
        let raft = &mut self.raw.raft;
        let looks = raft.election_elapsed + 1 >= raft.election_timeout() && !planted(Plant::RestWithoutQuorum);
        if self.calm_ticks <= SILENT_TICKS || looks {
            return false;
        }
        raft.election_elapsed += 1;
        true
    }

    /// Leads, and nobody lacks anything or waits for anything.
    fn is_calm(&self) -> bool {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        self.id != GroupId::META
            && raft.state == StateRole::Leader
            && self.surfaced.role == Role::Leader
            && self.surfaced.term == raft.term
            && raft.raft_log.committed == last
            && raft.raft_log.persisted == last
            && raft.lead_transferee.is_none()
            && !raft.has_pending_conf()
            && self.reads.is_empty()
            && self.membership.voters_outgoing.is_empty()
            && raft.prs().iter().all(|(_, progress)| progress.matched == last)
    }

    /// The leader's node says that it leads: as good as a heartbeat that says nothing.
    pub(crate) fn hear_leader(&mut self, term: u64, leader: u64) -> bool {
        let raft = &mut self.raw.raft;
        let follows = raft.state == StateRole::Follower && raft.term == term && raft.leader_id == leader;
        if follows && !planted(Plant::ClaimsNotBelieved) {
            raft.election_elapsed = 0;
        }
        follows
    }

    /// The heartbeat that a replica has missed which does not follow who leads in `term`: it was away, and is not to stand
    /// for an election because a leader at rest has not said anything to it since.
    pub(crate) fn missed_heartbeat(&self, term: u64, leader: ReplicaId) -> Option<RaftMessage> {
        let raft = &self.raw.raft;
        let lost = term > raft.term || term == raft.term && raft.leader_id == 0;
        let heartbeat = || RaftMessage::new(RaftMessageKind::Heartbeat, leader, ReplicaId(raft.id), term);
        (lost && leader.0 != raft.id).then(heartbeat)
    }

    /// The node of another replica was heard: as good as its answer to a heartbeat that says nothing.
    pub(crate) fn hear_follower(&mut self, replica: u64) {
        if self.rests()
            && self.answered.contains(&replica)
            && let Some(progress) = self.raw.raft.mut_prs().get_mut(replica)
        {
            progress.recent_active = true;
        }
    }
}
