//! No command adds more to the state than it says.

use base::limits::{KV_KEY_BYTES_MAX, TOPIC_NAME_BYTES_MAX, TOPIC_PARTITIONS_MAX};
use base::{
    ClusterId, EndpointId, Incarnation, NodeId, SessionId, TopicId, VersionRange, VmEpoch, VmId, VmIncarnation, Wall,
};
use bytes::Bytes;
use compute::{VmReport, VmReportEvent, VmSpec};
use metadata::{
    Command, CommandEnvelope, CommandOrigin, CommandResult, KeyExpect, KeyLife, Metadata, OnceKey, token_hash,
};
use wire::{Member, NodeAddress};

struct Cluster {
    state: Metadata,
    session: SessionId,
    sequence: u64,
}

fn member(n: u8, name: String) -> Member {
    let address = NodeAddress { endpoint: EndpointId([n; 32]), ..NodeAddress::default() };
    Member { name, address, versions: VersionRange::BINARY, ..Member::default() }
}

/// A text that JSON makes six times as long.
fn long(bytes: usize) -> String {
    "\u{1}".repeat(bytes)
}

impl Cluster {
    fn new() -> Cluster {
        let state = Metadata::bootstrap(ClusterId([1; 16]), member(1, "node1".into()), Wall(0));
        let mut cluster = Cluster { state, session: SessionId(0), sequence: 0 };
        let open = Command::OpenSession { node: NodeId(1), incarnation: Incarnation(1) };
        let CommandResult::SessionOpened { session } = cluster.check(None, open) else { panic!("no session") };
        cluster.session = session;
        cluster
    }

    /// Applies a command whose result its session remembers.
    fn apply(&mut self, command: Command) -> CommandResult {
        self.sequence += 1;
        let origin = CommandOrigin { session: self.session, sequence: self.sequence, acknowledged: 0 };
        self.check(Some(origin), command)
    }

    /// The same of one that is carried out once, and of which that is remembered too.
    fn once(&mut self, command: Command) -> CommandResult {
        let key = OnceKey([self.sequence as u8; 16]);
        self.apply(Command::Once { key, command: Box::new(command) })
    }

    fn check(&mut self, origin: Option<CommandOrigin>, command: Command) -> CommandResult {
        let envelope = CommandEnvelope::new(origin, Wall(1), command);
        let most = envelope.command.growth_max(wire::encode(&envelope).len());
        let before = self.state.encode().len() as u64;
        let result = self.state.apply(self.state.applied + 1, &envelope);
        let after = self.state.encode().len() as u64;
        let shown = format!("{:?}", envelope.command);
        let shown: String = shown.chars().take(100).collect();
        assert!(after <= before + most, "from {before} to {after} bytes, at most {most} were said: {shown}");
        result
    }

    fn join(&mut self, n: u8, name: String) -> CommandResult {
        let secret = [n; 32];
        let token = Command::CreateToken { secret_hash: token_hash(&secret), expires: Wall(1_000), uses: 1 };
        let CommandResult::TokenCreated { token_id } = self.apply(token) else { panic!("no token") };
        self.once(Command::AdmitNode { token_id, secret, member: member(n, name) })
    }
}

fn topic(name: String, factor: Option<u16>) -> Command {
    Command::CreateTopic {
        name,
        topic_id: TopicId([1; 16]),
        partitions: TOPIC_PARTITIONS_MAX,
        replication_factor: factor,
        config: vec![("note".into(), long(10_000))],
    }
}

fn put(key: String, expect: Option<KeyExpect>) -> Command {
    Command::PutKey { key, value: Bytes::from(vec![7; 100_000]), expect, life: KeyLife::Ttl(1_000) }
}

#[test]
fn no_command_adds_more_than_it_says() {
    let mut cluster = Cluster::new();
    for n in 2..=5 {
        assert!(matches!(cluster.join(n, format!("node{n}")), CommandResult::NodeAdmitted { .. }));
    }
    assert!(matches!(cluster.join(6, long(10_000)), CommandResult::NodeAdmitted { node: NodeId(6), .. }));
    let mut changed = Member { node: NodeId(6), ..member(6, long(20_000)) };
    changed.labels.insert("note".into(), long(20_000));
    assert_eq!(cluster.apply(Command::UpdateNode { member: changed }), CommandResult::Done);

    for (letter, factor) in [("a", None), ("b", Some(1)), ("c", Some(5))] {
        let made = cluster.once(topic(letter.repeat(TOPIC_NAME_BYTES_MAX), factor));
        assert!(matches!(made, CommandResult::TopicCreated { .. }), "{made:?}");
    }
    for name in ["a".repeat(TOPIC_NAME_BYTES_MAX), long(5_000)] {
        let refused = cluster.apply(topic(name, None));
        assert!(matches!(refused, CommandResult::Refused { .. }), "{refused:?}");
    }

    let key = "\u{200b}".repeat(KV_KEY_BYTES_MAX / 3);
    assert!(matches!(cluster.once(put(key.clone(), None)), CommandResult::KeyPut { .. }));
    assert!(matches!(cluster.apply(put(key.clone(), None)), CommandResult::KeyPut { .. }));
    let refused = cluster.apply(put(key.clone(), Some(KeyExpect::Value(Bytes::from_static(b"other")))));
    assert!(matches!(refused, CommandResult::Refused { .. }), "{refused:?}");
    let deleted = cluster.apply(Command::DeleteKeys { key, prefix: true, expect: None });
    assert!(matches!(deleted, CommandResult::KeysDeleted { count: 1, .. }), "{deleted:?}");
    assert!(matches!(cluster.apply(Command::GrantLease { ttl_ms: 1_000 }), CommandResult::LeaseGranted { .. }));
}

#[test]
fn what_is_said_of_vms_adds_no_more_than_it_says() {
    let mut cluster = Cluster::new();
    let spec = VmSpec { cpus: 1, memory_mib: 128, image: long(10_000), node: None };
    let created = cluster.once(Command::CreateVm { name: "v".repeat(63), spec: spec.clone() });
    assert_eq!(created, CommandResult::VmCreated { vm: VmId(1) });
    let refused = cluster.apply(Command::CreateVm { name: long(10_000), spec });
    assert!(matches!(refused, CommandResult::Refused { .. }), "{refused:?}");
    let (vm, node, epoch) = (VmId(1), NodeId(1), VmEpoch(1));
    let steps = [
        Command::ExplainVm { vm, reason: long(10_000) },
        Command::AssignVm { vm, node, epoch, placement: long(10_000) },
        Command::ReportVm {
            node,
            report: VmReport {
                vm,
                epoch,
                incarnation: VmIncarnation(1),
                event: VmReportEvent::Failed { reason: long(30_000) },
            },
        },
    ];
    for step in steps {
        assert_eq!(cluster.apply(step), CommandResult::Done);
    }
}
