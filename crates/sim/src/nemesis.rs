//! The fault injector: carries out the schedule (`schedule.rs`), crashes what waits for its moment, and ends what lasts.

use std::collections::BTreeMap;

use base::simulation::Mark;
use base::{GroupId, NodeId, SplitMix64, hash64};
use engine::{Effect, Request, Target};
use journal::DiskOpKind;
use multiraft::Role;

use crate::config::{Fault, SimConfig};
use crate::disk::DiskMood;
use crate::net::Weather;
use crate::node::{Order, SimNode};
use crate::queue::{Ev, Mend, NodeIx};
use crate::requests::{Owner, What};
use crate::schedule::{Blow, End, Injection, Moment, Schedule, Shot};
use crate::time::{Nanos, ms, us};
use crate::world::World;

/// What is at rest for this long, on a disk that works, lies below a durable mark.
const AT_REST: Nanos = ms(3_000);

/// State of the fault injector.
pub struct Nemesis {
    pub schedule: Schedule,
    /// Counts what lasts.
    ids: u64,
    /// Directions that a partition blocks.
    partitions: BTreeMap<u64, Vec<(NodeIx, NodeIx)>>,
    /// Bad weather that has not ended: the worst of it is in force.
    weather: BTreeMap<u64, Weather>,
    /// The same of disks.
    disks: BTreeMap<(NodeIx, u64), DiskMood>,
    /// The same of machines: how late their processes run.
    busy: BTreeMap<(NodeIx, u64), Nanos>,
    armed: Vec<Armed>,
    /// For what belongs to no injection.
    pub random: SplitMix64,
}

/// Something that waits for its moment.
#[derive(Clone, Copy, Debug)]
enum Armed {
    /// One such moment of that node is the last: the next one, or the one after so many.
    Crash { node: NodeIx, moment: Moment, skip: u32, all: bool, end: End },
    /// The next node that reaches this suffers.
    At { mark: Mark, blow: Blow, lasts: Nanos, again: bool },
}

impl Nemesis {
    /// The faults of this run.
    #[must_use]
    pub fn new(cfg: &SimConfig) -> Self {
        Nemesis {
            schedule: Schedule::new(cfg),
            ids: 0,
            partitions: BTreeMap::new(),
            weather: BTreeMap::new(),
            disks: BTreeMap::new(),
            busy: BTreeMap::new(),
            armed: Vec::new(),
            random: SplitMix64::new(hash64(&[cfg.seed, 51])),
        }
    }

    /// Whether this run has the fault.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.schedule.kinds.contains(&fault)
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

impl World {
    /// Faults may begin: every injection gets its moment.
    pub fn begin_faults(&mut self) {
        for (place, injection) in self.nemesis.schedule.injections.iter().enumerate() {
            self.queue.after(injection.at, Ev::Inject { place });
        }
    }

    /// An injection's moment has come.
    pub fn inject(&mut self, place: usize) {
        if self.finale.began.is_some() {
            return;
        }
        let Some(injection) = self.nemesis.schedule.injections.get(place).cloned() else { return };
        self.trace.line(self.queue.now, "xx", || injection.shot.to_string());
        if self.shoot(&injection) {
            self.stats.fault(injection.shot.fault().name());
        }
    }

    /// Whether it took place: it can be impossible, or wait for its moment.
    fn shoot(&mut self, injection: &Injection) -> bool {
        match injection.shot.clone() {
            shot @ (Shot::Loss { .. } | Shot::Delay { .. } | Shot::Duplicate { .. } | Shot::Damage { .. }) => {
                return self.shoot_weather(&shot);
            }
            Shot::Reset { one, other } => return self.reset(one, other),
            Shot::Flap { one, other, period, lasts } => {
                let until = self.queue.now + lasts;
                self.queue.after(0, Ev::Flap { one, other, period, until });
            }
            Shot::Partition { blocked, lasts } => self.partition(blocked, lasts),
            Shot::Crash { node, moment: Moment::Now, all, end } => {
                let running = self.nodes.iter().any(|it| (all || it.ix == node) && it.core.is_some());
                self.strike(node, all, 0, end);
                return running;
            }
            // Counted when they strike.
            Shot::Crash { node, moment, all, end } => {
                self.nemesis.armed.push(Armed::Crash { node, moment, skip: 0, all, end });
                return false;
            }
            Shot::At { mark, blow, lasts, again } => {
                self.nemesis.armed.push(Armed::At { mark, blow, lasts, again });
                return false;
            }
            Shot::Pause { node, lasts } => return self.freeze(node, lasts),
            Shot::Busy { node, up_to, lasts } => self.make_busy(node, up_to, lasts),
            Shot::StuckDisk { node, lasts } => self.stick(node, lasts),
            shot @ (Shot::SlowDisk { .. } | Shot::FullDisk { .. } | Shot::BrokenDisk { .. }) => {
                return self.shoot_disk(&shot);
            }
            Shot::BitRot { node } => {
                self.choose_bit(node, injection.salt);
                return false;
            }
            Shot::WallJump { node, by_ms } => self.nodes[node].clock.wall_ahead += by_ms,
            Shot::Drift { node, ppm } => {
                let now = self.queue.now;
                self.nodes[node].clock.drift(now, ppm);
            }
            Shot::Transfer { node, to } => return self.transfer(node, to, injection.salt),
            Shot::StepDown { node } => {
                let asks = self.nodes[node].recovered;
                if asks {
                    self.ask(Owner::Nemesis, node, Target::Here, Request::StepDown, What::Other, ms(2_000));
                }
                return asks;
            }
            Shot::LateJoin { node } => return self.join_late(node),
            Shot::Leave { node, back_in } => return self.order(node, Order::Leave { back_in, with: None }),
            Shot::Destroy { node, noticed, back_in } => return self.destroy(node, noticed, (back_in, None)),
            Shot::Replace { node, with, lost, back_in } => return self.replace(node, with, lost, back_in),
            shot @ (Shot::Upgrade { .. } | Shot::GoBack { .. } | Shot::Hold { .. }) => {
                return self.shoot_upgrade(&shot);
            }
            Shot::Drain { node, lasts } => {
                let drained = self.order(node, Order::Drain);
                if drained {
                    self.queue.after(lasts, Ev::Mend(Mend::Drain { node }));
                }
                return drained;
            }
        }
        true
    }

    /// Ends the process of a node, or all, within `soon` from now.
    fn strike(&mut self, node: NodeIx, all: bool, soon: Nanos, end: End) {
        let delay = self.nemesis.random.between(0, soon);
        for node in if all { 0..self.nodes.len() } else { node..node + 1 } {
            // Not all at the same moment again.
            let later = end.back_in.max(ms(20));
            let back_in = if all { self.nemesis.random.between(ms(20), later) } else { end.back_in };
            let boot = self.nodes[node].boot;
            self.queue.after(delay, Ev::Crash { node, boot, end: End { back_in, ..end } });
        }
    }

    /// A process has ended, and its next one may end soon.
    pub fn strike_again(&mut self, node: NodeIx, end: End) {
        if let Some(skip) = end.again.checked_sub(1)
            && self.finale.began.is_none()
        {
            let end = End { again: 0, ..end };
            self.nemesis.armed.push(Armed::Crash { node, moment: Moment::Write, skip, all: false, end });
        }
    }

    /// What a node asks for may be the moment that a crash waits for.
    pub fn watch_effect(&mut self, node: NodeIx, effect: &Effect) {
        let its_moment = |armed: &Armed| {
            let Armed::Crash { node: watched, moment, .. } = armed else { return false };
            let hit = match effect {
                Effect::Disk(op) => *moment == Moment::Write && matches!(op.kind, DiskOpKind::Write { .. }),
                Effect::Role { role, .. } => *moment == Moment::Election && *role != Role::Follower,
                Effect::Reply { .. } => *moment == Moment::Reply,
                _ => false,
            };
            hit && *watched == node
        };
        let Some(place) = self.nemesis.armed.iter().position(its_moment) else { return };
        if let Armed::Crash { skip, .. } = &mut self.nemesis.armed[place]
            && *skip > 0
        {
            *skip -= 1;
            return;
        }
        if let Armed::Crash { all, end, .. } = self.nemesis.armed.swap_remove(place)
            && self.finale.began.is_none()
        {
            self.stats.fault(Fault::of_crash(all, end.killed).name());
            self.strike(node, all, us(400), end);
        }
    }

    /// A node reached rare states: one of them may be what a blow waits for.
    pub fn watch_marks(&mut self, node: NodeIx, reached: &BTreeMap<Mark, u64>) {
        if self.finale.began.is_some() {
            return;
        }
        let hit = |armed: &Armed| matches!(armed, Armed::At { mark, .. } if reached.contains_key(mark));
        let Some(place) = self.nemesis.armed.iter().position(hit) else { return };
        let Armed::At { mark, blow, lasts, again } = self.nemesis.armed.swap_remove(place) else { return };
        if again {
            self.nemesis.armed.push(Armed::At { mark, blow, lasts, again: false });
        }
        self.trace.node(self.queue.now, node, || format!("reached {:?}: {blow:?}", mark.name()));
        self.stats.fault(Fault::Moment.name());
        match blow {
            Blow::Crash => self.strike(node, false, us(400), End { killed: false, back_in: lasts, again: 0 }),
            Blow::Kill => self.strike(node, false, us(400), End { killed: true, back_in: lasts, again: 0 }),
            Blow::CrashAll => self.strike(node, true, us(400), End { killed: false, back_in: lasts, again: 0 }),
            Blow::Pause => drop(self.freeze(node, lasts)),
            Blow::StuckDisk => self.stick(node, lasts),
            Blow::Isolate => {
                let others = (0..self.nodes.len()).filter(|peer| *peer != node);
                self.partition(others.flat_map(|peer| [(node, peer), (peer, node)]).collect(), lasts);
            }
        }
    }

    fn shoot_weather(&mut self, shot: &Shot) -> bool {
        let calm = Weather::default();
        let (lasts, weather) = match *shot {
            Shot::Loss { per_million, lasts } => (lasts, Weather { loss: per_million, ..calm }),
            Shot::Delay { up_to, lasts } => (lasts, Weather { delay: up_to, ..calm }),
            Shot::Duplicate { per_million, lasts } => (lasts, Weather { duplicates: per_million, ..calm }),
            Shot::Damage { per_million, lasts } => (lasts, Weather { damage: per_million, ..calm }),
            _ => return false,
        };
        self.bad_weather(lasts, weather);
        // Counted when it strikes.
        !matches!(shot, Shot::Damage { .. })
    }

    fn bad_weather(&mut self, lasts: Nanos, weather: Weather) {
        let id = self.nemesis.next_id();
        self.nemesis.weather.insert(id, weather);
        self.set_weather();
        self.queue.after(lasts, Ev::Mend(Mend::Weather { id }));
    }

    fn set_weather(&mut self) {
        self.net.weather = self.nemesis.weather.values().copied().fold(Weather::default(), Weather::worse);
    }

    fn shoot_disk(&mut self, shot: &Shot) -> bool {
        let works = DiskMood::default();
        let (node, lasts, mood) = match *shot {
            Shot::SlowDisk { node, by, lasts } => (node, lasts, DiskMood { slow: by, ..works }),
            Shot::FullDisk { node, lasts } => (node, lasts, DiskMood { full: true, ..works }),
            Shot::BrokenDisk { node, lasts } => (node, lasts, DiskMood { broken: true, ..works }),
            _ => return false,
        };
        self.bad_disk(node, lasts, mood);
        // Counted when it strikes.
        !mood.broken
    }

    fn stick(&mut self, node: NodeIx, lasts: Nanos) {
        let stuck_until = self.queue.now + lasts;
        self.bad_disk(node, lasts, DiskMood { stuck_until, ..DiskMood::default() });
    }

    fn bad_disk(&mut self, node: NodeIx, lasts: Nanos, mood: DiskMood) {
        let id = self.nemesis.next_id();
        self.nemesis.disks.insert((node, id), mood);
        self.set_mood(node);
        self.queue.after(lasts, Ev::Mend(Mend::Disk { node, id }));
    }

    fn make_busy(&mut self, node: NodeIx, up_to: Nanos, lasts: Nanos) {
        let id = self.nemesis.next_id();
        self.nemesis.busy.insert((node, id), up_to);
        self.set_busy(node);
        self.queue.after(lasts, Ev::Mend(Mend::Busy { node, id }));
    }

    fn set_busy(&mut self, node: NodeIx) {
        let all = self.nemesis.busy.range((node, 0)..=(node, u64::MAX));
        self.nodes[node].busy = all.map(|(_, up_to)| *up_to).max().unwrap_or(0);
    }

    fn set_mood(&mut self, node: NodeIx) {
        let moods = self.nemesis.disks.range((node, 0)..=(node, u64::MAX)).map(|(_, mood)| *mood);
        let worst = moods.fold(DiskMood::default(), DiskMood::worse);
        self.nodes[node].disk.set_mood(worst, self.queue.now);
    }

    fn partition(&mut self, blocked: Vec<(NodeIx, NodeIx)>, lasts: Nanos) {
        let id = self.nemesis.next_id();
        for (from, to) in &blocked {
            self.net.block(*from, *to);
            self.idle_soon(*from, *to);
        }
        self.mark_partition();
        self.nemesis.partitions.insert(id, blocked);
        self.queue.after(lasts, Ev::Mend(Mend::Partition { id }));
    }

    /// A flapping link goes down for a period, then up for one.
    pub fn flap(&mut self, one: NodeIx, other: NodeIx, period: Nanos, until: Nanos) {
        if self.finale.began.is_some() || self.queue.now >= until {
            return;
        }
        self.partition(vec![(one, other), (other, one)], period);
        self.queue.after(2 * period, Ev::Flap { one, other, period, until });
    }

    fn transfer(&mut self, node: NodeIx, to: NodeIx, salt: u64) -> bool {
        if !self.nodes[node].recovered {
            return false;
        }
        let mut groups = self.groups_to_probe();
        groups.push(GroupId::META);
        let group = groups[(salt % groups.len() as u64) as usize];
        let request = Request::TransferLeader { group, to: self.nodes[to].id() };
        self.ask(Owner::Nemesis, node, Target::Leader(group), request, What::Other, ms(2_000));
        true
    }

    // ---- Bits that flip ----

    /// Whether a bit of that node may flip. The others must be enough without it, for every group: then the node may
    /// refuse to go on. What lies above the last durable mark may not flip (see the crate's documentation).
    fn may_rot(&self, node: NodeIx) -> bool {
        let now = self.queue.now;
        self.may_lose(node) && self.nodes.iter().all(|it| it.disk.quiet(now))
    }

    /// Whether the others are enough without that node, for every group.
    pub fn may_lose(&self, node: NodeIx) -> bool {
        let sound = self.nodes.iter().all(|it| (!it.retired || it.departed) && !it.disk.is_rotten());
        let it = &self.nodes[node];
        sound && self.formed() && it.recovered && it.runs() && self.nodes.len() >= 3 && self.spares_any()
    }

    /// Whether every group goes on without any one of its replicas. One that was given out does not vote until it has
    /// caught up, and all others must know that it does. (They must have written it down, too: that is a write that is
    /// under way at worst, on disks that work.)
    fn spares_any(&self) -> bool {
        let knows = |id: NodeId, group: GroupId, index: u64| {
            let core = self.places.get(&id).and_then(|place| self.nodes[*place].core.as_ref());
            core.and_then(|core| core.raft_status(group)).is_some_and(|status| status.applied >= index)
        };
        let spared = |group: GroupId, hosts: Vec<NodeId>| {
            let index = self.checks.members.spares_one(group);
            index.is_some_and(|index| hosts.into_iter().all(|id| knows(id, group, index)))
        };
        self.checks.commands.last().is_some_and(|state| {
            let hosts = |partition: &metadata::PartitionRecord| partition.replicas.iter().map(|it| it.node).collect();
            spared(GroupId::META, state.nodes.keys().copied().collect())
                && state.partitions.values().all(|partition| spared(partition.group, hosts(partition)))
        })
    }

    fn choose_bit(&mut self, node: NodeIx, salt: u64) {
        if !self.may_rot(node) {
            return;
        }
        let Some(bit) = self.nodes[node].disk.some_bit(salt) else { return };
        let boot = self.nodes[node].boot;
        let all = hash64(&[salt, 1]).is_multiple_of(2);
        self.queue.after(AT_REST, Ev::Rot { node, boot, bit: Box::new(bit), all });
    }

    /// The bit was at rest for long enough if nothing was written around it, and flips. With `all`, all nodes lose power at
    /// that moment, if everything that they know is on their disks: then one of them is gone for good, and the others have
    /// nothing but what they wrote down. Where it ends alone they go on, and write that down before they lose anything.
    pub fn rot(&mut self, node: NodeIx, boot: u64, bit: &crate::disk::Bit, all: bool) {
        if self.finale.began.is_none() && self.nodes[node].boot == boot && self.may_rot(node) {
            let it = &mut self.nodes[node];
            if it.disk.flip(bit) {
                self.stats.fault(Fault::BitRot.name());
                self.trace.node(self.queue.now, node, || format!("a bit flips: {bit}"));
                let end = End { killed: false, back_in: ms(200), again: 0 };
                let written = |it: &SimNode| it.inbox.is_empty() && it.disk.under_way().next().is_none();
                if all && self.nodes.iter().all(written) {
                    self.stats.fault("bit-rot-in-power-loss");
                    return self.strike(node, true, 0, end);
                }
                // Most of what a node wrote is read again only by its next process.
                let delay = self.nemesis.random.between(ms(50), ms(2_000));
                self.strike(node, false, delay, end);
            }
        }
    }

    /// A node found what flipped, and stops. Sometimes what was read wrong is what flipped, not what stands on the disk:
    /// its next process must find nothing wrong.
    pub fn found_rotten(&mut self, node: NodeIx, why: &str) {
        if self.nemesis.random.chance(500_000) {
            self.retire(node, why);
            return self.give_up(node);
        }
        self.trace.node(self.queue.now, node, || format!("stops, and the bit flips back: {why}"));
        self.stats.fault("bit-rot-undone");
        self.nodes[node].disk.flip_back();
        let back_in = ms(self.nemesis.random.between(20, 2_000));
        self.crash(node, End { killed: false, back_in, again: 0 });
    }

    /// A node was told of an error by its disk, and stops: all that it may do. It is started again, perhaps while the disk is
    /// still broken, and perhaps on a machine that has lost what was not synced.
    pub fn stopped_by_disk(&mut self, node: NodeIx, why: &str) {
        self.trace.node(self.queue.now, node, || format!("stops: {why}"));
        self.stats.fault(Fault::BrokenDisk.name());
        let back_in = ms(self.nemesis.random.between(20, 2_000));
        let killed = self.nemesis.random.chance(500_000);
        self.crash(node, End { killed, back_in, again: 0 });
    }

    // ---- The end of faults ----

    /// A fault ends.
    pub fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Weather { id } => {
                self.nemesis.weather.remove(&id);
                self.set_weather();
            }
            Mend::Disk { node, id } => {
                self.nemesis.disks.remove(&(node, id));
                self.set_mood(node);
            }
            Mend::Busy { node, id } => {
                self.nemesis.busy.remove(&(node, id));
                self.set_busy(node);
            }
            Mend::Drain { node } => self.end_drain(node),
            Mend::Partition { id } => {
                for (from, to) in self.nemesis.partitions.remove(&id).unwrap_or_default() {
                    self.net.unblock(from, to);
                }
            }
        }
    }

    /// Every fault ends that can, and whoever is down starts. Clocks stay as wrong as they are.
    pub fn mend_all(&mut self) {
        self.net.unblock_all();
        self.nemesis.partitions.clear();
        self.nemesis.armed.clear();
        self.nemesis.weather.clear();
        self.nemesis.disks.clear();
        self.nemesis.busy.clear();
        for node in 0..self.nodes.len() {
            self.set_mood(node);
            self.set_busy(node);
            let it = &mut self.nodes[node];
            (it.host.exits, it.host.failures) = (0, 0);
            if it.frozen {
                it.frozen_until = self.queue.now;
                self.queue.after(0, Ev::Resume { node });
            }
            let boot = it.boot;
            match &it.core {
                None => self.queue.after(ms(20), Ev::Restart { node }),
                // It finds out now, not when all is to be quiet.
                Some(_) if it.disk.is_rotten() => {
                    self.queue.after(0, Ev::Crash { node, boot, end: End { killed: false, back_in: ms(20), again: 0 } })
                }
                Some(_) => {}
            }
            self.join_late(node);
        }
    }
}
