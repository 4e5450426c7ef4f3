//! `cluster.hold`: the cluster stays at its version, whatever its nodes can.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, NoInput, OpError, Operation, Permission, Scope};
use serde_json::Value;

use super::{Held, held};
use crate::Ports;
use crate::common::{WRITE_ERRORS, read};

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("cluster.hold", "Keep the cluster at its version", (Method::Post, "/v1/cluster/hold"), run)
        .docs(
            "By itself the cluster version rises as soon as all nodes can a newer one, and from then on an older muster \
             cannot be started on any of them. Held, it stays what it is while you try a new release on all nodes, with \
             the way back open. `cluster release` ends it.",
        )
        .examples(&[Example { command: "muster cluster hold", says: "the next upgrade activates nothing yet" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, _: NoInput) -> Result<Held, OpError> {
    let active = read(&call, false).await?.cluster_version;
    held(&call, Command::HoldVersion { at: Some(active) }).await
}

fn text(output: &Value) -> String {
    format!("the cluster is held at cluster version {}; `muster cluster release` lets it rise", output["held_at"])
}
