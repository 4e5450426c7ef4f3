//! The world: nodes, network, clients and the fault injector under one clock. This file holds the loop, and the life
//! and death of nodes and connections; what the nodes ask for is carried out in `drive.rs`.

use std::collections::BTreeMap;

use base::{Incarnation, NodeId, SplitMix64, hash64};
use engine::Event;

use crate::check::{Checks, Violation};
use crate::config::{Fault, FaultSet, SimConfig};
use crate::consumers::Consumers;
use crate::finale::Finale;
use crate::formation::Forming;
use crate::intruders::Intruders;
use crate::locks::LockClients;
use crate::mistake::Seam;
use crate::nemesis::Nemesis;
use crate::net::{NOTICE, Network};
use crate::node::{SimNode, Stage};
use crate::queue::{Ev, NodeIx, Queue};
use crate::requests::Requests;
use crate::schedule::End;
use crate::stats::Stats;
use crate::time::{Nanos, ms, us};
use crate::trace::Trace;
use crate::upgrades::refused_as_outdated;
use crate::workload::Client;

/// Between two ticks that a driver gives its core.
const TICK: Nanos = ms(10);

/// Numbers of clients in a world that has a past begin here. The habits of clients repeat after six.
const CLIENTS_OF_ANOTHER_LIFE: usize = 120;

/// Everything of one run.
pub struct World {
    pub cfg: SimConfig,
    pub queue: Queue,
    pub nodes: Vec<SimNode>,
    /// Places by id in the cluster.
    pub places: BTreeMap<NodeId, NodeIx>,
    pub net: Network,
    pub requests: Requests,
    pub clients: Vec<Client>,
    pub consumers: Consumers,
    pub locks: LockClients,
    /// Topics made under contended names.
    pub shared_topics_made: u64,
    /// What was put last under a contended key, perhaps.
    pub shared_value: Option<u64>,
    pub forming: Forming,
    pub intruders: Intruders,
    pub nemesis: Nemesis,
    pub finale: Finale,
    pub checks: Checks,
    /// Clients contend for names: of names that have a past, nothing is known.
    pub names_contended: bool,
    pub stats: Stats,
    pub trace: Trace,
    /// For scheduling delays of processes.
    pub random: SplitMix64,
    pub violation: Option<Violation>,
    pub done: bool,
}

impl World {
    /// A world at its first moment: the founder is about to start.
    #[must_use]
    pub fn new(cfg: SimConfig) -> Self {
        let nodes = (0..cfg.nodes).map(|ix| SimNode::new(ix, cfg.seed)).collect();
        World::of(cfg, nodes, Checks::default())
    }

    /// A world at its first moment, with these machines, some of which may have a past that the checkers know, and with one
    /// more if this run has one that joins only to take another one's place.
    #[must_use]
    pub fn of(cfg: SimConfig, mut nodes: Vec<SimNode>, checks: Checks) -> Self {
        let (seed, nemesis) = (cfg.seed, Nemesis::new(&cfg));
        let present = nodes.len();
        nodes.extend((present..nemesis.schedule.machines).map(|ix| SimNode::new(ix, seed)));
        let recovered = checks.commands.last().is_some();
        let clients = cfg.clients.unwrap_or(cfg.nodes * 2);
        // What they make and write is not what those before them did.
        let first = if recovered { CLIENTS_OF_ANOTHER_LIFE } else { 0 };
        let clients = (0..clients).map(|n| Client::new(first + n, n % cfg.nodes, seed)).collect();
        let places = nodes.iter().filter(|it| it.id() != NodeId(0)).map(|it| (it.id(), it.ix)).collect();
        let mut world = World {
            queue: Queue::default(),
            nodes,
            places,
            net: Network::new(hash64(&[seed, 20])),
            requests: Requests::default(),
            clients,
            consumers: Consumers::new(seed, cfg.nodes),
            locks: LockClients::new(seed),
            shared_topics_made: 0,
            shared_value: None,
            forming: Forming::new(seed),
            intruders: Intruders::new(seed),
            nemesis,
            finale: Finale::default(),
            checks,
            names_contended: !recovered,
            stats: Stats::default(),
            trace: Trace::new(cfg.trace),
            random: SplitMix64::new(hash64(&[seed, 21])),
            violation: None,
            done: false,
            cfg,
        };
        world.prepare();
        world
    }

    fn prepare(&mut self) {
        let has = |faults: &FaultSet, fault| faults.0.contains(&fault);
        for node in &mut self.nodes {
            node.disk.lies_about_sync = self.cfg.breaks(Seam::LyingDisk);
            node.disk.goes_back = self.cfg.breaks(Seam::RestoredDisk);
            if has(&self.cfg.faults, Fault::Vm) {
                (node.host.exits, node.host.failures) = (200_000, 50_000);
            }
        }
        self.install_versions();
        let machines = self.nodes.len();
        let late: Vec<NodeIx> = self.nemesis.schedule.late().chain(self.cfg.nodes..machines).collect();
        for node in 0..machines {
            if self.nodes[node].stage != Stage::Stranger {
                self.start_node(node);
                continue;
            }
            let delay = ms(self.random.between(1, 300));
            self.nodes[node].late = late.contains(&node);
            if !self.nodes[node].late {
                self.queue.after(delay, Ev::Join { node });
            }
        }
        for client in 0..self.clients.len() {
            self.queue.after(ms(500 + 7 * client as u64), Ev::Client { client });
        }
        for consumer in self.consumers.numbers() {
            self.queue.after(ms(700 + 11 * consumer as u64), Ev::Consumer { consumer });
        }
        if self.cfg.locks {
            self.queue.after(ms(600), Ev::Locks);
        }
        self.queue.after(ms(100), Ev::Watch);
        self.queue.at(ms(self.cfg.seconds * 1_000), Ev::Heal);
        if self.nemesis.schedule.from_the_start {
            self.begin_faults();
        }
    }

    /// Runs until a moment, or to the first violation.
    pub fn run_until(&mut self, moment: Nanos) {
        while self.violation.is_none() && self.queue.now < moment {
            let Some(event) = self.queue.pop() else { return };
            self.happen(event);
        }
    }

    /// Runs to the end, or to the first violation.
    pub fn run(&mut self) {
        while self.violation.is_none() && !self.done {
            let Some(event) = self.queue.pop() else {
                self.fail("liveness", "nothing is left to happen".into());
                break;
            };
            self.stats.events += 1;
            self.happen(event);
        }
        self.stats.virtual_time = self.queue.now;
        self.stats.gather(&self.checks);
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Wake { node, boot } => self.wake(node, boot),
            Ev::Tick { node, boot } => self.tick(node, boot),
            Ev::Disk { node, boot, op } => self.disk_done(node, boot, op),
            Ev::Deliver { from, to, channel, session, frame } => self.deliver(from, to, channel, session, &frame),
            Ev::Dial { low, high } => self.dial(low, high),
            Ev::Notice { node, peer, session } => self.notice(node, peer, session),
            Ev::Idle { low, high, session } => self.idle(low, high, session),
            Ev::Vm { node, boot, report } => self.vm_report(node, boot, report),
            Ev::Worked { node, boot, worked } => {
                if self.nodes[node].boot == boot {
                    self.tell(node, Event::Worked(*worked));
                }
            }
            Ev::FormedDurable { node, boot } => {
                if self.nodes[node].boot == boot {
                    self.nodes[node].stage = Stage::Formed;
                }
            }
            Ev::Crash { node, boot, end } => {
                if self.nodes[node].boot == boot {
                    self.crash(node, end);
                }
            }
            Ev::Restart { node } => self.start_node(node),
            Ev::Resume { node } => self.resume(node),
            Ev::Mend(mend) => self.mend(mend),
            Ev::Inject { place } => self.inject(place),
            Ev::Flap { one, other, period, until } => self.flap(one, other, period, until),
            Ev::Rot { node, boot, bit, all } => self.rot(node, boot, &bit, all),
            Ev::Join { node } => self.join(node),
            Ev::Intrude { node } => self.intrude(node),
            Ev::Operate { node } => self.operate(node),
            Ev::Renew { node } => self.renew(node),
            Ev::Watch => self.watch(),
            Ev::Client { client } => self.client_step(client),
            Ev::Consumer { consumer } => self.consumer_step(consumer),
            Ev::Locks => self.locks_step(),
            Ev::Overdue { request } => self.overdue(request),
            Ev::Heal => self.heal(),
            Ev::Finale => self.finale_step(),
        }
    }

    /// Notes the first violation; the run ends with it.
    pub fn fail(&mut self, invariant: &'static str, detail: String) {
        let at = self.queue.now;
        if self.violation.is_none() {
            self.trace.line(at, "!!", || format!("VIOLATION of {invariant}: {detail}"));
            self.violation = Some(Violation { invariant, at, detail });
        }
    }

    /// As [`World::fail`], if a checker objects.
    pub fn check(&mut self, invariant: &'static str, verdict: Result<(), String>) {
        if let Err(detail) = verdict {
            self.fail(invariant, detail);
        }
    }

    // ---- Processes ----

    /// Starts a process, unless it runs or has not been admitted yet.
    pub fn start_node(&mut self, node: NodeIx) {
        let (seed, now) = (self.cfg.seed, self.queue.now);
        let it = &self.nodes[node];
        if it.core.is_some() || it.stage == Stage::Stranger || it.retired {
            return;
        }
        self.move_node(node);
        let it = &mut self.nodes[node];
        it.start(seed, now);
        let boot = it.boot;
        it.known = match &it.stage {
            Stage::Admitted(accepted) => {
                accepted.members.iter().filter_map(|member| place(&member.address.endpoint)).collect()
            }
            // Its file of members outlives the process.
            _ => std::mem::take(&mut it.known),
        };
        self.trace.node(now, node, || format!("starts, incarnation {boot}"));
        let (at_once, later) = self.nodes[node].host.adopt();
        for report in at_once {
            self.checks.machines.said(&report);
            self.tell(node, Event::Vm(report));
        }
        for (delay, report) in later {
            self.queue.after(delay, Ev::Vm { node, boot, report });
        }
        self.wake_soon(node);
        self.queue.after(us(self.random.between(100, 10_000)), Ev::Tick { node, boot });
        for peer in 0..self.nodes.len() {
            if peer != node {
                self.dial_soon(node, peer);
            }
        }
    }

    /// In some runs a node that starts again may be at another address than before. It finds the others, who do not find
    /// it; but if another one has moved as well, perhaps neither has heard of the other, and whoever moves gets a hint where
    /// the others are now.
    fn move_node(&mut self, node: NodeIx) {
        let moves = hash64(&[self.cfg.seed, 12]).is_multiple_of(3) && self.finale.began.is_none();
        let formed = self.nodes[node].stage == Stage::Formed && self.forming.formed_at.is_some();
        if moves && formed && self.random.chance(500_000) {
            let (number, boot) = (node + 1, self.nodes[node].boot % 250);
            let others = || self.nodes.iter().filter(|it| it.ix != node);
            let hints = match others().any(|it| it.moved) {
                true => others().map(|it| (it.ix, it.member.address.direct.clone())).collect(),
                false => BTreeMap::new(),
            };
            self.stats.fault(if hints.is_empty() { "move" } else { "move-with-hint" });
            let it = &mut self.nodes[node];
            (it.moved, it.hints) = (true, hints);
            it.member.address.direct = vec![format!("10.0.{boot}.{number}:7401")];
            self.trace.node(self.queue.now, node, || "has another address".into());
        }
    }

    /// A node that does not know where another one is, although that one is there and in its table.
    pub fn unheard_address(&self, of: NodeIx) -> Option<NodeIx> {
        let gone = |it: &SimNode| it.retired || it.departed || it.stage != Stage::Formed;
        let knows = |it: &SimNode| it.ix == of || gone(it) || self.table_places(it.ix, of);
        if gone(&self.nodes[of]) { None } else { self.nodes.iter().find(|it| !knows(it)).map(|it| it.ix) }
    }

    /// Whether a node finds another one where that is now.
    fn reaches(&self, from: NodeIx, to: NodeIx) -> bool {
        let hint = self.nodes[from].hints.get(&to);
        hint == Some(&self.nodes[to].member.address.direct) || self.table_places(from, to)
    }

    /// Whether a node's table has another one where that is now.
    fn table_places(&self, from: NodeIx, to: NodeIx) -> bool {
        let (from, to) = (&self.nodes[from], &self.nodes[to].member.address);
        let told = from.accepted.as_ref().map(|accepted| &accepted.members[..]).unwrap_or_default();
        let members = if from.members.is_empty() { told } else { &from.members };
        members.iter().any(|member| member.address.endpoint == to.endpoint && member.address.direct == to.direct)
    }

    /// Ends a process, with or without the machine that it runs on.
    pub fn crash(&mut self, node: NodeIx, end: End) {
        if self.nodes[node].core.is_none() {
            return;
        }
        self.mark_crash(node);
        self.trace.node(self.queue.now, node, || if end.killed { "is killed" } else { "crashes" }.into());
        self.end_process(node, end.killed);
        let it = &mut self.nodes[node];
        if self.cfg.breaks(Seam::AmnesiacNode) {
            it.disk.wipe();
            // It forms "its" cluster anew, or believes that it was just admitted.
            it.stage = it.accepted.clone().map_or(Stage::Founder, Stage::Admitted);
        }
        self.queue.after(end.back_in, Ev::Restart { node });
        self.strike_again(node, end);
    }

    /// A node that does not read back what it wrote says so and stops. It is gone for good: what it forgot cannot be
    /// known.
    pub fn retire(&mut self, node: NodeIx, why: &str) {
        self.trace.node(self.queue.now, node, || format!("stops for good: {why}"));
        self.stats.retired += 1;
        (self.nodes[node].retired, self.nodes[node].lost_at) = (true, self.queue.now);
        self.end_process(node, false);
        self.intrude_soon(node);
    }

    pub fn end_process(&mut self, node: NodeIx, killed: bool) {
        let it = &mut self.nodes[node];
        it.stop();
        if killed {
            it.disk.lose_process();
        } else {
            it.disk.crash();
            it.host.crash();
        }
        self.checks.logs.restarted(node);
        self.checks.partitions.restarted(node);
        self.checks.states.restarted(node);
        self.checks.contact.restarted(node, self.queue.now);
        self.checks.leaders.restarted(node);
        self.consumers.restarted(node);
        for peer in 0..self.nodes.len() {
            if peer != node {
                self.net.died(node, peer);
                self.cut(node, peer);
            }
        }
        self.calls_lost(node);
        self.requests_lost(node);
    }

    /// Freezes a process; one that is frozen already goes on when the last reason is over. Whether there is one.
    pub fn freeze(&mut self, node: NodeIx, duration: Nanos) -> bool {
        let it = &mut self.nodes[node];
        if it.core.is_none() {
            return false;
        }
        it.frozen_until = it.frozen_until.max(self.queue.now + duration);
        self.queue.after(duration, Ev::Resume { node });
        if it.frozen {
            return true;
        }
        self.trace.node(self.queue.now, node, || format!("freezes for {} ms", duration / 1_000_000));
        self.mark_freeze(node);
        self.nodes[node].frozen = true;
        self.checks.contact.froze(node, self.queue.now);
        for peer in 0..self.nodes.len() {
            if peer != node {
                self.idle_soon(node, peer);
            }
        }
        true
    }

    fn resume(&mut self, node: NodeIx) {
        if self.nodes[node].frozen && self.queue.now >= self.nodes[node].frozen_until {
            self.trace.node(self.queue.now, node, || "goes on".into());
            self.nodes[node].frozen = false;
            self.nodes[node].resumed = self.queue.now;
            self.checks.contact.resumed(node, self.queue.now);
            self.wake_soon(node);
        }
    }

    fn tick(&mut self, node: NodeIx, boot: u64) {
        if self.nodes[node].boot != boot {
            return;
        }
        self.queue.after(TICK + us(self.random.between(0, 500)), Ev::Tick { node, boot });
        if self.nodes[node].runs() {
            self.watch_contact(node);
            if self.nodes[node].unshown {
                self.nodes[node].show();
            }
            self.tell(node, Event::Tick);
        }
    }

    /// Puts an event into a process's inbox, where it is found even if the process is frozen now.
    pub fn tell(&mut self, node: NodeIx, event: Event) {
        if self.nodes[node].core.is_some() {
            self.nodes[node].inbox.push_back(event);
            self.wake_soon(node);
        }
    }

    /// Lets a process look at its inbox a moment from now.
    pub fn wake_soon(&mut self, node: NodeIx) {
        let it = &mut self.nodes[node];
        if it.awake || !it.runs() {
            return;
        }
        it.awake = true;
        let (boot, busy) = (it.boot, it.busy);
        let late = if busy > 0 { self.random.between(0, busy) } else { 0 };
        self.queue.after(late + us(self.random.between(5, 60)), Ev::Wake { node, boot });
    }

    // ---- Connections ----

    /// Schedules a try to connect two nodes, unless one is scheduled.
    pub fn dial_soon(&mut self, one: NodeIx, other: NodeIx) {
        let (low, high) = (one.min(other), one.max(other));
        let delay = self.net.dial_delay();
        let link = self.net.link(low, high);
        if !link.alive && !link.dialling {
            link.dialling = true;
            self.queue.after(delay, Ev::Dial { low, high });
        }
    }

    fn dial(&mut self, low: NodeIx, high: NodeIx) {
        self.net.link(low, high).dialling = false;
        let (one, other) = (&self.nodes[low], &self.nodes[high]);
        if one.core.is_none() || other.core.is_none() {
            // Whoever starts dials.
            return;
        }
        let answers = one.runs() && other.runs() && self.net.open(low, high) && self.net.open(high, low);
        let life = |of: &SimNode| (of.cluster_incarnation, of.recovery);
        debug_assert!(life(one) == life(other), "nodes of two lives in one world");
        // A member hangs up on former ones, and says why.
        let expelled = [(one, other), (other, one)]
            .into_iter()
            .find(|(caller, called)| answers && called.known_departed.contains(&caller.id()));
        if let Some((node, by)) = expelled.map(|(caller, called)| (caller.ix, called.id())) {
            self.dial_soon(low, high);
            return self.tell(node, Event::Expelled { by });
        }
        if let Some((node, event)) = answers.then(|| refused_as_outdated(one, other)).flatten() {
            self.dial_soon(low, high);
            return self.tell(node, event);
        }
        // Whoever is called learns where the caller is.
        let found = self.reaches(low, high) || self.reaches(high, low);
        if !answers || !found || !one.known.contains(&high) || !other.known.contains(&low) {
            self.dial_soon(low, high);
            return;
        }
        let link = self.net.link(low, high);
        if link.alive {
            return;
        }
        link.alive = true;
        link.drains = None;
        link.session += 1;
        let believed = std::mem::replace(&mut link.believed, [true, true]);
        self.trace.line(self.queue.now, "net", || format!("n{low} and n{high} are connected"));
        for (side, (node, peer)) in [(low, high), (high, low)].into_iter().enumerate() {
            let id = self.nodes[peer].id();
            if believed[side] {
                self.tell(node, Event::PeerDown { node: id });
            }
            let incarnation = Incarnation(self.nodes[peer].boot);
            self.tell(node, Event::PeerUp { node: id, incarnation });
        }
    }

    /// The connection dies; each side that believes in it notices in its own time.
    pub fn cut(&mut self, one: NodeIx, other: NodeIx) {
        let link = self.net.link(one, other);
        if !link.alive {
            return;
        }
        link.alive = false;
        let session = link.session;
        for (node, peer) in [(one, other), (other, one)] {
            if self.net.link(node, peer).believed[usize::from(node > peer)] {
                let delay = self.net.notice_delay();
                self.queue.after(delay, Ev::Notice { node, peer, session });
            }
        }
        self.dial_soon(one, other);
    }

    /// A connection breaks and both sides see it at once. Whether there was one.
    pub fn reset(&mut self, one: NodeIx, other: NodeIx) -> bool {
        let link = self.net.link(one, other);
        let alive = link.alive;
        if alive {
            link.alive = false;
            let session = link.session;
            self.trace.line(self.queue.now, "net", || format!("the connection of n{one} and n{other} breaks"));
            for (node, peer) in [(one, other), (other, one)] {
                self.queue.after(us(300), Ev::Notice { node, peer, session });
            }
            self.dial_soon(one, other);
        }
        alive
    }

    fn notice(&mut self, node: NodeIx, peer: NodeIx, session: u64) {
        let side = usize::from(node > peer);
        let link = self.net.link(node, peer);
        if link.session == session && !link.alive && link.believed[side] {
            link.believed[side] = false;
            let id = self.nodes[peer].id();
            self.tell(node, Event::PeerDown { node: id });
        }
    }

    /// A fault hit a connection: if it still does after the idle timeout, the connection is dead.
    pub fn idle_soon(&mut self, one: NodeIx, other: NodeIx) {
        let (low, high) = (one.min(other), one.max(other));
        let link = self.net.link(low, high);
        if link.alive {
            let session = link.session;
            self.queue.after(NOTICE, Ev::Idle { low, high, session });
        }
    }

    fn idle(&mut self, low: NodeIx, high: NodeIx, session: u64) {
        let hit =
            self.nodes[low].frozen || self.nodes[high].frozen || !self.net.open(low, high) || !self.net.open(high, low);
        let link = self.net.link(low, high);
        if hit && link.alive && link.session == session {
            self.reset(low, high);
        }
    }

    /// A place of a node that runs and has recovered, chosen at random.
    pub fn some_running(&mut self) -> Option<NodeIx> {
        let running: Vec<NodeIx> =
            self.nodes.iter().filter(|node| node.runs() && node.recovered).map(|node| node.ix).collect();
        let pick = self.random.below(running.len() as u64) as usize;
        running.get(pick).copied()
    }
}

/// The place of the machine with that identity.
#[must_use]
pub fn place(endpoint: &base::EndpointId) -> Option<NodeIx> {
    usize::from(endpoint.0[0]).checked_sub(1)
}
