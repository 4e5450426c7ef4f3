//! "Did you mean": the candidate nearest to a mistyped word.

/// The candidate within a third of the word's length (at least 1, counting swaps as one), if there is one; ties go to
/// the first. Words beyond 64 characters have no neighbours, so that hostile input costs nothing.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(65).flat_map(char::to_lowercase).collect();
    if word.is_empty() || word.len() > 64 {
        return None;
    }
    let limit = (word.len() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other: Vec<char> = candidate.chars().take(65).flat_map(char::to_lowercase).collect();
        let distance = distance(&word, &other);
        if distance <= limit && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut least = (last[j] + usize::from(a[i] != b[j])).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before_last[j - 1] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let fields = ["cpus", "memory_mib", "image", "node"];
        for (typed, expect) in [
            ("cpu", Some("cpus")),
            ("cups", Some("cpus")),
            ("memory", None),
            ("memory_mb", Some("memory_mib")),
            ("Node", Some("node")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, fields), expect, "{typed:?}");
        }
        assert_eq!(nearest(&"x".repeat(1_000_000), fields), None);
    }
}
