//! Which nodes a development cluster has and where they listen; kept in its data directory, because peers remember
//! each other's addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
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

impl Layout {
    /// The layout kept in `dir`, grown to `nodes` nodes, and kept again.
    pub(crate) fn open(dir: &Path, nodes: Option<usize>, first: FirstNode) -> anyhow::Result<Layout> {
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
        for index in known..nodes {
            let place = layout.place(index, first)?;
            layout.nodes.push(place);
        }
        let bytes = serde_json::to_vec_pretty(&layout)?;
        let fresh: PathBuf = dir.join("dev.json.new");
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, &file))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(layout)
    }

    /// Where the next node listens: the first where it was told to, the others on the next ports that are free.
    fn place(&self, index: usize, first: FirstNode) -> anyhow::Result<NodePlace> {
        let step = u16::try_from(index).context("too many nodes")?;
        let told = |address: Option<SocketAddr>| address.filter(|_| index == 0);
        let any = |address: Option<SocketAddr>| address.is_some_and(|address| address.port() == 0);
        Ok(NodePlace {
            name: format!("node{}", index + 1),
            kafka: self.choose(told(first.kafka), index, (node::KAFKA_PORT + step, any(first.kafka)), tcp_is_free)?,
            api: self.choose(told(first.api), index, (node::API_PORT + 10 * step, any(first.api)), tcp_is_free)?,
            peer: self.choose(told(first.peer), index, (node::PEER_PORT + 10 * step, any(first.peer)), udp_is_free)?,
        })
    }

    fn choose(
        &self,
        told: Option<SocketAddr>,
        index: usize,
        (usual, anywhere): (u16, bool),
        is_free: fn(SocketAddr) -> Option<SocketAddr>,
    ) -> anyhow::Result<SocketAddr> {
        // Whoever wants any port for the first node wants no fixed ones for the others either.
        let usual = if anywhere { 0 } else { usual };
        let wanted = told.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), usual));
        // The first node's ports are where people look for it: it takes them or says why it cannot.
        if index == 0 && wanted.port() != 0 {
            return Ok(wanted);
        }
        let taken = |address: SocketAddr| {
            let all = self.nodes.iter().flat_map(|node| [node.kafka, node.api, node.peer]);
            all.into_iter().any(|other| other.port() == address.port())
        };
        let any = SocketAddr::new(wanted.ip(), 0);
        let tries = std::iter::once(wanted).chain(std::iter::repeat_n(any, 64));
        let free = tries.filter_map(is_free).find(|address| !taken(*address));
        free.with_context(|| format!("no port is free on {}", wanted.ip()))
    }
}

fn tcp_is_free(address: SocketAddr) -> Option<SocketAddr> {
    TcpListener::bind(address).and_then(|socket| socket.local_addr()).ok()
}

fn udp_is_free(address: SocketAddr) -> Option<SocketAddr> {
    UdpSocket::bind(address).and_then(|socket| socket.local_addr()).ok()
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
        let first = Layout::open(dir.path(), Some(2), any()).unwrap();
        assert_eq!(first.nodes.len(), 2);
        assert_eq!(Layout::open(dir.path(), None, any()).unwrap(), first);
        let more = Layout::open(dir.path(), Some(3), any()).unwrap();
        assert_eq!(more.nodes[..2], first.nodes[..]);
        assert_eq!(more.nodes.len(), 3);
        let fewer = Layout::open(dir.path(), Some(2), any()).unwrap_err().to_string();
        assert!(fewer.contains("holds a cluster of 3 nodes: start it with --nodes 3"), "{fewer}");
    }

    #[test]
    fn ports_are_never_given_out_twice() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), Some(8), any()).unwrap();
        let tcp: Vec<u16> = layout.nodes.iter().flat_map(|node| [node.kafka.port(), node.api.port()]).collect();
        let unique: std::collections::BTreeSet<_> = tcp.iter().collect();
        assert_eq!(unique.len(), tcp.len(), "{layout:?}");
        assert!(tcp.iter().all(|port| *port != 0));
    }

    #[test]
    fn a_damaged_layout_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dev.json"), "{").unwrap();
        let error = Layout::open(dir.path(), None, any()).unwrap_err().to_string();
        assert!(error.contains("dev.json is damaged"), "{error}");
    }
}
