//! The driver of a simulated node: hands events to its core and carries out the effects, as the real node's drivers do.
//! Like those, it decides nothing. What a checker or the trace must know is noted on the way.

use std::collections::{BTreeMap, BTreeSet};

use base::simulation::Mark;
use base::{GroupId, ReplicaId, hash64};
use bytes::Bytes;
use compute::{GUEST_SHUTDOWN, VmReport, VmReportEvent};
use engine::{Effect, Event, Work};
use journal::{DiskOpKind, FileId, OpId};
use metadata::{Command, Metadata};
use multiraft::Role;
use wire::{Channel, Entry, EntryKind, PeerFrame, PeerMessage};

use crate::check::{Held, Seen};
use crate::config::Fault;
use crate::disk::BROKEN;
use crate::mistake::{Mistake, Seam};
use crate::node::Stage;
use crate::queue::{Ev, NodeIx};
use crate::time::{ms, us};
use crate::watch::watch_event;
use crate::world::{World, place};

/// Events handed over before one flush.
const EVENTS_MAX: usize = base::limits::EVENTS_PER_FLUSH_MAX;

impl World {
    /// The process looks at its inbox: hands over what is there, flushes once, and carries out what comes back.
    pub fn wake(&mut self, node: NodeIx, boot: u64) {
        let now = self.queue.now;
        let it = &mut self.nodes[node];
        if it.boot != boot {
            return;
        }
        it.awake = false;
        let clocks = it.now(now);
        let count = it.inbox.len().min(EVENTS_MAX);
        if !it.runs() {
            return;
        }
        // What the world itself marked since the last look is nobody's.
        self.count_marks();
        let it = &mut self.nodes[node];
        let Some(core) = it.core.as_mut() else { return };
        for event in it.inbox.drain(..count) {
            self.trace.event(now, node, || show_event(&event));
            watch_event(&mut self.checks.contact, node, now, &event);
            core.handle(clocks, event);
        }
        let effects = core.flush(clocks);
        let more = !it.inbox.is_empty() || core.has_more();
        let reached = self.count_marks();
        if !reached.is_empty() {
            self.nodes[node].last_install_failed &= !reached.contains_key(&Mark::CheckpointInstalled);
            self.watch_marks(node, &reached);
        }
        self.carry_out(node, effects);
        if more {
            self.wake_soon(node);
        }
    }

    /// Counts the rare states reached since the last time, and says which.
    pub fn count_marks(&mut self) -> BTreeMap<Mark, u64> {
        let marks = base::simulation::take_marks();
        for (mark, count) in &marks {
            *self.stats.marks.entry(*mark).or_default() += count;
        }
        marks
    }

    /// What the checkers must know of one flush comes before what clients and readers see of it.
    fn carry_out(&mut self, node: NodeIx, effects: Vec<Effect>) {
        let order = |effect: &Effect| match effect {
            Effect::Role { .. } | Effect::Applied { .. } => 0,
            _ => 1,
        };
        let mut effects = effects;
        if !effects.is_sorted_by_key(order) {
            effects.sort_by_key(order);
        }
        let recovered = effects.contains(&Effect::Recovered);
        self.born(node);
        let settled: BTreeSet<GroupId> = effects.iter().filter_map(settles_members).collect();
        let grown: BTreeSet<GroupId> = effects.iter().filter_map(grows).collect();
        for effect in effects {
            if self.violation.is_some() {
                return;
            }
            self.trace.event(self.queue.now, node, || show_effect(&effect));
            self.watch_effect(node, &effect);
            self.effect(node, effect);
        }
        // The core shows its state as it is after all of this flush.
        for group in settled {
            self.check_members(node, group);
        }
        if recovered {
            self.came_back(node);
        }
        self.observe_state(node);
        for group in grown {
            self.observe_replica(node, group);
        }
        self.checks.elections.flushed();
    }

    fn effect(&mut self, node: NodeIx, effect: Effect) {
        match effect {
            Effect::Disk(op) => {
                let (now, id) = (self.queue.now, op.id);
                if matches!(op.kind, DiskOpKind::Write { file: FileId::Wal(_), .. }) {
                    self.checks.contact.writes(node, now, id.0);
                }
                match self.nodes[node].disk.submit(op, now) {
                    Ok(delay) => {
                        let boot = self.nodes[node].boot;
                        self.queue.after(delay, Ev::Disk { node, boot, op: id });
                    }
                    Err(why) => self.fail("disk operations depend on completions", format!("n{node}: {why}")),
                }
            }
            Effect::Send { to, channel, messages } => self.send(node, to, channel, messages),
            Effect::Reply { id, outcome } => self.replied(node, id, outcome),
            Effect::Publish { group, update } => {
                let verdict = self.checks.partitions.published(node, group, &update);
                self.check("partitions", verdict);
                let taken = self.consumers.published(node, group, update);
                self.check("partitions", taken.map_err(|why| format!("n{node}, group {group}: {why}")));
            }
            Effect::Unpublish { group } => {
                self.checks.partitions.unpublished(node, group);
                self.consumers.unpublished(node, group);
                self.checks.logs.removed(node, group);
                self.checks.contact.removed(node, group);
                self.checks.leaders.removed(node, group);
            }
            Effect::Leaders(news) => {
                let verdict = news.iter().try_for_each(|info| self.checks.leaders.told(node, info));
                self.check("clients hear of one leader per term, in order", verdict);
                self.nodes[node].leaders.extend(news.into_iter().map(|info| (info.group, info)));
            }
            Effect::Metadata { at_once } => self.nodes[node].changed(at_once),
            Effect::Warning(_) | Effect::Outdone { .. } => {}
            Effect::Members { members, departed } => self.members_told(node, members, departed),
            Effect::Vm(action) => self.vm_action(node, &action),
            Effect::Work(work) => self.work(node, work),
            Effect::Formed => {
                let (boot, delay) = (self.nodes[node].boot, us(self.random.between(200, 5_000)));
                if self.nodes[node].stage != Stage::Formed {
                    self.queue.after(delay, Ev::FormedDurable { node, boot });
                }
            }
            Effect::Recovered => {
                self.trace.note(self.queue.now, node, || "has recovered".into());
                self.nodes[node].recovered = true;
            }
            Effect::Applied { group, entry } => self.applied(node, group, &entry),
            Effect::Role { group, replica, role, term } => {
                self.trace.note(self.queue.now, node, || show_role(group, role, term));
                self.watch_role(node, group, role, term);
                self.role(node, group, replica, role, term);
            }
            Effect::ReadPartition { ticket, read } => self.read_for_another(node, ticket, read),
            // Asked for by an operation that no simulated client uses.
            Effect::ListTasks { .. } => {}
            Effect::Departed { asked, reason } => self.departs(node, asked, &reason),
            Effect::Fatal(why) => self.stopped(node, &why),
        }
    }

    /// A node ends itself, which it must not do but for what leaves it no choice.
    fn stopped(&mut self, node: NodeIx, why: &str) {
        // The only thing that it may do with what it wrote and does not read back.
        if self.nodes[node].disk.is_rotten() && why.contains("damaged") {
            self.found_rotten(node, why);
        } else if self.is_outdated(node) && why.contains("upgrade muster on this node") {
            self.stopped_as_outdated(node, why);
        } else if why.ends_with(BROKEN) {
            self.stopped_by_disk(node, why);
        } else {
            self.fail("no node stops by itself", format!("n{node}: {why}"));
        }
    }

    /// The cluster comes into being with the state of its founder.
    fn born(&mut self, node: NodeIx) {
        let Some(core) = self.nodes[node].core.as_ref().filter(|_| self.checks.commands.last().is_none()) else {
            return;
        };
        let state = core.metadata();
        if self.checks.commands.born(state) {
            let verdict = self.checks.members.tables(None, state);
            self.check("replicas have one owner", verdict);
        }
    }

    fn applied(&mut self, node: NodeIx, group: GroupId, entry: &Entry) {
        if group == GroupId::META {
            self.check_readable(node, entry);
        }
        let term = self.nodes[node].core.as_ref().and_then(|core| core.term(group)).unwrap_or(u64::MAX);
        match self.checks.logs.applied(node, group, entry, term) {
            Ok(Seen::Again) => return,
            Ok(Seen::Sooner) => {}
            Ok(Seen::First) => self.committed(group, entry),
            Err(why) => return self.fail("log matching", why),
        }
        let verdict = self.checks.logs.led_without(group, entry.index);
        self.check("leader completeness", verdict);
    }

    /// An entry that nobody applied before.
    fn committed(&mut self, group: GroupId, entry: &Entry) {
        let verdict = self.checks.members.keeps_tolerance(group, entry, &self.checks.commands);
        self.check("changes of members cost no fault tolerance", verdict);
        let verdict = self.checks.members.committed(group, entry, self.checks.commands.last());
        self.check("majorities overlap", verdict);
        if group != GroupId::META {
            return;
        }
        let before = self.checks.commands.last().cloned();
        let verdict = self.checks.commands.committed(entry);
        self.check("commands are applied once", verdict);
        if let Some(state) = self.checks.commands.last() {
            let verdict = self.checks.members.tables(before.as_ref(), state);
            self.check("replicas have one owner", verdict);
        }
        self.check_version(entry.index, before.as_ref());
        self.judge_replacements(entry.index, before.as_ref());
        self.took_note(entry.index, before.as_ref());
        if let Some(command) = self.checks.commands.command(entry.index) {
            let verdict = self.checks.leases.committed(command, self.queue.now);
            self.check("leases live as long as their holders were told", verdict);
        }
    }

    /// If the entry is a report that a guest powered itself off: whether the cluster took it for a stop.
    fn took_note(&mut self, index: u64, before: Option<&Metadata>) {
        let Some(Command::ReportVm { report, .. }) = self.checks.commands.command(index) else { return };
        if matches!(&report.event, VmReportEvent::Exited { reason } if reason == GUEST_SHUTDOWN) {
            let runs = |state: &Metadata| {
                state.vms.get(&report.vm).is_some_and(|vm| vm.desired == compute::VmDesired::Running)
            };
            let stopped = before.is_some_and(runs) && !self.checks.commands.last().is_some_and(runs);
            let start = (report.vm, report.epoch, report.incarnation);
            self.checks.names.power_off_told(start, stopped, self.queue.now);
        }
    }

    /// Something is done beside a node's core, for as long as it takes.
    fn work(&mut self, node: NodeIx, work: Work) {
        let took = if self.random.chance(50_000) { ms(300) } else { us(self.random.between(50, 5_000)) };
        let boot = self.nodes[node].boot;
        self.queue.after(took, Ev::Worked { node, boot, worked: Box::new(work.carry_out()) });
    }

    /// A node's configuration of a group is what the committed entries say.
    fn check_members(&mut self, node: NodeIx, group: GroupId) {
        let it = &self.nodes[node];
        if let Some(status) = it.core.as_ref().and_then(|core| core.raft_status(group)) {
            let verdict = self.checks.members.has(it.id(), group, status.applied, &status.membership);
            self.check("members are as committed", verdict);
        }
    }

    fn role(&mut self, node: NodeIx, group: GroupId, replica: ReplicaId, role: Role, term: u64) {
        let (id, boot) = (self.nodes[node].id(), self.nodes[node].boot);
        let verdict = self.checks.members.speaks(id, group, replica);
        self.check("replicas have one owner", verdict);
        match self.checks.elections.role(group, (replica, boot), role, term) {
            Ok(true) => {
                self.took_over(node, group, term);
                self.elected(group);
            }
            Ok(false) => {}
            Err(why) => self.fail("election safety", why),
        }
    }

    /// A leader of a new term has all that was committed before it.
    fn took_over(&mut self, node: NodeIx, group: GroupId, term: u64) {
        let Some(core) = &self.nodes[node].core else { return };
        // It may have lost the lead in the same flush, and its log with it.
        let Some(status) = core.raft_status(group).filter(|status| status.term == term) else { return };
        let held = Held { term, first_index: status.first_index, last_index: status.last_index };
        let verdict = self.checks.logs.leads(node, group, held, |index| core.log_term(group, index));
        self.check("leader completeness", verdict);
    }

    /// A leader of a new term: in a healthy run every group has one, once.
    fn elected(&mut self, group: GroupId) {
        let (won, (_, term)) = (self.checks.elections.won(group), self.checks.elections.highest_term());
        if self.cfg.faults.0.is_empty() && !self.cfg.breaks(Seam::LyingDisk) && (won > 1 || term > 2) {
            let what = format!("election number {won} in group {group}, highest term {term}, and nothing is wrong");
            self.fail("no elections in a healthy cluster", what);
        }
    }

    fn came_back(&mut self, node: NodeIx) {
        let Some(status) = self.nodes[node].core.as_ref().map(engine::NodeCore::status) else { return };
        // Partitions are recovered later, when the table that knows them is.
        for view in status.groups.into_iter().filter(|view| view.role != "recovering") {
            let verdict = self.checks.elections.came_back(view.group, view.replica, view.term);
            self.check("terms survive a restart", verdict);
        }
    }

    fn observe_state(&mut self, node: NodeIx) {
        let Some(core) = &self.nodes[node].core else { return };
        let state = core.metadata();
        if state.applied > 0 && !self.checks.states.knows(node, state.applied) {
            let verdict = self.checks.states.observed(node, state, self.checks.commands.at(state.applied));
            let events = self.checks.events.observed(state);
            let machines = self.checks.machines.observed(state);
            let watched = self.checks.watchers.entry(node).or_default().reads(state);
            self.check("state machines are equal", verdict.and(events));
            self.check("machines run that say so", machines);
            self.check("who watches keys misses nothing", watched);
        }
    }

    fn observe_replica(&mut self, node: NodeIx, group: GroupId) {
        let core = self.nodes[node].core.as_ref();
        if let Some((index, digest)) = core.and_then(|core| core.partition_digest(group)) {
            let verdict = self.checks.states.replica(node, group, index, digest);
            self.check("state machines are equal", verdict);
        }
    }

    // ---- Disk and hypervisor ----

    /// A disk operation ends.
    pub fn disk_done(&mut self, node: NodeIx, boot: u64, op: OpId) {
        let now = self.queue.now;
        let it = &mut self.nodes[node];
        if it.boot != boot {
            return;
        }
        if it.disk.mood.stuck_until > now {
            // Under way when the disk got stuck.
            self.queue.at(it.disk.mood.stuck_until, Ev::Disk { node, boot, op });
            return;
        }
        if let Some(result) = it.disk.complete(op) {
            self.checks.contact.wrote(node, op.0);
            self.tell(node, Event::Disk { op, result });
        }
    }

    fn vm_action(&mut self, node: NodeIx, action: &compute::VmAction) {
        let boot = self.nodes[node].boot;
        match self.nodes[node].host.act(action) {
            Ok(reports) => {
                if let compute::VmAction::Start(start) = action {
                    let verdict = self.starts_rightly(node, start);
                    self.check("a VM runs on one node", verdict);
                }
                for (delay, report) in reports {
                    self.queue.after(delay, Ev::Vm { node, boot, report });
                }
            }
            Err(why) => self.fail("no action under a stale epoch", format!("n{node}: {why}")),
        }
    }

    /// A node starts a VM that was assigned to it under that epoch, and that runs nowhere else.
    fn starts_rightly(&self, node: NodeIx, start: &compute::VmStart) -> Result<(), String> {
        let (vm, epoch) = (start.vm, start.epoch);
        let assigned = self.checks.commands.assigned(vm, epoch);
        if assigned != Some(self.nodes[node].id()) {
            return Err(format!("n{node} starts {vm:?} under epoch {epoch}, which belongs to node {assigned:?}"));
        }
        let runs_too = |other: &&crate::node::SimNode| other.ix != node && other.host.running().contains_key(&vm);
        match self.nodes.iter().find(runs_too) {
            Some(other) => Err(format!("n{node} starts {vm:?}, which runs on n{} too", other.ix)),
            None => Ok(()),
        }
    }

    /// A machine's report is due.
    pub fn vm_report(&mut self, node: NodeIx, boot: u64, report: VmReport) {
        let it = &mut self.nodes[node];
        if it.boot != boot {
            // The next process, if it is there already, watches what it adopted.
            let ended = it.host.happen_unheard(&report);
            if let Some(ended) = ended.filter(|_| it.core.is_some()) {
                it.host.tell_lost(ended.vm);
                self.tell(node, Event::Vm(ended));
            }
            return;
        }
        if it.host.speak(&report) {
            self.checks.machines.said(&report);
            self.powered_off(&report);
            self.tell(node, Event::Vm(report));
        }
    }

    /// A guest that powers itself off is to stay so: its word counts like its user's.
    fn powered_off(&mut self, report: &VmReport) {
        let off = matches!(&report.event, VmReportEvent::Exited { reason } if reason == GUEST_SHUTDOWN);
        let Some(state) = self.checks.commands.last().filter(|_| off) else { return };
        if let Some(vm) = state.vms.get(&report.vm) {
            let name = vm.name.clone();
            let start = (report.vm, report.epoch, report.incarnation);
            self.checks.names.powered_off(&name, start, self.queue.now);
        }
        self.stats.fault("power-off");
    }

    // ---- Messages ----

    fn send(&mut self, node: NodeIx, to: base::NodeId, channel: Channel, messages: Vec<PeerMessage>) {
        for message in &messages {
            if let PeerMessage::Raft { group, message } = message {
                let verdict = self.checks.elections.sent(*group, message);
                self.check("one vote per term", verdict);
                let verdict = self.checks.elections.speaks_up(*group, message);
                self.check("terms never go back", verdict);
                let verdict = self.checks.elections.speaks_as_leader(*group, message);
                self.check("election safety", verdict);
                let verdict = self.checks.members.speaks(self.nodes[node].id(), *group, message.from);
                self.check("replicas have one owner", verdict);
            }
        }
        if self.was_member(to) {
            // Nobody is there, or somebody else.
            self.stats.frames_lost += 1;
            return;
        }
        let Some(peer) = self.place_of(node, to) else {
            return self.fail("messages go to members", format!("n{node} sends to {to:?}, which never was a member"));
        };
        if peer == node {
            return self.fail("messages go to others", format!("n{node} sends to itself"));
        }
        // As the transport has it: what keeps leadership alive overtakes the rest.
        let (urgent, rest): (Vec<_>, Vec<_>) = messages.into_iter().partition(PeerMessage::is_urgent);
        for (urgent, messages) in [(true, urgent), (false, rest)] {
            if !messages.is_empty() {
                self.send_frame((node, peer), (channel, urgent), messages);
            }
        }
    }

    fn send_frame(&mut self, (node, peer): (NodeIx, NodeIx), lane: (Channel, bool), messages: Vec<PeerMessage>) {
        let channel = lane.0;
        let frame = PeerFrame::encode(&messages);
        self.stats.frames += 1;
        match self.net.send(self.queue.now, node, peer, lane, frame.len()) {
            Some((at, session)) => {
                if let Some(later) = self.net.echo() {
                    self.stats.frames_doubled += 1;
                    let frame = frame.clone();
                    self.queue.at(at + later, Ev::Deliver { from: node, to: peer, channel, session, frame });
                }
                self.queue.at(at, Ev::Deliver { from: node, to: peer, channel, session, frame });
            }
            None => self.stats.frames_lost += 1,
        }
    }

    /// The machine with that id: one that started, or one that the sender's table names (it was admitted and does not
    /// know it yet).
    fn place_of(&self, sender: NodeIx, id: base::NodeId) -> Option<NodeIx> {
        let in_table = || {
            let record = self.nodes[sender].core.as_ref()?.metadata().nodes.get(&id)?;
            place(&record.member.address.endpoint)
        };
        // A joiner may be told of another that was admitted and never heard of it.
        let told = || {
            let members = &self.nodes[sender].accepted.as_ref()?.members;
            place(&members.iter().find(|member| member.node == id)?.address.endpoint)
        };
        let connected = || {
            let members = &self.nodes[sender].members;
            place(&members.iter().find(|member| member.node == id)?.address.endpoint)
        };
        self.places.get(&id).copied().or_else(in_table).or_else(told).or_else(connected)
    }

    /// A frame arrives, if its connection still lives.
    pub fn deliver(&mut self, from: NodeIx, to: NodeIx, channel: Channel, session: u64, frame: &Bytes) {
        if !self.net.arrives(from, to, session) {
            self.stats.frames_lost += 1;
            return;
        }
        let id = self.nodes[from].id();
        let Ok(PeerFrame { mut messages, unknown: 0 }) = PeerFrame::decode(frame) else {
            return self.fail("frames survive the codec", format!("n{from} sent n{to} a frame that cannot be read"));
        };
        if let Some(Mistake::Seam(seam)) = self.cfg.plant {
            self.tamper(seam, channel, &mut messages);
        }
        self.damage(to, &mut messages);
        self.tell(to, Event::Peer { from: id, messages });
    }

    /// What bad weather does to parts of checkpoints.
    fn damage(&mut self, to: NodeIx, messages: &mut [PeerMessage]) {
        for message in messages {
            if let PeerMessage::CheckpointChunk(chunk) = message
                && let Some(damaged) = self.net.damaged(&chunk.data)
            {
                let (index, offset) = (chunk.index, chunk.offset);
                self.trace.node(self.queue.now, to, || format!("checkpoint {index} is damaged behind byte {offset}"));
                self.stats.fault(Fault::Damage.name());
                chunk.data = Bytes::from(damaged);
            }
        }
    }

    /// What a planted mistake of the network does.
    fn tamper(&mut self, seam: Seam, channel: Channel, messages: &mut [PeerMessage]) {
        for message in messages.iter_mut() {
            match (seam, message) {
                (Seam::ForgedVotes, PeerMessage::Raft { message, .. })
                    if message.kind == wire::RaftMessageKind::VoteResponse =>
                {
                    message.reject = false;
                }
                (Seam::RaisedTerms, PeerMessage::Raft { message, .. })
                    if channel == Channel::Control && self.random.chance(100_000) =>
                {
                    message.term += 1;
                }
                (Seam::FlippedEntries, PeerMessage::Raft { message, .. }) => {
                    for entry in &mut message.entries {
                        if entry.kind == wire::EntryKind::Batch && self.random.chance(20_000) {
                            let mut data = entry.data.to_vec();
                            if let Some(last) = data.last_mut() {
                                *last ^= 1;
                            }
                            entry.data = Bytes::from(data);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// The group of which this effect shows a new state.
fn grows(effect: &Effect) -> Option<GroupId> {
    match effect {
        Effect::Applied { group, .. } => Some(*group),
        _ => None,
    }
}

/// The group whose members may be others after this effect, or matter more.
fn settles_members(effect: &Effect) -> Option<GroupId> {
    match effect {
        Effect::Applied { group, entry } if entry.kind == EntryKind::Membership => Some(*group),
        Effect::Role { group, role: Role::Leader, .. } => Some(*group),
        _ => None,
    }
}

fn show_role(group: GroupId, role: Role, term: u64) -> String {
    let what = match role {
        Role::Leader => "leads",
        Role::PreCandidate => "asks whether to stand for",
        Role::Candidate => "stands for",
        Role::Follower => "follows in",
    };
    format!("{what} g{group}, term {term}")
}

fn show_event(event: &Event) -> String {
    match event {
        Event::Tick => "<- tick".into(),
        Event::Disk { op, result } => {
            let result = match result {
                Ok(journal::DiskDone::Data(data)) => format!("{} bytes #{:08x}", data.len(), crc32c::crc32c(data)),
                other => format!("{other:?}"),
            };
            format!("<- disk {} {result}", op.0)
        }
        Event::Peer { from, messages } => format!("<- peer {from}{}", show_messages(messages)),
        other => format!("<- {other:?}"),
    }
}

fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::Disk(op) => format!("-> disk {} {}", op.id.0, show_disk(&op.kind)),
        Effect::Send { to, channel, messages } => format!("-> {channel:?} to {to}{}", show_messages(messages)),
        Effect::Publish { group, update } => {
            let batches: Vec<_> = update
                .committed
                .iter()
                .map(|b| format!("{}..={} at {}", b.base_offset, b.last_offset, b.index))
                .collect();
            let (high, epoch, reset) = (update.high_watermark, update.leader_epoch, update.reset);
            format!("-> publish {group} to {high} epoch {epoch:?} reset {reset} {}", batches.join(" "))
        }
        Effect::Metadata { at_once } => format!("-> metadata, at once: {at_once}"),
        Effect::Members { members, departed } => {
            let ids: Vec<_> = members.iter().map(|it| it.node).collect();
            format!("-> members {ids:?}, {} departed", departed.len())
        }
        Effect::Applied { group, entry } => {
            let Entry { index, term, kind, data } = entry;
            format!("-> applied {group} index {index} term {term} {kind:?} #{:016x}", digest(data))
        }
        Effect::Reply { id, outcome: Ok(engine::Reply::Status(_)) } => format!("-> reply {id} with a status"),
        other => format!("-> {}", shorten(format!("{other:?}"))),
    }
}

fn show_disk(kind: &journal::DiskOpKind) -> String {
    match kind {
        journal::DiskOpKind::Write { file, offset, data, .. } => {
            let crc = data.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
            let bytes: usize = data.iter().map(Bytes::len).sum();
            format!("{} {file:?} at {offset}, {bytes} bytes #{crc:08x}", crate::disk::name(kind))
        }
        other => format!("{other:?}"),
    }
}

fn show_messages(messages: &[PeerMessage]) -> String {
    messages.iter().map(|message| format!(" [{}]", show_message(message))).collect()
}

fn show_message(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Raft { group, message: m } => {
            let entries: Vec<u64> = m.entries.iter().map(|entry| entry.index).collect();
            format!(
                "g{group} {:?} {}->{} t{} lt{} i{} c{} e{entries:?}{}",
                m.kind,
                m.from,
                m.to,
                m.term,
                m.log_term,
                m.index,
                m.commit,
                if m.reject { " reject" } else { "" }
            )
        }
        PeerMessage::Forward(forward) => format!("forward {} #{:016x}", forward.id, digest(&forward.body)),
        PeerMessage::ForwardReply(reply) => format!("forward reply {} #{:016x}", reply.id, digest(&reply.body)),
        PeerMessage::CheckpointChunk(chunk) => {
            format!("checkpoint chunk g{} i{} at {} of {}", chunk.group, chunk.index, chunk.offset, chunk.total)
        }
        other => shorten(format!("{other:?}")),
    }
}

fn digest(bytes: &[u8]) -> u64 {
    hash64(&[u64::from(crc32c::crc32c(bytes)), bytes.len() as u64])
}

/// Long texts end in their digest, so that a trace stays readable and still shows every difference.
fn shorten(text: String) -> String {
    match text.char_indices().nth(400) {
        Some((cut, _)) => format!("{}... #{:016x}", &text[..cut], digest(text.as_bytes())),
        None => text,
    }
}
