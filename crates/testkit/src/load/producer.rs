//! Produces records with kcat, run after run, and remembers which runs were acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Given, LoadPlan};
use crate::kcat::Kcat;

/// What one producer did, in the partition that has its number.
#[derive(Clone, Debug)]
pub struct Produced {
    pub(crate) number: usize,
    pub(crate) given: Given,
    pub failures: Vec<String>,
}

impl Produced {
    /// Records that were acknowledged.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.given.acknowledged()
    }
}

pub(super) fn produce(number: usize, plan: &LoadPlan, kcat: &Kcat, stop: &AtomicBool) -> anyhow::Result<Produced> {
    let given = Given::by(&number.to_string(), plan.record_bytes);
    let mut done = Produced { number, given, failures: Vec::new() };
    let kcat = kcat.clone().with_limit(plan.deadline + Duration::from_secs(60));
    let (partition, timeout) = (number.to_string(), format!("message.timeout.ms={}", plan.deadline.as_millis()));
    // kcat's own are made for networks far away: it would look for a new leader only every few minutes.
    let quick =
        ["topic.metadata.refresh.interval.ms=250", "retry.backoff.ms=50", "reconnect.backoff.max.ms=250", &timeout];
    let mut extra = vec!["-p", &partition];
    quick.iter().for_each(|setting| extra.extend(["-X", *setting]));
    while !stop.load(Ordering::SeqCst) {
        let run = done.given.next_run(plan.batch_records);
        let records = run.iter().map(|(key, value)| (*key, value.as_bytes()));
        let said = kcat.try_produce(&plan.topic, records, &[], &extra)?;
        let delivered = said.delivered();
        if !delivered {
            let first = run.first().map_or("", |(_, value)| value.trim_end());
            done.failures.push(format!("{} records from {first} on: {}", run.len(), said.text()));
        }
        done.given.ran(run.len(), delivered);
        std::thread::sleep(plan.producer_pause);
    }
    Ok(done)
}
