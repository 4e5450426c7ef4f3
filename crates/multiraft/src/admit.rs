//! Who may speak to a replica, and what may be said.
//!
//! A replica cannot know all members: one that lags, or has just joined, hears of them only through the log, and must
//! follow a leader and vote for a candidate of which it has not heard (Raft section 4.2 of the dissertation: servers
//! take requests from servers outside of their configuration). Refused as strangers are therefore only replicas known
//! to have left (ids are never reused), and answers from replicas that were never asked. Everybody else is held off by
//! PreVote and CheckQuorum.
//!
//! Whatever would make the `raft` crate panic, or believe what cannot be, is refused as invalid.

use base::ReplicaId;
use base::simulation::{Mark, mark, mark_if};
use raft::StateRole;
use wire::{EntryKind, RaftMessage, RaftMessageKind, SnapshotMeta};

use crate::api::Refused;
use crate::convert;
use crate::group::Group;

/// Terms and indexes beyond this are nonsense, and their successors would overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// Length of a ReadIndex context or campaign kind.
pub(crate) const CONTEXT_BYTES_MAX: usize = 1_024;

impl Group {
    /// Whether the crate may be given this message.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub(crate) fn admit(&self, message: &RaftMessage, electable: bool) -> Result<(), Refused> {
        if message.to.0 != self.replica {
            return Err(Refused::WrongReplica);
        }
        self.admit_sender(message)?;
        check_shape(message).map_err(Refused::Invalid)?;
        self.check_own_log(message)?;
        self.check_content(message, electable).map_err(Refused::Invalid)
    }

    fn admit_sender(&self, message: &RaftMessage) -> Result<(), Refused> {
        let from = message.from.0;
        if from == 0 || from == self.replica {
            return Err(Refused::Invalid("not a sender"));
        }
        let known = self.raw.raft.prs().get(from).is_some();
        let asks = matches!(
            message.kind,
            RaftMessageKind::Append
                | RaftMessageKind::Heartbeat
                | RaftMessageKind::Snapshot
                | RaftMessageKind::Vote
                | RaftMessageKind::PreVote
        );
        let stranger = self.has_departed(from) || !(known || asks);
        mark_if(Mark::StrangerRefused, || stranger);
        if stranger { Err(Refused::Stranger) } else { Ok(()) }
    }

    /// A leader's heartbeat never goes beyond what this replica acknowledged to be durable.
    fn check_own_log(&self, message: &RaftMessage) -> Result<(), Refused> {
        let raft = &self.raw.raft;
        let (acknowledged, last) = (message.commit, raft.raft_log.last_index());
        let heartbeat = message.kind == RaftMessageKind::Heartbeat && message.term >= raft.term;
        if heartbeat && acknowledged > last { Err(Refused::LogLost { acknowledged, last }) } else { Ok(()) }
    }

    fn check_content(&self, message: &RaftMessage, electable: bool) -> Result<(), &'static str> {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let current = message.term == raft.term;
        match message.kind {
            RaftMessageKind::AppendResponse if current && !message.reject && message.index > last => {
                Err("acknowledges entries that were never sent")
            }
            RaftMessageKind::VoteResponse if current && raft.state == StateRole::Candidate && !self.is_quiet() => {
                Err("a vote that was not asked for yet")
            }
            RaftMessageKind::PreVoteResponse if raft.state == StateRole::PreCandidate && !self.is_quiet() => {
                Err("a vote that was not asked for yet")
            }
            RaftMessageKind::TimeoutNow if !current || raft.leader_id != message.from.0 => {
                mark(Mark::TransferRefusedStale);
                Err("leadership is not the sender's to hand over")
            }
            RaftMessageKind::TimeoutNow if !electable => {
                mark(Mark::TransferRefusedNotElectable);
                Err("this node does not campaign now")
            }
            RaftMessageKind::TimeoutNow if !self.is_quiet() => Err("not everything is durable here yet"),
            RaftMessageKind::Snapshot => self.check_snapshot(message.snapshot.as_ref()),
            _ => Ok(()),
        }
    }

    fn check_snapshot(&self, meta: Option<&SnapshotMeta>) -> Result<(), &'static str> {
        let log = &self.raw.raft.raft_log;
        let meta = meta.ok_or("a snapshot message without a snapshot")?;
        if self.is_installing() {
            mark(Mark::SnapshotRefusedWhileInstalling);
            return Err("another checkpoint is being installed");
        }
        if meta.index == log.committed && !log.match_term(meta.index, meta.term) {
            return Err("a snapshot that contradicts what is committed");
        }
        convert::check_membership(&meta.membership)
    }
}

/// What can be said of a message without knowing who reads it.
fn check_shape(message: &RaftMessage) -> Result<(), &'static str> {
    let RaftMessage { term, log_term, index, commit, commit_term, reject_hint, .. } = *message;
    if [term, log_term, index, commit, commit_term, reject_hint].iter().any(|number| *number > NUMBER_MAX) {
        return Err("a number out of range");
    }
    if term == 0 {
        return Err("no term");
    }
    if message.context.len() > CONTEXT_BYTES_MAX {
        return Err("context too long");
    }
    if message.request_snapshot != 0 {
        return Err("snapshots are not sent on request");
    }
    if matches!(message.kind, RaftMessageKind::ReadIndex | RaftMessageKind::ReadIndexResponse) {
        return Err("reads are forwarded as requests");
    }
    if message.kind != RaftMessageKind::Append && !message.entries.is_empty() {
        return Err("entries outside of an append");
    }
    match (message.kind, &message.snapshot) {
        (RaftMessageKind::Append, None) => check_append(message),
        (RaftMessageKind::Snapshot, Some(meta)) if meta.index == 0 || meta.index > NUMBER_MAX => {
            Err("a snapshot of nothing")
        }
        (RaftMessageKind::Snapshot, Some(meta)) if meta.term == 0 || meta.term > term => {
            Err("a snapshot of another term than its leader can have")
        }
        (RaftMessageKind::Snapshot, Some(_)) => Ok(()),
        (RaftMessageKind::Snapshot, None) => Err("a snapshot message without a snapshot"),
        (_, Some(_)) => Err("a snapshot outside of a snapshot message"),
        _ => Ok(()),
    }
}

fn check_append(message: &RaftMessage) -> Result<(), &'static str> {
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return Err("an append after an entry that cannot be");
    }
    let mut before = message.log_term;
    for (entry, index) in message.entries.iter().zip(message.index + 1..) {
        if entry.index != index {
            return Err("a gap between entries");
        }
        if entry.term < before || entry.term > message.term || entry.term == 0 {
            return Err("terms of entries out of order");
        }
        before = entry.term;
        match entry.kind {
            EntryKind::Noop if !entry.data.is_empty() => return Err("a noop that carries something"),
            EntryKind::Membership => drop(convert::membership_change(&entry.data)?),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a group may be told to make this change, as the crate would judge it when it is applied.
pub(crate) fn check_change(group: &Group, change: &wire::MembershipChange) -> Result<(), &'static str> {
    convert::check_steps(&change.steps)?;
    let raft = &group.raw.raft;
    let changer = raft::Changer::new(raft.prs());
    let wanted = convert::conf_change(change);
    let joint = !group.membership.voters_outgoing.is_empty();
    let outcome = match (joint, change.steps.len()) {
        (true, 0) => changer.leave_joint(),
        (true, _) | (false, 0) => return Err("no such change from this membership"),
        (false, 1) => raft::Changer::new(raft.prs()).simple(wanted.get_changes()),
        (false, _) => changer.enter_joint(true, wanted.get_changes()),
    };
    outcome.map(drop).map_err(|_| "the change leaves no voters")?;
    let known = |id: ReplicaId| raft.prs().get(id.0).is_some();
    let gone = |step: &wire::MembershipStep| match step.op {
        wire::MembershipOp::Remove => !known(step.replica),
        _ => group.has_departed(step.replica.0),
    };
    if change.steps.iter().any(gone) { Err("a replica that is not, or no longer, a member") } else { Ok(()) }
}
