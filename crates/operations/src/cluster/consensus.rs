//! `cluster.consensus`: how steady elections, heartbeats, commits and syncs are, node by node.

use std::collections::BTreeMap;

use base::limits::{HEARTBEAT_LATE_AFTER, VITALS_GROUPS_LISTED_MAX};
use base::{Distribution, GroupId, Millis};
use engine::{GroupVitals, Reply, Request, Vitals};
use metadata::Metadata;
use ops::{Call, Example, Human, Method, NoInput, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::Ports;
use crate::common::{Asked, ask_every, count, node_name};
use crate::group::list::group_name;

/// A new cluster's groups reach this term, and none above it while all is well.
const TERM_EXPECTED_MAX: u64 = 2;
/// Groups that the human form shows.
const GROUPS_SHOWN_MAX: usize = 8;
/// Fields of [`Queues`] and their titles.
const QUEUES: &[(&str, &str)] = &[
    ("requests", "REQUESTS"),
    ("requests_waiting", "WAITING"),
    ("proposals", "PROPOSALS"),
    ("rounds", "ROUNDS"),
    ("unapplied", "UNAPPLIED"),
    ("unapplied_max", "WORST"),
    ("log_reads", "LOG READS"),
    ("questions", "QUESTIONS"),
    ("outbox", "OUTBOX"),
];
/// The same of [`Arrivals`].
const ARRIVALS: &[(&str, &str)] = &[
    ("requests", "NEW REQUESTS"),
    ("control", "FROM PEERS"),
    ("bulk", "IN BULK"),
    ("disk", "FROM DISK"),
    ("vms", "FROM VMS"),
];

#[derive(Serialize, JsonSchema)]
struct Output {
    /// The node that answered.
    answered_by: String,
    nodes: Vec<NodeEntry>,
    /// Groups of which a node knows no leader, and those with a term above 2, worst first; of many, some.
    groups: Vec<GroupEntry>,
}

#[derive(Serialize, JsonSchema)]
struct NodeEntry {
    node: String,
    id: u64,
    /// Whether it answered.
    reachable: bool,
    /// Why it did not; empty if it did.
    reason: String,
    /// What it says; null if it did not answer.
    consensus: Option<Consensus>,
}

/// Counted since the node's process started, over all groups that have, or had, a replica on it.
#[derive(Serialize, JsonSchema)]
struct Consensus {
    /// For how long it has counted, in milliseconds.
    counted_ms: u64,
    elections: Elections,
    ticks: Ticks,
    /// The time between heartbeats that it aims for, in milliseconds.
    heartbeat_interval_ms: u64,
    /// Between heartbeats of a group that it leads.
    heartbeats_sent: Gaps,
    /// Between heartbeats of a group's leader, as they came.
    heartbeats_received: Gaps,
    /// From proposing an entry to its commit.
    commits: Spread,
    /// From writing a round of the log to its being durable.
    syncs: Spread,
    queues: Queues,
    /// What it has yet to take in; null if its release is too old to say.
    arrivals: Option<Arrivals>,
    groups: GroupCounts,
}

#[derive(Serialize, JsonSchema)]
struct Elections {
    /// Times that a replica began to ask whether an election has a chance.
    pre_votes: u64,
    /// Candidacies in a new term.
    started: u64,
    won: u64,
    /// Moves to a higher term.
    term_changes: u64,
    /// Terms of which a leader became known.
    leader_changes: u64,
    /// Leaderships that ended, handed over ones too.
    step_downs: u64,
}

#[derive(Serialize, JsonSchema)]
struct Ticks {
    passed: u64,
    /// Missed, and never made good.
    skipped: u64,
    /// Times that the node did not run for longer than an election timeout.
    pauses: u64,
}

/// In microseconds. Quantiles are never too low and at most a tenth too high; null while there is nothing.
#[derive(Serialize, JsonSchema)]
struct Spread {
    count: u64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    p999_us: Option<u64>,
    max_us: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
struct Gaps {
    #[serde(flatten)]
    spread: Spread,
    /// Those more than 50 ms above the interval.
    late: u64,
}

/// At this moment.
#[derive(Serialize, JsonSchema)]
struct Queues {
    /// Requests that the node took and has not answered.
    requests: u64,
    /// Of these, those that wait for a leader, a session or recovery.
    requests_waiting: u64,
    /// Entries proposed and not committed.
    proposals: u64,
    /// Rounds of the log that are not durable.
    rounds: u64,
    /// Entries committed and not applied: the apply lag.
    unapplied: u64,
    /// The same of the group that has most.
    unapplied_max: u64,
    /// Reads of the log under way.
    log_reads: u64,
    /// Questions that the core asked of its surroundings.
    questions: u64,
    /// Events of the cluster that wait for being published.
    outbox: u64,
}

/// At the last tick.
#[derive(Serialize, JsonSchema)]
struct Arrivals {
    /// Requests of its own clients.
    requests: u64,
    /// Frames of peers that are urgent.
    control: u64,
    /// Frames of peers in bulk.
    bulk: u64,
    /// Disk operations that ended.
    disk: u64,
    /// Reports of virtual machines.
    vms: u64,
}

#[derive(Serialize, JsonSchema)]
struct GroupCounts {
    all: u64,
    led: u64,
    /// Of which the node knows no leader.
    without_leader: u64,
    /// Being born or recovered.
    recovering: u64,
    term_max: u64,
}

#[derive(Serialize, JsonSchema)]
struct GroupEntry {
    group: u64,
    /// `__meta`, or `TOPIC/PARTITION`.
    name: String,
    /// The highest that a node names.
    term: u64,
    /// In that term; null if no node that answered knows one.
    leader: Option<String>,
    /// Nodes with a replica that know no leader.
    without_leader_on: Vec<String>,
    /// Candidacies of all its replicas on nodes that answered.
    elections: u64,
    /// As the replica that saw most.
    leader_changes: u64,
    /// Entries committed and not applied, of the replica that has most.
    unapplied: u64,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new(
        "cluster.consensus",
        "Show how steady consensus is: elections, heartbeats, commits, syncs, queues",
        (Method::Get, "/v1/consensus"),
        run,
    )
    .docs(
        "Asks every member, under one deadline, what it counted since its process started; who does not answer is listed \
         as unreachable with the reason. The same numbers, and more, stand at `GET /metrics` of each node.",
    )
    .examples(&[
        Example { command: "muster status --consensus", says: "elections, heartbeats, latencies and queues by node" },
        Example { command: "muster status --consensus --output json", says: "the same for programs" },
    ])
    .scope(Scope::EveryNode)
    .words(&["status", "--consensus"])
    .errors(crate::common::READ_ERRORS)
    .human(Human::Text(text))
}

async fn run(call: Call<Ports>, _: NoInput) -> Result<Output, OpError> {
    let core = &call.context.core;
    let metadata = core.metadata();
    let request = Request::Vitals { listed_max: VITALS_GROUPS_LISTED_MAX };
    let asked = ask_every(&call, &metadata, &request, |reply| match reply {
        Reply::Vitals(vitals) => Some(*vitals),
        _ => None,
    });
    let asked = asked.await;
    if asked.is_empty() {
        return Err(super::status::not_a_member_yet(&call).await);
    }
    let groups = notable(&metadata, &asked);
    Ok(Output { answered_by: node_name(&metadata, core.me()), nodes: asked.into_iter().map(entry).collect(), groups })
}

fn entry(asked: Asked<Vitals>) -> NodeEntry {
    let member = asked.record.member;
    let (consensus, reason) = match asked.answer {
        Ok(vitals) => (Some(consensus(&vitals)), String::new()),
        Err(error) => (None, error.message),
    };
    NodeEntry { node: member.name, id: member.node.0, reachable: consensus.is_some(), reason, consensus }
}

fn consensus(vitals: &Vitals) -> Consensus {
    let engine::Elections { pre_votes, started, won, term_changes, leader_changes, step_downs } = vitals.elections;
    let engine::Ticks { passed, skipped, pauses } = vitals.ticks;
    let queues = vitals.queues;
    let groups = vitals.groups;
    let interval = Millis(vitals.heartbeat_interval_ms);
    Consensus {
        counted_ms: vitals.counted_ms,
        elections: Elections { pre_votes, started, won, term_changes, leader_changes, step_downs },
        ticks: Ticks { passed, skipped, pauses },
        heartbeat_interval_ms: interval.0,
        heartbeats_sent: gaps(&vitals.heartbeats_sent, interval),
        heartbeats_received: gaps(&vitals.heartbeats_received, interval),
        commits: spread(&vitals.committed),
        syncs: spread(&vitals.synced),
        queues: Queues {
            requests: queues.requests,
            requests_waiting: queues.requests_waiting,
            proposals: queues.proposals,
            rounds: queues.rounds,
            unapplied: queues.unapplied,
            unapplied_max: queues.unapplied_max,
            log_reads: queues.log_reads,
            questions: queues.questions,
            outbox: queues.outbox,
        },
        arrivals: vitals.arrivals.map(arrivals),
        groups: GroupCounts {
            all: groups.all,
            led: groups.led,
            without_leader: groups.without_leader,
            recovering: groups.recovering,
            term_max: groups.term_max,
        },
    }
}

fn arrivals(told: engine::Arrivals) -> Arrivals {
    let engine::Arrivals { control, bulk, disk, vms, requests } = told;
    Arrivals { requests, control, bulk, disk, vms }
}

fn spread(values: &Distribution) -> Spread {
    Spread {
        count: values.count(),
        p50_us: values.quantile_us(500),
        p99_us: values.quantile_us(990),
        p999_us: values.quantile_us(999),
        max_us: values.max_us(),
    }
}

fn gaps(values: &Distribution, interval: Millis) -> Gaps {
    let in_time_us = (interval.0 + HEARTBEAT_LATE_AFTER.0) * 1_000;
    Gaps { spread: spread(values), late: values.count().saturating_sub(values.at_most(in_time_us)) }
}

/// The groups that are worth a look, by what all nodes say of them.
fn notable(metadata: &Metadata, asked: &[Asked<Vitals>]) -> Vec<GroupEntry> {
    let mut groups: BTreeMap<GroupId, GroupEntry> = BTreeMap::new();
    for one in asked {
        let name = &one.record.member.name;
        for view in one.answer.iter().flat_map(|vitals| &vitals.listed) {
            let entry = groups.entry(view.group).or_insert_with(|| unheard_of(metadata, view.group));
            add(metadata, entry, name, view);
        }
    }
    let worth = |entry: &GroupEntry| !entry.without_leader_on.is_empty() || entry.term > TERM_EXPECTED_MAX;
    let mut entries: Vec<GroupEntry> = groups.into_values().filter(worth).collect();
    entries.sort_by_key(|it| (it.leader.is_some(), std::cmp::Reverse(it.term), it.group));
    entries.truncate(VITALS_GROUPS_LISTED_MAX as usize);
    entries
}

fn unheard_of(metadata: &Metadata, group: GroupId) -> GroupEntry {
    GroupEntry {
        group: group.0,
        name: group_name(metadata, group),
        term: 0,
        leader: None,
        without_leader_on: Vec::new(),
        elections: 0,
        leader_changes: 0,
        unapplied: 0,
    }
}

fn add(metadata: &Metadata, entry: &mut GroupEntry, node: &str, view: &GroupVitals) {
    let leader = view.leader.map(|node| node_name(metadata, node));
    if leader.is_none() {
        entry.without_leader_on.push(node.to_owned());
    }
    if view.term > entry.term {
        (entry.term, entry.leader) = (view.term, None);
    }
    if view.term == entry.term {
        entry.leader = entry.leader.take().or(leader);
    }
    entry.elections += view.elections.started;
    entry.leader_changes = entry.leader_changes.max(view.elections.leader_changes);
    entry.unapplied = entry.unapplied.max(view.commit.saturating_sub(view.applied));
}

fn text(output: &Value) -> String {
    let nodes = output["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let groups = output["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let answered: Vec<&Value> = nodes.iter().filter(|node| node["reachable"] == true).collect();
    let mut text = format!("consensus as {} of {} tell it\n", answered.len(), count(nodes.len(), "node"));
    for node in nodes.iter().filter(|node| node["reachable"] != true) {
        text.push_str(&format!("{}: unreachable: {}\n", cell(&node["node"]), cell(&node["reason"])));
    }
    text.push_str(&elections_table(&answered));
    text.push_str(&latency_table(&answered));
    text.push_str(&depth_table(&answered, "queues", QUEUES));
    text.push_str(&depth_table(&answered, "arrivals", ARRIVALS));
    if !answered.is_empty() {
        text.push_str(&group_table(groups));
    }
    text.trim_end().to_owned()
}

fn cell(value: &Value) -> String {
    if value.is_null() { "-".to_owned() } else { ops::human::text(value) }
}

fn section(header: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() { String::new() } else { format!("\n{}\n", ops::human::table(header, rows)) }
}

fn elections_table(nodes: &[&Value]) -> String {
    let row = |node: &&Value| {
        let says = &node["consensus"];
        let since = ops::human::duration(says["counted_ms"].as_u64().unwrap_or(0));
        let mut row = vec![cell(&node["node"]), since];
        row.extend(["all", "led", "without_leader", "term_max"].map(|name| cell(&says["groups"][name])));
        let elections = ["started", "won", "pre_votes", "term_changes", "leader_changes", "step_downs"];
        row.extend(elections.map(|name| cell(&says["elections"][name])));
        row.extend(["skipped", "pauses"].map(|name| cell(&says["ticks"][name])));
        row
    };
    let header = [
        "NODE",
        "SINCE",
        "GROUPS",
        "LED",
        "NO LEADER",
        "TERM MAX",
        "ELECTIONS",
        "WON",
        "PRE-VOTES",
        "TERMS",
        "LEADERS",
        "STEP-DOWNS",
        "SKIPPED TICKS",
        "PAUSES",
    ];
    section(&header, &nodes.iter().map(row).collect::<Vec<_>>())
}

fn latency_table(nodes: &[&Value]) -> String {
    let measured = [
        ("heartbeats_sent", "between heartbeats sent"),
        ("heartbeats_received", "between heartbeats received"),
        ("commits", "propose to commit"),
        ("syncs", "write to synced"),
    ];
    let mut rows = Vec::new();
    for node in nodes {
        for (field, what) in measured {
            let spread = &node["consensus"][field];
            let mut row = vec![cell(&node["node"]), what.to_owned(), cell(&spread["count"])];
            row.extend(["p50_us", "p99_us", "p999_us", "max_us"].map(|name| millis(&spread[name])));
            row.push(spread.get("late").map(cell).unwrap_or_default());
            rows.push(row);
        }
    }
    section(&["NODE", "TIME", "COUNT", "P50", "P99", "P99.9", "MAX", "LATE"], &rows)
}

/// Microseconds as milliseconds.
fn millis(us: &Value) -> String {
    us.as_u64().map_or("-".to_owned(), |us| match us {
        0..100_000 => format!("{}.{:02}ms", us / 1_000, us % 1_000 / 10),
        _ => format!("{}ms", us / 1_000),
    })
}

fn depth_table(nodes: &[&Value], of: &str, fields: &[(&str, &str)]) -> String {
    let row = |node: &&Value| {
        let depths = fields.iter().map(|(name, _)| cell(&node["consensus"][of][*name]));
        [cell(&node["node"])].into_iter().chain(depths).collect()
    };
    let header: Vec<&str> = ["NODE"].into_iter().chain(fields.iter().map(|(_, title)| *title)).collect();
    section(&header, &nodes.iter().map(row).collect::<Vec<_>>())
}

fn group_table(groups: &[Value]) -> String {
    if groups.is_empty() {
        return "\nevery group has a leader, and none a term above 2\n".to_owned();
    }
    let row = |group: &Value| {
        let fields = ["name", "term", "leader", "without_leader_on", "elections", "leader_changes", "unapplied"];
        fields.map(|name| cell(&group[name])).to_vec()
    };
    let rows: Vec<_> = groups.iter().take(GROUPS_SHOWN_MAX).map(row).collect();
    let header = ["GROUP", "TERM", "LEADER", "NO LEADER ON", "ELECTIONS", "LEADERS", "UNAPPLIED"];
    let mut text = section(&header, &rows);
    if groups.len() > rows.len() {
        text.push_str(&format!(
            "... and {} more: `muster status --consensus --output json`\n",
            groups.len() - rows.len()
        ));
    }
    text
}
