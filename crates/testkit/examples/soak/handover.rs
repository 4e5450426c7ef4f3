//! The node that leads `__meta` and partitions is drained, and gets its partitions back once it serves again: how long
//! nothing is accepted meanwhile, neither keys nor records.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;
use testkit::{Cluster, Load, LoadPlan, Record, Trickle, Trickled, wait_until};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_folder, judge, let_pass, wait_sparing, wait_whole};
use crate::options::Options;

/// Longest time without an accepted write. A stock client's own rests come on top of it for records: it is refused by the
/// old leader and has to find the new one, while a put is carried on from node to node by the nodes themselves.
const GAP_MAX: Duration = Duration::from_millis(100);
/// How long before and after a hand-over is looked at.
const AROUND: Duration = Duration::from_millis(500);
/// Between two looks at who leads: each costs the machine the start of a kcat.
const LOOK: Duration = Duration::from_millis(250);
const TOPIC: &str = "handover";
/// Whoever is to lead more partitions already gets fewer of the topic's; of so many, each node leads one.
const PARTITIONS: u32 = 6;

/// From when to when something is looked at.
type Window = (Instant, Instant);

/// What happened to one node, and the records that were given to a partition of its own meanwhile.
struct Round {
    /// No hand-over: what the machine does by itself, to compare with.
    quiet: Window,
    /// The node gives up all that it leads.
    drained: Window,
    /// It gets the partition back.
    returned: Window,
    records: Trickled,
}

pub fn run(options: &Options, figures: &mut Figures) {
    in_folder("soak-handover", figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        let topic = json!({ "name": TOPIC, "partitions": PARTITIONS, "replication_factor": 3 });
        cluster.nodes[0].api().post("/v1/topics", &topic)?.ok()?;
        wait_whole(&cluster.nodes[0])?;
        handed_over(&mut cluster, options.handovers, figures)
    });
}

fn handed_over(cluster: &mut Cluster, times: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let plan = LoadPlan { writer_pause: Duration::from_millis(1), ..LoadPlan::moderate() };
    let load = Load::start(cluster, plan)?;
    let mut rounds = Vec::new();
    for number in 1..=times {
        rounds.push(round(cluster, number)?);
        eprintln!("   hand-over {number} of {times}");
    }
    wait_whole(&cluster.nodes[0])?;
    let outcome = load.stop()?;
    let each = |gap: &dyn Fn(&Round) -> Duration| rounds.iter().map(gap).collect::<Vec<_>>();
    let keys = |(from, to): Window| outcome.longest_gap(from, to);
    let records = |round: &Round, (from, to): Window| round.records.longest_gap(from, to);
    // The rests of the client itself are in it.
    let limit = Limit::max(GAP_MAX);
    for (what, gaps, limit) in [
        ("no key put, longest time without a hand-over", each(&|it| keys(it.quiet)), Limit::default()),
        ("no key put, longest time around a planned hand-over", each(&|it| keys(it.drained)), limit),
        ("no record taken, longest time without a hand-over", each(&|it| records(it, it.quiet)), Limit::default()),
        ("no record taken, longest time around a planned hand-over", each(&|it| records(it, it.drained)), limit),
        ("no record taken, longest time around a leadership's return", each(&|it| records(it, it.returned)), limit),
    ] {
        figures.times(what, gaps, limit);
    }
    judge(figures, "hand-over", &outcome, cluster);
    read_back(cluster, &rounds, figures)
}

/// Drains the node that leads `__meta`, and lets it serve again.
fn round(cluster: &mut Cluster, number: usize) -> anyhow::Result<Round> {
    let at = cluster.meta_leader(PATIENCE)?;
    // Perhaps what it gave up a round before is still on its way back.
    let led = wait_until(PATIENCE, "the leader of __meta leads a partition", || cluster.nodes[at].leads(TOPIC))?;
    let (name, api) = (cluster.nodes[at].name.clone(), cluster.nodes[(at + 1) % 3].api());
    let trickle = Trickle::start(&cluster.kcat(), TOPIC, led.1, &format!("round-{number}"))?;
    let start = Instant::now();
    let_pass(cluster, 2 * AROUND)?;
    let began = Instant::now();
    api.post(&format!("/v1/nodes/{name}/drain"), &json!({}))?.ok()?;
    cluster.wait_led_by_others(at, TOPIC, led, PATIENCE)?;
    // Who was refused has not found the others yet, perhaps.
    let_pass(cluster, AROUND)?;
    let drained = (began, Instant::now());
    api.post(&format!("/v1/nodes/{name}/resume"), &json!({}))?.ok()?;
    let returned = returned(cluster, at, led)?;
    Ok(Round { quiet: (start, began), drained, returned, records: trickle.stop()? })
}

/// Waits until a node leads a partition again. It got it after the last look that saw another leader, or began to just before.
fn returned(cluster: &mut Cluster, at: usize, (id, partition): (i64, i64)) -> anyhow::Result<Window> {
    let (kcat, mut away) = (cluster.nodes[(at + 1) % 3].kcat(), Instant::now());
    wait_sparing(PATIENCE, LOOK, "the partition is led by its first replica again", || {
        let looked = Instant::now();
        let leader = kcat.partitions(TOPIC)?.get(&partition).map(|(leader, _)| *leader);
        if leader != Some(id) {
            away = looked;
            bail!("{leader:?} leads it");
        }
        Ok(())
    })?;
    let_pass(cluster, AROUND)?;
    Ok((away - AROUND, Instant::now()))
}

/// Each record of the rounds was acknowledged, and has to be there.
fn read_back(cluster: &Cluster, rounds: &[Round], figures: &mut Figures) -> anyhow::Result<()> {
    let there: BTreeSet<String> = cluster.kcat().consume(TOPIC)?.iter().map(Record::text).collect();
    let given: Vec<String> = rounds.iter().flat_map(|round| round.records.values()).collect();
    let lost: Vec<&String> = given.iter().filter(|record| !there.contains(*record)).collect();
    let seen = format!("{} records, lost: {:?}", given.len(), &lost[..lost.len().min(5)]);
    figures.verdict("hand-over: no record of those given one by one is lost", lost.is_empty(), &seen);
    Ok(())
}
