//! The record of a run: as text, one line per event and effect (the same seed gives the same bytes), and as a timeline of
//! the incidents among them.

use std::fmt::Write;

use crate::queue::NodeIx;
use crate::time::{Nanos, show};
use crate::timeline::Timeline;

/// A trace that is kept, or one that costs nothing.
#[derive(Default)]
pub struct Trace {
    kept: Option<(String, Timeline)>,
}

impl Trace {
    /// A trace that keeps its lines if `on`.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Trace { kept: on.then(Default::default) }
    }

    /// An event or an effect of a node; `what` is not even formatted if the trace is not kept.
    pub fn event(&mut self, at: Nanos, node: NodeIx, what: impl FnOnce() -> String) {
        if let Some((text, _)) = &mut self.kept {
            write(text, at, &format!("n{node}"), &what());
        }
    }

    /// An incident of the world.
    pub fn line(&mut self, at: Nanos, who: &str, what: impl FnOnce() -> String) {
        if let Some((text, timeline)) = &mut self.kept {
            let what = what();
            write(text, at, who, &what);
            timeline.note(at, None, what);
        }
    }

    /// An incident of a node.
    pub fn node(&mut self, at: Nanos, node: NodeIx, what: impl FnOnce() -> String) {
        if let Some((text, timeline)) = &mut self.kept {
            let what = what();
            write(text, at, &format!("n{node}"), &what);
            timeline.note(at, Some(node), what);
        }
    }

    /// An incident of a node that stands among its effects already.
    pub fn note(&mut self, at: Nanos, node: NodeIx, what: impl FnOnce() -> String) {
        if let Some((_, timeline)) = &mut self.kept {
            timeline.note(at, Some(node), what());
        }
    }

    /// All lines, and the timeline; both are empty if the trace is not kept.
    #[must_use]
    pub fn into_parts(self) -> (String, Timeline) {
        self.kept.unwrap_or_default()
    }
}

fn write(text: &mut String, at: Nanos, who: &str, what: &str) {
    writeln!(text, "{} {who} {what}", show(at)).expect("writing to a string cannot fail");
}
