//! Publishing the outbox: the leader of `__meta` appends each event to `muster.events` under one producer id with the
//! event's sequence, so that a new leader that publishes it again is recognised, and nothing is lost or doubled. Each
//! incarnation of the cluster has a producer id of its own: a recovered cluster may have lost events that were published.

use std::collections::BTreeSet;

use base::limits::{OUTBOX_WINDOW, PRODUCER_ID_RESERVED_MAX};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, Millis, Mono};
use bytes::Bytes;
use metadata::{Command, EVENTS_TOPIC, Metadata, OutboxEvent};
use stream::{ProducerStamp, Record, encode_batch};

use crate::core::NodeCore;
use crate::requests::Internal;
use crate::{Acks, Produce, Request, Target};

/// The producer ids of the outbox, one per incarnation of the cluster, in turns; no client writes under them.
const PRODUCER_IDS: std::ops::RangeInclusive<i64> = 1..=PRODUCER_ID_RESERVED_MAX;
/// After a failed publication, or a trim that does not show.
const RETRY: Millis = Millis(200);

/// Under which the events of this incarnation of the cluster are published.
pub(crate) fn producer_id(metadata: &Metadata) -> i64 {
    let (first, last) = PRODUCER_IDS.into_inner();
    let turn = metadata.cluster_incarnation.0 % last.unsigned_abs();
    first.saturating_add_unsigned(turn)
}

/// What of the outbox is under way.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    under_way: BTreeSet<u64>,
    done: BTreeSet<u64>,
    /// Published through here.
    trimmed: u64,
    /// When that was last proposed as a trim, if it was.
    trim_proposed: Option<Mono>,
    retry_at: Option<Mono>,
}

impl Outbox {
    /// Leadership changed: what this node had under way is forgotten. Publishing again does no harm.
    pub fn reset(&mut self) {
        *self = Outbox::default();
    }
}

impl NodeCore {
    pub(crate) fn drive_outbox(&mut self) {
        if !self.groups.get(&GroupId::META).is_some_and(|g| g.active) || self.metadata.outbox.is_empty() {
            return;
        }
        if self.outbox.retry_at.is_some_and(|at| at > self.now.mono) {
            return;
        }
        self.outbox.retry_at = None;
        let Some(group) = self.metadata.topics.get(EVENTS_TOPIC).and_then(|t| t.partitions.first()).copied() else {
            return;
        };
        self.propose_trim();
        // The first event of all opens the producer's sequence: nothing may overtake it.
        let opens = self.metadata.outbox.contains_key(&self.metadata.outbox_first);
        let window = if opens { 1 } else { OUTBOX_WINDOW };
        // Counted from what is trimmed in the state, not from what this leader believes: a trim that was refused or
        // lost with this leadership would leave the next leader with events that the partition no longer remembers.
        let events: Vec<_> = self
            .metadata
            .outbox
            .values()
            .take(window)
            .filter(|e| e.sequence > self.outbox.trimmed)
            .filter(|e| !self.outbox.under_way.contains(&e.sequence) && !self.outbox.done.contains(&e.sequence))
            .cloned()
            .collect();
        for event in events {
            self.publish_event(group, &event);
        }
    }

    /// Proposes to drop what was published, again if the state does not show it after a while.
    fn propose_trim(&mut self) {
        let untrimmed = self.metadata.outbox.get_min().is_some_and(|(first, _)| *first <= self.outbox.trimmed);
        let waits = self.outbox.trim_proposed.is_some_and(|at| self.now.mono.since(at) < RETRY);
        if untrimmed && !waits {
            mark_if(Mark::OutboxTrimRepeated, || self.outbox.trim_proposed.is_some());
            self.outbox.trim_proposed = Some(self.now.mono);
            self.propose_command(None, None, Command::TrimOutbox { through: self.outbox.trimmed });
        }
    }

    fn publish_event(&mut self, group: GroupId, event: &OutboxEvent) {
        let record = Record {
            key: Some(Bytes::copy_from_slice(event.key.as_bytes())),
            value: Some(Bytes::copy_from_slice(event.json.as_bytes())),
            headers: Vec::new(),
            timestamp: event.wall.0,
        };
        // Kafka's sequences have 31 bits and wrap to 0.
        let base_sequence = i32::try_from((event.sequence - 1) % (1 << 31)).expect("31 bits fit");
        let stamp = ProducerStamp { id: producer_id(&self.metadata), epoch: 0, base_sequence };
        let stamp = (!planted(Plant::OutboxUnnumbered)).then_some(stamp);
        let Ok(batch) = encode_batch(&[record], stamp) else {
            return self.fatal(format!("event {} does not fit a record batch", event.sequence));
        };
        self.outbox.under_way.insert(event.sequence);
        let produce = Request::Produce(Produce { group, acks: Acks::All, batches: vec![batch] });
        self.ask(Internal::Publish { sequence: event.sequence }, Target::Leader(group), produce);
    }

    pub(crate) fn published(&mut self, sequence: u64, ok: bool) {
        if !self.outbox.under_way.remove(&sequence) {
            mark(Mark::EventPublishedForOldLeader);
            return; // Of an earlier leadership.
        }
        if !ok && !planted(Plant::OutboxIgnoresFailures) {
            mark(Mark::EventNotPublished);
            self.outbox.retry_at = Some(self.now.mono.plus(RETRY));
            return;
        }
        self.outbox.done.insert(sequence);
        let Some(first) = self.metadata.outbox.range(self.outbox.trimmed + 1..).next().map(|(s, _)| *s) else { return };
        let mut through = None;
        let mut next = first;
        while self.outbox.done.remove(&next) {
            through = Some(next);
            next += 1;
        }
        if let Some(through) = through {
            self.outbox.trimmed = through;
            self.outbox.trim_proposed = None;
            self.propose_trim();
        }
    }
}
