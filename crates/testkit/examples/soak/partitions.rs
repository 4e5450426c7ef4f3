//! Nodes that cannot reach each other, one way or both: the majority goes on, the minority accepts nothing and says why, and
//! when the network is whole again, so is the cluster, without a hand. In a network namespace of its own, cut with nft.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::{Api, Cluster, Cuts, Load, LoadPlan, Outcome, wait_until};

use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_own_network, judge, wait_whole};
use crate::options::Options;

const ACCEPTED: Duration = Duration::from_secs(4);
/// How long a request to a minority may wait for an answer.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
/// Long enough that all who were cut off have noticed.
const CUT: Duration = Duration::from_secs(5);
/// From the end of a cut until the cluster can lose a node again.
const HEALED: Duration = Duration::from_secs(30);
/// An election timeout after which a leader that is not heard gives up, and some time for the next.
const LED_BY_ANOTHER: Duration = Duration::from_secs(20);
/// Of the topic that is made for a cut. Whoever is to lead more partitions already gets fewer of them; of so many, each node
/// leads one.
const PARTITIONS: u32 = 6;

/// What is cut, seen from the leader of `__meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Isolated,
    Deaf,
    Mute,
    FromOne,
    AllApart,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Isolated, "the leader is isolated"),
    (Kind::Deaf, "the leader hears nobody"),
    (Kind::Mute, "nobody hears the leader"),
    (Kind::FromOne, "the leader and one follower are cut"),
    (Kind::AllApart, "no node reaches another"),
];

pub fn run(options: &Options, figures: &mut Figures) {
    in_own_network("partitions", &["--cuts", &options.cuts.to_string()], figures, |folder, figures| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_whole(&cluster.nodes[0])?;
        KINDS.iter().try_for_each(|(kind, says)| cut(&mut cluster, *kind, says, options.cuts, figures))
    });
}

fn cut(cluster: &mut Cluster, kind: Kind, says: &str, times: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let cuts = Cuts::none()?;
    let plan = LoadPlan { topic: format!("cut-{kind:?}"), deadline: Duration::from_secs(40), ..LoadPlan::moderate() };
    let load = Load::start(cluster, plan)?;
    let (mut moments, mut healed, mut reasons, mut asked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=times {
        wait_whole(&cluster.nodes[0])?;
        let topic = format!("minority-{kind:?}-{round}");
        let led = each_leads(cluster, &topic)?;
        let leader = cluster.meta_leader(PATIENCE)?;
        apply(&cuts, cluster, kind, leader)?;
        // Not sooner: while the rules are being made the leader still accepts.
        let moment = Instant::now();
        let minority = match kind {
            Kind::Isolated | Kind::Deaf | Kind::Mute => vec![leader],
            Kind::FromOne => Vec::new(),
            Kind::AllApart => vec![0, 1, 2],
        };
        if let [alone] = minority[..] {
            cluster.wait_led_by_others(alone, &topic, led[alone], LED_BY_ANOTHER)?;
        }
        wait_until(PATIENCE, "all have noticed", || {
            ensure!(moment.elapsed() >= CUT, "not yet");
            Ok(())
        })?;
        for at in &minority {
            reasons.push(refused(&cuts, cluster, *at, kind, &topic, led[*at])?);
        }
        cuts.heal()?;
        let whole = Instant::now();
        cluster.wait_ready(PATIENCE)?;
        wait_whole(&cluster.nodes[0])?;
        healed.push(whole.elapsed());
        moments.push((moment, whole));
        nothing_of_it_is_there(cluster, kind, (&topic, led[leader].1))?;
        asked.push((topic, led[leader].1));
        // A client that waits longer and longer between its attempts gets to make one before the next cut.
        wait_until(PATIENCE, "it stays whole for a while", || {
            ensure!(whole.elapsed() >= CUT * 2, "not yet");
            Ok(())
        })?;
        eprintln!("   {says}, {round} of {times}: {:?}", reasons.last());
    }
    let outcome = load.stop()?;
    // Nor did anything come late.
    asked.iter().try_for_each(|(topic, partition)| nothing_of_it_is_there(cluster, kind, (topic, *partition)))?;
    figures.times(
        &format!("{says}: to the next key that is put"),
        accepted(&outcome, kind, &moments)?,
        Limit::max(ACCEPTED),
    );
    figures.times(&format!("{says}: from its end until all is well"), healed, Limit::max(HEALED));
    if let Some(reason) = reasons.first() {
        figures.verdict(&format!("{says}: the minority accepts nothing, and says why"), true, reason);
    }
    judge(figures, says, &outcome, cluster);
    Ok(())
}

fn apply(cuts: &Cuts, cluster: &Cluster, kind: Kind, leader: usize) -> anyhow::Result<()> {
    let [one, two] = [(leader + 1) % 3, (leader + 2) % 3].map(|at| &cluster.nodes[at]);
    let leader = &cluster.nodes[leader];
    match kind {
        Kind::Isolated => [one, two].into_iter().try_for_each(|other| cuts.between(leader, other)),
        Kind::Deaf => [one, two].into_iter().try_for_each(|other| cuts.one_way(other, leader)),
        Kind::Mute => [one, two].into_iter().try_for_each(|other| cuts.one_way(leader, other)),
        Kind::FromOne => cuts.between(leader, one),
        Kind::AllApart => {
            cuts.between(leader, one)?;
            cuts.between(leader, two)?;
            cuts.between(one, two)
        }
    }
}

/// Makes a topic of which each node leads a partition; by node, its id and the partition. Not one topic for all cuts: a new
/// partition is led by its first replica at once, while a node that was cut off over and over gets back what it led later
/// each time (crates/engine/src/balance.rs).
fn each_leads(cluster: &Cluster, topic: &str) -> anyhow::Result<Vec<(i64, i64)>> {
    let made = json!({ "name": topic, "partitions": PARTITIONS, "replication_factor": 3 });
    cluster.nodes[0].api().post("/v1/topics", &made)?.ok()?;
    wait_whole(&cluster.nodes[0])?;
    wait_until(PATIENCE, "each node leads a partition", || cluster.nodes.iter().map(|node| node.leads(topic)).collect())
}

/// A node without a majority refuses a key, and a record for a partition that it led under its id; the reason that it gives. Key
/// and record are named after the topic.
fn refused(
    cuts: &Cuts,
    cluster: &Cluster,
    at: usize,
    kind: Kind,
    topic: &str,
    led: (i64, i64),
) -> anyhow::Result<String> {
    let node = &cluster.nodes[at];
    let api = Api::with_deadline(node.api, REFUSED_WITHIN);
    let answer = api.put(&format!("/v1/kv/{topic}"), &json!({ "value": "no" }))?;
    ensure!(answer.status >= 500, "{} has no majority, and answered {answer:?}", node.name);
    let reason = answer.body["detail"].as_str().or(answer.body["message"].as_str()).unwrap_or_default().to_owned();
    let telling = ["leader", "majority", "heard", "did not answer"].iter().any(|word| reason.contains(word));
    ensure!(telling, "{} refuses, and does not say why: {}", node.name, answer.body);
    // Its client is to find no way to those who can take the record; where all are apart, nobody can.
    if kind != Kind::AllApart {
        [(at + 1) % 3, (at + 2) % 3].into_iter().try_for_each(|other| cuts.clients_of(&cluster.nodes[other]))?;
    }
    let said = node.kcat().refused(topic, led, topic, REFUSED_WITHIN);
    let said = said.with_context(|| format!("{} has no majority", node.name))?;
    Ok(format!("{} {reason}; {said}", answer.status))
}

/// Where others led already when the minority was asked, what it was given can be in no log that counts. Where all were
/// apart, nobody was elected meanwhile: what is in a leader's log may be committed yet, although nobody was told so.
fn nothing_of_it_is_there(cluster: &Cluster, kind: Kind, (topic, partition): (&str, i64)) -> anyhow::Result<()> {
    if kind == Kind::AllApart {
        return Ok(());
    }
    let partition = partition.to_string();
    wait_until(PATIENCE, "the partition takes records again", || {
        let extra = ["-p", &partition, "-X", "message.timeout.ms=4000"];
        cluster.nodes[0].kcat().produce(topic, [(&b"whole"[..], &b"yes"[..])], &[], &extra)
    })?;
    for node in &cluster.nodes {
        let records = node.kcat().consume(topic)?;
        let alien = records.iter().find(|record| record.key == topic.as_bytes());
        ensure!(alien.is_none() && !records.is_empty(), "{} gives {} records, {alien:?}", node.name, records.len());
        // Who is not heard, and hears, knows the new leader: what it sent there may arrive when the cut ends, and the
        // caller was told only that nobody answered.
        let key = node.api().get(&format!("/v1/kv/{topic}"))?;
        ensure!(key.status == 404 || kind == Kind::Mute, "{} refused the key, and it is there: {key:?}", node.name);
    }
    Ok(())
}

/// From each cut to the next key that was put; where no majority was left, from its end.
fn accepted(outcome: &Outcome, kind: Kind, moments: &[(Instant, Instant)]) -> anyhow::Result<Vec<Duration>> {
    let from = |(cut, healed): &(Instant, Instant)| if kind == Kind::AllApart { *healed } else { *cut };
    let times: Option<Vec<_>> = moments.iter().map(|moment| outcome.accepted_after(from(moment))).collect();
    times.context("after some cut no key was put at all")
}
