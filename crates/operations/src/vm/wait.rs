//! `vm.wait`: what happens to a virtual machine until it is as wished.

use std::sync::Arc;

use base::{ErrorCode, Millis, Mono};
use compute::VmPhase;
use futures::StreamExt;
use futures::future::{Either, select};
use metadata::Metadata;
use ops::{Call, Example, Human, Limits, Method, OpError, Operation, Scope, Typed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VmView;
use crate::Ports;
use crate::common::read;

#[derive(Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Until {
    Running,
    Stopped,
    /// Deleted, with its files.
    Gone,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The VM.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    /// What to wait for.
    #[serde(default = "running")]
    until: Until,
    /// How long to wait, in seconds.
    #[serde(default = "two_minutes")]
    #[schemars(range(min = 1, max = 86_400))]
    timeout_s: u32,
}

fn running() -> Until {
    Until::Running
}

fn two_minutes() -> u32 {
    120
}

/// One step on the way.
#[derive(Serialize, JsonSchema)]
struct Step {
    /// Since the waiting began.
    elapsed_ms: u64,
    /// The VM as it is now; null once it is gone.
    vm: Option<VmView>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::streaming("vm.wait", "Wait until a virtual machine runs", (Method::Get, "/v1/vms/{name}/wait"), run)
        .docs(
            "One item per change, the present state first. Ends when the VM is as wished; fails when that cannot be \
             any more (it Failed), or when the time is up, with the phase and reason it is in.",
        )
        .examples(&[
            Example { command: "muster vm wait web", says: "until web runs" },
            Example { command: "muster vm wait web --until gone --timeout-s 30", says: "until nothing is left of web" },
        ])
        .scope(Scope::Local)
        .errors(ERRORS)
        .limits(Limits { concurrent: 256, ..Limits::default() })
        .positional(&["name"])
        .human(Human::Text(text))
}

const ERRORS: &[ErrorCode] = &[
    ErrorCode::FailedPrecondition,
    ErrorCode::NotFound,
    ErrorCode::NoLeader,
    ErrorCode::NotLeader,
    ErrorCode::LeaderChanged,
    ErrorCode::Unreachable,
    ErrorCode::ShuttingDown,
];

/// The state of one waiting.
struct Waiting {
    call: Call<Ports>,
    input: Input,
    began: Mono,
    metadata: Arc<Metadata>,
    /// (phase, reason, epoch, incarnation) shown last.
    shown: Option<(VmPhase, String, u64, u64)>,
    over: bool,
}

async fn run(call: Call<Ports>, input: Input) -> Result<Typed<Step>, OpError> {
    let metadata = read(&call, false).await?;
    if input.until != Until::Gone {
        super::find(&metadata, &input.name)?;
    }
    let began = call.clock.now().mono;
    let waiting = Waiting { call, input, began, metadata, shown: None, over: false };
    Ok(futures::stream::unfold(waiting, |mut waiting| async move {
        let step = waiting.next().await?;
        Some((step, waiting))
    })
    .boxed())
}

impl Waiting {
    /// The next change, an end, or that the time is up.
    async fn next(&mut self) -> Option<Result<Step, OpError>> {
        loop {
            if self.over {
                return None;
            }
            if let Some(step) = self.look() {
                return Some(step);
            }
            let deadline = self.began.plus(Millis(u64::from(self.input.timeout_s) * 1_000));
            let changed = self.call.context.core.metadata_after(self.metadata.applied);
            match select(changed, self.call.clock.sleep_until(deadline)).await {
                Either::Left((metadata, _)) => self.metadata = metadata,
                Either::Right(_) => {
                    self.over = true;
                    return Some(Err(self.too_late()));
                }
            }
        }
    }

    /// What there is to say of the VM as it is now, if that is new.
    fn look(&mut self) -> Option<Result<Step, OpError>> {
        let elapsed_ms = self.call.clock.now().mono.since(self.began).0;
        let Some(vm) = self.metadata.vm(&self.input.name) else {
            self.over = true;
            return Some(match self.input.until {
                Until::Gone => Ok(Step { elapsed_ms, vm: None }),
                _ => Err(OpError::new(ErrorCode::NotFound, format!("VM {} was deleted", self.input.name))),
            });
        };
        let now = (vm.phase, vm.reason.clone(), vm.epoch.0, vm.incarnation.0);
        if self.shown.as_ref() == Some(&now) {
            if vm.phase == VmPhase::Failed && self.input.until == Until::Running {
                self.over = true;
                let message = format!("VM {} failed: {}", vm.name, vm.reason);
                let hint = format!("see `muster vm logs {0}`; `muster vm start {0}` tries again", vm.name);
                return Some(Err(OpError::new(ErrorCode::FailedPrecondition, message).hint(hint)));
            }
            return None;
        }
        self.over = matches!(
            (self.input.until, vm.phase),
            (Until::Running, VmPhase::Running) | (Until::Stopped, VmPhase::Stopped)
        );
        self.shown = Some(now);
        Some(Ok(Step { elapsed_ms, vm: Some(super::view(&self.call, &self.metadata, vm)) }))
    }

    fn too_late(&self) -> OpError {
        let state = match self.metadata.vm(&self.input.name) {
            Some(vm) if vm.reason.is_empty() => vm.phase.as_str().to_owned(),
            Some(vm) => format!("{} ({})", vm.phase.as_str(), vm.reason),
            None => "gone".into(),
        };
        let message = format!("after {} s VM {} is {state}", self.input.timeout_s, self.input.name);
        OpError::new(ErrorCode::DeadlineExceeded, message).hint("wait longer with `--timeout-s`")
    }
}

fn text(item: &Value) -> String {
    let seconds = item["elapsed_ms"].as_f64().unwrap_or(0.0) / 1_000.0;
    let vm = &item["vm"];
    if vm.is_null() {
        return format!("{seconds:6.1} s  gone");
    }
    let mut text = format!("{seconds:6.1} s  {}", ops::human::text(&vm["phase"]));
    if let Some(node) = vm["node"].as_str() {
        text.push_str(&format!(" on {node} (epoch {}, incarnation {})", vm["epoch"], vm["incarnation"]));
    }
    if let Some(reason) = vm["reason"].as_str().filter(|reason| !reason.is_empty()) {
        text.push_str(&format!(": {}", ops::human::one_line(reason)));
    }
    text
}
