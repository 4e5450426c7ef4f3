//! The cluster as a whole.

use metadata::Command;
use ops::{Call, OpError};
use schemars::JsonSchema;
use serde::Serialize;

use crate::Ports;
use crate::common::command;

pub(crate) mod consensus;
pub(crate) mod hold;
pub(crate) mod release;
pub(crate) mod status;
mod tolerance;
pub(crate) mod version;

/// Where the cluster version stands.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Held {
    /// The active cluster version.
    pub active: u16,
    /// It does not rise beyond this; null if nobody holds it.
    pub held_at: Option<u16>,
}

/// Has the cluster held, or let go.
async fn held(call: &Call<Ports>, order: Command) -> Result<Held, OpError> {
    let (_, metadata) = command(call, order).await?;
    Ok(Held { active: metadata.cluster_version.0, held_at: metadata.version_hold.map(|at| at.0) })
}
