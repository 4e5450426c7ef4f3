//! The rate of the time stamp counter. A guest under TCG that has to find it out by itself hangs at random while it
//! boots, so it is told (`tsc_early_khz`).

#[cfg(target_arch = "x86_64")]
mod measure {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    /// Long enough that the two readings at either end do not matter: 0.1 us in 100 ms.
    const SPAN: Duration = Duration::from_millis(100);

    /// Counter steps per millisecond. Blocks for 100 ms.
    pub(crate) fn measure_khz() -> u64 {
        let (count_begin, time_begin) = read();
        std::thread::sleep(SPAN);
        let (count_end, time_end) = read();
        let nanoseconds = u128::from((time_end.saturating_sub(time_begin)).max(1));
        let steps = u128::from(count_end.wrapping_sub(count_begin));
        u64::try_from(steps * 1_000_000 / nanoseconds).unwrap_or(0)
    }

    /// Counter and clock at one moment: of a few pairs, the one read the quickest, so that no interruption lies between.
    fn read() -> (u64, u64) {
        let pairs = (0..8).map(|_| {
            let before = crate::sys::time_stamp_counter();
            let time = clock_gettime(ClockId::MonotonicRaw);
            let after = crate::sys::time_stamp_counter();
            let nanoseconds = time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs();
            (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), nanoseconds)
        });
        pairs.min().map_or((0, 0), |(_, count, nanoseconds)| (count, nanoseconds))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn two_measurements_agree() {
            let (first, second) = (measure_khz(), measure_khz());
            assert!(first > 100_000, "{first} kHz is slower than any processor");
            assert!(first.abs_diff(second) < first / 1000, "{first} kHz, then {second} kHz");
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use measure::measure_khz;

/// Other architectures have no such counter and need no telling.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn measure_khz() -> u64 {
    0
}
