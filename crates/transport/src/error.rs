//! What can go wrong, said so that a person knows what to do.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use base::EndpointId;
use wire::Refusal;

/// Why a node's identity could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading or writing the key file failed.
    #[error("cannot {action} the identity key {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The key file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is there and is not a key.
    #[error(
        "the identity key {path} is damaged ({bytes} bytes, expected 32); restore it from a backup, or remove it to make \
         a new identity, with which this node must join the cluster again"
    )]
    Damaged {
        /// The key file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// Others can read the secret.
    #[error("the identity key {path} is readable by others (mode {mode:o}); run `chmod 600 {path}`")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No randomness for a new key.
    #[error("the system gives no randomness for a new identity key: {0}")]
    Randomness(String),
}

/// Why the transport could not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Another process has the port.
    #[error("peer address {0} (UDP) is in use by another process; choose another with --peer-listen")]
    AddressInUse(SocketAddr),
    /// The address cannot be had for another reason.
    #[error("cannot listen for peers on {address} (UDP); set another address with --peer-listen")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// iroh refused to start.
    #[error("cannot start the peer endpoint on {address}: {reason}")]
    Endpoint {
        /// The address asked for.
        address: SocketAddr,
        /// What iroh says.
        reason: String,
    },
    /// The relay is not the URL of one.
    #[error("relay \"{url}\" is not the URL of a relay, such as https://relay.example.org: {reason}")]
    Relay {
        /// As configured.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The thread for QUIC could not be started.
    #[error("cannot start the network thread")]
    Thread(#[source] io::Error),
    /// The supervision tree refused a task.
    #[error("cannot start a transport task")]
    Supervisor(#[from] runtime::SupervisorError),
}

/// Why no seed took the joiner in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A member answered, and the answer is no.
    #[error("node at {address} refused the join ({}): {}", .refusal.code, .refusal.reason)]
    Refused {
        /// Who refused.
        endpoint: EndpointId,
        /// Where it was reached.
        address: String,
        /// Why.
        refusal: Refusal,
    },
    /// Nobody could be asked, or nobody could decide.
    #[error("no member named in the join token could take this node in: {}", Tried(.0))]
    Unreachable(Vec<SeedFailure>),
    /// The token names nobody.
    #[error("the join token names no member to call; make a new one with `muster token create`")]
    NoSeeds,
}

/// One seed that was tried in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedFailure {
    /// Whom the token names.
    pub endpoint: EndpointId,
    /// Where it was looked for.
    pub addresses: Vec<String>,
    /// What happened.
    pub reason: String,
}

struct Tried<'a>(&'a [SeedFailure]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, seed) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", seed.addresses.join(", "), seed.reason)?;
        }
        Ok(())
    }
}
