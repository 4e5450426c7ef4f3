//! A journal that nobody else uses: every call is carried out before it returns.

use base::limits::{DURABLE_MARK_IDLE, LOG_READ_BYTES_MAX};
use base::{GroupId, Mono};
use journal::{
    Checkpoint, DiskDone, DiskError, DiskOpKind, GroupAppend, Journal, JournalConfig, Output, RecoveredGroup, Round,
};
use wire::Entry;

use super::RecoverError;

/// Carries out one disk operation at once.
pub type Hands<'a> = &'a mut dyn FnMut(DiskOpKind) -> Result<DiskDone, DiskError>;

pub(super) struct Offline<'a> {
    journal: Journal,
    hands: Hands<'a>,
    groups: Vec<RecoveredGroup>,
    round: u64,
}

impl<'a> Offline<'a> {
    pub fn open(segment_bytes: u64, hands: Hands<'a>) -> Result<Offline<'a>, RecoverError> {
        let journal = Journal::new(JournalConfig { segment_bytes });
        let mut offline = Offline { journal, hands, groups: Vec::new(), round: 0 };
        offline.journal.start();
        offline.run()?;
        Ok(offline)
    }

    /// What was found at the start.
    pub fn groups(&self) -> &[RecoveredGroup] {
        &self.groups
    }

    /// Carries out all that is asked; gives back what was read.
    fn run(&mut self) -> Result<Option<Output>, RecoverError> {
        let mut read = None;
        while let Some(output) = self.journal.poll() {
            match output {
                Output::Disk(op) => {
                    let result = (self.hands)(op.kind);
                    self.journal.complete(op.id, result);
                }
                Output::Recovered(groups) => self.groups = groups,
                Output::Fatal(error) => return Err(error.into()),
                Output::DiskFull(full) if full => return Err(RecoverError::DiskFull),
                Output::Read { .. } | Output::CheckpointRead { .. } => read = Some(output),
                _ => {}
            }
        }
        Ok(read)
    }

    /// Entries from `low` on, at least one, at most up to `high`.
    pub fn read(&mut self, group: GroupId, low: u64, high: u64) -> Result<Vec<Entry>, RecoverError> {
        self.journal.read(0, group, low, high, LOG_READ_BYTES_MAX);
        match self.run()? {
            Some(Output::Read { result, .. }) => result.map_err(|error| RecoverError::group(group, error)),
            _ => Err(RecoverError::group(group, "its log was not read")),
        }
    }

    /// The whole state of a group's checkpoint.
    pub fn read_checkpoint(&mut self, group: GroupId, bytes: u64) -> Result<Vec<u8>, RecoverError> {
        let mut state = Vec::new();
        while (state.len() as u64) < bytes {
            self.journal.read_checkpoint(0, group, state.len() as u64, LOG_READ_BYTES_MAX);
            match self.run()? {
                Some(Output::CheckpointRead { result: Ok(part), .. }) if !part.data.is_empty() => {
                    state.extend_from_slice(&part.data);
                }
                Some(Output::CheckpointRead { result: Err(error), .. }) => {
                    return Err(RecoverError::group(group, error));
                }
                _ => return Err(RecoverError::group(group, "its checkpoint was not read")),
            }
        }
        Ok(state)
    }

    pub fn checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), RecoverError> {
        self.journal.checkpoint(checkpoint);
        self.run().map(drop)
    }

    pub fn append(&mut self, append: GroupAppend) -> Result<(), RecoverError> {
        self.round += 1;
        self.journal.append(Round { number: self.round, groups: vec![append] });
        self.run().map(drop)
    }

    /// Everything is durable, and marked as such: damage to it is noticed from now on.
    pub fn settle(&mut self) -> Result<(), RecoverError> {
        for tick in 1..=2 {
            self.journal.tick(Mono(0).plus(base::Millis(tick * DURABLE_MARK_IDLE.0)));
            self.run()?;
        }
        match self.journal.durable_round() == self.round {
            true => Ok(()),
            false => Err(RecoverError::group(GroupId::META, "the new journal is not durable")),
        }
    }
}
