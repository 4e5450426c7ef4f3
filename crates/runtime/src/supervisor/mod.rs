//! The supervision tree, one level deep and one-for-one: each task stands and falls alone.
//!
//! A run that ends is recorded with its cause. Within the task's intensity it is started again after a short, growing
//! delay; beyond it the task is given up, which ends the node if the task is critical. Stopping asks the tasks one by
//! one, the last started first, so that whoever uses another task stops before it.

mod task;
mod types;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{Incarnation, NodeId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use task::{Factory, Order, Task};
use types::NodeName;
pub use types::{
    Cause, HistoryEntry, Intensity, NodeEnd, RestartPolicy, ShutdownReport, SupervisorError, TaskContext, TaskFailure,
    TaskResult, TaskSnapshot, TaskSpec, TaskState,
};

/// Tasks in one tree, at most.
const TASKS_MAX: usize = 8_192;
/// How long a task that was dropped may take to be gone (it must reach its next await).
const ABORT_GRACE: Duration = Duration::from_millis(200);

/// The tree. Clones are handles to the same tree.
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    root: CancellationToken,
    tree: Mutex<Tree>,
    end: watch::Sender<Option<NodeEnd>>,
}

#[derive(Default)]
struct Tree {
    /// By order of start.
    tasks: BTreeMap<u64, Arc<Task>>,
    next: u64,
    node: NodeName,
    stopping: bool,
}

impl Supervisor {
    /// An empty tree whose tasks run on `runtime` unless they say otherwise.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        let root = CancellationToken::new();
        let inner = Inner { runtime, root, tree: Mutex::default(), end: watch::Sender::new(None) };
        Supervisor { inner: Arc::new(inner) }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.inner.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the node, from now on, in every task's address.
    pub fn set_node(&self, node: NodeId, incarnation: Incarnation) {
        self.tree().node = NodeName(Some((node, incarnation)));
    }

    /// Starts a task. `factory` makes each run; it is called again for each restart.
    ///
    /// # Errors
    /// If the name is taken, the tree is full, or the node is stopping.
    pub fn start<F, R>(&self, spec: TaskSpec, factory: F) -> Result<(), SupervisorError>
    where
        F: Fn(TaskContext) -> R + Send + Sync + 'static,
        R: Future<Output = TaskResult> + Send + 'static,
    {
        let factory: Arc<Factory> = Arc::new(move |context| Box::pin(factory(context)));
        let (id, task) = self.admit(spec)?;
        let (own, tree) = (self.inner.runtime.clone(), self.clone());
        self.inner.runtime.spawn(async move {
            let failed = tree.clone();
            task.supervise(own, factory, move |spec, reason| failed.given_up(spec, reason)).await;
            tree.tree().tasks.remove(&id);
        });
        Ok(())
    }

    fn admit(&self, spec: TaskSpec) -> Result<(u64, Arc<Task>), SupervisorError> {
        let mut tree = self.tree();
        if tree.stopping {
            return Err(SupervisorError::ShuttingDown);
        }
        if tree.tasks.values().any(|task| task.spec.name == spec.name && task.is_live()) {
            return Err(SupervisorError::NameTaken(spec.name));
        }
        if tree.tasks.len() >= TASKS_MAX {
            return Err(SupervisorError::TooMany(tree.tasks.len()));
        }
        // One that was given up makes room for its successor.
        tree.tasks.values().filter(|task| task.spec.name == spec.name).for_each(|task| task.cancel.cancel());
        let id = tree.next;
        tree.next += 1;
        let task = Arc::new(Task::new(spec, self.inner.root.child_token()));
        tree.tasks.insert(id, task.clone());
        Ok((id, task))
    }

    fn given_up(&self, spec: &TaskSpec, reason: String) {
        tracing::error!(task = spec.name, critical = spec.critical, reason, "task given up");
        if spec.critical {
            let end = NodeEnd { task: spec.name.clone(), reason };
            // The first one counts: what follows is most often its consequence.
            self.inner.end.send_if_modified(|first| first.is_none() && first.replace(end).is_none());
        }
    }

    /// Every task, in order of start.
    #[must_use]
    pub fn list(&self) -> Vec<TaskSnapshot> {
        let tree = self.tree();
        tree.tasks.values().map(|task| task.snapshot(tree.node)).collect()
    }

    /// Asks a task to end and starts it again, whatever its policy; this does not count against its intensity. One that
    /// was given up gets a new chance.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn restart(&self, name: &str) -> Result<(), SupervisorError> {
        self.find(name).map(|task| task.order(Order::Restart))
    }

    /// Drops a task's run at once. What follows is up to its policy and intensity.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn kill(&self, name: &str) -> Result<(), SupervisorError> {
        self.find(name).map(|task| task.order(Order::Kill))
    }

    /// Asks a task to end for good, and forgets it once it has. Returns at once; the name is free again.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn stop(&self, name: &str) -> Result<(), SupervisorError> {
        self.find(name).map(|task| task.cancel.cancel())
    }

    fn find(&self, name: &str) -> Result<Arc<Task>, SupervisorError> {
        let tree = self.tree();
        let found = tree.tasks.values().rev().find(|task| task.spec.name == name && !task.cancel.is_cancelled());
        found.cloned().ok_or_else(|| SupervisorError::NotFound(name.to_owned()))
    }

    /// Cancelled when everything is to end at once, or has ended: the root of the cancellation tree.
    #[must_use]
    pub fn root(&self) -> CancellationToken {
        self.inner.root.clone()
    }

    /// Waits until a critical task is given up.
    pub async fn ended(&self) -> NodeEnd {
        let mut end = self.inner.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // The sender lives in `self`.
            _ => std::future::pending().await,
        }
    }

    /// Stops every task, the last started first, each after the one before it has ended. One task may use up to half of
    /// the time that is left; then it is dropped. Returns by `deadline` plus a little, and nothing can be started
    /// afterwards.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let deadline = Instant::now() + deadline;
        let mut report = ShutdownReport::default();
        let tasks: Vec<_> = {
            let mut tree = self.tree();
            tree.stopping = true;
            tree.tasks.values().rev().cloned().collect()
        };
        for task in tasks {
            task.cancel.cancel();
            let now = Instant::now();
            let share = now + deadline.saturating_duration_since(now) / 2;
            if timeout_at(share, task.ended.cancelled()).await.is_ok() {
                report.stopped.push(task.spec.name.clone());
                continue;
            }
            task.abort();
            // A task that never reaches an await cannot be dropped; there is nothing more to be done about it.
            let _ = timeout(ABORT_GRACE, task.ended.cancelled()).await;
            tracing::warn!(task = task.spec.name, "task did not stop in time and was dropped");
            report.aborted.push(task.spec.name.clone());
        }
        self.inner.root.cancel();
        report
    }
}

#[cfg(test)]
mod tests;
