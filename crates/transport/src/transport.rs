//! The transport itself: binding, members, sending, status.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use base::limits::{HANDSHAKES_MAX, STRANGERS_MAX};
use base::{ClusterVersion, EndpointId, ErrorCode, Incarnation, NodeId, Wall};
use iroh::endpoint::{
    AfterHandshakeOutcome, Connection, EndpointHooks, IdleTimeout, PortmapperConfig, QuicTransportConfig, Side, VarInt,
    presets,
};
use iroh::{Endpoint, RelayMode, RelayUrl};
use runtime::{Clock, PriorityRuntime, Registry, Supervisor, SupervisorError, TaskContext, TaskSpec};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use url::Url;
use wire::{Channel, JoinAccepted, JoinRequest, PeerMessage, Refusal, TokenSeed};

use crate::error::{JoinError, TransportError};
use crate::inbox::{Inbox, InboxSender, inbox};
use crate::link::PeerLink;
use crate::log::LogLimiter;
use crate::metrics::NodeMetrics;
use crate::peer::{Peer, PeerStatus};
use crate::roster::{Departed, Local, Members, Roster};
use crate::{ALPN, Identity, accept, close, dial, join};

/// A peer that sends nothing for this long is lost. Well above the keep-alive, well below an election timeout plus
/// the time to elect.
const IDLE_TIMEOUT: VarInt = VarInt::from_u32(1_250);
const KEEP_ALIVE: Duration = Duration::from_millis(250);
/// Assumed until it is measured. QUIC repeats a first packet after three times this, and the standard's third of a second
/// would make every lost one cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// What somebody who has not said hello may have under way to this node, in bytes.
const STRANGER_RECEIVE_WINDOW: VarInt = VarInt::from_u32(128 << 10);
/// How long closing may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Refusals remembered for `refusals()`.
const REFUSALS_MAX: usize = 32;

/// How to start.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Who this node is.
    pub identity: Identity,
    /// Where to listen, UDP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// A relay (URL) by which this node can be reached too, and which lets it reach others by theirs. None: direct addresses
    /// only, and no traffic to anybody but peers.
    pub relay: Option<String>,
    /// Where members may be as well, if they are not found where the table of members has them.
    pub hints: Vec<SocketAddr>,
}

/// What arrives, one receiver per channel.
#[derive(Debug)]
pub struct Inboxes {
    /// Control messages, peers that come and go, joins. Must be read promptly.
    pub control: Inbox,
    /// Bulk messages. Left unread, it makes peers wait and in the end drop what they would send.
    pub bulk: Inbox,
}

/// A hello that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalRecord {
    /// When.
    pub at: Wall,
    /// Who called.
    pub endpoint: EndpointId,
    /// From where.
    pub from: String,
    /// Why not.
    pub refusal: Refusal,
}

/// A node's connections to the other members. Clones are handles to the same transport.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

/// What all tasks of the transport share.
pub struct Shared {
    pub endpoint: Endpoint,
    pub gate: Arc<Gate>,
    pub control: InboxSender,
    pub bulk: InboxSender,
    pub metrics: NodeMetrics,
    pub log: LogLimiter,
    /// Where bulk is encoded, decoded and queued.
    pub ordinary: Handle,
    /// See [`TransportConfig::hints`].
    pub hints: Vec<SocketAddr>,
    me: EndpointId,
    network: PriorityRuntime,
    supervisor: Supervisor,
    registry: Registry,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    refusals: Mutex<VecDeque<RefusalRecord>>,
}

/// Who is let in. Apart from the rest because iroh keeps it, and must not keep its own endpoint alive.
#[derive(Debug)]
pub struct Gate {
    roster: RwLock<Roster>,
    pub strangers: Arc<Semaphore>,
    pub handshakes: Arc<Semaphore>,
}

impl Gate {
    pub fn roster(&self) -> RwLockReadGuard<'_, Roster> {
        self.roster.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_roster(&self, change: impl FnOnce(&mut Roster)) {
        change(&mut self.roster.write().unwrap_or_else(PoisonError::into_inner));
    }
}

#[derive(Debug)]
struct Doorkeeper(Arc<Gate>);

impl EndpointHooks for Doorkeeper {
    /// Whether a stranger wants to join shows only in its hello, so a few strangers pass; the rest end here.
    async fn after_handshake<'a>(&'a self, conn: &'a Connection) -> AfterHandshakeOutcome {
        let outgoing = conn.side() == Side::Client;
        let member = || self.0.roster().is_member(&EndpointId(*conn.remote_id().as_bytes()));
        if outgoing || member() || self.0.strangers.available_permits() > 0 {
            return AfterHandshakeOutcome::Accept;
        }
        let reason = b"too many strangers are calling; try again".to_vec();
        AfterHandshakeOutcome::Reject { error_code: close::BUSY, reason }
    }
}

impl Transport {
    /// Binds and starts taking calls. Members may call once [`set_local`](Self::set_local) and
    /// [`set_members`](Self::set_members) said who they are. Must be called within a tokio runtime, which then does the
    /// ordinary work.
    ///
    /// # Errors
    /// If the address cannot be had (naming it and the flag that changes it), or iroh does not start.
    pub async fn bind(
        config: TransportConfig,
        supervisor: &Supervisor,
        registry: &Registry,
    ) -> Result<(Transport, Inboxes), TransportError> {
        probe(config.listen)?;
        let gate = Arc::new(Gate {
            roster: RwLock::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        });
        let network = PriorityRuntime::start("network").map_err(TransportError::Thread)?;
        let endpoint = bind_endpoint(&config, &gate, network.handle()).await?;
        let (control_sender, control) = inbox();
        let (bulk_sender, bulk) = inbox();
        let shared = Arc::new(Shared {
            endpoint,
            gate,
            control: control_sender,
            bulk: bulk_sender,
            metrics: NodeMetrics::new(registry),
            log: LogLimiter::default(),
            ordinary: Handle::current(),
            hints: config.hints,
            me: config.identity.endpoint(),
            network,
            supervisor: supervisor.clone(),
            registry: registry.clone(),
            peers: RwLock::default(),
            refusals: Mutex::default(),
        });
        let transport = Transport { shared };
        transport.start_tasks()?;
        Ok((transport, Inboxes { control, bulk }))
    }

    fn start_tasks(&self) -> Result<(), SupervisorError> {
        let shared = self.shared.clone();
        // Started first, so stopped last, when nobody uses the endpoint any more.
        self.start("transport/endpoint".to_owned(), move |context| close_at_end(shared.clone(), context))?;
        let shared = self.shared.clone();
        self.start("transport/accept".to_owned(), move |context| accept::take_calls(shared.clone(), context))
    }

    fn start<F, R>(&self, name: String, factory: F) -> Result<(), SupervisorError>
    where
        F: Fn(TaskContext) -> R + Send + Sync + 'static,
        R: Future<Output = runtime::TaskResult> + Send + 'static,
    {
        let spec = TaskSpec::new(name).critical().on(self.shared.network.handle().clone());
        self.shared.supervisor.start(spec, factory)
    }

    /// This node's key.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        self.shared.me
    }

    /// Where it listens, with the port that was taken.
    #[must_use]
    pub fn listen_addrs(&self) -> Vec<SocketAddr> {
        self.shared.endpoint.bound_sockets()
    }

    /// Says who this node is, once it has formed or joined a cluster. Peers that were waiting are dialled.
    pub fn set_local(&self, local: Local) {
        self.shared.gate.with_roster(|roster| roster.set_local(local));
        self.shared.peers().values().for_each(|peer| peer.wake.notify_one());
    }

    /// Says at which version the cluster is: from now on whoever cannot work at it is refused.
    pub fn set_cluster_version(&self, active: ClusterVersion) {
        if self.shared.gate.roster().cluster_version() != active {
            self.shared.gate.with_roster(|roster| roster.set_cluster_version(active));
        }
    }

    /// Says which process of each member the cluster has heard of last: those before it are hung up on, and refused.
    pub fn set_latest(&self, latest: impl IntoIterator<Item = (NodeId, Incarnation)>) {
        for (node, incarnation) in latest {
            if let Some(peer) = self.shared.peer(node) {
                peer.heard_of(incarnation);
            }
        }
    }

    /// Says who the members are. New ones are dialled, moved ones dialled at their new address, and those that are gone
    /// are hung up on. This node itself may be among them. Former members are told so when they call.
    ///
    /// # Errors
    /// If the supervision tree refuses the task of a new peer; the other peers are served all the same.
    pub fn set_members(&self, members: &Arc<Members>, departed: Arc<Departed>) -> Result<(), TransportError> {
        let shared = &self.shared;
        shared.gate.with_roster(|roster| roster.set_members(members.clone(), departed));
        let mut gone = Vec::new();
        let mut fresh = Vec::new();
        {
            let mut peers = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            peers.retain(|node, peer| {
                let stays = members.get(&peer.endpoint).is_some_and(|(id, _)| id == node);
                if !stays {
                    gone.push(peer.clone());
                }
                stays
            });
            for (endpoint, (node, address)) in members.iter().filter(|(endpoint, _)| **endpoint != shared.me) {
                match peers.get(node) {
                    Some(peer) => peer.set_address(address),
                    None => {
                        let peer = Arc::new(Peer::new(*node, *endpoint, address.clone(), &shared.registry));
                        peers.insert(*node, peer.clone());
                        fresh.push(peer);
                    }
                }
            }
        }
        for peer in gone {
            // It may be gone already if the tree is being shut down.
            let _ = shared.supervisor.stop(&task_name(peer.node));
            peer.remove("the node is no longer a member");
            if shared.peer(peer.node).is_none() {
                shared.registry.forget("peer", &peer.node.to_string());
            }
        }
        let mut refused = Ok(());
        for peer in fresh {
            let (name, shared) = (task_name(peer.node), shared.clone());
            let task = move |context| dial::keep_connected(shared.clone(), peer.clone(), context);
            let spec = TaskSpec::new(name).on(self.shared.network.handle().clone());
            refused = refused.and(self.shared.supervisor.start(spec, task));
        }
        Ok(refused?)
    }

    /// Asks the members that `seeds` names, in order, to take this node in. Returns what a new member must know; the
    /// caller then sets its place and members.
    ///
    /// # Errors
    /// `Refused` with the reason as soon as one of them says no for the cluster; `Unreachable`, with every address tried
    /// and what happened there, if none could decide.
    pub async fn join(&self, seeds: &[TokenSeed], request: JoinRequest) -> Result<JoinAccepted, JoinError> {
        let join = join::join(self.shared.clone(), seeds.to_vec(), request);
        // On the network thread, because that is where iroh then spawns the connection.
        match self.shared.network.handle().spawn(join).await {
            Ok(result) => result,
            Err(_) => Err(JoinError::Unreachable(Vec::new())),
        }
    }

    /// How every other member fares, by node id.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.peers().values().map(|peer| peer.status()).collect()
    }

    /// Brings what the registry says of the queues to peers up to date: counted when somebody asks, so that sending costs
    /// nothing more.
    pub fn count_waiting(&self) {
        self.shared.peers().values().for_each(|peer| peer.count_waiting());
    }

    /// The last hellos that were refused, oldest first.
    #[must_use]
    pub fn refusals(&self) -> Vec<RefusalRecord> {
        self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Drops every connection at once without a word to anybody, as if the process had been killed. Stopping properly
    /// is the supervisor's `shutdown`.
    pub async fn abandon(&self) {
        self.shared.network.stop().await;
    }
}

impl PeerLink for Transport {
    fn send(&self, to: NodeId, channel: Channel, messages: Vec<PeerMessage>) {
        match self.shared.peers().get(&to) {
            Some(peer) => peer.send(channel, messages),
            None => self.shared.metrics.unknown.add(messages.len() as u64),
        }
    }
}

impl Shared {
    fn peers(&self) -> RwLockReadGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers().get(&node).cloned()
    }

    /// Logs (not too often) a call that did not get as far as a key. Who calls is not proven: the lines of all such
    /// callers count as one, so that made-up addresses do not crowd out other complaints.
    pub fn handshake_failed(&self, from: &str, reason: &str) {
        if let Some(held_back) = self.log.allow("handshake") {
            tracing::warn!(from, reason, held_back, "closing an incoming connection: its handshake failed");
        }
    }

    /// Counts, remembers and (not too often) logs a refusal.
    pub fn refused(&self, endpoint: EndpointId, from: &str, refusal: &Refusal) {
        self.metrics.refused.inc();
        if let Some(held_back) = self.log.allow(&format!("refused {endpoint} {}", refusal.code)) {
            let (code, reason) = (refusal.code, &refusal.reason);
            // That this node has no cluster yet is part of every start.
            if code == ErrorCode::FailedPrecondition {
                tracing::info!(%endpoint, from, %code, reason, held_back, "refused a peer");
            } else {
                tracing::warn!(%endpoint, from, %code, reason, held_back, "refused a peer");
            }
        }
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() == REFUSALS_MAX {
            refusals.pop_front();
        }
        let at = Clock.now().wall;
        refusals.push_back(RefusalRecord { at, endpoint, from: from.to_owned(), refusal: refusal.clone() });
    }
}

fn task_name(node: NodeId) -> String {
    format!("transport/peer/{node}")
}

/// iroh reports a port in use only in words, so the port is tried beforehand.
fn probe(address: SocketAddr) -> Result<(), TransportError> {
    match UdpSocket::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(TransportError::AddressInUse(address)),
        Err(source) => Err(TransportError::Listen { address, source }),
    }
}

async fn bind_endpoint(
    config: &TransportConfig,
    gate: &Arc<Gate>,
    network: &Handle,
) -> Result<Endpoint, TransportError> {
    let address = config.listen;
    let failed = |reason: String| TransportError::Endpoint { address, reason };
    let relay = match &config.relay {
        None => RelayMode::Disabled,
        Some(url) => RelayMode::custom([parse_relay(url)?]),
    };
    let builder = Endpoint::builder(presets::Minimal)
        .secret_key(config.identity.secret_key())
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(relay)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .transport_config(quic_config())
        .hooks(Doorkeeper(gate.clone()))
        .clear_ip_transports()
        .bind_addr(address)
        .map_err(|error| failed(error.to_string()))?;
    // iroh spawns its drivers where it is polled: they belong on the network thread.
    match network.spawn(builder.bind()).await {
        Ok(Ok(endpoint)) => Ok(endpoint),
        Ok(Err(error)) => Err(failed(format!("{error:#}"))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Whether `url` names a relay: scheme, host and maybe port, since it is asked for paths of its own. Every member learns it,
/// so nothing secret belongs into it.
///
/// # Errors
/// [`TransportError::Relay`], with what is wrong.
pub fn check_relay(url: &str) -> Result<(), TransportError> {
    parse_relay(url).map(drop)
}

fn parse_relay(url: &str) -> Result<RelayUrl, TransportError> {
    let wrong = |reason: String| TransportError::Relay { url: url.to_owned(), reason };
    // Read as a URL first: the error of `RelayUrl` does not say why it is none.
    let relay = RelayUrl::from(Url::parse(url).map_err(|error| wrong(error.to_string()))?);
    if !matches!(relay.scheme(), "http" | "https") {
        return Err(wrong(format!("it begins with {}: and not with https: or http:", relay.scheme())));
    }
    let user = !relay.username().is_empty() || relay.password().is_some();
    if user || relay.path() != "/" || relay.query().is_some() || relay.fragment().is_some() {
        return Err(wrong("leave out everything but scheme, host and port".to_owned()));
    }
    Ok(relay)
}

/// Windows stay at their defaults except where they are smaller: stream windows of 8 MiB and more break connections.
/// Streams of frames are allowed only after the hello was accepted.
fn quic_config() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_idle_timeout(Some(IdleTimeout::from(IDLE_TIMEOUT)))
        .keep_alive_interval(KEEP_ALIVE)
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(STRANGER_RECEIVE_WINDOW)
        .datagram_receive_buffer_size(None)
        .build()
}

/// Holds the endpoint until the node stops, then closes it, so that peers hear of it at once.
async fn close_at_end(shared: Arc<Shared>, context: TaskContext) -> runtime::TaskResult {
    context.cancel.cancelled().await;
    // Peers that do not acknowledge in time find out by their idle timeout.
    let _ = timeout(CLOSE_TIMEOUT, shared.endpoint.close()).await;
    Ok(())
}
