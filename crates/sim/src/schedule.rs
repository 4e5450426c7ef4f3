//! What will go wrong in a run, drawn from its seed before the run begins: a list of faults, each with its moment and
//! everything else about it. The run only carries the list out. So a fault can be left out and the others stay what they
//! were, which is what shrinking a failure needs.
//!
//! Each seed draws a part of the faults allowed and a pace, so that some runs have one fault often and others have all of
//! them now and then ("swarm testing", Groce et al. 2012).

use std::collections::BTreeSet;
use std::fmt;

use base::simulation::Mark;
use base::{SplitMix64, hash64};

use crate::config::{Fault, SimConfig};
use crate::queue::NodeIx;
use crate::time::{Nanos, ms};

/// One fault of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// From the moment at which faults may begin: the start of the run, or when the cluster has formed.
    pub at: Nanos,
    pub shot: Shot,
    /// For what is drawn only when it happens, and depends on what is there then.
    pub salt: u64,
}

/// What an injection does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shot {
    /// Frames are lost, per million.
    Loss { per_million: u64, lasts: Nanos },
    /// Frames come up to this much later.
    Delay { up_to: Nanos, lasts: Nanos },
    /// Frames arrive twice, per million.
    Duplicate { per_million: u64, lasts: Nanos },
    /// Parts of checkpoints are damaged on their way, per million.
    Damage { per_million: u64, lasts: Nanos },
    /// The connection of two nodes breaks.
    Reset { one: NodeIx, other: NodeIx },
    /// A link goes up and down, each for `period`.
    Flap { one: NodeIx, other: NodeIx, period: Nanos, lasts: Nanos },
    /// Directions carry nothing.
    Partition { blocked: Vec<(NodeIx, NodeIx)>, lasts: Nanos },
    /// The process of a node, or all, ends: now, or at the next moment of that kind in `node`.
    Crash { node: NodeIx, moment: Moment, all: bool, end: End },
    /// Whichever node next reaches the state suffers, and so does the next one if it is to happen `again`.
    At { mark: Mark, blow: Blow, lasts: Nanos, again: bool },
    /// A process stands still.
    Pause { node: NodeIx, lasts: Nanos },
    /// A process looks up to this much later at what has come for it.
    Busy { node: NodeIx, up_to: Nanos, lasts: Nanos },
    /// A disk adds up to this much to each operation.
    SlowDisk { node: NodeIx, by: Nanos, lasts: Nanos },
    /// A disk completes nothing.
    StuckDisk { node: NodeIx, lasts: Nanos },
    /// A disk has no space.
    FullDisk { node: NodeIx, lasts: Nanos },
    /// A disk changes nothing, and says so.
    BrokenDisk { node: NodeIx, lasts: Nanos },
    /// A bit that has been at rest on a disk is flipped.
    BitRot { node: NodeIx },
    /// A wall clock jumps.
    WallJump { node: NodeIx, by_ms: i64 },
    /// A node's clocks run fast or slow from now on, by parts per million.
    Drift { node: NodeIx, ppm: i64 },
    /// A leadership is handed over on request.
    Transfer { node: NodeIx, to: NodeIx },
    /// A node hands over all it leads, as before a stop.
    StepDown { node: NodeIx },
    /// A node asks to join only that long after the first ones.
    LateJoin { node: NodeIx },
    /// A node is told to leave; `back_in`: how long after that its machine joins anew, with an empty disk.
    Leave { node: NodeIx, back_in: Option<Nanos> },
    /// A machine is gone for good, which an operator notices after `noticed`.
    Destroy { node: NodeIx, noticed: Nanos, back_in: Option<Nanos> },
    /// A node is replaced. Its machine is gone for good, which an operator notices after `lost`, or (`None`) it is there and
    /// hands over.
    Replace { node: NodeIx, with: Successor, lost: Option<Nanos>, back_in: Option<Nanos> },
    /// A node is drained, and resumed later.
    Drain { node: NodeIx, lasts: Nanos },
    /// A node is stopped, and started as a newer one.
    Upgrade { node: NodeIx, lasts: Nanos },
    /// A node is stopped, and started as the older one that it was.
    GoBack { node: NodeIx, lasts: Nanos },
    /// An operator holds the cluster's version, or lets it go, through a node.
    Hold { node: NodeIx, hold: bool },
}

/// Who is to take a node's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    pub node: NodeIx,
    /// The operator names it only when all have heard of it for a while, not as soon as it is a member.
    pub proven: bool,
}

/// How a process ends, and what comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The machine goes on: the operating system has what was written, and VMs run on.
    pub killed: bool,
    pub back_in: Nanos,
    /// It ends again, likewise, during this one of the writes of its next life; 0: it does not.
    pub again: u32,
}

/// When a crash hurts most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Whatever happens.
    Now,
    /// A write has begun and is not durable yet.
    Write,
    /// A candidate or a new leader has made itself known.
    Election,
    /// Something was acknowledged to a client.
    Reply,
}

/// What befalls the node that reaches a rare state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    Crash,
    Kill,
    CrashAll,
    Pause,
    /// Nobody hears it and it hears nobody.
    Isolate,
    StuckDisk,
}

/// Everything that goes wrong in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Faults do not wait until the cluster has formed.
    pub from_the_start: bool,
    /// The kinds drawn; some work all the time (see `vmhost.rs` and `intruders.rs`).
    pub kinds: BTreeSet<Fault>,
    pub injections: Vec<Injection>,
    /// So many machines take part: one more than the cluster has nodes if one joins only to take another one's place.
    pub machines: usize,
}

/// Drift of quartz clocks is below 200 ppm; virtual machines and broken time daemons have been seen at several thousand.
const DRIFT_PPM_MAX: i64 = 20_000;

impl Schedule {
    /// The schedule of this seed, out of the faults allowed, without those that the configuration leaves out. Its
    /// beginning does not depend on how long the run is.
    #[must_use]
    pub fn new(cfg: &SimConfig) -> Self {
        let mut random = SplitMix64::new(hash64(&[cfg.seed, 50]));
        let apart = [Fault::Upgrade, Fault::Damage, Fault::Busy, Fault::BrokenDisk, Fault::Replace, Fault::Intruder];
        let allowed: Vec<Fault> = cfg.faults.0.iter().copied().filter(|fault| !apart.contains(fault)).collect();
        let mut faults: Vec<Fault> = allowed.iter().copied().filter(|_| random.chance(550_000)).collect();
        if faults.is_empty() || allowed.len() <= 3 {
            faults = allowed;
        }
        let pace = ms(random.between(100, 1_500));
        let from_the_start = !faults.is_empty() && random.chance(300_000);
        let replacements = Draw::replacements(cfg);
        let joins = |it: &Injection| matches!(it.shot, Shot::Replace { with, .. } if with.node == cfg.nodes);
        let machines = cfg.nodes + usize::from(replacements.iter().any(joins));
        let mut draw = Draw { random, nodes: machines };
        let mut injections = Draw::upgrades(cfg);
        injections.extend(Draw::damages(cfg));
        injections.extend(Draw::busy(cfg));
        injections.extend(Draw::broken_disks(cfg));
        injections.extend(replacements);
        let (apart, mut at): (Vec<Fault>, _) = (injections.iter().map(|it| it.shot.fault()).collect(), 0);
        while !faults.is_empty() && at < ms(cfg.seconds * 1_000) {
            at += draw.random.between(pace / 4, pace * 2);
            let fault = faults[draw.random.below(faults.len() as u64) as usize];
            if let Some(shot) = draw.shot(fault) {
                injections.push(Injection { at, shot, salt: draw.random.next_u64() });
            }
        }
        let mut index = 0;
        injections.retain(|_| {
            index += 1;
            cfg.only.as_ref().is_none_or(|only| only.contains(&(index - 1)))
        });
        // At no moment of their own: whenever somebody joins, or is lost.
        let intruders = Draw::apart(cfg, Fault::Intruder, 57, 500_000).map(|_| Fault::Intruder);
        let kinds = faults.into_iter().chain(apart).chain(intruders).collect();
        Schedule { from_the_start, kinds, injections, machines }
    }

    /// The nodes that ask to join only when others have formed the cluster.
    pub fn late(&self) -> impl Iterator<Item = NodeIx> + '_ {
        self.injections.iter().filter_map(|it| match it.shot {
            Shot::LateJoin { node } => Some(node),
            _ => None,
        })
    }
}

/// Draws faults.
struct Draw {
    random: SplitMix64,
    nodes: usize,
}

impl Draw {
    /// A rolling upgrade: every node once, in some order, one after another; some go back and are upgraded later. Drawn apart
    /// from all else, and first, because it happens once in a run.
    fn upgrades(cfg: &SimConfig) -> Vec<Injection> {
        let mut draw = Draw { random: SplitMix64::new(hash64(&[cfg.seed, 52])), nodes: cfg.nodes };
        if !cfg.faults.0.contains(&Fault::Upgrade) || cfg.faults.0.len() > 3 && draw.random.chance(600_000) {
            return Vec::new();
        }
        let mut order: Vec<NodeIx> = (0..cfg.nodes).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, draw.random.below(last as u64 + 1) as usize);
        }
        let pace = draw.random.between(100, 2_000);
        let (mut out, mut at) = (Vec::new(), 0);
        let mut add = |draw: &mut Draw, shot: Shot| {
            at += ms(draw.random.between(pace / 4, pace));
            out.push(Injection { at, shot, salt: draw.random.next_u64() });
        };
        for node in order {
            let lasts = draw.span(20, 2_000);
            add(&mut draw, Shot::Upgrade { node, lasts });
            if draw.random.chance(300_000) {
                let (node, hold) = (draw.node(), draw.random.chance(500_000));
                add(&mut draw, Shot::Hold { node, hold });
            }
            if draw.random.chance(200_000) {
                let lasts = draw.span(20, 2_000);
                add(&mut draw, Shot::GoBack { node, lasts });
                let lasts = draw.span(20, 2_000);
                add(&mut draw, Shot::Upgrade { node, lasts });
            }
        }
        for hold in [true, false] {
            let node = draw.node();
            add(&mut draw, Shot::Hold { node, hold });
        }
        out
    }

    /// For a fault that is drawn apart from all else, so that what else goes wrong in a run does not depend on it. `None`: it
    /// is not one of this run's; where there are other faults, too, that is so in `without` of a million runs.
    fn apart(cfg: &SimConfig, fault: Fault, salt: u64, without: u64) -> Option<Draw> {
        let mut draw = Draw { random: SplitMix64::new(hash64(&[cfg.seed, salt])), nodes: cfg.nodes };
        let allowed = cfg.faults.0.contains(&fault);
        (allowed && (cfg.faults.0.len() <= 3 || !draw.random.chance(without))).then_some(draw)
    }

    /// Times in which checkpoints hardly come through whole.
    fn damages(cfg: &SimConfig) -> Vec<Injection> {
        let Some(mut draw) = Draw::apart(cfg, Fault::Damage, 53, 500_000) else { return Vec::new() };
        let (mut out, mut at) = (Vec::new(), 0);
        for _ in 0..3 {
            at += ms(draw.random.between(0, 2_500));
            let shot =
                Shot::Damage { per_million: draw.random.between(20_000, 1_000_000), lasts: draw.span(500, 5_000) };
            out.push(Injection { at, shot, salt: draw.random.next_u64() });
        }
        out
    }

    /// Times in which a machine is busy, mostly up to the end of the run.
    fn busy(cfg: &SimConfig) -> Vec<Injection> {
        let Some(mut draw) = Draw::apart(cfg, Fault::Busy, 54, 500_000) else { return Vec::new() };
        let (mut out, mut at) = (Vec::new(), 0);
        for _ in 0..2 {
            at += ms(draw.random.between(0, 3_000));
            let (node, up_to) = (draw.node(), ms(draw.random.between(1, 30)));
            let shot = Shot::Busy { node, up_to, lasts: draw.span(2_000, 60_000) };
            out.push(Injection { at, shot, salt: draw.random.next_u64() });
        }
        out
    }

    /// Times in which a disk fails.
    fn broken_disks(cfg: &SimConfig) -> Vec<Injection> {
        let Some(mut draw) = Draw::apart(cfg, Fault::BrokenDisk, 56, 500_000) else { return Vec::new() };
        let (mut out, mut at) = (Vec::new(), 0);
        for _ in 0..2 {
            at += ms(draw.random.between(0, 3_000));
            let shot = Shot::BrokenDisk { node: draw.node(), lasts: draw.span(20, 1_000) };
            out.push(Injection { at, shot, salt: draw.random.next_u64() });
        }
        out
    }

    /// Nodes whose place another one takes: a machine beyond those of the cluster, which joins for that, or another member. In
    /// few runs, since one machine more costs time; what else goes wrong there is drawn for that machine, too.
    fn replacements(cfg: &SimConfig) -> Vec<Injection> {
        let draw = Draw::apart(cfg, Fault::Replace, 55, 700_000).filter(|_| cfg.nodes > 1);
        let Some(mut draw) = draw else { return Vec::new() };
        let (mut out, mut at) = (Vec::new(), 0);
        for _ in 0..2 {
            at += ms(draw.random.between(100, 3_000));
            let node = draw.node();
            let joins = draw.random.chance(700_000);
            let with = Successor {
                node: if joins { cfg.nodes } else { draw.other(node) },
                proven: draw.random.chance(600_000),
            };
            let lost = draw.random.chance(500_000).then(|| draw.span(10, 3_000));
            let back_in = draw.random.chance(300_000).then(|| draw.span(10, 4_000));
            let shot = Shot::Replace { node, with, lost, back_in };
            out.push(Injection { at, shot, salt: draw.random.next_u64() });
        }
        out
    }

    fn node(&mut self) -> NodeIx {
        self.random.below(self.nodes as u64) as usize
    }

    fn other(&mut self, node: NodeIx) -> NodeIx {
        (node + 1 + self.random.below(self.nodes as u64 - 1) as usize) % self.nodes
    }

    /// Mostly short, sometimes long.
    fn span(&mut self, low: u64, high: u64) -> Nanos {
        let high = if self.random.chance(700_000) { low + (high - low) / 5 } else { high };
        ms(self.random.between(low, high))
    }

    /// `None`: the fault is not one that is injected, or not in so small a cluster.
    fn shot(&mut self, fault: Fault) -> Option<Shot> {
        let node = self.node();
        let alone = self.nodes == 1;
        Some(match fault {
            Fault::Loss => {
                Shot::Loss { per_million: self.random.between(1_000, 300_000), lasts: self.span(100, 5_000) }
            }
            Fault::Delay => Shot::Delay { up_to: ms(self.random.between(1, 400)), lasts: self.span(100, 5_000) },
            Fault::Duplicate => {
                Shot::Duplicate { per_million: self.random.between(1_000, 300_000), lasts: self.span(100, 5_000) }
            }
            Fault::Reset | Fault::Flap | Fault::Partition | Fault::Join if alone => return None,
            Fault::Reset => Shot::Reset { one: node, other: self.other(node) },
            Fault::Flap => {
                let period = ms(self.random.between(50, 2_500));
                Shot::Flap { one: node, other: self.other(node), period, lasts: self.span(1_000, 12_000) }
            }
            Fault::Partition => Shot::Partition { blocked: self.directions(node), lasts: self.span(100, 8_000) },
            Fault::Crash | Fault::PowerLoss | Fault::Kill => self.crash(node, fault),
            Fault::Moment => {
                let mark = Mark::ALL[self.random.below(Mark::ALL.len() as u64) as usize];
                let blow = match self.random.below(9) {
                    0..4 => Blow::Crash,
                    8 => Blow::Kill,
                    4 => Blow::CrashAll,
                    5 => Blow::Pause,
                    6 => Blow::Isolate,
                    _ => Blow::StuckDisk,
                };
                Shot::At { mark, blow, lasts: self.span(20, 6_000), again: self.random.chance(250_000) }
            }
            Fault::Pause => Shot::Pause { node, lasts: self.span(20, 6_000) },
            Fault::SlowDisk => {
                Shot::SlowDisk { node, by: ms(self.random.between(1, 250)), lasts: self.span(100, 5_000) }
            }
            Fault::StuckDisk => Shot::StuckDisk { node, lasts: self.span(100, 5_000) },
            Fault::FullDisk => Shot::FullDisk { node, lasts: self.span(100, 5_000) },
            Fault::BitRot => Shot::BitRot { node },
            // Machines die by themselves, see `vmhost.rs`; the others are drawn apart.
            Fault::Vm
            | Fault::Upgrade
            | Fault::Damage
            | Fault::Busy
            | Fault::BrokenDisk
            | Fault::Replace
            | Fault::Intruder => return None,
            Fault::Transfer if self.random.chance(200_000) => Shot::StepDown { node },
            Fault::Transfer => Shot::Transfer { node, to: self.node() },
            Fault::WallJump => Shot::WallJump { node, by_ms: self.random.between(0, 20_000) as i64 - 10_000 },
            Fault::Drift => {
                let ppm = self.random.between(0, 2 * DRIFT_PPM_MAX as u64) as i64 - DRIFT_PPM_MAX;
                Shot::Drift { node, ppm }
            }
            Fault::Join => Shot::LateJoin { node: self.nodes - 1 },
            Fault::Leave | Fault::Destroy | Fault::Drain if alone => return None,
            Fault::Leave => Shot::Leave { node, back_in: self.return_after() },
            Fault::Destroy => Shot::Destroy { node, noticed: self.span(10, 3_000), back_in: self.return_after() },
            Fault::Drain => Shot::Drain { node, lasts: self.span(200, 8_000) },
        })
    }

    fn return_after(&mut self) -> Option<Nanos> {
        self.random.chance(800_000).then(|| self.span(10, 4_000))
    }

    fn directions(&mut self, node: NodeIx) -> Vec<(NodeIx, NodeIx)> {
        let other = self.other(node);
        let others = (0..self.nodes).filter(|peer| *peer != node);
        match self.random.below(5) {
            // One node is alone.
            0 | 1 => others.flat_map(|peer| [(node, peer), (peer, node)]).collect(),
            // It is heard but does not hear, or the other way round.
            2 => others.map(|peer| (peer, node)).collect(),
            3 => others.map(|peer| (node, peer)).collect(),
            // Two nodes do not reach each other.
            _ => vec![(node, other), (other, node)],
        }
    }

    fn crash(&mut self, node: NodeIx, fault: Fault) -> Shot {
        let all = fault == Fault::PowerLoss;
        let moment = match self.random.below(6) {
            0 | 1 => Moment::Write,
            2 | 3 => Moment::Election,
            4 => Moment::Reply,
            _ => Moment::Now,
        };
        let back_in = self.span(20, if all { 2_000 } else { 6_000 });
        let again = if self.random.chance(400_000) { self.random.between(1, 5) as u32 } else { 0 };
        Shot::Crash { node, moment, all, end: End { killed: fault == Fault::Kill, back_in, again } }
    }
}

impl Shot {
    /// The kind of fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Shot::Loss { .. } => Fault::Loss,
            Shot::Delay { .. } => Fault::Delay,
            Shot::Duplicate { .. } => Fault::Duplicate,
            Shot::Damage { .. } => Fault::Damage,
            Shot::Reset { .. } => Fault::Reset,
            Shot::Flap { .. } => Fault::Flap,
            Shot::Partition { .. } => Fault::Partition,
            Shot::Crash { all, end, .. } => Fault::of_crash(*all, end.killed),
            Shot::At { .. } => Fault::Moment,
            Shot::Pause { .. } => Fault::Pause,
            Shot::Busy { .. } => Fault::Busy,
            Shot::SlowDisk { .. } => Fault::SlowDisk,
            Shot::StuckDisk { .. } => Fault::StuckDisk,
            Shot::FullDisk { .. } => Fault::FullDisk,
            Shot::BrokenDisk { .. } => Fault::BrokenDisk,
            Shot::BitRot { .. } => Fault::BitRot,
            Shot::WallJump { .. } => Fault::WallJump,
            Shot::Drift { .. } => Fault::Drift,
            Shot::Transfer { .. } | Shot::StepDown { .. } => Fault::Transfer,
            Shot::LateJoin { .. } => Fault::Join,
            Shot::Leave { .. } => Fault::Leave,
            Shot::Destroy { .. } => Fault::Destroy,
            Shot::Replace { .. } => Fault::Replace,
            Shot::Drain { .. } => Fault::Drain,
            Shot::Upgrade { .. } | Shot::GoBack { .. } | Shot::Hold { .. } => Fault::Upgrade,
        }
    }
}

/// A span as people read it.
fn long(nanos: Nanos) -> String {
    format!("{:.2} s", nanos as f64 / 1e9)
}

/// So much of something happens, for so long.
fn share(f: &mut fmt::Formatter<'_>, per_million: u64, what: &str, lasts: Nanos) -> fmt::Result {
    write!(f, "{:.1}% {what} for {}", per_million as f64 / 10_000.0, long(lasts))
}

fn returns(back_in: Option<Nanos>) -> String {
    back_in.map_or(String::new(), |later| format!(", and joins anew {} after it is gone", long(later)))
}

fn replaces(
    f: &mut fmt::Formatter<'_>,
    node: NodeIx,
    with: Successor,
    lost: Option<Nanos>,
    back_in: Option<Nanos>,
) -> fmt::Result {
    let how = lost.map_or("leaves".into(), |noticed| format!("is lost, which shows {} later,", long(noticed)));
    let proven = if with.proven { ", once that was heard of for a while" } else { "" };
    write!(f, "n{node} {how} and n{} takes its place{proven}{}", with.node, returns(back_in))
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{} {}", long(self.at), self.shot)
    }
}

impl fmt::Display for Shot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shot::Loss { per_million, lasts } => share(f, *per_million, "of frames are lost", *lasts),
            Shot::Delay { up_to, lasts } => write!(f, "frames are up to {} late for {}", long(*up_to), long(*lasts)),
            Shot::Duplicate { per_million, lasts } => share(f, *per_million, "of frames arrive twice", *lasts),
            Shot::Damage { per_million, lasts } => {
                share(f, *per_million, "of the parts of checkpoints are damaged on their way", *lasts)
            }
            Shot::Reset { one, other } => write!(f, "the connection of n{one} and n{other} breaks"),
            Shot::Flap { one, other, period, lasts } => {
                let (period, lasts) = (long(*period), long(*lasts));
                write!(f, "the link of n{one} and n{other} goes down and up every {period} for {lasts}")
            }
            Shot::Partition { blocked, lasts } => {
                let ways: Vec<String> = blocked.iter().map(|(from, to)| format!("n{from}->n{to}")).collect();
                write!(f, "nothing passes {} for {}", ways.join(" "), long(*lasts))
            }
            Shot::Crash { node, moment, all, end } => {
                let what = match (all, end.killed) {
                    (true, _) => "all nodes lose power".into(),
                    (false, true) => format!("the process of n{node} is killed"),
                    (false, false) => format!("n{node} loses power"),
                };
                let when = match moment {
                    Moment::Now => String::new(),
                    Moment::Write => format!(" during the next write of n{node}"),
                    Moment::Election => format!(" at the next election that n{node} stands in"),
                    Moment::Reply => format!(" after the next answer of n{node}"),
                };
                write!(f, "{what}{when}, back about {} later", long(end.back_in))?;
                match end.again {
                    0 => Ok(()),
                    write => write!(f, ", and again during write {write} after that"),
                }
            }
            Shot::At { mark, blow, lasts, again } => {
                let again = if *again { ", and the next one too" } else { "" };
                write!(f, "{blow:?} (for {}) whichever node next reaches {:?}{again}", long(*lasts), mark.name())
            }
            Shot::Pause { node, lasts } => write!(f, "n{node} stands still for {}", long(*lasts)),
            Shot::Busy { node, up_to, lasts } => {
                write!(f, "the process of n{node} runs up to {} late for {}", long(*up_to), long(*lasts))
            }
            Shot::SlowDisk { node, by, lasts } => {
                write!(f, "the disk of n{node} is up to {} slower for {}", long(*by), long(*lasts))
            }
            Shot::StuckDisk { node, lasts } => write!(f, "the disk of n{node} is stuck for {}", long(*lasts)),
            Shot::FullDisk { node, lasts } => write!(f, "the disk of n{node} is full for {}", long(*lasts)),
            Shot::BrokenDisk { node, lasts } => write!(f, "the disk of n{node} is broken for {}", long(*lasts)),
            Shot::BitRot { node } => write!(f, "a bit at rest on the disk of n{node} flips"),
            Shot::WallJump { node, by_ms } => write!(f, "the wall clock of n{node} jumps by {by_ms} ms"),
            Shot::Drift { node, ppm } => write!(f, "the clocks of n{node} drift by {ppm} ppm"),
            Shot::Transfer { node, to } => write!(f, "n{node} asks for a leadership to move to n{to}"),
            Shot::StepDown { node } => write!(f, "n{node} hands over all that it leads"),
            Shot::LateJoin { node } => write!(f, "n{node} asks to join"),
            Shot::Leave { node, back_in } => write!(f, "n{node} is told to leave{}", returns(*back_in)),
            Shot::Destroy { node, noticed, back_in } => {
                write!(f, "the machine of n{node} is lost, and removed {} later{}", long(*noticed), returns(*back_in))
            }
            Shot::Replace { node, with, lost, back_in } => replaces(f, *node, *with, *lost, *back_in),
            Shot::Drain { node, lasts } => write!(f, "n{node} is drained for {}", long(*lasts)),
            Shot::Upgrade { node, lasts } => write!(f, "n{node} is upgraded, which takes {}", long(*lasts)),
            Shot::GoBack { node, lasts } => write!(f, "n{node} goes back a version, which takes {}", long(*lasts)),
            Shot::Hold { node, hold: true } => write!(f, "an operator holds the cluster's version, through n{node}"),
            Shot::Hold { node, hold: false } => {
                write!(f, "an operator lets the cluster's version rise, through n{node}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cfg: &SimConfig) -> Vec<Injection> {
        Schedule::new(cfg).injections
    }

    #[test]
    fn a_schedule_depends_on_its_seed_and_a_longer_run_begins_with_a_shorter_one() {
        let cfg = |seed, seconds| SimConfig { seconds, ..SimConfig::new(seed) };
        let (short, long) = (schedule(&cfg(3, 10)), schedule(&cfg(3, 60)));
        assert!(short.len() > 3 && long.len() > short.len(), "{} and {}", short.len(), long.len());
        assert_eq!(long[..short.len()], short);
        assert_ne!(schedule(&cfg(4, 10)), short);
    }

    #[test]
    fn leaving_some_out_leaves_the_others_as_they_were() {
        let all = schedule(&SimConfig::new(3));
        let only = Some([1, 4].into_iter().collect());
        assert_eq!(schedule(&SimConfig { only, ..SimConfig::new(3) }), [all[1].clone(), all[4].clone()]);
    }

    #[test]
    fn what_is_drawn_apart_leaves_the_others_as_they_were() {
        for apart in [Fault::Damage, Fault::Busy, Fault::BrokenDisk] {
            let mut drawn = 0;
            for seed in 0..20 {
                let with = schedule(&SimConfig::new(seed));
                let mut without = SimConfig::new(seed);
                without.faults.0.remove(&apart);
                let rest: Vec<_> = with.iter().filter(|it| it.shot.fault() != apart).cloned().collect();
                assert_eq!(rest, schedule(&without));
                drawn += with.len() - rest.len();
            }
            assert!(drawn > 0, "{apart:?}");
        }
    }

    #[test]
    fn where_a_machine_joins_to_replace_a_node_faults_strike_it_and_elsewhere_nothing_is_another() {
        let (mut as_without, mut struck) = (0, 0);
        for seed in 0..60 {
            let with = Schedule::new(&SimConfig::new(seed));
            if with.machines > 3 {
                let at_it =
                    |it: &&Injection| matches!(it.shot, Shot::Crash { node: 3, .. } | Shot::Pause { node: 3, .. });
                struck += with.injections.iter().filter(at_it).count();
                continue;
            }
            let mut without = SimConfig::new(seed);
            without.faults.0.remove(&Fault::Replace);
            let rest: Vec<_> = with.injections.into_iter().filter(|it| it.shot.fault() != Fault::Replace).collect();
            assert_eq!(rest, schedule(&without));
            as_without += 1;
        }
        assert!(as_without > 20 && struck > 0, "{as_without} and {struck}");
    }

    #[test]
    fn every_fault_that_is_injected_is_drawn_by_some_seed_and_says_what_it_does() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            for it in schedule(&SimConfig::new(seed)) {
                seen.insert(it.shot.fault());
                assert!(it.to_string().len() > 10);
            }
        }
        let all: BTreeSet<Fault> = Fault::ALL.iter().map(|(fault, _)| *fault).collect();
        let missing: Vec<_> = all.difference(&seen).collect();
        assert_eq!(missing, [&Fault::Vm, &Fault::Intruder]);
    }
}
