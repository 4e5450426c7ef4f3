//! What operations need of a node.

use std::sync::Arc;

use base::{Mono, NodeId};
use engine::{Reply, Request, RequestError, Target};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use metadata::Metadata;
use schemars::JsonSchema;
use serde::Serialize;

/// Everything that handlers work with.
pub struct Ports {
    pub core: Arc<dyn Core>,
    pub console: Arc<dyn ConsoleLog>,
    pub images: Arc<dyn Images>,
    pub random: Arc<dyn Random>,
    pub tasks: Arc<dyn Tasks>,
}

/// The node's core.
pub trait Core: Send + Sync {
    /// This node.
    fn me(&self) -> NodeId;
    /// Asks; answered by the deadline. It is handed over at once: whoever drops the answer has asked all the same.
    fn request(
        &self,
        target: Target,
        deadline: Mono,
        request: Request,
    ) -> BoxFuture<'static, Result<Reply, RequestError>>;
    /// The cluster's state, as far as this node has applied it. Keys that changed within the last 25 ms may be missing, unless a
    /// [`Request::Barrier`] was answered since.
    fn metadata(&self) -> Arc<Metadata>;
    /// The same, once an index beyond `applied` has been applied; pending until then.
    fn metadata_after(&self, applied: u64) -> BoxFuture<'static, Arc<Metadata>>;
}

/// Where to begin in a console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsoleFrom {
    /// With the oldest line kept.
    Start,
    /// With the last so many lines.
    Tail(u32),
}

/// One line of a console.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct ConsoleLine {
    /// Offset of its record in the console's topic.
    pub offset: i64,
    /// When the host read it, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The text, without its end of line; bytes that are not UTF-8 are replaced.
    pub line: String,
}

/// Lines as they come.
pub type LineStream = BoxStream<'static, Result<ConsoleLine, RequestError>>;

/// The consoles of VMs, in their topics.
pub trait ConsoleLog: Send + Sync {
    /// Reads a console's topic from wherever its leader is; with `follow` the stream goes on with what comes (and
    /// survives a change of leader), otherwise it ends at the high watermark of the moment.
    fn read(
        &self,
        topic: &str,
        from: ConsoleFrom,
        follow: bool,
        deadline: Mono,
    ) -> BoxFuture<'static, Result<LineStream, RequestError>>;
}

/// What VMs can boot.
pub trait Images: Send + Sync {
    /// The names of all images.
    fn names(&self) -> Vec<String>;
}

/// Secrets and ids.
pub trait Random: Send + Sync {
    /// Fills `bytes` from the operating system's generator.
    ///
    /// # Errors
    /// If it has none.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RequestError>;
}

/// One task of a node's supervision tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct TaskView {
    /// Its place in the tree, such as `transport/peer/2`.
    pub path: String,
    /// `running`, `restarting`, `ended`, `failed`.
    pub state: String,
    /// How long it has been in that state, in milliseconds.
    pub since_ms: u64,
    /// Starts after the first.
    pub restarts: u64,
    /// Why it was restarted or ended last.
    pub cause: Option<String>,
}

/// The supervision trees of all nodes.
pub trait Tasks: Send + Sync {
    /// The tasks of one node, this one or another; fails if it does not answer.
    fn list(&self, node: NodeId, deadline: Mono) -> BoxFuture<'static, Result<Vec<TaskView>, RequestError>>;
}
