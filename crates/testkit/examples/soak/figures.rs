//! What was measured, against what was promised.

use std::time::Duration;

/// All figures so far.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    count: usize,
    /// Smallest, median, 99th percentile, largest.
    spread: [String; 4],
    limit: String,
    kept: bool,
}

/// What a spread of times must not exceed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limit {
    pub median: Option<Duration>,
    pub max: Option<Duration>,
}

impl Limit {
    pub fn max(max: Duration) -> Limit {
        Limit { max: Some(max), ..Limit::default() }
    }

    fn text(self) -> String {
        let part = |name: &str, limit: Option<Duration>| limit.map(|limit| format!("{name} {}", shown(limit)));
        let parts: Vec<String> = [part("median", self.median), part("max", self.max)].into_iter().flatten().collect();
        if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
    }
}

/// A duration in milliseconds.
pub fn shown(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1_000.0)
}

impl Figures {
    /// Times, all of which should be within the limit. No times at all are a failure.
    pub fn times(&mut self, what: &str, mut times: Vec<Duration>, limit: Limit) {
        times.sort_unstable();
        let at =
            |part: f64| times.get(((times.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or_default();
        let [min, median, p99, max] = [0.0, 0.5, 0.99, 1.0].map(at);
        let within = |time: Duration, limit: Option<Duration>| limit.is_none_or(|limit| time <= limit);
        let kept = !times.is_empty() && within(median, limit.median) && within(max, limit.max);
        let spread = [min, median, p99, max].map(shown);
        self.add(Row { what: what.to_owned(), count: times.len(), spread, limit: limit.text(), kept });
    }

    /// A number and the most that it may be.
    pub fn number(&mut self, what: &str, values: &[f64], unit: &str, most: Option<f64>) {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at =
            |part: f64| sorted.get(((sorted.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or(f64::NAN);
        let spread = [0.0, 0.5, 0.99, 1.0].map(|part| format!("{:.2}{unit}", at(part)));
        let limit = most.map_or_else(|| "-".to_owned(), |most| format!("max {most}{unit}"));
        let kept = !sorted.is_empty() && most.is_none_or(|most| at(1.0) <= most);
        self.add(Row { what: what.to_owned(), count: sorted.len(), spread, limit, kept });
    }

    /// Something that was to be so, and whether it was, with what was seen.
    pub fn verdict(&mut self, what: &str, kept: bool, seen: &str) {
        let spread = [seen.to_owned(), String::new(), String::new(), String::new()];
        self.add(Row { what: what.to_owned(), count: 1, spread, limit: "holds".to_owned(), kept });
    }

    /// Limits that were not kept.
    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| !row.kept).count()
    }

    fn add(&mut self, row: Row) {
        eprintln!("{}", row.line());
        self.rows.push(row);
    }

    /// Prints the table; whether every limit was kept.
    pub fn show(&self) -> bool {
        println!("| what | n | min | median | p99 | max | limit | kept |\n|---|---|---|---|---|---|---|---|");
        self.rows.iter().for_each(|row| println!("{}", row.line()));
        let missed: Vec<&Row> = self.rows.iter().filter(|row| !row.kept).collect();
        missed.iter().for_each(|row| println!("MISSED: {} ({}): {}", row.what, row.limit, row.spread.join(" / ")));
        missed.is_empty()
    }
}

impl Row {
    fn line(&self) -> String {
        let [min, median, p99, max] = &self.spread;
        let kept = if self.kept { "yes" } else { "NO" };
        format!("| {} | {} | {min} | {median} | {p99} | {max} | {} | {kept} |", self.what, self.count, self.limit)
    }
}
