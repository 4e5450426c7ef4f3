//! Coverage that means something: rare states of the protocol, counted where the code reaches them. A state that a
//! night of runs never reached was not tested, whatever the line coverage says.

super::table! {
    /// A rare state. Each variant stands where the code knows that it is in it.
    Mark {
        PausedBeyondElectionTimeout "paused-beyond-election-timeout"
            "A process found that it stood still for longer than an election timeout.",
    }
}

#[cfg(feature = "simulation")]
thread_local! {
    static REACHED: std::cell::RefCell<std::collections::BTreeMap<Mark, u64>> =
        const { std::cell::RefCell::new(std::collections::BTreeMap::new()) };
}

/// Counts that this state was reached, on this thread.
#[cfg(feature = "simulation")]
pub fn mark(mark: Mark) {
    REACHED.with_borrow_mut(|reached| *reached.entry(mark).or_default() += 1);
}

/// Counts that this state was reached: nothing, in the product.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub const fn mark(_mark: Mark) {}

/// What was reached on this thread since the last call, with how often.
#[cfg(feature = "simulation")]
#[must_use]
pub fn take_marks() -> std::collections::BTreeMap<Mark, u64> {
    REACHED.take()
}
