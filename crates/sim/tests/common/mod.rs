//! One node's core on a disk that does everything at once. Whoever else there is, the test plays.
#![allow(dead_code, reason = "each test file uses its part")]

use base::{ClusterId, GroupId, Incarnation, Millis, NodeId, Now, RequestId, limits};
use compute::VmAction;
use engine::{CoreConfig, Effect, Event, Formation, NodeCore, Reply, Request, RequestError, Target, Work};
use journal::{DiskError, OpId};
use metadata::Command;
use sim::disk::VirtualDisk;
use wire::{Channel, Member, PeerMessage};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);

/// What the process of the node `me` is told at its start.
pub fn config(me: Member, formation: Formation, incarnation: u64) -> CoreConfig {
    CoreConfig {
        me,
        cluster: CLUSTER,
        formation,
        incarnation: Incarnation(incarnation),
        seed: 1,
        segment_bytes: 1 << 20,
        election_timeout: limits::ELECTION_TIMEOUT_MIN,
        heartbeat_interval: limits::HEARTBEAT_INTERVAL,
        checkpoint_entries: 1_000,
        checkpoint_keep_entries: 10,
        checkpoint_part_bytes: 1 << 10,
        checkpoint_bytes_max: limits::CHECKPOINT_BYTES_MAX,
        node_lost_after: limits::NODE_LOST_AFTER,
        observe: false,
    }
}

/// See the module.
pub struct LoneNode {
    pub core: NodeCore,
    pub disk: VirtualDisk,
    pub now: Now,
    /// Why it stopped.
    pub stopped: Option<String>,
    /// What it said of itself for its log, in order.
    pub warnings: Vec<String>,
    /// What it said to others, in order.
    pub sent: Vec<PeerMessage>,
    /// The same as it was handed to the transport: to whom, by which channel.
    pub sends: Vec<(NodeId, Channel, Vec<PeerMessage>)>,
    /// What it answered, in order.
    pub replies: Vec<(RequestId, Result<Reply, RequestError>)>,
    /// What it asked of its hypervisor, in order.
    pub actions: Vec<VmAction>,
    /// While it is, what the disk was asked for does not end.
    pub disk_stuck: bool,
    /// While it is, whatever the disk was asked for ends with this error.
    pub disk_error: Option<DiskError>,
    /// While it is, what was to be worked beside the core does not end.
    pub work_stuck: bool,
    /// What is worked beside it.
    pub works: Vec<Work>,
    under_way: Vec<OpId>,
}

impl LoneNode {
    /// A process that was started, and has not turned yet.
    pub fn new(config: CoreConfig, disk: VirtualDisk) -> LoneNode {
        let now = Now::default();
        LoneNode {
            core: NodeCore::new(config, now),
            disk,
            now,
            stopped: None,
            warnings: Vec::new(),
            sent: Vec::new(),
            sends: Vec::new(),
            replies: Vec::new(),
            actions: Vec::new(),
            disk_stuck: false,
            disk_error: None,
            work_stuck: false,
            works: Vec::new(),
            under_way: Vec::new(),
        }
    }

    /// A process that has done what it can by itself.
    pub fn run(config: CoreConfig, disk: VirtualDisk) -> LoneNode {
        let mut node = LoneNode::new(config, disk);
        node.settle();
        node
    }

    /// Why it stopped.
    pub fn last_words(&self) -> &str {
        self.stopped.as_deref().expect("it stopped")
    }

    /// Flushes, and carries out what is asked for, until nothing more is.
    pub fn settle(&mut self) {
        while self.turn() {}
    }

    /// Flushes once, and carries out what is asked for. Whether there is more to do.
    pub fn turn(&mut self) -> bool {
        for effect in self.core.flush(self.now) {
            match effect {
                Effect::Disk(op) => {
                    self.under_way.push(op.id);
                    self.disk.submit(op, 0).expect("independent operations");
                }
                Effect::Work(work) => self.works.push(work),
                Effect::Send { to, channel, messages } => {
                    self.sent.extend(messages.iter().cloned());
                    self.sends.push((to, channel, messages));
                }
                Effect::Reply { id, outcome } => self.replies.push((id, outcome)),
                Effect::Vm(action) => self.actions.push(action),
                Effect::Warning(what) => self.warnings.push(what),
                Effect::Fatal(reason) | Effect::Departed { reason, .. } => self.stopped = Some(reason),
                _ => {}
            }
        }
        let works = if self.work_stuck { Vec::new() } else { std::mem::take(&mut self.works) };
        let ended = if self.disk_stuck { Vec::new() } else { std::mem::take(&mut self.under_way) };
        let more = !works.is_empty() || !ended.is_empty() || self.core.has_more();
        works.into_iter().for_each(|work| self.core.handle(self.now, Event::Worked(work.carry_out())));
        for op in ended {
            let result = self.disk.complete(op).expect("under way");
            let result = self.disk_error.clone().map_or(result, Err);
            self.core.handle(self.now, Event::Disk { op, result });
        }
        more
    }

    /// Something happens.
    pub fn tell(&mut self, event: Event) {
        self.core.handle(self.now, event);
        self.settle();
    }

    /// Somebody on the node wants a command carried out.
    pub fn command(&mut self, id: u64, command: Command) {
        let deadline = self.now.mono.plus(limits::REQUEST_DEADLINE_DEFAULT);
        let (id, target) = (RequestId(id), Target::Leader(GroupId::META));
        self.tell(Event::Request { id, deadline, target, request: Request::Command(command) });
    }

    /// So many milliseconds pass.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now.mono.plus(Millis(ms));
        while self.now.mono < end {
            self.now.mono = self.now.mono.plus(limits::TICK);
            self.tell(Event::Tick);
        }
    }
}
