//! Why a node does not start, or stops: what happened, to what, and what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a node does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A second start of one data directory.
    #[error("{} is in use by the muster process {pid}: stop that one first, or choose another --data-dir", path.display())]
    InUse { path: PathBuf, pid: String },
    /// Something in the data directory cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The record of the node's cluster is damaged.
    #[error("{} is damaged ({reason}): restore it, or wipe {} and join anew with a token", path.display(), dir.display())]
    State { path: PathBuf, dir: PathBuf, reason: String },
    /// A newer muster has written it.
    #[error(
        "{} was written {written} by a newer muster, this one reads {reads}: upgrade muster here again (or raise \
         --cluster-version-max). Nothing was changed",
        path.display()
    )]
    Newer { path: PathBuf, written: String, reads: String },
    /// A port is taken.
    #[error("{what} cannot listen on {address}: {reason}; {flag} changes the address")]
    Listen { what: &'static str, address: SocketAddr, reason: String, flag: &'static str },
    /// The configuration contradicts itself or the data directory.
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Identity(#[from] transport::IdentityError),
    #[error(transparent)]
    Transport(#[from] transport::TransportError),
    #[error(transparent)]
    Join(#[from] transport::JoinError),
    #[error(transparent)]
    Vmm(#[from] vmm::VmmError),
    /// The core stopped: journal damaged, disk failed, or a state that cannot be.
    #[error("{0}")]
    Fatal(String),
    /// The cluster has removed this node.
    #[error("{0}")]
    Expelled(String),
    /// Nothing was recovered from a lost majority, and nothing was changed.
    #[error("{}: {source}", path.display())]
    Recover { path: PathBuf, source: engine::recover::RecoverError },
    /// A thread or task could not be started.
    #[error("cannot start {what}: {reason}")]
    Start { what: &'static str, reason: String },
}

impl NodeError {
    pub(crate) fn file(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> NodeError {
        let path = path.to_path_buf();
        move |source| NodeError::File { action, path, source }
    }
}
