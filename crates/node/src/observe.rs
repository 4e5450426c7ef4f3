//! What the operations' pipeline is given: clocks, and an observer that writes the audit trail and the metrics.

use std::time::Duration;

use base::{Mono, Now};
use futures::future::BoxFuture;
use ops::{Ended, Observer, Record};
use runtime::{LATENCY_BUCKETS_S, Registry};

pub(crate) struct Clock;

impl ops::Clock for Clock {
    fn now(&self) -> Now {
        runtime::Clock.now()
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        let wait = deadline.since(runtime::Clock.now().mono);
        Box::pin(tokio::time::sleep(Duration::from_millis(wait.0)))
    }
}

/// Audit to the log, counts to the registry.
pub(crate) struct Watcher {
    pub registry: Registry,
}

impl Observer for Watcher {
    fn audit(&self, record: &Record) {
        let principal = record.principal.as_deref().unwrap_or("-");
        let (operation, door, ended) = (&record.operation, record.door, record.ended.as_str());
        let took_ms = record.took.0;
        if record.panicked || record.undeclared {
            let message = record.message.as_deref().unwrap_or_default();
            tracing::error!(target: "audit", operation, door, principal, ended, took_ms, message, "a defect");
        } else if record.ended == Ended::Ok {
            tracing::debug!(target: "audit", operation, door, principal, ended, took_ms);
        } else {
            let message = record.message.as_deref().unwrap_or_default();
            tracing::info!(target: "audit", operation, door, principal, ended, took_ms, message);
        }
    }

    fn metrics(&self, record: &Record) {
        let operation = if record.known { record.operation.as_str() } else { "unknown" };
        let labels = [("operation", operation), ("code", record.ended.as_str())];
        self.registry.counter("muster_operations_total", "Calls of operations, by how they ended.", &labels).add(1);
        let help = "How long calls of operations took; of a stream, until its end.";
        let labels = [("operation", operation)];
        let seconds = self.registry.histogram("muster_operation_seconds", help, &labels, LATENCY_BUCKETS_S);
        seconds.observe(record.took_ns as f64 / 1e9);
    }
}
