//! Mistakes that can be planted in the product's own code, to prove that the checkers would find them.

super::table! {
    /// A broken rule. Each variant stands in the code that keeps the rule, and nowhere else.
    Plant {
        TermNeedNotBeDurable "term-need-not-be-durable"
            "Leaders lead, and their messages leave, before their term and vote are durable: the `raft` crate by itself.",
        ForgetPersistedMessages "forget-persisted-messages"
            "What waits for the disk is never sent: no votes, no acknowledgements.",
        AcknowledgeBeforeDurable "acknowledge-before-durable"
            "Followers acknowledge entries and votes that are not durable yet.",
        LeadBeforeDurable "lead-before-durable"
            "A new leader is announced before its term is durable.",
        SameTimeouts "same-timeouts"
            "All replicas draw the same election timeout.",
        ReplayMissedTicks "replay-missed-ticks"
            "Time that the process did not live through is made up for with a burst of ticks.",
        ForwardsCarriedOutTwice "forwards-carried-out-twice"
            "A forwarded request that must not be done twice is done as often as it arrives.",
    }
}

#[cfg(feature = "simulation")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Whether the code that asks shall break its rule.
#[cfg(feature = "simulation")]
#[must_use]
pub fn planted(plant: Plant) -> bool {
    PLANTED.get() == Some(plant)
}

/// Whether the code that asks shall break its rule: never, in the product.
#[cfg(not(feature = "simulation"))]
#[must_use]
#[inline(always)]
pub const fn planted(_plant: Plant) -> bool {
    false
}

/// Plants a mistake on this thread in the place of the one before, or none.
#[cfg(feature = "simulation")]
pub fn plant(plant: Option<Plant>) {
    PLANTED.set(plant);
}

/// Runs `run` with a mistake planted, and without it afterwards, even if `run` panics.
#[cfg(feature = "simulation")]
pub fn with_plant<T>(it: Plant, run: impl FnOnce() -> T) -> T {
    struct Unplant;
    impl Drop for Unplant {
        fn drop(&mut self) {
            plant(None);
        }
    }
    plant(Some(it));
    let _unplant = Unplant;
    run()
}
