//! What must never happen, checked while it might.

use std::collections::BTreeMap;

use wire::{Entry, RaftMessage, RaftMessageKind};

use super::disk::Durable;

#[derive(Default)]
pub struct Checker {
    /// Whether the rules about single messages are checked, or only what clients can see.
    pub lenient: bool,
    /// Who led in a term.
    leaders: BTreeMap<u64, u64>,
    /// (voter, term) -> candidate.
    votes: BTreeMap<(u64, u64), u64>,
    /// What somebody applied at an index.
    pub committed: BTreeMap<u64, Entry>,
    pub leaders_seen: u64,
}

impl Checker {
    /// Raft figure 3, "election safety".
    pub fn leads(&mut self, replica: u64, term: u64, durable: u64) -> Result<(), String> {
        self.leaders_seen += 1;
        if !self.lenient && durable < term {
            return Err(format!("{replica} leads in term {term} with only {durable} durable"));
        }
        match *self.leaders.entry(term).or_insert(replica) {
            other if other != replica => Err(format!("{other} and {replica} lead in term {term}")),
            _ => Ok(()),
        }
    }

    /// Raft figure 3, "state machine safety": a committed entry never changes.
    pub fn applies(&mut self, replica: u64, entry: &Entry) -> Result<(), String> {
        match self.committed.entry(entry.index).or_insert_with(|| entry.clone()) {
            known if known != entry => Err(format!(
                "replica {replica} applies {}@{} of {:?} where another applied term {} of {:?}",
                entry.index, entry.term, entry.kind, known.term, known.kind
            )),
            _ => Ok(()),
        }
    }

    /// What a message promises must be durable when it leaves.
    pub fn leaves(&mut self, message: &RaftMessage, disk: &Durable) -> Result<(), String> {
        let RaftMessage { kind, from, term, .. } = *message;
        let election = matches!(kind, RaftMessageKind::PreVote | RaftMessageKind::PreVoteResponse);
        let vote = match kind {
            RaftMessageKind::Vote => Some(from.0),
            RaftMessageKind::VoteResponse if !message.reject => Some(message.to.0),
            _ => None,
        };
        if let Some(candidate) = vote {
            let known = *self.votes.entry((from.0, term)).or_insert(candidate);
            if known != candidate {
                return Err(format!("{from} votes for {known} and {candidate} in term {term}"));
            }
        }
        if self.lenient {
            return Ok(());
        }
        if !election && disk.hard_state.term < term {
            return Err(format!("{kind:?} of term {term} leaves {from} before the term is durable"));
        }
        let voted = disk.hard_state.term > term || vote.is_none_or(|candidate| disk.hard_state.vote.0 == candidate);
        if !voted {
            return Err(format!("{kind:?} of term {term} leaves {from} before its vote is durable"));
        }
        if kind == RaftMessageKind::AppendResponse && !message.reject && disk.last() < message.index {
            return Err(format!("{from} acknowledges {} with only {} durable", message.index, disk.last()));
        }
        Ok(())
    }

    /// Raft figure 3, "log matching", between two disks.
    pub fn logs_match(&self, one: &Durable, other: &Durable) -> Result<(), String> {
        let mut matching = false;
        for (index, entry) in one.entries.iter().rev() {
            let Some(its) = other.entries.get(index) else { continue };
            matching |= its.term == entry.term;
            if matching && its != entry {
                return Err(format!("logs with a common later entry differ at {index}"));
            }
        }
        Ok(())
    }
}
