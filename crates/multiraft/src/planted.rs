//! Bugs that tests can plant, to prove that the checkers would catch them. Outside of tests none exists.

/// A broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// Leaders lead, and their messages leave, before their term is durable: the crate by itself.
    TermNeedNotBeDurable,
    /// What waits for the disk is never sent: no votes, no acknowledgements.
    ForgetPersistedMessages,
    /// Acknowledgements leave before what they acknowledge is durable.
    AcknowledgeBeforeDurable,
    /// A new leader is announced before its term is durable.
    LeadBeforeDurable,
    /// All replicas draw the same election timeout.
    SameTimeouts,
    /// Time that the process did not live through counts.
    ReplayMissedTicks,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Runs with a bug.
#[cfg(test)]
pub(crate) fn with<T>(bug: Bug, run: impl FnOnce() -> T) -> T {
    struct Unplant;
    impl Drop for Unplant {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
    PLANTED.set(Some(bug));
    let _unplant = Unplant;
    run()
}

#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
