//! `vm.logs`: the console of a virtual machine, out of its topic. Works after the VM, or its host, has died.

use futures::StreamExt;
use ops::{Call, Example, Human, Limits, Method, OpError, Operation, Scope, Typed};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::common::{READ_ERRORS, failure};
use crate::{ConsoleFrom, ConsoleLine, Ports};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The VM; it need not exist any more.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    /// Go on with what comes, until interrupted.
    #[serde(default)]
    follow: bool,
    /// Begin with the last so many lines; by default with the oldest kept.
    tail: Option<u32>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::streaming("vm.logs", "Show the console of a virtual machine", (Method::Get, "/v1/vms/{name}/logs"), run)
        .docs(
            "Reads the topic vm.NAME.console, so that it works after the VM, or the node that ran it, has died. Any \
             Kafka client can read the same topic.",
        )
        .examples(&[
            Example { command: "muster vm logs web", says: "everything kept" },
            Example { command: "muster vm logs -f --tail 20 web", says: "the last 20 lines, and what comes" },
        ])
        .scope(Scope::Owner)
        .errors(READ_ERRORS)
        .limits(Limits { concurrent: 256, ..Limits::default() })
        .positional(&["name"])
        .short(&[("follow", 'f'), ("tail", 'n')])
        .aliases(&["log", "console"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Typed<ConsoleLine>, OpError> {
    metadata::valid_vm_name(&input.name).map_err(|reason| OpError::field("name", format!("is refused: {reason}")))?;
    let topic = metadata::console_topic(&input.name);
    if !call.context.core.metadata().topics.contains_key(&topic) {
        // Perhaps it was created through another node a moment ago.
        let metadata = crate::common::read(&call, false).await?;
        if !metadata.topics.contains_key(&topic) {
            return Err(super::missing(&metadata, &input.name));
        }
    }
    let from = input.tail.map_or(ConsoleFrom::Start, ConsoleFrom::Tail);
    let lines = call.context.console.read(&topic, from, input.follow, call.deadline).await.map_err(failure)?;
    Ok(lines.map(|line| line.map_err(failure)).boxed())
}

/// What the guest wrote is not trusted: control characters must not reach the terminal.
fn text(item: &Value) -> String {
    let line = item["line"].as_str().unwrap_or_default();
    let shown: String = line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
    // An empty text is not printed, an empty line of the console is.
    if shown.is_empty() { " ".into() } else { shown }
}
