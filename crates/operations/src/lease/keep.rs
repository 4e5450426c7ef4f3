//! `lease.keep`: a lease is renewed, for as long as somebody listens.

use base::limits::API_CONNECTIONS_MAX;
use base::{LeaseId, Millis, Mono};
use futures::StreamExt;
use ops::{Call, Example, Human, Limits, Method, OpError, Operation, Permission, Scope, Typed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KEEP_ERRORS, renew};
use crate::Ports;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The lease.
    lease: u64,
    /// Renew it once, and end.
    #[serde(default)]
    once: bool,
}

/// One renewal.
#[derive(Serialize, JsonSchema)]
struct Renewed {
    lease: u64,
    /// It lives for so many milliseconds, from when the renewal was sent.
    ttl_ms: u64,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::streaming("lease.keep", "Renew a lease, again and again", (Method::Post, "/v1/leases/{lease}/keep"), run)
        .docs(
            "Renews it three times per time to live, for as long as the caller listens; one item per renewal. A renewal is \
             granted only by a leader that a majority has just confirmed. Ends with not_found when the lease has ended: \
             whoever held something by it does not hold it any more.",
        )
        .examples(&[
            Example { command: "muster lease keep 7", says: "until interrupted" },
            Example { command: "muster lease keep 7 --once", says: "one renewal" },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(ops::Idempotency::Idempotent)
        .errors(KEEP_ERRORS)
        // Those who renew once find room beside as many as may listen.
        .limits(Limits { concurrent: API_CONNECTIONS_MAX as u32, ..Limits::default() })
        .single("once")
        .positional(&["lease"])
        .human(Human::Text(text))
}

struct Keeping {
    call: Call<Ports>,
    input: Input,
    /// When to renew next, and when it is too late for that.
    next: Mono,
    ends: Option<Mono>,
    over: bool,
}

async fn run(call: Call<Ports>, input: Input) -> Result<Typed<Renewed>, OpError> {
    let next = call.clock.now().mono;
    let mut keeping = Keeping { call, input, next, ends: None, over: false };
    let first = keeping.renewed().await?;
    let more = futures::stream::unfold(keeping, |mut keeping| async move {
        if keeping.over {
            return None;
        }
        let item = keeping.renewed().await;
        keeping.over |= item.is_err();
        Some((item, keeping))
    });
    Ok(futures::stream::iter([Ok(first)]).chain(more).boxed())
}

impl Keeping {
    /// Waits until the next renewal is due, and does it.
    async fn renewed(&mut self) -> Result<Renewed, OpError> {
        self.call.clock.sleep_until(self.next).await;
        let sent = self.call.clock.now().mono;
        let deadline = self.ends.unwrap_or(self.call.deadline);
        let ttl_ms = renew(&self.call, LeaseId(self.input.lease), deadline).await?;
        self.next = sent.plus(Millis(ttl_ms / 3));
        self.ends = Some(sent.plus(Millis(ttl_ms)));
        self.over = self.input.once;
        Ok(Renewed { lease: self.input.lease, ttl_ms })
    }
}

fn text(item: &Value) -> String {
    format!("lease {} is renewed for {} ms", item["lease"], item["ttl_ms"])
}
