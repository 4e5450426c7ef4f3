//! What everybody must know about a node.

use std::collections::BTreeMap;

use base::{EndpointId, NodeId, VersionRange};
use minicbor::{Decode, Encode};

/// How to reach a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct NodeAddress {
    /// Its identity on the network.
    #[n(0)]
    pub endpoint: EndpointId,
    /// Addresses (`ip:port`, UDP) at which its peer endpoint listens.
    #[n(1)]
    pub direct: Vec<String>,
    /// Relay to reach it by, if it has one.
    #[n(2)]
    pub relay_url: Option<String>,
    /// What it tells Kafka clients to connect to (`host:port`).
    #[n(3)]
    pub kafka: String,
    /// Where its API listens (`host:port`).
    #[n(4)]
    pub api: String,
}

/// What a node can carry, measured on the host when it joins.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Capabilities {
    /// CPU threads usable by this process.
    #[n(0)]
    pub cores: u32,
    /// Physical memory.
    #[n(1)]
    pub memory_mib: u64,
    /// Free space of the data directory's file system at start.
    #[n(2)]
    pub disk_mib: u64,
    /// As Rust names it: `x86_64`, `aarch64`.
    #[n(3)]
    pub architecture: String,
    /// Hypervisors found, with versions, such as `qemu 7.2.22`; none: no VM is placed here.
    #[n(4)]
    pub hypervisors: Vec<String>,
    /// `kvm` if it passed the timed self-test, otherwise `tcg`; empty without a hypervisor.
    #[n(5)]
    pub accelerator: String,
    /// The muster version running there.
    #[n(6)]
    pub version: String,
}

/// A node as the table of members shows it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Member {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub name: String,
    #[n(2)]
    pub address: NodeAddress,
    #[n(3)]
    pub capabilities: Capabilities,
    /// Free-form, such as `zone=a`; failure domains among them.
    #[n(4)]
    pub labels: BTreeMap<String, String>,
    /// Names the data that it keeps: drawn when its journal is made, and gone with it. A node whose data is gone is not the
    /// node that it was, whatever key it has. 0: not said, as by an older version.
    #[n(5)]
    #[cbor(default)]
    pub store: u64,
    /// The cluster versions that it can, as of its last start. Whoever does not say can the first one.
    #[n(20)]
    #[cbor(default)]
    pub versions: VersionRange,
}
