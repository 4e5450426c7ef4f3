//! The registry over HTTP/1.1: one route per operation, failures as problem documents, streams as NDJSON.
//!
//! Besides: `GET /openapi.json`; `GET /healthz` (the process answers); `GET /readyz` (the node is a ready member);
//! `GET /metrics` (Prometheus' text format; whoever may read may have it). The last three find a connection also where calls
//! have taken all others.
//!
//! A server that stops lets calls under way end, for a while. Streams and calls that wait end at once, and say why: a last line
//! or a problem document with the code `shutting_down`.
//!
//! A browser on the same machine must not become a way in: bodies must be `application/json` (which makes browsers ask
//! first), and the `Host` header must be an address, `localhost` or a name that the door was told is its own.

mod complaints;
mod handler;
mod problem;
mod server;
mod waits;

pub use handler::{DEADLINE_HEADER, IDEMPOTENCY_HEADER};
pub use problem::status_of;
pub use server::{Served, ServerLimits, serve};

use std::sync::Arc;

use futures::future::BoxFuture;
use ops::Pipeline;

/// What the door asks the node besides operations.
pub trait Probes: Send + Sync {
    /// Whether the node is a member that can do its work; otherwise why not.
    fn ready(&self) -> BoxFuture<'static, Result<(), String>>;
    /// All metrics, in Prometheus' text format 0.0.4.
    fn metrics(&self) -> BoxFuture<'static, String>;
}

/// Everything that the REST door serves from.
pub struct RestDoor<C> {
    pub pipeline: Arc<Pipeline<C>>,
    pub probes: Arc<dyn Probes>,
    /// Shown in the OpenAPI document.
    pub version: String,
    /// Host names (without port) by which clients may call it, besides addresses and `localhost`.
    pub host_names: Vec<String>,
}
