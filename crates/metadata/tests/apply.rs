//! The state machine of `__meta`, command by command.

use base::limits::{SESSION_RESULTS_MAX, SESSIONS_MAX};
use base::{
    ClusterId, ClusterVersion, EndpointId, ErrorCode, GroupId, Incarnation, NodeId, SessionId, TopicId, VersionRange,
    VmEpoch, VmId, Wall,
};
use compute::{VmPhase, VmReport, VmReportEvent, VmSpec};
use metadata::{
    Command, CommandEnvelope, CommandOrigin, CommandResult, EVENTS_TOPIC, Metadata, NodeLifecycle, console_topic,
    token_hash,
};
use wire::{Member, NodeAddress};

struct Cluster {
    state: Metadata,
    now: i64,
}

fn member(n: u8) -> Member {
    Member { address: NodeAddress { endpoint: EndpointId([n; 32]), ..Default::default() }, ..Default::default() }
}

fn spec() -> VmSpec {
    VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None }
}

fn topic(name: &str, factor: Option<u16>) -> Command {
    Command::CreateTopic {
        name: name.into(),
        topic_id: TopicId([1; 16]),
        partitions: 2,
        replication_factor: factor,
        config: vec![],
    }
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { state: Metadata::bootstrap(ClusterId([1; 16]), member(1), Wall(0)), now: 0 }
    }

    fn apply(&mut self, command: Command) -> CommandResult {
        self.send(None, command)
    }

    fn send(&mut self, origin: Option<CommandOrigin>, command: Command) -> CommandResult {
        let index = self.state.applied + 1;
        self.state.apply(index, &CommandEnvelope::new(origin, Wall(self.now), command))
    }

    fn join(&mut self, n: u8) -> CommandResult {
        let token = Command::CreateToken { secret_hash: token_hash(&[n; 32]), expires: Wall(self.now + 1000), uses: 1 };
        let CommandResult::TokenCreated { token_id } = self.apply(token) else { panic!("no token") };
        self.apply(Command::AdmitNode { token_id, secret: [n; 32], member: member(n) })
    }

    fn vm(&self) -> &compute::VmRecord {
        self.state.vm("web").expect("the VM is there")
    }
}

#[track_caller]
fn refused(result: &CommandResult, expected: ErrorCode) -> String {
    match result {
        CommandResult::Refused { code, message } if *code == expected => message.clone(),
        other => panic!("expected a refusal with {expected}, got {other:?}"),
    }
}

#[test]
fn a_cluster_is_born_with_its_node_and_its_events_topic() {
    let cluster = Cluster::new();
    assert_eq!(cluster.state.applied, 1);
    assert_eq!(cluster.state.nodes.keys().copied().collect::<Vec<_>>(), [NodeId(1)]);
    let events = &cluster.state.topics[EVENTS_TOPIC];
    assert_eq!(cluster.state.partitions[&events.partitions[0]].replicas.len(), 1);
}

#[test]
fn a_token_admits_as_often_as_it_says_until_it_expires() {
    let mut cluster = Cluster::new();
    let hash = token_hash(&[5; 32]);
    cluster.apply(Command::CreateToken { secret_hash: hash, expires: Wall(100), uses: 2 });
    let admit = |secret: u8, n: u8| Command::AdmitNode { token_id: 1, secret: [secret; 32], member: member(n) };
    assert!(refused(&cluster.apply(admit(6, 2)), ErrorCode::PermissionDenied).contains("another secret"));
    let first = cluster.apply(admit(5, 2));
    assert!(matches!(first, CommandResult::NodeAdmitted { node: NodeId(2), .. }));
    assert_eq!(cluster.apply(admit(5, 2)), first, "the same endpoint is the same node");
    assert!(matches!(cluster.apply(admit(5, 3)), CommandResult::NodeAdmitted { node: NodeId(3), .. }));
    assert!(refused(&cluster.apply(admit(5, 4)), ErrorCode::PermissionDenied).contains("used already"));
    cluster.apply(Command::CreateToken { secret_hash: hash, expires: Wall(100), uses: 9 });
    cluster.now = 101;
    let late = Command::AdmitNode { token_id: 2, secret: [5; 32], member: member(4) };
    assert!(refused(&cluster.apply(late), ErrorCode::PermissionDenied).contains("expired"));
    let foreign = Command::AdmitNode { token_id: 77, secret: [5; 32], member: member(4) };
    assert!(refused(&cluster.apply(foreign), ErrorCode::PermissionDenied).contains("unknown"));
}

#[test]
fn a_member_without_its_data_is_an_impostor() {
    let mut cluster = Cluster::new();
    let stored = |n: u8, store: u64| Member { store, ..member(n) };
    cluster.apply(Command::CreateToken { secret_hash: token_hash(&[5; 32]), expires: Wall(100), uses: 9 });
    let admit = |store| Command::AdmitNode { token_id: 1, secret: [5; 32], member: stored(2, store) };
    let first = cluster.apply(admit(7));
    assert!(matches!(first, CommandResult::NodeAdmitted { node: NodeId(2), .. }));
    assert_eq!(cluster.apply(admit(7)), first, "the answer was lost");
    let refusal = refused(&cluster.apply(admit(8)), ErrorCode::PermissionDenied);
    assert!(refusal.contains("muster node remove node-2"), "{refusal}");
    let update = |store| Command::UpdateNode { member: Member { node: NodeId(2), ..stored(2, store) } };
    assert_eq!(cluster.apply(update(7)), CommandResult::Done);
    refused(&cluster.apply(update(8)), ErrorCode::PermissionDenied);
    // A member that never said what it keeps may begin to.
    let first = Command::UpdateNode { member: Member { node: NodeId(1), ..stored(1, 3) } };
    assert_eq!(cluster.apply(first), CommandResult::Done);
    assert_eq!(cluster.state.nodes[&NodeId(1)].member.store, 3);
}

#[test]
fn no_two_members_have_one_name_and_none_has_a_number_for_a_name() {
    let named = |n: u8, name: &str| Member { node: NodeId(u64::from(n)), name: name.into(), ..member(n) };
    let mut cluster = Cluster { state: Metadata::bootstrap(ClusterId([1; 16]), named(1, "box"), Wall(0)), now: 0 };
    cluster.apply(Command::CreateToken { secret_hash: token_hash(&[5; 32]), expires: Wall(100), uses: 9 });
    let admit = |member| Command::AdmitNode { token_id: 1, secret: [5; 32], member };
    let names = |cluster: &Cluster| -> Vec<String> {
        cluster.state.nodes.values().map(|node| node.member.name.clone()).collect()
    };
    cluster.apply(admit(named(2, "box")));
    assert_eq!(names(&cluster), ["box", "node-2"]);
    // Each of its starts says the same again, and what else it says counts.
    let labels = [("zone".to_owned(), "a".to_owned())].into();
    let again = Command::UpdateNode { member: Member { labels, ..named(2, "box") } };
    assert_eq!(cluster.apply(again), CommandResult::Done);
    assert_eq!(cluster.state.nodes[&NodeId(2)].member.labels["zone"], "a");
    let wants = |cluster: &mut Cluster, n: u8, name: &str| {
        assert_eq!(cluster.apply(Command::UpdateNode { member: named(n, name) }), CommandResult::Done);
        names(cluster)
    };
    for (n, name, then) in [
        (2, "box", ["box", "node-2"]),
        (2, "1", ["box", "node-2"]),
        (2, "", ["box", "node-2"]),
        (2, "shed", ["box", "shed"]),
        (1, "shed", ["box", "shed"]),
        (1, "barn", ["barn", "shed"]),
        (2, "box", ["barn", "box"]),
        (2, "node-3", ["barn", "node-3"]),
    ] {
        assert_eq!(wants(&mut cluster, n, name), then, "node {n} wants to be {name:?}");
    }
    cluster.apply(admit(named(3, "7")));
    assert_eq!(names(&cluster), ["barn", "node-3", "node-3-2"]);
}

#[test]
fn a_command_is_applied_once_per_session_and_sequence() {
    let mut cluster = Cluster::new();
    let open = Command::OpenSession { node: NodeId(1), incarnation: Incarnation(1) };
    let CommandResult::SessionOpened { session } = cluster.apply(open.clone()) else { panic!() };
    assert_eq!(cluster.apply(open), CommandResult::SessionOpened { session });
    let origin = |sequence, acknowledged| Some(CommandOrigin { session, sequence, acknowledged });
    let create = Command::CreateVm { name: "web".into(), spec: spec() };
    let first = cluster.send(origin(1, 0), create.clone());
    assert_eq!(first, CommandResult::VmCreated { vm: VmId(1) });
    assert_eq!(cluster.send(origin(1, 0), create.clone()), first);
    cluster.send(origin(2, 1), Command::StopVm { name: "web".into() });
    refused(&cluster.send(origin(1, 0), create.clone()), ErrorCode::UnknownSession);
    // The node's next process ends the session: what was under way is refused, not applied late.
    cluster.apply(Command::OpenSession { node: NodeId(1), incarnation: Incarnation(2) });
    refused(&cluster.send(origin(3, 2), create.clone()), ErrorCode::UnknownSession);
    let unknown = CommandOrigin { session: SessionId(99), sequence: 1, acknowledged: 0 };
    refused(&cluster.send(Some(unknown), create), ErrorCode::UnknownSession);
    let stale = Command::OpenSession { node: NodeId(1), incarnation: Incarnation(1) };
    refused(&cluster.apply(stale), ErrorCode::StaleEpoch);
}

#[test]
fn a_session_keeps_so_many_results_and_takes_no_more_before_some_are_acknowledged() {
    let mut cluster = Cluster::new();
    let open = Command::OpenSession { node: NodeId(1), incarnation: Incarnation(1) };
    let CommandResult::SessionOpened { session } = cluster.apply(open) else { panic!() };
    let origin = |sequence, acknowledged| Some(CommandOrigin { session, sequence, acknowledged });
    let kept = |cluster: &Cluster| cluster.state.sessions[&session].results.len();
    let revoke = || Command::RevokeToken { token_id: 9 };
    let most = SESSION_RESULTS_MAX as u64;
    for sequence in 1..=most {
        refused(&cluster.send(origin(sequence, 0), revoke()), ErrorCode::NotFound);
    }
    assert_eq!(kept(&cluster), SESSION_RESULTS_MAX);
    let create = Command::CreateVm { name: "web".into(), spec: spec() };
    refused(&cluster.send(origin(most + 1, 0), create.clone()), ErrorCode::Busy);
    assert!(cluster.state.vm("web").is_none() && kept(&cluster) == SESSION_RESULTS_MAX, "it was carried out");
    refused(&cluster.send(origin(1, 0), create.clone()), ErrorCode::NotFound);
    // Ten are acknowledged: they go, and what was refused finds room.
    let created = CommandResult::VmCreated { vm: VmId(1) };
    assert_eq!(cluster.send(origin(most + 1, 10), create), created);
    assert_eq!(kept(&cluster), SESSION_RESULTS_MAX - 9);
    for sequence in most + 2..=most + 10 {
        refused(&cluster.send(origin(sequence, 10), revoke()), ErrorCode::NotFound);
    }
    refused(&cluster.send(origin(most + 11, 10), revoke()), ErrorCode::Busy);
    assert_eq!(kept(&cluster), SESSION_RESULTS_MAX);
}

#[test]
fn no_more_sessions_are_open_than_the_bound_and_a_nodes_next_process_needs_no_room_of_its_own() {
    let mut cluster = Cluster::new();
    let open = |cluster: &mut Cluster, node, incarnation| {
        cluster.apply(Command::OpenSession { node: NodeId(node), incarnation: Incarnation(incarnation) })
    };
    let opened = |result: &CommandResult| matches!(result, CommandResult::SessionOpened { .. });
    let most = SESSIONS_MAX as u64;
    for node in 1..=most {
        let result = open(&mut cluster, node, 1);
        assert!(opened(&result), "node {node}: {result:?}");
    }
    refused(&open(&mut cluster, most + 1, 1), ErrorCode::Busy);
    let result = open(&mut cluster, 1, 2);
    assert!(opened(&result), "in the place of the one before: {result:?}");
    refused(&open(&mut cluster, most + 1, 1), ErrorCode::Busy);
    assert_eq!(cluster.state.sessions.len(), SESSIONS_MAX);
}

#[test]
fn topics_spread_over_nodes_and_refuse_what_kafka_refuses() {
    let mut cluster = Cluster::new();
    for bad in ["", "..", "a b", "ü", &"x".repeat(250)] {
        refused(&cluster.apply(topic(bad, None)), ErrorCode::InvalidArgument);
    }
    refused(&cluster.apply(topic("t", Some(2))), ErrorCode::InvalidArgument);
    cluster.join(2);
    cluster.join(3);
    let CommandResult::TopicCreated { groups, .. } = cluster.apply(topic("t", Some(1))) else { panic!() };
    let nodes: std::collections::BTreeSet<_> =
        groups.iter().map(|g| cluster.state.partitions[g].replicas[0].node).collect();
    assert_eq!(nodes.len(), 2, "two partitions of factor 1 live on two nodes");
    refused(&cluster.apply(topic("t", None)), ErrorCode::AlreadyExists);
    refused(&cluster.apply(Command::DeleteTopic { name: EVENTS_TOPIC.into() }), ErrorCode::FailedPrecondition);
    assert_eq!(cluster.apply(Command::DeleteTopic { name: "t".into() }), CommandResult::Done);
    assert!(groups.iter().all(|g| !cluster.state.partitions.contains_key(g)));
}

#[test]
fn the_names_of_musters_own_topics_are_kept_for_them() {
    let mut cluster = Cluster::new();
    for name in [EVENTS_TOPIC, "vm.web.console", "vm.a.b.console"] {
        refused(&cluster.apply(topic(name, None)), ErrorCode::InvalidArgument);
    }
    for name in ["vm.console", "vm..console", "vm.web.consoles", "my.vm.web.console", "muster.event"] {
        let made = cluster.apply(topic(name, None));
        assert!(matches!(made, CommandResult::TopicCreated { .. }), "{name}: {made:?}");
    }
    cluster.apply(Command::CreateVm { name: "web".into(), spec: spec() });
    let delete = || Command::DeleteTopic { name: console_topic("web") };
    refused(&cluster.apply(delete()), ErrorCode::FailedPrecondition);
    cluster.apply(Command::DeleteVm { name: "web".into() });
    assert!(cluster.state.vm("web").is_none(), "it had no node");
    assert_eq!(cluster.apply(delete()), CommandResult::Done, "the console of a VM that is gone may go");
}

#[test]
fn an_elastic_partition_takes_replicas_up_to_its_target() {
    let mut cluster = Cluster::new();
    let group = cluster.state.topics[EVENTS_TOPIC].partitions[0];
    let add = |node| Command::AddReplica { group, node: NodeId(node) };
    refused(&cluster.apply(add(2)), ErrorCode::NotFound);
    cluster.join(2);
    let CommandResult::ReplicaAdded { replica } = cluster.apply(add(2)) else { panic!() };
    refused(&cluster.apply(add(2)), ErrorCode::AlreadyExists);
    assert_eq!(cluster.apply(Command::ReplicaVoter { group, replica, demoted: false }), CommandResult::Done);
    assert!(cluster.state.partitions[&group].replicas.iter().all(|r| r.voter));
}

#[test]
fn a_vm_goes_through_its_life_and_every_step_is_in_the_outbox() {
    let mut cluster = Cluster::new();
    let before = cluster.state.outbox_next;
    assert_eq!(
        cluster.apply(Command::CreateVm { name: "web".into(), spec: spec() }),
        CommandResult::VmCreated { vm: VmId(1) }
    );
    assert!(cluster.state.topics.contains_key(&console_topic("web")));
    let assign = Command::AssignVm { vm: VmId(1), node: NodeId(1), epoch: VmEpoch(1), placement: "only one".into() };
    assert_eq!(cluster.apply(assign.clone()), CommandResult::Done);
    refused(&cluster.apply(assign), ErrorCode::FailedPrecondition);
    let say = |cluster: &Cluster, epoch, event| Command::ReportVm {
        node: NodeId(1),
        report: VmReport { vm: VmId(1), epoch: VmEpoch(epoch), incarnation: cluster.vm().incarnation, event },
    };
    cluster.apply(say(&cluster, 1, VmReportEvent::Started));
    cluster.apply(say(&cluster, 1, VmReportEvent::Ready));
    refused(&cluster.apply(say(&cluster, 0, VmReportEvent::Stopped)), ErrorCode::StaleEpoch);
    assert_eq!(cluster.vm().phase, VmPhase::Running);
    cluster.apply(Command::DeleteVm { name: "web".into() });
    cluster.apply(say(&cluster, 1, VmReportEvent::Removed));
    assert!(cluster.state.vm("web").is_none());
    let phases: Vec<_> = cluster
        .state
        .outbox
        .range(before..)
        .filter_map(|(_, e)| {
            serde_json::from_str::<serde_json::Value>(&e.json).expect("JSON")["phase"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(phases, ["Pending", "Starting", "Booting", "Running", "Deleting", "Deleted"]);
    cluster.apply(Command::TrimOutbox { through: cluster.state.outbox_next - 1 });
    assert!(cluster.state.outbox.is_empty());
}

#[test]
fn bad_vms_are_refused_with_the_reason() {
    let mut cluster = Cluster::new();
    for (name, spec) in [
        ("Web", spec()),
        ("-a", spec()),
        ("", spec()),
        ("web", VmSpec { cpus: 0, ..spec() }),
        ("web", VmSpec { memory_mib: 16, ..spec() }),
    ] {
        refused(&cluster.apply(Command::CreateVm { name: name.into(), spec }), ErrorCode::InvalidArgument);
    }
    let elsewhere = VmSpec { node: Some(NodeId(9)), ..spec() };
    refused(&cluster.apply(Command::CreateVm { name: "web".into(), spec: elsewhere }), ErrorCode::NotFound);
    refused(&cluster.apply(Command::StopVm { name: "web".into() }), ErrorCode::NotFound);
    assert!(cluster.state.vms.is_empty());
}

#[test]
fn the_state_survives_its_own_encoding() {
    let mut cluster = Cluster::new();
    cluster.join(2);
    cluster.apply(topic("t", None));
    cluster.apply(Command::CreateVm { name: "web".into(), spec: spec() });
    let open = Command::OpenSession { node: NodeId(1), incarnation: Incarnation(1) };
    let CommandResult::SessionOpened { session } = cluster.apply(open) else { panic!("no session") };
    cluster.send(Some(CommandOrigin { session, sequence: 1, acknowledged: 0 }), topic("u", None));
    cluster.apply(Command::CreateToken { secret_hash: token_hash(&[9; 32]), expires: Wall(1000), uses: 1 });
    cluster.join(3);
    cluster.apply(Command::DrainNode { node: NodeId(2), drain: true });
    cluster.apply(remove(3, true));
    assert_eq!(cluster.apply(Command::ForgetNode { node: NodeId(3) }), CommandResult::Done);
    (cluster.state.outbox_dropped, cluster.state.cluster_incarnation) = (3, Incarnation(2));
    let state = &cluster.state;
    let tables = [&state.nodes.len(), &state.topics.len(), &state.partitions.len(), &state.vms.len()];
    let others =
        [&state.vm_names.len(), &state.tokens.len(), &state.sessions[&session].results.len(), &state.departed.len()];
    // What is empty is equal though it was forgotten.
    assert!(tables.iter().chain(&others).all(|len| **len > 0) && !state.outbox.is_empty(), "{state:?}");
    let bytes = state.encode();
    assert_eq!(Metadata::decode(&bytes), Ok(cluster.state));
    for cut in 0..bytes.len() {
        assert!(Metadata::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn the_same_commands_make_the_same_state_wherever_they_are_applied() {
    let admit = |n| Command::AdmitNode { token_id: 1, secret: [9; 32], member: member(n) };
    let commands = [
        Command::CreateToken { secret_hash: token_hash(&[9; 32]), expires: Wall(1_000), uses: 9 },
        admit(2),
        admit(3),
        Command::OpenSession { node: NodeId(2), incarnation: Incarnation(1) },
        topic("t", None),
        // Makes a topic, whose id nobody gave.
        Command::CreateVm { name: "web".into(), spec: spec() },
        Command::AssignVm { vm: VmId(1), node: NodeId(3), epoch: VmEpoch(1), placement: "room".into() },
        remove(2, false),
        Command::StopVm { name: "web".into() },
        Command::CreateVm { name: "gone".into(), spec: spec() },
        Command::DeleteVm { name: "gone".into() },
    ];
    let (mut one, mut other) = (Cluster::new(), Cluster::new());
    for command in commands {
        let result = one.apply(command.clone());
        assert!(!matches!(result, CommandResult::Refused { .. }), "{command:?}: {result:?}");
        assert_eq!(other.apply(command.clone()), result, "{command:?}");
        assert_eq!(other.state.encode(), one.state.encode(), "{command:?}");
        // From here on it is a replica that began with a checkpoint.
        other.state = Metadata::decode(&other.state.encode()).expect("it was encoded just now");
        // What is kept twice, such as the names of VMs, is made anew from the tables there: no command may forget one of the two.
        assert_eq!(other.state, one.state, "{command:?}");
        one.now += 1;
        other.now += 1;
    }
}

fn lifecycle(cluster: &Cluster, node: u64) -> Option<NodeLifecycle> {
    cluster.state.nodes.get(&NodeId(node)).map(|record| record.lifecycle)
}

fn remove(node: u64, dead: bool) -> Command {
    Command::RemoveNode { node: NodeId(node), dead, successor: None }
}

/// Four nodes, and the group of a topic with replicas on the first three.
fn four() -> (Cluster, GroupId) {
    let mut cluster = Cluster::new();
    for n in 2..=3 {
        cluster.join(n);
    }
    let CommandResult::TopicCreated { groups, .. } = cluster.apply(topic("t", None)) else { panic!("no topic") };
    cluster.join(4);
    (cluster, groups[0])
}

#[test]
fn a_drained_node_keeps_what_it_has_and_gets_nothing_new() {
    let (mut cluster, group) = four();
    let drain = |node, drain| Command::DrainNode { node: NodeId(node), drain };
    assert_eq!(cluster.apply(drain(4, true)), CommandResult::Done);
    assert_eq!(lifecycle(&cluster, 4), Some(NodeLifecycle::Draining));
    refused(&cluster.apply(Command::AddReplica { group, node: NodeId(4) }), ErrorCode::FailedPrecondition);
    cluster.apply(Command::CreateVm { name: "web".into(), spec: spec() });
    let assign = Command::AssignVm { vm: VmId(1), node: NodeId(4), epoch: VmEpoch(1), placement: String::new() };
    assert!(refused(&cluster.apply(assign), ErrorCode::FailedPrecondition).contains("draining"));
    cluster.apply(drain(1, true));
    let plan = cluster.state.replica_plan(&cluster.state.partitions[&group]);
    assert_eq!((plan.keep.len(), plan.missing, plan.spare.len()), (3, 0, 0), "its replicas stay");
    assert_eq!(cluster.apply(drain(1, false)), CommandResult::Done);
    assert_eq!(lifecycle(&cluster, 1), Some(NodeLifecycle::Active));
    refused(&cluster.apply(drain(9, true)), ErrorCode::NotFound);
}

#[test]
fn a_replica_goes_only_when_there_are_enough_others_and_never_comes_back() {
    let (mut cluster, group) = four();
    let replica = |cluster: &Cluster, node: u64| {
        let replicas = &cluster.state.partitions[&group].replicas;
        replicas.iter().find(|r| r.node == NodeId(node)).map(|r| r.replica)
    };
    let third = replica(&cluster, 3).expect("on three nodes");
    let retire = Command::RetireReplica { group, replica: third };
    refused(&cluster.apply(retire.clone()), ErrorCode::FailedPrecondition);
    assert_eq!(cluster.apply(remove(3, false)), CommandResult::Done);
    assert_eq!(lifecycle(&cluster, 3), Some(NodeLifecycle::Leaving));
    refused(&cluster.apply(Command::DrainNode { node: NodeId(3), drain: false }), ErrorCode::FailedPrecondition);
    assert!(refused(&cluster.apply(retire.clone()), ErrorCode::FailedPrecondition).contains("cannot be spared"));
    assert!(matches!(
        cluster.apply(Command::AddReplica { group, node: NodeId(4) }),
        CommandResult::ReplicaAdded { .. }
    ));
    refused(&cluster.apply(Command::RemoveReplica { group, replica: third }), ErrorCode::FailedPrecondition);
    assert_eq!(cluster.apply(retire), CommandResult::Done);
    assert!(
        refused(&cluster.apply(Command::ForgetNode { node: NodeId(3) }), ErrorCode::FailedPrecondition)
            .contains("still")
    );
    for partition in cluster.state.partitions.values().cloned().collect::<Vec<_>>() {
        for gone in partition.replicas.iter().filter(|r| r.node == NodeId(3)) {
            let (group, replica) = (partition.group, gone.replica);
            cluster.apply(Command::AddReplica { group, node: NodeId(4) });
            cluster.apply(Command::RetireReplica { group, replica });
            assert_eq!(cluster.apply(Command::RemoveReplica { group, replica }), CommandResult::Done);
        }
    }
    assert_eq!(replica(&cluster, 3), None);
    assert_eq!(cluster.apply(Command::ForgetNode { node: NodeId(3) }), CommandResult::Done);
    assert_eq!(lifecycle(&cluster, 3), None);
    assert_eq!(cluster.state.departed[&NodeId(3)].endpoint, EndpointId([3; 32]));
    assert_eq!(cluster.apply(remove(3, false)), CommandResult::Done, "asked again by who did not hear it");
    assert!(matches!(cluster.join(3), CommandResult::NodeAdmitted { node: NodeId(5), .. }), "as another node");
}

#[test]
fn a_lost_node_counts_again_when_it_is_back_and_the_newest_replica_is_spared() {
    let (mut cluster, group) = four();
    let plan = |cluster: &Cluster| cluster.state.replica_plan(&cluster.state.partitions[&group]);
    cluster.apply(Command::NodeLost { node: NodeId(2), lost: true });
    assert_eq!((plan(&cluster).keep.len(), plan(&cluster).missing, plan(&cluster).spare.len()), (2, 1, 0));
    let CommandResult::ReplicaAdded { replica } = cluster.apply(Command::AddReplica { group, node: NodeId(4) }) else {
        panic!("no replica")
    };
    assert_eq!((plan(&cluster).missing, plan(&cluster).spare.len()), (0, 1));
    cluster.apply(Command::NodeLost { node: NodeId(2), lost: false });
    assert_eq!(plan(&cluster).spare, [replica]);
    cluster.apply(remove(2, true));
    cluster.apply(Command::NodeLost { node: NodeId(2), lost: false });
    assert_eq!(lifecycle(&cluster, 2), Some(NodeLifecycle::Removing), "an operator's word stands");
}

#[test]
fn the_last_one_stays_and_a_successor_must_be_there() {
    let mut cluster = Cluster::new();
    assert!(refused(&cluster.apply(remove(1, false)), ErrorCode::FailedPrecondition).contains("only member"));
    cluster.join(2);
    let replace = |with| Command::RemoveNode { node: NodeId(1), dead: true, successor: Some(NodeId(with)) };
    refused(&cluster.apply(replace(1)), ErrorCode::FailedPrecondition);
    refused(&cluster.apply(replace(7)), ErrorCode::FailedPrecondition);
    assert_eq!(cluster.apply(replace(2)), CommandResult::Done);
    assert_eq!(cluster.state.nodes[&NodeId(1)].successor, Some(NodeId(2)));
    refused(&cluster.apply(remove(2, false)), ErrorCode::FailedPrecondition);
    refused(&cluster.apply(remove(9, true)), ErrorCode::NotFound);
}

#[test]
fn a_node_that_goes_already_can_still_be_replaced_and_by_another_one_only_if_its_successor_goes_too() {
    let mut cluster = Cluster::new();
    (2..=4).for_each(|n| drop(cluster.join(n)));
    let replace = |dead, with| Command::RemoveNode { node: NodeId(1), dead, successor: Some(NodeId(with)) };
    let stands = |cluster: &Cluster| {
        let record = &cluster.state.nodes[&NodeId(1)];
        (record.lifecycle, record.successor.map(|node| node.0))
    };
    assert_eq!(cluster.apply(remove(1, false)), CommandResult::Done);
    for nobody in [1, 9] {
        refused(&cluster.apply(replace(false, nobody)), ErrorCode::FailedPrecondition);
    }
    assert_eq!(stands(&cluster), (NodeLifecycle::Leaving, None));
    for _ in 0..2 {
        assert_eq!(cluster.apply(replace(false, 2)), CommandResult::Done);
        assert_eq!(stands(&cluster), (NodeLifecycle::Leaving, Some(2)));
    }
    let refusal = refused(&cluster.apply(replace(true, 3)), ErrorCode::FailedPrecondition);
    assert!(refusal.contains("by node 2"), "{refusal}");
    assert_eq!(cluster.apply(remove(1, true)), CommandResult::Done, "it died on its way");
    assert_eq!(stands(&cluster), (NodeLifecycle::Removing, Some(2)));
    assert_eq!(cluster.apply(remove(2, false)), CommandResult::Done);
    assert_eq!(cluster.apply(replace(true, 3)), CommandResult::Done);
    assert_eq!(stands(&cluster), (NodeLifecycle::Removing, Some(3)));
}

#[test]
fn vms_of_a_dead_node_wait_for_another_one_and_stale_reports_are_refused() {
    let mut cluster = Cluster::new();
    cluster.join(2);
    cluster.apply(Command::CreateVm { name: "web".into(), spec: spec() });
    let assign = |node, epoch| Command::AssignVm {
        vm: VmId(1),
        node: NodeId(node),
        epoch: VmEpoch(epoch),
        placement: String::new(),
    };
    cluster.apply(assign(2, 1));
    let evict = Command::EvictVm { vm: VmId(1), epoch: VmEpoch(1) };
    refused(&cluster.apply(evict.clone()), ErrorCode::FailedPrecondition);
    cluster.apply(remove(2, true));
    assert_eq!(cluster.apply(evict.clone()), CommandResult::Done);
    assert_eq!((cluster.vm().phase, cluster.vm().assignment), (VmPhase::Pending, None));
    assert_eq!(cluster.apply(assign(1, 2)), CommandResult::Done);
    refused(&cluster.apply(evict), ErrorCode::FailedPrecondition);
    let incarnation = cluster.vm().incarnation;
    let report = VmReport { vm: VmId(1), epoch: VmEpoch(1), incarnation, event: VmReportEvent::Ready };
    refused(&cluster.apply(Command::ReportVm { node: NodeId(2), report }), ErrorCode::StaleEpoch);
}

#[test]
fn nothing_is_born_on_a_node_that_is_silent() {
    let mut cluster = Cluster::new();
    cluster.join(2);
    cluster.join(3);
    let mut envelope = CommandEnvelope::new(None, Wall(0), topic("t", Some(3)));
    envelope.silent = vec![NodeId(2)];
    let CommandResult::TopicCreated { groups, .. } = cluster.state.apply(cluster.state.applied + 1, &envelope) else {
        panic!("no topic")
    };
    let partition = &cluster.state.partitions[&groups[0]];
    assert!(partition.replicas.iter().all(|r| r.node != NodeId(2)), "{partition:?}");
    assert_eq!(cluster.state.replica_plan(partition).missing, 1, "made when it is there");
}

fn able(n: u8, node: u64, max: u16) -> Member {
    let versions = VersionRange { min: ClusterVersion(1), max: ClusterVersion(max) };
    Member { node: NodeId(node), versions, ..member(n) }
}

#[test]
fn the_version_rises_when_every_member_can_it_and_never_goes_back() {
    let mut cluster = Cluster::new();
    cluster.join(2);
    let version = |version: u16| Command::SetClusterVersion { version: ClusterVersion(version) };
    let hold = Command::HoldVersion { at: Some(ClusterVersion(2)) };
    assert_eq!(cluster.state.cluster_version, ClusterVersion(1));
    assert_eq!(cluster.state.next_version(), None);
    assert!(
        refused(&cluster.apply(hold.clone()), ErrorCode::UnsupportedVersion)
            .contains("upgrade muster on node-1 (can 1), node-2 (can 1)")
    );
    cluster.apply(Command::UpdateNode { member: able(1, 1, 3) });
    assert_eq!(cluster.state.next_version(), None, "one of two");
    assert!(refused(&cluster.apply(version(2)), ErrorCode::FailedPrecondition).contains("has to wait for "));
    cluster.apply(Command::UpdateNode { member: able(2, 2, 2) });
    assert_eq!(cluster.state.next_version(), Some(ClusterVersion(2)));
    assert!(refused(&cluster.apply(hold.clone()), ErrorCode::UnsupportedVersion).contains("try again"));
    assert_eq!(cluster.apply(version(2)), CommandResult::Done);
    assert_eq!(cluster.apply(version(1)), CommandResult::Done);
    assert_eq!(cluster.state.cluster_version, ClusterVersion(2), "never lowered");

    // From here on an older one is neither taken in nor taken back.
    assert!(
        refused(&cluster.apply(Command::UpdateNode { member: able(2, 2, 1) }), ErrorCode::UnsupportedVersion)
            .contains("upgrade muster there")
    );
    let admit = |max| Command::AdmitNode { token_id: 1, secret: [0; 32], member: able(3, 0, max) };
    assert!(
        refused(&cluster.apply(admit(1)), ErrorCode::UnsupportedVersion)
            .contains("that node can 1: upgrade muster there")
    );

    // Held, it stays; a hold is not a way back.
    assert_eq!(cluster.apply(hold), CommandResult::Done);
    cluster.apply(Command::UpdateNode { member: able(2, 2, 3) });
    assert_eq!(cluster.state.next_version(), None);
    let back = Command::HoldVersion { at: Some(ClusterVersion(1)) };
    assert!(refused(&cluster.apply(back), ErrorCode::FailedPrecondition).contains("no way back"));
    cluster.apply(Command::HoldVersion { at: None });
    assert_eq!(cluster.state.next_version(), Some(ClusterVersion(3)));
}

/// Nodes in these zones (`-`: none), and where a partition of a topic with that factor is born.
fn check_birth(zones: &str, factor: Option<u16>, expect: &str) {
    let mut cluster = Cluster::new();
    for n in 2..=zones.len() as u8 {
        cluster.join(n);
    }
    for (n, zone) in (1..).zip(zones.chars()) {
        let labels = if zone == '-' { [].into() } else { [("zone".to_owned(), zone.to_string())].into() };
        let member = Member { node: NodeId(u64::from(n)), labels, ..member(n) };
        assert_eq!(cluster.apply(Command::UpdateNode { member }), CommandResult::Done);
    }
    let CommandResult::TopicCreated { groups, .. } = cluster.apply(topic("t", factor)) else { panic!("no topic") };
    for group in groups {
        let nodes = cluster.state.partitions[&group].replicas.iter().map(|r| r.node.0 as usize - 1);
        let mut born: Vec<_> = nodes.map(|node| zones.as_bytes()[node] as char).collect();
        born.sort_unstable();
        assert_eq!(born.into_iter().collect::<String>(), expect, "{factor:?} of {zones}");
    }
}

#[test]
fn partitions_are_born_spread_over_zones() {
    check_birth("aaabc", None, "abc");
    check_birth("aabb", Some(2), "ab");
    check_birth("aaab", None, "aab");
    check_birth("aaa-", Some(2), "-a");
    check_birth("aaaa", Some(2), "aa");
}

#[test]
fn a_partition_moves_into_another_zone_by_one_replica_more_and_one_less() {
    let mut cluster = Cluster::new();
    (2..=3).for_each(|n| drop(cluster.join(n)));
    let in_zone = |n: u8, zone: &str| {
        let labels = [("zone".to_owned(), zone.to_owned())].into();
        Command::UpdateNode { member: Member { node: NodeId(u64::from(n)), labels, ..member(n) } }
    };
    (1..=3).for_each(|n| drop(cluster.apply(in_zone(n, "a"))));
    let CommandResult::TopicCreated { groups, .. } = cluster.apply(topic("t", None)) else { panic!("no topic") };
    let group = groups[0];
    cluster.join(4);
    let wants = |cluster: &Cluster| cluster.state.spreads_better_on(&cluster.state.partitions[&group], NodeId(4));
    assert!(wants(&cluster), "it has no zone, and so one of its own");
    cluster.apply(in_zone(4, "a"));
    assert!(!wants(&cluster));
    refused(&cluster.apply(Command::AddReplica { group, node: NodeId(4) }), ErrorCode::FailedPrecondition);
    cluster.apply(in_zone(4, "b"));
    assert!(wants(&cluster));
    let CommandResult::ReplicaAdded { replica } = cluster.apply(Command::AddReplica { group, node: NodeId(4) }) else {
        panic!("it gets no replica");
    };
    assert!(!wants(&cluster), "one at a time");
    let plan = |cluster: &Cluster| cluster.state.replica_plan(&cluster.state.partitions[&group]);
    let before = plan(&cluster);
    assert_eq!(
        (before.keep.len(), before.missing, before.spare.len()),
        (3, 0, 0),
        "none goes before the new one votes"
    );
    cluster.apply(Command::ReplicaVoter { group, replica, demoted: false });
    let plan = plan(&cluster);
    assert_eq!((plan.keep.len(), plan.missing, plan.spare.len()), (3, 0, 1));
    assert!(plan.keep.iter().any(|r| r.replica == replica) && !plan.spare.contains(&replica), "{plan:?}");
}
