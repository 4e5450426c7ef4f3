//! Order at start and stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::limits::{
    CHECKPOINT_BYTES_MAX, CHECKPOINT_CHUNK_BYTES, META_CHECKPOINT_ENTRIES, META_CHECKPOINT_KEEP_ENTRIES,
    WAL_SEGMENT_BYTES,
};
use base::{ClusterId, Millis, NodeId, VersionRange};
use engine::{CoreConfig, NodeCore, Reply, Request, Target};
use metadata::Metadata;
use runtime::{CancellationToken, Clock, Registry, Supervisor, spawn_punctual_thread};
use tokio::sync::{mpsc, oneshot, watch};
use transport::{Identity, Local, Transport, TransportConfig};
use vmm::{Vmm, VmmConfig};
use wire::{Member, NodeAddress};

use crate::beside::Beside;
use crate::config::Config;
use crate::console;
use crate::data_dir::{ClusterRecord, DataDir, Keeper};
use crate::disk::Disk;
use crate::driver::{Departed, Driver, End, Sinks, Sources};
use crate::error::NodeError;
use crate::formation;
use crate::handle::{NodeHandle, REQUEST_QUEUE, Views};
use crate::host;
use crate::join;
use crate::listeners::Listeners;
use crate::metrics::{Scraper, Turns};
use crate::tasks;
use crate::vms;

/// Completions, reports, actions and lines that wait for their taker.
const QUEUE: usize = 4_096;
/// How long VMs may take to power off when the node stops.
const VM_GRACE: Duration = Duration::from_secs(5);
/// How long leadership may take to move when the node stops.
const HAND_OVER: Duration = Duration::from_millis(1_500);
/// How long the tasks may take to end.
const TASKS_END: Duration = Duration::from_secs(3);

/// A running node.
pub struct Node {
    handle: NodeHandle,
    /// The name that it was told.
    told_name: String,
    /// Where Kafka listens.
    pub kafka: SocketAddr,
    /// Where Kafka clients are told to connect.
    pub kafka_advertised: String,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where peers connect (UDP).
    pub peer: Vec<SocketAddr>,
    stop_clients: CancellationToken,
    /// Cancelled when those of the API have been let go.
    clients_gone: CancellationToken,
    stop_core: CancellationToken,
    core_ended: oneshot::Receiver<End>,
    departed: oneshot::Receiver<Departed>,
    supervisor: Supervisor,
    vmm: Arc<Vmm>,
    _data: Arc<DataDir>,
}

/// Runs a node until SIGINT or SIGTERM, calling `ready` once, when it is a member that can do its work. Blocks.
///
/// # Errors
/// If it does not start, or must stop by itself.
pub fn run(config: Config, ready: impl FnOnce(&Node)) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("muster")
        .build()
        .map_err(|error| NodeError::Start { what: "the async runtime", reason: error.to_string() })?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut node = tokio::select! {
            node = Node::start(config) => node?,
            () = signals.recv() => return Ok(()),
        };
        let ready = |node: &Node| {
            node.warn_of_its_name();
            ready(node);
        };
        let ended = until_ended(&mut node, &mut signals, ready).await;
        match ended {
            Ok(why) => {
                tracing::info!("stopping");
                // A second signal does not wait for guests and peers.
                tokio::select! {
                    () = node.stop(why) => {}
                    () = signals.recv() => tracing::warn!("stopped at once: VMs may still run; the next start adopts them"),
                }
                Ok(())
            }
            Err(error @ NodeError::Expelled(_)) => {
                // Its VMs are the cluster's, which runs them elsewhere by now.
                node.vmm.shutdown(Duration::ZERO).await;
                node.abandon().await;
                Err(error)
            }
            Err(error) => {
                node.abandon().await;
                Err(error)
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// What the end of the core's thread means.
fn ended_by_core(end: Result<End, oneshot::error::RecvError>) -> NodeError {
    match end {
        Ok(End::Fatal(reason)) => NodeError::Fatal(reason),
        Ok(End::Stopped) | Err(_) => NodeError::Fatal("the core's thread ended".to_owned()),
    }
}

/// Why a node stops in good order.
enum Why {
    Signal,
    /// The cluster has forgotten it, as it was told to.
    Left,
}

/// Waits for a reason to stop, or for the node to end by itself.
async fn until_ended(node: &mut Node, signals: &mut Signals, ready: impl FnOnce(&Node)) -> Result<Why, NodeError> {
    let supervisor = node.supervisor.clone();
    let handle = node.handle.clone();
    let mut ready = Some(ready);
    let becomes_ready = becomes_ready(handle);
    tokio::pin!(becomes_ready);
    loop {
        tokio::select! {
            // The core first: tasks that end because it did are not the reason.
            biased;
            end = &mut node.core_ended => {
                return Err(ended_by_core(end));
            }
            Ok(departed) = &mut node.departed, if !node.departed.is_terminated() => {
                let Departed { asked, reason } = departed;
                if asked {
                    tracing::info!(reason, "the data directory is of no use any more");
                    return Ok(Why::Left);
                }
                return Err(NodeError::Expelled(reason));
            }
            end = supervisor.ended() => {
                return Err(NodeError::Fatal(format!("task {} was given up: {}", end.task, end.reason)));
            }
            () = signals.recv() => return Ok(Why::Signal),
            () = &mut becomes_ready, if ready.is_some() => {
                if let Some(ready) = ready.take() {
                    ready(node);
                }
            }
        }
    }
}

/// Returns when the core says that the node is ready.
pub(crate) async fn becomes_ready(handle: NodeHandle) {
    let within = Millis(1_000);
    loop {
        if let Ok(Reply::Status(status)) = handle.request_within(within, Target::Here, Request::Status).await
            && status.ready
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Signals, NodeError> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |error: std::io::Error| NodeError::Start { what: "signal handling", reason: error.to_string() };
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What exists before the node knows its place.
struct Ground {
    data: Arc<DataDir>,
    supervisor: Supervisor,
    registry: Registry,
    handle: NodeHandle,
    requests: mpsc::Receiver<crate::handle::Asked>,
    metadata: watch::Sender<Arc<Metadata>>,
}

impl Ground {
    fn lay(config: &Config) -> Result<Ground, NodeError> {
        let data = Arc::new(DataDir::open(&config.data_dir)?);
        let supervisor = Supervisor::new(tokio::runtime::Handle::current());
        let (queue, requests) = mpsc::channel(REQUEST_QUEUE);
        let (metadata, view) = watch::channel(Arc::new(Metadata::default()));
        let handle = NodeHandle { queue, views: Arc::new(Views::default()), metadata: view };
        Ok(Ground { data, supervisor, registry: Registry::new(), handle, requests, metadata })
    }
}

impl Node {
    /// Starts a node: locks the data directory, takes its ports, finds its cluster, recovers, then serves.
    ///
    /// # Errors
    /// See [`NodeError`]; nothing is left running.
    pub async fn start(config: Config) -> Result<Node, NodeError> {
        config.check_reach().and_then(|()| config.check_pace()).map_err(NodeError::Config)?;
        let ground = Ground::lay(&config)?;
        let listeners = Listeners::bind(&config, ground.handle.clone(), &ground.registry).await?;
        formation::found_cluster(&ground.data, &config)?;
        let identity = Identity::load_or_create(&ground.data.identity())?;
        let (vm_events, vm_event_queue) = mpsc::channel(QUEUE);
        let mut vmm_config = VmmConfig::new(ground.data.path(), &config.name);
        vmm_config.kernel.clone_from(&config.kernel);
        vmm_config.images = image_dir().unwrap_or(vmm_config.images);
        let vmm = Arc::new(Vmm::new(vmm_config, vm_events)?);
        let transport_config = TransportConfig {
            identity: identity.clone(),
            listen: config.peer_listen,
            relay: config.relay.clone(),
            hints: config.peers.clone(),
        };
        let bound = Transport::bind(transport_config, &ground.supervisor, &ground.registry);
        let (bound, hypervisor) = tokio::join!(bound, vmm.detect());
        let (transport, inboxes) = bound?;

        let mut me = Member {
            node: NodeId(0),
            name: config.name.clone(),
            address: NodeAddress {
                endpoint: identity.endpoint(),
                direct: transport.listen_addrs().iter().map(ToString::to_string).collect(),
                relay_url: config.relay.clone(),
                kafka: config.kafka_advertise.clone().unwrap_or_else(|| listeners.kafka_address.to_string()),
                api: config.api_advertise.clone().unwrap_or_else(|| listeners.api_address.to_string()),
            },
            capabilities: host::measure(ground.data.path(), hypervisor.as_ref()),
            labels: config.labels.clone(),
            store: ground.data.store()?,
            versions: config.versions(),
        };
        let record = formation::find_place(&ground.data, config.join.as_ref(), &transport, &me).await?;
        me.node = record.node;
        take_place(&ground, &transport, &record, (me.versions, ground.data.home()?));

        let adopted = vmm.adopt().await?;
        for vm in &adopted {
            tracing::info!(vm = %vm.id, name = vm.name, "taken over from the process before");
        }
        let node = Parts { ground, listeners, transport, inboxes, vmm, vm_event_queue, adopted };
        node.run(&config, me, record).await
    }

    /// The node, as its listeners see it.
    #[must_use]
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.handle.me()
    }

    /// What the cluster calls it: as it was told to be called, if no other member is called so.
    #[must_use]
    pub fn name(&self) -> String {
        self.handle.metadata().name_of(self.id(), &self.told_name).to_owned()
    }

    fn warn_of_its_name(&self) {
        let name = self.name();
        if name != self.told_name {
            let told = &self.told_name;
            tracing::warn!(
                "another member is called {told}: the cluster calls this node {name}; --name gives it another name"
            );
        }
    }

    /// Its cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.handle.cluster()
    }

    /// Stops in order: leadership moves, clients are closed, guests power off, the core ends.
    async fn stop(&self, why: Why) {
        if matches!(why, Why::Signal) {
            self.hand_over().await;
        }
        self.stop_clients.cancel();
        tokio::join!(self.vmm.shutdown(VM_GRACE), self.clients_gone.cancelled());
        // The core goes last: its end closes the queues that the tasks read.
        self.supervisor.shutdown(TASKS_END).await;
        self.stop_core.cancel();
    }

    /// After the core is gone: nothing can be handed over, guests keep running for the next start to adopt.
    async fn abandon(&self) {
        self.stop_clients.cancel();
        self.stop_core.cancel();
        self.supervisor.shutdown(TASKS_END).await;
    }

    async fn hand_over(&self) {
        let alone = self.handle.metadata().nodes.len() <= 1;
        if alone {
            return;
        }
        let within = Millis(HAND_OVER.as_millis() as u64);
        let moved = async {
            loop {
                // Asked again until nothing is led here: a follower may have to catch up first.
                let _ = self.handle.request_within(within, Target::Here, Request::StepDown).await;
                let status = self.handle.request_within(within, Target::Here, Request::Status).await;
                match status {
                    Ok(Reply::Status(status)) if status.groups.iter().any(|g| g.role == "leader") => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    _ => return,
                }
            }
        };
        let _ = tokio::time::timeout(HAND_OVER, moved).await;
    }
}

/// Images are made once per host and user, not per data directory: `$XDG_CACHE_HOME/muster/images` or
/// `~/.cache/muster/images`, if there is such a place.
fn image_dir() -> Option<std::path::PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    let images = cache.join("muster").join("images");
    std::fs::create_dir_all(&images).ok()?;
    Some(images)
}

/// From now on this process speaks as a member.
fn take_place(ground: &Ground, transport: &Transport, record: &ClusterRecord, (versions, home): (VersionRange, u64)) {
    // Set once per process, here.
    let _ = ground.handle.views.place.set((record.node, record.cluster));
    ground.supervisor.set_node(record.node, record.incarnation);
    transport.set_local(Local {
        cluster: record.cluster,
        cluster_incarnation: record.cluster_incarnation(),
        recovery: record.recovery_id(),
        node: record.node,
        incarnation: record.incarnation,
        home,
        versions,
    });
    transport.set_cluster_version(record.cluster_version);
    if let Some(accepted) = &record.joined {
        let members = accepted.members.iter().map(|m| (m.address.endpoint, (m.node, m.address.clone()))).collect();
        if let Err(error) = transport.set_members(&Arc::new(members), Arc::default()) {
            tracing::warn!(%error, "a member is not dialled");
        }
    }
}

/// Everything that is there when the node knows its place.
struct Parts {
    ground: Ground,
    listeners: Listeners,
    transport: Transport,
    inboxes: transport::Inboxes,
    vmm: Arc<Vmm>,
    vm_event_queue: mpsc::Receiver<vmm::VmEvent>,
    adopted: Vec<vmm::AdoptedVm>,
}

impl Parts {
    async fn run(self, config: &Config, me: Member, record: ClusterRecord) -> Result<Node, NodeError> {
        let Parts { ground, listeners, transport, inboxes, vmm, vm_event_queue, adopted } = self;
        let peer = transport.listen_addrs();
        let kafka_advertised = me.address.kafka.clone();
        let (stop_clients, stop_core) = (CancellationToken::new(), CancellationToken::new());
        let (vm_reports, vms) = mpsc::channel(QUEUE.max(adopted.len()));
        vms::say_adopted(&vm_reports, adopted);
        let (vm_actions, vm_action_queue) = mpsc::channel(QUEUE);
        let (console_lines, console_queue) = mpsc::channel(QUEUE);
        let (joins, join_queue) = mpsc::channel(QUEUE);
        let (disk_done, disk_events) = mpsc::channel(QUEUE);
        let (recovered, recovery) = oneshot::channel();
        let (departed_told, mut departed) = oneshot::channel();
        let incarnation = record.incarnation;

        let tree = ground.supervisor.clone();
        let actions = vms::take_actions(vmm.clone(), vm_action_queue, vm_reports.clone());
        tasks::start(&tree, "vms/actions", ended_by_node(actions))?;
        tasks::start(&tree, "vms/events", ended_by_node(vms::take_events(vm_event_queue, vm_reports, console_lines)))?;
        let lines = console::write_lines(ground.handle.clone(), incarnation, console_queue);
        tasks::start(&tree, "vms/consoles", ended_by_node(lines))?;
        tasks::start(&tree, "joins", ended_by_node(join::take_calls(ground.handle.clone(), join_queue)))?;

        let core_config = core_config(config, me, &record);
        let sinks = Sinks {
            transport: transport.clone(),
            disk: Disk::start(ground.data.journal(), disk_done, &ground.registry)?,
            vm_actions,
            joins,
            views: ground.handle.views.clone(),
            metadata: ground.metadata,
            supervisor: ground.supervisor.clone(),
            record: Keeper::new(ground.data.clone(), record),
            recovered: Some(recovered),
            departed: Some(departed_told),
            turns: Turns::new(&ground.registry),
        };
        let sources =
            Sources { control: inboxes.control, bulk: inboxes.bulk, disk: disk_events, requests: ground.requests, vms };
        let mut core_ended = start_core(core_config, ground.handle.clone(), sources, sinks, stop_core.clone())?;
        tokio::select! {
            Ok(()) = recovery => {}
            end = &mut core_ended => return Err(ended_by_core(end)),
            Ok(departed) = &mut departed => {
                stop_core.cancel();
                return Err(NodeError::Expelled(departed.reason));
            }
        }
        let (kafka, api) = (listeners.kafka_address, listeners.api_address);
        let (handle, supervisor) = (ground.handle.clone(), ground.supervisor.clone());
        let scraper = Scraper::new(handle, ground.registry, supervisor, transport, ground.data.path());
        let clients_gone = listeners.serve(ground.handle.clone(), scraper, host_names(config), &tree, &stop_clients)?;
        Ok(Node {
            handle: ground.handle,
            told_name: config.name.clone(),
            kafka,
            kafka_advertised,
            api,
            peer,
            stop_clients,
            clients_gone,
            stop_core,
            core_ended,
            departed,
            supervisor: ground.supervisor,
            vmm,
            _data: ground.data,
        })
    }
}

fn core_config(config: &Config, me: Member, record: &ClusterRecord) -> CoreConfig {
    CoreConfig {
        me,
        cluster: record.cluster,
        formation: formation::formation(record),
        incarnation: record.incarnation,
        seed: record.seed,
        segment_bytes: WAL_SEGMENT_BYTES,
        election_timeout: config.election_timeout,
        heartbeat_interval: config.heartbeat_interval,
        checkpoint_entries: META_CHECKPOINT_ENTRIES,
        checkpoint_keep_entries: META_CHECKPOINT_KEEP_ENTRIES,
        checkpoint_part_bytes: CHECKPOINT_CHUNK_BYTES,
        checkpoint_bytes_max: CHECKPOINT_BYTES_MAX,
        node_lost_after: config.node_lost_after.unwrap_or(base::limits::NODE_LOST_AFTER),
        observe: false,
    }
}

/// A task whose queues are open as long as the node runs.
async fn ended_by_node(task: impl Future<Output = ()>) -> Result<(), String> {
    task.await;
    Err("its queue was closed".into())
}

/// Names, besides addresses and `localhost`, by which clients may call the API.
fn host_names(config: &Config) -> Vec<String> {
    let host = |advertised: &String| advertised.rsplit_once(':').map_or(advertised.clone(), |(host, _)| host.into());
    config.api_advertise.iter().map(host).collect()
}

/// Starts the thread that owns the core. It ends with the node; what it says at its end is why.
fn start_core(
    config: CoreConfig,
    handle: NodeHandle,
    sources: Sources,
    sinks: Sinks,
    stop: CancellationToken,
) -> Result<oneshot::Receiver<End>, NodeError> {
    let failed = |error: std::io::Error| NodeError::Start { what: "the core's thread", reason: error.to_string() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let beside = Beside::start().map_err(failed)?;
    let (ended, end) = oneshot::channel();
    spawn_punctual_thread("core", move |pulse| {
        // Why it ends is said before the driver goes, and with it the queues of tasks: their end is not the reason. The node
        // may be stopping already.
        let core = match unless_it_panics(|| NodeCore::new(config, Clock.now())) {
            Ok(core) => core,
            Err(end) => return drop(ended.send(end)),
        };
        let mut driver = Driver::new(core, handle, sources, sinks, beside);
        let (Ok(end) | Err(end)) = unless_it_panics(|| runtime.block_on(driver.run(stop, pulse)));
        let _ = ended.send(end);
        drop(driver);
    })
    .map_err(failed)?;
    Ok(end)
}

/// A panic is a broken invariant: the node stops rather than going on with half a decision.
fn unless_it_panics<T>(body: impl FnOnce() -> T) -> Result<T, End> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
        .map_err(|panic| End::Fatal(format!("a broken invariant: {}", panic_text(&*panic))))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use base::ErrorCode;
    use engine::Event;
    use journal::{DiskDone, OpId};

    use super::*;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// What the first node of a cluster is made of, on an empty directory, before its core begins.
    pub(crate) struct Founder {
        pub config: CoreConfig,
        /// Its place, as its transport is to say it to others.
        pub local: Local,
        pub handle: NodeHandle,
        pub sources: Sources,
        pub sinks: Sinks,
        disk_done: mpsc::Sender<Event>,
        recovery: oneshot::Receiver<()>,
    }

    /// A core that runs, alone, and what stands around it.
    struct Alone {
        handle: NodeHandle,
        supervisor: Supervisor,
        /// Where the disk tells the core what it has done.
        disk_done: mpsc::Sender<Event>,
        ended: oneshot::Receiver<End>,
    }

    /// Starts a core on an empty directory, as a node does, and waits until it has recovered.
    async fn alone(dir: &Path) -> Result<Alone, NodeError> {
        let (alone, recovery) = begun(dir, |_| {}).await?;
        recovery.await.expect("it recovers");
        Ok(alone)
    }

    /// The same with something changed in its configuration. What comes with it is told once the core has recovered.
    async fn begun(
        dir: &Path,
        change: impl FnOnce(&mut CoreConfig),
    ) -> Result<(Alone, oneshot::Receiver<()>), NodeError> {
        let Founder { mut config, handle, sources, sinks, disk_done, recovery, .. } = founder(dir).await?;
        change(&mut config);
        let supervisor = sinks.supervisor.clone();
        let ended = start_core(config, handle.clone(), sources, sinks, CancellationToken::new())?;
        Ok((Alone { handle, supervisor, disk_done, ended }, recovery))
    }

    /// Lays out everything as a node does.
    pub(crate) async fn founder(dir: &Path) -> Result<Founder, NodeError> {
        let config = Config { peer_listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::embedded(dir) };
        let Ground { data, supervisor, registry, handle, requests, metadata } = Ground::lay(&config)?;
        formation::found_cluster(&data, &config)?;
        let identity = Identity::load_or_create(&data.identity())?;
        let address = NodeAddress { endpoint: identity.endpoint(), ..NodeAddress::default() };
        let (store, versions) = (data.store()?, config.versions());
        let mut me = Member { name: config.name.clone(), address, store, versions, ..Member::default() };
        let listen = TransportConfig { identity, listen: config.peer_listen, relay: None, hints: Vec::new() };
        let (transport, inboxes) = Transport::bind(listen, &supervisor, &registry).await?;
        let record = formation::find_place(&data, None, &transport, &me).await?;
        me.node = record.node;

        let local = Local {
            cluster: record.cluster,
            cluster_incarnation: record.cluster_incarnation(),
            recovery: record.recovery_id(),
            node: record.node,
            incarnation: record.incarnation,
            home: data.home()?,
            versions,
        };
        let core_config = core_config(&config, me, &record);
        let (disk_done, disk) = mpsc::channel(QUEUE);
        let ((vm_actions, _), (joins, _), (_, vms)) = (mpsc::channel(1), mpsc::channel(1), mpsc::channel(1));
        let (recovered, recovery) = oneshot::channel();
        let sinks = Sinks {
            transport,
            disk: Disk::start(data.journal(), disk_done.clone(), &registry)?,
            vm_actions,
            joins,
            views: handle.views.clone(),
            metadata,
            supervisor,
            record: Keeper::new(data, record),
            recovered: Some(recovered),
            departed: None,
            turns: Turns::new(&registry),
        };
        let sources = Sources { control: inboxes.control, bulk: inboxes.bulk, disk, requests, vms };
        Ok(Founder { config: core_config, local, handle, sources, sinks, disk_done, recovery })
    }

    #[tokio::test]
    async fn a_core_that_panics_says_why_and_leaves_nobody_waiting() {
        let dir = tempfile::tempdir().expect("a directory");
        let Alone { handle, supervisor, disk_done, ended } = alone(dir.path()).await.expect("it starts");
        let ask = |target| handle.request_within(Millis(600_000), target, Request::Status);
        assert!(ask(Target::Here).await.is_ok(), "it runs");
        // Nobody else is there to answer.
        let waits = ask(Target::Node(NodeId(2)));

        let never_asked_for = Event::Disk { op: OpId(u64::MAX), result: Ok(DiskDone::Done) };
        disk_done.send(never_asked_for).await.expect("it listens");
        let end = tokio::time::timeout(PATIENCE, ended).await.expect("a core that panicked goes on");
        let why = ended_by_core(end).to_string();
        assert!(why.contains("a broken invariant") && why.contains("is not under way"), "{why}");

        for asked in [waits, ask(Target::Here)] {
            let answer = tokio::time::timeout(PATIENCE, asked).await.expect("whoever asked waits on");
            assert_eq!(answer.map_err(|error| error.code), Err(ErrorCode::ShuttingDown));
        }
        supervisor.shutdown(TASKS_END).await;
    }

    #[tokio::test]
    async fn a_core_that_cannot_be_made_says_why() {
        let dir = tempfile::tempdir().expect("a directory");
        // The command line refuses it; the core has it for granted.
        let elections_before_heartbeats = |config: &mut CoreConfig| config.election_timeout = Millis(0);
        let (core, recovery) = begun(dir.path(), elections_before_heartbeats).await.expect("its thread starts");
        let end = tokio::time::timeout(PATIENCE, core.ended).await.expect("it does not end");
        let why = ended_by_core(end).to_string();
        assert!(why.contains("a broken invariant: elections must take longer"), "{why}");
        assert!(recovery.await.is_err(), "it was never there, and yet has recovered");
        core.supervisor.shutdown(TASKS_END).await;
    }
}
