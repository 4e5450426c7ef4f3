//! Muster's shapes to the `raft` crate's and back, by hand: no protobuf bytes ever come from a disk or a network.
//!
//! The kind of an entry travels inside Raft as the first byte of the entry's `context`:
//!
//! | entry | `entry_type` | `context` | `data` |
//! |---|---|---|---|
//! | Noop | Normal | empty | empty |
//! | Command, Batch | Normal | kind | the payload |
//! | Membership, received or recovered | ConfChangeV2 | kind | [`MembershipChange`], encoded |
//! | Membership, proposed here | ConfChangeV2 | kind, then [`MembershipChange`], encoded | protobuf, for the crate's eyes only |
//! | Membership, the crate's own end of a joint change | ConfChangeV2 | empty | empty |

use base::ReplicaId;
use bytes::Bytes;
use raft::eraftpb;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, EntryType, MessageType};
use wire::{
    Entry, EntryKind, HardState, Membership, MembershipChange, MembershipOp, MembershipStep, RaftMessage,
    RaftMessageKind, SnapshotMeta,
};

const COMMAND: &[u8] = &[2];
const BATCH: &[u8] = &[3];
const MEMBERSHIP: &[u8] = &[1];

/// Bytes that an entry costs beside its data, roughly.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 32;

pub(crate) fn entry_bytes(entry: &eraftpb::Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD_BYTES
}

pub(crate) fn entry_to_raft(entry: Entry) -> eraftpb::Entry {
    let mut out = eraftpb::Entry { index: entry.index, term: entry.term, data: entry.data, ..Default::default() };
    out.context = match entry.kind {
        EntryKind::Noop => Bytes::new(),
        EntryKind::Membership => {
            out.set_entry_type(EntryType::EntryConfChangeV2);
            Bytes::from_static(MEMBERSHIP)
        }
        EntryKind::Command => Bytes::from_static(COMMAND),
        EntryKind::Batch => Bytes::from_static(BATCH),
    };
    out
}

pub(crate) fn entry_from_raft(entry: &eraftpb::Entry) -> Entry {
    let (kind, data) = match (entry.get_entry_type(), entry.context.first()) {
        (EntryType::EntryNormal, None) => (EntryKind::Noop, Bytes::new()),
        (EntryType::EntryNormal, Some(kind)) if [*kind] == BATCH => (EntryKind::Batch, entry.data.clone()),
        (EntryType::EntryNormal, Some(_)) => (EntryKind::Command, entry.data.clone()),
        (_, None) => (EntryKind::Membership, wire::encode(&MembershipChange::default())),
        (_, Some(_)) if entry.context.len() > 1 => (EntryKind::Membership, entry.context.slice(1..)),
        (_, Some(_)) => (EntryKind::Membership, entry.data.clone()),
    };
    Entry { index: entry.index, term: entry.term, kind, data }
}

/// An entry as a leader proposes it: index and term are the crate's to fill in.
pub(crate) fn proposal_entry(kind: EntryKind, data: Bytes) -> eraftpb::Entry {
    entry_to_raft(Entry { index: 0, term: 0, kind, data })
}

/// The `context` of a membership entry that a leader proposes.
pub(crate) fn membership_context(change: &MembershipChange) -> Vec<u8> {
    let mut context = MEMBERSHIP.to_vec();
    context.extend_from_slice(&wire::encode(change));
    context
}

pub(crate) fn conf_change(change: &MembershipChange) -> ConfChangeV2 {
    let steps: Vec<ConfChangeSingle> = change
        .steps
        .iter()
        .map(|step| {
            let mut single = ConfChangeSingle { node_id: step.replica.0, ..Default::default() };
            single.set_change_type(match step.op {
                MembershipOp::AddVoter => ConfChangeType::AddNode,
                MembershipOp::AddLearner => ConfChangeType::AddLearnerNode,
                MembershipOp::Remove => ConfChangeType::RemoveNode,
            });
            single
        })
        .collect();
    let mut out = ConfChangeV2::default();
    // The transition stays `Auto`: simple for one step, joint with automatic leave for more.
    out.set_changes(steps.into());
    out
}

/// Steps of one change, at most: every member of the largest group, once.
pub(crate) const MEMBERSHIP_STEPS_MAX: usize = base::limits::NODES_MAX;

/// Decodes and checks the payload of a membership entry.
pub(crate) fn membership_change(data: &[u8]) -> Result<MembershipChange, &'static str> {
    let change: MembershipChange = wire::decode(data).map_err(|_| "malformed membership change")?;
    check_steps(&change.steps)?;
    Ok(change)
}

pub(crate) fn check_steps(steps: &[MembershipStep]) -> Result<(), &'static str> {
    if steps.len() > MEMBERSHIP_STEPS_MAX {
        return Err("too many membership steps");
    }
    let mut ids: Vec<ReplicaId> = steps.iter().map(|step| step.replica).collect();
    ids.sort_unstable();
    if ids.first() == Some(&ReplicaId(0)) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("a membership change names a replica twice, or replica 0");
    }
    Ok(())
}

fn ids_to_raft(ids: &[ReplicaId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

fn ids_from_raft(ids: &[u64]) -> Vec<ReplicaId> {
    let mut out: Vec<ReplicaId> = ids.iter().copied().map(ReplicaId).collect();
    out.sort_unstable();
    out
}

pub(crate) fn conf_state(membership: &Membership) -> ConfState {
    let mut out = ConfState { auto_leave: membership.auto_leave, ..Default::default() };
    out.set_voters(ids_to_raft(&membership.voters));
    out.set_learners(ids_to_raft(&membership.learners));
    out.set_voters_outgoing(ids_to_raft(&membership.voters_outgoing));
    out.set_learners_next(ids_to_raft(&membership.learners_next));
    out
}

/// Sorted, so that equal memberships are equal values on every replica.
pub(crate) fn membership(state: &ConfState) -> Membership {
    Membership {
        voters: ids_from_raft(state.get_voters()),
        learners: ids_from_raft(state.get_learners()),
        voters_outgoing: ids_from_raft(state.get_voters_outgoing()),
        learners_next: ids_from_raft(state.get_learners_next()),
        auto_leave: state.auto_leave,
    }
}

/// Whether Raft can run under this membership (the crate panics over what it cannot restore).
pub(crate) fn check_membership(membership: &Membership) -> Result<(), &'static str> {
    let Membership { voters, learners, voters_outgoing, learners_next, auto_leave } = membership;
    let lists = [voters, learners, voters_outgoing, learners_next];
    if lists.iter().any(|list| list.len() > MEMBERSHIP_STEPS_MAX) {
        return Err("too many members");
    }
    if lists.iter().any(|list| has_duplicates(list) || list.contains(&ReplicaId(0))) {
        return Err("a membership names a replica twice, or replica 0");
    }
    if voters.is_empty() {
        return Err("a membership without voters");
    }
    let joint = !voters_outgoing.is_empty();
    if !joint && (*auto_leave || !learners_next.is_empty()) {
        return Err("a membership that is half joint");
    }
    if learners.iter().any(|id| voters.contains(id) || voters_outgoing.contains(id)) {
        return Err("a learner that is a voter");
    }
    if learners_next.iter().any(|id| voters.contains(id) || !voters_outgoing.contains(id)) {
        return Err("a coming learner that is not an outgoing voter");
    }
    Ok(())
}

fn has_duplicates(ids: &[ReplicaId]) -> bool {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

/// All replicas that a membership names.
pub(crate) fn members(membership: &Membership) -> impl Iterator<Item = ReplicaId> + '_ {
    let Membership { voters, learners, voters_outgoing, learners_next, .. } = membership;
    [voters, learners, voters_outgoing, learners_next].into_iter().flatten().copied()
}

pub(crate) fn hard_state_to_raft(state: &HardState) -> eraftpb::HardState {
    eraftpb::HardState { term: state.term, vote: state.vote.0, commit: state.commit, ..Default::default() }
}

pub(crate) fn hard_state_from_raft(state: &eraftpb::HardState) -> HardState {
    HardState { term: state.term, vote: ReplicaId(state.vote), commit: state.commit }
}

pub(crate) fn snapshot_to_raft(meta: &SnapshotMeta) -> eraftpb::Snapshot {
    let mut out = eraftpb::Snapshot::default();
    let metadata = out.mut_metadata();
    metadata.index = meta.index;
    metadata.term = meta.term;
    metadata.set_conf_state(conf_state(&meta.membership));
    out
}

pub(crate) fn snapshot_from_raft(snapshot: &eraftpb::Snapshot) -> SnapshotMeta {
    let metadata = snapshot.get_metadata();
    SnapshotMeta { index: metadata.index, term: metadata.term, membership: membership(metadata.get_conf_state()) }
}

fn kind_to_raft(kind: RaftMessageKind) -> MessageType {
    match kind {
        RaftMessageKind::Append => MessageType::MsgAppend,
        RaftMessageKind::AppendResponse => MessageType::MsgAppendResponse,
        RaftMessageKind::Vote => MessageType::MsgRequestVote,
        RaftMessageKind::VoteResponse => MessageType::MsgRequestVoteResponse,
        RaftMessageKind::PreVote => MessageType::MsgRequestPreVote,
        RaftMessageKind::PreVoteResponse => MessageType::MsgRequestPreVoteResponse,
        RaftMessageKind::Heartbeat => MessageType::MsgHeartbeat,
        RaftMessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
        RaftMessageKind::Snapshot => MessageType::MsgSnapshot,
        RaftMessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
        RaftMessageKind::ReadIndex => MessageType::MsgReadIndex,
        RaftMessageKind::ReadIndexResponse => MessageType::MsgReadIndexResp,
    }
}

/// `None`: a kind that never leaves a node.
fn kind_from_raft(kind: MessageType) -> Option<RaftMessageKind> {
    Some(match kind {
        MessageType::MsgAppend => RaftMessageKind::Append,
        MessageType::MsgAppendResponse => RaftMessageKind::AppendResponse,
        MessageType::MsgRequestVote => RaftMessageKind::Vote,
        MessageType::MsgRequestVoteResponse => RaftMessageKind::VoteResponse,
        MessageType::MsgRequestPreVote => RaftMessageKind::PreVote,
        MessageType::MsgRequestPreVoteResponse => RaftMessageKind::PreVoteResponse,
        MessageType::MsgHeartbeat => RaftMessageKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => RaftMessageKind::HeartbeatResponse,
        MessageType::MsgSnapshot => RaftMessageKind::Snapshot,
        MessageType::MsgTimeoutNow => RaftMessageKind::TimeoutNow,
        MessageType::MsgReadIndex => RaftMessageKind::ReadIndex,
        MessageType::MsgReadIndexResp => RaftMessageKind::ReadIndexResponse,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => return None,
    })
}

/// A message that [`crate::admit`] let in.
pub(crate) fn message_to_raft(message: RaftMessage) -> eraftpb::Message {
    let mut out = eraftpb::Message {
        from: message.from.0,
        to: message.to.0,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        ..Default::default()
    };
    out.set_msg_type(kind_to_raft(message.kind));
    out.set_entries(message.entries.into_iter().map(entry_to_raft).collect::<Vec<_>>().into());
    if let Some(meta) = &message.snapshot {
        out.set_snapshot(snapshot_to_raft(meta));
    }
    out
}

/// `None`: a kind that never leaves a node.
pub(crate) fn message_from_raft(message: eraftpb::Message) -> Option<RaftMessage> {
    let kind = kind_from_raft(message.get_msg_type())?;
    Some(RaftMessage {
        kind,
        from: ReplicaId(message.from),
        to: ReplicaId(message.to),
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.get_entries().iter().map(entry_from_raft).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        request_snapshot: message.request_snapshot,
        snapshot: (kind == RaftMessageKind::Snapshot).then(|| snapshot_from_raft(message.get_snapshot())),
        context: message.context,
        priority: 0,
    })
}

/// Sends an append in parts of at most `bytes_max` (and at least one entry): the crate batches without a bound.
pub(crate) fn split_append(mut message: RaftMessage, bytes_max: usize, mut send: impl FnMut(RaftMessage)) {
    let size = |entry: &Entry| entry.data.len() + ENTRY_OVERHEAD_BYTES;
    while message.entries.iter().map(size).sum::<usize>() > bytes_max && message.entries.len() > 1 {
        let mut bytes = 0;
        let fitting = message.entries.iter().take_while(|entry| {
            bytes += size(entry);
            bytes <= bytes_max
        });
        let rest = message.entries.split_off(fitting.count().max(1));
        let Some((index, log_term)) = message.entries.last().map(|last| (last.index, last.term)) else { break };
        let mut head = message.clone();
        head.commit = head.commit.min(index);
        send(head);
        message.entries = rest;
        message.index = index;
        message.log_term = log_term;
        if message.entries.is_empty() {
            return;
        }
    }
    send(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, kind: EntryKind, data: &[u8]) -> Entry {
        Entry { index, term: 1, kind, data: Bytes::copy_from_slice(data) }
    }

    #[test]
    fn entries_keep_their_kind_through_raft() {
        let change = MembershipChange {
            steps: vec![MembershipStep { op: MembershipOp::AddLearner, replica: ReplicaId(9) }],
            basis: 0,
        };
        for original in [
            entry(2, EntryKind::Noop, b""),
            entry(3, EntryKind::Command, b"x"),
            entry(4, EntryKind::Command, b""),
            entry(5, EntryKind::Batch, b"y"),
            entry(6, EntryKind::Membership, &wire::encode(&change)),
        ] {
            assert_eq!(entry_from_raft(&entry_to_raft(original.clone())), original);
        }
    }

    #[test]
    fn a_proposed_change_and_the_crates_own_leave_speak_our_encoding() {
        let change = MembershipChange {
            steps: vec![MembershipStep { op: MembershipOp::Remove, replica: ReplicaId(4) }],
            basis: 0,
        };
        let mut proposed = eraftpb::Entry { data: vec![8, 8].into(), ..Default::default() };
        proposed.set_entry_type(EntryType::EntryConfChangeV2);
        proposed.context = membership_context(&change).into();
        let proposed = entry_from_raft(&proposed);
        assert_eq!((proposed.kind, membership_change(&proposed.data)), (EntryKind::Membership, Ok(change)));

        let mut leave = eraftpb::Entry::default();
        leave.set_entry_type(EntryType::EntryConfChangeV2);
        let leave = entry_from_raft(&leave);
        assert_eq!(membership_change(&leave.data), Ok(MembershipChange::default()));
    }

    #[test]
    fn large_appends_are_split_without_a_gap() {
        let message = RaftMessage {
            log_term: 1,
            index: 1,
            entries: (2..12).map(|index| entry(index, EntryKind::Batch, &[0; 100])).collect(),
            commit: 7,
            ..RaftMessage::new(RaftMessageKind::Append, ReplicaId(1), ReplicaId(2), 1)
        };
        let mut parts = Vec::new();
        split_append(message, 300, |part| parts.push(part));
        assert_eq!(parts.len(), 5);
        assert!(parts.windows(2).all(|pair| pair[0].entries.last().unwrap().index == pair[1].index));
        assert!(parts.iter().all(|part| part.entries[0].index == part.index + 1));
        assert_eq!(parts.last().unwrap().commit, 7);
    }

    #[test]
    fn memberships_that_raft_cannot_restore_are_refused() {
        let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect::<Vec<_>>();
        let good = Membership { voters: ids(&[1, 2]), learners: ids(&[3]), ..Default::default() };
        assert_eq!(check_membership(&good), Ok(()));
        for bad in [
            Membership::default(),
            Membership { voters: ids(&[1, 1]), ..Default::default() },
            Membership { voters: ids(&[0]), ..Default::default() },
            Membership { learners: ids(&[2]), ..good.clone() },
            Membership { auto_leave: true, ..good.clone() },
            Membership { learners_next: ids(&[4]), ..good.clone() },
            Membership { voters_outgoing: ids(&[3]), ..good.clone() },
        ] {
            assert!(check_membership(&bad).is_err(), "{bad:?} was accepted");
        }
    }
}
