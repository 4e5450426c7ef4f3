//! Clients: each sits on a node and asks for one thing at a time. What they learn is told to the checkers when an
//! answer comes (`requests.rs`); an answer that never comes is an unknown outcome, and is treated as one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{ClusterVersion, ErrorCode, GroupId, LeaseId, NodeId, SplitMix64, TopicId, hash64};
use compute::{VmDesired, VmSpec};
use engine::{Acks, Produce, ReadLog, Reply, Request, Target};
use metadata::{Command, CommandResult, KeyLife, OnceKey};

use crate::node::HOST_MEMORY_MIB;
use crate::queue::{Ev, NodeIx};
use crate::records::{self, Producer};
use crate::requests::{CommandKind, Outcome, Owner, Pending, What};
use crate::shared::{self, TOPIC_PREFIX};
use crate::time::{Nanos, ms, us};
use crate::world::World;

/// Clients that make topics, and how many each.
const TOPIC_MAKERS: usize = 2;
const TOPICS_MAX: u64 = 2;
/// Machines that one client has at a time.
const VMS_MAX: usize = 2;
/// Machines that the clients of one run make: each has a console topic, which costs every node a replica.
const VMS_MADE_MAX: u64 = 6;
/// Join tokens that one client has at a time; the cluster keeps a bounded number of them.
const TOKENS_MAX: usize = 16;

/// A client.
pub struct Client {
    home: NodeIx,
    /// Idempotent producers send a batch again until it is acknowledged (KIP-98).
    idempotent: bool,
    producer: i64,
    /// Counts its restarts: whoever writes under an earlier epoch is fenced.
    epoch: i16,
    sequences: BTreeMap<GroupId, i32>,
    /// Not acknowledged yet, in order, all for one partition.
    unacked: VecDeque<Batch>,
    /// Its former self will try to write there, where it has written since.
    zombie: Option<GroupId>,
    given_up: BTreeSet<GroupId>,
    vms: Vec<String>,
    /// The oldest first.
    tokens: VecDeque<u64>,
    names: u64,
    vms_made: u64,
    topics_made: u64,
    values: u64,
    /// What it asked for without hearing what came of it: it asks again, under the same name, perhaps of another node.
    again: Option<(Command, CommandKind)>,
    /// The lease that it holds, or thinks to hold.
    lease: Option<LeaseId>,
    number: usize,
    habit: Habit,
    pub random: SplitMix64,
}

/// The producer of a value, if it is one that keeps its records in order: an idempotent client that sends one batch at a
/// time, again and again until it is acknowledged.
#[must_use]
pub fn keeps_order(value: u64) -> Option<u64> {
    let number = value >> 40;
    (number % 2 == 1).then_some(number)
}

/// A batch on its way.
#[derive(Clone)]
struct Batch {
    group: GroupId,
    values: Vec<u64>,
    sequence: i32,
    floor: u64,
}

/// Batches that a producer has under way at once.
const UNACKED_MAX: usize = 2;

impl Client {
    /// Client `number`, on node `home`.
    #[must_use]
    pub fn new(number: usize, home: NodeIx, seed: u64) -> Self {
        Client {
            home,
            idempotent: number % 2 == 1,
            producer: number as i64 + 1,
            epoch: 0,
            sequences: BTreeMap::new(),
            unacked: VecDeque::new(),
            zombie: None,
            given_up: BTreeSet::new(),
            vms: Vec::new(),
            tokens: VecDeque::new(),
            names: 0,
            vms_made: 0,
            topics_made: 0,
            values: 0,
            again: None,
            lease: None,
            number,
            habit: Habit::of(number, seed),
            random: SplitMix64::new(hash64(&[seed, 40, number as u64])),
        }
    }

    /// The lease that it holds, or thinks to hold.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease
    }

    /// It goes on with a lease that somebody held in another life of the cluster.
    pub fn inherit(&mut self, lease: Option<LeaseId>) {
        self.lease = lease;
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}-{}", self.number, self.names)
    }

    /// The batches of the next request, for the partition of those under way: one, or two, of which the first may have been
    /// written already.
    fn next_batches(&mut self, group: GroupId, floor: u64) -> Vec<Batch> {
        if !self.idempotent {
            return vec![Batch { group, values: self.fresh_values(), sequence: 0, floor }];
        }
        if !self.unacked.is_empty() && self.random.chance(40_000) {
            // It dies with what it had under way, and begins anew.
            self.epoch += 1;
            self.sequences.clear();
            self.unacked.clear();
        }
        while self.unacked.is_empty() || self.unacked.len() < UNACKED_MAX && self.random.chance(100_000) {
            let values = self.fresh_values();
            let next = self.sequences.entry(group).or_default();
            let sequence = *next;
            *next += values.len() as i32;
            self.unacked.push_back(Batch { group, values, sequence, floor });
        }
        let count = if self.random.chance(500_000) { 1 } else { UNACKED_MAX };
        self.unacked.iter().take(count).cloned().collect()
    }

    /// A value that nobody else uses.
    pub fn fresh_value(&mut self) -> u64 {
        self.values += 1;
        (self.number as u64) << 40 | (self.values - 1)
    }

    fn fresh_values(&mut self) -> Vec<u64> {
        let count = 1 + self.random.below(4) * self.random.below(2);
        let first = (self.number as u64) << 40 | self.values;
        self.values += count;
        (first..first + count).collect()
    }
}

/// What a client does most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Everything.
    Mixed,
    /// Asks for read points again and again, and waits for none of them long: somebody must ask just when leadership is in
    /// doubt.
    Reader,
    /// Changes only the tables of `__meta`, whose log is truncated: the files of the log go round quickly.
    Tables,
}

impl Habit {
    /// Of client `number` in the run of this seed.
    fn of(number: usize, seed: u64) -> Self {
        match (hash64(&[seed, 41]) % 8, number % 3) {
            (0, _) => Habit::Tables,
            (_, 2) => Habit::Reader,
            _ => Habit::Mixed,
        }
    }

    /// The next step, by a number below 1,000.
    fn step(self, draw: u64) -> Step {
        match (self, draw) {
            (Habit::Tables, 0..50) => Step::Token,
            (Habit::Tables, 50..900) => Step::Refused,
            (Habit::Tables, 900..950) | (Habit::Reader, 0..700) => Step::Barrier,
            (Habit::Tables, _) => Step::Status,
            (_, 0..600) => Step::Produce,
            (_, 600..670) => Step::Read,
            (_, 670..690) => Step::Barrier,
            (_, 690..830) => Step::Shared,
            (_, 830..870) => Step::Lease,
            (_, 870..890) => Step::Topic,
            (_, 890..940) => Step::Vm,
            (_, 940..980) => Step::Token,
            _ => Step::Status,
        }
    }
}

/// What a client may do next.
enum Step {
    Produce,
    Read,
    Barrier,
    Shared,
    Lease,
    Topic,
    Vm,
    Token,
    /// A command that changes nothing but the log.
    Refused,
    Status,
}

impl World {
    /// A client's next step.
    pub fn client_step(&mut self, client: usize) {
        if self.finale.quiet {
            return;
        }
        if self.nodes[self.clients[client].home].departed {
            let home = self.clients[client].home;
            self.clients[client].home = (home + 1) % self.nodes.len();
        }
        if !self.nodes[self.clients[client].home].recovered {
            return self.queue.after(ms(200), Ev::Client { client });
        }
        if self.ask_again(client) {
            return;
        }
        let it = &mut self.clients[client];
        let step = it.habit.step(it.random.below(1_000));
        let first = it.habit == Habit::Mixed && client < TOPIC_MAKERS && it.topics_made == 0;
        let step = if first { Step::Topic } else { step };
        let asked = match step {
            Step::Produce => self.produce(client),
            Step::Read => self.read_log(client),
            Step::Barrier => self.plain(client, Target::Here, Request::Barrier, What::Barrier),
            Step::Shared if self.names_contended => self.shared(client),
            Step::Shared => false,
            Step::Lease => self.lease(client),
            Step::Topic => self.create_topic(client),
            Step::Vm => self.vm(client),
            Step::Token => self.token(client),
            Step::Refused => self.command(client, Command::RevokeToken { token_id: 0 }, CommandKind::Other),
            Step::Status => {
                let node = self.nodes[client % self.nodes.len()].id();
                node != NodeId(0) && self.plain(client, Target::Node(node), Request::Status, What::Other)
            }
        };
        if !asked {
            self.queue.after(ms(50), Ev::Client { client });
        }
    }

    /// An answer, or the loss of one: think, then go on.
    pub fn client_answered(&mut self, client: usize, pending: &Pending, outcome: &Outcome) {
        if let What::Lease { lease, since } = pending.what {
            self.lease_answered(client, lease, since, outcome);
        }
        let it = &mut self.clients[client];
        if let (What::Produce { idempotent: true, group, values, first, .. }, Outcome::Ok(_)) = (&pending.what, outcome)
        {
            it.unacked.drain(..if *first == values.len() { 1 } else { UNACKED_MAX });
            if it.epoch > 0 && it.random.chance(200_000) {
                it.zombie = Some(*group);
            }
        }
        if let (What::Command(kind), Outcome::Ok(Reply::Command { result, .. })) = (&pending.what, outcome) {
            match (kind, result) {
                (CommandKind::CreateVm(name), CommandResult::VmCreated { .. }) => it.vms.push(name.clone()),
                (CommandKind::CreateToken, CommandResult::TokenCreated { token_id }) => it.tokens.push_back(*token_id),
                _ => {}
            }
        }
        if let (What::Command(kind), Some(command @ Command::Once { .. })) = (&pending.what, &pending.command) {
            let open = match outcome {
                Outcome::Ok(_) => false,
                Outcome::Failed(error) => !shared::refused_for_certain(error) && !shared::tells(error),
                Outcome::Lost => true,
            };
            it.again = open.then(|| (command.clone(), kind.clone()));
        }
        let think = match outcome {
            Outcome::Ok(_) => us(it.random.between(1_000, 40_000)),
            _ if it.habit == Habit::Tables => us(it.random.between(1_000, 40_000)),
            _ => ms(it.random.between(20, 200)),
        };
        self.queue.after(think, Ev::Client { client });
    }

    /// Puts a key under a lease of its own, or renews that, or lets it end.
    fn lease(&mut self, client: usize) -> bool {
        let it = &mut self.clients[client];
        let since = self.queue.now;
        if it.random.chance(50_000) {
            it.lease = None;
        }
        match it.lease {
            Some(lease) => {
                let request = Request::KeepLease { lease };
                self.plain(client, Target::Leader(GroupId::META), request, What::Lease { lease: Some(lease), since })
            }
            None => {
                let ttl_ms = it.random.between(1_000, 3_000);
                let (key, life) = (it.name("leased"), KeyLife::Ttl(ttl_ms));
                let put = Command::PutKey { key, value: Default::default(), expect: None, life };
                let what = What::Lease { lease: None, since: since + ms(ttl_ms) };
                self.plain(client, Target::Leader(GroupId::META), Request::Command(put), what)
            }
        }
    }

    /// What came of it.
    fn lease_answered(&mut self, client: usize, lease: Option<LeaseId>, since: Nanos, outcome: &Outcome) {
        match (lease, outcome) {
            (Some(lease), Outcome::Ok(Reply::LeaseKept { ttl_ms })) => {
                self.checks.leases.held(lease, since + ms(*ttl_ms));
            }
            (None, Outcome::Ok(Reply::Command { result: CommandResult::KeyPut { lease: Some(lease), .. }, .. })) => {
                self.checks.leases.held(*lease, since);
                self.clients[client].lease = Some(*lease);
            }
            (Some(lease), Outcome::Failed(error)) if error.code == ErrorCode::NotFound => {
                let verdict = self.checks.leases.gone(lease, self.queue.now);
                self.check("leases live as long as their holders were told", verdict);
                self.clients[client].lease = None;
            }
            (_, Outcome::Ok(reply)) => self.fail("answers fit", format!("a lease was answered by {reply:?}")),
            _ => {}
        }
    }

    fn timeout(&mut self, client: usize) -> Nanos {
        let it = &mut self.clients[client];
        ms(it.random.between(500, if it.habit == Habit::Reader { 1_000 } else { 5_000 }))
    }

    /// Asks the client's node for something.
    pub fn plain(&mut self, client: usize, target: Target, request: Request, what: What) -> bool {
        let (home, timeout) = (self.clients[client].home, self.timeout(client));
        self.ask(Owner::Client(client), home, target, request, what, timeout);
        true
    }

    fn command(&mut self, client: usize, command: Command, kind: CommandKind) -> bool {
        let request = Request::Command(command);
        self.plain(client, Target::Leader(GroupId::META), request, What::Command(kind))
    }

    /// As [`World::command`], under a name by which it is recognised when it is asked for again.
    fn command_once(&mut self, client: usize, command: Command, kind: CommandKind) -> bool {
        let random = &mut self.clients[client].random;
        let mut key = [0; 16];
        key[..8].copy_from_slice(&random.next_u64().to_be_bytes());
        key[8..].copy_from_slice(&random.next_u64().to_be_bytes());
        // Older nodes do not know it yet.
        let home = self.nodes[self.clients[client].home].core.as_ref();
        if home.is_some_and(|core| core.metadata().cluster_version < ClusterVersion::V2) {
            return self.command(client, command, kind);
        }
        let command = Command::Once { key: OnceKey(key), command: Box::new(command) };
        self.command(client, command, kind)
    }

    /// Of what it asked for last it has heard nothing, or nothing certain: it asks again.
    fn ask_again(&mut self, client: usize) -> bool {
        let Some((command, kind)) = self.clients[client].again.take() else { return false };
        let node = self.clients[client].random.below(self.nodes.len() as u64) as usize;
        let node = if self.nodes[node].recovered { node } else { self.clients[client].home };
        let timeout = self.timeout(client);
        let request = Request::Command(command);
        self.ask(Owner::Client(client), node, Target::Leader(GroupId::META), request, What::Command(kind), timeout);
        true
    }

    /// Partitions of the clients' topics, as the client's node knows them.
    fn groups_at(&self, node: NodeIx) -> Vec<GroupId> {
        let Some(core) = &self.nodes[node].core else { return Vec::new() };
        let partitions = core.metadata().partitions.values();
        let ours = |topic: &str| topic.starts_with("topic-") || topic.starts_with(TOPIC_PREFIX);
        partitions.filter(|p| ours(&p.topic)).map(|p| p.group).collect()
    }

    fn pick_group(&mut self, client: usize) -> Option<GroupId> {
        let groups = self.groups_at(self.clients[client].home);
        let pick = self.clients[client].random.below(groups.len() as u64) as usize;
        groups.get(pick).copied()
    }

    fn produce(&mut self, client: usize) -> bool {
        let Some(group) = self.pick_group(client) else { return false };
        if let Some(group) = self.clients[client].zombie.take() {
            return self.produce_fenced(client, group);
        }
        let it = &mut self.clients[client];
        // What was for a partition that is gone is given up, and with it the partition, though some node may not have
        // heard that it is gone: what the next sequence there would be is unknown.
        let gone = |batch: &Batch| self.checks.commands.is_deleted(batch.group);
        it.given_up.extend(it.unacked.iter().filter(|batch| gone(batch)).map(|batch| batch.group));
        it.unacked.retain(|batch| !gone(batch));
        let group = it.unacked.front().map_or(group, |batch| batch.group);
        if it.given_up.contains(&group) {
            return false;
        }
        self.checks.partitions.expect_unique(group);
        let batches = it.next_batches(group, self.checks.partitions.acked_end(group) as u64);
        let Some(Batch { floor, values, .. }) = batches.first().cloned() else { return false };
        let first = values.len();
        let (home, idempotent) = (it.home, it.idempotent);
        let (id, epoch) = (it.producer, it.epoch);
        let producer = |batch: &Batch| match idempotent {
            true => Producer { id, epoch, sequence: batch.sequence },
            false => Producer::NONE,
        };
        let all = idempotent || it.random.chance(900_000);
        let direct = it.random.chance(800_000);
        // As a Kafka client: to the node that its own node calls the leader; some let any node pass it on.
        let leader = self.nodes[home].leaders.get(&group).and_then(|info| info.leader);
        let (node, target) = match leader.and_then(|id| self.places.get(&id)) {
            Some(place) if direct => (*place, Target::Here),
            _ => (home, Target::Leader(group)),
        };
        let wall = self.nodes[home].now(self.queue.now).wall.0;
        let acks = if all { Acks::All } else { Acks::Leader };
        let data = batches.iter().map(|batch| records::encode(&batch.values, wall, producer(batch))).collect();
        let request = Request::Produce(Produce { group, acks, batches: data });
        // Alone, a leader's disk is a majority's.
        let all = all || self.nodes.len() == 1;
        let values = batches.into_iter().flat_map(|batch| batch.values).collect();
        let what = What::Produce { group, values, first, idempotent, all };
        let timeout = self.timeout(client);
        self.ask_from(Owner::Client(client), node, target, request, what, timeout, floor);
        true
    }

    /// A producer's former self, which does not know that there is a newer one, writes.
    fn produce_fenced(&mut self, client: usize, group: GroupId) -> bool {
        let it = &mut self.clients[client];
        let values = it.fresh_values();
        let producer = Producer { id: it.producer, epoch: it.epoch - 1, sequence: 0 };
        let wall = self.nodes[it.home].now(self.queue.now).wall.0;
        let batches = vec![records::encode(&values, wall, producer)];
        let verdict = self.checks.partitions.refused(group, &values);
        self.check("refused records do not appear", verdict);
        let request = Request::Produce(Produce { group, acks: Acks::All, batches });
        self.plain(client, Target::Leader(group), request, What::Fenced(group))
    }

    fn read_log(&mut self, client: usize) -> bool {
        let Some(group) = self.pick_group(client) else { return false };
        let indexes = self.checks.partitions.indexes(group);
        let it = &mut self.clients[client];
        let Some(&low) = indexes.get(it.random.below(indexes.len() as u64) as usize) else { return false };
        let high = low + it.random.below(20);
        let request = Request::ReadLog(ReadLog { group, low, high, bytes_max: 4_000 });
        self.plain(client, Target::Here, request, What::ReadLog(group))
    }

    fn create_topic(&mut self, client: usize) -> bool {
        let it = &mut self.clients[client];
        if client >= TOPIC_MAKERS || it.topics_made >= TOPICS_MAX {
            return self.delete_console(client);
        }
        it.topics_made += 1;
        let name = it.name("topic");
        let mut id = [0; 16];
        id[..8].copy_from_slice(&it.random.next_u64().to_be_bytes());
        let partitions = 1 + it.random.below(2) as u32;
        let command = Command::CreateTopic {
            name: name.clone(),
            topic_id: TopicId(id),
            partitions,
            replication_factor: None,
            config: Vec::new(),
        };
        self.command_once(client, command, CommandKind::CreateTopic(name))
    }

    /// Deletes the console topic of a machine: replicas go, whatever they are just doing. Nobody waits for its records.
    fn delete_console(&mut self, client: usize) -> bool {
        let Some(core) = &self.nodes[self.clients[client].home].core else { return false };
        let consoles: Vec<String> =
            core.metadata().topics.keys().filter(|name| name.starts_with("vm.")).cloned().collect();
        let pick = self.clients[client].random.below(consoles.len() as u64) as usize;
        let Some(name) = consoles.get(pick).cloned() else { return false };
        self.command(client, Command::DeleteTopic { name }, CommandKind::Other)
    }

    fn vm(&mut self, client: usize) -> bool {
        let it = &mut self.clients[client];
        let number = it.vms.len();
        if number >= VMS_MAX || number > 0 && it.random.chance(600_000) {
            let name = it.vms[it.random.below(number as u64) as usize].clone();
            let choice = it.random.below(3);
            self.checks.machines.asked(&name);
            match choice {
                0 => {
                    let kind = CommandKind::WantVm(name.clone(), VmDesired::Stopped);
                    return self.command(client, Command::StopVm { name }, kind);
                }
                1 => {
                    let kind = CommandKind::WantVm(name.clone(), VmDesired::Running);
                    return self.command(client, Command::StartVm { name }, kind);
                }
                _ => {}
            }
            let it = &mut self.clients[client];
            it.vms.retain(|other| *other != name);
            self.checks.states.forget_vm(&name);
            return self.command(client, Command::DeleteVm { name: name.clone() }, CommandKind::DeleteVm(name));
        }
        let made: u64 = self.clients.iter().map(|client| client.vms_made).sum();
        let it = &mut self.clients[client];
        if made >= VMS_MADE_MAX {
            return false;
        }
        it.vms_made += 1;
        let name = it.name("vm");
        // Some fit nowhere, and some only on one node.
        let memory_mib = if it.random.chance(100_000) { 10 * HOST_MEMORY_MIB } else { 128 };
        let pinned = it.random.chance(150_000).then(|| it.random.below(self.nodes.len() as u64) as usize);
        let node = pinned.map(|node| self.nodes[node].id()).filter(|id| *id != NodeId(0));
        let spec = VmSpec { cpus: 1, memory_mib, image: "minimal".into(), node };
        self.command_once(client, Command::CreateVm { name: name.clone(), spec }, CommandKind::CreateVm(name))
    }

    /// A new join token, or the end of the oldest.
    fn token(&mut self, client: usize) -> bool {
        if self.clients[client].tokens.len() >= TOKENS_MAX
            && let Some(token_id) = self.clients[client].tokens.pop_front()
        {
            self.checks.states.forget_token(token_id);
            return self.command(client, Command::RevokeToken { token_id }, CommandKind::RevokeToken(token_id));
        }
        // A hash of its own, by which it is seen whether it is carried out twice.
        let mut secret_hash = [client as u8; 32];
        secret_hash[..8].copy_from_slice(&self.clients[client].random.next_u64().to_be_bytes());
        self.checks.commands.expect_once(secret_hash);
        let expires = self.nodes[0].now(self.queue.now).wall.plus(base::Millis(3_600_000));
        let command = Command::CreateToken { secret_hash, expires, uses: 1 };
        self.command(client, command, CommandKind::CreateToken)
    }

    /// A probe of the finale: a command through a node.
    pub fn probe_node(&mut self, node: NodeIx) {
        let expires = self.nodes[node].now(self.queue.now).wall.plus(base::Millis(3_600_000));
        let request = Request::Command(Command::CreateToken { secret_hash: [0xee; 32], expires, uses: 1 });
        let what = What::Command(CommandKind::CreateToken);
        self.ask(Owner::ProbeNode(node), node, Target::Leader(GroupId::META), request, what, ms(2_000));
    }

    /// A probe of the finale: a record for a partition, through a node.
    pub fn probe_group(&mut self, group: GroupId, node: NodeIx) {
        self.checks.partitions.expect_unique(group);
        self.finale.values += 1;
        let values = vec![1 << 56 | self.finale.values];
        let wall = self.nodes[node].now(self.queue.now).wall.0;
        let batches = vec![records::encode(&values, wall, Producer::NONE)];
        let request = Request::Produce(Produce { group, acks: Acks::All, batches });
        let what = What::Produce { group, values, first: 1, idempotent: false, all: true };
        self.ask(Owner::ProbeGroup(group), node, Target::Leader(group), request, what, ms(2_000));
    }

    /// Partitions that the finale probes: those of the clients' topics.
    #[must_use]
    pub fn groups_to_probe(&self) -> Vec<GroupId> {
        let furthest = self
            .nodes
            .iter()
            .max_by_key(|node| node.core.as_ref().map_or(0, |core| core.metadata().applied))
            .map_or(0, |node| node.ix);
        self.groups_at(furthest)
    }
}
