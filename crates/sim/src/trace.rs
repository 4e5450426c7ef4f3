//! The record of a run as text: one line per event and effect. The same seed gives the same bytes.

use std::fmt::Write;

use crate::time::{Nanos, show};

/// A trace that is kept, or one that costs nothing.
#[derive(Default)]
pub struct Trace {
    text: Option<String>,
}

impl Trace {
    /// A trace that keeps its lines if `on`.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Trace { text: on.then(String::new) }
    }

    /// Adds a line if the trace is kept; `what` is not even formatted otherwise.
    pub fn line(&mut self, at: Nanos, who: &str, what: impl FnOnce() -> String) {
        if let Some(text) = &mut self.text {
            writeln!(text, "{} {who} {}", show(at), what()).expect("writing to a string cannot fail");
        }
    }

    /// As [`Trace::line`], for a node.
    pub fn node(&mut self, at: Nanos, node: usize, what: impl FnOnce() -> String) {
        if let Some(text) = &mut self.text {
            writeln!(text, "{} n{node} {}", show(at), what()).expect("writing to a string cannot fail");
        }
    }

    /// All lines; empty if the trace is not kept.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text.unwrap_or_default()
    }
}
