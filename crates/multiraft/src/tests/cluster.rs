//! A cluster on one thread: replicas of one group, a network that loses, delays, doubles and reorders, disks that
//! forget what was not synced, processes that crash and pause. All of it follows from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{Mono, Now, ReplicaId, SplitMix64, Wall, hash64};
use bytes::Bytes;
use wire::{
    Entry, EntryKind, Membership, MembershipChange, MembershipOp, MembershipStep, RaftMessage, RaftMessageKind,
};

use super::checker::Checker;
use super::disk::{Checkpoint, Disk, Round};
use super::{ELECTION_TICKS, GROUP};
use crate::{GroupStatus, LogRead, MultiRaft, MultiRaftConfig, Output, Proposal, Role};

pub const STEP_MS: u64 = 5;

pub struct Node {
    pub raft: Option<MultiRaft>,
    pub disk: Disk,
    /// The state machine: what was applied, in order.
    pub state: Vec<Entry>,
    pub applied: u64,
    to_apply: VecDeque<Entry>,
    pulled: BTreeMap<u64, Checkpoint>,
    reads: Vec<(u64, LogRead)>,
    /// Reads under way: context -> least index that the answer may have.
    points: BTreeMap<Bytes, u64>,
    round: u64,
    next_tick_ms: u64,
    pub paused_until_ms: u64,
    pub disk_ms: u64,
    pub apply_ms: u64,
    apply_at_ms: u64,
    pub log_reads: u64,
    pub installs: u64,
    pub roles: Vec<(Role, u64)>,
}

pub struct Faults {
    pub loss_per_million: u64,
    pub double_per_million: u64,
    pub delay_ms: u64,
}

pub struct Cluster {
    pub seed: u64,
    pub random: SplitMix64,
    pub now_ms: u64,
    pub nodes: BTreeMap<u64, Node>,
    net: BTreeMap<(u64, u64), RaftMessage>,
    sent: u64,
    /// (from, to) pairs that lose everything.
    pub cut: BTreeSet<(u64, u64)>,
    pub faults: Faults,
    /// Bytes of committed entries that a replica is given in one step; `None`: all that there is.
    pub room: Option<u64>,
    pub checker: Checker,
    pub trace: u64,
    pub tracing: bool,
    contexts: u64,
    pub reads_answered: u64,
    pub proposed: u64,
    /// What travelled, by kind.
    pub delivered: BTreeMap<RaftMessageKind, u64>,
}

fn config(seed: u64, id: u64) -> MultiRaftConfig {
    MultiRaftConfig { seed: hash64(&[seed, id]), heartbeat_ticks: 3, election_ticks: ELECTION_TICKS }
}

pub fn ids(ids: &[u64]) -> Vec<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

pub fn step(op: MembershipOp, id: u64) -> MembershipStep {
    MembershipStep { op, replica: ReplicaId(id) }
}

impl Cluster {
    pub fn new(seed: u64, voters: &[u64], learners: &[u64]) -> Cluster {
        let mut cluster = Cluster {
            seed,
            random: SplitMix64::new(hash64(&[seed, 99])),
            now_ms: 0,
            nodes: BTreeMap::new(),
            net: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            faults: Faults { loss_per_million: 0, double_per_million: 0, delay_ms: 2 },
            room: None,
            checker: Checker::default(),
            trace: 0,
            tracing: false,
            contexts: 0,
            reads_answered: 0,
            proposed: 0,
            delivered: BTreeMap::new(),
        };
        let membership = Membership { voters: ids(voters), learners: ids(learners), ..Default::default() };
        for id in voters.iter().chain(learners) {
            let mut disk = Disk::default();
            disk.durable.checkpoint.meta = wire::SnapshotMeta { index: 1, term: 1, membership: membership.clone() };
            disk.durable.hard_state = wire::HardState { term: 1, vote: ReplicaId(0), commit: 1 };
            cluster.add(*id, disk);
        }
        cluster
    }

    fn add(&mut self, id: u64, disk: Disk) {
        let node = Node {
            raft: None,
            disk,
            state: Vec::new(),
            applied: 0,
            to_apply: VecDeque::new(),
            pulled: BTreeMap::new(),
            reads: Vec::new(),
            points: BTreeMap::new(),
            round: 0,
            next_tick_ms: 0,
            paused_until_ms: 0,
            disk_ms: 2,
            apply_ms: 0,
            apply_at_ms: 0,
            log_reads: 0,
            installs: 0,
            roles: Vec::new(),
        };
        self.nodes.insert(id, node);
    }

    /// A replica that knows nothing, as a joiner does.
    pub fn add_blank(&mut self, id: u64) {
        self.add(id, Disk::default());
        self.start(id, false);
    }

    pub fn start_all(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.start(id, false);
        }
    }

    pub fn start(&mut self, id: u64, campaign: bool) {
        let seed = self.seed;
        let jitter = self.random.below(50);
        let now_ms = self.now_ms;
        let node = self.node(id);
        if node.raft.is_some() {
            return;
        }
        let mut raft = MultiRaft::new(config(seed, id));
        node.state = node.disk.durable.checkpoint.state.clone();
        node.applied = node.disk.durable.checkpoint.meta.index;
        raft.create(node.disk.durable.init(id, campaign));
        node.raft = Some(raft);
        node.next_tick_ms = now_ms + jitter;
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the test")
    }

    pub fn raft(&mut self, id: u64) -> &mut MultiRaft {
        self.node(id).raft.as_mut().expect("the node runs")
    }

    /// The node loses what was not synced: all rounds under way but for the first `keep`.
    pub fn crash(&mut self, id: u64, keep: usize) {
        let node = self.node(id);
        node.raft = None;
        for round in node.disk.rounds.drain(..).take(keep) {
            node.disk.durable.write(&round.append);
        }
        if let Some((_, install, checkpoint)) = node.disk.install.take().filter(|_| keep % 2 == 1) {
            node.disk.durable.install(&install, &checkpoint);
        }
        node.to_apply.clear();
        node.pulled.clear();
        node.reads.clear();
        node.points.clear();
    }

    pub fn status(&self, id: u64) -> Option<GroupStatus> {
        self.nodes.get(&id)?.raft.as_ref()?.status(GROUP)
    }

    /// The leader of the highest term, as it sees itself.
    pub fn leader(&self) -> Option<u64> {
        let leading = self.nodes.keys().filter_map(|id| self.status(*id)).filter(|status| status.role == Role::Leader);
        leading.max_by_key(|status| status.term).map(|status| status.replica.0)
    }

    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    pub fn propose(&mut self, id: u64, len: usize) -> bool {
        let Some(status) = self.status(id) else { return false };
        self.proposed += 1;
        let mut data = self.proposed.to_le_bytes().to_vec();
        data.resize(len.max(8), 7);
        let proposal = Proposal { group: GROUP, term: status.term, kind: EntryKind::Batch, data: data.into() };
        self.raft(id).propose(proposal).is_ok()
    }

    pub fn change(&mut self, id: u64, steps: &[MembershipStep]) -> Result<(), crate::ProposeError> {
        let term = self.status(id).map_or(0, |status| status.term);
        let change = MembershipChange { steps: steps.to_vec(), basis: 0 };
        self.raft(id).propose_membership(GROUP, term, &change).map(drop)
    }

    pub fn read(&mut self, id: u64) {
        self.contexts += 1;
        let context = Bytes::copy_from_slice(&self.contexts.to_le_bytes());
        let least = self.checker.committed.keys().next_back().copied().unwrap_or(0);
        if self.raft(id).read_index(GROUP, context.clone()).is_ok() {
            self.node(id).points.insert(context, least);
        }
    }

    /// Durable checkpoint at what is applied.
    pub fn checkpoint(&mut self, id: u64, keep: u64) {
        let Some(status) = self.status(id) else { return };
        let node = self.node(id);
        let up_to_date = node.to_apply.is_empty() && status.applied == node.applied && node.disk.install.is_none();
        let pending = status.last_index > node.disk.durable.last();
        if !up_to_date || pending || node.applied <= node.disk.durable.checkpoint.meta.index {
            return;
        }
        let Some(term) = node.disk.durable.entries.get(&node.applied).map(|entry| entry.term) else { return };
        let meta = wire::SnapshotMeta { index: node.applied, term, membership: status.membership };
        let first = node.disk.durable.checkpoint(Checkpoint { meta: meta.clone(), state: node.state.clone() }, keep);
        self.raft(id).checkpointed(GROUP, meta, first);
    }

    /// Runs for some virtual time.
    pub fn run(&mut self, ms: u64) -> Result<(), String> {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.advance()?;
        }
        Ok(())
    }

    /// Runs until `done`, for at most `ms`.
    pub fn run_until(&mut self, ms: u64, what: &str, done: impl Fn(&Cluster) -> bool) -> Result<(), String> {
        let end = self.now_ms + ms;
        while !done(self) {
            if self.now_ms >= end {
                return Err(format!("seed {}: not within {ms} ms: {what};{}", self.seed, self.describe()));
            }
            self.advance()?;
        }
        Ok(())
    }

    /// One line per replica.
    pub fn describe(&self) -> String {
        let line = |status: GroupStatus| {
            let GroupStatus { replica, role, term, leader, vote, commit, applied, first_index, .. } = status;
            let Membership { voters, learners, voters_outgoing, .. } = status.membership;
            let (last, persisted) = (status.last_index, status.persisted);
            let progress: Vec<_> = status.progress.iter().map(|p| (p.replica.0, p.matched, p.snapshot)).collect();
            format!(
                "\n  {replica} {role:?} term {term} of {leader} vote {vote} log {first_index}..{last} persisted {persisted} \
                 commit {commit} applied {applied} {voters:?} {voters_outgoing:?} + {learners:?} {progress:?}"
            )
        };
        self.nodes.keys().filter_map(|id| self.status(*id)).map(line).collect()
    }

    pub fn advance(&mut self) -> Result<(), String> {
        self.now_ms += STEP_MS;
        self.deliver();
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            let now_ms = self.now_ms;
            let node = self.node(id);
            if node.raft.is_some() && node.paused_until_ms <= now_ms {
                self.complete(id);
                self.tick(id);
                self.drive(id)?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self) {
        let later = self.net.split_off(&(self.now_ms + 1, 0));
        for (key, message) in std::mem::replace(&mut self.net, later) {
            let (from, to) = (message.from.0, message.to.0);
            let Some(node) = self.nodes.get(&to).filter(|node| node.raft.is_some()) else { continue };
            if self.cut.contains(&(from, to)) {
                continue;
            }
            if node.paused_until_ms > self.now_ms {
                // It waits in the socket of the paused process.
                self.net.insert((node.paused_until_ms, key.1), message);
                continue;
            }
            *self.delivered.entry(message.kind).or_default() += 1;
            self.receive(to, message);
        }
    }

    fn receive(&mut self, to: u64, message: RaftMessage) {
        let from = message.from.0;
        let Some(meta) = message.snapshot.clone() else {
            // Refusals are for the tests that ask for them.
            let _ = self.raft(to).step(GROUP, message);
            return;
        };
        // The checkpoint is pulled before the message is stepped.
        let source = self.nodes.get(&from).map(|node| node.disk.durable.checkpoint.clone());
        let source = source.filter(|checkpoint| checkpoint.meta.index == meta.index);
        let mut ok = source.is_some();
        if let Some(checkpoint) = source {
            self.node(to).pulled.insert(meta.index, checkpoint);
            ok = self.raft(to).step(GROUP, message).is_ok();
        }
        if let Some(sender) = self.nodes.get_mut(&from).and_then(|node| node.raft.as_mut()) {
            sender.snapshot_reported(GROUP, ReplicaId(to), ok);
        }
    }

    /// What the disk has finished.
    fn complete(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let node = self.node(id);
        let mut durable = None;
        while node.disk.rounds.front().is_some_and(|round| round.done_ms <= now_ms) {
            let Some(round) = node.disk.rounds.pop_front() else { break };
            node.disk.durable.write(&round.append);
            durable = Some(round.number);
        }
        let install = node.disk.install.take_if(|(done_ms, ..)| *done_ms <= now_ms);
        let due: Vec<LogRead> = node.reads.extract_if(.., |(done_ms, _)| *done_ms <= now_ms).map(|(_, r)| r).collect();
        let Some(raft) = node.raft.as_mut() else { return };
        if let Some(round) = durable {
            raft.persisted(round);
        }
        if let Some((_, install, checkpoint)) = install {
            node.disk.durable.install(&install, &checkpoint);
            node.state = checkpoint.state;
            node.applied = install.meta.index;
            node.installs += 1;
            raft.snapshot_installed(GROUP, install.meta.index);
        }
        for read in due {
            let mut bytes = 0;
            let entries: Vec<Entry> = (read.low..=read.high)
                .map_while(|index| node.disk.durable.entries.get(&index).cloned())
                .take_while(|entry| {
                    let first = bytes == 0;
                    bytes += entry.data.len() + 1;
                    first || bytes <= read.bytes_max
                })
                .collect();
            raft.entries_fetched(GROUP, read.token, (!entries.is_empty()).then_some(entries));
        }
    }

    fn tick(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let node = self.node(id);
        if node.next_tick_ms <= now_ms {
            node.next_tick_ms = now_ms + 50;
            let now = Now { mono: Mono(now_ms * 1_000_000), wall: Wall(0) };
            self.raft(id).tick(now);
        }
    }

    /// Flushes and carries out, until there is nothing to do.
    pub fn drive(&mut self, id: u64) -> Result<(), String> {
        if let Some(room) = self.room {
            self.raft(id).let_apply(room);
        }
        loop {
            let node = self.node(id);
            node.round += 1;
            let round = node.round;
            let Some(raft) = node.raft.as_mut() else { return Ok(()) };
            if !raft.is_dirty() && node.to_apply.is_empty() {
                return Ok(());
            }
            let output = raft.flush(round);
            if self.tracing {
                let text = format!("{} {id} {output:?}", self.now_ms);
                let sum = text.bytes().fold(self.trace, |sum, byte| sum.rotate_left(5) ^ u64::from(byte));
                self.trace = hash64(&[sum]);
            }
            let idle = output == Output::default();
            self.carry_out(id, output)?;
            self.apply(id)?;
            if idle {
                return Ok(());
            }
        }
    }

    fn carry_out(&mut self, id: u64, output: Output) -> Result<(), String> {
        let now_ms = self.now_ms;
        for role in output.roles {
            if role.role == Role::Leader {
                let durable = self.nodes[&id].disk.durable.hard_state.term;
                self.checker.leads(id, role.term, durable)?;
            }
            self.node(id).roles.push((role.role, role.term));
        }
        for outgoing in output.sends {
            let Some(node) = self.nodes.get(&id) else { continue };
            self.checker.leaves(&outgoing.message, &node.disk.durable)?;
            self.post(outgoing.message);
        }
        let wait = 1 + self.random.below(self.nodes[&id].disk_ms.max(1));
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        for committed in output.committed {
            node.to_apply.extend(committed.entries);
        }
        for append in output.appends {
            let before = node.disk.rounds.back().map_or(0, |round| round.done_ms);
            let done_ms = before.max(now_ms + wait);
            assert!(node.disk.install.is_none(), "a round beside an install");
            assert!(append.hard_state.is_some() || !append.entries.is_empty(), "a round for nothing");
            node.disk.rounds.push_back(Round { number: output.round, done_ms, append });
        }
        for install in output.installs {
            assert!(node.disk.rounds.is_empty(), "an install beside a round");
            let checkpoint = node.pulled.remove(&install.meta.index).expect("pulled before it was stepped");
            assert_eq!(checkpoint.meta, install.meta);
            node.to_apply.clear();
            node.disk.install = Some((now_ms + 4 * wait, install, checkpoint));
        }
        node.log_reads += output.reads.len() as u64;
        node.reads.extend(output.reads.into_iter().map(|read| (now_ms + wait, read)));
        for read in output.read_states {
            let least = node.points.remove(&read.context).ok_or("an answer to a read that nobody asked")?;
            if let Some(index) = read.index {
                self.reads_answered += 1;
                if index < least {
                    return Err(format!("read at {index} after {least} was committed"));
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, message: RaftMessage) {
        let copies = 1 + u64::from(self.random.chance(self.faults.double_per_million));
        for _ in 0..copies {
            if self.random.chance(self.faults.loss_per_million) {
                continue;
            }
            let at = self.now_ms + 1 + self.random.below(self.faults.delay_ms);
            self.sent += 1;
            self.net.insert((at, self.sent), message.clone());
        }
    }

    fn apply(&mut self, id: u64) -> Result<(), String> {
        let now_ms = self.now_ms;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.apply_at_ms > now_ms || node.to_apply.is_empty() {
            return Ok(());
        }
        node.apply_at_ms = now_ms + node.apply_ms;
        while let Some(entry) = node.to_apply.pop_front() {
            if entry.index != node.applied + 1 {
                return Err(format!("replica {id} is to apply {} after {}", entry.index, node.applied));
            }
            self.checker.applies(id, &entry)?;
            node.applied = entry.index;
            node.state.push(entry);
        }
        let applied = node.applied;
        self.raft(id).applied(GROUP, applied);
        Ok(())
    }

    /// Everything back to normal.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.faults = Faults { loss_per_million: 0, double_per_million: 0, delay_ms: 2 };
        self.start_all();
        for node in self.nodes.values_mut() {
            node.paused_until_ms = 0;
            node.disk_ms = 2;
            node.apply_ms = 0;
        }
    }

    /// All members of the leader's membership have applied everything, the same everything.
    pub fn converged(&self) -> bool {
        let Some(status) = self.leader().and_then(|leader| self.status(leader)) else { return false };
        let Membership { voters, learners, voters_outgoing, .. } = &status.membership;
        let goal = self.checker.committed.keys().next_back().copied().unwrap_or(0).max(status.last_index);
        let current = |id: &ReplicaId| self.nodes.get(&id.0).is_some_and(|node| node.applied >= goal);
        voters_outgoing.is_empty() && voters.iter().chain(learners).all(current)
    }

    /// Heals, waits for convergence, and compares all members.
    pub fn finish(&mut self) -> Result<(), String> {
        self.heal();
        self.run_until(30_000, "all members apply everything", Cluster::converged)?;
        let members = self.leader().and_then(|leader| self.status(leader)).map(|status| status.membership);
        let members = members.unwrap_or_default();
        let states: Vec<&Node> = members.voters.iter().chain(&members.learners).map(|id| &self.nodes[&id.0]).collect();
        for node in &states {
            for entry in &node.state {
                if self.checker.committed.get(&entry.index) != Some(entry) {
                    return Err(format!("state differs from what was committed at {}", entry.index));
                }
            }
            if node.state.len() + 1 != node.applied as usize {
                return Err("entries were skipped".to_owned());
            }
            for other in &states {
                self.checker.logs_match(&node.disk.durable, &other.disk.durable)?;
            }
        }
        Ok(())
    }
}
