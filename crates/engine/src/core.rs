//! The object itself: what it holds, how events come in and effects go out.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::APPLY_BYTES_MAX;
use base::simulation::{Mark, mark};
use base::{ErrorCode, GroupId, NodeId, Now};
use journal::{Journal, JournalConfig, RecoveredGroup};
use metadata::{Metadata, NodeLifecycle};
use multiraft::{MultiRaft, MultiRaftConfig};
use wire::{Channel, PeerMessage, RaftMessage};

use crate::balance::Balance;
use crate::checkpoints::Checkpoints;
use crate::directory::{Leaders, Peers};
use crate::disk_watch::DiskWatch;
use crate::groups::Group;
use crate::journal_events::Reads;
use crate::leases::Leases;
use crate::outbox::Outbox;
use crate::planner::Planner;
use crate::requests::{Requests, error};
use crate::room::Room;
use crate::session::Session;
use crate::shown::Shown;
use crate::stats::Stats;
use crate::superseded::Superseded;
use crate::tables::Tables;
use crate::twin::Twin;
use crate::vms::VmSide;
use crate::{CoreConfig, Effect, Event, Formation, Reply};

/// Passes of Raft and journal in one flush. Each may cause more work (a persisted round commits entries, a commit makes
/// proposals); this is far above what one flush needs, and keeps a mistake from turning into a hang.
const PASSES_MAX: usize = 64;

/// How far this process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Before the first flush.
    New,
    /// The journal is being read.
    Recovering,
    /// `__meta` is there; requests are carried out.
    Running,
    /// After [`Effect::Fatal`]: nothing is done any more.
    Stopped,
}

/// What there is to see is shown before anybody is answered, for whoever is answered looks right after; and whoever ends
/// the node has told everybody by then.
fn order(effect: &Effect) -> u8 {
    match effect {
        Effect::Members { .. } | Effect::Metadata { .. } => 0,
        Effect::Publish { .. } | Effect::Unpublish { .. } | Effect::Leaders(_) => 0,
        Effect::Reply { .. } => 2,
        Effect::Fatal(_) | Effect::Departed { .. } => 3,
        _ => 1,
    }
}

/// Everything of one node that decides: groups, tables, journal, planners. Events in, effects out.
pub struct NodeCore {
    pub(crate) config: CoreConfig,
    pub(crate) stage: Stage,
    pub(crate) now: Now,
    pub(crate) journal: Journal,
    pub(crate) raft: MultiRaft,
    pub(crate) next_round: u64,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// Replicas found in the journal whose record in `__meta` is not (yet) known.
    pub(crate) parked: BTreeMap<GroupId, RecoveredGroup>,
    /// Groups whose removal from the journal is under way.
    pub(crate) removing: BTreeSet<GroupId>,
    /// Requests for votes to replicas that do not run yet.
    pub(crate) early_votes: BTreeMap<GroupId, RaftMessage>,
    pub(crate) metadata: Tables,
    pub(crate) shown: Shown,
    /// Replicas here may have to be born, recovered or removed.
    pub(crate) partitions_due: bool,
    /// Partitions with news for their readers.
    pub(crate) unpublished: BTreeSet<GroupId>,
    pub(crate) leaders: Leaders,
    pub(crate) peers: Peers,
    pub(crate) requests: Requests,
    pub(crate) session: Session,
    pub(crate) planner: Planner,
    pub(crate) balance: Balance,
    pub(crate) leases: Leases,
    pub(crate) vms: VmSide,
    pub(crate) outbox: Outbox,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) room: Room,
    pub(crate) reads: Reads,
    pub(crate) stats: Stats,
    pub(crate) superseded: Superseded,
    pub(crate) twin: Twin,
    pub(crate) disk_full: bool,
    /// Since when, to the tick, or since it was last looked for somebody to lead instead.
    pub(crate) disk_watch: DiskWatch,
    pub(crate) disk_full_since: Option<base::Mono>,
    /// This process handed its leaderships away, to stop: it takes none until then.
    pub(crate) abstains_until: Option<base::Mono>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) sends: BTreeMap<(NodeId, Channel), Vec<PeerMessage>>,
}

impl NodeCore {
    /// A core at rest; the first [`NodeCore::flush`] starts recovery.
    #[must_use]
    pub fn new(config: CoreConfig, now: Now) -> Self {
        let tick_ms = base::limits::TICK.0.max(1);
        let ticks = |span: base::Millis| u32::try_from((span.0 / tick_ms).max(1)).unwrap_or(u32::MAX);
        let raft = MultiRaft::new(MultiRaftConfig {
            seed: config.seed,
            heartbeat_ticks: ticks(config.heartbeat_interval),
            election_ticks: ticks(config.election_timeout),
        });
        let mut core = NodeCore {
            stage: Stage::New,
            now,
            journal: Journal::new(JournalConfig { segment_bytes: config.segment_bytes }),
            raft,
            next_round: 1,
            groups: BTreeMap::new(),
            parked: BTreeMap::new(),
            removing: BTreeSet::new(),
            early_votes: BTreeMap::new(),
            metadata: Tables::default(),
            shown: Shown::default(),
            partitions_due: false,
            unpublished: BTreeSet::new(),
            leaders: Leaders::default(),
            peers: Peers::default(),
            requests: Requests::new(config.incarnation),
            session: Session::default(),
            planner: Planner::default(),
            balance: Balance::default(),
            leases: Leases::default(),
            vms: VmSide::default(),
            outbox: Outbox::default(),
            checkpoints: Checkpoints::default(),
            room: Room::default(),
            reads: Reads::default(),
            stats: Stats::new(now.mono),
            superseded: Superseded::default(),
            twin: Twin::default(),
            disk_full: false,
            disk_watch: DiskWatch::default(),
            disk_full_since: None,
            abstains_until: None,
            effects: Vec::new(),
            sends: BTreeMap::new(),
            config,
        };
        if let Formation::Join(accepted) = core.config.formation.clone() {
            core.peers.introduce(&accepted.members, &accepted.meta_replicas);
        }
        core
    }

    /// Takes in what happened. Several events may come before one flush, about
    /// [`base::limits::EVENTS_PER_FLUSH_MAX`] at most.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.now = now;
        if self.stage == Stage::Stopped {
            return self.refuse_when_stopped(event);
        }
        match event {
            Event::Tick => self.tick(),
            Event::Disk { op, result } => self.journal.complete(op, result),
            Event::Peer { from, messages } => self.take_messages(from, messages),
            Event::PeerUp { node, incarnation } => self.peer_up(node, incarnation),
            Event::PeerDown { node } => self.peer_down(node),
            Event::Request { id, deadline, target, request } => self.take_request(id, deadline, target, request),
            Event::Expelled { by } => self.expelled(by),
            Event::Worked(worked) => self.worked(worked),
            Event::Waiting(arrivals) => self.stats.arrivals = Some(arrivals),
            Event::Outdated { by, active } => self.refused_as_outdated(by, active),
            Event::Superseded { by } => self.superseded(by),
            Event::Twin { by, other } => self.told_of_twin(by, other),
            Event::Vm(report) => self.take_vm_report(report),
            Event::Answered { ticket, outcome } => self.driver_answered(ticket, outcome),
        }
    }

    /// Gives out what follows from all events since the last flush.
    pub fn flush(&mut self, now: Now) -> Vec<Effect> {
        self.now = now;
        if self.stage == Stage::New {
            self.stage = Stage::Recovering;
            self.journal.start();
        }
        self.begin_read_round();
        self.raft.let_apply(APPLY_BYTES_MAX);
        for _ in 0..PASSES_MAX {
            let journal = self.pump_journal();
            let raft = self.pump_raft();
            if !(journal || raft) || self.stage == Stage::Stopped {
                break;
            }
        }
        if self.stage == Stage::Running {
            self.after_changes();
        }
        if std::mem::take(&mut self.leaders.gossip_due) {
            self.gossip_now();
        }
        self.publish();
        self.collect_sends();
        self.take_effects()
    }

    /// Whether there is more to apply than one flush takes: the next one is to come at once, with whatever has happened.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.stage != Stage::Stopped && self.raft.is_behind()
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.effects);
        if self.stage == Stage::Stopped {
            // Behind its end a node does nothing but answer. What a read would have to see is not shown any more.
            let end = effects.iter().position(|effect| matches!(effect, Effect::Fatal(_))).unwrap_or(effects.len());
            let behind = effects.split_off(end.saturating_add(1).min(effects.len()));
            effects.extend(behind.into_iter().filter(|effect| matches!(effect, Effect::Reply { .. })));
            for effect in &mut effects {
                if let Effect::Reply { outcome, .. } = effect
                    && matches!(outcome, Ok(Reply::Done))
                {
                    *outcome = Err(error(ErrorCode::ShuttingDown, "this node is stopping"));
                }
            }
        }
        if !effects.is_sorted_by_key(order) {
            effects.sort_by_key(order);
        }
        effects
    }

    /// The state of the cluster, as far as this node has applied it.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn tick(&mut self) {
        self.journal.tick(self.now.mono);
        self.watch_disk();
        self.raft.tick(self.now);
        self.gossip();
        self.requests_tick();
        self.checkpoints_tick();
        self.session_tick();
        self.superseded_tick();
        self.planner.due = true;
    }

    /// What follows from changed tables and roles: planners, reconciler, publication. Runs once per flush.
    fn after_changes(&mut self) {
        if std::mem::take(&mut self.partitions_due) {
            self.sync_partitions();
        }
        self.follow_leaders();
        self.drive_session();
        self.drive_membership();
        self.drive_balance();
        self.drive_planner();
        self.drive_leases();
        self.drive_vms();
        self.drive_outbox();
        self.drive_checkpoints();
        // Proposals made just now leave with this flush.
        for _ in 0..PASSES_MAX {
            if !(self.pump_raft() || self.pump_journal()) || self.stage == Stage::Stopped {
                return;
            }
        }
    }

    fn publish(&mut self) {
        for group in std::mem::take(&mut self.unpublished) {
            if let Some(update) = self.groups.get_mut(&group).and_then(Group::take_update) {
                self.effects.push(Effect::Publish { group, update });
            }
        }
        let changed = self.leaders.take_changed(&self.peers, self.now.mono);
        if !changed.is_empty() {
            self.effects.push(Effect::Leaders(changed));
        }
        if self.stage != Stage::Running {
            return;
        }
        if let Some(members) = self.peers.take_changed(self.config.me.node, &self.metadata) {
            let departed = self.metadata.departed.values().map(|it| (it.node, it.endpoint)).collect();
            self.effects.push(Effect::Members { members, departed });
        }
        if let Some(at_once) = self.shown.take() {
            self.effects.push(Effect::Metadata { at_once });
        }
    }

    fn collect_sends(&mut self) {
        for ((to, channel), messages) in std::mem::take(&mut self.sends) {
            self.effects.push(Effect::Send { to, channel, messages });
        }
    }

    /// Sends a message with this flush. What not all members understand yet is not sent.
    pub(crate) fn send(&mut self, to: NodeId, channel: Channel, message: PeerMessage) {
        if to != self.config.me.node && message.since() <= self.metadata.cluster_version {
            self.sends.entry((to, channel)).or_default().push(message);
        }
    }

    /// The node must stop. What waits is answered, so that nobody hangs.
    pub(crate) fn fatal(&mut self, reason: String) {
        if self.stage != Stage::Stopped {
            self.stage = Stage::Stopped;
            self.fail_all_requests(&reason);
            self.effects.push(Effect::Fatal(reason));
        }
    }

    /// A member says that the cluster has forgotten this node.
    fn expelled(&mut self, by: NodeId) {
        mark(Mark::NodeExpelled);
        let leaving = |record: &metadata::NodeRecord| record.lifecycle == NodeLifecycle::Leaving;
        if self.stage == Stage::Stopped {
            return;
        }
        // A later process of a node that has left is as unwanted as any other.
        let asked = self.session.is_open() && self.metadata.nodes.get(&self.me()).is_some_and(leaving);
        let reason = match asked {
            true => "this node has left the cluster".to_owned(),
            false => format!(
                "node {by} says that this node was removed from the cluster: its data is of no use any more. To have it \
                 again, wipe the data directory and join anew with a token"
            ),
        };
        self.stage = Stage::Stopped;
        self.fail_all_requests(&reason);
        self.effects.push(Effect::Departed { asked, reason });
    }

    pub(crate) fn me(&self) -> NodeId {
        self.config.me.node
    }
}
