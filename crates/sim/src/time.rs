//! Virtual time: nanoseconds since the start of the run. Nothing in this crate reads a real clock except the command
//! line, to say how fast it was.

/// Virtual nanoseconds, of the world (nodes have clocks of their own, see [`crate::node::SimNode::now`]).
pub type Nanos = u64;

/// Milliseconds as [`Nanos`].
#[must_use]
pub const fn ms(millis: u64) -> Nanos {
    millis * 1_000_000
}

/// Microseconds as [`Nanos`].
#[must_use]
pub const fn us(micros: u64) -> Nanos {
    micros * 1_000
}

/// Seconds with six places, as the trace shows them.
#[must_use]
pub fn show(at: Nanos) -> String {
    format!("{}.{:06}", at / 1_000_000_000, at / 1_000 % 1_000_000)
}
