//! The ports that clients use: Kafka and the API.

use std::net::SocketAddr;
use std::sync::Arc;

use base::Millis;
use doors::rest::{Probes, RestDoor, Served, ServerLimits, serve};
use engine::{Reply, Request, Target};
use futures::future::BoxFuture;
use kafka::{Listener, ListenerConfig, check_overcommit};
use operations::Ports;
use ops::{LoopbackOnly, Pipeline};
use runtime::{CancellationToken, Registry, Supervisor};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::error::NodeError;
use crate::handle::NodeHandle;
use crate::metrics::Scraper;
use crate::observe::{Clock, Watcher};
use crate::tasks;

/// How long a probe may take to ask the core.
const PROBE_WITHIN: Millis = Millis(1_000);
/// How long a stopping node waits at most for what ended calls leave behind to reach the leader.
const LAST_WORDS_WITHIN: Millis = Millis(500);

/// Both listeners, bound: clients may connect, and wait until they are served.
pub(crate) struct Listeners {
    kafka: Listener<NodeHandle>,
    api: TcpListener,
    pub kafka_address: SocketAddr,
    pub api_address: SocketAddr,
}

fn refused(what: &'static str, address: SocketAddr, flag: &'static str) -> impl Fn(std::io::Error) -> NodeError {
    move |error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "the port is in use by another process".to_owned(),
            _ => error.to_string(),
        };
        NodeError::Listen { what, address, reason, flag }
    }
}

impl Listeners {
    pub async fn bind(config: &Config, handle: NodeHandle, registry: &Registry) -> Result<Listeners, NodeError> {
        let (kafka, api) = (config.kafka_listen, config.api_listen);
        check_overcommit(kafka, false).map_err(|error| NodeError::Config(error.to_string()))?;
        let kafka_failed = refused("Kafka", kafka, "--kafka-listen");
        let kafka = Listener::bind(ListenerConfig::new(kafka), handle, registry).await.map_err(&kafka_failed)?;
        let api_failed = refused("the API", api, "--api-listen");
        let api = TcpListener::bind(api).await.map_err(&api_failed)?;
        let kafka_address = kafka.local_addr().map_err(kafka_failed)?;
        let api_address = api.local_addr().map_err(api_failed)?;
        Ok(Listeners { kafka, api, kafka_address, api_address })
    }

    /// Serves both until `stop`. Cancelled is what is returned once the API has let its calls end.
    pub fn serve(
        self,
        handle: NodeHandle,
        scraper: Scraper,
        host_names: Vec<String>,
        tree: &Supervisor,
        stop: &CancellationToken,
    ) -> Result<CancellationToken, NodeError> {
        let start = |reason: String| NodeError::Start { what: "the API", reason };
        let operations = operations::registry().map_err(|error| start(error.to_string()))?;
        let shared = Arc::new(handle.clone());
        let ports = Ports {
            core: shared.clone(),
            console: shared.clone(),
            images: shared.clone(),
            random: shared.clone(),
            tasks: shared,
        };
        let pipeline = Pipeline::new(
            Arc::new(operations),
            Arc::new(ports),
            Arc::new(Clock),
            Arc::new(LoopbackOnly),
            Arc::new(Watcher { registry: scraper.registry.clone() }),
        );
        let door = RestDoor {
            pipeline: Arc::new(pipeline),
            probes: Arc::new(NodeProbes { handle: handle.clone(), scraper }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host_names,
        };
        // Both are asked to end by `stop`, before the tree, which waits for nobody: clients go first.
        let (kafka, stopped) = (self.kafka.run(stop.child_token()), stop.clone());
        tasks::start(tree, "listeners/kafka", async move {
            kafka.await;
            unless_stopped(&stopped).await
        })?;
        let api = serve(self.api, Arc::new(door), ServerLimits::default(), stop.clone().cancelled_owned());
        let (stopped, gone) = (stop.clone(), CancellationToken::new());
        let last = gone.clone().drop_guard();
        tasks::start(tree, "listeners/api", async move {
            let Served { connections, refused, ended, cut } = api.await;
            tracing::info!(connections, refused, ended, cut, "the API stopped");
            if ended > 0 {
                // Calls that were ended leave orders with the core, such as to end the lease with which they queued. Those get
                // the time of one more question to the leader to arrive there; a lease whose order is lost ends by itself.
                let _ = handle.request_within(LAST_WORDS_WITHIN, Target::Here, Request::Barrier).await;
            }
            drop(last);
            unless_stopped(&stopped).await
        })?;
        Ok(gone)
    }
}

/// A listener ended: as asked, or not.
async fn unless_stopped(stop: &CancellationToken) -> Result<(), String> {
    if stop.is_cancelled() {
        // Ending is the tree's to order.
        return std::future::pending().await;
    }
    Err("it ended unasked".into())
}

struct NodeProbes {
    handle: NodeHandle,
    scraper: Scraper,
}

impl Probes for NodeProbes {
    fn ready(&self) -> BoxFuture<'static, Result<(), String>> {
        let status = self.handle.request_within(PROBE_WITHIN, Target::Here, Request::Status);
        Box::pin(async move {
            match status.await {
                Ok(Reply::Status(status)) if status.ready => Ok(()),
                Ok(Reply::Status(status)) => Err(status.reason),
                Ok(other) => Err(format!("unexpected answer {other:?}")),
                Err(error) => Err(error.message),
            }
        })
    }

    fn metrics(&self) -> BoxFuture<'static, String> {
        Box::pin(self.scraper.clone().scrape())
    }
}
