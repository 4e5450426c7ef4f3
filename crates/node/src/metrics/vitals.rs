//! What the core tells.

use base::{Distribution, GroupId};
use engine::{GroupVitals, Vitals};
use metadata::Metadata;
use runtime::{Exposition, Kind};

/// Bounds for the time between heartbeats, in microseconds: dense around the interval of 150 ms and 50 ms above it. Like all
/// bounds here of two significant digits, so that they are bounds of [`base::Histogram`], too.
const GAP_BUCKETS_US: &[u64] = &[
    10_000, 50_000, 100_000, 120_000, 140_000, 150_000, 160_000, 170_000, 180_000, 190_000, 200_000, 250_000, 300_000,
    500_000, 750_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Bounds for latencies, in microseconds.
const LATENCY_BUCKETS_US: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

pub(super) fn write(out: &mut Exposition, vitals: &Vitals, metadata: &Metadata) {
    node(out, vitals);
    elections(out, vitals);
    times(out, vitals);
    queues(out, vitals);
    groups(out, vitals, metadata);
}

fn node(out: &mut Exposition, vitals: &Vitals) {
    let flag = |it: bool| f64::from(u8::from(it));
    out.gauge("muster_ready", "1 while the node is a member that can do its work.", flag(vitals.ready));
    out.gauge("muster_uptime_seconds", "Since the node's core started.", vitals.counted_ms as f64 / 1e3);
    out.gauge("muster_disk_full", "1 while the node's disk takes no writes.", flag(vitals.disk_full));
    out.gauge("muster_journal_log_bytes", "Bytes that the log's files take, spare ones too.", vitals.log_bytes as f64);
    out.gauge("muster_vms_running", "Virtual machines that run on this node.", f64::from(vitals.vms_running));
    let mut silence = out.family("muster_peer_silence_seconds", Kind::Gauge, "Since a peer was last heard of.");
    for (peer, ms) in &vitals.peers {
        silence.sample(&[("peer", &peer.to_string())], *ms as f64 / 1e3);
    }
}

fn elections(out: &mut Exposition, vitals: &Vitals) {
    let elections = vitals.elections;
    let counters = [
        (
            "muster_raft_pre_votes_total",
            "Times that a replica began to ask whether an election has a chance.",
            elections.pre_votes,
        ),
        ("muster_raft_elections_total", "Candidacies of this node's replicas in a new term.", elections.started),
        ("muster_raft_elections_won_total", "Elections that this node's replicas won.", elections.won),
        ("muster_raft_term_changes_total", "Moves of this node's replicas to a higher term.", elections.term_changes),
        (
            "muster_raft_leader_changes_total",
            "Terms of which this node's replicas came to know a leader.",
            elections.leader_changes,
        ),
        (
            "muster_raft_step_downs_total",
            "Leaderships of this node that ended, handed over ones too.",
            elections.step_downs,
        ),
        ("muster_raft_ticks_total", "Ticks of Raft's clock.", vitals.ticks.passed),
        (
            "muster_raft_ticks_skipped_total",
            "Ticks that were missed because the core did not get to run, and never made good.",
            vitals.ticks.skipped,
        ),
        (
            "muster_raft_pauses_total",
            "Times that the core did not run for longer than an election timeout.",
            vitals.ticks.pauses,
        ),
    ];
    for (name, help, value) in counters {
        out.counter(name, help, value as f64);
    }
}

fn times(out: &mut Exposition, vitals: &Vitals) {
    let interval = vitals.heartbeat_interval_ms as f64 / 1e3;
    out.gauge("muster_raft_heartbeat_interval_seconds", "The time between heartbeats that is aimed for.", interval);
    let histograms = [
        (
            "muster_raft_heartbeat_send_gap_seconds",
            "Between heartbeats of a group that this node leads, as its core sends them.",
            &vitals.heartbeats_sent,
            GAP_BUCKETS_US,
        ),
        (
            "muster_raft_heartbeat_receive_gap_seconds",
            "Between heartbeats of a group's leader, as they reach this node's core.",
            &vitals.heartbeats_received,
            GAP_BUCKETS_US,
        ),
        (
            "muster_raft_commit_seconds",
            "From proposing an entry, as leader, to its commit.",
            &vitals.committed,
            LATENCY_BUCKETS_US,
        ),
        (
            "muster_journal_sync_seconds",
            "From handing a round to the journal to its being durable.",
            &vitals.synced,
            LATENCY_BUCKETS_US,
        ),
    ];
    for (name, help, values, bounds) in histograms {
        histogram(out, name, help, values, bounds);
    }
}

fn histogram(out: &mut Exposition, name: &'static str, help: &str, values: &Distribution, bounds_us: &[u64]) {
    let buckets = bounds_us.iter().map(|us| (*us as f64 / 1e6, values.at_most(*us)));
    let sum = values.sum_us() as f64 / 1e6;
    out.family(name, Kind::Histogram, help).histogram(&[], buckets, sum, values.count());
}

fn queues(out: &mut Exposition, vitals: &Vitals) {
    let queues = vitals.queues;
    let help = "Entries committed and not applied: the apply lag of all groups.";
    out.gauge("muster_raft_unapplied_entries", help, queues.unapplied as f64);
    let help = "Entries committed and not applied, of the group that has most.";
    out.gauge("muster_raft_unapplied_entries_max", help, queues.unapplied_max as f64);
    let mut family = out.family("muster_core_queue_depth", Kind::Gauge, "What is under way in the core, by kind.");
    for (queue, depth) in [
        ("requests", queues.requests),
        ("requests_waiting", queues.requests_waiting),
        ("proposals", queues.proposals),
        ("rounds", queues.rounds),
        ("log_reads", queues.log_reads),
        ("questions", queues.questions),
        ("outbox", queues.outbox),
    ] {
        family.sample(&[("queue", queue)], depth as f64);
    }
}

fn groups(out: &mut Exposition, vitals: &Vitals, metadata: &Metadata) {
    let totals = vitals.groups;
    let help = "Raft groups with a replica here, by how this node has them.";
    let mut family = out.family("muster_raft_groups", Kind::Gauge, help);
    for (state, count) in [
        ("all", totals.all),
        ("led", totals.led),
        ("without_leader", totals.without_leader),
        ("recovering", totals.recovering),
    ] {
        family.sample(&[("state", state)], count as f64);
    }
    out.gauge("muster_raft_term_max", "The highest term of a group here.", totals.term_max as f64);
    let left_out = totals.all.saturating_sub(vitals.listed.len() as u64) as f64;
    let help = "Groups with a replica here that have no series of their own, because they are too many.";
    out.gauge("muster_groups_left_out", help, left_out);

    // In the order of their numbers, so that equal states give equal texts.
    let mut listed: Vec<(&GroupVitals, Names)> =
        vitals.listed.iter().map(|one| (one, Names::of(one.group, metadata))).collect();
    listed.sort_unstable_by_key(|(one, _)| one.group);
    let mut each = |name, kind, help: &str, value: fn(&GroupVitals) -> u64| {
        let mut family = out.family(name, kind, help);
        for (one, names) in &listed {
            let labels = [("group", &*names.group), ("topic", &*names.topic), ("partition", &*names.partition)];
            family.sample(&labels, value(one) as f64);
        }
    };
    each("muster_group_term", Kind::Gauge, "The term that a group's replica here is in.", |one| one.term);
    let help = "Candidacies of a group's replica here in a new term.";
    each("muster_group_elections_total", Kind::Counter, help, |one| one.elections.started);
    let help = "Terms of which a group's replica here came to know a leader.";
    each("muster_group_leader_changes_total", Kind::Counter, help, |one| one.elections.leader_changes);
}

/// A group's labels.
struct Names {
    group: String,
    topic: String,
    partition: String,
}

impl Names {
    /// Of a partition that was deleted, or is not known yet, only the group's number.
    fn of(group: GroupId, metadata: &Metadata) -> Names {
        let (topic, partition) = match metadata.partitions.get(&group) {
            _ if group == GroupId::META => ("__meta".to_owned(), "0".to_owned()),
            Some(record) => (record.topic.clone(), record.partition.to_string()),
            None => Default::default(),
        };
        Names { group: group.to_string(), topic, partition }
    }
}

#[cfg(test)]
mod tests {
    use base::Histogram;

    use super::*;

    #[test]
    fn every_bound_is_one_that_the_core_counts_exactly() {
        for bound in GAP_BUCKETS_US.iter().chain(LATENCY_BUCKETS_US) {
            let mut histogram = Histogram::default();
            histogram.observe_us(*bound);
            histogram.observe_us(*bound + 1);
            assert_eq!(histogram.distribution().at_most(*bound), 1, "{bound} us");
        }
        assert!(GAP_BUCKETS_US.is_sorted() && LATENCY_BUCKETS_US.is_sorted());
    }
}
