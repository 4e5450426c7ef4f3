//! Election safety: one leader per group and term, one vote per replica and term, terms that never go back.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, ReplicaId};
use multiraft::Role;
use wire::{RaftMessage, RaftMessageKind};

/// See the module.
#[derive(Default)]
pub struct Elections {
    /// With the boot of the process: whoever starts again leads only in a new term.
    leaders: BTreeMap<(GroupId, u64), (ReplicaId, u64)>,
    /// Granted votes that left a node: to whom.
    votes: BTreeMap<(GroupId, ReplicaId, u64), ReplicaId>,
    /// The highest term that a replica spoke or led in.
    spoken: BTreeMap<(GroupId, ReplicaId), u64>,
    /// The same as it was before the flush that is looked at: within one, what was said first may be told last.
    spoken_before: BTreeMap<(GroupId, ReplicaId), u64>,
    spoke_now: BTreeSet<(GroupId, ReplicaId)>,
    /// Who sent what only a leader sends.
    voices: BTreeMap<(GroupId, u64), ReplicaId>,
    max_term: BTreeMap<GroupId, u64>,
    won: BTreeMap<GroupId, u64>,
}

impl Elections {
    /// The role of a replica is in force, in the process with that boot. `Ok(true)`: a leader of a new term.
    ///
    /// # Errors
    /// Another replica led in that term, or an earlier process of this one; or this one spoke in a higher term before.
    pub fn role(
        &mut self,
        group: GroupId,
        (replica, boot): (ReplicaId, u64),
        role: Role,
        term: u64,
    ) -> Result<bool, String> {
        self.saw_term(group, term);
        self.never_back(group, replica, term)?;
        if role != Role::Leader {
            return Ok(false);
        }
        // Whoever leads has its term and its own vote on disk.
        self.spoke(group, replica, term);
        match self.leaders.insert((group, term), (replica, boot)) {
            None => {
                *self.won.entry(group).or_default() += 1;
                Ok(true)
            }
            Some(other) if other == (replica, boot) => Ok(false),
            Some((other, _)) if other == replica => {
                Err(format!("replica {replica} leads group {group} in term {term} again after a restart"))
            }
            Some((other, _)) => Err(format!("replicas {other} and {replica} both lead group {group} in term {term}")),
        }
    }

    /// A Raft message leaves a node.
    ///
    /// # Errors
    /// The replica granted its vote of that term to another candidate before.
    pub fn sent(&mut self, group: GroupId, message: &RaftMessage) -> Result<(), String> {
        use RaftMessageKind::{PreVote, PreVoteResponse, Vote, VoteResponse};
        // Pre-votes speak of a term that nobody is in yet.
        if matches!(message.kind, PreVote | PreVoteResponse) {
            return Ok(());
        }
        self.saw_term(group, message.term);
        self.spoke(group, message.from, message.term);
        let voted_for = match message.kind {
            // A candidate votes for itself.
            Vote => message.from,
            VoteResponse if !message.reject => message.to,
            _ => return Ok(()),
        };
        match self.votes.insert((group, message.from, message.term), voted_for) {
            Some(other) if other != voted_for => Err(format!(
                "replica {} of group {group} voted for {other} and for {voted_for} in term {}",
                message.from, message.term
            )),
            _ => Ok(()),
        }
    }

    /// A Raft message leaves a node.
    ///
    /// # Errors
    /// The replica spoke in a higher term before.
    pub fn speaks_up(&mut self, group: GroupId, message: &RaftMessage) -> Result<(), String> {
        if matches!(message.kind, RaftMessageKind::PreVote | RaftMessageKind::PreVoteResponse) {
            return Ok(());
        }
        self.never_back(group, message.from, message.term)
    }

    /// A Raft message leaves a node.
    ///
    /// # Errors
    /// It is one that only a leader sends, and another replica sent such in this term.
    pub fn speaks_as_leader(&mut self, group: GroupId, message: &RaftMessage) -> Result<(), String> {
        use RaftMessageKind::{Append, Heartbeat, Snapshot, TimeoutNow};
        let RaftMessage { kind, from, term, .. } = *message;
        if !matches!(kind, Append | Heartbeat | Snapshot | TimeoutNow) {
            return Ok(());
        }
        match self.voices.insert((group, term), from) {
            Some(other) if other != from => {
                Err(format!("replicas {other} and {from} both speak as leader of group {group} in term {term}"))
            }
            _ => Ok(()),
        }
    }

    /// All of a flush was told: what comes now was said later.
    pub fn flushed(&mut self) {
        for replica in std::mem::take(&mut self.spoke_now) {
            let term = self.spoken.get(&replica).copied().unwrap_or(0);
            self.spoken_before.insert(replica, term);
        }
    }

    fn never_back(&self, group: GroupId, replica: ReplicaId, term: u64) -> Result<(), String> {
        match self.spoken_before.get(&(group, replica)) {
            Some(before) if *before > term => {
                Err(format!("replica {replica} of group {group} is in term {term}; it has spoken in term {before}"))
            }
            _ => Ok(()),
        }
    }

    /// A replica came back after a restart, in `term`.
    ///
    /// # Errors
    /// It spoke in a higher term before: it forgot a term, and with it perhaps a vote.
    pub fn came_back(&mut self, group: GroupId, replica: ReplicaId, term: u64) -> Result<(), String> {
        match self.spoken.get(&(group, replica)) {
            Some(spoken) if *spoken > term => Err(format!(
                "replica {replica} of group {group} came back in term {term}, but it has spoken in term {spoken}"
            )),
            _ => Ok(()),
        }
    }

    fn spoke(&mut self, group: GroupId, replica: ReplicaId, term: u64) {
        let spoken = self.spoken.entry((group, replica)).or_default();
        *spoken = term.max(*spoken);
        self.spoke_now.insert((group, replica));
    }

    fn saw_term(&mut self, group: GroupId, term: u64) {
        let max = self.max_term.entry(group).or_default();
        *max = term.max(*max);
    }

    /// The highest term of any group, with the group.
    #[must_use]
    pub fn highest_term(&self) -> (GroupId, u64) {
        self.max_term.iter().map(|(group, term)| (*group, *term)).max_by_key(|(_, term)| *term).unwrap_or_default()
    }

    /// The highest term of a group.
    #[must_use]
    pub fn term_of(&self, group: GroupId) -> u64 {
        self.max_term.get(&group).copied().unwrap_or(0)
    }

    /// Elections won in a group.
    #[must_use]
    pub fn won(&self, group: GroupId) -> u64 {
        self.won.get(&group).copied().unwrap_or(0)
    }

    /// Elections won in all groups.
    #[must_use]
    pub fn won_in_all(&self) -> u64 {
        self.won.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(3);

    fn message(kind: RaftMessageKind, from: u64, to: u64, term: u64, reject: bool) -> RaftMessage {
        RaftMessage { reject, ..RaftMessage::new(kind, ReplicaId(from), ReplicaId(to), term) }
    }

    #[test]
    fn two_leaders_in_one_term_are_noticed() {
        let mut elections = Elections::default();
        let mut leads = |replica, term| elections.role(GROUP, (ReplicaId(replica), 1), Role::Leader, term);
        assert_eq!(leads(1, 2), Ok(true));
        assert_eq!(leads(1, 2), Ok(false), "said again");
        assert_eq!(leads(2, 3), Ok(true));
        assert!(leads(3, 3).is_err());
        assert_eq!(elections.role(GROUP, (ReplicaId(3), 1), Role::Follower, 3), Ok(false));
        assert_eq!((elections.won(GROUP), elections.highest_term()), (2, (GROUP, 3)));
    }

    #[test]
    fn a_replica_that_speaks_in_an_older_term_than_before_is_noticed() {
        use RaftMessageKind::{AppendResponse, PreVoteResponse};
        let mut elections = Elections::default();
        let answer = |kind, term| message(kind, 1, 2, term, false);
        elections.sent(GROUP, &answer(AppendResponse, 5)).expect("first");
        assert_eq!(elections.speaks_up(GROUP, &answer(AppendResponse, 4)), Ok(()), "of one flush");
        elections.flushed();
        assert!(elections.speaks_up(GROUP, &answer(AppendResponse, 4)).is_err());
        assert_eq!(elections.speaks_up(GROUP, &answer(AppendResponse, 5)), Ok(()));
        assert_eq!(elections.speaks_up(GROUP, &answer(PreVoteResponse, 4)), Ok(()), "nobody is in that term");
        assert!(elections.role(GROUP, (ReplicaId(1), 2), Role::Follower, 4).is_err(), "a silent one");
        assert_eq!(elections.role(GROUP, (ReplicaId(2), 2), Role::Follower, 4), Ok(false), "another");
    }

    #[test]
    fn two_replicas_that_speak_as_leaders_of_a_term_are_noticed() {
        use RaftMessageKind::{Append, AppendResponse, Heartbeat};
        let mut elections = Elections::default();
        let mut speaks = |kind, from| elections.speaks_as_leader(GROUP, &message(kind, from, 3, 5, false));
        assert_eq!((speaks(Append, 1), speaks(Heartbeat, 1), speaks(AppendResponse, 2)), (Ok(()), Ok(()), Ok(())));
        assert!(speaks(Heartbeat, 2).is_err());
    }

    #[test]
    fn a_second_vote_in_a_term_is_noticed() {
        use RaftMessageKind::{PreVoteResponse, Vote, VoteResponse};
        let mut elections = Elections::default();
        let mut sent = |kind, from, to, term, reject| elections.sent(GROUP, &message(kind, from, to, term, reject));
        assert!(sent(VoteResponse, 1, 2, 5, false).is_ok());
        assert!(sent(VoteResponse, 1, 2, 5, false).is_ok(), "the same again");
        assert!(sent(VoteResponse, 1, 3, 5, true).is_ok(), "a refusal");
        assert!(sent(PreVoteResponse, 1, 3, 5, false).is_ok(), "a pre-vote");
        assert!(sent(VoteResponse, 1, 3, 5, false).is_err());
        assert!(sent(Vote, 4, 1, 5, false).is_ok());
        assert!(sent(VoteResponse, 4, 1, 5, false).is_err(), "a candidate has voted for itself");
    }

    #[test]
    fn a_forgotten_term_is_noticed() {
        let mut elections = Elections::default();
        elections.sent(GROUP, &message(RaftMessageKind::AppendResponse, 1, 2, 7, false)).expect("fine");
        assert!(elections.came_back(GROUP, ReplicaId(1), 7).is_ok());
        assert!(elections.came_back(GROUP, ReplicaId(1), 6).is_err());
        elections.role(GROUP, (ReplicaId(2), 1), Role::Leader, 8).expect("the first");
        assert!(elections.came_back(GROUP, ReplicaId(2), 7).is_err(), "it led in term 8");
        assert!(elections.role(GROUP, (ReplicaId(2), 2), Role::Leader, 8).is_err(), "again, after a restart");
    }
}
