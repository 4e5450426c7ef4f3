//! The encodings of commands, their results and the whole state: those of every version stay readable, and stay what they
//! are.

#[path = "../../wire/tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;

use base::{
    ClusterId, ClusterVersion, EndpointId, ErrorCode, GroupId, Incarnation, LeaseId, NodeId, RecoveryId, ReplicaId,
    SessionId, TopicId, VersionRange, VmEpoch, VmId, VmIncarnation, Wall,
};
use bytes::Bytes;
use compute::{VmDesired, VmPhase, VmReport, VmReportEvent, VmSpec};
use fixtures::Fixtures;
use metadata::{
    Command, CommandEnvelope, CommandError, CommandOrigin, CommandResult, KeyExpect, KeyLife, Metadata, NodeLifecycle,
    OnceKey, token_hash,
};
use wire::{Member, NodeAddress};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");
const V1: ClusterVersion = ClusterVersion::V1;
const V2: ClusterVersion = ClusterVersion::V2;

fn member(n: u8) -> Member {
    let address = NodeAddress { endpoint: EndpointId([n; 32]), ..NodeAddress::default() };
    let labels = BTreeMap::from([("zone".into(), "a".into())]);
    Member { name: format!("n{n}"), address, labels, store: 7, ..Member::default() }
}

fn spec() -> VmSpec {
    VmSpec { cpus: 1, memory_mib: 256, image: "minimal".into(), node: Some(NodeId(1)) }
}

fn report(event: VmReportEvent) -> Command {
    let report = VmReport { vm: VmId(1), epoch: VmEpoch(1), incarnation: VmIncarnation(1), event };
    Command::ReportVm { node: NodeId(1), report }
}

fn commands() -> Vec<Command> {
    let (node, group, replica, vm, epoch) = (NodeId(2), GroupId(3), ReplicaId(4), VmId(5), VmEpoch(6));
    let name = || "name".to_owned();
    vec![
        Command::OpenSession { node, incarnation: Incarnation(9) },
        Command::AdmitNode { token_id: 1, secret: [8; 32], member: member(2) },
        Command::UpdateNode { member: member(2) },
        Command::CreateToken { secret_hash: token_hash(&[8; 32]), expires: Wall(1_000), uses: 2 },
        Command::RevokeToken { token_id: 1 },
        Command::CreateTopic {
            name: name(),
            topic_id: TopicId([3; 16]),
            partitions: 2,
            replication_factor: Some(3),
            config: vec![("retention.ms".into(), "-1".into())],
        },
        Command::DeleteTopic { name: name() },
        Command::AddReplica { group, node },
        Command::ReplicaVoter { group, replica, demoted: true },
        Command::CreateVm { name: name(), spec: spec() },
        Command::StopVm { name: name() },
        Command::StartVm { name: name() },
        Command::DeleteVm { name: name() },
        Command::AssignVm { vm, node, epoch, placement: "why".into() },
        Command::ExplainVm { vm, reason: "why not".into() },
        report(VmReportEvent::Exited { reason: "why".into() }),
        Command::TrimOutbox { through: 12 },
        Command::DrainNode { node, drain: true },
        Command::RemoveNode { node, dead: true, successor: Some(NodeId(7)) },
        Command::NodeLost { node, lost: true },
        Command::ForgetNode { node },
        Command::RemoveReplica { group, replica },
        Command::EvictVm { vm, epoch },
        Command::RetireReplica { group, replica },
        Command::PutKey {
            key: name(),
            value: Bytes::from_static(b"value"),
            expect: Some(KeyExpect::Revision(7)),
            life: KeyLife::Bound(LeaseId(3)),
        },
        Command::DeleteKeys { key: name(), prefix: true, expect: Some(KeyExpect::Absent) },
        Command::GrantLease { ttl_ms: 5_000 },
        Command::EndLease { lease: LeaseId(3), expired: true },
        Command::Once { key: OnceKey([4; 16]), command: Box::new(Command::DeleteTopic { name: name() }) },
        Command::SetClusterVersion { version: V1 },
        Command::HoldVersion { at: Some(ClusterVersion::V2) },
    ]
}

fn envelope(command: Command) -> CommandEnvelope {
    let origin = CommandOrigin { session: SessionId(3), sequence: 4, acknowledged: 2 };
    CommandEnvelope { silent: vec![NodeId(9)], ..CommandEnvelope::new(Some(origin), Wall(1_700), command) }
}

#[test]
fn commands_as_they_stand_in_the_log() {
    let mut fixtures = Fixtures::of(CRATE, "commands");
    for command in commands() {
        fixtures.value(command.since(), &fixtures::variant_name(&command), &envelope(command));
    }
    fixtures.all_covered(&commands());
    let of_planner = CommandEnvelope::new(None, Wall(-1), Command::TrimOutbox { through: 1 });
    fixtures.value(V1, "of-planner", &of_planner);
    let failed = VmReportEvent::Failed { reason: "why".into() };
    let exited = VmReportEvent::Exited { reason: "why".into() };
    let reports =
        [VmReportEvent::Started, VmReportEvent::Ready, exited, failed, VmReportEvent::Stopped, VmReportEvent::Removed];
    for event in &reports {
        let name = format!("Report{}", fixtures::variant_name(event));
        fixtures.value(V1, &name, &CommandEnvelope::new(None, Wall(1), report(event.clone())));
    }
    fixtures.all_covered(&reports);
    fixtures.finish();
}

#[test]
fn results() {
    let mut fixtures = Fixtures::of(CRATE, "results");
    let results = [
        CommandResult::Done,
        CommandResult::SessionOpened { session: SessionId(3) },
        CommandResult::NodeAdmitted { node: NodeId(2), meta_replica: ReplicaId(4) },
        CommandResult::TokenCreated { token_id: 1 },
        CommandResult::TopicCreated { topic_id: TopicId([3; 16]), groups: vec![GroupId(1), GroupId(2)] },
        CommandResult::VmCreated { vm: VmId(5) },
        CommandResult::ReplicaAdded { replica: ReplicaId(4) },
        CommandResult::Refused { code: ErrorCode::NotFound, message: "no".into() },
        CommandResult::KeyPut { revision: 7, version: 2, lease: Some(LeaseId(3)) },
        CommandResult::KeysDeleted { revision: 7, count: 2 },
        CommandResult::LeaseGranted { lease: LeaseId(3) },
    ];
    // Each came with the commands that have it.
    let since = |result: &CommandResult| match result {
        CommandResult::Done
        | CommandResult::SessionOpened { .. }
        | CommandResult::NodeAdmitted { .. }
        | CommandResult::TokenCreated { .. }
        | CommandResult::TopicCreated { .. }
        | CommandResult::VmCreated { .. }
        | CommandResult::ReplicaAdded { .. }
        | CommandResult::Refused { .. } => V1,
        CommandResult::KeyPut { .. } | CommandResult::KeysDeleted { .. } | CommandResult::LeaseGranted { .. } => V2,
    };
    fixtures.each(since, &results);
    fixtures.finish();
}

/// A state with something in every table.
fn state() -> Metadata {
    let mut state = Metadata::bootstrap(ClusterId([5; 16]), member(1), Wall(0));
    let mut index = 1;
    let mut apply = |origin: Option<CommandOrigin>, command: Command| {
        index += 1;
        let result = state.apply(index, &CommandEnvelope::new(origin, Wall(index as i64), command));
        assert!(!matches!(result, CommandResult::Refused { .. }), "{result:?}");
        result
    };
    let opened = apply(None, Command::OpenSession { node: NodeId(1), incarnation: Incarnation(1) });
    let CommandResult::SessionOpened { session } = opened else { panic!("{opened:?}") };
    let origin = CommandOrigin { session, sequence: 1, acknowledged: 0 };
    let hash = token_hash(&[8; 32]);
    apply(Some(origin), Command::CreateToken { secret_hash: hash, expires: Wall(9_000), uses: 9 });
    for n in 2..=4 {
        apply(None, Command::AdmitNode { token_id: 1, secret: [8; 32], member: member(n) });
    }
    // Before anything is placed on it.
    apply(None, Command::RemoveNode { node: NodeId(4), dead: true, successor: None });
    apply(None, Command::ForgetNode { node: NodeId(4) });
    let topic = Command::CreateTopic {
        name: "topic".into(),
        topic_id: TopicId([3; 16]),
        partitions: 2,
        replication_factor: None,
        config: vec![("retention.ms".into(), "-1".into())],
    };
    apply(None, topic);
    for name in ["vm", "other"] {
        apply(None, Command::CreateVm { name: name.into(), spec: VmSpec { node: None, ..spec() } });
    }
    let epoch = VmEpoch(1);
    apply(None, Command::AssignVm { vm: VmId(1), node: NodeId(1), epoch, placement: "room".into() });
    apply(None, report(VmReportEvent::Started));
    apply(None, Command::DrainNode { node: NodeId(2), drain: true });
    apply(None, Command::RemoveNode { node: NodeId(3), dead: false, successor: Some(NodeId(1)) });
    (state.outbox_dropped, state.cluster_incarnation) = (3, Incarnation(2));
    state
}

/// What came with version 2: keys, leases, their history, and commands that are carried out once.
fn with_keys(state: &mut Metadata) {
    let put =
        |key: &str, life| Command::PutKey { key: key.into(), value: Bytes::from_static(b"value"), expect: None, life };
    let remove = Command::DeleteKeys { key: "gone".into(), prefix: false, expect: None };
    let commands = [
        put("key", KeyLife::Lasting),
        Command::GrantLease { ttl_ms: 5_000 },
        put("bound", KeyLife::Bound(LeaseId(1))),
        put("own", KeyLife::Ttl(5_000)),
        put("gone", KeyLife::Lasting),
        Command::Once { key: OnceKey([4; 16]), command: Box::new(remove) },
        put("late", KeyLife::Ttl(5_000)),
        Command::EndLease { lease: LeaseId(3), expired: true },
    ];
    for command in commands {
        let index = state.applied + 1;
        let result = state.apply(index, &CommandEnvelope::new(None, Wall(index as i64), command));
        assert!(!matches!(result, CommandResult::Refused { .. }), "{result:?}");
    }
}

/// The variants inside of commands that came with version 2.
#[test]
fn keys() {
    let mut fixtures = Fixtures::of(CRATE, "keys");
    let expects = [KeyExpect::Absent, KeyExpect::Revision(7), KeyExpect::Value(Bytes::from_static(b"value"))];
    fixtures.each(|_| V2, &expects);
    let lives = [KeyLife::Lasting, KeyLife::Bound(LeaseId(3)), KeyLife::Ttl(5_000)];
    fixtures.each(|_| V2, &lives);
    fixtures.finish();
}

#[test]
fn the_whole_state() {
    let mut fixtures = Fixtures::of(CRATE, "state");
    let mut check = |since, name: &str, state: &Metadata| {
        fixtures.bytes(since, name, &state.encode(), |bytes| match Metadata::decode(bytes) {
            Ok(read) if read == *state => Ok(()),
            other => Err(format!("is read as {other:?}")),
        });
    };
    let mut of = state();
    check(V1, "state", &of);
    let lifecycles = [
        NodeLifecycle::Active,
        NodeLifecycle::Draining,
        NodeLifecycle::Lost,
        NodeLifecycle::Leaving,
        NodeLifecycle::Removing,
    ];
    for lifecycle in lifecycles {
        let mut state = Metadata::bootstrap(ClusterId([5; 16]), member(1), Wall(0));
        state.nodes.get_mut(&NodeId(1)).expect("the first").lifecycle = lifecycle;
        check(V1, &format!("lifecycle-{}", lifecycle.as_str()), &state);
    }
    let wanted = [VmDesired::Running, VmDesired::Stopped, VmDesired::Deleted];
    let phases = [
        VmPhase::Pending,
        VmPhase::Starting,
        VmPhase::Booting,
        VmPhase::Running,
        VmPhase::Restarting,
        VmPhase::Stopping,
        VmPhase::Stopped,
        VmPhase::Failed,
        VmPhase::Deleting,
    ];
    for (n, phase) in phases.into_iter().enumerate() {
        let mut state = of.clone();
        let vm = state.vms.get_mut(&VmId(1)).expect("the first");
        (vm.phase, vm.desired) = (phase, wanted[n % wanted.len()]);
        check(V1, &format!("vm-{phase:?}"), &state);
    }
    let mut recovered = of.clone();
    recovered.recovery = Some(RecoveryId([9; 16]));
    check(V1, "recovered", &recovered);
    (of.cluster_version, of.version_hold) = (V2, Some(V2));
    with_keys(&mut of);
    check(V2, "state", &of);
    fixtures.all_covered(&lifecycles);
    fixtures.all_covered(&wanted);
    fixtures.all_covered(&phases);
    fixtures.finish();
}

#[test]
fn a_state_of_a_later_version_or_with_more_in_it_is_refused() {
    let mut later = state();
    later.cluster_version = ClusterVersion(ClusterVersion::NEWEST.0 + 1);
    let error = Metadata::decode(&later.encode()).expect_err("of a later version").to_string();
    assert!(error.contains("upgrade muster on this node"), "{error}");
    // One more field than this version has, at the end of the record (its length is the second byte, 0x98 the first).
    let mut whole = state();
    whole.recovery = Some(RecoveryId([9; 16]));
    let bytes = whole.encode();
    let mut more = bytes.to_vec();
    assert_eq!(more[1..3], [0x98, 26]);
    more[2] = 27;
    more.push(7);
    let error = Metadata::decode(&more).expect_err("dropping it would be silent").to_string();
    assert!(error.contains("holds more than"), "{error}");
}

#[test]
fn a_command_of_a_later_version_is_refused_by_its_version_whatever_it_is() {
    #[derive(minicbor::Encode)]
    struct Later {
        /// A command that nobody has heard of.
        #[n(2)]
        command: (u32, [u8; 3]),
        #[n(4)]
        version: ClusterVersion,
    }
    let bytes = wire::encode(&Later { command: (999, [1, 2, 3]), version: ClusterVersion(7) });
    let can = VersionRange { min: V1, max: ClusterVersion(6) };
    let error = CommandEnvelope::read(&bytes, can).expect_err("of a later version");
    assert_eq!(error, CommandError::Newer { needs: ClusterVersion(7), can });
    assert!(error.to_string().contains("upgrade muster on this node"), "{error}");
    let known = CommandEnvelope::new(None, Wall(0), Command::HoldVersion { at: None });
    assert!(CommandEnvelope::read(&wire::encode(&known), VersionRange::default()).is_err(), "an older node");
    assert_eq!(CommandEnvelope::read(&wire::encode(&known), VersionRange::BINARY), Ok(known));
}
