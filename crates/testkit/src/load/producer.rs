//! Produces records with kcat, run after run, and remembers which runs were acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::LoadPlan;
use crate::kcat::Kcat;

/// What one producer did. Its records hold `PRODUCER-NUMBER`, and its partition has its number.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    pub(crate) number: usize,
    /// Runs of records that were all acknowledged: first, and the one after the last.
    pub(crate) acknowledged: Vec<(u64, u64)>,
    pub failures: Vec<String>,
}

impl Produced {
    /// Records that were acknowledged.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.acknowledged.iter().map(|(first, end)| end - first).sum()
    }
}

pub(super) fn produce(number: usize, plan: &LoadPlan, kcat: &Kcat, stop: &AtomicBool) -> anyhow::Result<Produced> {
    let mut done = Produced { number, ..Produced::default() };
    let kcat = kcat.clone().with_limit(plan.deadline + Duration::from_secs(60));
    let (partition, timeout) = (number.to_string(), format!("message.timeout.ms={}", plan.deadline.as_millis()));
    // kcat's own are made for networks far away: it would look for a new leader only every few minutes.
    let quick =
        ["topic.metadata.refresh.interval.ms=250", "retry.backoff.ms=50", "reconnect.backoff.max.ms=250", &timeout];
    let mut extra = vec!["-p", &partition];
    quick.iter().for_each(|setting| extra.extend(["-X", *setting]));
    let mut next = 0;
    while !stop.load(Ordering::SeqCst) {
        let end = next + plan.batch_records as u64;
        let values: Vec<String> = (next..end).map(|n| format!("{number}-{n:<0$}", plan.record_bytes)).collect();
        let records = values.iter().map(|value| (&b"k"[..], value.as_bytes()));
        let said = kcat.try_produce(&plan.topic, records, &[], &extra)?;
        // It also complains of brokers that are gone; what counts is whether the records were delivered.
        let text = said.text();
        if said.status.success() && !text.contains("Delivery failed") {
            match done.acknowledged.last_mut() {
                Some((_, last)) if *last == next => *last = end,
                _ => done.acknowledged.push((next, end)),
            }
        } else {
            done.failures.push(format!("records {next} to {end} of producer {number}: {text}"));
        }
        next = end;
        std::thread::sleep(plan.producer_pause);
    }
    Ok(done)
}
