//! The outbox: transitions wait here, in the same state that they changed, until the leader has published them.

use base::limits::OUTBOX_EVENTS_MAX;
use serde_json::{Value, json};

use crate::apply::Context;
use crate::{CommandResult, Metadata, OutboxEvent};

impl Metadata {
    /// Puts an event into the outbox. `key` becomes the record's key; `event` gets the time and the index added.
    pub(crate) fn publish(&mut self, context: Context, key: &str, mut event: Value) {
        if self.outbox.len() >= OUTBOX_EVENTS_MAX {
            // Nobody has published for long. What is there keeps its unbroken sequence; the loss is counted and told.
            self.outbox_dropped += 1;
            return;
        }
        let sequence = self.outbox_next;
        self.outbox_next += 1;
        event["time_ms"] = json!(context.now.0);
        event["meta_index"] = json!(context.index);
        event["sequence"] = json!(sequence);
        let event = OutboxEvent { sequence, wall: context.now, key: key.to_owned(), json: event.to_string() };
        self.outbox.insert(sequence, event);
    }

    pub(crate) fn trim_outbox(&mut self, through: u64) -> CommandResult {
        while let Some((sequence, _)) = self.outbox.get_min().cloned()
            && sequence <= through
        {
            self.outbox.remove(&sequence);
        }
        CommandResult::Done
    }
}
