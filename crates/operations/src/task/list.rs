//! `task.list`: the supervision tree of every node.

use futures::future::join_all;
use metadata::NodeRecord;
use ops::{Call, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::{fan_out_deadline, find_node, within};
use crate::{Ports, TaskView};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Only of this node, by name or id.
    node: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    nodes: Vec<NodeTasks>,
}

#[derive(Serialize, JsonSchema)]
struct NodeTasks {
    node: String,
    id: u64,
    /// Whether it answered.
    reachable: bool,
    /// Why it did not; empty if it did.
    reason: String,
    tasks: Vec<TaskView>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("task.list", "List the tasks of every node's supervision tree", (Method::Get, "/v1/tasks"), run)
        .docs("Asks every node, under one deadline. One that does not answer is listed with the reason.")
        .examples(&[
            Example { command: "muster task list", says: "every task of every node, its restarts and causes" },
            Example { command: "muster task list --node node2", says: "those of node2" },
        ])
        .scope(Scope::EveryNode)
        .errors(&[base::ErrorCode::NotFound])
        .aliases(&["ls"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = call.context.core.metadata();
    let only = input.node.as_deref().map(|wanted| find_node(&metadata, wanted)).transpose()?;
    let deadline = fan_out_deadline(&call);
    let one = |record: &NodeRecord| {
        let (node, name) = (record.member.node, record.member.name.clone());
        let (answer, call) = (call.context.tasks.list(node, deadline), &call);
        async move {
            let (tasks, reason) = match within(call, deadline, answer).await {
                Ok(tasks) => (tasks, None),
                Err(error) => (Vec::new(), Some(error.message)),
            };
            NodeTasks { node: name, id: node.0, reachable: reason.is_none(), reason: reason.unwrap_or_default(), tasks }
        }
    };
    let wanted = metadata.nodes.values().filter(|record| only.is_none_or(|node| node == record.member.node));
    Ok(Output { nodes: join_all(wanted.map(one)).await })
}

fn text(output: &Value) -> String {
    let mut rows = Vec::new();
    for node in output["nodes"].as_array().into_iter().flatten() {
        let name = ops::human::text(&node["node"]);
        if node["reachable"] == false {
            let reason = ops::human::text(&node["reason"]);
            rows.push(vec![name.clone(), "-".into(), "unreachable".into(), String::new(), String::new(), reason]);
        }
        for task in node["tasks"].as_array().into_iter().flatten() {
            let cell = |field: &str| ops::human::text(&task[field]);
            let since = ops::human::duration(task["since_ms"].as_u64().unwrap_or(0));
            rows.push(vec![name.clone(), cell("path"), cell("state"), since, cell("restarts"), cell("cause")]);
        }
    }
    ops::human::table(&["NODE", "TASK", "STATE", "SINCE", "RESTARTS", "CAUSE"], &rows)
}
