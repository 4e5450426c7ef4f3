//! The listening socket and its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::Millis;
use base::limits::{KAFKA_CONNECTIONS_MAX, KAFKA_FRAME_BYTES_MAX, KAFKA_IDLE_TIMEOUT};
use runtime::{CancellationToken, Gauge, Registry};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::metrics::Metrics;
use crate::topics::Directory;
use crate::{Broker, connection};

/// Pause after the system refused to accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the listener behaves.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Topics are made when a client asks for one that does not exist, if the client allows it.
    pub auto_create_topics: bool,
    /// Connections at once.
    pub connections_max: usize,
    /// Bytes of one frame. There is no authentication yet: peers on loopback and others have the same bound.
    pub frame_bytes_max: usize,
    /// A connection with nothing under way is closed after this long.
    pub idle_timeout: Millis,
}

impl ListenerConfig {
    /// The defaults, listening at `listen`.
    #[must_use]
    pub fn new(listen: SocketAddr) -> ListenerConfig {
        ListenerConfig {
            listen,
            auto_create_topics: true,
            connections_max: KAFKA_CONNECTIONS_MAX,
            frame_bytes_max: KAFKA_FRAME_BYTES_MAX,
            idle_timeout: KAFKA_IDLE_TIMEOUT,
        }
    }
}

/// What all connections share.
pub(crate) struct Shared<B> {
    pub(crate) broker: B,
    pub(crate) config: ListenerConfig,
    pub(crate) directory: Directory,
    pub(crate) metrics: Metrics,
}

/// A bound Kafka listener.
pub struct Listener<B> {
    socket: TcpListener,
    shared: Arc<Shared<B>>,
}

impl<B: Broker> Listener<B> {
    /// Binds the socket. What it counts stands in `registry`.
    ///
    /// # Errors
    /// The address is in use or cannot be bound.
    pub async fn bind(config: ListenerConfig, broker: B, registry: &Registry) -> io::Result<Listener<B>> {
        let socket = TcpListener::bind(config.listen).await?;
        let (directory, metrics) = (Directory::default(), Metrics::new(registry));
        Ok(Listener { socket, shared: Arc::new(Shared { broker, config, directory, metrics }) })
    }

    /// Where it listens (the port, if 0 was asked for).
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `shutdown`; then all connections are closed.
    pub async fn run(self, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.shared.config.connections_max));
        let mut connections = JoinSet::new();
        let mut full = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(panic) = ended.map_err(|e| e.to_string()) {
                        error!(%panic, "a Kafka connection's task failed");
                    }
                }
                accepted = self.socket.accept() => {
                    let (stream, peer) = match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            warn!(%error, "cannot accept Kafka connections at the moment");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let Ok(permit) = permits.clone().try_acquire_owned() else {
                        self.shared.metrics.refused.inc();
                        // Said once per time that it is full, not once per refused peer.
                        if !std::mem::replace(&mut full, true) {
                            let max = self.shared.config.connections_max;
                            warn!(%peer, max, "all Kafka connections are taken: new ones are closed");
                        }
                        continue;
                    };
                    full = false;
                    self.shared.metrics.accepted.inc();
                    let (shared, shutdown) = (self.shared.clone(), shutdown.clone());
                    connections.spawn(async move {
                        serve(shared, stream, peer, shutdown).await;
                        drop(permit);
                    });
                }
            }
        }
        connections.shutdown().await;
        info!(listen = %self.shared.config.listen, "the Kafka listener stopped");
    }
}

async fn serve<B: Broker>(shared: Arc<Shared<B>>, stream: TcpStream, peer: SocketAddr, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "no TCP_NODELAY");
    }
    let _counted = Counted::new(&shared.metrics.connections);
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = connection::serve(shared.clone(), stream) => match ended {
            Ok(()) => debug!(%peer, "Kafka connection ended"),
            Err(closed) => {
                shared.metrics.closed.inc();
                warn!(%peer, reason = %closed.full(), "Kafka connection closed");
            }
        }
    }
}

/// Counts in a gauge while it lives, also where a task is dropped or panics.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.add(1.0);
        Counted(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}
