//! `cluster.release`: the cluster version rises again by itself.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, NoInput, OpError, Operation, Permission, Scope};
use serde_json::Value;

use super::{Held, held};
use crate::Ports;
use crate::common::WRITE_ERRORS;

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("cluster.release", "Let the cluster's version rise", (Method::Post, "/v1/cluster/release"), run)
        .docs(
            "The end of `cluster hold`. If all nodes can a newer cluster version it becomes active at once, and there is no \
             way back.",
        )
        .examples(&[Example { command: "muster cluster release", says: "what the new release brings may be used" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, _: NoInput) -> Result<Held, OpError> {
    held(&call, Command::HoldVersion { at: None }).await
}

fn text(output: &Value) -> String {
    format!("the cluster is at cluster version {}, and rises when all nodes can more", output["active"])
}
