//! One simulated machine: its clocks, its disk, its hypervisor host, and the process on it (the real core).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{EndpointId, GroupId, Incarnation, Mono, NodeId, Now, RecoveryId, VersionRange, Wall, hash64, limits};
use engine::{CoreConfig, Event, Formation, LeaderInfo, NodeCore};
use metadata::Metadata;
use wire::{Capabilities, JoinAccepted, Member, NodeAddress};

use crate::disk::VirtualDisk;
use crate::queue::NodeIx;
use crate::schedule::Successor;
use crate::time::Nanos;
use crate::vmhost::VmHost;

/// What every machine has for VMs.
pub const HOST_MEMORY_MIB: u64 = 16_384;
/// 2025-01-01T00:00:00Z.
const WALL_START: i64 = 1_735_689_600_000;

/// What the machine's files say about its membership.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Nothing: it must be admitted.
    Stranger,
    /// It forms the cluster.
    Founder,
    /// It was admitted.
    Admitted(Box<JoinAccepted>),
    /// Its replica of `__meta` is durable.
    Formed,
}

/// A machine.
pub struct SimNode {
    pub ix: NodeIx,
    pub member: Member,
    pub stage: Stage,
    /// What it was told when it was admitted.
    pub accepted: Option<Box<JoinAccepted>>,
    /// When the process went on after standing still.
    pub resumed: Nanos,
    /// It has been at another address.
    pub moved: bool,
    /// Where an operator said that the others are, when it was started at another address.
    pub hints: BTreeMap<NodeIx, Vec<String>>,
    /// Counts starts of the process; the incarnation.
    pub boot: u64,
    /// The process, while it runs.
    pub core: Option<NodeCore>,
    /// The process stands still.
    pub frozen: bool,
    /// Not before this moment does it go on.
    pub frozen_until: Nanos,
    pub inbox: VecDeque<Event>,
    /// The process looks up to this much later at its inbox: the machine has other things to do.
    pub busy: Nanos,
    /// A look at the inbox is scheduled.
    pub awake: bool,
    pub recovered: bool,
    /// Machines that it knows how to reach.
    pub known: BTreeSet<NodeIx>,
    /// The members, as its core said.
    pub members: Vec<Member>,
    /// Who leads what, as its core said.
    pub leaders: BTreeMap<GroupId, LeaderInfo>,
    /// The cluster's state as this process showed it last.
    pub shown: Metadata,
    /// It is to be shown with the next tick.
    pub unshown: bool,
    pub disk: VirtualDisk,
    pub host: VmHost,
    pub clock: Clock,
    /// Its last install of a checkpoint ended with a crash.
    pub last_install_failed: bool,
    /// It is to join when others have formed the cluster.
    pub late: bool,
    /// It refused to go on with its damaged disk, its machine is lost, or it has left: it never starts again.
    pub retired: bool,
    /// When it was lost.
    pub lost_at: Nanos,
    /// When some process that runs may not have heard of it just before.
    pub unheard_at: Nanos,
    /// What an operator wants to become of it.
    pub order: Option<Order>,
    /// The cluster has forgotten it.
    pub departed: bool,
    /// Former members, as its core said.
    pub known_departed: BTreeSet<NodeId>,
    /// It was started as an older node than it had been: what its record says may not be true any more.
    pub went_back: bool,
    /// How often its machine was made anew.
    generation: u8,
    /// Of the cluster, as its files say.
    pub cluster_incarnation: Incarnation,
    /// Which recovery that was, if there was one.
    pub recovery: Option<RecoveryId>,
}

/// An operator's order, until it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Drain,
    Resume,
    Leave {
        back_in: Option<Nanos>,
        with: Option<Successor>,
    },
    /// Its machine is lost.
    Remove {
        back_in: Option<Nanos>,
        with: Option<Successor>,
    },
}

/// The clocks of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What the monotonic clock showed at `since`.
    mono: Nanos,
    /// World time of the last change of pace.
    since: Nanos,
    /// How much faster than the world it runs, in parts per million.
    ppm: i64,
    /// The wall clock is ahead of the monotonic one by this many milliseconds.
    pub wall_ahead: i64,
}

impl Clock {
    fn mono(&self, world: Nanos) -> Nanos {
        let passed = world - self.since;
        let gained = i128::from(passed) * i128::from(self.ppm) / 1_000_000;
        self.mono + passed.saturating_add_signed(gained as i64)
    }

    /// From now on both clocks run at another pace.
    pub fn drift(&mut self, world: Nanos, ppm: i64) {
        *self = Clock { mono: self.mono(world), since: world, ppm, ..*self };
    }
}

impl SimNode {
    /// A machine that was never started.
    #[must_use]
    pub fn new(ix: NodeIx, seed: u64) -> Self {
        let salt = |purpose: u64| hash64(&[seed, purpose, ix as u64]);
        let stage = if ix == 0 { Stage::Founder } else { Stage::Stranger };
        SimNode {
            ix,
            member: Member { labels: labels(ix, seed), ..member(ix, 0) },
            stage,
            accepted: None,
            resumed: 0,
            moved: false,
            hints: BTreeMap::new(),
            boot: 0,
            core: None,
            frozen: false,
            frozen_until: 0,
            inbox: VecDeque::new(),
            busy: 0,
            awake: false,
            recovered: false,
            known: BTreeSet::new(),
            members: Vec::new(),
            leaders: BTreeMap::new(),
            shown: Metadata::default(),
            unshown: false,
            disk: VirtualDisk::new(salt(1)),
            host: VmHost::new(salt(2)),
            clock: {
                let mono = salt(3) % 1_000_000_000_000;
                let off = (salt(4) % 4_000) as i64 - 2_000;
                Clock { mono, since: 0, ppm: 0, wall_ahead: off - (mono / 1_000_000) as i64 }
            },
            last_install_failed: false,
            late: false,
            retired: false,
            lost_at: 0,
            unheard_at: 0,
            order: None,
            departed: false,
            known_departed: BTreeSet::new(),
            went_back: false,
            generation: 0,
            cluster_incarnation: Incarnation(0),
            recovery: None,
        }
    }

    /// The machine after the cluster was recovered from what it holds: its clocks begin anew, too.
    #[must_use]
    pub fn survive(self, seed: u64, disk: VirtualDisk, store: u64, state: &Metadata) -> Self {
        let fresh = SimNode::new(self.ix, hash64(&[seed, 11]));
        SimNode {
            disk,
            member: Member { store, ..self.member },
            stage: Stage::Formed,
            boot: self.boot,
            host: self.host,
            generation: self.generation,
            went_back: self.went_back,
            cluster_incarnation: state.cluster_incarnation,
            recovery: state.recovery,
            ..fresh
        }
    }

    /// The machine is set up anew: another node, of which nobody has heard.
    pub fn renew(&mut self, seed: u64) {
        let (boot, clock, generation) = (self.boot, self.clock, self.generation + 1);
        let fresh = SimNode::new(self.ix, hash64(&[seed, 8, u64::from(generation)]));
        // Whatever is installed there stays installed, and where it stands is where it stood.
        let labels = self.member.labels.clone();
        let member = Member { versions: self.member.versions, labels, ..member(self.ix, generation) };
        *self = SimNode { boot, clock, generation, member, stage: Stage::Stranger, ..fresh };
    }

    /// Both of its clocks.
    #[must_use]
    pub fn now(&self, world: Nanos) -> Now {
        let mono = self.clock.mono(world);
        let wall = WALL_START + (mono / 1_000_000) as i64 + self.clock.wall_ahead;
        Now { mono: Mono(mono), wall: Wall(wall) }
    }

    /// The process runs and is not frozen.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.core.is_some() && !self.frozen
    }

    /// Its id in the cluster, once admitted.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.member.node
    }

    /// What a process that starts now is told. On a stranger's machine none does.
    #[must_use]
    pub fn config(&self, seed: u64) -> Option<CoreConfig> {
        let formation = match &self.stage {
            Stage::Stranger => return None,
            Stage::Founder => Formation::Bootstrap,
            Stage::Admitted(accepted) => Formation::Join(accepted.clone()),
            Stage::Formed => Formation::Restart,
        };
        let sizes = sizes(seed);
        Some(CoreConfig {
            me: self.member.clone(),
            cluster: cluster_id(seed),
            formation,
            incarnation: Incarnation(self.boot),
            seed: hash64(&[seed, 5, self.ix as u64, self.boot]),
            // So small that runs recycle segments, truncate logs and install snapshots.
            segment_bytes: segment_bytes(seed),
            checkpoint_entries: 10 + sizes / 3 % 60,
            checkpoint_keep_entries: sizes / 180 % 20,
            checkpoint_part_bytes: 512 << (sizes / 3_600 % 8),
            checkpoint_bytes_max: limits::CHECKPOINT_BYTES_MAX,
            election_timeout: limits::ELECTION_TIMEOUT_MIN,
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            node_lost_after: base::Millis(4_000 + sizes / 100_000 % 12_000),
            observe: true,
        })
    }

    /// Starts the process.
    pub fn start(&mut self, seed: u64, world: Nanos) {
        self.boot += 1;
        if let Some(config) = self.config(seed) {
            self.core = Some(NodeCore::new(config, self.now(world)));
        }
    }

    /// The core says that its state changed: what need not be seen at once is shown with the next tick.
    pub fn changed(&mut self, at_once: bool) {
        self.unshown = true;
        if at_once {
            self.show();
        }
    }

    /// Those who look see what the core has applied.
    pub fn show(&mut self) {
        self.unshown = false;
        self.shown = self.core.as_ref().map(NodeCore::metadata).cloned().unwrap_or_default();
    }

    /// The process is gone, and what it had in memory with it.
    pub fn stop(&mut self) {
        self.core = None;
        self.boot += 1;
        (self.frozen, self.frozen_until) = (false, 0);
        self.inbox.clear();
        self.awake = false;
        self.recovered = false;
        self.leaders.clear();
        (self.shown, self.unshown) = (Metadata::default(), false);
        self.known_departed.clear();
    }
}

fn sizes(seed: u64) -> u64 {
    hash64(&[seed, 7])
}

/// Of a run's journals.
#[must_use]
pub fn segment_bytes(seed: u64) -> u64 {
    (16 << 10) << (sizes(seed) % 5)
}

/// The cluster of a run.
#[must_use]
pub fn cluster_id(seed: u64) -> base::ClusterId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&hash64(&[seed, 6]).to_be_bytes());
    base::ClusterId(id)
}

/// In some runs nodes have zones, two or three of them in all; not every node has one.
fn labels(ix: NodeIx, seed: u64) -> BTreeMap<String, String> {
    let zones = hash64(&[seed, 9]) % 4;
    let zone = hash64(&[seed, 10, ix as u64]) % 8;
    let of_zones = || format!("{}", zone % zones);
    let labelled = zones >= 2 && zone < 7;
    labelled.then(|| (metadata::ZONE_LABEL.to_owned(), of_zones())).into_iter().collect()
}

fn member(ix: NodeIx, generation: u8) -> Member {
    let number = ix + 1;
    let mut endpoint = [number as u8; 32];
    endpoint[1] = generation;
    Member {
        // The founder is node 1; the others learn their ids when they are admitted.
        node: NodeId(u64::from(ix == 0 && generation == 0)),
        name: format!("sim-{number}"),
        address: NodeAddress {
            endpoint: EndpointId(endpoint),
            direct: vec![format!("10.0.0.{number}:7401")],
            relay_url: None,
            kafka: format!("10.0.0.{number}:9092"),
            api: format!("10.0.0.{number}:7400"),
        },
        capabilities: Capabilities {
            cores: 8,
            memory_mib: HOST_MEMORY_MIB,
            disk_mib: 100_000,
            architecture: "x86_64".into(),
            hypervisors: vec!["qemu 7.2.22".into()],
            accelerator: "tcg".into(),
            version: "simulated".into(),
        },
        labels: BTreeMap::new(),
        store: 1 + u64::from(generation),
        versions: VersionRange::BINARY,
    }
}
