//! Who is where: peers and when they were heard of, and who leads which group.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::{DISK_SPACE_TRUSTED_AFTER, NODE_UNREACHABLE_AFTER};
use base::simulation::{Mark, Plant, mark_if, planted};
use base::{GroupId, Incarnation, Millis, Mono, NodeId, ReplicaId};
use imbl::OrdMap;
use metadata::{Metadata, NodeRecord};
use wire::{Member, Members, Pace};

use crate::LeaderInfo;

/// What this node knows of one other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peer {
    pub heard: Option<Mono>,
    /// Since when this process of it is heard of without a gap of [`NODE_UNREACHABLE_AFTER`].
    pub heard_since: Option<Mono>,
    /// When its gossip counted last as an answer to leaders at rest.
    pub answered: Option<Mono>,
    pub incarnation: Incarnation,
    pub connected: bool,
    /// What it said of its disk.
    pub space: Space,
    /// The process that said so: a new one begins anew.
    pub space_of: Incarnation,
    /// What it said last of how fast its groups beat and elect.
    pub pace: Option<Pace>,
}

/// What is known of the space on a peer's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Space {
    /// Nothing, as of a node that runs an older version.
    #[default]
    Unknown,
    Full,
    /// Said over and over, and nothing else in between.
    Since {
        first: Mono,
        last: Mono,
    },
}

/// The other nodes.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    known: BTreeMap<NodeId, Peer>,
    /// Where replicas of `__meta` live, as the join or another member said: needed until `__meta` itself is here.
    introduced: BTreeMap<ReplicaId, NodeId>,
    /// The members as another node's table has them, if that was ahead of this node's.
    ahead: Option<(u64, Vec<Member>)>,
    /// What the driver was told last, by this node's table or another's.
    told: OrdMap<NodeId, NodeRecord>,
    told_ahead: u64,
    /// Index of `__meta` at which the table was first seen with the members that it has.
    members_since: u64,
}

impl Peers {
    /// What a joining node was told about the members.
    pub fn introduce(&mut self, members: &[Member], meta_replicas: &[ReplicaId]) {
        for (member, replica) in members.iter().zip(meta_replicas) {
            self.introduced.insert(*replica, member.node);
            self.known.entry(member.node).or_default();
        }
    }

    /// What another node knows of the members, if it is ahead of this node and of what was heard so far.
    /// Whether that is so.
    pub fn take_members(&mut self, applied: u64, members: Members) -> bool {
        let newest = self.ahead.as_ref().map_or(applied, |(index, _)| applied.max(*index));
        let news = members.meta_applied > newest;
        if news {
            self.introduce(&members.members, &members.meta_replicas);
            self.ahead = Some((members.meta_applied, members.members));
        }
        news
    }

    /// What to tell a node that has applied `__meta` up to an index: nothing if it knows the members.
    pub fn news_for(&self, applied: u64, metadata: &Metadata) -> Option<Members> {
        let nodes = || metadata.nodes.values();
        (applied < self.members_since).then(|| Members {
            meta_applied: metadata.applied,
            members: nodes().map(|node| node.member.clone()).collect(),
            meta_replicas: nodes().map(|node| node.meta_replica).collect(),
        })
    }

    /// The members, if they are others than those told last. A joiner's first table may be older than what it was told when
    /// it was admitted: only one that has this node itself says who the members are.
    pub fn take_changed(&mut self, me: NodeId, metadata: &Metadata) -> Option<Vec<Member>> {
        self.ahead.take_if(|(index, _)| *index <= metadata.applied);
        if let Some((index, members)) = &self.ahead {
            let new = *index != self.told_ahead && members.iter().any(|member| member.node == me);
            self.told_ahead = if new { *index } else { self.told_ahead };
            return new.then(|| members.clone());
        }
        let was_ahead = std::mem::take(&mut self.told_ahead) > 0;
        if !metadata.nodes.contains_key(&me) {
            return None;
        }
        let told = same(&self.told, &metadata.nodes) && !was_ahead;
        // Also where they are equal: copies are compared at once.
        self.told.clone_from(&metadata.nodes);
        (!told).then(|| metadata.nodes.values().map(|node| node.member.clone()).collect())
    }

    pub fn heard(&mut self, node: NodeId, now: Mono) {
        let peer = self.known.entry(node).or_default();
        if peer.heard.is_none_or(|at| now.since(at) >= NODE_UNREACHABLE_AFTER) {
            peer.heard_since = None;
        }
        peer.heard = Some(now);
        peer.heard_since.get_or_insert(now);
    }

    /// Whether what a node says counts as an answer to leaders at rest, which look for one each election timeout: often
    /// enough for that, and no oftener.
    pub fn answers(&mut self, node: NodeId, now: Mono, election_timeout: Millis) -> bool {
        let answered = &mut self.known.entry(node).or_default().answered;
        let due = answered.is_none_or(|at| now.since(at).0 >= election_timeout.0 / 3);
        if due {
            *answered = Some(now);
        }
        due
    }

    pub fn set_connected(&mut self, node: NodeId, incarnation: Option<Incarnation>) {
        let peer = self.known.entry(node).or_default();
        peer.connected = incarnation.is_some();
        if incarnation.is_some_and(|new| new != peer.incarnation) {
            peer.heard_since = None;
        }
        peer.incarnation = incarnation.unwrap_or(peer.incarnation);
    }

    /// A node said whether its disk is full.
    pub fn disk_told(&mut self, node: NodeId, incarnation: Incarnation, full: Option<bool>, now: Mono) {
        let peer = self.known.entry(node).or_default();
        peer.space = match (full, peer.space) {
            (None, _) => Space::Unknown,
            (Some(true), _) => Space::Full,
            (Some(false), Space::Since { first, .. }) if peer.space_of == incarnation => {
                Space::Since { first, last: now }
            }
            (Some(false), _) => Space::Since { first: now, last: now },
        };
        peer.space_of = incarnation;
    }

    /// A node said how fast its groups beat and elect; whether that is news.
    pub fn pace_told(&mut self, node: NodeId, pace: Pace) -> bool {
        self.known.entry(node).or_default().pace.replace(pace) != Some(pace)
    }

    /// Has said lately, and for [`DISK_SPACE_TRUSTED_AFTER`], that its disk has space.
    pub fn has_space(&self, node: NodeId, now: Mono) -> bool {
        match self.known.get(&node).map(|peer| peer.space) {
            Some(Space::Since { first, last }) => {
                now.since(first) >= DISK_SPACE_TRUSTED_AFTER && now.since(last) < NODE_UNREACHABLE_AFTER
            }
            _ => false,
        }
    }

    /// Heard of lately.
    pub fn reachable(&self, node: NodeId, now: Mono) -> bool {
        self.silence(node, now).is_some_and(|silence| silence < NODE_UNREACHABLE_AFTER)
    }

    /// For how long this process of the node has been heard of; `None`: it is not.
    pub fn heard_for(&self, node: NodeId, now: Mono) -> Option<Millis> {
        let since = self.known.get(&node)?.heard_since?;
        self.reachable(node, now).then(|| now.since(since))
    }

    /// How long since the node was heard of; `None`: never.
    pub fn silence(&self, node: NodeId, now: Mono) -> Option<Millis> {
        self.known.get(&node)?.heard.map(|heard| now.since(heard))
    }

    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.known.keys().copied()
    }

    /// Follows the table of members, which was `before`.
    pub fn follow(&mut self, before: &OrdMap<NodeId, NodeRecord>, metadata: &Metadata) {
        if !same(before, &metadata.nodes) {
            self.members_since = metadata.applied;
            for node in metadata.nodes.keys() {
                self.known.entry(*node).or_default();
            }
            let gone = |node: &NodeId| before.contains_key(node) && !metadata.nodes.contains_key(node);
            self.known.retain(|node, _| !gone(node));
            self.introduced.retain(|_, node| !gone(node));
        }
    }

    /// The node that holds a replica of `__meta`.
    pub fn meta_node(&self, metadata: &Metadata, replica: ReplicaId) -> Option<NodeId> {
        let member = metadata.nodes.values().find(|node| node.meta_replica == replica);
        member.map(|node| node.member.node).or_else(|| self.introduced.get(&replica).copied())
    }
}

/// Whether two tables are equal; at once if one is a copy of the other.
fn same(one: &OrdMap<NodeId, NodeRecord>, other: &OrdMap<NodeId, NodeRecord>) -> bool {
    one.ptr_eq(other) || one == other
}

/// The node that holds a replica of a group.
pub(crate) fn node_of(metadata: &Metadata, peers: &Peers, group: GroupId, replica: ReplicaId) -> Option<NodeId> {
    if group == GroupId::META {
        return peers.meta_node(metadata, replica);
    }
    let partition = metadata.partitions.get(&group)?;
    partition.replicas.iter().find(|r| r.replica == replica).map(|r| r.node)
}

#[derive(Clone, Copy, Debug)]
struct Belief {
    term: u64,
    leader: Option<NodeId>,
    /// What was last given out.
    told: Option<LeaderInfo>,
}

/// Who leads what: monotone by term, unknown rather than guessed.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    beliefs: BTreeMap<GroupId, Belief>,
    changed: BTreeSet<GroupId>,
    /// When reachability was last looked at.
    checked: Option<Mono>,
    /// When gossip was last sent.
    pub gossiped: Option<Mono>,
    /// A leadership is to be told at once.
    pub gossip_due: bool,
    /// The last group named in it, if there were too many for one message.
    pub gossiped_through: GroupId,
}

impl Leaders {
    /// Somebody says that `leader` leads in `term` (`None`: that the term has no leader yet).
    pub fn learn(&mut self, group: GroupId, term: u64, leader: Option<NodeId>) {
        let belief = self.beliefs.entry(group).or_insert(Belief { term: 0, leader: None, told: None });
        mark_if(Mark::LeaderClaimStale, || term < belief.term);
        let older = term < belief.term && !planted(Plant::OlderLeaderBelieved);
        if older || (term == belief.term && (leader.is_none() || belief.leader.is_some())) {
            return;
        }
        belief.term = term;
        belief.leader = leader;
        self.changed.insert(group);
    }

    /// The leader of `term` stepped down or was found not to lead.
    pub fn unlearn(&mut self, group: GroupId, term: u64) {
        if let Some(belief) = self.beliefs.get_mut(&group)
            && belief.term <= term
            && belief.leader.is_some()
        {
            belief.leader = None;
            self.changed.insert(group);
        }
    }

    pub fn forget(&mut self, group: GroupId) {
        self.beliefs.remove(&group);
        self.changed.remove(&group);
    }

    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.beliefs.get(&group)?.leader
    }

    pub fn term(&self, group: GroupId) -> u64 {
        self.beliefs.get(&group).map_or(0, |belief| belief.term)
    }

    /// Groups of which something is to be told.
    pub fn changed(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.changed.iter().copied()
    }

    /// What is to be told: changes, and leaders whose node fell silent or was heard of again.
    pub fn take_changed(&mut self, peers: &Peers, now: Mono) -> Vec<LeaderInfo> {
        let due = self.checked.is_none_or(|at| now.since(at) >= Millis(250));
        let mut groups = std::mem::take(&mut self.changed);
        if due {
            self.checked = Some(now);
            groups.extend(self.beliefs.keys().copied());
        }
        let mut out = Vec::new();
        for group in groups {
            let Some(belief) = self.beliefs.get_mut(&group) else { continue };
            let silent = |node: &NodeId| peers.silence(*node, now).is_none_or(|s| s < NODE_UNREACHABLE_AFTER);
            let info = LeaderInfo { group, leader: belief.leader.filter(silent), term: belief.term };
            if belief.told != Some(info) {
                belief.told = Some(info);
                out.push(info);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(7);

    #[test]
    fn an_older_term_never_replaces_a_newer_belief() {
        let mut leaders = Leaders::default();
        leaders.learn(GROUP, 5, Some(NodeId(1)));
        leaders.learn(GROUP, 4, Some(NodeId(2)));
        assert_eq!(leaders.leader(GROUP), Some(NodeId(1)));
        leaders.learn(GROUP, 6, None);
        assert_eq!((leaders.leader(GROUP), leaders.term(GROUP)), (None, 6));
        leaders.unlearn(GROUP, 5);
        leaders.learn(GROUP, 6, Some(NodeId(3)));
        assert_eq!(leaders.leader(GROUP), Some(NodeId(3)));
    }

    fn member(node: u64) -> Member {
        Member { node: NodeId(node), ..Member::default() }
    }

    fn table(applied: u64, nodes: &[u64]) -> Metadata {
        let mut metadata = Metadata::bootstrap(base::ClusterId([1; 16]), member(0), base::Wall(0));
        let record = |node: &u64| NodeRecord {
            member: member(*node),
            meta_replica: ReplicaId(*node),
            joined: base::Wall(0),
            lifecycle: metadata::NodeLifecycle::Active,
            successor: None,
        };
        metadata.nodes = nodes.iter().map(|node| (NodeId(*node), record(node))).collect();
        metadata.applied = applied;
        metadata
    }

    fn told(peers: &mut Peers, metadata: &Metadata) -> Option<Vec<u64>> {
        let members = peers.take_changed(NodeId(1), metadata)?;
        Some(members.iter().map(|member| member.node.0).collect())
    }

    #[test]
    fn whoever_is_behind_learns_of_new_members_from_others_until_its_own_table_is_there() {
        let (mut ahead, mut behind) = (Peers::default(), Peers::default());
        let (old, new) = (table(10, &[1, 2]), table(20, &[1, 2, 3]));
        ahead.follow(&old.nodes, &new);
        behind.follow(&OrdMap::new(), &old);
        assert_eq!(told(&mut behind, &old), Some(vec![1, 2]));
        assert_eq!(told(&mut behind, &old), None, "said already");

        assert_eq!(ahead.news_for(20, &new), None, "it knows");
        let news = ahead.news_for(19, &new).expect("it may not know");
        assert!(behind.take_members(10, news.clone()));
        assert_eq!(told(&mut behind, &old), Some(vec![1, 2, 3]));
        assert_eq!(behind.meta_node(&old, ReplicaId(3)), Some(NodeId(3)));
        assert!(!behind.take_members(10, news), "heard before");
        assert_eq!(told(&mut behind, &old), None);
        assert!(
            !behind.take_members(10, Members { meta_applied: 5, ..Members::default() }),
            "older than its own table"
        );

        // Its table has caught up, and says something else since.
        assert_eq!(told(&mut behind, &table(30, &[1, 3])), Some(vec![1, 3]));
        assert_eq!(told(&mut behind, &table(31, &[1, 3])), None);
    }

    #[test]
    fn a_table_without_this_node_itself_says_nothing_of_the_members() {
        let mut peers = Peers::default();
        assert_eq!(told(&mut peers, &table(5, &[2])), None);
        let members = vec![member(2), member(3)];
        let news = Members { meta_applied: 9, members, meta_replicas: vec![ReplicaId(2), ReplicaId(3)] };
        peers.take_members(5, news);
        assert_eq!(told(&mut peers, &table(5, &[2])), None);
    }

    #[test]
    fn a_leader_whose_node_fell_silent_is_told_as_unknown() {
        let (mut leaders, mut peers) = (Leaders::default(), Peers::default());
        peers.heard(NodeId(1), Mono(0));
        leaders.learn(GROUP, 2, Some(NodeId(1)));
        assert_eq!(leaders.take_changed(&peers, Mono(0))[0].leader, Some(NodeId(1)));
        let late = Mono(0).plus(NODE_UNREACHABLE_AFTER);
        assert_eq!(leaders.take_changed(&peers, late)[0].leader, None);
        peers.heard(NodeId(1), late);
        assert_eq!(leaders.take_changed(&peers, late.plus(Millis(250)))[0].leader, Some(NodeId(1)));
    }

    #[test]
    fn a_node_is_heard_of_since_its_last_silence_or_start() {
        let (node, mut peers) = (NodeId(1), Peers::default());
        let at = |ms: u64| Mono(0).plus(Millis(ms));
        peers.set_connected(node, Some(Incarnation(1)));
        for tenth in 0..30 {
            peers.heard(node, at(tenth * 100));
        }
        assert_eq!(peers.heard_for(node, at(2_900)), Some(Millis(2_900)));
        assert_eq!(peers.heard_for(node, at(2_900).plus(NODE_UNREACHABLE_AFTER)), None, "it is silent");
        let back = at(2_900).plus(NODE_UNREACHABLE_AFTER);
        peers.heard(node, back);
        assert_eq!(peers.heard_for(node, back.plus(Millis(100))), Some(Millis(100)));
        peers.set_connected(node, Some(Incarnation(2)));
        peers.heard(node, back.plus(Millis(200)));
        assert_eq!(peers.heard_for(node, back.plus(Millis(200))), Some(Millis(0)), "another process");
    }

    #[test]
    fn what_a_node_says_of_its_pace_is_news_once_and_again_when_it_changes_or_the_node_came_anew() {
        let (mut peers, before) = (Peers::default(), table(10, &[1, 2]));
        let pace = |ms: u64| Pace { heartbeat_interval: Millis(ms), election_timeout: Millis(1_000) };
        let news = [150, 150, 200, 200, 150].map(|ms| peers.pace_told(NodeId(2), pace(ms)));
        assert_eq!(news, [true, false, true, false, true]);
        assert!(peers.pace_told(NodeId(3), pace(150)), "of another node");
        peers.follow(&before.nodes, &table(11, &[1]));
        assert!(peers.pace_told(NodeId(2), pace(150)), "it was no member meanwhile");
    }

    #[test]
    fn a_disk_has_space_once_its_node_has_said_so_for_a_while_and_as_long_as_it_does() {
        let (node, mut peers) = (NodeId(1), Peers::default());
        // Says it every 100 ms in `times`.
        let tell = |peers: &mut Peers, incarnation: u64, full: Option<bool>, times: std::ops::Range<u64>| {
            for at in times.map(|tenth| Mono(0).plus(Millis(tenth * 100))) {
                peers.disk_told(node, Incarnation(incarnation), full, at);
            }
        };
        let has = |peers: &Peers, tenth: u64| peers.has_space(node, Mono(0).plus(Millis(tenth * 100)));
        let trusted = DISK_SPACE_TRUSTED_AFTER.0 / 100;

        peers.heard(node, Mono(0));
        assert!(!has(&peers, trusted), "it never said anything of its disk");
        tell(&mut peers, 1, None, 0..trusted + 1);
        assert!(!has(&peers, trusted), "it runs a version that does not say");
        tell(&mut peers, 1, Some(false), 0..trusted);
        assert!(!has(&peers, trusted - 1));
        assert!(has(&peers, trusted));
        assert!(!has(&peers, trusted * 2), "it fell silent on that");

        // On the brink: full for a moment, or a new process that may not have noticed yet.
        tell(&mut peers, 1, Some(true), trusted..trusted + 1);
        assert!(!has(&peers, trusted));
        tell(&mut peers, 1, Some(false), trusted..trusted * 2);
        assert!(!has(&peers, trusted * 2 - 1));
        assert!(has(&peers, trusted * 2));
        tell(&mut peers, 2, Some(false), trusted * 2..trusted * 3);
        assert!(!has(&peers, trusted * 3 - 1));
        assert!(has(&peers, trusted * 3));
    }
}
