//! How spans of time are distributed: a histogram of fixed size.
//!
//! Its buckets end at numbers of two significant decimal digits (.. 140, 150, 160 ms ..), each in its bucket, so a
//! quantile is never told too low and at most a tenth too high, and "how many took longer than 200 ms" is told exactly.
//! That is all that a watcher of heartbeats needs, and little enough to be written by hand: what crates of this kind offer
//! on top (any precision, resizing, compression) would cost an allocation or a dependency in the pure layers.
//!
//! Counting neither allocates nor reads a clock: a span is the difference of two moments that events brought along.

use minicbor::{Decode, Encode};

use crate::Mono;

/// All up to this many microseconds fall into the first bucket.
const FIRST_US: u64 = 10;
/// Powers of ten from there on, to 100 s.
const DECADES: usize = 7;
/// Two significant digits: 11, 12, ... 100.
const PER_DECADE: usize = 90;
/// One below the decades and one above.
const BUCKETS: usize = 2 + DECADES * PER_DECADE;

/// Counts spans, in microseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    sum_us: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: Box::new([0; BUCKETS]), sum_us: 0, max_us: 0 }
    }
}

impl Histogram {
    /// Counts the time from `earlier` to `later`; nothing if the clock ran backwards.
    pub fn observe(&mut self, earlier: Mono, later: Mono) {
        self.observe_us(later.0.saturating_sub(earlier.0).div_ceil(1_000));
    }

    /// Counts a span.
    pub fn observe_us(&mut self, us: u64) {
        self.counts[bucket(us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// What was counted so far, to be sent and shown.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        let counted = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let buckets = counted.map(|(at, count)| (u16::try_from(at).unwrap_or(u16::MAX), *count)).collect();
        Distribution { buckets, sum_us: self.sum_us, max_us: self.max_us }
    }
}

/// What a [`Histogram`] counted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Distribution {
    /// (bucket, values in it), without the empty ones, in order.
    #[n(0)]
    buckets: Vec<(u16, u64)>,
    /// The sum of all values, in microseconds.
    #[n(1)]
    sum_us: u64,
    #[n(2)]
    max_us: u64,
}

impl Distribution {
    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The sum of all values, in microseconds.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The greatest value, exactly; `None` if there is none.
    #[must_use]
    pub fn max_us(&self) -> Option<u64> {
        (!self.buckets.is_empty()).then_some(self.max_us)
    }

    /// A value that so many of 1,000 values do not exceed (of 999: p99.9): never too low, at most a tenth too high.
    /// `None` if there is no value.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u16) -> Option<u64> {
        let count = self.count();
        let rank = u128::from(count) * u128::from(per_mille.min(1_000));
        let rank = u64::try_from(rank.div_ceil(1_000)).unwrap_or(u64::MAX).max(1);
        let mut seen = 0u64;
        let (at, _) = self.buckets.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= rank
        })?;
        Some(bound_us(usize::from(*at)).map_or(self.max_us, |bound| bound.min(self.max_us)))
    }

    /// How many values are at most `us`. Exact where `us` has at most two significant digits and is at least 10.
    #[must_use]
    pub fn at_most(&self, us: u64) -> u64 {
        let within = |at: u16| bound_us(usize::from(at)).is_some_and(|bound| bound <= us);
        self.buckets.iter().filter(|(at, _)| within(*at)).fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// The bucket of a value: the first whose bound is not below it.
fn bucket(us: u64) -> usize {
    let (mut unit, mut decade) = (1, 0);
    if us <= FIRST_US {
        return 0;
    }
    while us > 100 * unit {
        unit *= 10;
        decade += 1;
        if decade == DECADES {
            return BUCKETS - 1;
        }
    }
    let digits = us.div_ceil(unit) - FIRST_US;
    decade * PER_DECADE + usize::try_from(digits).unwrap_or(PER_DECADE)
}

/// The greatest value of a bucket; `None` of the last one, which has none.
fn bound_us(bucket: usize) -> Option<u64> {
    let Some(at) = bucket.checked_sub(1) else { return Some(FIRST_US) };
    let (decade, digits) = (at / PER_DECADE, at % PER_DECADE);
    let unit = 10u64.pow(u32::try_from(decade).unwrap_or(u32::MAX).min(18));
    (decade < DECADES).then(|| (FIRST_US + 1 + digits as u64) * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Distribution {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|us| histogram.observe_us(us));
        histogram.distribution()
    }

    #[test]
    fn every_value_lies_between_the_bounds_of_its_bucket() {
        let edges = (0..BUCKETS).filter_map(bound_us);
        for us in edges.flat_map(|bound| [bound - 1, bound, bound + 1]).chain([0, 1, u64::MAX]) {
            let at = bucket(us);
            assert!(bound_us(at).is_none_or(|bound| us <= bound), "{us} in bucket {at}");
            assert!(at == 0 || bound_us(at - 1).is_some_and(|below| us > below), "{us} in bucket {at}");
        }
        assert_eq!(bound_us(BUCKETS - 2), Some(100_000_000));
        assert_eq!(bucket(100_000_001), BUCKETS - 1);
    }

    #[test]
    fn a_quantile_is_never_too_low_and_at_most_a_tenth_too_high() {
        let values: Vec<u64> = (1..=10_000).map(|n| n * 37).collect();
        let counted = of(values.iter().copied());
        for per_mille in [1, 500, 990, 999, 1_000] {
            let exact = values[(values.len() * usize::from(per_mille)).div_ceil(1_000) - 1];
            let told = counted.quantile_us(per_mille).unwrap();
            assert!(told >= exact && told <= (exact + exact / 10).max(FIRST_US), "p{per_mille}: {told}, is {exact}");
        }
        assert_eq!(counted.quantile_us(1_000), Some(370_000), "the greatest is exact");
        assert_eq!(counted.max_us(), Some(370_000));
        assert_eq!(of([]).quantile_us(500), None);
        assert_eq!(of([500_000_000]).quantile_us(500), Some(500_000_000), "above all buckets: the greatest");
    }

    #[test]
    fn how_many_are_beyond_a_bound_is_exact() {
        let counted = of([150_000, 150_001, 199_999, 200_000, 200_001, 3_000_000, 200_000_000]);
        assert_eq!((counted.at_most(150_000), counted.at_most(200_000)), (1, 4));
        assert_eq!((counted.at_most(100_000_000), counted.count()), (6, 7));
        assert_eq!(counted.sum_us(), 150_000 + 150_001 + 199_999 + 200_000 + 200_001 + 3_000_000 + 200_000_000);
    }

    #[test]
    fn spans_come_from_moments_and_a_clock_that_runs_backwards_counts_as_none() {
        let mut histogram = Histogram::default();
        histogram.observe(Mono(1_000_000), Mono(151_000_001));
        histogram.observe(Mono(2_000), Mono(1_000));
        assert_eq!(
            histogram.distribution().max_us(),
            Some(150_001),
            "rounded up, so that no bound is kept by rounding"
        );
        assert_eq!(histogram.distribution().at_most(10), 1);
    }

    #[test]
    fn what_a_peer_sends_is_not_trusted() {
        let wild = Distribution { buckets: vec![(u16::MAX, u64::MAX), (3, u64::MAX)], sum_us: 1, max_us: 9 };
        assert_eq!(wild.count(), u64::MAX);
        assert_eq!(wild.quantile_us(999), Some(9));
        assert_eq!(wild.at_most(1_000), u64::MAX);
        let bytes = minicbor::to_vec(&wild).unwrap();
        assert_eq!(minicbor::decode::<Distribution>(&bytes).unwrap(), wild);
    }
}
