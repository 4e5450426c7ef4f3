//! The majority is gone for good: what one survivor still holds, and how it becomes the whole cluster (decision 0012).
//!
//! It is an election that the survivor wins without the others: all of its log counts as committed, as it would if it led.
//! What it finds is written into a new journal, under new ids and in terms that nobody can have reached; the old journal
//! is only read. Nothing runs meanwhile: the caller carries out each disk operation before the next one is given out.

mod offline;
mod survivor;

use base::limits::RECOVERY_TERMS_SKIPPED;
use base::simulation::{Mark, mark, mark_if};
use base::{GroupId, NodeId, RecoveryId, ReplicaId, Wall};
use bytes::Bytes;
use journal::{Checkpoint, GroupAppend};
use metadata::{Metadata, SnapshotError, Survival};
use wire::{Entry, EntryKind, HardState, Membership, MembershipChange, MembershipOp, MembershipStep, SnapshotMeta};

pub use offline::Hands;
use offline::Offline;
pub use survivor::{LogEnd, Remains, Survivor};

/// Why nothing was recovered. The old journal is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    #[error("the disk is full: a recovery needs as much free space as the journal has")]
    DiskFull,
    #[error("it never had the state of the cluster: it was about to join. Recover another survivor, or wipe it")]
    NeverFormed,
    #[error("the table of members does not have node {0}: it was removed from the cluster before")]
    NoMember(NodeId),
    #[error("group {group} cannot be read: {reason}")]
    Group { group: GroupId, reason: String },
    #[error(transparent)]
    State(#[from] SnapshotError),
    #[error("{0}")]
    Newer(String),
    #[error("the new journal is not empty")]
    NotEmpty,
}

impl RecoverError {
    fn group(group: GroupId, reason: impl ToString) -> RecoverError {
        RecoverError::Group { group, reason: reason.to_string() }
    }
}

/// Reads what is left on `node`; nothing is changed if `old` carries out nothing but lists and reads.
///
/// # Errors
/// If the journal is damaged, or is not that of a member.
pub fn inspect(node: NodeId, segment_bytes: u64, old: Hands<'_>) -> Result<Survivor, RecoverError> {
    survivor::read(node, &mut Offline::open(segment_bytes, old)?)
}

/// Writes the journal with which the survivor goes on as the only member; durable on return. `store` names the new data,
/// `recovery` what is done here: the caller draws both at random. Returns the state that the cluster then begins with.
///
/// # Errors
/// As [`inspect`], and if the new journal cannot be written: it is of no use then.
pub fn recover(
    survivor: &Survivor,
    segment_bytes: u64,
    (old, new): (Hands<'_>, Hands<'_>),
    (store, recovery, now): (u64, RecoveryId, Wall),
) -> Result<Metadata, RecoverError> {
    let kept = survivor.kept();
    let survival = Survival { node: survivor.node, store, recovery, kept: &kept, published: survivor.published, now };
    let (state, replicas) = survivor.metadata.recovered(survival);
    let mut old = Offline::open(segment_bytes, old)?;
    let mut new = Offline::open(segment_bytes, new)?;
    if !new.groups().is_empty() {
        return Err(RecoverError::NotEmpty);
    }
    mark(Mark::ClusterRecovered);
    mark_if(Mark::RecoveredBeyondCommit, || survivor.meta.last_index > survivor.meta.commit);
    write_meta(survivor, &state, &mut new)?;
    for (group, remains) in &survivor.partitions {
        if let Some(replica) = replicas.get(group) {
            write_partition(*group, remains, *replica, state.applied, (&mut old, &mut new))?;
        }
    }
    new.settle()?;
    Ok(state)
}

/// A term that nobody can have reached, in which the new replica has given itself its vote.
fn hard_state(before: u64, replica: ReplicaId, commit: u64) -> HardState {
    HardState { term: before + u64::from(RECOVERY_TERMS_SKIPPED), vote: replica, commit }
}

/// `__meta` begins with a checkpoint of the new state, and no log.
fn write_meta(survivor: &Survivor, state: &Metadata, new: &mut Offline<'_>) -> Result<(), RecoverError> {
    let member = state.nodes.get(&survivor.node).ok_or(RecoverError::NoMember(survivor.node))?;
    let (replica, index) = (member.meta_replica, state.applied);
    let hard_state = hard_state(survivor.meta.term, replica, index);
    let membership = Membership { voters: vec![replica], ..Membership::default() };
    new.checkpoint(Checkpoint {
        group: GroupId::META,
        replica,
        meta: SnapshotMeta { index, term: hard_state.term, membership },
        state: state.encode(),
        install: true,
        keep_from: index + 1,
        hard_state: Some(hard_state),
    })
}

/// A partition keeps its whole log, from which replicas are made (decision 0007), and gets two entries more: with them the
/// new replica takes the place of all others.
fn write_partition(
    group: GroupId,
    remains: &Remains,
    replica: ReplicaId,
    basis: u64,
    (old, new): (&mut Offline<'_>, &mut Offline<'_>),
) -> Result<(), RecoverError> {
    let birth = remains.birth.clone();
    let first = hard_state(remains.end.term, replica, birth.index);
    new.checkpoint(Checkpoint {
        group,
        replica,
        meta: birth.clone(),
        state: Bytes::new(),
        install: true,
        keep_from: birth.index + 1,
        hard_state: Some(first),
    })?;
    let mut next = birth.index + 1;
    while next <= remains.end.last_index {
        let entries = old.read(group, next, remains.end.last_index)?;
        next += entries.len() as u64;
        new.append(GroupAppend { group, hard_state: None, entries })?;
    }
    let entries = takeover(group, &remains.membership, replica, basis, (next, first.term))?;
    let commit = entries.last().map_or(next - 1, |entry| entry.index);
    new.append(GroupAppend { group, hard_state: Some(HardState { commit, ..first }), entries })
}

/// The entries, from an index and of a term, after which nobody but the new replica is in the group.
fn takeover(
    group: GroupId,
    before: &Membership,
    replica: ReplicaId,
    basis: u64,
    (mut index, term): (u64, u64),
) -> Result<Vec<Entry>, RecoverError> {
    let mut changes = Vec::new();
    let mut membership = before.clone();
    let mut make = |change: MembershipChange, membership: &mut Membership| {
        *membership = multiraft::changed(membership, &change)
            .ok_or_else(|| RecoverError::group(group, format!("{membership:?} cannot be changed by {change:?}")))?;
        changes.push(change);
        Ok::<(), RecoverError>(())
    };
    if !membership.voters_outgoing.is_empty() {
        mark(Mark::RecoveredInJointConsensus);
        make(MembershipChange { steps: Vec::new(), basis }, &mut membership)?;
    }
    let gone = membership.voters.iter().chain(&membership.learners);
    let gone = gone.map(|old| MembershipStep { op: MembershipOp::Remove, replica: *old });
    let steps = [MembershipStep { op: MembershipOp::AddVoter, replica }].into_iter().chain(gone).collect();
    make(MembershipChange { steps, basis }, &mut membership)?;
    make(MembershipChange { steps: Vec::new(), basis }, &mut membership)?;
    let alone = Membership { voters: vec![replica], ..Membership::default() };
    if membership != alone {
        return Err(RecoverError::group(group, format!("its members would be {membership:?}")));
    }
    let entry = |change: MembershipChange| {
        let entry = Entry { index, term, kind: EntryKind::Membership, data: wire::encode(&change) };
        index += 1;
        entry
    };
    Ok(changes.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(of: &[u64]) -> Vec<ReplicaId> {
        of.iter().copied().map(ReplicaId).collect()
    }

    /// From voters, learners and outgoing voters: so many entries later replica 100 is alone.
    fn check(voters: &[u64], learners: &[u64], outgoing: &[u64], entries: usize) {
        let before = Membership {
            voters: ids(voters),
            learners: ids(learners),
            voters_outgoing: ids(outgoing),
            auto_leave: !outgoing.is_empty(),
            ..Membership::default()
        };
        let taken = takeover(GroupId(1), &before, ReplicaId(100), 9, (50, 7)).expect("it fits");
        assert_eq!(
            taken.iter().map(|it| (it.index, it.term)).collect::<Vec<_>>(),
            (50..).map(|i| (i, 7)).take(entries).collect::<Vec<_>>()
        );
        let change = |entry: &Entry| wire::decode::<MembershipChange>(&entry.data).expect("decodes");
        let after = taken.iter().try_fold(before, |it, entry| multiraft::changed(&it, &change(entry)));
        assert_eq!(after.expect("each fits").voters, ids(&[100]));
        assert!(taken.iter().all(|entry| change(entry).basis == 9));
    }

    #[test]
    fn one_replica_takes_the_place_of_all_others() {
        check(&[1], &[], &[], 2);
        check(&[1, 2, 3], &[], &[], 2);
        check(&[1, 2, 3], &[4, 5], &[], 2);
        check(&[2, 3, 4], &[5], &[1, 2, 3], 3);
    }
}
