//! The tables of `__meta` as the core holds them: read everywhere, and changed in three ways alone, each by its name. None
//! of the core's code writes a table by the way, beside the log.

use std::ops::Deref;

use metadata::{CommandEnvelope, CommandResult, Metadata};

/// See the module. There is no `DerefMut`, which would let everybody write.
#[derive(Default)]
pub(crate) struct Tables(Metadata);

impl Deref for Tables {
    type Target = Metadata;

    fn deref(&self) -> &Metadata {
        &self.0
    }
}

impl Tables {
    /// See [`Metadata::apply`].
    pub fn apply(&mut self, index: u64, envelope: &CommandEnvelope) -> CommandResult {
        self.0.apply(index, envelope)
    }

    /// See [`Metadata::skip`].
    pub fn skip(&mut self, index: u64) {
        self.0.skip(index);
    }

    /// A checkpoint's state takes the place of all that was there.
    pub fn replace(&mut self, state: Metadata) {
        self.0 = state;
    }
}
