//! What the checker of contact must be told of the world: who can hear whom, and whose disk is stuck.

use base::GroupId;
use engine::Event;
use multiraft::Role;
use wire::{PeerMessage, RaftMessageKind};

use crate::check::{Contact, Unfit};
use crate::config::Fault;
use crate::disk::DiskMood;
use crate::queue::NodeIx;
use crate::time::{Nanos, ms};
use crate::world::World;

/// A process that stood still has taken in all that came meanwhile after this long.
const RESUMES: Nanos = ms(500);

impl World {
    /// A process that runs had its tick.
    pub fn watch_contact(&mut self, node: NodeIx) {
        let now = self.queue.now;
        if self.nemesis.has(Fault::Replace) {
            self.watch_others(node);
        }
        let (deaf, well) = (self.is_deaf(node), self.is_well(node));
        self.checks.contact.looks(node, now, deaf, well);
        let awaited = self.nodes[node].core.iter().flat_map(engine::NodeCore::awaited);
        if let Some(group) = self.checks.contact.waits_in_vain(node, now, awaited) {
            let why = "it follows there, and cannot write";
            self.fail("nobody waits where nothing is learned", format!("n{node}, group {group}: {why}"));
        }
        let Some((unfit, groups)) = self.checks.contact.leads_unfit(node, now) else { return };
        // Whoever was told to hand over what it leads takes no leadership for a while.
        let (least, why) = match unfit {
            Unfit::Deaf => (2, "hears nobody"),
            Unfit::Stuck if self.nemesis.has(Fault::Transfer) => return,
            Unfit::Stuck => (3, "cannot write, and the others are well"),
            Unfit::Paused => (1, "stood still for longer than an election timeout, and led it before that"),
        };
        if let Some(group) = groups.into_iter().find(|group| self.voters(node, *group) >= least) {
            self.fail("leaders can lead", format!("n{node} still leads group {group}; it {why}"));
        }
    }

    /// Notes of which others this process may not have heard just now.
    fn watch_others(&mut self, node: NodeIx) {
        let now = self.queue.now;
        // What comes while a process stands still is heard later.
        let deaf = self.net.weather.loss > 0 || now < self.nodes[node].resumed + RESUMES;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let open = self.net.link(node, other).alive && self.net.open(other, node) && self.net.open(node, other);
            let it = &mut self.nodes[other];
            if deaf || !open || !it.runs() || !it.recovered {
                it.unheard_at = now;
            }
        }
    }

    /// A replica's role changed.
    pub fn watch_role(&mut self, node: NodeIx, group: GroupId, role: Role, term: u64) {
        let others = role == Role::Candidate && self.voters(node, group) > 1;
        let verdict = self.checks.contact.role((node, group), self.queue.now, (role, term), others);
        self.check("elections have a reason", verdict);
    }

    /// Nothing that anybody sends arrives.
    fn is_deaf(&mut self, node: NodeIx) -> bool {
        (0..self.nodes.len()).filter(|peer| *peer != node).all(|peer| {
            let alive = self.net.link(node, peer).alive;
            !alive || !self.net.open(peer, node)
        })
    }

    /// Nothing is wrong with it, its disk or its links.
    fn is_well(&mut self, node: NodeIx) -> bool {
        let it = &self.nodes[node];
        let weather = self.net.weather;
        if !it.recovered || it.disk.mood != DiskMood::default() || weather.loss > 0 || weather.delay > 0 {
            return false;
        }
        (0..self.nodes.len()).filter(|peer| *peer != node).all(|peer| {
            let alive = self.net.link(node, peer).alive;
            alive && self.nodes[peer].runs() && self.net.open(node, peer) && self.net.open(peer, node)
        })
    }

    /// Voters of a group, as the replica on a node has them.
    fn voters(&self, node: NodeIx, group: GroupId) -> usize {
        let status = self.nodes[node].core.as_ref().and_then(|core| core.raft_status(group));
        status.map_or(0, |status| status.membership.voters.len().max(status.membership.voters_outgoing.len()))
    }
}

/// A process takes in an event: a tick, or somebody's word, perhaps a leader's.
pub fn watch_event(contact: &mut Contact, node: NodeIx, now: Nanos, event: &Event) {
    if *event == Event::Tick {
        contact.ticks(node);
    }
    let Event::Peer { messages, .. } = event else { return };
    contact.hears(node);
    for message in messages {
        if let PeerMessage::Raft { group, message } = message
            && matches!(message.kind, RaftMessageKind::Append | RaftMessageKind::Heartbeat)
        {
            contact.hears_leader(node, now, *group, message.term);
        }
        // A leader at rest is heard so.
        if let PeerMessage::Gossip(gossip) = message {
            gossip.leaders.iter().for_each(|claim| contact.hears_leader(node, now, claim.group, claim.term));
        }
    }
}
