//! The replicated cluster state of `__meta`.

mod command;
mod state;
pub use command::*;
pub use state::*;

/// The topic that every transition is published to.
pub const EVENTS_TOPIC: &str = "muster.events";
