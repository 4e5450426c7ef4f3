//! Whatever is stepped, in whatever state, ends in a refusal or in something harmless: never in a panic of this crate
//! or of the one below. The sender lies as it likes; what it can make a replica believe is not the question here.

use base::{Mono, Now, ReplicaId, SplitMix64, Wall, hash64};
use bytes::Bytes;
use wire::{
    Entry, EntryKind, HardState, Membership, MembershipChange, MembershipOp, RaftMessage, RaftMessageKind, SnapshotMeta,
};

use super::cluster::{ids, step};
use super::{ELECTION_TICKS, GROUP};
use crate::{GroupInit, MultiRaft, MultiRaftConfig, Output, Proposal, Refused, Role};

const KINDS: [RaftMessageKind; 12] = [
    RaftMessageKind::Append,
    RaftMessageKind::AppendResponse,
    RaftMessageKind::Vote,
    RaftMessageKind::VoteResponse,
    RaftMessageKind::PreVote,
    RaftMessageKind::PreVoteResponse,
    RaftMessageKind::Heartbeat,
    RaftMessageKind::HeartbeatResponse,
    RaftMessageKind::Snapshot,
    RaftMessageKind::TimeoutNow,
    RaftMessageKind::ReadIndex,
    RaftMessageKind::ReadIndexResponse,
];

struct Victim {
    raft: MultiRaft,
    random: SplitMix64,
    now_ms: u64,
    round: u64,
    durable: u64,
    /// (index of the last entry handed out, what is to be applied up to).
    committed: u64,
    installing: Option<u64>,
    reads: Vec<u64>,
    roles: Vec<Role>,
    accepted: u64,
    refused: u64,
    /// Mostly plausible numbers, and answers to what it sends.
    tame: bool,
}

fn membership() -> Membership {
    Membership { voters: ids(&[1, 2, 3]), learners: ids(&[4]), ..Default::default() }
}

impl Victim {
    fn new(seed: u64) -> Victim {
        let mut random = SplitMix64::new(hash64(&[seed, 5]));
        let mut raft = MultiRaft::new(MultiRaftConfig { seed, heartbeat_ticks: 3, election_ticks: ELECTION_TICKS });
        let replica = [1, 1, 1, 4, 5][random.below(5) as usize];
        let single = random.chance(200_000);
        let membership = if single { Membership { voters: ids(&[1]), ..Default::default() } } else { membership() };
        raft.create(GroupInit {
            group: GROUP,
            replica: ReplicaId(replica),
            hard_state: HardState { term: 1, vote: ReplicaId(0), commit: 1 },
            checkpoint: SnapshotMeta { index: 1, term: 1, membership: membership.clone() },
            membership,
            first_index: 2,
            last_index: 1,
            term_runs: Vec::new(),
            applied: 1,
            unapplied: Vec::new(),
            campaign: false,
        });
        let (installing, reads, roles) = (None, Vec::new(), Vec::new());
        let (round, durable, committed, accepted, refused) = (0, 0, 1, 0, 0);
        let tame = seed.is_multiple_of(2);
        Victim { raft, random, now_ms: 0, round, durable, committed, installing, reads, roles, accepted, refused, tame }
    }

    fn near(&mut self, number: u64) -> u64 {
        if self.tame && self.random.chance(950_000) {
            return number;
        }
        match self.random.below(12) {
            0 => self.random.next_u64(),
            1 => 0,
            2 => u64::MAX,
            3 => number + 10,
            4 => number.saturating_sub(3),
            5 | 6 => number + 1,
            7 => number.saturating_sub(1),
            _ => number,
        }
    }

    fn entries(&mut self, index: u64, log_term: u64, term: u64) -> Vec<Entry> {
        let count = self.random.below(5);
        let mut at = log_term.max(1);
        let mut out = Vec::new();
        for n in 0..count {
            at = if self.random.chance(300_000) { term } else { at };
            let kind = [EntryKind::Noop, EntryKind::Membership, EntryKind::Command, EntryKind::Batch]
                [self.random.below(4) as usize];
            let data = match kind {
                EntryKind::Noop => Bytes::new(),
                EntryKind::Membership => self.change(),
                _ => Bytes::from_static(b"data"),
            };
            let index = index.wrapping_add(1 + n);
            let index = if self.random.chance(20_000) { self.near(index) } else { index };
            out.push(Entry { index, term: at, kind, data });
        }
        out
    }

    fn change(&mut self) -> Bytes {
        let ops = [MembershipOp::AddVoter, MembershipOp::AddLearner, MembershipOp::Remove];
        let count = self.random.below(4);
        let steps = (0..count).map(|_| step(ops[self.random.below(3) as usize], self.random.below(7))).collect();
        if self.random.chance(50_000) {
            return Bytes::from_static(b"\x01garbage");
        }
        wire::encode(&MembershipChange { steps, basis: 0 })
    }

    fn message(&mut self) -> RaftMessage {
        let status = self.raft.status(GROUP).expect("the group runs");
        let kind = KINDS[self.random.below(12) as usize];
        let term = self.near(status.term);
        let index = self.near(status.last_index);
        let log_term = self.near(status.term);
        let entries = if kind == RaftMessageKind::Append || self.random.chance(10_000) {
            self.entries(index, log_term, term)
        } else {
            Vec::new()
        };
        let snapshot = (kind == RaftMessageKind::Snapshot).then(|| {
            let mut membership = membership();
            match self.random.below(6) {
                0 => membership.learners = ids(&[1]),
                1 => membership.voters_outgoing = ids(&[2, 5]),
                2 => membership.learners.clear(),
                3 => membership.voters = ids(&[2]),
                _ => {}
            }
            SnapshotMeta { index: self.near(status.last_index), term: self.near(status.term), membership }
        });
        let to = if self.random.chance(20_000) { self.random.below(7) } else { status.replica.0 };
        RaftMessage {
            kind,
            from: ReplicaId(self.random.below(7)),
            to: ReplicaId(to),
            term,
            log_term,
            index,
            entries,
            commit: self.near(status.commit),
            commit_term: self.near(status.term),
            reject: self.random.chance(300_000),
            reject_hint: self.near(status.last_index),
            request_snapshot: if self.random.chance(20_000) { index } else { 0 },
            context: if self.random.chance(100_000) { Bytes::from_static(b"CampaignTransfer") } else { Bytes::new() },
            priority: self.random.next_u64() as i64,
            snapshot,
        }
    }

    /// As an obliging peer would.
    fn answer(&mut self, message: RaftMessage) {
        let kind = match message.kind {
            RaftMessageKind::Append => RaftMessageKind::AppendResponse,
            RaftMessageKind::Vote => RaftMessageKind::VoteResponse,
            RaftMessageKind::PreVote => RaftMessageKind::PreVoteResponse,
            RaftMessageKind::Heartbeat => RaftMessageKind::HeartbeatResponse,
            _ => return,
        };
        let index = message.entries.last().map_or(message.index, |entry| entry.index);
        let (from, to) = (message.to, message.from);
        let answer = RaftMessage { kind, from, to, index, entries: Vec::new(), snapshot: None, ..message };
        self.accepted += u64::from(self.raft.step(GROUP, answer).is_ok());
    }

    fn disturb(&mut self) {
        let status = self.raft.status(GROUP).expect("the group runs");
        let to = ReplicaId(self.random.below(6));
        match self.random.below(16) {
            0..=3 => {
                self.now_ms += 50;
                let now = Now { mono: Mono(self.now_ms * 1_000_000), wall: Wall(0) };
                self.raft.tick(now);
            }
            4 => self.raft.campaign(GROUP),
            5 => {
                let proposal = Proposal {
                    group: GROUP,
                    term: status.term,
                    kind: EntryKind::Command,
                    data: Bytes::from_static(b"x"),
                };
                let _ = self.raft.propose(proposal);
            }
            6 => {
                let change = MembershipChange { steps: vec![step(MembershipOp::AddLearner, 6)], basis: 0 };
                let _ = self.raft.propose_membership(GROUP, status.term, &change);
            }
            7 => drop(self.raft.read_index(GROUP, Bytes::copy_from_slice(&self.now_ms.to_le_bytes()))),
            8 => self.raft.transfer_leader(GROUP, to),
            9 => {
                let electable = self.random.chance(800_000);
                self.raft.set_electable(electable);
            }
            10 => self.raft.unreachable(GROUP, to),
            11 => {
                let ok = self.random.chance(500_000);
                self.raft.snapshot_reported(GROUP, to, ok);
            }
            12 => {
                let meta = SnapshotMeta { index: status.applied, term: 1, membership: status.membership };
                let first = (status.applied + 1).saturating_sub(self.random.below(3));
                self.raft.checkpointed(GROUP, meta, first);
            }
            13 => {
                for token in std::mem::take(&mut self.reads) {
                    self.raft.entries_fetched(GROUP, token, None);
                }
            }
            14 => self.raft.applied(GROUP, self.committed.min(status.applied + 1)),
            _ => self.raft.applied(GROUP, self.committed),
        }
    }

    fn finish_io(&mut self) {
        self.durable += self.random.below(self.round - self.durable + 1);
        self.raft.persisted(self.durable);
        if let Some(index) = self.installing.take_if(|_| self.random.chance(300_000)) {
            self.raft.snapshot_installed(GROUP, index);
        }
    }

    fn flush(&mut self) {
        let output: Output = self.raft.flush(self.round + 1);
        if output.round > 0 {
            self.round = output.round;
            assert!(self.installing.is_none() || output.installs.is_empty(), "a round beside an install");
        }
        for committed in output.committed {
            for entry in committed.entries {
                assert_eq!(entry.index, self.committed + 1);
                self.committed = entry.index;
            }
        }
        for install in output.installs {
            self.committed = install.meta.index;
            self.installing = Some(install.meta.index);
        }
        for sent in output.sends {
            if self.tame && self.random.chance(500_000) {
                self.answer(sent.message);
            }
        }
        self.roles.extend(output.roles.iter().map(|role| role.role));
        self.reads.extend(output.reads.iter().map(|read| read.token));
    }
}

#[test]
fn any_message_in_any_state_is_refused_or_harmless() {
    let (mut accepted, mut refused, mut led, mut installs) = (0, 0, 0, 0);
    let (range, few) = super::random::seeds(400);
    for seed in range {
        let mut victim = Victim::new(seed);
        let mut installed = 0;
        for _ in 0..3_000 {
            let calm = if victim.tame { 40 } else { 10 };
            match victim.random.below(calm) % 20 {
                0 | 10..=13 => victim.disturb(),
                1 | 14..=16 => victim.finish_io(),
                2 | 17..=19 => victim.flush(),
                _ => {
                    let message = victim.message();
                    match victim.raft.step(GROUP, message) {
                        Ok(()) => victim.accepted += 1,
                        Err(_) => victim.refused += 1,
                    }
                }
            }
            installed += u64::from(victim.installing.is_some());
        }
        accepted += victim.accepted;
        refused += victim.refused;
        led += u64::from(victim.roles.contains(&Role::Leader));
        installs += u64::from(installed > 0);
    }
    println!("{accepted} accepted, {refused} refused, {led} led, {installs} installed");
    assert!(few || (accepted > 10_000 && refused > 10_000 && led > 100 && installs > 100));
}

#[test]
fn a_group_that_is_not_here_is_named_so() {
    let mut victim = Victim::new(0);
    let message = victim.message();
    assert_eq!(victim.raft.step(base::GroupId(99), message.clone()), Err(Refused::UnknownGroup));
    victim.raft.remove(GROUP);
    assert_eq!(victim.raft.step(GROUP, message), Err(Refused::UnknownGroup));
}
