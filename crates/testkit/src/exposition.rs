//! Prometheus' text format 0.0.4, read strictly: what a lenient scraper would let pass is an error here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

/// Labels of one series.
pub type Labels = BTreeMap<String, String>;

/// What one scrape gave.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// By the sample's name, such as `x_bucket` for one of the histogram `x`.
    samples: BTreeMap<String, Vec<(Labels, f64)>>,
    families: BTreeMap<String, String>,
}

#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    samples: Vec<(String, Labels, f64)>,
}

impl Scrape {
    /// Reads a whole text.
    ///
    /// # Errors
    /// At the first thing that is not as the format, or Prometheus' conventions for names, want it, with the line.
    pub fn parse(text: &str) -> anyhow::Result<Scrape> {
        ensure!(text.ends_with('\n'), "the last line does not end");
        let mut scrape = Scrape::default();
        let mut family: Option<Family> = None;
        for line in text.lines() {
            scrape.line(line, &mut family).with_context(|| format!("in the line {line:?}"))?;
        }
        scrape.end(family)?;
        Ok(scrape)
    }

    fn line(&mut self, line: &str, family: &mut Option<Family>) -> anyhow::Result<()> {
        if let Some(help) = line.strip_prefix("# HELP ") {
            self.end(family.take())?;
            let (name, help) = help.split_once(' ').context("a HELP without a text")?;
            check_name(name)?;
            ensure!(help.trim() == help && help.ends_with('.'), "a HELP is a sentence");
            ensure!(!self.families.contains_key(name), "{name} appears for the second time");
            *family = Some(Family { name: name.to_owned(), ..Family::default() });
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').context("a TYPE without a type")?;
            let family =
                family.as_mut().filter(|it| it.name == name && it.kind.is_empty()).context("no HELP before")?;
            ensure!(["counter", "gauge", "histogram"].contains(&kind), "an unknown type");
            ensure!((kind == "counter") == name.ends_with("_total"), "counters, and only they, end in _total");
            kind.clone_into(&mut family.kind);
        } else {
            let family = family.as_mut().filter(|it| !it.kind.is_empty()).context("a sample without HELP and TYPE")?;
            let (name, labels, value) = sample(line)?;
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            let belongs = |suffix: &&str| name.strip_suffix(*suffix) == Some(&family.name);
            ensure!(suffixes.iter().any(belongs), "it does not belong to {} {}", family.kind, family.name);
            ensure!(family.kind != "counter" || value >= 0.0, "a counter below zero");
            family.samples.push((name, labels, value));
        }
        Ok(())
    }

    fn end(&mut self, family: Option<Family>) -> anyhow::Result<()> {
        let Some(Family { name, kind, samples }) = family else { return Ok(()) };
        ensure!(!kind.is_empty(), "{name} has no TYPE");
        if kind == "histogram" {
            check_histogram(&name, &samples).with_context(|| format!("the histogram {name}"))?;
        }
        let mut seen = BTreeSet::new();
        for (name, labels, value) in samples {
            ensure!(seen.insert((name.clone(), labels.clone())), "{name}{labels:?} appears twice");
            self.samples.entry(name).or_default().push((labels, value));
        }
        self.families.insert(name, kind);
        Ok(())
    }

    /// The families' names with their types.
    #[must_use]
    pub fn families(&self) -> &BTreeMap<String, String> {
        &self.families
    }

    /// The series of a name whose labels include all of these.
    pub fn series<'a>(
        &'a self,
        name: &str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a Labels, f64)> {
        let has = |known: &Labels| labels.iter().all(|(key, value)| known.get(*key).is_some_and(|it| it == value));
        self.samples.get(name).into_iter().flatten().filter(move |(known, _)| has(known)).map(|(l, v)| (l, *v))
    }

    /// The value of the only such series.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let values: Vec<f64> = self.series(name, labels).map(|(_, value)| value).collect();
        let [value] = values[..] else { bail!("{} series of {name}{labels:?}", values.len()) };
        Ok(value)
    }

    /// The sum of all such series.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    ensure!(plain && (name.starts_with("muster_") || name.starts_with("process_")), "{name} is no name of ours");
    for unit in ["ms", "us", "ns", "milliseconds", "kib", "mib", "kilobytes"] {
        ensure!(!name.split('_').any(|word| word == unit), "{name} is not in a base unit");
    }
    Ok(())
}

/// `name{label="value",...} number`, without a time.
fn sample(line: &str) -> anyhow::Result<(String, Labels, f64)> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, rest) = line.split_at(end);
    check_name(name)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => read_labels(rest)?,
        None => (Labels::new(), rest),
    };
    let number = rest.strip_prefix(' ').context("no space before the value")?;
    ensure!(!number.contains(' '), "something follows the value");
    let value = match number {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => {
            let plain = number.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            number.parse().ok().filter(|_| plain).context("no number")?
        }
    };
    Ok((name.to_owned(), labels, value))
}

/// What stands between the braces, and what follows them.
fn read_labels(text: &str) -> anyhow::Result<(Labels, &str)> {
    let mut labels = Labels::new();
    let mut rest = text;
    loop {
        let (key, after) = rest.split_once("=\"").context("a label without a value")?;
        let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        ensure!(plain && !key.is_empty() && !key.starts_with("__"), "{key:?} is no label");
        let (value, after) = read_quoted(after)?;
        ensure!(labels.insert(key.to_owned(), value).is_none(), "the label {key} appears twice");
        match after.as_bytes().first() {
            Some(b',') => rest = &after[1..],
            Some(b'}') => return Ok((labels, &after[1..])),
            _ => bail!("neither a comma nor a brace behind a label"),
        }
    }
}

fn read_quoted(text: &str) -> anyhow::Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next().map(|(_, c)| c) {
                Some('\\') => '\\',
                Some('"') => '"',
                Some('n') => '\n',
                _ => bail!("an unknown escape"),
            }),
            c => value.push(c),
        }
    }
    bail!("a label's value does not end")
}

/// Buckets ascend and are cumulative, the last one is +Inf and all there are, and each series is whole.
fn check_histogram(name: &str, samples: &[(String, Labels, f64)]) -> anyhow::Result<()> {
    let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    let mut ends: BTreeMap<&str, BTreeMap<&Labels, f64>> = BTreeMap::new();
    for (sample, labels, value) in samples {
        let part = &sample[name.len()..];
        if part == "_bucket" {
            let mut labels = labels.clone();
            let bound = labels.remove("le").context("a bucket without a bound")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse()? };
            buckets.entry(labels).or_default().push((bound, *value));
        } else {
            ensure!(!labels.contains_key("le"), "{sample} has a bound");
            ends.entry(part).or_default().insert(labels, *value);
        }
    }
    let (sums, counts) = (ends.remove("_sum").unwrap_or_default(), ends.remove("_count").unwrap_or_default());
    ensure!(sums.len() == buckets.len() && counts.len() == buckets.len(), "a series is not whole");
    for (labels, buckets) in &buckets {
        let ascends = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        ensure!(buckets.windows(2).all(ascends), "the buckets of {labels:?} do not ascend: {buckets:?}");
        let last = buckets.last().context("no bucket")?;
        let whole = last.0 == f64::INFINITY && counts.get(labels) == Some(&last.1);
        ensure!(whole && sums.contains_key(labels), "the last bucket of {labels:?} is not all of them");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
# HELP muster_a_total A.
# TYPE muster_a_total counter
muster_a_total{x=\"q\\\"\\\\\\n, }\",y=\"\"} 3
muster_a_total{x=\"b\"} 4
# HELP muster_b_seconds B.
# TYPE muster_b_seconds histogram
muster_b_seconds_bucket{p=\"1\",le=\"0.1\"} 2
muster_b_seconds_bucket{p=\"1\",le=\"+Inf\"} 3
muster_b_seconds_sum{p=\"1\"} 0.7
muster_b_seconds_count{p=\"1\"} 3
# HELP process_c C.
# TYPE process_c gauge
process_c NaN
";

    #[test]
    fn a_valid_text_is_read() {
        let scrape = Scrape::parse(GOOD).unwrap();
        assert_eq!(scrape.value("muster_a_total", &[("x", "q\"\\\n, }")]).unwrap(), 3.0);
        assert_eq!(scrape.sum("muster_a_total", &[]), 7.0);
        assert_eq!(scrape.value("muster_b_seconds_bucket", &[("le", "0.1"), ("p", "1")]).unwrap(), 2.0);
        assert!(scrape.value("process_c", &[]).unwrap().is_nan());
        assert_eq!(scrape.families().len(), 3);
    }

    #[test]
    fn whatever_is_wrong_is_refused() {
        for (old, new, why) in [
            ("muster_a_total{x=\"b\"} 4\n", "muster_a_total{x=\"q\\\"\\\\\\n, }\",y=\"\"} 4\n", "twice"),
            ("# TYPE process_c gauge\n", "", "without HELP and TYPE"),
            ("# HELP process_c C.\n", "", "no HELP before"),
            ("# HELP process_c C.\n", "# HELP muster_a_total A.\n", "second time"),
            ("process_c NaN", "process_d NaN", "does not belong"),
            ("process_c NaN", "process_c NaN 12", "follows the value"),
            ("process_c NaN", "process_c nan", "no number"),
            ("process_c NaN\n", "process_c NaN", "does not end"),
            ("\\n, }", "\\t, }", "unknown escape"),
            ("le=\"0.1\"} 2", "le=\"0.1\"} 4", "do not ascend"),
            ("_count{p=\"1\"} 3", "_count{p=\"1\"} 4", "not all of them"),
            ("muster_b_seconds_sum{p=\"1\"} 0.7\n", "", "not whole"),
            ("process_c", "process_c_ms", "base unit"),
            ("muster_a_total", "muster_a", "end in _total"),
            ("muster_a_total{x=\"b\"} 4", "muster_a_total{x=\"b\"} -4", "below zero"),
        ] {
            let text = if why == "base unit" || why == "end in _total" {
                GOOD.replace(old, new)
            } else {
                GOOD.replacen(old, new, 1)
            };
            let error = Scrape::parse(&text).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{why}: {error:#}\n{text}");
        }
    }
}
