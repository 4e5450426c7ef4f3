//! What is counted of clients and their requests.

use std::collections::BTreeMap;

use kafka_protocol::messages::ApiKey;
use runtime::{Counter, Gauge, Histogram, LATENCY_BUCKETS_S, Registry};

use crate::versions::SUPPORTED;

/// Counters of one listener.
pub(crate) struct Metrics {
    pub connections: Gauge,
    pub accepted: Counter,
    /// Because there were too many.
    pub refused: Counter,
    /// By this side, for what the client did or did not do.
    pub closed: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    requests: BTreeMap<i16, Histogram>,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Metrics {
        let counter = |name, help| registry.counter(name, help, &[]);
        let help =
            "From a request's arrival to its answer's turn to be written; fetches wait for records as they ask to.";
        let seconds = |api: ApiKey| {
            let name = format!("{api:?}");
            registry.histogram("muster_kafka_request_seconds", help, &[("api", &name)], LATENCY_BUCKETS_S)
        };
        Metrics {
            connections: registry.gauge("muster_kafka_connections", "Kafka clients' connections.", &[]),
            accepted: counter("muster_kafka_connections_accepted_total", "Connections of Kafka clients taken."),
            refused: counter(
                "muster_kafka_connections_refused_total",
                "Connections of Kafka clients closed at once because there were too many.",
            ),
            closed: counter(
                "muster_kafka_connections_closed_total",
                "Connections of Kafka clients that this node closed: idle, malformed, or taking no answers.",
            ),
            bytes_in: counter("muster_kafka_received_bytes_total", "Bytes of Kafka clients' requests."),
            bytes_out: counter("muster_kafka_sent_bytes_total", "Bytes of answers to Kafka clients."),
            requests: SUPPORTED.iter().map(|known| (known.api as i16, seconds(known.api))).collect(),
        }
    }

    /// A request was answered after that many seconds.
    pub fn answered(&self, api: ApiKey, seconds: f64) {
        if let Some(histogram) = self.requests.get(&(api as i16)) {
            histogram.observe(seconds);
        }
    }
}
