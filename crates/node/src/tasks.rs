//! The node's own tasks in the supervision tree. Each owns the end of a queue or a socket, so it runs once: when it
//! ends unasked, the node ends with the reason.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use runtime::{Supervisor, TaskFailure, TaskSpec};

use crate::error::NodeError;

/// Starts `body` under `name`; it is dropped when it is asked to end.
pub(crate) fn start<F>(supervisor: &Supervisor, name: &str, body: F) -> Result<(), NodeError>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let body = Mutex::new(Some(Box::pin(body)));
    let spec = TaskSpec::new(name).critical().intensity(0, Duration::from_secs(1));
    let task = move |context: runtime::TaskContext| {
        let body = body.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            let Some(body) = body else { return Err(TaskFailure::new("it cannot be started a second time")) };
            tokio::select! {
                () = context.cancel.cancelled() => Ok(()),
                ended = body => ended.map_err(TaskFailure::new),
            }
        }
    };
    supervisor
        .start(spec, task)
        .map_err(|error| NodeError::Start { what: "a task", reason: format!("{name}: {error}") })
}
