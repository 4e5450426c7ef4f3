//! The network between the nodes: connections as the transport would report them, and frames in order per (from, to,
//! channel), with seeded delay, loss and partitions.
//!
//! Two nodes that know each other hold one connection; it dies when a direction is blocked, when a process is frozen
//! for longer than the transport's idle timeout, or when a node crashes, and whatever was under way dies with it; but what
//! a process had sent before it died may still arrive, until the next one calls. Each side notices in its own time.

use std::collections::BTreeMap;

use base::SplitMix64;
use wire::Channel;

use crate::queue::NodeIx;
use crate::time::{Nanos, ms, us};

/// How long a side needs, at least, to notice a dead connection (measured with the real transport: 1.14 s).
pub const NOTICE: Nanos = ms(1_050);

/// A connection between two nodes, or the lack of one.
#[derive(Default, Debug)]
pub struct Link {
    /// Counts connections.
    pub session: u64,
    pub alive: bool,
    /// Whether the lower and the higher node believe it alive.
    pub believed: [bool; 2],
    /// Its process died, and what it had sent still arrives.
    pub drains: Option<NodeIx>,
    /// A dial is scheduled.
    pub dialling: bool,
}

/// Weather of the whole network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Lost frames per million.
    pub loss: u64,
    /// Extra delay, drawn from `0..=`.
    pub delay: Nanos,
    /// Frames that arrive twice, per million.
    pub duplicates: u64,
    /// Parts of checkpoints in which a bit flips, per million.
    pub damage: u64,
}

impl Weather {
    /// Both at once.
    #[must_use]
    pub fn worse(self, other: Weather) -> Weather {
        Weather {
            loss: self.loss.max(other.loss),
            delay: self.delay.max(other.delay),
            duplicates: self.duplicates.max(other.duplicates),
            damage: self.damage.max(other.damage),
        }
    }
}

/// The network.
pub struct Network {
    links: BTreeMap<(NodeIx, NodeIx), Link>,
    /// Directions that carry nothing, with how many faults block them.
    blocked: BTreeMap<(NodeIx, NodeIx), u32>,
    /// When the last frame of a channel, urgent or not, arrives: the next one of its kind comes after it.
    last: BTreeMap<(NodeIx, NodeIx, Channel, bool), Nanos>,
    pub weather: Weather,
    random: SplitMix64,
    /// For what is damaged: it must not change when frames arrive.
    damages: SplitMix64,
}

impl Network {
    /// A quiet network without connections.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Network {
            links: BTreeMap::new(),
            blocked: BTreeMap::new(),
            last: BTreeMap::new(),
            weather: Weather::default(),
            random: SplitMix64::new(seed),
            damages: SplitMix64::new(!seed),
        }
    }

    /// The link of two nodes, in either order.
    pub fn link(&mut self, one: NodeIx, other: NodeIx) -> &mut Link {
        self.links.entry((one.min(other), one.max(other))).or_default()
    }

    /// Whether frames pass in that direction.
    #[must_use]
    pub fn open(&self, from: NodeIx, to: NodeIx) -> bool {
        !self.blocked.contains_key(&(from, to))
    }

    /// Blocks a direction once more.
    pub fn block(&mut self, from: NodeIx, to: NodeIx) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    /// Takes one block away.
    pub fn unblock(&mut self, from: NodeIx, to: NodeIx) {
        if let Some(count) = self.blocked.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                self.blocked.remove(&(from, to));
            }
        }
    }

    /// Everything passes again.
    pub fn unblock_all(&mut self) {
        self.blocked.clear();
        self.weather = Weather::default();
    }

    /// Whether a frame that was sent over that connection arrives.
    pub fn arrives(&mut self, from: NodeIx, to: NodeIx, session: u64) -> bool {
        let open = self.open(from, to);
        let link = self.link(from, to);
        let drains = link.drains == Some(from) && link.believed[usize::from(to > from)];
        open && link.session == session && (link.alive || drains)
    }

    /// A process died: all that it had sent to another arrives, or nothing.
    pub fn died(&mut self, node: NodeIx, peer: NodeIx) {
        let drains = self.random.chance(500_000);
        let link = self.link(node, peer);
        link.believed[usize::from(node > peer)] = false;
        link.drains = (link.alive && drains).then_some(node);
    }

    /// Whatever is on the way between two nodes never arrives.
    pub fn forget(&mut self, one: NodeIx, other: NodeIx) {
        let link = self.link(one, other);
        (link.session, link.alive, link.believed, link.drains) = (link.session + 1, false, [false, false], None);
    }

    /// Whether frames of that node are on the way.
    #[must_use]
    pub fn carries_from(&self, node: NodeIx, now: Nanos) -> bool {
        self.last.iter().any(|((from, ..), arrives)| *from == node && *arrives > now)
    }

    /// When a frame sent now arrives, and over which connection; `None` if it never does.
    pub fn send(
        &mut self,
        now: Nanos,
        from: NodeIx,
        to: NodeIx,
        (channel, urgent): (Channel, bool),
        bytes: usize,
    ) -> Option<(Nanos, u64)> {
        let side = usize::from(from > to);
        let link = self.link(from, to);
        let session = link.session;
        if !link.alive || !link.believed[side] || !self.open(from, to) || self.random.chance(self.weather.loss) {
            return None;
        }
        // About 1 GB/s, and a control channel that never waits behind bulk.
        let delay = us(self.random.between(80, 600)) + self.random.between(0, self.weather.delay) + bytes as u64;
        let last = self.last.entry((from, to, channel, urgent)).or_default();
        *last = (now + delay).max(*last + 1);
        Some((*last, session))
    }

    /// How much later than the first a second copy of a frame arrives, if there is one.
    pub fn echo(&mut self) -> Option<Nanos> {
        let echoes = self.weather.duplicates > 0 && self.random.chance(self.weather.duplicates);
        echoes.then(|| us(self.random.between(1, 50_000)))
    }

    /// What arrives of a part of a checkpoint, if it is not what was sent: one bit is another.
    pub fn damaged(&mut self, part: &[u8]) -> Option<Vec<u8>> {
        if part.is_empty() || self.weather.damage == 0 || !self.damages.chance(self.weather.damage) {
            return None;
        }
        let mut part = part.to_vec();
        let at = self.damages.below(part.len() as u64) as usize;
        part[at] ^= 1 << self.damages.below(8);
        Some(part)
    }

    /// How long a side takes to notice that a connection is dead.
    pub fn notice_delay(&mut self) -> Nanos {
        NOTICE + us(self.random.between(0, 200_000))
    }

    /// How long until the next try to connect.
    pub fn dial_delay(&mut self) -> Nanos {
        us(self.random.between(1_000, 150_000))
    }
}
