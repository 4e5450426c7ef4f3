//! The API of a simulated node: the real operations in the real pipeline, over ports that lead to the node's core.
//!
//! Nothing here wakes anybody: the world polls every call again and again, at moments that follow from the seed.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use base::{ErrorCode, Mono, NodeId, Now, SplitMix64};
use engine::{Reply, Request, RequestError, Target};
use futures::channel::oneshot;
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use metadata::Metadata;
use operations::{ConsoleFrom, ConsoleLog, Core, Images, LineStream, Ports, Random, TaskView, Tasks};
use ops::{Clock, Invocation, LoopbackOnly, Observer, OpError, Output, Pipeline, Record, Registry};
use serde_json::Value;

/// Where the core's answer is awaited.
pub type Answer = oneshot::Sender<Result<Reply, RequestError>>;
/// A call under way.
pub type Calling = BoxFuture<'static, Result<Value, OpError>>;

/// What an operation asked the core for.
pub struct Asked {
    pub target: Target,
    pub deadline: Mono,
    pub request: Request,
    pub answer: Answer,
}

/// The API of one process.
pub struct Api {
    port: Port,
    pipeline: Arc<Pipeline<Ports>>,
}

impl Api {
    /// Of a process on this node; `seed` makes its random bytes.
    #[must_use]
    pub fn new(registry: Arc<Registry<Ports>>, me: NodeId, seed: u64) -> Api {
        let inside = Inside {
            now: Now::default(),
            metadata: Arc::default(),
            asked: Vec::new(),
            random: SplitMix64::new(seed),
            defect: None,
            dead: false,
        };
        let port = Port { me, inside: Arc::new(Mutex::new(inside)) };
        let ports = Ports {
            core: Arc::new(port.clone()),
            console: Arc::new(port.clone()),
            images: Arc::new(port.clone()),
            random: Arc::new(port.clone()),
            tasks: Arc::new(port.clone()),
        };
        let (clock, observer) = (Arc::new(port.clone()), Arc::new(port.clone()));
        let pipeline = Pipeline::new(registry, Arc::new(ports), clock, Arc::new(LoopbackOnly), observer);
        Api { port, pipeline: Arc::new(pipeline) }
    }

    /// A call, which begins when it is polled first; of a stream, its first item.
    pub fn call(&self, operation: &str, input: Value, idempotency_key: Option<String>) -> Calling {
        let pipeline = Arc::clone(&self.pipeline);
        let operation = operation.to_owned();
        let invocation = Invocation { door: "simulated", operation, input, idempotency_key, ..Invocation::default() };
        async move {
            match pipeline.invoke(invocation).await? {
                Output::Value(value) => Ok(value),
                Output::Stream(mut items) => {
                    let none = || Err(OpError::new(ErrorCode::Internal, "a stream without an item"));
                    items.next().await.unwrap_or_else(none)
                }
            }
        }
        .boxed()
    }

    /// The calls see from now on this time and this state.
    pub fn see(&self, now: Now, shown: &Metadata) {
        let mut inside = self.port.inside();
        inside.now = now;
        if inside.metadata.applied != shown.applied {
            inside.metadata = Arc::new(shown.clone());
        }
    }

    /// What was asked of the core since the last time, in order, and what an operation did that none may.
    #[must_use]
    pub fn take(&self) -> (Vec<Asked>, Option<String>) {
        let mut inside = self.port.inside();
        (std::mem::take(&mut inside.asked), inside.defect.take())
    }

    /// The process is gone: whatever its calls still ask for reaches nobody.
    pub fn dies(&self) {
        self.port.inside().dead = true;
    }
}

/// What operations see of the node.
#[derive(Clone)]
struct Port {
    me: NodeId,
    inside: Arc<Mutex<Inside>>,
}

struct Inside {
    now: Now,
    metadata: Arc<Metadata>,
    asked: Vec<Asked>,
    random: SplitMix64,
    defect: Option<String>,
    dead: bool,
}

impl Port {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("nobody panics while holding it")
    }

    fn refusal(message: &str) -> RequestError {
        RequestError { code: ErrorCode::ShuttingDown, message: message.into(), leader: None }
    }
}

impl Core for Port {
    fn me(&self) -> NodeId {
        self.me
    }

    fn request(
        &self,
        target: Target,
        deadline: Mono,
        request: Request,
    ) -> BoxFuture<'static, Result<Reply, RequestError>> {
        let stops = || Err(Port::refusal("this node is stopping"));
        let mut inside = self.inside();
        if inside.dead {
            return ready(stops()).boxed();
        }
        let (answer, answered) = oneshot::channel();
        inside.asked.push(Asked { target, deadline, request, answer });
        answered.map(move |answer| answer.unwrap_or_else(|_| stops())).boxed()
    }

    fn metadata(&self) -> Arc<Metadata> {
        Arc::clone(&self.inside().metadata)
    }

    fn metadata_after(&self, applied: u64) -> BoxFuture<'static, Arc<Metadata>> {
        let port = self.clone();
        poll_fn(move |_| {
            let metadata = port.metadata();
            if metadata.applied > applied { Poll::Ready(metadata) } else { Poll::Pending }
        })
        .boxed()
    }
}

impl Clock for Port {
    fn now(&self) -> Now {
        self.inside().now
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        let port = self.clone();
        poll_fn(move |_| if port.now().mono >= deadline { Poll::Ready(()) } else { Poll::Pending }).boxed()
    }
}

impl Random for Port {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RequestError> {
        let mut inside = self.inside();
        for part in bytes.chunks_mut(8) {
            let word = inside.random.next_u64().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
        Ok(())
    }
}

impl Observer for Port {
    fn audit(&self, record: &Record) {
        if record.undeclared || record.panicked {
            self.inside().defect.get_or_insert_with(|| format!("{record:?}"));
        }
    }

    fn metrics(&self, _: &Record) {}
}

// No simulated client uses an operation that needs these.

impl ConsoleLog for Port {
    fn read(&self, _: &str, _: ConsoleFrom, _: bool, _: Mono) -> BoxFuture<'static, Result<LineStream, RequestError>> {
        ready(Err(Port::refusal("consoles are not simulated"))).boxed()
    }
}

impl Images for Port {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Tasks for Port {
    fn list(&self, _: NodeId, _: Mono) -> BoxFuture<'static, Result<Vec<TaskView>, RequestError>> {
        ready(Err(Port::refusal("tasks are not simulated"))).boxed()
    }
}
