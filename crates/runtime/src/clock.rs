//! The two clocks of a node, read together.

use base::{Mono, Now, Wall};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Both clocks at this moment: `mono` is CLOCK_BOOTTIME, which goes on while the machine sleeps (a lease must not
    /// outlive a suspend); `wall` is CLOCK_REALTIME, which may jump.
    #[must_use]
    pub fn now(self) -> Now {
        Now { mono: Mono(nanos(clock_gettime(ClockId::Boottime))), wall: wall(clock_gettime(ClockId::Realtime)) }
    }
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

fn wall(time: Timespec) -> Wall {
    Wall(time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_advances_and_the_wall_clock_is_the_system_s() {
        let before = std::time::SystemTime::now();
        let first = Clock.now();
        let second = Clock.now();
        assert!(second.mono >= first.mono);
        let unix = before.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
        let off = i128::from(first.wall.0) - i128::try_from(unix).expect("fits");
        assert!((0..10_000).contains(&off), "off by {off} ms");
    }
}
