//! Ticks from real elapsed time.

use base::limits::TICK;
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{Mono, Now};

use crate::TickCounts;

const TICK_NS: i64 = TICK.0 as i64 * 1_000_000;

/// What a moment means for the groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beat {
    /// Nothing yet.
    None,
    /// So many ticks: one.
    Ticks(u64),
    /// The process did not run for longer than an election timeout: whoever led may have been replaced.
    Paused,
}

/// What counts as due: a caller who looks twice a tick is at most so far from the moment, early or late. Were an early one
/// put off to the next look, every heartbeat that comes just before its time would leave half a tick late.
const EARLY_NS: i64 = TICK_NS / 4;

/// At most one tick per call and, on the whole, per [`TICK`] of real time. At most one more tick is owed, so that a caller
/// whose timer jitters keeps the pace; what was missed beyond that is skipped, never replayed in a burst.
#[derive(Debug, Default)]
pub(crate) struct TickClock {
    last: Option<Mono>,
    /// Time that passed since the last tick was due: less than nothing after an early one.
    owed_ns: i64,
    passed: u64,
    skipped_ns: u64,
    pauses: u64,
}

impl TickClock {
    pub(crate) fn beat(&mut self, now: Now, election_ticks: u32) -> Beat {
        let Some(last) = self.last else {
            self.last = Some(now.mono);
            return Beat::None;
        };
        self.last = Some(last.max(now.mono));
        let gap = i64::try_from(now.mono.0.saturating_sub(last.0)).unwrap_or(i64::MAX / 2);
        if planted(Plant::ReplayMissedTicks) {
            self.owed_ns += gap;
            let ticks = self.owed_ns.max(0) / TICK_NS;
            self.owed_ns -= ticks * TICK_NS;
            return Beat::Ticks(ticks.unsigned_abs());
        }
        if gap > TICK_NS * i64::from(election_ticks) && !planted(Plant::PauseUnnoticed) {
            self.skipped_ns += (self.owed_ns + gap).unsigned_abs();
            self.pauses += 1;
            self.owed_ns = 0;
            mark(Mark::PausedBeyondElectionTimeout);
            return Beat::Paused;
        }
        let owed = self.owed_ns + gap;
        if owed + EARLY_NS < TICK_NS {
            self.owed_ns = owed;
            return Beat::None;
        }
        mark_if(Mark::TickedEarly, || owed < TICK_NS);
        self.owed_ns = (owed - TICK_NS).min(TICK_NS);
        self.skipped_ns += (owed - TICK_NS - self.owed_ns).unsigned_abs();
        self.passed += 1;
        Beat::Ticks(1)
    }

    pub(crate) fn counts(&self) -> TickCounts {
        TickCounts { passed: self.passed, skipped: self.skipped_ns / TICK_NS.unsigned_abs(), pauses: self.pauses }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks for calls at these milliseconds.
    fn ticks(times_ms: &[u64]) -> Vec<Beat> {
        let mut clock = TickClock::default();
        let now = |ms: &u64| Now { mono: Mono(ms * 1_000_000), ..Now::default() };
        times_ms.iter().map(|ms| clock.beat(now(ms), 20)).collect()
    }

    #[test]
    fn a_jittering_caller_keeps_the_pace() {
        let times: Vec<u64> = (0..=200).map(|n| n * 50 + [0, 7, 0, 45][n as usize % 4]).collect();
        let count = ticks(&times).iter().filter(|beat| **beat == Beat::Ticks(1)).count();
        assert!((199..=200).contains(&count), "{count} ticks in 10 s");
    }

    #[test]
    fn missed_ticks_are_skipped_and_never_come_in_a_burst() {
        let mut times = vec![0, 50, 950];
        times.extend((951..985).step_by(3));
        let beats = ticks(&times);
        assert_eq!(beats[..3], [Beat::None, Beat::Ticks(1), Beat::Ticks(1)]);
        let rest = beats[3..].iter().filter(|beat| **beat != Beat::None).count();
        assert!(rest <= 1, "{rest} ticks right after a stall");
    }

    #[test]
    fn a_caller_that_looks_twice_a_tick_and_jitters_is_never_half_a_tick_off() {
        let times: Vec<u64> = (0..=400).map(|n| 100 + n * 25 + [4, 0, 3, 1, 2][n as usize % 5]).collect();
        let beats = ticks(&times);
        let ticked: Vec<u64> =
            times.iter().zip(beats).filter(|(_, beat)| *beat == Beat::Ticks(1)).map(|(time, _)| *time).collect();
        let gaps: Vec<u64> = ticked.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().all(|gap| (45..=55).contains(gap)), "{gaps:?}");
        assert!((199..=200).contains(&ticked.len()), "{} ticks in 10 s", ticked.len());
    }

    #[test]
    fn what_was_skipped_is_counted_by_the_time_that_was_lost() {
        let mut clock = TickClock::default();
        let mut beat = |ms: u64| clock.beat(Now { mono: Mono(ms * 1_000_000), ..Now::default() }, 20);
        // 400 ms late: one tick passes, one is owed, six are lost. Then a pause, all of which is lost.
        for ms in [0, 50, 450, 500, 2_000] {
            beat(ms);
        }
        assert_eq!(clock.counts(), TickCounts { passed: 3, skipped: 6 + 31, pauses: 1 });
        let mut steady = TickClock::default();
        for n in 0..1_000 {
            steady.beat(Now { mono: Mono(n * 20_000_000), ..Now::default() }, 20);
        }
        assert_eq!(steady.counts().skipped, 0);
    }

    #[test]
    fn a_gap_beyond_an_election_timeout_is_a_pause() {
        assert_eq!(ticks(&[0, 1000, 2001, 2051]), [Beat::None, Beat::Ticks(1), Beat::Paused, Beat::Ticks(1)]);
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_makes_no_ticks() {
        assert_eq!(ticks(&[500, 500, 100, 149]), [Beat::None, Beat::None, Beat::None, Beat::None]);
    }
}
