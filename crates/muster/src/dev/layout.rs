//! Which nodes a development cluster has and where they listen; kept in its data directory, because peers remember
//! each other's addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Nodes, if nothing else is said.
const NODES_DEFAULT: usize = 3;

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodePlace {
    pub name: String,
    pub kafka: SocketAddr,
    pub api: SocketAddr,
    pub peer: SocketAddr,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub nodes: Vec<NodePlace>,
}

/// Where the first node is to listen; port 0 means any that is free.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FirstNode {
    pub kafka: Option<SocketAddr>,
    pub api: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

/// Sockets on the ports that were chosen, by node. The second node starts when the first one is ready, which may take
/// seconds: another cluster that looks for free ports meanwhile must not find these.
#[derive(Debug, Default)]
pub(crate) struct HeldPorts(BTreeMap<String, Vec<OwnedFd>>);

impl HeldPorts {
    /// The node starts now, and binds its ports itself: for that moment they are free.
    pub(crate) fn release(&mut self, name: &str) {
        self.0.remove(name);
    }
}

/// Binds an address; the port may be any.
type Bind = fn(SocketAddr) -> std::io::Result<(SocketAddr, OwnedFd)>;

impl Layout {
    /// The layout kept in `dir`, grown to `nodes` nodes, and kept again; with it the ports of those that are new.
    pub(crate) fn open(dir: &Path, nodes: Option<usize>, first: FirstNode) -> anyhow::Result<(Layout, HeldPorts)> {
        let file = dir.join("dev.json");
        let mut layout = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice::<Layout>(&bytes)
                .with_context(|| format!("{} is damaged: remove {} to begin anew", file.display(), dir.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Layout::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let known = layout.nodes.len();
        let nodes = nodes.unwrap_or(if known == 0 { NODES_DEFAULT } else { known });
        if nodes < known {
            bail!(
                "{} holds a cluster of {known} nodes: start it with --nodes {known}, or choose another --data-dir",
                dir.display()
            );
        }
        if let Some(place) = layout.nodes.first_mut() {
            place.kafka = first.kafka.filter(|address| address.port() != 0).unwrap_or(place.kafka);
            place.api = first.api.filter(|address| address.port() != 0).unwrap_or(place.api);
            place.peer = first.peer.filter(|address| address.port() != 0).unwrap_or(place.peer);
        }
        let mut held = HeldPorts::default();
        for index in known..nodes {
            let (place, sockets) = layout.place(index, first)?;
            held.0.insert(place.name.clone(), sockets);
            layout.nodes.push(place);
        }
        let bytes = serde_json::to_vec_pretty(&layout)?;
        let fresh: PathBuf = dir.join("dev.json.new");
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, &file))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok((layout, held))
    }

    /// Where the next node listens: the first where it was told to, the others on the next ports that are free.
    fn place(&self, index: usize, first: FirstNode) -> anyhow::Result<(NodePlace, Vec<OwnedFd>)> {
        let step = u16::try_from(index).context("too many nodes")?;
        let told = |address: Option<SocketAddr>| address.filter(|_| index == 0);
        let any = |address: Option<SocketAddr>| address.is_some_and(|address| address.port() == 0);
        let mut held = Vec::new();
        let mut choose = |wanted: Option<SocketAddr>, usual: u16, bind: Bind| -> anyhow::Result<SocketAddr> {
            let (address, socket) = self.choose(told(wanted), index, (usual, any(wanted)), bind)?;
            held.extend(socket);
            Ok(address)
        };
        let place = NodePlace {
            name: format!("node{}", index + 1),
            kafka: choose(first.kafka, node::KAFKA_PORT + step, bind_tcp)?,
            api: choose(first.api, node::API_PORT + 10 * step, bind_tcp)?,
            peer: choose(first.peer, node::PEER_PORT + 10 * step, bind_udp)?,
        };
        Ok((place, held))
    }

    fn choose(
        &self,
        told: Option<SocketAddr>,
        index: usize,
        (usual, anywhere): (u16, bool),
        bind: Bind,
    ) -> anyhow::Result<(SocketAddr, Option<OwnedFd>)> {
        // Whoever wants any port for the first node wants no fixed ones for the others either.
        let usual = if anywhere { 0 } else { usual };
        let wanted = told.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), usual));
        // The first node's ports are where people look for it: it takes them or says why it cannot.
        if index == 0 && wanted.port() != 0 {
            return Ok((wanted, None));
        }
        let taken = |address: SocketAddr| {
            let all = self.nodes.iter().flat_map(|node| [node.kafka, node.api, node.peer]);
            all.into_iter().any(|other| other.port() == address.port())
        };
        let any = SocketAddr::new(wanted.ip(), 0);
        let tries = std::iter::once(wanted).chain(std::iter::repeat_n(any, 64));
        let free = tries.filter_map(|address| bind(address).ok()).find(|(address, _)| !taken(*address));
        let (address, socket) = free.with_context(|| format!("no port is free on {}", wanted.ip()))?;
        Ok((address, Some(socket)))
    }
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<(SocketAddr, OwnedFd)> {
    let socket = TcpListener::bind(address)?;
    Ok((socket.local_addr()?, socket.into()))
}

fn bind_udp(address: SocketAddr) -> std::io::Result<(SocketAddr, OwnedFd)> {
    let socket = UdpSocket::bind(address)?;
    Ok((socket.local_addr()?, socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> FirstNode {
        let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        FirstNode { kafka: any, api: any, peer: any }
    }

    #[test]
    fn a_second_start_finds_the_same_nodes_and_may_add_some() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = Layout::open(dir.path(), Some(2), any()).unwrap();
        assert_eq!(first.nodes.len(), 2);
        assert_eq!(Layout::open(dir.path(), None, any()).unwrap().0, first);
        let (more, _) = Layout::open(dir.path(), Some(3), any()).unwrap();
        assert_eq!(more.nodes[..2], first.nodes[..]);
        assert_eq!(more.nodes.len(), 3);
        let fewer = Layout::open(dir.path(), Some(2), any()).unwrap_err().to_string();
        assert!(fewer.contains("holds a cluster of 3 nodes: start it with --nodes 3"), "{fewer}");
    }

    #[test]
    fn ports_are_never_given_out_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _) = Layout::open(dir.path(), Some(8), any()).unwrap();
        let tcp: Vec<u16> = layout.nodes.iter().flat_map(|node| [node.kafka.port(), node.api.port()]).collect();
        let unique: std::collections::BTreeSet<_> = tcp.iter().collect();
        assert_eq!(unique.len(), tcp.len(), "{layout:?}");
        assert!(tcp.iter().all(|port| *port != 0));
    }

    #[test]
    fn chosen_ports_are_held_until_their_node_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, mut held) = Layout::open(dir.path(), Some(2), any()).unwrap();
        let free =
            |node: &NodePlace| (bind_tcp(node.kafka).is_ok(), bind_tcp(node.api).is_ok(), bind_udp(node.peer).is_ok());
        held.release("node1");
        assert_eq!(free(&layout.nodes[0]), (true, true, true));
        assert_eq!(free(&layout.nodes[1]), (false, false, false));
        let (again, held) = Layout::open(dir.path(), None, any()).unwrap();
        assert_eq!(again, layout);
        assert!(held.0.is_empty(), "known nodes have their ports already");
    }

    #[test]
    fn a_damaged_layout_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dev.json"), "{").unwrap();
        let error = Layout::open(dir.path(), None, any()).unwrap_err().to_string();
        assert!(error.contains("dev.json is damaged"), "{error}");
    }
}
