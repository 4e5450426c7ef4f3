//! The encodings of what nodes ask each other: those of every version stay readable, and stay what they are.

#[path = "../../wire/tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;

use base::{ClusterVersion, ErrorCode, GroupId, Incarnation, LeaseId, Millis, NodeId, ReplicaId, VersionRange};
use bytes::Bytes;
use engine::{
    Acks, Arrivals, GroupView, NodeStatus, PartitionBatches, Produce, ReadLog, ReadPartition, Reply, Request,
    RequestError, TaskLine, Vitals,
};
use fixtures::Fixtures;
use metadata::{Command, CommandResult};
use wire::Pace;

const V1: ClusterVersion = ClusterVersion::V1;
const V2: ClusterVersion = ClusterVersion::V2;

#[test]
fn requests() {
    let mut fixtures = Fixtures::of(env!("CARGO_MANIFEST_DIR"), "requests");
    let group = GroupId(3);
    let batches = vec![Bytes::from_static(b"batch")];
    let produce = |acks| Request::Produce(Produce { group, acks, batches: batches.clone() });
    let requests = [
        Request::Command(Command::RevokeToken { token_id: 1 }),
        produce(Acks::All),
        Request::ReadLog(ReadLog { group, low: 2, high: 9, bytes_max: 1_000 }),
        Request::Status,
        Request::Barrier,
        Request::TransferLeader { group, to: NodeId(2) },
        Request::StepDown,
        Request::ReadPoint,
        Request::Tasks,
        Request::ReadPartition(ReadPartition { group, offset: -1, bytes_max: 1_000 }),
        Request::KeepLease { lease: LeaseId(3) },
        Request::Vitals { listed_max: 5 },
    ];
    let since = |request: &Request| match request {
        Request::KeepLease { .. } | Request::Vitals { .. } => V2,
        _ => V1,
    };
    fixtures.each(since, &requests);
    let acks = [Acks::None, Acks::Leader, Acks::All];
    for one in acks {
        fixtures.value(V1, &format!("Produce{one:?}"), &produce(one));
    }
    fixtures.all_covered(&acks);
    fixtures.finish();
}

fn status() -> NodeStatus {
    let group = GroupView {
        group: GroupId(0),
        replica: ReplicaId(1),
        role: "leader".into(),
        term: 2,
        leader: Some(NodeId(1)),
        commit: 9,
        applied: 8,
        last_index: 10,
        high_watermark: Some(-1),
    };
    NodeStatus {
        node: NodeId(1),
        incarnation: Incarnation(4),
        ready: true,
        reason: "none".into(),
        meta_applied: 8,
        groups: vec![group],
        peers: BTreeMap::from([(NodeId(2), 150)]),
        disk_full: true,
        vms_running: 3,
        meta_voters: vec![NodeId(1)],
        meta_learners: vec![NodeId(2)],
        versions: VersionRange { min: V1, max: V1 },
        cluster_version: V1,
        release: "0.1.0".into(),
        pace: None,
    }
}

#[test]
fn replies() {
    let mut fixtures = Fixtures::of(env!("CARGO_MANIFEST_DIR"), "replies");
    let batches = vec![Bytes::from_static(b"batch")];
    let task = TaskLine {
        path: "transport/peer/2".into(),
        state: "running".into(),
        since_ms: 5,
        restarts: 1,
        cause: Some("why".into()),
    };
    let replies = [
        Reply::Command { index: 7, result: CommandResult::Done },
        Reply::Produced { base_offset: 5, log_start_offset: 1 },
        Reply::Batches { indexes: vec![7], batches: batches.clone() },
        Reply::Status(Box::new(status())),
        Reply::Done,
        Reply::ReadPoint { index: 7 },
        Reply::Tasks(vec![task]),
        Reply::PartitionBatches(PartitionBatches { batches, high_watermark: 6, log_start_offset: 1 }),
        Reply::LeaseKept { ttl_ms: 5_000 },
        Reply::Vitals(Box::new(Vitals { node: NodeId(1), counted_ms: 7, ..Vitals::default() })),
    ];
    let since = |reply: &Reply| match reply {
        Reply::LeaseKept { .. } | Reply::Vitals(_) => V2,
        _ => V1,
    };
    fixtures.each(since, &replies);
    let pace = Pace { heartbeat_interval: Millis(300), election_timeout: Millis(2_000) };
    let status = NodeStatus { pace: Some(pace), ..NodeStatus::default() };
    fixtures.value(V1, "StatusWithPace", &Reply::Status(Box::new(status)));
    let arrivals = Arrivals { control: 1, bulk: 2, disk: 3, vms: 4, requests: 5 };
    let vitals = Vitals { arrivals: Some(arrivals), ..Vitals::default() };
    fixtures.value(V2, "VitalsWithArrivals", &Reply::Vitals(Box::new(vitals)));
    let error = RequestError { code: ErrorCode::NotLeader, message: "no".into(), leader: Some(NodeId(2)) };
    fixtures.value(V1, "RequestError", &error);
    fixtures.finish();
}
