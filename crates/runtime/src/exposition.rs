//! The Prometheus text format 0.0.4, written: what a scrape gets.
//!
//! A family's lines stand together under its HELP and TYPE, each series once, which is what scrapers insist on.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

/// What kind of number a family is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Labels of one series.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    begun: BTreeSet<&'static str>,
}

/// One family in the making.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    kind: Kind,
}

impl Exposition {
    /// An empty text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a family. Its name begins with `muster_` (or `process_`), ends in the unit (seconds, bytes), and of a counter
    /// in `_total`. Each name can be begun once.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        debug_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "metric name {name:?}");
        debug_assert!(kind != Kind::Counter || name.ends_with("_total"), "the counter {name} does not end in _total");
        let new = self.begun.insert(name);
        debug_assert!(new, "the family {name} is there already");
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        line(&mut self.text, format_args!("# HELP {name} {help}"));
        line(&mut self.text, format_args!("# TYPE {name} {}", kind.as_str()));
        Family { text: &mut self.text, name, kind }
    }

    /// A gauge of one series.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: f64) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// A counter of one series.
    pub fn counter(&mut self, name: &'static str, help: &str, value: f64) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// One series of a counter or gauge.
    pub fn sample(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        self.rendered(&render_labels(labels), Number(value))
    }

    /// The same with labels that were rendered before.
    pub(crate) fn rendered(&mut self, labels: &str, value: impl Display) -> &mut Self {
        debug_assert!(self.kind != Kind::Histogram, "{} is a histogram", self.name);
        line(self.text, format_args!("{}{} {value}", self.name, braces(labels)));
        self
    }

    /// One series of a histogram: (bound, values up to it), ascending, without the last one, which is all of them.
    pub fn histogram(
        &mut self,
        labels: Labels<'_>,
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: f64,
        count: u64,
    ) -> &mut Self {
        self.rendered_histogram(&render_labels(labels), buckets, sum, count)
    }

    pub(crate) fn rendered_histogram(
        &mut self,
        labels: &str,
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: f64,
        count: u64,
    ) -> &mut Self {
        debug_assert!(self.kind == Kind::Histogram, "{} is no histogram", self.name);
        let (name, comma) = (self.name, if labels.is_empty() { "" } else { "," });
        for (bound, up_to) in buckets {
            line(self.text, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {up_to}"));
        }
        line(self.text, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}"));
        line(self.text, format_args!("{name}_sum{} {}", braces(labels), Number(sum)));
        line(self.text, format_args!("{name}_count{} {count}", braces(labels)));
        self
    }
}

/// A float as the format has it.
pub(crate) struct Number(pub f64);

impl Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            value if value.is_nan() => f.write_str("NaN"),
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            value => value.fmt(f),
        }
    }
}

pub(crate) fn render_labels(labels: Labels<'_>) -> String {
    let mut text = String::new();
    for (at, (key, value)) in labels.iter().enumerate() {
        debug_assert!(*key != "le" && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "label {key:?}");
        text.push_str(if at == 0 { "" } else { "," });
        text.push_str(key);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

fn braces(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_scrapers_want_it() {
        let mut text = Exposition::new();
        text.gauge("muster_rtt_seconds", "Round\ntrip \\ back.", f64::NAN);
        text.family("muster_x_total", Kind::Counter, "X.").sample(&[("a", "q\"\\\n")], 1.0).sample(&[("a", "ü")], 2.0);
        let buckets = [(0.00001, 1), (0.25, 3)].into_iter();
        text.family("muster_gap_seconds", Kind::Histogram, "Gaps.").histogram(&[("peer", "2")], buckets, 1.5, 4);
        text.family("muster_bound", Kind::Gauge, "B.").sample(&[], f64::INFINITY);
        let expected = "\
# HELP muster_rtt_seconds Round\\ntrip \\\\ back.
# TYPE muster_rtt_seconds gauge
muster_rtt_seconds NaN
# HELP muster_x_total X.
# TYPE muster_x_total counter
muster_x_total{a=\"q\\\"\\\\\\n\"} 1
muster_x_total{a=\"ü\"} 2
# HELP muster_gap_seconds Gaps.
# TYPE muster_gap_seconds histogram
muster_gap_seconds_bucket{peer=\"2\",le=\"0.00001\"} 1
muster_gap_seconds_bucket{peer=\"2\",le=\"0.25\"} 3
muster_gap_seconds_bucket{peer=\"2\",le=\"+Inf\"} 4
muster_gap_seconds_sum{peer=\"2\"} 1.5
muster_gap_seconds_count{peer=\"2\"} 4
# HELP muster_bound B.
# TYPE muster_bound gauge
muster_bound +Inf
";
        assert_eq!(text.finish(), expected);
    }
}
