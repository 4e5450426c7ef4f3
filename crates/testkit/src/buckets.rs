//! A histogram of Prometheus, as far as its buckets tell.

use crate::exposition::{Labels, Scrape};

/// Bounds and quotients of them that should be equal may differ by less than this.
const ROUNDING: f64 = 1e-9;

/// Upper bounds in seconds, ascending, the last one of all; and how many values are at most that.
#[derive(Clone, Debug, Default)]
pub struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// The histogram of that name; of several series with these labels, their sum.
    #[must_use]
    pub fn of(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Buckets {
        let name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, count) in scrape.series(&name, labels) {
            let Some(bound) = bound(labels) else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        Buckets(buckets)
    }

    /// What came after a histogram of earlier.
    #[must_use]
    pub fn without(mut self, before: &Buckets) -> Buckets {
        self.0.iter_mut().zip(&before.0).for_each(|(now, before)| now.1 -= before.1);
        self
    }

    /// Both together. They have the same bounds, or one is empty.
    #[must_use]
    pub fn with(mut self, other: Buckets) -> Buckets {
        if self.0.is_empty() {
            return other;
        }
        self.0.iter_mut().zip(&other.0).for_each(|(sum, one)| sum.1 += one.1);
        self
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |last| last.1)
    }

    /// The least bound, in milliseconds, that so large a part of the values keeps; 0 if there are no values.
    #[must_use]
    pub fn bound_ms(&self, part: f64) -> f64 {
        let count = self.count();
        if count == 0.0 {
            return 0.0;
        }
        let found = self.0.iter().find(|(_, up_to)| *up_to >= count * part);
        found.map_or(f64::INFINITY, |(bound, _)| bound * 1_000.0)
    }

    /// The part of the values that are above a bound in seconds: never too small. 0 if there are no values.
    #[must_use]
    pub fn above(&self, bound_s: f64) -> f64 {
        let within = self.0.iter().rev().find(|(bound, _)| *bound <= bound_s + ROUNDING);
        let count = self.count();
        if count == 0.0 { 0.0 } else { 1.0 - within.map_or(0.0, |(_, up_to)| up_to / count) }
    }

    /// The part of the values that are above a bound in seconds when each is put off by one of `delays`, as if these came to
    /// them by chance. A value is taken at its bucket's beginning and a delay at its bucket's end: without delays that are
    /// longer than a bucket it is the part that is above the bound anyway.
    #[must_use]
    pub fn above_with(&self, delays: &Buckets, bound_s: f64) -> f64 {
        let (mut late, mut begin, mut below) = (0.0, 0.0, 0.0);
        for (end, up_to) in &self.0 {
            let above = if begin + ROUNDING >= bound_s { 1.0 } else { delays.above(bound_s - begin) };
            late += (up_to - below) * above;
            (begin, below) = (*end, *up_to);
        }
        if below == 0.0 { 0.0 } else { late / below }
    }
}

fn bound(labels: &Labels) -> Option<f64> {
    match labels.get("le")?.as_str() {
        "+Inf" => Some(f64::INFINITY),
        bound => bound.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f64 = f64::INFINITY;

    /// Of two peers, on two channels.
    const TEXT: &str = "\
# HELP muster_a_seconds A.
# TYPE muster_a_seconds histogram
muster_a_seconds_bucket{peer=\"1\",channel=\"x\",le=\"0.1\"} 1
muster_a_seconds_bucket{peer=\"1\",channel=\"x\",le=\"+Inf\"} 2
muster_a_seconds_sum{peer=\"1\",channel=\"x\"} 1
muster_a_seconds_count{peer=\"1\",channel=\"x\"} 2
muster_a_seconds_bucket{peer=\"2\",channel=\"x\",le=\"0.1\"} 4
muster_a_seconds_bucket{peer=\"2\",channel=\"x\",le=\"+Inf\"} 8
muster_a_seconds_sum{peer=\"2\",channel=\"x\"} 1
muster_a_seconds_count{peer=\"2\",channel=\"x\"} 8
muster_a_seconds_bucket{peer=\"1\",channel=\"y\",le=\"0.1\"} 16
muster_a_seconds_bucket{peer=\"1\",channel=\"y\",le=\"+Inf\"} 32
muster_a_seconds_sum{peer=\"1\",channel=\"y\"} 1
muster_a_seconds_count{peer=\"1\",channel=\"y\"} 32
";

    #[test]
    fn several_series_are_one_histogram() {
        let scrape = Scrape::parse(TEXT).unwrap();
        assert_eq!(Buckets::of(&scrape, "muster_a_seconds", &[("channel", "x")]).0, [(0.1, 5.0), (INF, 10.0)]);
        let all = Buckets::of(&scrape, "muster_a_seconds", &[]);
        assert_eq!((all.count(), all.bound_ms(0.5), all.bound_ms(0.999)), (42.0, 100.0, INF));
        assert_eq!(all.clone().without(&all).count(), 0.0);
    }

    #[test]
    fn a_lane_that_stalls_shows_in_what_leaves_although_the_core_is_in_time() {
        // Of 10,000 gaps 5 are above 200 ms: kept, if nothing came on top.
        let up_to =
            [(0.15, 6_000.0), (0.17, 9_900.0), (0.19, 9_990.0), (0.2, 9_995.0), (0.25, 10_000.0), (INF, 10_000.0)];
        let gaps = Buckets(up_to.to_vec());
        let quick = Buckets(vec![(0.01, 700.0), (0.05, 700.0), (0.25, 700.0), (INF, 700.0)]);
        assert!((gaps.above(0.2) - 0.0005).abs() < ROUNDING);
        assert!((gaps.above_with(&quick, 0.2) - 0.0005).abs() < ROUNDING, "{}", gaps.above_with(&quick, 0.2));
        assert!((gaps.above_with(&Buckets::default(), 0.2) - 0.0005).abs() < ROUNDING, "nothing was delayed");
        // One in 100 waits for 300 ms, ...
        let stalls = Buckets(vec![(0.01, 693.0), (0.05, 693.0), (0.25, 693.0), (INF, 700.0)]);
        assert!(gaps.above_with(&stalls, 0.2) > 0.01, "{}", gaps.above_with(&stalls, 0.2));
        // ... and where all wait for up to 50 ms, those that the core sent 20 to 40 ms late are too late.
        let slow = Buckets(vec![(0.01, 0.0), (0.05, 700.0), (0.25, 700.0), (INF, 700.0)]);
        assert!(gaps.above_with(&slow, 0.2) > 0.009, "{}", gaps.above_with(&slow, 0.2));
    }
}
