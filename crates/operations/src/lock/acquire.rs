//! `lock.acquire`: waits until the lock is the caller's.

use std::sync::Arc;

use base::limits::{API_WAITS_MAX, IDEMPOTENCY_KEPT, REQUEST_DEADLINE_DEFAULT};
use base::{ErrorCode, GroupId, LeaseId, Millis, Mono, Wall};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use engine::{Reply, Request, RequestError, Target};
use futures::future::{BoxFuture, Either, select};
use metadata::{Command, CommandResult, KeyExpect, KeyLife, KeyRecord, Metadata};
use ops::{Call, Example, Human, Idempotency, Limits, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{check_name, key_of, queue, queue_changed, value_of};
use crate::Ports;
use crate::common::{WRITE_ERRORS, command_again, failure, latest, unexpected};
use crate::lease::renew;

/// So often a call tries to stand in the queue: each try fails only because another call under the same Idempotency-Key came
/// or went in between.
const TRIES_MAX: usize = 16;
/// A call that gives up waits so long for having left the queue.
const LEAVE_WAIT: Millis = Millis(1_000);

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
             waiting leaves the queue. A retry under the same Idempotency-Key, within ten minutes and through whichever \
             node, takes up the place of the earlier call if it is still there; it then goes only when its lease ends.",
        )
        .examples(&[
            Example { command: "muster lock acquire backup", says: "waits 10 s for it, holds it for 30 s" },
            Example { command: "muster lock acquire backup --ttl-s 600 --timeout-s 0", says: "now or not at all" },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .resumes()
        .errors(WRITE_ERRORS)
        .limits(Limits { concurrent: API_WAITS_MAX, deadline: Millis(86_400_000), deadline_max: Millis(86_400_000), ..Limits::default() })
        .positional(&["name"])
        .human(Human::Text(text))
}

async fn run(mut call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    check_name(&input.name)?;
    let ttl_ms = u64::from(input.ttl_s) * 1_000;
    let give_up = call.clock.now().mono.plus(Millis(u64::from(input.timeout_s) * 1_000)).min(call.deadline);
    // The deadline is that of the longest wait; without a leader nothing is asked for so long.
    call.deadline = call.deadline.min(give_up.plus(REQUEST_DEADLINE_DEFAULT));
    let mut mark = [0; 16];
    call.context.random.fill(&mut mark).map_err(failure)?;
    let place = call.once.as_ref().map_or(mark, |once| once.next_command());
    let wanted = Wanted {
        name: &input.name,
        place: HEXLOWER.encode(&place),
        value: value_of(&input.owner, &HEXLOWER.encode(&mark)),
        ttl_ms,
    };
    let mut queued = Queued { call: &call, leave: None, shared: None };
    match acquired(&mut queued, &wanted, give_up).await {
        Ok((lease, token)) => {
            queued.leave = None;
            Ok(Output { name: input.name, lease: lease.0, token })
        }
        Err(error) => {
            if let Some(left) = queued.leave() {
                let enough = call.clock.now().mono.plus(LEAVE_WAIT).min(call.deadline);
                let _ = select(left, call.clock.sleep_until(enough)).await;
            }
            Err(match queued.shared {
                Some(lease) => error.hint(format!(
                    "the place that an earlier call under this Idempotency-Key took stays until its lease {lease} ends: \
                     `muster lock release {} {lease}` gives it up",
                    ops::human::text(&Value::from(input.name.as_str()))
                )),
                None => error,
            })
        }
    }
}

/// What a call wants.
struct Wanted<'a> {
    /// The lock.
    name: &'a str,
    /// What names its place in the queue: the same for calls under one Idempotency-Key, its own for any other.
    place: String,
    /// What it puts there, and no other call.
    value: Bytes,
    ttl_ms: u64,
}

/// A call that stands in a queue. It leaves when it ends without having got the lock, also when whoever called has hung up:
/// those who wait behind must not wait for the end of a lease that nobody renews.
///
/// Calls under one Idempotency-Key share a place, and none knows whether another one has answered that the lock is the
/// caller's. What makes every order of their commands safe: a call answers only after it has put the place's key itself, with
/// a value that no other call puts, and a call leaves only by deleting the key with that value. So whoever leaves, however
/// late, takes away no place that another call has put since; and a call that found the place there takes it away in no case,
/// but leaves it to the time of its lease. The lease goes with the key and not by itself, for another call may stand by it.
struct Queued<'a> {
    call: &'a Call<Ports>,
    /// How it leaves; `None`: it does not stand there (yet), or is to stay. Known before the place is, for who hangs up
    /// while that is asked for. The core then holds the leave until the put has its outcome, also where that has to be sent
    /// again, for it deletes just what the put puts (`engine/src/requests/held.rs`). Only a put that ends with its outcome
    /// unknown may be carried out after the leave; then the place goes when its lease ends.
    leave: Option<Command>,
    /// The lease of the place that it shares with an earlier call.
    shared: Option<LeaseId>,
}

impl Queued<'_> {
    /// Leaves the queue; that is under way when this returns.
    fn leave(&mut self) -> Option<BoxFuture<'static, Result<Reply, RequestError>>> {
        let leave = Request::Command(self.leave.take()?);
        let deadline = self.call.clock.now().mono.plus(REQUEST_DEADLINE_DEFAULT);
        Some(self.call.context.core.request(Target::Leader(GroupId::META), deadline, leave))
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

/// Stands in the queue until the front of it: lease and fencing token.
async fn acquired(queued: &mut Queued<'_>, wanted: &Wanted<'_>, give_up: Mono) -> Result<(LeaseId, u64), OpError> {
    let (lease, metadata) = stand(queued, wanted).await?;
    Ok((lease, wait(queued.call, wanted, lease, metadata, give_up).await?))
}

/// Stands in the queue, where an earlier call under the same key does if there is one; with the cluster's state since.
async fn stand(queued: &mut Queued<'_>, wanted: &Wanted<'_>) -> Result<(LeaseId, Arc<Metadata>), OpError> {
    let call = queued.call;
    for _ in 0..TRIES_MAX {
        // Asked first: who hangs up while there is no leader has not begun to stand there.
        let (key, known) = place(&*latest(call).await?, wanted, call.clock.now().wall);
        let (expect, life) = match &known {
            // The lease is the key's own, and goes with it.
            None => (KeyExpect::Absent, KeyLife::Ttl(wanted.ttl_ms)),
            Some(record) => {
                let life = record.lease.map_or(KeyLife::Ttl(wanted.ttl_ms), KeyLife::Bound);
                (KeyExpect::Revision(record.modified), life)
            }
        };
        queued.leave = known.is_none().then(|| Command::DeleteKeys {
            key: key.clone(),
            prefix: false,
            expect: Some(KeyExpect::Value(wanted.value.clone())),
        });
        let put = Command::PutKey { key, value: wanted.value.clone(), expect: Some(expect), life };
        let deadline = call.clock.now().mono.plus(REQUEST_DEADLINE_DEFAULT).min(call.deadline);
        let (stood, metadata) = match command_again(call, deadline, put).await {
            Err(error) if changed_meanwhile(&error) => {
                queued.leave = None;
                continue;
            }
            stood => stood?,
        };
        let CommandResult::KeyPut { lease: Some(lease), .. } = stood else {
            return Err(unexpected());
        };
        if known.is_none() {
            return Ok((lease, metadata));
        }
        queued.shared = Some(lease);
        // Nobody may have renewed it for a while.
        match renew(call, lease, call.deadline).await {
            Err(error) if changed_meanwhile(&error) => queued.shared = None,
            renewed => return renewed.map(|_| (lease, metadata)),
        }
    }
    let message =
        format!("{TRIES_MAX} tries to wait for lock {} met other calls under its Idempotency-Key", wanted.name);
    Err(OpError::new(ErrorCode::Busy, message).hint("try again"))
}

/// The key of the place to take, and what it is if an earlier call stands there. A place that was taken longer ago than an
/// Idempotency-Key is remembered belongs to another call that happened to have the same key, and keeps the lock from this one.
fn place(metadata: &Metadata, wanted: &Wanted<'_>, now: Wall) -> (String, Option<KeyRecord>) {
    let taken = |lease: Option<LeaseId>| metadata.kv.leases.get(&lease?).map(|lease| lease.granted);
    let old = |record: &KeyRecord| taken(record.lease).is_some_and(|at| at.plus(IDEMPOTENCY_KEPT) < now);
    let first = key_of(wanted.name, &wanted.place);
    if let Some((key, record)) = metadata.kv.range(&first, None).find(|(_, record)| !old(record)) {
        return (key.to_owned(), Some(record.clone()));
    }
    let others = (1..).map(|number| format!("{first}-{number}"));
    let free = std::iter::once(first.clone()).chain(others).find(|key| metadata.kv.key(key).is_none());
    (free.unwrap_or(first), None)
}

/// Whether a place in the queue, or its lease, was not any more (or not yet) as it was just seen.
fn changed_meanwhile(error: &OpError) -> bool {
    matches!(error.code, ErrorCode::FailedPrecondition | ErrorCode::NotFound)
}

/// Waits for the front of the queue: the fencing token.
async fn wait(
    call: &Call<Ports>,
    wanted: &Wanted<'_>,
    lease: LeaseId,
    mut metadata: Arc<Metadata>,
    give_up: Mono,
) -> Result<u64, OpError> {
    let &Wanted { name, ttl_ms, .. } = wanted;
    let core = &call.context.core;
    let mut place = place_of(&metadata, name, lease);
    let mut renewed = call.clock.now().mono;
    loop {
        let holder = match place {
            Place::Front { token } => {
                // With its whole time before it.
                renew(call, lease, call.deadline).await?;
                return Ok(token);
            }
            Place::Behind { holder } => holder,
            Place::Lost => {
                let message = format!("the place in the queue for lock {} was lost: its lease ended", name);
                return Err(OpError::new(ErrorCode::FailedPrecondition, message));
            }
        };
        let now = call.clock.now().mono;
        if now >= give_up {
            let message = format!("lock {} is held by lease {holder}", name);
            return Err(OpError::new(ErrorCode::DeadlineExceeded, message).hint("wait longer with `--timeout-s`"));
        }
        let renew_at = renewed.plus(Millis(ttl_ms / 3));
        if now >= renew_at {
            renewed = now;
            renew(call, lease, renewed.plus(Millis(ttl_ms)).min(give_up)).await?;
        }
        let changed = core.metadata_after(metadata.applied);
        if let Either::Left((later, _)) = select(changed, call.clock.sleep_until(give_up.min(renew_at.max(now)))).await
        {
            // Of the many changes that are none of the queue's, each waiter would otherwise look through all of it.
            if queue_changed(&later, name, metadata.applied) {
                place = place_of(&later, name, lease);
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
