//! After a restart: apply what the journal holds, chunk by chunk, before Raft runs the replica. Memory stays bounded,
//! because only entries above the commit index are kept.

use base::GroupId;
use base::limits::LOG_READ_BYTES_MAX;
use base::simulation::{Mark, Plant, mark, planted};
use metadata::Metadata;
use multiraft::GroupInit;
use wire::{Entry, EntryKind, MembershipChange};

use crate::core::{NodeCore, Stage};
use crate::groups::GroupStage;
use crate::journal_events::ReadFor;
use crate::{Effect, Formation};

impl NodeCore {
    /// The checkpoint of `__meta` is loaded: its size and state.
    pub(crate) fn checkpoint_loaded(&mut self, bytes: u64, state: Result<Box<Metadata>, String>) {
        match state {
            Ok(metadata) => {
                self.room.replaced(bytes);
                self.adopt_metadata(*metadata);
                if self.stage != Stage::Stopped {
                    self.replay_next(GroupId::META);
                }
            }
            Err(error) => self.fatal(format!("the checkpoint of __meta is unreadable: {error}")),
        }
    }

    /// Reads the next chunk, or hands the replica to Raft when all is read.
    pub(crate) fn replay_next(&mut self, group: GroupId) {
        let Some(entry) = self.groups.get(&group) else { return };
        let GroupStage::Replay { recovered, unapplied, .. } = &entry.stage else { return };
        let next = unapplied.last().map_or(entry.applied, |last| last.index) + 1;
        if next > recovered.last_index {
            return self.replay_done(group);
        }
        let high = recovered.last_index;
        let token = self.reads.begin(ReadFor::Replay(group));
        self.journal.read(token, group, next, high, LOG_READ_BYTES_MAX);
    }

    /// A chunk was read.
    pub(crate) fn replay(&mut self, group: GroupId, entries: Vec<Entry>) {
        for log_entry in entries {
            let Some(entry) = self.groups.get_mut(&group) else { return };
            let GroupStage::Replay { hard_state, unapplied, .. } = &mut entry.stage else { return };
            if log_entry.index > hard_state.commit {
                mark(Mark::UncommittedEntryAtStart);
                unapplied.push(log_entry);
                continue;
            }
            if log_entry.kind == EntryKind::Membership && !planted(Plant::MembershipLostOnRestart) {
                match wire::decode::<MembershipChange>(&log_entry.data) {
                    Ok(change) => {
                        if let Some(after) = multiraft::changed(&entry.membership, &change) {
                            entry.membership = after;
                        }
                    }
                    Err(error) => return self.fatal(format!("group {group}: membership entry unreadable: {error}")),
                }
            }
            self.apply_entry(group, &log_entry);
            if self.stage == Stage::Stopped {
                return;
            }
        }
        self.replay_next(group);
    }

    fn replay_done(&mut self, group: GroupId) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        let GroupStage::Replay { hard_state, checkpoint, recovered, unapplied } =
            std::mem::replace(&mut entry.stage, GroupStage::Running)
        else {
            return;
        };
        entry.stats.begins_in(hard_state.term);
        let single = entry.membership.voters == [entry.replica] && entry.membership.voters_outgoing.is_empty();
        self.raft.create(GroupInit {
            group,
            replica: entry.replica,
            hard_state,
            checkpoint,
            membership: entry.membership.clone(),
            first_index: recovered.first_index,
            last_index: recovered.last_index,
            term_runs: recovered.term_runs,
            applied: entry.applied - u64::from(planted(Plant::AppliedAgainAtRestart)),
            unapplied,
            campaign: single,
        });
        let applied = entry.applied;
        self.answer_early_vote(group);
        self.unpublished.insert(group);
        if group == GroupId::META {
            if applied > 0 && self.config.formation != Formation::Restart {
                mark(Mark::FormedBeforeItWasNoted);
                self.effects.push(Effect::Formed);
            }
            self.recovered();
        }
    }
}
