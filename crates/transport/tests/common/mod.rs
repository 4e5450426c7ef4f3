//! Nodes on loopback, and a peer made by hand that does what no peer does.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{ClusterId, EndpointId, Incarnation, NodeId, RecoveryId, VersionRange};
use bytes::Bytes;
use iroh::endpoint::{Connection, QuicTransportConfig, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode, SecretKey};
use runtime::{Registry, Supervisor};
use tokio::runtime::Handle;
use transport::{Identity, Inboxes, Incoming, Local, Members, PeerStatus, Transport, TransportConfig};
use wire::{ForwardReply, Gossip, Hello, HelloAck, HelloPurpose, NodeAddress, PROTOCOL_VERSION, PeerMessage};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// For conditions that should come true at once; a busy machine may need long.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Node {
    pub id: NodeId,
    pub identity: Identity,
    pub transport: Transport,
    pub inboxes: Inboxes,
    pub supervisor: Supervisor,
    pub registry: Registry,
    pub address: SocketAddr,
    pub stop: StopAtEnd,
}

pub fn identity(n: u64) -> Identity {
    Identity::from_secret([n as u8; 32])
}

pub fn local(n: u64, incarnation: u64) -> Local {
    let (cluster_incarnation, recovery) = (Incarnation(1), Some(RecoveryId([5; 16])));
    let (node, incarnation) = (NodeId(n), Incarnation(incarnation));
    let (home, versions) = (n, VersionRange::BINARY);
    Local { cluster: CLUSTER, cluster_incarnation, recovery, node, incarnation, home, versions }
}

/// What a test leaves behind must not disturb the next one.
pub struct StopAtEnd(Supervisor);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.root().cancel();
    }
}

impl Node {
    /// A node that is no member of anything yet.
    pub async fn homeless(n: u64, listen: SocketAddr) -> Node {
        Self::with_relay(n, listen, None).await
    }

    /// One that has a relay.
    pub async fn with_relay(n: u64, listen: SocketAddr, relay: Option<String>) -> Node {
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let identity = identity(n);
        let supervisor = Supervisor::new(Handle::current());
        let registry = Registry::new();
        let config = TransportConfig { identity: identity.clone(), listen, relay, hints: Vec::new() };
        let (transport, inboxes) = Transport::bind(config, &supervisor, &registry).await.expect("binds");
        let address = transport.listen_addrs()[0];
        let stop = StopAtEnd(supervisor.clone());
        Node { id: NodeId(n), identity, transport, inboxes, supervisor, registry, address, stop }
    }

    pub async fn start(n: u64) -> Node {
        let node = Self::homeless(n, "127.0.0.1:0".parse().unwrap()).await;
        node.transport.set_local(local(n, 1));
        node
    }

    pub fn place(&self) -> (EndpointId, (NodeId, NodeAddress)) {
        place(self.id.0, &self.identity, self.address)
    }

    pub fn know(&self, members: &Arc<Members>) {
        self.transport.set_members(members, Arc::default()).expect("peers start");
    }

    pub fn status(&self, of: u64) -> PeerStatus {
        self.transport.peers().into_iter().find(|peer| peer.node == NodeId(of)).expect("a known peer")
    }

    /// The next thing by the control inbox.
    pub async fn control(&mut self) -> Incoming {
        tokio::time::timeout(PATIENCE, self.inboxes.control.recv()).await.expect("in time").expect("transport lives")
    }

    pub async fn bulk(&mut self) -> Incoming {
        tokio::time::timeout(PATIENCE, self.inboxes.bulk.recv()).await.expect("in time").expect("transport lives")
    }

    /// Waits for all of `nodes` to be up, in any order, and returns their incarnations.
    pub async fn until_up(&mut self, nodes: &[u64]) -> BTreeMap<u64, u64> {
        let mut up = BTreeMap::new();
        while !nodes.iter().all(|node| up.contains_key(node)) {
            match self.control().await {
                Incoming::Up { node, incarnation } => {
                    up.insert(node.0, incarnation.0);
                }
                Incoming::Down { node } => {
                    up.remove(&node.0);
                }
                _ => {}
            }
        }
        up
    }

    pub async fn until_down(&mut self, of: u64) {
        while !matches!(self.control().await, Incoming::Down { node } if node == NodeId(of)) {}
    }

    /// Waits for the status of a peer to satisfy `check`.
    pub async fn until_status(&self, of: u64, check: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
        until(|| format!("{:?}", self.status(of)), || Some(self.status(of)).filter(&check)).await
    }
}

/// Ends a node as `kill -9` would, and waits until its port is free.
pub async fn kill(node: Node) -> SocketAddr {
    let address = node.address;
    node.transport.abandon().await;
    drop(node);
    until(|| format!("{address} is still taken"), || std::net::UdpSocket::bind(address).ok()).await;
    address
}

/// Waits until `found` finds something; says what was seen instead if it does not in time.
pub async fn until<T>(seen: impl Fn() -> String, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {}", seen());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub fn place(n: u64, identity: &Identity, address: SocketAddr) -> (EndpointId, (NodeId, NodeAddress)) {
    let endpoint = identity.endpoint();
    let direct = vec![address.to_string()];
    (endpoint, (NodeId(n), NodeAddress { endpoint, direct, ..NodeAddress::default() }))
}

/// Nodes 1 to `count`, which know each other.
pub async fn cluster(count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    for n in 1..=count {
        nodes.push(Node::start(n).await);
    }
    let members: Arc<Members> = Arc::new(nodes.iter().map(Node::place).collect());
    nodes.iter().for_each(|node| node.know(&members));
    nodes
}

pub async fn connected(count: u64) -> Vec<Node> {
    let mut nodes = cluster(count).await;
    for node in &mut nodes {
        let others: Vec<u64> = (1..=count).filter(|n| *n != node.id.0).collect();
        node.until_up(&others).await;
    }
    nodes
}

/// A small message with a number in it.
pub fn ping(n: u64) -> PeerMessage {
    PeerMessage::Gossip(Gossip { meta_applied: n, ..Gossip::default() })
}

pub fn pinged(incoming: &Incoming) -> Option<u64> {
    match incoming {
        Incoming::Peer { messages, .. } => match messages.last() {
            Some(PeerMessage::Gossip(gossip)) => Some(gossip.meta_applied),
            _ => None,
        },
        _ => None,
    }
}

/// A large message with a number in it.
pub fn load(n: u64, size: usize) -> PeerMessage {
    PeerMessage::ForwardReply(ForwardReply { id: n, body: Bytes::from(vec![n as u8; size]) })
}

/// An endpoint made by hand.
pub struct Raw {
    pub endpoint: Endpoint,
    pub id: EndpointId,
}

impl Raw {
    pub async fn start(secret: [u8; 32]) -> Raw {
        Self::start_with(secret, QuicTransportConfig::builder().build()).await
    }

    pub async fn start_with(secret: [u8; 32], config: QuicTransportConfig) -> Raw {
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(&secret))
            .alpns(vec![transport::ALPN.to_vec()])
            .relay_mode(RelayMode::Disabled)
            .clear_address_lookup()
            .transport_config(config)
            .clear_ip_transports()
            .bind_addr("127.0.0.1:0")
            .unwrap()
            .bind()
            .await
            .expect("binds");
        let id = Identity::from_secret(secret).endpoint();
        Raw { endpoint, id }
    }

    pub async fn call(&self, node: &Node) -> Connection {
        let id = iroh::EndpointId::from_bytes(&node.identity.endpoint().0).unwrap();
        let addr = EndpointAddr::new(id).with_ip_addr(node.address);
        self.endpoint.connect(addr, transport::ALPN).await.expect("connects")
    }

    /// Says hello and returns the answer.
    pub async fn hello(&self, node: &Node, hello: &Hello) -> (Connection, Option<HelloAck>) {
        let conn = self.call(node).await;
        let (mut send, mut recv) = conn.open_bi().await.expect("a stream");
        write_frame(&mut send, &wire::encode(hello)).await;
        let answer = read_frame(&mut recv).await.map(|bytes| wire::decode(&bytes).expect("an answer"));
        (conn, answer)
    }
}

pub fn member_hello(node: u64) -> Hello {
    let local = local(node, 1);
    let purpose = HelloPurpose::Member {
        cluster: local.cluster,
        cluster_incarnation: local.cluster_incarnation,
        node: local.node,
        incarnation: local.incarnation,
        recovery: local.recovery,
        home: Some(local.home),
    };
    Hello { protocol: PROTOCOL_VERSION, purpose, versions: local.versions }
}

/// Writes what it can: the other side may hang up at any point.
pub async fn write_frame(stream: &mut SendStream, body: &[u8]) {
    let _ = stream.write_all(&(body.len() as u32).to_be_bytes()).await;
    let _ = stream.write_all(body).await;
}

pub async fn read_frame(stream: &mut RecvStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// `values` sorted, at `percent`.
pub fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    values[(values.len() - 1) * percent / 100]
}
