//! The outbox: every event of the cluster's state is published in `muster.events`, once, in order, and nothing else is.

use std::collections::BTreeMap;

use metadata::Metadata;

/// See the module.
#[derive(Default)]
pub struct Events {
    /// By sequence, as they stood in the outbox of any node.
    seen: BTreeMap<u64, String>,
    /// Events that were published in another life of the cluster and are lost: the first of them, and the first after them.
    lost: Option<(u64, u64)>,
}

impl Events {
    /// A survivor knows of the events before `first`, and has those up to `published`.
    pub fn recovered(&mut self, published: u64, first: u64) {
        self.lost = Some((published + 1, first)).filter(|(gap, first)| gap < first);
    }

    /// A node has this state now.
    ///
    /// # Errors
    /// An event is not what it was.
    pub fn observed(&mut self, state: &Metadata) -> Result<(), String> {
        for (sequence, event) in &state.outbox {
            match self.seen.get(sequence) {
                Some(known) if *known != event.json => {
                    return Err(format!("event {sequence} is {}, it was {known}", event.json));
                }
                Some(_) => {}
                None => drop(self.seen.insert(*sequence, event.json.clone())),
            }
        }
        Ok(())
    }

    /// The run is over: what was published, in order, and the last state.
    ///
    /// # Errors
    /// An event is missing, doubled, out of order, or another one.
    pub fn finish(&self, published: &[Vec<u8>], state: &Metadata) -> Result<(), String> {
        let (gap, after) = self.lost.unwrap_or((1, 1));
        let sequences = (1..gap).chain(after..);
        let expected = state.outbox_next.saturating_sub(1) - (after - gap);
        for (sequence, text) in sequences.zip(published) {
            let text = String::from_utf8_lossy(text);
            let of_its_own = format!("\"sequence\":{sequence}");
            if !text.contains(&of_its_own) || self.seen.get(&sequence).is_some_and(|seen| *seen != text) {
                return Err(format!(
                    "record {} of muster.events should be event {sequence}, and is {text}",
                    sequence - 1
                ));
            }
        }
        if published.len() as u64 != expected {
            return Err(format!("{expected} events happened, {} were published", published.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metadata::OutboxEvent;

    fn text(sequence: u64) -> String {
        format!("{{\"event\":\"x\",\"sequence\":{sequence}}}")
    }

    fn state(sequences: std::ops::RangeInclusive<u64>) -> Metadata {
        let mut state = Metadata::default();
        state.outbox_next = sequences.end() + 1;
        for sequence in sequences {
            let json = text(sequence);
            state.outbox.insert(sequence, OutboxEvent { sequence, wall: base::Wall(0), key: "k".into(), json });
        }
        state
    }

    fn published(sequences: &[u64]) -> Vec<Vec<u8>> {
        sequences.iter().map(|sequence| text(*sequence).into_bytes()).collect()
    }

    #[test]
    fn lost_doubled_and_disordered_events_are_noticed() {
        let mut events = Events::default();
        events.observed(&state(1..=3)).expect("first");
        events.observed(&state(2..=3)).expect("trimmed");
        let ends = |sequences: &[u64]| events.finish(&published(sequences), &state(1..=3));
        assert_eq!(ends(&[1, 2, 3]), Ok(()));
        for wrong in [&[1, 2][..], &[1, 3], &[1, 2, 2, 3], &[2, 1, 3], &[1, 2, 3, 3]] {
            assert!(ends(wrong).is_err(), "{wrong:?} passed");
        }
    }
}
