//! Events of one VM that wait to be taken.
//!
//! The consumer's channel is bounded and may be full. A VM's supervisor must neither wait for it (it would stop
//! watching its hypervisor) nor keep a guest's chatter without bound. So lifecycle events are kept, all of them (an
//! incarnation has a handful), and console lines are kept up to a bound, above which new ones are dropped and counted.

use std::collections::VecDeque;

use base::{VmEpoch, VmId, VmIncarnation};
use tokio::sync::mpsc;

use crate::event::{VmEvent, VmEventKind};

/// Console bytes of one VM that wait.
const CONSOLE_BYTES_MAX: usize = 256 << 10;
/// Lines in one event.
const CONSOLE_LINES_PER_EVENT_MAX: usize = 128;
/// Bytes counted for a line beside its text, so that empty lines are bounded too.
const LINE_OVERHEAD_BYTES: usize = 32;

pub(crate) struct Outbox {
    id: VmId,
    events: mpsc::Sender<VmEvent>,
    waiting: VecDeque<VmEvent>,
    console_bytes: usize,
    /// Lines dropped since the last one kept.
    dropped: u64,
}

impl Outbox {
    pub(crate) fn new(id: VmId, events: mpsc::Sender<VmEvent>) -> Outbox {
        Outbox { id, events, waiting: VecDeque::new(), console_bytes: 0, dropped: 0 }
    }

    /// Queues a lifecycle event. Never dropped.
    pub(crate) fn push(&mut self, epoch: VmEpoch, incarnation: VmIncarnation, kind: VmEventKind) {
        self.waiting.push_back(VmEvent { id: self.id, epoch, incarnation, kind });
    }

    /// Queues a console line, or counts it as dropped.
    pub(crate) fn push_line(&mut self, epoch: VmEpoch, incarnation: VmIncarnation, line: String) {
        let bytes = line.len() + LINE_OVERHEAD_BYTES;
        if self.console_bytes + bytes > CONSOLE_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.console_bytes += bytes;
        if self.dropped == 0
            && let Some(last) = self.waiting.back_mut()
            && let VmEventKind::Console { lines, .. } = &mut last.kind
            && (last.epoch, last.incarnation) == (epoch, incarnation)
            && lines.len() < CONSOLE_LINES_PER_EVENT_MAX
        {
            lines.push(line);
            return;
        }
        let dropped = std::mem::take(&mut self.dropped);
        self.push(epoch, incarnation, VmEventKind::Console { lines: vec![line], dropped });
    }

    /// Moves one event to the consumer as soon as it has room. Pends while there is none to move; dropping the future
    /// loses nothing.
    pub(crate) async fn pump(&mut self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        match self.events.reserve().await {
            Ok(permit) => {
                if let Some(event) = self.waiting.pop_front() {
                    if let VmEventKind::Console { lines, .. } = &event.kind {
                        self.console_bytes -= lines.iter().map(|line| line.len() + LINE_OVERHEAD_BYTES).sum::<usize>();
                    }
                    permit.send(event);
                }
            }
            // Nobody listens any more, nor ever will.
            Err(_) => {
                self.waiting.clear();
                self.console_bytes = 0;
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: (VmEpoch, VmIncarnation) = (VmEpoch(1), VmIncarnation(1));

    fn line_of(bytes: usize) -> String {
        "x".repeat(bytes)
    }

    #[tokio::test]
    async fn a_consumer_that_sleeps_loses_lines_by_number_and_no_lifecycle_event() {
        let (events, mut taken) = mpsc::channel(1);
        let mut outbox = Outbox::new(VmId(1), events);
        let fit = CONSOLE_BYTES_MAX / (1000 + LINE_OVERHEAD_BYTES);
        for _ in 0..fit + 5 {
            outbox.push_line(AT.0, AT.1, line_of(1000));
        }
        outbox.push(AT.0, AT.1, VmEventKind::Removed);
        let mut seen = (0, 0);
        loop {
            outbox.pump().await;
            match taken.recv().await.unwrap().kind {
                VmEventKind::Console { lines, dropped } => {
                    assert!(lines.len() <= CONSOLE_LINES_PER_EVENT_MAX);
                    seen = (seen.0 + lines.len(), seen.1 + dropped);
                }
                kind => {
                    assert_eq!(kind, VmEventKind::Removed);
                    break;
                }
            }
        }
        assert_eq!(seen, (fit, 0));
        // Room again: the next line says how many are missing before it.
        outbox.push_line(AT.0, AT.1, line_of(1));
        outbox.pump().await;
        let kind = taken.recv().await.unwrap().kind;
        assert_eq!(kind, VmEventKind::Console { lines: vec![line_of(1)], dropped: 5 });
    }

    #[tokio::test]
    async fn without_a_consumer_nothing_is_kept() {
        let (events, taken) = mpsc::channel(1);
        drop(taken);
        let mut outbox = Outbox::new(VmId(1), events);
        outbox.push_line(AT.0, AT.1, line_of(10));
        outbox.pump().await;
        assert!(outbox.is_empty());
        assert_eq!(outbox.console_bytes, 0);
    }
}
