//! What the core's driver counts of its own turns.

use runtime::{Counter, Gauge, Histogram, LATENCY_BUCKETS_S, Registry};

/// One turn takes events in, flushes once and carries out what comes of it. While it lasts nothing else happens, so a long
/// one delays heartbeats.
pub(crate) struct Turns {
    pub seconds: Histogram,
    pub events: Counter,
    pub depths: Depths,
}

/// Events that wait for the driver, by source, as of the last tick.
pub(crate) struct Depths {
    pub control: Gauge,
    pub bulk: Gauge,
    pub disk: Gauge,
    pub vms: Gauge,
}

impl Turns {
    pub fn new(registry: &Registry) -> Turns {
        let help = "Turns of the core: taking events in, deciding, and carrying out what follows.";
        let depth = |source| {
            let help = "Events that wait for the core, by where they come from; requests have a metric of their own.";
            registry.gauge("muster_core_events_queued", help, &[("source", source)])
        };
        Turns {
            seconds: registry.histogram("muster_core_turn_seconds", help, &[], LATENCY_BUCKETS_S),
            events: registry.counter("muster_core_events_total", "Events that the core took in.", &[]),
            depths: Depths { control: depth("control"), bulk: depth("bulk"), disk: depth("disk"), vms: depth("vms") },
        }
    }
}
