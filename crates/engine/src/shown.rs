//! When those outside the core are shown the cluster's state.
//!
//! A shown state is a clone that is not changed any more, so that every change after it copies what it touches. With
//! thousands of keys written per second that was a fifth of the core's time, for states at which nobody looked. So a change of
//! keys alone is shown to whoever waits for it and is not shown at once otherwise, unless a read was answered that must see
//! it. Everything else is shown before the flush answers anybody.

use base::simulation::{Plant, planted};

/// What of the state those outside have not seen.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Keys changed since it was last said that they did.
    told_due: bool,
    /// Keys changed since the state was last shown at once.
    behind: bool,
    /// It is to be shown at once.
    due: bool,
}

impl Shown {
    /// A command was applied; `keys_only`: it changed keys, leases and what clients were answered, and nothing else.
    pub fn changed(&mut self, keys_only: bool) {
        self.told_due |= keys_only;
        self.behind |= keys_only;
        self.due |= !keys_only;
    }

    /// A read was answered: it must see all that is applied.
    pub fn read(&mut self) {
        self.due |= self.behind && !planted(Plant::ReadsNotShown);
    }

    /// Whether there is something to show, and whether at once.
    pub fn take(&mut self) -> Option<bool> {
        if self.due {
            *self = Shown::default();
            return Some(true);
        }
        std::mem::take(&mut self.told_due).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_at_once_only_to_reads() {
        let mut shown = Shown::default();
        assert_eq!(shown.take(), None);
        shown.read();
        assert_eq!(shown.take(), None, "a read that missed nothing");
        shown.changed(true);
        assert_eq!((shown.take(), shown.take()), (Some(false), None));
        shown.read();
        assert_eq!((shown.take(), shown.take()), (Some(true), None), "it was told, and may not have been shown");
        shown.changed(true);
        shown.changed(false);
        assert_eq!((shown.take(), shown.take()), (Some(true), None));
        shown.read();
        assert_eq!(shown.take(), None);
    }
}
