//! The encodings of what nodes, journal and guests exchange: those of every version stay readable, and stay what they are.

mod fixtures;

use std::collections::BTreeMap;

use base::{
    ClusterId, ClusterVersion, EndpointId, ErrorCode, GroupId, Incarnation, Millis, NodeId, RecoveryId, ReplicaId,
    VersionRange,
};
use bytes::Bytes;
use fixtures::Fixtures;
use wire::agent::{AgentHello, AgentMessage, FrameReader, HostMessage, encode_frame};
use wire::journal::{CheckpointPosition, ReplicaState};
use wire::{
    Capabilities, CheckpointChunk, CheckpointPull, Entry, EntryKind, Forward, ForwardReply, Gossip, HardState, Hello,
    HelloAck, HelloPurpose, JoinAccepted, JoinRequest, JoinToken, LeaderClaim, Member, Members, Membership,
    MembershipChange, MembershipOp, MembershipStep, NodeAddress, Pace, PeerFrame, PeerMessage, RaftMessage,
    RaftMessageKind, Refusal, SnapshotMeta, TokenRecovery, TokenSeed,
};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");
const V1: ClusterVersion = ClusterVersion::V1;

fn member() -> Member {
    Member {
        node: NodeId(2),
        name: "two".into(),
        address: NodeAddress {
            endpoint: EndpointId([2; 32]),
            direct: vec!["10.0.0.2:7401".into()],
            relay_url: Some("https://relay".into()),
            kafka: "two:9092".into(),
            api: "two:7400".into(),
        },
        capabilities: Capabilities {
            cores: 4,
            memory_mib: 8_192,
            disk_mib: 100_000,
            architecture: "x86_64".into(),
            hypervisors: vec!["qemu 7.2.22".into()],
            accelerator: "kvm".into(),
            version: "0.1.0".into(),
        },
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        store: 77,
        versions: VersionRange { min: V1, max: V1 },
    }
}

fn membership() -> Membership {
    let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
    Membership {
        voters: ids(&[1, 2, 300]),
        learners: ids(&[4]),
        voters_outgoing: ids(&[1, 5]),
        learners_next: ids(&[5]),
        auto_leave: true,
    }
}

fn snapshot_meta() -> SnapshotMeta {
    SnapshotMeta { index: 70_000, term: 3, membership: membership() }
}

fn entry(kind: EntryKind) -> Entry {
    Entry { index: 9, term: 2, kind, data: Bytes::from_static(b"data") }
}

fn kinds() -> Vec<RaftMessageKind> {
    use RaftMessageKind::{
        Append, AppendResponse, Heartbeat, HeartbeatResponse, PreVote, PreVoteResponse, ReadIndex, ReadIndexResponse,
        Snapshot, TimeoutNow, Vote, VoteResponse,
    };
    let votes = [Vote, VoteResponse, PreVote, PreVoteResponse];
    let others =
        [Append, AppendResponse, Heartbeat, HeartbeatResponse, Snapshot, TimeoutNow, ReadIndex, ReadIndexResponse];
    [votes.as_slice(), others.as_slice()].concat()
}

fn entry_kinds() -> [EntryKind; 4] {
    [EntryKind::Noop, EntryKind::Membership, EntryKind::Command, EntryKind::Batch]
}

fn raft_message(kind: RaftMessageKind) -> RaftMessage {
    RaftMessage {
        kind,
        from: ReplicaId(1),
        to: ReplicaId(2),
        term: 3,
        log_term: 2,
        index: 8,
        entries: entry_kinds().map(entry).to_vec(),
        commit: 7,
        commit_term: 2,
        reject: true,
        reject_hint: 6,
        request_snapshot: 5,
        context: Bytes::from_static(b"context"),
        priority: -1,
        snapshot: Some(snapshot_meta()),
    }
}

fn messages() -> Vec<PeerMessage> {
    let claim = LeaderClaim { group: GroupId(7), term: 3, replica: ReplicaId(9), rests: None };
    let (incarnation, disk_full) = (Incarnation(4), Some(true));
    let gossip = Gossip { incarnation, leaders: vec![claim], meta_applied: 12, disk_full, pace: None };
    let data = Bytes::from_static(b"part");
    let chunk = CheckpointChunk { group: GroupId(0), index: 5, offset: 6, total: 7, crc: 8, data };
    let members = Members { meta_applied: 12, members: vec![member()], meta_replicas: vec![ReplicaId(2)] };
    let body = Bytes::from_static(b"request");
    vec![
        PeerMessage::Raft { group: GroupId(1), message: raft_message(RaftMessageKind::Append) },
        PeerMessage::Gossip(gossip),
        PeerMessage::Forward(Forward { id: 1, deadline_ms: 2_000, body: body.clone() }),
        PeerMessage::ForwardReply(ForwardReply { id: 1, body }),
        PeerMessage::CheckpointPull(CheckpointPull { group: GroupId(0), index: 5, offset: 6 }),
        PeerMessage::CheckpointChunk(chunk),
        PeerMessage::Members(members),
    ]
}

#[test]
fn frames_of_peers() {
    let mut fixtures = Fixtures::of(CRATE, "peer");
    let frame = |fixtures: &mut Fixtures, since, name: &str, messages: Vec<PeerMessage>| {
        let (bytes, expected) = (PeerFrame::encode(&messages), PeerFrame { messages, unknown: 0 });
        fixtures.bytes(since, name, &bytes, |bytes| match PeerFrame::decode(bytes) {
            Ok(read) if read == expected => Ok(()),
            other => Err(format!("is read as {other:?}")),
        });
    };
    for message in messages() {
        frame(&mut fixtures, message.since(), &fixtures::variant_name(&message), vec![message]);
    }
    fixtures.all_covered(&messages());
    frame(&mut fixtures, V1, "Two", messages().into_iter().skip(1).take(2).collect());
    frame(&mut fixtures, V1, "None", vec![]);
    let claim = LeaderClaim { group: GroupId(7), term: 3, replica: ReplicaId(9), rests: Some(true) };
    let gossip = Gossip { incarnation: Incarnation(4), meta_applied: 12, ..Gossip::default() };
    let at_rest = Gossip { leaders: vec![claim], ..gossip.clone() };
    frame(&mut fixtures, V1, "GossipOfOneAtRest", vec![PeerMessage::Gossip(at_rest)]);
    let pace = Pace { heartbeat_interval: Millis(300), election_timeout: Millis(2_000) };
    frame(&mut fixtures, V1, "GossipWithPace", vec![PeerMessage::Gossip(Gossip { pace: Some(pace), ..gossip })]);
    for kind in kinds() {
        fixtures.value(V1, &format!("{kind:?}"), &raft_message(kind));
    }
    fixtures.all_covered(&kinds());
    fixtures.all_covered(&entry_kinds());
    fixtures.finish();
}

#[test]
fn hellos() {
    let mut fixtures = Fixtures::of(CRATE, "hello");
    let (cluster, cluster_incarnation, node) = (ClusterId([1; 16]), Incarnation(2), NodeId(3));
    let request = JoinRequest { cluster, token_id: 5, secret: [6; 32], member: member() };
    let purposes = [
        HelloPurpose::Member {
            cluster,
            cluster_incarnation,
            node,
            incarnation: Incarnation(4),
            recovery: None,
            home: None,
        },
        HelloPurpose::Join(Box::new(request)),
    ];
    for purpose in &purposes {
        let hello = Hello { protocol: 1, purpose: purpose.clone(), versions: VersionRange { min: V1, max: V1 } };
        fixtures.value(V1, &format!("Hello{}", fixtures::variant_name(purpose)), &hello);
    }
    fixtures.all_covered(&purposes);
    let recovery = Some(RecoveryId([9; 16]));
    let incarnation = Incarnation(4);
    let purpose = HelloPurpose::Member { cluster, cluster_incarnation, node, incarnation, recovery, home: None };
    let hello = Hello { protocol: 1, purpose, versions: VersionRange { min: V1, max: V1 } };
    fixtures.value(V1, "HelloMemberRecovered", &hello);
    let purpose =
        HelloPurpose::Member { cluster, cluster_incarnation, node, incarnation, recovery: None, home: Some(11) };
    let hello = Hello { protocol: 1, purpose, versions: VersionRange { min: V1, max: V1 } };
    fixtures.value(V1, "HelloMemberAtHome", &hello);
    let accepted = JoinAccepted {
        cluster,
        cluster_incarnation,
        node,
        meta_replica: ReplicaId(8),
        members: vec![member()],
        meta_replicas: vec![ReplicaId(8)],
        recovery: None,
    };
    let later = JoinAccepted { recovery, ..accepted.clone() };
    fixtures.value(V1, "JoinedRecovered", &HelloAck::Joined(Box::new(later)));
    let refusal = Refusal { code: ErrorCode::UnsupportedVersion, reason: "no".into(), active: Some(V1), other: None };
    let acks = [
        HelloAck::Welcome { node, incarnation: Incarnation(4), home: None },
        HelloAck::Joined(Box::new(accepted)),
        HelloAck::Refused(refusal),
    ];
    fixtures.each(|_| V1, &acks);
    for code in ErrorCode::ALL {
        fixtures.value(V1, code.as_str(), code);
    }
    fixtures.finish();
}

#[test]
fn tokens() {
    let mut fixtures = Fixtures::of(CRATE, "token");
    let seed = TokenSeed { endpoint: EndpointId([1; 32]), direct: vec!["127.0.0.1:7401".into()], relay_url: None };
    let token = JoinToken { cluster: ClusterId([7; 16]), id: 3, secret: [9; 32], seeds: vec![seed], recovery: None };
    let recovery = Some(TokenRecovery { incarnation: Incarnation(1), id: RecoveryId([5; 16]) });
    let later = JoinToken { recovery, ..token.clone() };
    for (name, token) in [("token", token), ("token_recovered", later)] {
        fixtures.bytes(V1, name, token.to_string().as_bytes(), |bytes| {
            let text = std::str::from_utf8(bytes).expect("text");
            if text.parse() == Ok(token) { Ok(()) } else { Err("is another token".into()) }
        });
    }
    fixtures.finish();
}

#[test]
fn payloads_of_the_journal() {
    let mut fixtures = Fixtures::of(CRATE, "journal");
    let hard_state = HardState { term: 3, vote: ReplicaId(2), commit: 8 };
    fixtures.value(V1, "HardState", &hard_state);
    let replica = ReplicaState {
        replica: ReplicaId(2),
        hard_state,
        checkpoint: snapshot_meta(),
        checkpoint_bytes: 5,
        checkpoint_crc: 6,
        first_index: 7,
        last_index: 80,
    };
    fixtures.value(V1, "ReplicaState", &replica);
    let position = CheckpointPosition {
        replica: ReplicaId(2),
        meta: snapshot_meta(),
        bytes: 5,
        crc: 6,
        install: true,
        first_index: 7,
        hard_state: Some(hard_state),
    };
    fixtures.value(V1, "CheckpointPosition", &position);
    let ops = [MembershipOp::AddVoter, MembershipOp::AddLearner, MembershipOp::Remove];
    let steps = ops.map(|op| MembershipStep { op, replica: ReplicaId(4) }).to_vec();
    fixtures.value(V1, "MembershipChange", &MembershipChange { steps, basis: 9 });
    fixtures.all_covered(&ops);
    fixtures.finish();
}

#[test]
fn frames_of_guests() {
    let mut fixtures = Fixtures::of(CRATE, "agent");
    let hello = AgentHello {
        protocol: 1,
        version: "0.1.0".into(),
        boot_id: "boot".into(),
        kernel: "6.1".into(),
        cpus: 2,
        memory_mib: 256,
        uptime_ms: 900,
    };
    let from_host = [HostMessage::Hello { protocol: 1 }, HostMessage::Ping { nonce: 7 }, HostMessage::Stop];
    let from_guest = [AgentMessage::Hello(hello), AgentMessage::Pong { nonce: 7 }, AgentMessage::StopAck];
    for message in &from_host {
        let name = format!("Host{}", fixtures::variant_name(message));
        fixtures.bytes(V1, &name, &encode_frame(message).expect("short"), |bytes| read(bytes, message));
    }
    for message in &from_guest {
        let name = format!("Agent{}", fixtures::variant_name(message));
        fixtures.bytes(V1, &name, &encode_frame(message).expect("short"), |bytes| read(bytes, message));
    }
    fixtures.all_covered(&from_host);
    fixtures.all_covered(&from_guest);
    fixtures.finish();
}

fn read<T: for<'b> minicbor::Decode<'b, ()> + PartialEq + std::fmt::Debug>(bytes: &[u8], is: &T) -> Result<(), String> {
    let mut reader = FrameReader::new();
    reader.push(bytes);
    match reader.next_message::<T>() {
        Ok(Some(message)) if message == *is => Ok(()),
        other => Err(format!("is read as {other:?}")),
    }
}
