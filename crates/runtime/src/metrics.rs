//! Counters, gauges and histograms.
//!
//! A handle is an `Arc` over atomics: updating one takes no lock. Registering is idempotent: asking twice for one
//! (name, labels) gives the same series, so that a restarted task goes on counting where its predecessor stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::exposition::{Exposition, Kind, Number, render_labels};

/// Series in one registry, at most. Beyond it new series are counted, not kept.
const SERIES_MAX: usize = 16_384;

/// Bucket bounds for latencies, in seconds: 50 us to 10 s.
pub const LATENCY_BUCKETS_S: &[f64] =
    &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds `delta`, which may be negative.
    pub fn add(&self, delta: f64) {
        add_f64(&self.0, delta);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// How often values fell into each of a few fixed buckets.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<HistogramInner>);

#[derive(Debug)]
struct HistogramInner {
    bounds: &'static [f64],
    /// One per bound, and one for what is above all of them; not cumulative.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram(Arc::new(HistogramInner { bounds, counts, sum: AtomicU64::new(0) }))
    }

    /// Counts one value. NaN is ignored.
    pub fn observe(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        add_f64(&self.0.sum, value);
    }

    /// (bound, values up to it), and how many values there are: read once, so that they fit together.
    fn cumulative(&self) -> (Vec<(f64, u64)>, u64) {
        let mut count = 0;
        let mut up_to = Vec::with_capacity(self.0.counts.len());
        for (at, bucket) in self.0.counts.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            up_to.extend(self.0.bounds.get(at).map(|bound| (*bound, count)));
        }
        (up_to, count)
    }

    /// Values counted so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

fn add_f64(cell: &AtomicU64, delta: f64) {
    let add = |bits| Some((f64::from_bits(bits) + delta).to_bits());
    // The closure always returns Some, so this cannot fail; the result is the old value, of no use here.
    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
}

#[derive(Clone, Debug)]
enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Series {
    fn kind(&self) -> Kind {
        match self {
            Series::Counter(_) => Kind::Counter,
            Series::Gauge(_) => Kind::Gauge,
            Series::Histogram(_) => Kind::Histogram,
        }
    }
}

#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: Kind,
    /// By rendered labels (`peer="2",channel="bulk"`).
    series: BTreeMap<String, Series>,
}

/// All metrics of one node.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    families: BTreeMap<&'static str, Family>,
    series: usize,
    refused: u64,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter `name` (which should end in `_total`) with these labels, made if it is not there.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
        match self.series(name, help, labels, Series::Counter(Counter::default())) {
            Some(Series::Counter(counter)) => counter,
            _ => Counter::default(),
        }
    }

    /// The gauge `name` with these labels, made if it is not there.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, labels, Series::Gauge(Gauge::default())) {
            Some(Series::Gauge(gauge)) => gauge,
            _ => Gauge::default(),
        }
    }

    /// The histogram `name` with these labels, made if it is not there. `bounds` ascend.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        bounds: &'static [f64],
    ) -> Histogram {
        debug_assert!(bounds.is_sorted(), "bucket bounds of {name} do not ascend");
        match self.series(name, help, labels, Series::Histogram(Histogram::new(bounds))) {
            Some(Series::Histogram(histogram)) => histogram,
            _ => Histogram::new(bounds),
        }
    }

    /// Forgets every series that carries the label `key="value"`, such as those of a peer that was removed.
    pub fn forget(&self, key: &str, value: &str) {
        let wanted = render_labels(&[(key, value)]);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removed = 0;
        for family in inner.families.values_mut() {
            let before = family.series.len();
            family.series.retain(|labels, _| !split_labels(labels).any(|label| label == wanted));
            removed += before - family.series.len();
        }
        inner.series -= removed;
    }

    /// Adds everything to a text, sorted, so that equal states give equal texts.
    pub fn render_into(&self, out: &mut Exposition) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, family) in inner.families.iter().filter(|(_, family)| !family.series.is_empty()) {
            let mut text = out.family(name, family.kind, family.help);
            for (labels, series) in &family.series {
                match series {
                    Series::Counter(counter) => text.rendered(labels, counter.get()),
                    Series::Gauge(gauge) => text.rendered(labels, Number(gauge.get())),
                    Series::Histogram(histogram) => {
                        let (buckets, count) = histogram.cumulative();
                        let sum = f64::from_bits(histogram.0.sum.load(Ordering::Relaxed));
                        text.rendered_histogram(labels, buckets.into_iter(), sum, count)
                    }
                };
            }
        }
        let help = "Series that were not kept because there are too many, or of another kind than before.";
        out.counter("muster_metrics_refused_total", help, inner.refused as f64);
    }

    /// The same as a text of its own.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = Exposition::new();
        self.render_into(&mut out);
        out.finish()
    }

    /// None: the caller gets a series that counts for itself and is not shown.
    fn series(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)], fresh: Series) -> Option<Series> {
        debug_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "metric name {name:?}");
        let key = render_labels(labels);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let full = inner.series >= SERIES_MAX;
        let family =
            inner.families.entry(name).or_insert_with(|| Family { help, kind: fresh.kind(), series: BTreeMap::new() });
        if family.kind != fresh.kind() {
            let (first, second) = (family.kind.as_str(), fresh.kind().as_str());
            tracing::error!(metric = name, "registered as {first} and as {second}");
            inner.refused += 1;
            return None;
        }
        if let Some(series) = family.series.get(&key) {
            return Some(series.clone());
        }
        if full {
            inner.refused += 1;
            return None;
        }
        family.series.insert(key, fresh.clone());
        inner.series += 1;
        Some(fresh)
    }
}

/// The labels of a rendered list, one by one; a comma inside a quoted value does not divide.
fn split_labels(labels: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    labels.split(move |c: char| {
        let divides = c == ',' && !quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        divides
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_renders_sorted_and_escaped() {
        let registry = Registry::new();
        registry.counter("b_total", "Frames\nsent.", &[("peer", "a\"b\\c\n")]).add(3);
        registry.gauge("a_gauge", "A gauge.", &[]).set(-1.5);
        let histogram = registry.histogram("c_seconds", "A histogram.", &[("x", "1")], &[0.1, 1.0]);
        for value in [0.05, 0.1, 0.5, 7.0, f64::NAN] {
            histogram.observe(value);
        }
        let expected = "\
# HELP a_gauge A gauge.
# TYPE a_gauge gauge
a_gauge -1.5
# HELP b_total Frames\\nsent.
# TYPE b_total counter
b_total{peer=\"a\\\"b\\\\c\\n\"} 3
# HELP c_seconds A histogram.
# TYPE c_seconds histogram
c_seconds_bucket{x=\"1\",le=\"0.1\"} 2
c_seconds_bucket{x=\"1\",le=\"1\"} 3
c_seconds_bucket{x=\"1\",le=\"+Inf\"} 4
c_seconds_sum{x=\"1\"} 7.65
c_seconds_count{x=\"1\"} 4
# HELP muster_metrics_refused_total Series that were not kept because there are too many, or of another kind than before.
# TYPE muster_metrics_refused_total counter
muster_metrics_refused_total 0
";
        assert_eq!(registry.render(), expected);
    }

    #[test]
    fn the_same_name_and_labels_are_the_same_series_and_a_wrong_kind_is_refused() {
        let registry = Registry::new();
        registry.counter("n_total", "", &[("a", "1")]).inc();
        registry.counter("n_total", "", &[("a", "1")]).inc();
        registry.counter("n_total", "", &[("a", "2")]).inc();
        registry.gauge("n_total", "", &[("a", "1")]).set(100.0);
        let text = registry.render();
        assert!(text.contains("n_total{a=\"1\"} 2\n"), "{text}");
        assert!(text.contains("n_total{a=\"2\"} 1\n"), "{text}");
        assert!(text.contains("muster_metrics_refused_total 1\n"), "{text}");
    }

    #[test]
    fn series_are_bounded_and_can_be_forgotten() {
        let registry = Registry::new();
        for n in 0..SERIES_MAX + 10 {
            registry.counter("n_total", "", &[("peer", &n.to_string()), ("channel", "a,peer=\"1\"")]).inc();
        }
        assert!(registry.render().contains("muster_metrics_refused_total 10\n"));
        registry.forget("peer", "1");
        let text = registry.render();
        assert!(!text.contains("n_total{peer=\"1\","), "forgotten");
        assert!(text.contains("n_total{peer=\"2\","), "another one stays, its quoted comma does not confuse");
        registry.counter("n_total", "", &[("peer", "new")]).inc();
        assert!(registry.render().contains("n_total{peer=\"new\"} 1\n"), "there is room again");
    }
}
