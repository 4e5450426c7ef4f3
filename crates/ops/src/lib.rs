//! What an operation is, and the one way in which all of them are carried out.
//!
//! An [`Operation`] is defined once: name, summary, docs, examples, input and output (serde and JSON Schema), the
//! errors it declares, permission, scope, idempotency, limits and an async handler. The [`Registry`] holds them; doors
//! (REST, OpenAPI, command line) are drawn from it. Every door hands its calls to one [`Pipeline`]:
//!
//! ```text
//! authenticate -> authorize -> validate -> rate-limit -> deadline -> run -> audit -> metrics
//! ```
//!
//! Invariants: this crate knows no operation, no socket and no clock (the [`Clock`] is handed in); it is generic over
//! the context `C` that handlers get. A handler that panics ends as `internal`, and disturbs no other call. What a
//! [`Spec`] declares (limits, permission, schema) is enforced here and nowhere else.

mod auth;
mod error;
pub mod human;
mod idempotency;
mod limit;
mod nearest;
mod observe;
mod once;
mod operation;
mod pipeline;
mod registry;
mod schema;
mod spec;
mod validate;

pub use auth::{Authenticator, Credentials, LoopbackOnly, Principal};
pub use error::OpError;
pub use nearest::nearest;
pub use observe::{Clock, Ended, Observer, Record, Stage};
pub use once::Once;
pub use operation::{Call, ItemStream, Operation, Output, Typed};
pub use pipeline::{Invocation, Pipeline};
pub use registry::{Registry, RegistryError};
pub use schema::schema_of;
pub use spec::{Cell, Column, Example, FollowUp, Human, Idempotency, Limits, Method, Permission, Route, Scope, Spec};
pub use validate::validate;

/// The input of operations that need none.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoInput {}
