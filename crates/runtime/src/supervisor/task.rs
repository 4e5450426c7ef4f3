//! One supervised task: the loop that runs it, learns why it ended, and decides what happens next.

use std::any::Any;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{Mono, Now};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinError};
use tokio_util::sync::CancellationToken;

use super::types::{
    Cause, HistoryEntry, NodeName, RestartPolicy, TaskContext, TaskResult, TaskSnapshot, TaskSpec, TaskState, bounded,
};
use crate::Clock;

/// Ends of runs remembered per task.
const HISTORY_MAX: usize = 32;
/// Before the first restart in a window; doubles with each further one.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(10);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(1);
/// How long a run that is asked to restart may take to return before it is dropped.
const RESTART_GRACE: Duration = Duration::from_secs(2);

pub(super) type Factory = dyn Fn(TaskContext) -> Pin<Box<dyn Future<Output = TaskResult> + Send>> + Send + Sync;

/// What somebody asked for a run, beside stopping for good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Restart,
    Kill,
}

pub(super) struct Task {
    pub spec: TaskSpec,
    /// Cancelled to stop the task for good.
    pub cancel: CancellationToken,
    /// Cancelled once nothing of it runs any more.
    pub ended: CancellationToken,
    orders: Notify,
    state: Mutex<State>,
}

struct State {
    phase: TaskState,
    run: u64,
    started: Now,
    history: VecDeque<HistoryEntry>,
    /// Ends that count against the intensity.
    recent: VecDeque<Mono>,
    order: Option<Order>,
    abort: Option<AbortHandle>,
}

/// What follows the end of a run.
enum Next {
    RunAgain(Duration),
    GiveUp(String),
    Done,
}

impl Task {
    pub fn new(spec: TaskSpec, cancel: CancellationToken) -> Self {
        let state = State {
            phase: TaskState::Running,
            run: 0,
            started: Clock.now(),
            history: VecDeque::new(),
            recent: VecDeque::new(),
            order: None,
            abort: None,
        };
        let ended = CancellationToken::new();
        Task { spec, cancel, ended, orders: Notify::new(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn snapshot(&self, node: NodeName) -> TaskSnapshot {
        let state = self.state();
        let stopping = self.cancel.is_cancelled();
        TaskSnapshot {
            address: node.address(&self.spec.name),
            name: self.spec.name.clone(),
            state: if stopping { TaskState::Stopping } else { state.phase },
            critical: self.spec.critical,
            run: state.run,
            started: state.started,
            history: state.history.iter().cloned().collect(),
        }
    }

    /// A task that was given up holds no name and no place.
    pub fn is_live(&self) -> bool {
        !self.ended.is_cancelled() && !self.cancel.is_cancelled() && self.state().phase != TaskState::Failed
    }

    pub fn order(&self, order: Order) {
        let mut state = self.state();
        state.order = Some(order);
        if order == Order::Kill
            && let Some(abort) = &state.abort
        {
            abort.abort();
        }
        drop(state);
        self.orders.notify_one();
    }

    /// Drops whatever runs, now.
    pub fn abort(&self) {
        if let Some(abort) = &self.state().abort {
            abort.abort();
        }
    }

    /// Runs the task until it is stopped or done. `give_up` is told when it fails beyond its intensity.
    pub async fn supervise(self: Arc<Self>, own: Handle, factory: Arc<Factory>, give_up: impl Fn(&TaskSpec, String)) {
        let _ended = self.ended.clone().drop_guard();
        while !self.cancel.is_cancelled() {
            let cause = self.run_once(&own, &factory).await;
            if self.cancel.is_cancelled() {
                break;
            }
            match self.after(cause) {
                Next::Done => break,
                Next::RunAgain(delay) => {
                    let pause = tokio::time::sleep(delay);
                    tokio::select! { () = pause => {} () = self.cancel.cancelled() => {} }
                }
                Next::GiveUp(reason) => {
                    give_up(&self.spec, reason);
                    self.wait_for_order().await;
                }
            }
        }
    }

    /// One run, from start to end.
    async fn run_once(&self, own: &Handle, factory: &Arc<Factory>) -> Cause {
        let cancel = self.cancel.child_token();
        let context = self.begin(cancel.clone());
        let factory = factory.clone();
        // The factory is called inside the task, so that a panic in it is caught as well.
        let body = async move { factory(context).await };
        let mut handle = self.spec.runtime.as_ref().unwrap_or(own).spawn(body);
        self.state().abort = Some(handle.abort_handle());
        let result = loop {
            tokio::select! {
                result = &mut handle => break result,
                () = self.orders.notified() => {
                    // A notice may be left over from an order that the previous run already obeyed.
                    let Some(order) = self.state().order else { continue };
                    cancel.cancel();
                    if order == Order::Restart
                        && let Ok(result) = tokio::time::timeout(RESTART_GRACE, &mut handle).await
                    {
                        break result;
                    }
                    handle.abort();
                }
            }
        };
        let order = {
            let mut state = self.state();
            state.abort = None;
            state.order.take()
        };
        match order {
            Some(Order::Restart) => Cause::Restarted,
            Some(Order::Kill) => Cause::Killed,
            None => cause_of(result),
        }
    }

    fn begin(&self, cancel: CancellationToken) -> TaskContext {
        let mut state = self.state();
        state.run += 1;
        state.phase = TaskState::Running;
        state.started = Clock.now();
        TaskContext { cancel, run: state.run }
    }

    /// Records the end and decides.
    fn after(&self, cause: Cause) -> Next {
        let name = &self.spec.name;
        let now = Clock.now();
        let mut state = self.state();
        let run = state.run;
        if state.history.len() == HISTORY_MAX {
            state.history.pop_front();
        }
        state.history.push_back(HistoryEntry { at: now, run, cause: cause.clone() });
        let again = match (&cause, self.spec.policy) {
            (Cause::Restarted, _) => {
                state.phase = TaskState::Restarting;
                return Next::RunAgain(Duration::ZERO);
            }
            (_, RestartPolicy::Never) | (Cause::Finished, RestartPolicy::OnFailure) => false,
            _ => true,
        };
        if !again {
            if cause != Cause::Finished {
                tracing::warn!(task = name, %cause, "task ended and is not restarted");
            }
            return Next::Done;
        }
        let window = self.spec.intensity.window;
        state.recent.push_back(now.mono);
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        while state.recent.front().is_some_and(|first| now.mono.since(*first).0 > window_ms) {
            state.recent.pop_front();
        }
        let ends = state.recent.len();
        if ends > self.spec.intensity.restarts_max as usize {
            state.phase = TaskState::Failed;
            state.recent.clear();
            return Next::GiveUp(format!("it ended {ends} times within {window:?}; the last time it {cause}"));
        }
        state.phase = TaskState::Restarting;
        tracing::warn!(task = name, %cause, run, "task ended; restarting it");
        let doublings = u32::try_from(ends - 1).unwrap_or(u32::MAX).min(10);
        Next::RunAgain((RESTART_DELAY_MIN * 2u32.pow(doublings)).min(RESTART_DELAY_MAX))
    }

    /// A task that was given up lies still until somebody restarts or stops it.
    async fn wait_for_order(&self) {
        tokio::select! {
            () = self.orders.notified() => { self.state().order = None; }
            () = self.cancel.cancelled() => {}
        }
    }
}

fn cause_of(result: Result<TaskResult, JoinError>) -> Cause {
    match result {
        Ok(Ok(())) => Cause::Finished,
        Ok(Err(failure)) => Cause::Failed(failure.into_text()),
        Err(error) => match error.try_into_panic() {
            Ok(payload) => Cause::Panicked(panic_text(payload.as_ref())),
            // Dropped from outside, as when its runtime stopped.
            Err(_) => Cause::Killed,
        },
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    bounded(text.unwrap_or_else(|| "a value that is not text".to_owned()))
}
