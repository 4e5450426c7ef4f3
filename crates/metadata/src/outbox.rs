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

    /// What waits gets other numbers, from `first` on, without gaps.
    pub(crate) fn renumber_outbox(&mut self, first: u64) {
        let waiting = std::mem::take(&mut self.outbox);
        (self.outbox_first, self.outbox_next) = (first, first);
        for event in waiting.values() {
            let sequence = self.outbox_next;
            self.outbox_next += 1;
            self.outbox.insert(sequence, renumbered(event, sequence));
        }
    }
}

/// The same event under another number.
fn renumbered(event: &OutboxEvent, sequence: u64) -> OutboxEvent {
    let json = match serde_json::from_str(&event.json) {
        Ok(Value::Object(mut fields)) => {
            fields.insert("sequence".to_owned(), json!(sequence));
            Value::Object(fields).to_string()
        }
        _ => event.json.clone(),
    };
    OutboxEvent { sequence, json, ..event.clone() }
}
