//! The Kafka listener: frames, versions and sessions; bytes to engine requests and back. The only crate that sees
//! Kafka's request types.
//!
//! ```text
//!  TcpStream -> FrameReader -> shape check -> decode -> api::* --+--> Broker::request (the engine)
//!                                                                +--> PartitionReader (fetches)
//!  TcpStream <- encode <- answers in request order <-------------+
//! ```
//!
//! One task per connection reads, starts requests, and writes answers in request order. What a request does
//! synchronously (produce: check and hand over to the engine) happens in arrival order, so that pipelined produce
//! requests to one partition are proposed in that order. Everything is bounded: connections, frames, requests under
//! way, bytes of their answers, elements in a request, time.
//!
//! Invariants: this crate keeps no state of topics, partitions or clients beyond the connection; a version is
//! advertised only if it fully works; no failure is ever answered as a success; a leader is never guessed.

mod api;
mod broker;
mod connection;
mod dispatch;
mod errors;
mod frame;
mod listener;
mod metrics;
mod overcommit;
mod partition_reader;
mod shape;
mod topics;
mod versions;

pub use broker::Broker;
pub use listener::{Listener, ListenerConfig};
pub use overcommit::{OvercommitError, check_overcommit};
pub use partition_reader::PartitionReader;
