//! What the supervision tree says and is told.

use std::fmt;
use std::time::Duration;

use base::{Incarnation, NodeId, Now};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Longest text kept of an error or panic, in bytes.
const CAUSE_BYTES_MAX: usize = 1_024;

/// What a supervised task returns.
pub type TaskResult = Result<(), TaskFailure>;

/// Why a task gave up, with its whole chain of sources. Made from any error by `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure(String);

impl TaskFailure {
    /// A failure described by `text`.
    pub fn new(text: impl Into<String>) -> Self {
        TaskFailure(bounded(text.into()))
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

impl<E: std::error::Error> From<E> for TaskFailure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        TaskFailure::new(text)
    }
}

pub(super) fn bounded(mut text: String) -> String {
    if text.len() > CAUSE_BYTES_MAX {
        let cut = (0..=CAUSE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

/// When a task is started again by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartPolicy {
    /// However it ended.
    Always,
    /// When it failed or panicked; returning `Ok` is its proper end.
    OnFailure,
    /// Never.
    Never,
}

/// How many restarts are bearable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intensity {
    /// Restarts within `window`; one more and the task is given up.
    pub restarts_max: u32,
    /// The window, sliding.
    pub window: Duration,
}

impl Default for Intensity {
    /// Five restarts in ten seconds.
    fn default() -> Self {
        Intensity { restarts_max: 5, window: Duration::from_secs(10) }
    }
}

/// How a task is to be supervised.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    pub(super) name: String,
    pub(super) policy: RestartPolicy,
    pub(super) intensity: Intensity,
    pub(super) critical: bool,
    pub(super) runtime: Option<Handle>,
}

impl TaskSpec {
    /// A task restarted however it ends, within the default intensity, whose loss does not end the node. Names are
    /// paths, such as `transport/peer/2`.
    pub fn new(name: impl Into<String>) -> Self {
        TaskSpec {
            name: name.into(),
            policy: RestartPolicy::Always,
            intensity: Intensity::default(),
            critical: false,
            runtime: None,
        }
    }

    /// Without it the node cannot go on: when it is given up, the node ends.
    #[must_use]
    pub fn critical(mut self) -> Self {
        self.critical = true;
        self
    }

    /// Sets when it is restarted.
    #[must_use]
    pub fn policy(mut self, policy: RestartPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets how many restarts are bearable.
    #[must_use]
    pub fn intensity(mut self, restarts_max: u32, window: Duration) -> Self {
        self.intensity = Intensity { restarts_max, window };
        self
    }

    /// Runs it on this runtime instead of the supervisor's.
    #[must_use]
    pub fn on(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }
}

/// What a run of a task is given.
#[derive(Clone, Debug)]
pub struct TaskContext {
    /// Cancelled when the run is to end. The task should then return soon; after the deadline it is dropped.
    pub cancel: CancellationToken,
    /// Counts the runs of this task, from 1 up.
    pub run: u64,
}

/// Why a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It returned `Ok` though nobody asked it to.
    Finished,
    /// It returned an error.
    Failed(String),
    /// It panicked.
    Panicked(String),
    /// Somebody asked for a restart.
    Restarted,
    /// Somebody killed it.
    Killed,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Finished => f.write_str("returned unasked"),
            Cause::Failed(text) => write!(f, "failed: {text}"),
            Cause::Panicked(text) => write!(f, "panicked: {text}"),
            Cause::Restarted => f.write_str("restarted by request"),
            Cause::Killed => f.write_str("killed by request"),
        }
    }
}

/// One end of a run, as remembered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// When the run ended.
    pub at: Now,
    /// Which run it was.
    pub run: u64,
    /// Why it ended.
    pub cause: Cause,
}

/// What a task is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskState {
    /// It runs.
    Running,
    /// It ended and is started again after a short delay.
    Restarting,
    /// It is asked to stop.
    Stopping,
    /// It was restarted too often and is given up; `restart` starts it again.
    Failed,
}

/// A task as the listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskSnapshot {
    /// `node/incarnation/name`; the first two are `-` before the node has joined.
    pub address: String,
    /// The name it was started under.
    pub name: String,
    /// What it is doing.
    pub state: TaskState,
    /// Whether its loss ends the node.
    pub critical: bool,
    /// Which run this is, from 1 up.
    pub run: u64,
    /// When this run began.
    pub started: Now,
    /// The last ends of runs, oldest first, bounded.
    pub history: Vec<HistoryEntry>,
}

/// Why the node must end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEnd {
    /// The critical task that was given up.
    pub task: String,
    /// How often it ended within which time, and how the last time.
    pub reason: String,
}

/// How stopping went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShutdownReport {
    /// Tasks that ended by themselves when asked, in the order in which they were asked.
    pub stopped: Vec<String>,
    /// Tasks that did not and were dropped.
    pub aborted: Vec<String>,
}

/// What a supervisor refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SupervisorError {
    /// A live task has this name.
    #[error("task \"{0}\" is running already")]
    NameTaken(String),
    /// No task has this name.
    #[error("no task \"{0}\" on this node")]
    NotFound(String),
    /// The tree is full.
    #[error("{0} tasks are supervised already")]
    TooMany(usize),
    /// The node is stopping.
    #[error("the node is stopping")]
    ShuttingDown,
}

/// The first two parts of every task's address.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NodeName(pub Option<(NodeId, Incarnation)>);

impl NodeName {
    pub fn address(self, task: &str) -> String {
        match self.0 {
            Some((node, incarnation)) => format!("{node}/{incarnation}/{task}"),
            None => format!("-/-/{task}"),
        }
    }
}
