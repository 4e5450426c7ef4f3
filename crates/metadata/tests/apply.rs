//! The state machine of `__meta`, command by command.

use base::{ClusterId, EndpointId, ErrorCode, Incarnation, NodeId, SessionId, TopicId, VmEpoch, VmId, Wall};
use compute::{VmPhase, VmReport, VmReportEvent, VmSpec};
use metadata::{
    Command, CommandEnvelope, CommandOrigin, CommandResult, EVENTS_TOPIC, Metadata, console_topic, token_hash,
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
    cluster.apply(Command::CreateToken { secret_hash: hash, expires: Wall(100), uses: 1 });
    let admit = |secret: u8, n: u8| Command::AdmitNode { token_id: 1, secret: [secret; 32], member: member(n) };
    assert!(refused(&cluster.apply(admit(6, 2)), ErrorCode::PermissionDenied).contains("another secret"));
    let first = cluster.apply(admit(5, 2));
    assert!(matches!(first, CommandResult::NodeAdmitted { node: NodeId(2), .. }));
    assert_eq!(cluster.apply(admit(5, 2)), first, "the same endpoint is the same node");
    assert!(refused(&cluster.apply(admit(5, 3)), ErrorCode::PermissionDenied).contains("used already"));
    cluster.apply(Command::CreateToken { secret_hash: hash, expires: Wall(100), uses: 9 });
    cluster.now = 101;
    let late = Command::AdmitNode { token_id: 2, secret: [5; 32], member: member(4) };
    assert!(refused(&cluster.apply(late), ErrorCode::PermissionDenied).contains("expired"));
    let foreign = Command::AdmitNode { token_id: 77, secret: [5; 32], member: member(4) };
    assert!(refused(&cluster.apply(foreign), ErrorCode::PermissionDenied).contains("unknown"));
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
    (cluster.state.outbox_dropped, cluster.state.cluster_incarnation) = (3, Incarnation(2));
    let state = &cluster.state;
    let tables = [&state.nodes.len(), &state.topics.len(), &state.partitions.len(), &state.vms.len()];
    let others = [&state.vm_names.len(), &state.tokens.len(), &state.sessions[&session].results.len()];
    // What is empty is equal though it was forgotten.
    assert!(tables.iter().chain(&others).all(|len| **len > 0) && !state.outbox.is_empty(), "{state:?}");
    let bytes = state.encode();
    assert_eq!(Metadata::decode(&bytes), Ok(cluster.state));
    for cut in 0..bytes.len() {
        assert!(Metadata::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}
