//! Rare states of the `raft` crate, which tells nobody of them: seen from outside, and only in the simulator's build
//! ([`base::simulation`]).

use base::simulation::{Mark, mark_if};
use raft::{CAMPAIGN_TRANSFER, StateRole};
use wire::{RaftMessage, RaftMessageKind};

use crate::api::{Role, RoleChange};
use crate::group::Group;

impl Group {
    /// A message is about to be stepped.
    pub(crate) fn mark_message(&self, message: &RaftMessage) {
        let raft = &self.raw.raft;
        let asks = matches!(message.kind, RaftMessageKind::Vote | RaftMessageKind::PreVote);
        let newer = asks && message.term > raft.term;
        let led = raft.leader_id != raft::INVALID_ID && raft.election_elapsed < raft.election_timeout();
        mark_if(Mark::CandidateRefusedLeaderLives, || newer && led && message.context != CAMPAIGN_TRANSFER);
        mark_if(Mark::VoteRefusedOlderLog, || {
            newer && !led && !raft.raft_log.is_up_to_date(message.index, message.log_term)
        });
        mark_if(Mark::VoteRefusedVoteGiven, || {
            message.kind == RaftMessageKind::Vote
                && message.term == raft.term
                && ![raft::INVALID_ID, message.from.0].contains(&raft.vote)
        });
        mark_if(Mark::AppendRefused, || {
            message.kind == RaftMessageKind::AppendResponse && message.reject && message.term == raft.term
        });
        mark_if(Mark::TransferTaken, || message.kind == RaftMessageKind::TimeoutNow);
    }

    /// The crate is about to let a tick pass.
    pub(crate) fn mark_before_tick(&self) {
        let raft = &self.raw.raft;
        mark_if(Mark::TransferTimedOut, || {
            raft.state == StateRole::Leader
                && raft.lead_transferee.is_some()
                && raft.election_elapsed + 1 >= raft.election_timeout()
        });
    }

    /// A tick has passed.
    pub(crate) fn mark_after_tick(&self) {
        let raft = &self.raw.raft;
        mark_if(Mark::LeaderLostItsQuorum, || {
            self.surfaced.role == Role::Leader && raft.state == StateRole::Follower && raft.term == self.surfaced.term
        });
    }

    /// The role that is about to be announced.
    pub(crate) fn mark_role(&self, role: RoleChange) {
        let same_term = role.term == self.surfaced.term;
        mark_if(Mark::CandidateLost, || {
            same_term && self.surfaced.role == Role::Candidate && role.role == Role::Follower && role.leader.0 != 0
        });
        mark_if(Mark::ElectedInJointConsensus, || {
            role.role == Role::Leader && !self.membership.voters_outgoing.is_empty()
        });
    }
}
