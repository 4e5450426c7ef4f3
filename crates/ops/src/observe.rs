//! What the pipeline needs from outside: a clock, and somebody to tell.

use std::sync::Arc;

use base::{ErrorCode, Millis, Mono, Now};
use futures::future::BoxFuture;

/// Time, handed in.
pub trait Clock: Send + Sync {
    /// Both clocks, now.
    fn now(&self) -> Now;
    /// Ready at `deadline`, at once if it has passed.
    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()>;
}

impl<T: Clock + ?Sized> Clock for Arc<T> {
    fn now(&self) -> Now {
        (**self).now()
    }
    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        (**self).sleep_until(deadline)
    }
}

/// How far a call got. In the order of the pipeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    Authenticate,
    Authorize,
    Validate,
    RateLimit,
    Run,
}

impl Stage {
    /// As in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Authenticate => "authenticate",
            Stage::Authorize => "authorize",
            Stage::Validate => "validate",
            Stage::RateLimit => "rate-limit",
            Stage::Run => "run",
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Ok,
    /// Answered from the result kept for its idempotency key.
    Replayed,
    Failed(ErrorCode),
    /// The caller went away before the end; what was asked for may have been done.
    Abandoned,
}

impl Ended {
    /// As in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Ok => "ok",
            Ended::Replayed => "replayed",
            Ended::Failed(code) => code.as_str(),
            Ended::Abandoned => "abandoned",
        }
    }
}

/// One call, for the audit trail and the metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Counts the calls of this process.
    pub id: u64,
    /// Which door it came through: `rest`, ...
    pub door: &'static str,
    /// The operation's name, as asked for (cut at 64 characters).
    pub operation: String,
    /// Whether such an operation exists (metrics count the others under one name).
    pub known: bool,
    /// Who asked; `None` if that could not be established.
    pub principal: Option<String>,
    /// The last stage entered.
    pub stage: Stage,
    pub ended: Ended,
    /// Of a failure: its message.
    pub message: Option<String>,
    /// The handler failed with a code that the operation does not declare: a defect of the operation.
    pub undeclared: bool,
    /// The handler panicked.
    pub panicked: bool,
    /// Items sent, if the output is a stream.
    pub items: u64,
    pub took: Millis,
    /// The same in nanoseconds.
    pub took_ns: u64,
}

/// Is told of every call, once, when it has ended: first `audit`, then `metrics`. Must not block.
pub trait Observer: Send + Sync {
    fn audit(&self, record: &Record);
    fn metrics(&self, record: &Record);
}
