//! Time as values. Pure code never asks for the time: it is told, in every event.

use std::fmt;

/// A point on this machine's monotonic clock (CLOCK_BOOTTIME), in nanoseconds. For timers only: never stored,
/// never sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Mono(pub u64);

/// A point in calendar time, in milliseconds since 1970-01-01T00:00:00Z. For timestamps, retention and the expiry of
/// tokens; may jump either way.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Debug,
    minicbor::Encode,
    minicbor::Decode,
    minicbor::CborLen,
)]
#[cbor(transparent)]
pub struct Wall(#[n(0)] pub i64);

/// A span of time in whole milliseconds.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Debug,
    minicbor::Encode,
    minicbor::Decode,
    minicbor::CborLen,
)]
#[cbor(transparent)]
pub struct Millis(#[n(0)] pub u64);

/// Both clocks, read at the same moment by whoever hands in an event.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// For timestamps.
    pub wall: Wall,
}

impl Mono {
    /// This point moved later by `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Millis) -> Mono {
        Mono(self.0.saturating_add(span.0.saturating_mul(1_000_000)))
    }

    /// Whole milliseconds since `earlier`; zero if `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Mono) -> Millis {
        Millis(self.0.saturating_sub(earlier.0) / 1_000_000)
    }
}

impl Wall {
    /// This point moved later by `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Millis) -> Wall {
        Wall(self.0.saturating_add(i64::try_from(span.0).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms >= 1000 => write!(f, "{}.{:03} s", ms / 1000, ms % 1000),
            ms => write!(f, "{ms} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_arithmetic_saturates() {
        let late = Mono(5_000_000);
        assert_eq!(late.since(Mono(0)), Millis(5));
        assert_eq!(Mono(0).since(late), Millis(0));
        assert_eq!(Mono(u64::MAX).plus(Millis(1)), Mono(u64::MAX));
    }
}
