//! Leadership rests on contact: who hears nobody neither leads (CheckQuorum, Raft section 6.2) nor raises terms
//! (PreVote, section 9.6 of the dissertation); who hears a leader does not campaign; who cannot write hands over, and has
//! nobody wait for what others lead; who stood still for too long leads nothing of what it led before; and election timeouts
//! are spread (section 5.2).
//!
//! Spans are of the node's running time: while a process stands still it can do nothing about anything.

use std::collections::BTreeMap;

use base::GroupId;
use multiraft::Role;

use crate::queue::NodeIx;
use crate::time::{Nanos, ms, show};

/// A leader looks every election timeout (1 s) whether it heard from a quorum since the last look, and a transfer may put
/// one look off by as much.
const DEAF_LEADER: Nanos = ms(3_200);
/// The answers to a pre-vote are long gone by then.
const DEAF_CANDIDATE: Nanos = ms(2_500);
/// Of a process that stands still for longer than an election timeout, which is 1 s at least, by a clock that may be slow.
const PAUSED: Nanos = ms(1_100);
/// The least election timeout is 1 s; each pause takes one tick (50 ms) from it.
const CAMPAIGN: Nanos = ms(700);
/// After an election timeout leadership is handed over; this is enough for a second try.
const STUCK_LEADER: Nanos = ms(3_500);
/// Campaigns after which their delays are judged: so many of them do not fall into such a span by chance, out of 1 s.
const CAMPAIGNS: usize = 20;
const CAMPAIGNS_SPAN: Nanos = ms(150);

/// See the module.
#[derive(Default)]
pub struct Contact {
    nodes: BTreeMap<NodeIx, Node>,
    roles: BTreeMap<(NodeIx, GroupId), (Role, u64)>,
    /// Since when a replica is in a term in which it does not lead.
    follows: BTreeMap<(NodeIx, GroupId), Nanos>,
    /// When a leader was last heard, and nothing was done about its silence since.
    heard: BTreeMap<(NodeIx, GroupId), Nanos>,
    /// From the last word of a leader to the campaign.
    delays: Vec<Nanos>,
}

#[derive(Default)]
struct Node {
    stood_still: Nanos,
    stands_still_since: Option<Nanos>,
    /// What it led when it last stood still for too long, and in which terms.
    led_before: Vec<(GroupId, u64)>,
    /// It has looked at its clock since, or since it began.
    ticked: bool,
    deaf_since: Option<Nanos>,
    /// Since when neither it nor a link to it has anything wrong.
    calm_since: Option<Nanos>,
    /// Writes under way, by operation, with when they began.
    writes: BTreeMap<u64, Nanos>,
}

/// What is wrong with a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    Deaf,
    /// Its disk is stuck, and everybody else is well.
    Stuck,
    /// It stood still for too long, and knows it.
    Paused,
}

impl Contact {
    fn ran(&self, node: NodeIx, now: Nanos) -> Nanos {
        let Some(it) = self.nodes.get(&node) else { return now };
        now - it.stood_still - it.stands_still_since.map_or(0, |since| now - since)
    }

    /// A process stands still from now on.
    pub fn froze(&mut self, node: NodeIx, now: Nanos) {
        self.nodes.entry(node).or_default().stands_still_since = Some(now);
    }

    /// It goes on.
    pub fn resumed(&mut self, node: NodeIx, now: Nanos) {
        let it = self.nodes.entry(node).or_default();
        let stood_still = it.stands_still_since.take().map_or(0, |since| now - since);
        it.stood_still += stood_still;
        // A process that has never looked at its clock cannot know.
        if stood_still > PAUSED && std::mem::take(&mut it.ticked) {
            let led = self.roles.iter().filter(|((of, _), (role, _))| *of == node && *role == Role::Leader);
            it.led_before = led.map(|((_, group), (_, term))| (*group, *term)).collect();
        }
    }

    /// A process looks at its clock.
    pub fn ticks(&mut self, node: NodeIx) {
        self.nodes.entry(node).or_default().ticked = true;
    }

    /// The process ended.
    pub fn restarted(&mut self, node: NodeIx, now: Nanos) {
        self.resumed(node, now);
        self.roles.retain(|(of, _), _| *of != node);
        self.follows.retain(|(of, _), _| *of != node);
        self.heard.retain(|(of, _), _| *of != node);
        let it = self.nodes.entry(node).or_default();
        (it.deaf_since, it.calm_since) = (None, None);
        it.writes.clear();
        it.led_before.clear();
        it.ticked = false;
    }

    /// The replica is gone from a node.
    pub fn removed(&mut self, node: NodeIx, group: GroupId) {
        self.roles.remove(&(node, group));
        self.follows.remove(&(node, group));
        self.heard.remove(&(node, group));
    }

    /// A write of the log began.
    pub fn writes(&mut self, node: NodeIx, now: Nanos, op: u64) {
        let ran = self.ran(node, now);
        self.nodes.entry(node).or_default().writes.insert(op, ran);
    }

    /// An operation ended.
    pub fn wrote(&mut self, node: NodeIx, op: u64) {
        self.nodes.entry(node).or_default().writes.remove(&op);
    }

    /// A process takes in something from another.
    pub fn hears(&mut self, node: NodeIx) {
        self.nodes.entry(node).or_default().deaf_since = None;
    }

    /// A process takes in a leader's message. Before its replica has shown itself it may not be there yet, and the first
    /// one of a new group campaigns when it is born.
    pub fn hears_leader(&mut self, node: NodeIx, now: Nanos, group: GroupId, term: u64) {
        if self.roles.get(&(node, group)).is_some_and(|(_, known)| term >= *known) {
            self.heard.insert((node, group), self.ran(node, now));
        }
    }

    /// How a process that runs is connected: whether nothing reaches it, and whether nothing at all is wrong with it.
    pub fn looks(&mut self, node: NodeIx, now: Nanos, deaf: bool, calm: bool) {
        let ran = self.ran(node, now);
        let it = self.nodes.entry(node).or_default();
        it.deaf_since = deaf.then(|| it.deaf_since.unwrap_or(ran));
        it.calm_since = calm.then(|| it.calm_since.unwrap_or(now));
    }

    /// Groups that the node leads and ought not to: unless it was paused, if they have other voters.
    #[must_use]
    pub fn leads_unfit(&self, node: NodeIx, now: Nanos) -> Option<(Unfit, Vec<GroupId>)> {
        let (ran, it) = (self.ran(node, now), self.nodes.get(&node)?);
        let leads_on = |group: GroupId, term: u64| self.roles.get(&(node, group)) == Some(&(Role::Leader, term));
        let kept = it.led_before.iter().filter(|(group, term)| it.ticked && leads_on(*group, *term));
        let kept: Vec<GroupId> = kept.map(|(group, _)| *group).collect();
        if !kept.is_empty() {
            return Some((Unfit::Paused, kept));
        }
        let calm = |it: &Node| it.calm_since.is_some_and(|since| now > since + STUCK_LEADER);
        let stuck = it.writes.values().any(|began| ran > began + STUCK_LEADER);
        let unfit = if it.deaf_since.is_some_and(|since| ran > since + DEAF_LEADER) {
            Unfit::Deaf
        } else if stuck && self.nodes.iter().all(|(other, it)| *other == node || calm(it)) {
            Unfit::Stuck
        } else {
            return None;
        };
        let led = self.roles.iter().filter(|((of, _), (role, _))| *of == node && *role == Role::Leader);
        let led: Vec<GroupId> = led.map(|((_, group), _)| *group).collect();
        (!led.is_empty()).then_some((unfit, led))
    }

    /// One of the `awaited` groups, of which somebody waits at this node for an entry, though it is in a term in which it does
    /// not lead, and has not been able to write that down since: a write of before is still under way.
    #[must_use]
    pub fn waits_in_vain(
        &self,
        node: NodeIx,
        now: Nanos,
        mut awaited: impl Iterator<Item = GroupId>,
    ) -> Option<GroupId> {
        let (ran, it) = (self.ran(node, now), self.nodes.get(&node)?);
        awaited.find(|group| {
            let since = self.follows.get(&(node, *group)).copied().filter(|since| ran > since + STUCK_LEADER);
            since.is_some_and(|since| it.writes.values().any(|began| *began <= since))
        })
    }

    /// A replica's role changed; `others` says whether its group has other voters.
    ///
    /// # Errors
    /// It had no reason to.
    pub fn role(
        &mut self,
        (node, group): (NodeIx, GroupId),
        now: Nanos,
        (role, term): (Role, u64),
        others: bool,
    ) -> Result<(), String> {
        let ran = self.ran(node, now);
        let before = self.roles.insert((node, group), (role, term));
        if role == Role::Leader {
            self.follows.remove(&(node, group));
        } else if before.is_some_and(|(_, known)| term > known) {
            self.follows.insert((node, group), ran);
        }
        if role == Role::PreCandidate
            && let Some(heard) = self.heard.remove(&(node, group))
        {
            let delay = ran - heard;
            if delay < CAMPAIGN {
                let delay = show(delay);
                return Err(format!("n{node} campaigns in group {group} {delay} s after it heard its leader"));
            }
            self.delays.push(delay);
        }
        let raises = role == Role::Candidate && before.is_none_or(|(_, known)| term > known);
        let deaf = self.nodes.get(&node).and_then(|it| it.deaf_since).filter(|since| ran > since + DEAF_CANDIDATE);
        if let Some(since) = deaf.filter(|_| raises && others) {
            let span = show(ran - since);
            return Err(format!("n{node} raises the term of group {group} to {term}, {span} s after it heard anybody"));
        }
        Ok(())
    }

    /// The run is over.
    ///
    /// # Errors
    /// Almost all campaigns began at the same span after the last word of a leader.
    pub fn finish(&self) -> Result<(), String> {
        let mut delays = self.delays.clone();
        delays.sort_unstable();
        let enough = (delays.len() * 9).div_ceil(10);
        let close = |window: &&[Nanos]| window.last().zip(window.first()).is_some_and(|(b, a)| b - a <= CAMPAIGNS_SPAN);
        match delays.windows(enough.max(1)).find(close) {
            Some(window) if delays.len() >= CAMPAIGNS => {
                let (count, first) = (window.len(), show(window[0]));
                Err(format!("{count} of {} campaigns began about {first} s after a leader's last word", delays.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);
    const HERE: (NodeIx, GroupId) = (0, GROUP);

    #[test]
    fn a_leader_that_hears_nobody_is_noticed_but_not_for_the_time_it_stood_still() {
        let mut contact = Contact::default();
        contact.role(HERE, 0, (Role::Leader, 2), true).expect("fine");
        contact.looks(0, ms(100), true, false);
        assert_eq!(contact.leads_unfit(0, ms(3_000)), None);
        contact.froze(0, ms(3_000));
        contact.resumed(0, ms(5_000));
        assert_eq!(contact.leads_unfit(0, ms(5_050)), None, "it ran for 3 s");
        assert_eq!(contact.leads_unfit(0, ms(5_400)), Some((Unfit::Deaf, vec![GROUP])));
        contact.looks(0, ms(5_500), false, false);
        assert_eq!(contact.leads_unfit(0, ms(9_000)), None);
    }

    #[test]
    fn a_leader_that_goes_on_leading_after_it_stood_still_for_too_long_is_noticed() {
        let leads = |stood_still: u64, term: u64, ticked: bool| {
            let mut contact = Contact::default();
            contact.ticks(0);
            contact.role(HERE, 0, (Role::Leader, 2), true).expect("fine");
            contact.froze(0, ms(1_000));
            contact.resumed(0, ms(1_000 + stood_still));
            contact.role(HERE, ms(1_000 + stood_still), (Role::Leader, term), true).expect("fine");
            if ticked {
                contact.ticks(0);
            }
            contact.leads_unfit(0, ms(1_010 + stood_still))
        };
        assert_eq!(leads(1_200, 2, true), Some((Unfit::Paused, vec![GROUP])));
        assert_eq!(leads(1_200, 2, false), None, "it does not know yet");
        assert_eq!(leads(1_200, 3, true), None, "it was elected again");
        assert_eq!(leads(900, 2, true), None, "nobody can have been elected");
    }

    #[test]
    fn a_leader_that_cannot_write_is_noticed_if_all_others_are_well() {
        let leads = |calm| {
            let mut contact = Contact::default();
            contact.role(HERE, 0, (Role::Leader, 2), true).expect("fine");
            contact.looks(1, ms(100), false, calm);
            contact.writes(0, ms(200), 7);
            contact.leads_unfit(0, ms(4_000))
        };
        assert_eq!(leads(true), Some((Unfit::Stuck, vec![GROUP])));
        assert_eq!(leads(false), None);
    }

    #[test]
    fn who_waits_at_a_node_that_cannot_write_and_follows_is_noticed() {
        let waits = |began: u64, term: u64, role: Role| {
            let mut contact = Contact::default();
            contact.role(HERE, 0, (Role::Leader, 2), true).expect("fine");
            contact.writes(0, ms(began), 7);
            contact.role(HERE, ms(1_000), (Role::Follower, term), true).expect("fine");
            contact.role(HERE, ms(1_100), (role, term), true).expect("fine");
            let awaited = |contact: &Contact, at| contact.waits_in_vain(0, ms(at), [GROUP].into_iter());
            assert_eq!(awaited(&contact, 4_400), None, "not for long");
            let noticed = awaited(&contact, 4_600).is_some();
            assert_eq!(contact.waits_in_vain(0, ms(4_600), std::iter::empty()), None, "nobody waits");
            contact.wrote(0, 7);
            assert_eq!(awaited(&contact, 4_600), None, "it can write");
            noticed
        };
        assert!(waits(900, 3, Role::Follower));
        assert!(!waits(1_200, 3, Role::Follower), "its term may be on disk");
        assert!(!waits(900, 2, Role::Follower), "nobody else leads yet");
        assert!(!waits(900, 3, Role::Leader), "it leads again");
    }

    #[test]
    fn a_campaign_without_a_reason_is_noticed() {
        let mut contact = Contact::default();
        contact.role(HERE, 0, (Role::Follower, 3), true).expect("fine");
        contact.hears_leader(0, ms(1_000), GROUP, 2);
        contact.role(HERE, ms(1_100), (Role::PreCandidate, 3), true).expect("that was an older leader");
        contact.hears_leader(0, ms(1_000), GROUP, 3);
        assert!(contact.role(HERE, ms(1_500), (Role::PreCandidate, 3), true).is_err());
        contact.hears_leader(0, ms(2_000), GROUP, 3);
        contact.role(HERE, ms(3_200), (Role::PreCandidate, 3), true).expect("a timeout later");
        contact.role(HERE, ms(3_210), (Role::Candidate, 4), true).expect("with the others' consent");
        contact.looks(0, ms(4_000), true, false);
        assert!(contact.role(HERE, ms(7_000), (Role::Candidate, 5), true).is_err(), "nobody consented");
        assert!(contact.role(HERE, ms(7_000), (Role::Candidate, 6), false).is_ok(), "it is alone");
    }

    #[test]
    fn equal_timeouts_are_noticed_and_spread_ones_are_not() {
        let finish = |delay: fn(u64) -> u64| {
            let mut contact = Contact::default();
            contact.role(HERE, 0, (Role::Follower, 3), true).expect("fine");
            for n in 0..30 {
                contact.hears_leader(0, ms(n * 10_000), GROUP, 3);
                contact.role(HERE, ms(n * 10_000 + delay(n)), (Role::PreCandidate, 3), true).expect("late enough");
            }
            contact.finish()
        };
        assert!(finish(|n| 1_400 + n % 60).is_err());
        assert_eq!(finish(|n| 1_000 + n * 33), Ok(()));
    }
}
