//! A run as people read it: what happened, from the top down, with a column for each node.

use std::fmt::Write;

use crate::queue::NodeIx;
use crate::time::{Nanos, show};

/// Width of a column, in characters.
const WIDTH: usize = 30;

/// What is worth a line: incidents, not events.
#[derive(Debug, Default)]
pub struct Timeline {
    rows: Vec<(Nanos, Option<NodeIx>, String)>,
}

impl Timeline {
    /// Notes an incident of a node, or of the whole world.
    pub fn note(&mut self, at: Nanos, node: Option<NodeIx>, what: String) {
        self.rows.push((at, node, what));
    }

    /// The text, for so many nodes.
    #[must_use]
    pub fn render(&self, nodes: usize) -> String {
        let mut text = format!("{:>12}", "seconds");
        for node in 0..nodes {
            write!(text, "  {:<WIDTH$}", format!("n{node}")).expect("writing to a string cannot fail");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        let mut last = None;
        for (at, node, what) in &self.rows {
            // The time stands once for all that happens at it.
            let time = if last == Some(*at) { String::new() } else { show(*at) };
            last = Some(*at);
            match node {
                None => writeln!(text, "{time:>12}  -- {what}").expect("writing to a string cannot fail"),
                Some(node) => {
                    for (line, part) in wrap(what).into_iter().enumerate() {
                        let time = if line == 0 { time.as_str() } else { "" };
                        let indent = node * (WIDTH + 2);
                        writeln!(text, "{time:>12}  {:indent$}{part}", "").expect("writing to a string cannot fail");
                    }
                }
            }
        }
        text
    }
}

/// The lines of a column.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_columns_and_what_concerns_all_crosses_them() {
        let mut timeline = Timeline::default();
        timeline.note(1_000_000, Some(0), "starts".into());
        timeline.note(1_000_000, Some(1), "starts".into());
        timeline.note(2_500_000_000, None, "the cluster has formed".into());
        timeline.note(2_500_000_001, Some(1), "says something that is too long to stand in one column of this".into());
        let text = timeline.render(2);
        let lines: Vec<&str> = text.lines().collect();
        let column = |line: &str, word: &str| line.find(word).unwrap_or_else(|| panic!("{word:?} in {line:?}"));
        assert_eq!(column(lines[1], "starts"), column(lines[0], "n0"));
        assert_eq!(column(lines[2], "starts"), column(lines[0], "n1"));
        assert!(lines[1].contains("0.001000") && !lines[2].contains("0.001000"), "{text}");
        assert!(lines[3].contains("2.500000") && lines[3].contains("-- the cluster has formed"), "{text}");
        assert_eq!(lines.len(), 7, "{text}");
        assert_eq!(column(lines[5], "long"), column(lines[0], "n1"), "{text}");
    }
}
