//! Nodes of two versions side by side: a rolling upgrade, those who go back, and what must hold meanwhile.
//!
//! The core of an older node is the same core, told that it can only the older version: what it then must not read it refuses
//! by the version that stands in it, as a real older binary does.

use base::{ClusterVersion, GroupId, VersionRange};
use engine::{Event, Request, Target};
use metadata::{Command, CommandEnvelope, Metadata};
use wire::{Entry, EntryKind};

use crate::config::Fault;
use crate::node::{SimNode, Stage};
use crate::queue::NodeIx;
use crate::requests::{CommandKind, Owner, What};
use crate::schedule::{End, Shot};
use crate::time::{Nanos, ms};
use crate::world::{World, place};

/// What an older node can.
const OLDER: VersionRange = VersionRange { min: ClusterVersion::V1, max: ClusterVersion::V1 };

impl World {
    /// In a run with an upgrade every node begins as an older one, except that one that has a past is what it was, and that
    /// a machine that joins to take another one's place is new.
    pub fn install_versions(&mut self) {
        if self.nemesis.has(Fault::Upgrade) {
            let begins = |node: &&mut SimNode| node.stage != Stage::Formed && node.ix < self.cfg.nodes;
            self.nodes.iter_mut().filter(begins).for_each(|node| node.member.versions = OLDER);
        }
    }

    /// From its next start on the node is a newer one.
    pub fn install_newest(&mut self, node: NodeIx) {
        let it = &mut self.nodes[node];
        (it.member.versions, it.went_back) = (VersionRange::BINARY, false);
    }

    /// One step of an upgrade. Whether it took place.
    pub fn shoot_upgrade(&mut self, shot: &Shot) -> bool {
        match *shot {
            Shot::Upgrade { node, lasts } => self.upgrade(node, lasts),
            Shot::GoBack { node, lasts } => self.go_back(node, lasts),
            Shot::Hold { node, hold } => self.hold_version(node, hold),
            _ => false,
        }
    }

    /// A node is stopped, and started as a newer one. Whether it was an older one.
    fn upgrade(&mut self, node: NodeIx, lasts: Nanos) -> bool {
        let older = self.nodes[node].member.versions == OLDER;
        if older {
            self.install_newest(node);
            self.crash(node, End { killed: true, back_in: lasts, again: 0 });
        }
        older
    }

    /// A node is stopped, and started as an older one. Whether it was a newer one.
    fn go_back(&mut self, node: NodeIx, lasts: Nanos) -> bool {
        let it = &mut self.nodes[node];
        let newer = it.member.versions != OLDER && it.core.is_some();
        if newer {
            (it.member.versions, it.went_back) = (OLDER, true);
            self.crash(node, End { killed: true, back_in: lasts, again: 0 });
        }
        newer
    }

    /// An operator asks for something that only newer nodes can read.
    fn hold_version(&mut self, node: NodeIx, hold: bool) -> bool {
        let asks = self.nodes[node].recovered;
        if asks {
            let command = Command::HoldVersion { at: hold.then_some(ClusterVersion::V2) };
            let (leader, what) = (Target::Leader(GroupId::META), What::Command(CommandKind::Other));
            self.ask(Owner::Operator, node, leader, Request::Command(command), what, ms(3_000));
        }
        asks
    }

    /// Whether the cluster may have gone on without waiting for what this machine has. (One that went back may be the first
    /// to come to the entry that says so.)
    pub fn is_outdated(&self, node: NodeIx) -> bool {
        let state = self.checks.commands.last().filter(|_| !self.nodes[node].went_back);
        state.is_none_or(|state| !self.nodes[node].member.versions.contains(state.cluster_version))
    }

    /// A node found that it cannot go on as it is, and is upgraded.
    pub fn stopped_as_outdated(&mut self, node: NodeIx, why: &str) {
        self.trace.node(self.queue.now, node, || format!("stops, and is upgraded: {why}"));
        self.install_newest(node);
        let back_in = ms(self.random.between(20, 2_000));
        self.crash(node, End { killed: true, back_in, again: 0 });
    }

    /// A node applies an entry of `__meta`: one that it can read, and that leaves the cluster at a version that it can.
    pub fn check_readable(&mut self, node: NodeIx, entry: &Entry) {
        let can = self.nodes[node].member.versions;
        if can == OLDER && entry.kind == EntryKind::Command {
            let active = self.checks.commands.at(entry.index).map(|state| state.cluster_version);
            let verdict = match (CommandEnvelope::read(&entry.data, can), active) {
                (Err(why), _) => Err(format!("n{node} applies index {}: {why}", entry.index)),
                (Ok(envelope), _) if envelope.command.since() > can.max => {
                    Err(format!("n{node} can {can}, and applies {:?}", envelope.command))
                }
                (Ok(_), Some(active)) if !can.contains(active) => {
                    Err(format!("n{node} can {can}, and goes on at cluster version {active}"))
                }
                (Ok(_), _) => Ok(()),
            };
            self.check("nodes apply what they can read", verdict);
        }
    }

    /// An entry of `__meta` was committed: nothing in it is of a version that was not active, and the version rises only when
    /// every member can it.
    pub fn check_version(&mut self, index: u64, before: Option<&Metadata>) {
        let (Some(before), Some(after)) = (before, self.checks.commands.last()) else { return };
        if !self.nemesis.has(Fault::Upgrade) {
            return;
        }
        let mut verdict = Ok(());
        if let Some(command) = self.checks.commands.command(index).filter(|it| it.since() > before.cluster_version) {
            verdict = Err(format!("{command:?} stands in the log at version {}", before.cluster_version));
        }
        let (was, now) = (before.cluster_version, after.cluster_version);
        if now < was {
            verdict = Err(format!("the version goes back from {was} to {now}"));
        }
        let machines = after.nodes.values().filter_map(|record| place(&record.member.address.endpoint));
        // Whoever went back did so after it had said that it can more.
        let unable = |place: &NodeIx| {
            let it = &self.nodes[*place];
            !it.went_back && !it.departed && !it.member.versions.contains(now)
        };
        if now > was
            && let Some(place) = machines.into_iter().find(unable)
        {
            verdict =
                Err(format!("the version rises to {now}, and n{place} can only {}", self.nodes[place].member.versions));
        }
        self.check("versions are active when all can them", verdict);
    }

    /// What the version lacks to what it should be in the end: every node has said what it can, and the least of that is
    /// active.
    pub fn version_unsettled(&self, state: &Metadata) -> Option<String> {
        for node in self.nodes.iter().filter(|it| it.core.is_some()) {
            let said = state.nodes.get(&node.id()).map(|record| record.member.versions);
            if said != Some(node.member.versions) {
                return Some(format!("n{} can {}, the table says {said:?}", node.ix, node.member.versions));
            }
        }
        let least = state.nodes.values().map(|record| record.member.versions.max).min().unwrap_or_default();
        let active = state.cluster_version;
        (active != least).then(|| format!("cluster version {active} is active, and all can {least}"))
    }
}

/// Of two nodes that would connect, the one that the other one refuses, because it cannot work at the version that is active
/// there.
pub fn refused_as_outdated(one: &SimNode, other: &SimNode) -> Option<(NodeIx, Event)> {
    let refused = |caller: &SimNode, called: &SimNode| {
        let active = called.core.as_ref()?.metadata().cluster_version;
        let outdated = !caller.member.versions.contains(active);
        outdated.then(|| (caller.ix, Event::Outdated { by: called.id(), active }))
    };
    refused(one, other).or_else(|| refused(other, one))
}
