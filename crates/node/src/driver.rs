//! The thread that owns the core: hands in events, carries out effects, decides nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::RequestId;
use base::limits::EVENTS_PER_FLUSH_MAX;
use engine::{Arrivals, Effect, Event, NodeCore, Reply, RequestError, TaskLine};

use metadata::Metadata;
use runtime::{CancellationToken, Clock, PULSE, Pulse, Supervisor, take_ready};
use tokio::sync::{mpsc, oneshot, watch};
use transport::{Inbox, Incoming, PeerLink, Transport};

use crate::beside::Beside;
use crate::data_dir::Keeper;
use crate::disk::Disk;
use crate::handle::{Asked, NodeHandle, Views};
use crate::join::JoinCall;
use crate::metrics::Turns;
use crate::partition_reads;

/// Between two ticks: half of Raft's own, so that every second one is due for Raft, and heartbeats leave evenly. A late one
/// does not put off those after it.
const TICK: Duration = PULSE;

/// Requests taken before one flush, so that however many there are, what peers send in bulk gets its turn.
const REQUESTS_PER_FLUSH_MAX: usize = EVENTS_PER_FLUSH_MAX / 2;

/// How long events are taken before one flush: many small ones, or a few large ones, must not hold up a heartbeat.
const TURN: Duration = Duration::from_millis(10);

/// ... and at most as long as the last flush took: who flushes all the time takes in too little.
const TURN_MAX: Duration = Duration::from_millis(40);

/// One event of so many is of what peers send in bulk, if there is any: without their acknowledgements nothing ends.
const BULK_EVERY: usize = 4;

/// Why the core's thread ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The node was told to stop.
    Stopped,
    /// The node cannot go on.
    Fatal(String),
}

/// Everything that reaches the core, one queue per source, so that none starves another.
pub(crate) struct Sources {
    pub control: Inbox,
    pub bulk: Inbox,
    pub disk: mpsc::Receiver<Event>,
    pub requests: mpsc::Receiver<Asked>,
    pub vms: mpsc::Receiver<Event>,
}

/// Everything that the core's effects reach.
pub(crate) struct Sinks {
    pub transport: Transport,
    pub disk: Disk,
    pub vm_actions: mpsc::Sender<compute::VmAction>,
    pub joins: mpsc::Sender<JoinCall>,
    pub views: Arc<Views>,
    pub metadata: watch::Sender<Arc<Metadata>>,
    pub supervisor: Supervisor,
    /// What the data directory says of this node's cluster.
    pub record: Keeper,
    /// Told once, when recovery is done.
    pub recovered: Option<oneshot::Sender<()>>,
    /// Told once, if the cluster has forgotten this node.
    pub departed: Option<oneshot::Sender<Departed>>,
    pub turns: Turns,
}

/// The cluster has forgotten this node; `asked`: as it was asked to.
#[derive(Debug)]
pub(crate) struct Departed {
    pub asked: bool,
    pub reason: String,
}

/// The core and its surroundings.
pub(crate) struct Driver {
    core: NodeCore,
    sources: Sources,
    sinks: Sinks,
    replies: BTreeMap<RequestId, oneshot::Sender<Result<Reply, RequestError>>>,
    next_request: u64,
    /// Actions that the VM side did not take yet; the reconciler asks for few per VM.
    vm_backlog: VecDeque<compute::VmAction>,
    /// Answers to questions that the core asked of this driver.
    answers: Vec<Event>,
    handle: NodeHandle,
    /// Keys changed since the cluster's state was last shown.
    unshown: bool,
    /// What was read for others, or worked, beside the core.
    beside: Beside,
}

impl Driver {
    pub fn new(core: NodeCore, handle: NodeHandle, sources: Sources, sinks: Sinks, beside: Beside) -> Driver {
        Driver {
            core,
            sources,
            sinks,
            replies: BTreeMap::new(),
            next_request: 0,
            vm_backlog: VecDeque::new(),
            answers: Vec::new(),
            handle,
            unshown: false,
            beside,
        }
    }

    /// Runs until `stop`, or until the core ends the node; `pulse` beats after each tick.
    pub async fn run(&mut self, stop: CancellationToken, pulse: Pulse) -> End {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut ticked = Instant::now();
        let mut flushed = Duration::ZERO;
        loop {
            let (mut taken, mut requests_left, mut due) = (1, REQUESTS_PER_FLUSH_MAX, false);
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stopped,
                _ = tick.tick() => due = true,
                // Before the peers, who may always have something to say: a disk that is not heard seems to be stuck.
                Some(event) = self.sources.disk.recv() => self.core.handle(Clock.now(), event),
                Some(incoming) = self.sources.control.recv() => self.take_incoming(incoming),
                Some(event) = self.sources.vms.recv() => self.core.handle(Clock.now(), event),
                Some(asked) = self.sources.requests.recv() => self.take_request(asked),
                Some(event) = self.beside.next() => self.core.handle(Clock.now(), event),
                Some(incoming) = self.sources.bulk.recv() => self.take_incoming(incoming),
                () = std::future::ready(()), if self.core.has_more() => {}
                () = self.sinks.views.looked_at() => {}
            }
            let began = Instant::now();
            let turn = flushed.clamp(TURN, TURN_MAX);
            while taken < EVENTS_PER_FLUSH_MAX && began.elapsed() < turn && self.take_one(taken, &mut requests_left) {
                taken += 1;
            }
            // A loop that never waits never lets the timer fire either: leaders would miss their heartbeats.
            due |= ticked.elapsed() >= TICK;
            if due {
                ticked = Instant::now();
                taken += self.tick();
            }
            let taking = began.elapsed();
            if let Err(end) = self.turn() {
                return end;
            }
            if due {
                // Not before: who is late is late until the heartbeats have left.
                pulse.beat();
            }
            flushed = began.elapsed() - taking;
            if let Some(event) = self.answers.pop() {
                self.core.handle(Clock.now(), event);
                if let Err(end) = self.turn() {
                    return end;
                }
            }
            if self.unshown && (due || self.sinks.views.is_looked_at()) {
                self.show_metadata();
            }
            self.sinks.disk.hand_over();
            self.pass_on_vm_actions();
            self.sinks.turns.events.add(taken as u64);
            self.sinks.turns.seconds.observe(began.elapsed().as_secs_f64());
        }
    }

    /// The clock goes on; how many events were taken before it did.
    fn tick(&mut self) -> usize {
        self.count_waiting();
        let taken = self.take_waiting_control();
        self.core.handle(Clock.now(), Event::Tick);
        taken
    }

    /// The core is told too, because it answers other nodes.
    fn count_waiting(&mut self) {
        let (depths, sources) = (&self.sinks.turns.depths, &self.sources);
        let arrivals = Arrivals {
            control: sources.control.len() as u64,
            bulk: sources.bulk.len() as u64,
            disk: sources.disk.len() as u64,
            vms: sources.vms.len() as u64,
            requests: sources.requests.len() as u64,
        };
        depths.control.set(arrivals.control as f64);
        depths.bulk.set(arrivals.bulk as f64);
        depths.disk.set(arrivals.disk as f64);
        depths.vms.set(arrivals.vms as f64);
        self.core.handle(Clock.now(), Event::Waiting(arrivals));
    }

    fn turn(&mut self) -> Result<(), End> {
        self.core.flush(Clock.now()).into_iter().try_for_each(|effect| self.carry_out(effect))
    }

    /// Takes one more event of those that wait, in the order of their urgency.
    fn take_one(&mut self, taken: usize, requests_left: &mut usize) -> bool {
        if let Some(event) = self.answers.pop() {
            self.core.handle(Clock.now(), event);
        } else if let Some(event) = take_ready(&mut self.sources.disk) {
            self.core.handle(Clock.now(), event);
        } else if taken.is_multiple_of(BULK_EVERY)
            && let Some(incoming) = self.sources.bulk.try_recv()
        {
            self.take_incoming(incoming);
        } else if let Some(incoming) = self.sources.control.try_recv() {
            self.take_incoming(incoming);
        } else if let Some(event) = take_ready(&mut self.sources.vms) {
            self.core.handle(Clock.now(), event);
        } else if *requests_left > 0
            && let Some(asked) = take_ready(&mut self.sources.requests)
        {
            *requests_left -= 1;
            self.take_request(asked);
        } else if let Some(incoming) = self.sources.bulk.try_recv() {
            self.take_incoming(incoming);
        } else {
            return false;
        }
        true
    }

    /// What peers have said by now is heard before the clock goes on, however much of something else came first: a heartbeat
    /// that waits here would count as missed, and its leader as lost. At most a turn of it: requests come this way too, and
    /// the node's own heartbeats wait for them.
    fn take_waiting_control(&mut self) -> usize {
        let (began, waiting) = (Instant::now(), self.sources.control.len());
        for taken in 0..waiting {
            if began.elapsed() >= TURN_MAX {
                return taken;
            }
            let Some(incoming) = self.sources.control.try_recv() else { return taken };
            self.take_incoming(incoming);
        }
        waiting
    }

    fn take_incoming(&mut self, incoming: Incoming) {
        let event = match incoming {
            Incoming::Peer { from, messages, .. } => Event::Peer { from, messages },
            Incoming::Up { node, incarnation } => Event::PeerUp { node, incarnation },
            Incoming::Down { node } => Event::PeerDown { node },
            Incoming::Expelled { by } => Event::Expelled { by },
            Incoming::Outdated { by, active } => Event::Outdated { by, active },
            Incoming::Superseded { by } => Event::Superseded { by },
            Incoming::Twin { by, other } => Event::Twin { by, other },
            Incoming::Join { request, endpoint, reply } => {
                // A full queue drops the reply, which refuses the stranger as busy.
                let _ = self.sinks.joins.try_send(JoinCall { request, endpoint, reply });
                return;
            }
        };
        self.core.handle(Clock.now(), event);
    }

    fn take_request(&mut self, asked: Asked) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.replies.insert(id, asked.reply);
        let event = Event::Request { id, deadline: asked.deadline, target: asked.target, request: asked.request };
        self.core.handle(Clock.now(), event);
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), End> {
        match effect {
            Effect::Disk(op) => self.sinks.disk.submit(op),
            Effect::Send { to, channel, messages } => self.sinks.transport.send(to, channel, messages),
            Effect::Reply { id, outcome } => {
                if let Some(reply) = self.replies.remove(&id) {
                    // Whoever asked may have gone away.
                    let _ = reply.send(outcome);
                }
            }
            Effect::Publish { group, update } => {
                if let Err(error) = self.sinks.views.reader_or_new(group).publish(update) {
                    let reason = format!("partition group {group}: readers were told nonsense: {error}");
                    return Err(End::Fatal(reason));
                }
            }
            Effect::Unpublish { group } => self.sinks.views.remove(group),
            Effect::Leaders(changed) => self.sinks.views.set_leaders(changed),
            Effect::Metadata { at_once: true } => self.show_metadata(),
            Effect::Metadata { at_once: false } => self.unshown = true,
            Effect::Members { members, departed } => self.connect(members, departed),
            Effect::Vm(action) => {
                self.vm_backlog.push_back(action);
                self.pass_on_vm_actions();
            }
            Effect::ListTasks { ticket } => {
                let outcome = Ok(Reply::Tasks(task_lines(&self.sinks.supervisor)));
                self.answers.push(Event::Answered { ticket, outcome });
            }
            Effect::ReadPartition { ticket, read } => {
                let (handle, answers) = (self.handle.clone(), self.beside.answers());
                tokio::spawn(async move {
                    let outcome = partition_reads::read(&handle, read).await.map(Reply::PartitionBatches);
                    // Only a driver that has ended does not take it.
                    let _ = answers.send(Event::Answered { ticket, outcome }).await;
                });
            }
            Effect::Work(work) => self.beside.work(work),
            Effect::Formed => self.sinks.record.formed().map_err(End::Fatal)?,
            Effect::Recovered => {
                if let Some(recovered) = self.sinks.recovered.take() {
                    let _ = recovered.send(());
                }
            }
            Effect::Applied { .. } | Effect::Role { .. } => {}
            // The core does nothing any more; whatever works with it is stopped in good order.
            Effect::Departed { asked, reason } => {
                if let Some(departed) = self.sinks.departed.take() {
                    let _ = departed.send(Departed { asked, reason });
                }
            }
            Effect::Outdone { by } => self.sinks.record.outdone(by),
            Effect::Warning(what) => tracing::warn!("{what}"),
            Effect::Fatal(reason) => return Err(End::Fatal(reason)),
        }
        Ok(())
    }

    fn pass_on_vm_actions(&mut self) {
        while let Some(action) = self.vm_backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(action)) = self.sinks.vm_actions.try_send(action) {
                return self.vm_backlog.push_front(action);
            }
        }
    }

    fn connect(&self, members: Vec<wire::Member>, departed: Vec<(base::NodeId, base::EndpointId)>) {
        let departed = departed.into_iter().map(|(node, endpoint)| (endpoint, node)).collect();
        let members = members.into_iter().map(|it| (it.address.endpoint, (it.node, it.address))).collect();
        if let Err(error) = self.sinks.transport.set_members(&Arc::new(members), Arc::new(departed)) {
            tracing::warn!(%error, "a new member is not dialled");
        }
    }

    fn show_metadata(&mut self) {
        self.unshown = false;
        let metadata = self.core.metadata().clone();
        self.sinks.transport.set_cluster_version(metadata.cluster_version);
        self.sinks.record.at_version(metadata.cluster_version, &self.sinks.supervisor);
        self.sinks.transport.set_latest(metadata.sessions.values().map(|session| (session.node, session.incarnation)));
        self.sinks.metadata.send_replace(Arc::new(metadata));
        self.sinks.views.changed();
    }
}

fn task_lines(supervisor: &Supervisor) -> Vec<TaskLine> {
    let now = Clock.now().mono;
    let line = |task: runtime::TaskSnapshot| TaskLine {
        path: task.address,
        state: format!("{:?}", task.state).to_lowercase(),
        since_ms: now.since(task.started.mono).0,
        restarts: task.run.saturating_sub(1),
        cause: task.history.last().map(|entry| entry.cause.to_string()),
    };
    supervisor.list().into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use base::{ErrorCode, Millis, NodeId};
    use bytes::Bytes;
    use engine::{Request, Target};
    use runtime::Registry;
    use transport::{Identity, Inboxes, Local, Members, TransportConfig};
    use wire::{Channel, ForwardReply, NodeAddress, PeerMessage};

    use super::*;
    use crate::start::becomes_ready;
    use crate::start::tests::{Founder, founder};

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// Events of each kind that wait, where many do.
    const WAITING: usize = 8;
    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    /// Another node, of which there is only the transport.
    struct Neighbour {
        transport: Transport,
        inboxes: Inboxes,
        supervisor: Supervisor,
    }

    /// The driver of a node that is ready, between two turns, and a neighbour that it is connected with both ways.
    async fn connected(dir: &Path) -> (Driver, Neighbour) {
        let Founder { config, local, handle, sources, sinks, .. } = founder(dir).await.expect("it is laid out");
        let here = sinks.transport.clone();
        let beside = Beside::start().expect("its thread starts");
        let mut driver = Driver::new(NodeCore::new(config, Clock.now()), handle.clone(), sources, sinks, beside);
        tokio::select! {
            end = driver.run(CancellationToken::new(), Pulse::default()) => panic!("{end:?}"),
            () = becomes_ready(handle) => {}
        }
        let supervisor = Supervisor::new(tokio::runtime::Handle::current());
        let (identity, listen) = (Identity::from_secret([2; 32]), SocketAddr::from(([127, 0, 0, 1], 0)));
        let config = TransportConfig { identity, listen, relay: None, hints: Vec::new() };
        let (there, mut inboxes) = Transport::bind(config, &supervisor, &Registry::new()).await.expect("it binds");
        let place = |node: NodeId, transport: &Transport| {
            let endpoint = transport.endpoint_id();
            let direct = transport.listen_addrs().iter().map(ToString::to_string).collect();
            (endpoint, (node, NodeAddress { endpoint, direct, ..NodeAddress::default() }))
        };
        let members = Arc::new(Members::from([place(ME, &here), place(OTHER, &there)]));
        here.set_local(local);
        there.set_local(Local { node: OTHER, home: 2, ..local });
        for transport in [&here, &there] {
            transport.set_members(&members, Arc::default()).expect("its peer is dialled");
        }
        for inbox in [&mut driver.sources.control, &mut inboxes.control] {
            while !matches!(next(inbox).await, Incoming::Up { .. }) {}
        }
        (driver, Neighbour { transport: there, inboxes, supervisor })
    }

    async fn next(inbox: &mut Inbox) -> Incoming {
        tokio::time::timeout(PATIENCE, inbox.recv()).await.expect("nothing comes").expect("the transport is gone")
    }

    /// An answer that nobody can read.
    fn answer(id: u64) -> PeerMessage {
        PeerMessage::ForwardReply(ForwardReply { id, body: Bytes::new() })
    }

    impl Neighbour {
        /// Says something, and waits until so many frames wait to be heard.
        async fn say(&self, what: PeerMessage, channel: Channel, inbox: &Inbox, waiting: usize) {
            self.transport.send(ME, channel, vec![what]);
            let began = Instant::now();
            while inbox.len() < waiting {
                assert!(began.elapsed() < PATIENCE, "{} frames wait, not {waiting}", inbox.len());
                tokio::task::yield_now().await;
            }
        }

        /// Says what means nothing, so many times.
        async fn fill(&self, channel: Channel, inbox: &Inbox) {
            for waiting in 1..=WAITING {
                self.say(answer(0), channel, inbox, waiting).await;
            }
        }
    }

    async fn end(driver: Driver, neighbour: Neighbour) {
        for supervisor in [&driver.sinks.supervisor, &neighbour.supervisor] {
            supervisor.shutdown(Duration::from_secs(3)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_waits_is_taken_by_its_urgency_and_one_of_four_is_bulk() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut driver, neighbour) = connected(dir.path()).await;
        neighbour.fill(Channel::Control, &driver.sources.control).await;
        neighbour.fill(Channel::Bulk, &driver.sources.bulk).await;
        let handle = driver.handle.clone();
        let ask = |_| handle.request_within(Millis(600_000), Target::Here, Request::Status);
        let asked: Vec<_> = (0..WAITING).map(ask).collect();
        // Of the disk one thing is heard, which means nothing either, and no more.
        let (disk_done, disk) = mpsc::channel(1);
        driver.sources.disk = disk;
        let unknown = Event::Answered { ticket: u64::MAX, outcome: Ok(Reply::Done) };
        disk_done.try_send(unknown).expect("there is room");

        // As the node's core tells it.
        let waiting = |driver: &mut Driver| {
            driver.count_waiting();
            let it = driver.core.vitals(0).arrivals.expect("it was told");
            [('d', it.disk), ('c', it.control), ('r', it.requests), ('b', it.bulk)]
        };
        let (mut order, mut taken, mut requests_left) = (String::new(), 1, REQUESTS_PER_FLUSH_MAX);
        let mut before = waiting(&mut driver);
        while driver.take_one(taken, &mut requests_left) {
            let after = waiting(&mut driver);
            let fell = before.iter().zip(&after).filter(|(before, after)| after.1 < before.1);
            order.extend(fell.map(|(before, _)| before.0));
            before = after;
            taken += 1;
        }
        assert_eq!(order, "dccbcccbcccbrrrbrrrbrrbbb");
        assert_eq!(requests_left, REQUESTS_PER_FLUSH_MAX - asked.len());
        end(driver, neighbour).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_peer_has_said_is_heard_before_the_clock_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut driver, mut neighbour) = connected(dir.path()).await;
        // Its time is over as soon as the clock goes on.
        let (reply, mut told) = oneshot::channel();
        let (deadline, target, request) = (Clock.now().mono, Target::Node(OTHER), Request::Status);
        driver.take_request(Asked { deadline, target, request, reply });
        driver.turn().expect("it goes on");
        let forwarded = |message: &PeerMessage| match message {
            PeerMessage::Forward(forward) => Some(forward.id),
            _ => None,
        };
        let id = loop {
            let Incoming::Peer { messages, .. } = next(&mut neighbour.inboxes.control).await else { continue };
            if let Some(id) = messages.iter().find_map(forwarded) {
                break id;
            }
        };
        // The answer waits to be heard, and more behind it.
        neighbour.say(answer(id), Channel::Control, &driver.sources.control, 1).await;
        neighbour.fill(Channel::Control, &driver.sources.control).await;
        assert!(told.try_recv().is_err(), "nothing was heard yet");

        driver.tick();
        driver.turn().expect("it goes on");
        let outcome = told.try_recv().expect("it is answered");
        let code = outcome.map_err(|refused| refused.code);
        assert_eq!(code, Err(ErrorCode::UnsupportedVersion), "it was heard as one that nobody can read");
        end(driver, neighbour).await;
    }
}
