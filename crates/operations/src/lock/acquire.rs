//! `lock.acquire`: waits until the lock is the caller's.

use base::limits::{API_WAITS_MAX, REQUEST_DEADLINE_DEFAULT};
use base::{ErrorCode, GroupId, LeaseId, Millis, Mono};
use engine::{Reply, Request, RequestError, Target};
use futures::future::{BoxFuture, Either, select};
use metadata::{Command, CommandResult, KeyLife, Metadata};
use ops::{Call, Example, Human, Idempotency, Limits, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{check_name, key_of, queue, queue_changed};
use crate::Ports;
use crate::common::{WRITE_ERRORS, command_again, command_result, unexpected};
use crate::lease::renew;

/// Leases of earlier calls under the same Idempotency-Key that one call looks through: those calls failed, and each took its
/// lease along.
const EARLIER_MAX: usize = 64;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The lock; it need not exist.
    #[schemars(length(min = 1, max = 256))]
    name: String,
    /// Seconds after which it is free again, if nobody renews its lease.
    #[serde(default = "ttl")]
    #[schemars(range(min = 2, max = 604_800))]
    ttl_s: u32,
    /// Seconds to wait for it.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 86_400))]
    timeout_s: u32,
    /// Shown to others: who holds it, and what for.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    owner: String,
}

fn ttl() -> u32 {
    30
}

fn ten() -> u32 {
    10
}

#[derive(Serialize, JsonSchema)]
struct Output {
    name: String,
    /// Renew it for as long as the lock is needed; revoking it frees the lock.
    lease: u64,
    /// The fencing token: higher than that of every holder before.
    token: u64,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("lock.acquire", "Wait for a lock, and hold it", (Method::Post, "/v1/locks/{name}/acquire"), run)
        .docs(
            "One holder at a time, in the order in which they asked. It is held by a lease: renew that with lease.keep for \
             as long as it is needed, or the next one gets it. A holder whose lease ended unnoticed may still act: pass the \
             fencing token along with what you do, and have it refused when a higher one was seen. Who hangs up while \
             waiting leaves the queue.",
        )
        .examples(&[
            Example { command: "muster lock acquire backup", says: "waits 10 s for it, holds it for 30 s" },
            Example { command: "muster lock acquire backup --ttl-s 600 --timeout-s 0", says: "now or not at all" },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .limits(Limits { concurrent: API_WAITS_MAX, deadline: Millis(86_400_000), deadline_max: Millis(86_400_000), ..Limits::default() })
        .positional(&["name"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    check_name(&input.name)?;
    let ttl_ms = u64::from(input.ttl_s) * 1_000;
    let give_up = call.clock.now().mono.plus(Millis(u64::from(input.timeout_s) * 1_000)).min(call.deadline);
    for _ in 0..EARLIER_MAX {
        let CommandResult::LeaseGranted { lease } = command_result(&call, Command::GrantLease { ttl_ms }).await? else {
            return Err(unexpected());
        };
        let mut queued = Queued { call: &call, lease: Some(lease) };
        match wait(&call, &input, lease, ttl_ms, give_up).await {
            Ok(Some(token)) => {
                queued.lease = None;
                return Ok(Output { name: input.name, lease: lease.0, token });
            }
            Ok(None) => queued.lease = None,
            Err(error) => {
                if let Some(left) = queued.leave() {
                    let _ = left.await;
                }
                return Err(error);
            }
        }
    }
    let message = format!("{EARLIER_MAX} calls for lock {} failed under this Idempotency-Key", input.name);
    Err(OpError::new(ErrorCode::Busy, message).hint("choose a new key"))
}

/// A lease that stands in a queue. It ends when the call does without having got the lock, also when whoever called has hung
/// up: those who wait behind must not wait for the end of a lease that nobody renews.
struct Queued<'a> {
    call: &'a Call<Ports>,
    /// `None`: it is not to end (any more).
    lease: Option<LeaseId>,
}

impl Queued<'_> {
    /// Ends the lease; that is under way when this returns.
    fn leave(&mut self) -> Option<BoxFuture<'static, Result<Reply, RequestError>>> {
        // Not under the call's key: if that is used again, the call's next command is a new lease.
        let end = Request::Command(Command::EndLease { lease: self.lease.take()?, expired: false });
        let deadline = self.call.clock.now().mono.plus(REQUEST_DEADLINE_DEFAULT);
        Some(self.call.context.core.request(Target::Leader(GroupId::META), deadline, end))
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

/// Stands in the queue until the front of it. `None`: the lease is that of an earlier call under the same key, and has ended.
async fn wait(
    call: &Call<Ports>,
    input: &Input,
    lease: LeaseId,
    ttl_ms: u64,
    give_up: Mono,
) -> Result<Option<u64>, OpError> {
    let core = &call.context.core;
    let stand = Command::PutKey {
        key: key_of(&input.name, lease),
        value: input.owner.clone().into_bytes().into(),
        expect: None,
        life: KeyLife::Bound(lease),
    };
    let (stood, mut metadata) = match command_again(call, stand).await {
        Err(error) if error.code == ErrorCode::NotFound && call.once.is_some() => return Ok(None),
        stood => stood?,
    };
    // It stood there before: an earlier call may take it along when it ends.
    let shared = matches!(stood, CommandResult::KeyPut { version, .. } if version > 1);
    let mut place = place_of(&metadata, &input.name, lease);
    let mut renewed = call.clock.now().mono;
    loop {
        let holder = match place {
            Place::Front { token } => {
                // With its whole time before it.
                renew(call, lease, call.deadline).await?;
                return Ok(Some(token));
            }
            Place::Behind { holder } => holder,
            Place::Lost if shared => return Ok(None),
            Place::Lost => {
                let message = format!("the place in the queue for lock {} was lost: its lease ended", input.name);
                return Err(OpError::new(ErrorCode::FailedPrecondition, message));
            }
        };
        let now = call.clock.now().mono;
        if now >= give_up {
            let message = format!("lock {} is held by lease {holder}", input.name);
            return Err(OpError::new(ErrorCode::DeadlineExceeded, message).hint("wait longer with `--timeout-s`"));
        }
        let renew_at = renewed.plus(Millis(ttl_ms / 3));
        if now >= renew_at {
            renewed = now;
            renew(call, lease, renewed.plus(Millis(ttl_ms))).await?;
        }
        let changed = core.metadata_after(metadata.applied);
        if let Either::Left((later, _)) = select(changed, call.clock.sleep_until(give_up.min(renew_at.max(now)))).await
        {
            // Of the many changes that are none of the queue's, each waiter would otherwise look through all of it.
            if queue_changed(&later, &input.name, metadata.applied) {
                place = place_of(&later, &input.name, lease);
            }
            metadata = later;
        }
    }
}

/// Where a lease stands in a queue.
enum Place {
    /// It holds the lock.
    Front { token: u64 },
    /// It waits for that lease and maybe others.
    Behind { holder: LeaseId },
    /// Nowhere (any more).
    Lost,
}

fn place_of(metadata: &Metadata, name: &str, lease: LeaseId) -> Place {
    let queue = queue(metadata, name);
    match queue.first() {
        Some((first, token)) if *first == lease => Place::Front { token: *token },
        Some((holder, _)) if queue.iter().any(|(standing, _)| *standing == lease) => Place::Behind { holder: *holder },
        _ => Place::Lost,
    }
}

fn text(output: &Value) -> String {
    let lease = &output["lease"];
    format!(
        "lock {} is held by lease {lease}, fencing token {}\n`muster lease keep {lease}` keeps it, `muster lock release {} {lease}` frees it",
        ops::human::text(&output["name"]),
        output["token"],
        ops::human::text(&output["name"])
    )
}
