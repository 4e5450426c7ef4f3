//! The fault injector. Each run draws a part of the faults allowed and a pace, so that some runs have one fault often
//! and others have all of them now and then ("swarm testing", Groce et al. 2012).

use std::collections::BTreeMap;

use base::{GroupId, SplitMix64, hash64};
use engine::{Effect, Request, Target};
use journal::DiskOpKind;
use multiraft::Role;

use crate::config::{Fault, SimConfig};
use crate::net::Weather;
use crate::queue::{Ev, Mend, NodeIx};
use crate::requests::{Owner, What};
use crate::time::{Nanos, ms, us};
use crate::world::World;

/// State of the fault injector.
pub struct Nemesis {
    faults: Vec<Fault>,
    /// Mean time between two faults.
    pace: Nanos,
    /// Faults do not wait until the cluster has formed.
    pub from_the_start: bool,
    ids: u64,
    /// Directions that a partition blocks.
    partitions: BTreeMap<u64, Vec<(NodeIx, NodeIx)>>,
    weather: u64,
    disks: BTreeMap<NodeIx, u64>,
    armed: Option<Armed>,
    random: SplitMix64,
}

/// A crash that waits for its moment.
#[derive(Clone, Copy, Debug)]
struct Armed {
    /// The node that is watched.
    node: NodeIx,
    moment: Moment,
    /// All nodes lose power then.
    all: bool,
}

/// When a crash hurts most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// A write has begun and is not durable yet.
    Write,
    /// A candidate or a new leader has made itself known.
    Election,
    /// Something was acknowledged to a client.
    Reply,
}

impl Nemesis {
    /// The faults of this seed, out of those allowed.
    #[must_use]
    pub fn new(cfg: &SimConfig) -> Self {
        let mut random = SplitMix64::new(hash64(&[cfg.seed, 50]));
        let allowed: Vec<Fault> = cfg.faults.0.iter().copied().collect();
        let mut faults: Vec<Fault> = allowed.iter().copied().filter(|_| random.chance(550_000)).collect();
        if faults.is_empty() || cfg.faults.0.len() <= 3 {
            faults = allowed;
        }
        let pace = ms(random.between(100, 1_500));
        let from_the_start = !faults.is_empty() && random.chance(300_000);
        Nemesis {
            faults,
            pace,
            from_the_start,
            ids: 0,
            partitions: BTreeMap::new(),
            weather: 0,
            disks: BTreeMap::new(),
            armed: None,
            random,
        }
    }

    /// Whether this run has the fault.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn node(&mut self, nodes: usize) -> NodeIx {
        self.random.below(nodes as u64) as usize
    }

    /// Mostly short, sometimes long.
    fn span(&mut self, low: u64, high: u64) -> Nanos {
        let high = if self.random.chance(700_000) { low + (high - low) / 5 } else { high };
        ms(self.random.between(low, high))
    }
}

impl World {
    /// The next fault, and the time of the one after it.
    pub fn nemesis_step(&mut self) {
        if self.finale.began.is_some() || self.nemesis.faults.is_empty() {
            return;
        }
        let pace = self.nemesis.pace;
        let next = self.nemesis.random.between(pace / 4, pace * 2);
        self.queue.after(next, Ev::Nemesis);
        let pick = self.nemesis.random.below(self.nemesis.faults.len() as u64) as usize;
        let fault = self.nemesis.faults[pick];
        if self.inject(fault) {
            self.stats.fault(fault.name());
        }
    }

    fn inject(&mut self, fault: Fault) -> bool {
        let count = self.nodes.len();
        let node = self.nemesis.node(count);
        let running = self.nodes[node].runs();
        match fault {
            Fault::Loss | Fault::Delay => self.bad_weather(fault),
            Fault::Reset => {
                let other = self.nemesis.node(count);
                if other != node {
                    self.reset(node, other);
                }
            }
            Fault::Partition => return self.partition(node),
            Fault::Crash | Fault::PowerLoss => {
                let all = fault == Fault::PowerLoss;
                let moment = match self.nemesis.random.below(6) {
                    0 | 1 => Moment::Write,
                    2 | 3 => Moment::Election,
                    4 => Moment::Reply,
                    _ => {
                        self.power_off(node, all, 0);
                        return running;
                    }
                };
                self.nemesis.armed = Some(Armed { node, moment, all });
            }
            Fault::Pause => {
                let duration = self.nemesis.span(20, 6_000);
                self.freeze(node, duration);
            }
            Fault::SlowDisk | Fault::StuckDisk | Fault::FullDisk => self.bad_disk(node, fault),
            // Machines die by themselves, see `vmhost.rs`.
            Fault::Vm => return false,
            Fault::Transfer => return self.transfer(node),
            Fault::WallJump => {
                self.nodes[node].wall_ahead += self.nemesis.random.between(0, 20_000) as i64 - 10_000;
            }
        }
        running
    }

    /// Takes the power from a node or from all, within `soon` from now.
    fn power_off(&mut self, node: NodeIx, all: bool, soon: Nanos) {
        let delay = self.nemesis.random.between(0, soon);
        for node in if all { 0..self.nodes.len() } else { node..node + 1 } {
            let back_in = self.nemesis.span(20, if all { 2_000 } else { 6_000 });
            let boot = self.nodes[node].boot;
            self.queue.after(delay, Ev::Crash { node, boot, back_in });
        }
    }

    /// What a node asks for may be the moment that a crash waits for.
    pub fn watch_effect(&mut self, node: NodeIx, effect: &Effect) {
        let Some(armed) = self.nemesis.armed.filter(|armed| armed.node == node) else { return };
        let its_moment = match effect {
            Effect::Disk(op) => armed.moment == Moment::Write && matches!(op.kind, DiskOpKind::Write { .. }),
            Effect::Role { role, .. } => armed.moment == Moment::Election && *role != Role::Follower,
            Effect::Reply { .. } => armed.moment == Moment::Reply,
            _ => false,
        };
        if its_moment && self.finale.began.is_none() {
            self.nemesis.armed = None;
            self.power_off(node, armed.all, us(400));
        }
    }

    fn next_id(&mut self) -> u64 {
        self.nemesis.ids += 1;
        self.nemesis.ids
    }

    fn bad_weather(&mut self, fault: Fault) {
        let id = self.next_id();
        self.nemesis.weather = id;
        let random = &mut self.nemesis.random;
        let weather = &mut self.net.weather;
        match fault {
            Fault::Loss => weather.loss = random.between(1_000, 300_000),
            _ => weather.delay = ms(random.between(1, 400)),
        }
        self.trace.line(self.queue.now, "net", || format!("weather {weather:?}"));
        let duration = self.nemesis.span(100, 5_000);
        self.queue.after(duration, Ev::Mend(Mend::Weather { id }));
    }

    fn bad_disk(&mut self, node: NodeIx, fault: Fault) {
        let id = self.next_id();
        self.nemesis.disks.insert(node, id);
        let duration = self.nemesis.span(100, 5_000);
        let mood = &mut self.nodes[node].disk.mood;
        match fault {
            Fault::SlowDisk => mood.slow = ms(self.nemesis.random.between(1, 250)),
            Fault::StuckDisk => mood.stuck_until = self.queue.now + duration,
            _ => mood.full = true,
        }
        self.trace.node(self.queue.now, node, || format!("disk {mood:?}"));
        self.queue.after(duration, Ev::Mend(Mend::Disk { node, id }));
    }

    fn partition(&mut self, node: NodeIx) -> bool {
        let count = self.nodes.len();
        if count == 1 {
            return false;
        }
        let other = (node + 1 + self.nemesis.node(count - 1)) % count;
        let others = (0..count).filter(|peer| *peer != node);
        let blocked: Vec<(NodeIx, NodeIx)> = match self.nemesis.random.below(5) {
            // One node is alone.
            0 | 1 => others.flat_map(|peer| [(node, peer), (peer, node)]).collect(),
            // It is heard but does not hear, or the other way round.
            2 => others.map(|peer| (peer, node)).collect(),
            3 => others.map(|peer| (node, peer)).collect(),
            // Two nodes do not reach each other.
            _ => vec![(node, other), (other, node)],
        };
        let id = self.next_id();
        self.trace.line(self.queue.now, "net", || format!("blocked: {blocked:?}"));
        for (from, to) in &blocked {
            self.net.block(*from, *to);
            self.idle_soon(*from, *to);
        }
        self.mark_partition();
        self.nemesis.partitions.insert(id, blocked);
        let duration = self.nemesis.span(100, 8_000);
        self.queue.after(duration, Ev::Mend(Mend::Partition { id }));
        true
    }

    fn transfer(&mut self, node: NodeIx) -> bool {
        if !self.nodes[node].recovered {
            return false;
        }
        let (request, target) = if self.nemesis.random.chance(200_000) {
            (Request::StepDown, Target::Here)
        } else {
            let mut groups = self.groups_to_probe();
            groups.push(GroupId::META);
            let group = groups[self.nemesis.random.below(groups.len() as u64) as usize];
            let to = self.nodes[self.nemesis.node(self.nodes.len())].id();
            (Request::TransferLeader { group, to }, Target::Leader(group))
        };
        self.ask(Owner::Nemesis, node, target, request, What::Other, ms(2_000));
        true
    }

    /// A fault ends.
    pub fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Weather { id } if id == self.nemesis.weather => self.net.weather = Weather::default(),
            Mend::Disk { node, id } if self.nemesis.disks.get(&node) == Some(&id) => {
                self.nodes[node].disk.mood = Default::default();
            }
            Mend::Partition { id } => {
                for (from, to) in self.nemesis.partitions.remove(&id).unwrap_or_default() {
                    self.net.unblock(from, to);
                }
            }
            Mend::Weather { .. } | Mend::Disk { .. } => {}
        }
    }

    /// Every fault ends, and whoever is down starts.
    pub fn mend_all(&mut self) {
        self.net.unblock_all();
        self.nemesis.partitions.clear();
        for node in 0..self.nodes.len() {
            let it = &mut self.nodes[node];
            it.disk.mood = Default::default();
            (it.host.exits, it.host.failures) = (0, 0);
            if it.frozen {
                self.queue.after(0, Ev::Resume { node });
            }
            if it.core.is_none() {
                self.queue.after(ms(20), Ev::Restart { node });
            }
        }
    }
}
