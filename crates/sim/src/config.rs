//! What a run is made of.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::mistake::Mistake;

/// A kind of fault that the run may inject. All of them are inside what the design promises to survive; see the
/// crate's documentation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Frames get lost.
    Loss,
    /// Frames come late, those of one channel in order, those of two channels in any.
    Delay,
    /// Frames arrive twice.
    Duplicate,
    /// Parts of checkpoints are damaged on their way.
    Damage,
    /// A connection breaks and comes back.
    Reset,
    /// A link goes down and up, again and again.
    Flap,
    /// Some directions carry nothing for a while.
    Partition,
    /// A node loses power, with everything it had not synced.
    Crash,
    /// The process of a node is killed; its machine goes on, with what was written and the VMs.
    Kill,
    /// All nodes lose power at once.
    PowerLoss,
    /// A node that has just reached a rare state (a mark) loses power, stands still, or is cut off.
    Moment,
    /// A process stands still and then sees the gap in its clock.
    Pause,
    /// A machine has so much to do that its process runs late, and takes in at once what came one after the other.
    Busy,
    /// A disk is slow.
    SlowDisk,
    /// A disk completes nothing for a while.
    StuckDisk,
    /// A disk has no space left for a while.
    FullDisk,
    /// A disk answers with errors for a while: what it was to change may be changed, in part, or not at all.
    BrokenDisk,
    /// A bit at rest on a disk flips.
    BitRot,
    /// Virtual machines die or do not start.
    Vm,
    /// Leadership is handed over on request.
    Transfer,
    /// A wall clock jumps.
    WallJump,
    /// The clocks of a node run fast or slow.
    Drift,
    /// A node joins while there is load, and faults.
    Join,
    /// A node leaves in good order, and perhaps joins anew, as another one.
    Leave,
    /// A machine is lost for good; an operator says so, and perhaps another one joins in its place.
    Destroy,
    /// Another node takes a node's place, in good order or because its machine is lost: one that joins for that, mostly.
    Replace,
    /// A node is drained for a while.
    Drain,
    /// Nodes begin as older ones and are restarted one after another as newer ones (a rolling upgrade); now and then one
    /// goes back to what it was.
    Upgrade,
    /// Joiners come with a token that is spent, has expired or was revoked, before they come with a good one, and lost
    /// machines come back wiped, with the key that they had.
    Intruder,
}

impl Fault {
    /// Every fault, with its name on the command line.
    pub const ALL: [(Fault, &'static str); 29] = [
        (Fault::Loss, "loss"),
        (Fault::Delay, "delay"),
        (Fault::Duplicate, "duplicate"),
        (Fault::Damage, "damage"),
        (Fault::Reset, "reset"),
        (Fault::Flap, "flap"),
        (Fault::Partition, "partition"),
        (Fault::Crash, "crash"),
        (Fault::Kill, "kill"),
        (Fault::PowerLoss, "power-loss"),
        (Fault::Moment, "moment"),
        (Fault::Pause, "pause"),
        (Fault::Busy, "busy"),
        (Fault::SlowDisk, "slow-disk"),
        (Fault::StuckDisk, "stuck-disk"),
        (Fault::FullDisk, "full-disk"),
        (Fault::BrokenDisk, "broken-disk"),
        (Fault::BitRot, "bit-rot"),
        (Fault::Vm, "vm"),
        (Fault::Transfer, "transfer"),
        (Fault::WallJump, "wall-jump"),
        (Fault::Drift, "drift"),
        (Fault::Join, "join"),
        (Fault::Leave, "leave"),
        (Fault::Destroy, "destroy"),
        (Fault::Replace, "replace"),
        (Fault::Drain, "drain"),
        (Fault::Upgrade, "upgrade"),
        (Fault::Intruder, "intruder"),
    ];

    /// How a process ends: with all others, because it is killed, or with its machine.
    #[must_use]
    pub fn of_crash(all: bool, killed: bool) -> Self {
        match (all, killed) {
            (_, true) => Fault::Kill,
            (true, false) => Fault::PowerLoss,
            (false, false) => Fault::Crash,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        Fault::ALL.iter().find(|(fault, _)| *fault == self).map_or("", |(_, name)| *name)
    }
}

/// A set of faults: `all`, `none`, or names joined by commas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultSet(pub BTreeSet<Fault>);

impl FaultSet {
    /// Every fault.
    #[must_use]
    pub fn all() -> Self {
        FaultSet(Fault::ALL.iter().map(|(fault, _)| *fault).collect())
    }

    /// No fault.
    #[must_use]
    pub fn none() -> Self {
        FaultSet::default()
    }
}

impl FromStr for FaultSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => return Ok(FaultSet::all()),
            "none" => return Ok(FaultSet::none()),
            _ => {}
        }
        let one = |name: &str| {
            let found = Fault::ALL.iter().find(|(_, known)| *known == name).map(|(fault, _)| *fault);
            let names: Vec<_> = Fault::ALL.iter().map(|(_, name)| *name).collect();
            found.ok_or_else(|| format!("no fault is called {name:?}: all, none, or some of {}", names.join(",")))
        };
        text.split(',').map(|name| one(name.trim())).collect::<Result<_, _>>().map(FaultSet)
    }
}

impl fmt::Display for FaultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => f.write_str("none"),
            n if n == Fault::ALL.len() => f.write_str("all"),
            _ => f.write_str(&self.0.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(",")),
        }
    }
}

/// Places in a schedule: `none`, or numbers joined by commas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Only(pub BTreeSet<usize>);

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = |word: &str| {
            word.trim().parse().map_err(|_| format!("{word:?} is no place in a schedule: `none`, or numbers like 3,17"))
        };
        match text {
            "none" => Ok(Only(BTreeSet::new())),
            places => places.split(',').map(place).collect::<Result<_, _>>().map(Only),
        }
    }
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => f.write_str("none"),
            _ => f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct SimConfig {
    pub seed: u64,
    /// 1 to 5.
    pub nodes: usize,
    /// Virtual seconds of faults and load, before the finale.
    pub seconds: u64,
    pub faults: FaultSet,
    /// Of the seed's schedule, only the faults at these places happen; all of them if `None`.
    pub only: Option<BTreeSet<usize>>,
    /// Clients; two per node if `None`.
    pub clients: Option<usize>,
    /// Clients contend for locks, too.
    pub locks: bool,
    pub plant: Option<Mistake>,
    /// Keep the trace.
    pub trace: bool,
}

impl SimConfig {
    /// Three nodes and every fault.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SimConfig {
            seed,
            nodes: 3,
            seconds: 30,
            faults: FaultSet::all(),
            only: None,
            clients: None,
            locks: false,
            plant: None,
            trace: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_sets_round_trip_and_unknown_names_are_refused() {
        for text in ["all", "none", "crash", "loss,crash,vm"] {
            assert_eq!(text.parse::<FaultSet>().expect("known").to_string(), text);
        }
        assert!("crash,fire".parse::<FaultSet>().expect_err("unknown").contains("fire"));
        assert!("".parse::<FaultSet>().is_err());
    }
}
