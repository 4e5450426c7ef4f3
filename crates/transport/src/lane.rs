//! Outgoing queues: one lane per stream. Pushing never waits; the lanes of one channel share one budget.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::hash64;
use base::limits::{PEER_BULK_QUEUE_BYTES_MAX, PEER_BULK_STREAMS, PEER_CONTROL_QUEUE_BYTES_MAX, PEER_QUEUE_MAX};
use tokio::sync::Notify;
use wire::{Channel, PeerMessage};

/// Messages are merged into one frame until they take this many bytes.
const FRAME_BYTES_AIM: usize = 1 << 20;
/// ... or are this many.
const FRAME_MESSAGES_MAX: usize = 1_024;
/// What waited longer than this while there was no connection is not worth sending any more.
const STALE: Duration = Duration::from_secs(1);

/// What one channel of one peer may hold.
#[derive(Debug)]
struct Budget {
    bytes: AtomicUsize,
    messages: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        if !take(&self.messages, 1, PEER_QUEUE_MAX) {
            return false;
        }
        let fits = take(&self.bytes, bytes, self.bytes_max);
        if !fits {
            self.messages.fetch_sub(1, Ordering::Relaxed);
        }
        fits
    }

    fn give_back(&self, messages: usize, bytes: usize) {
        self.messages.fetch_sub(messages, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn take(counter: &AtomicUsize, n: usize, max: usize) -> bool {
    let add = |now: usize| now.checked_add(n).filter(|sum| *sum <= max);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

/// The queues of one channel of one peer.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Arc<Lane>>,
    budget: Arc<Budget>,
}

/// The queue of one stream.
#[derive(Debug)]
pub struct Lane {
    queue: Mutex<VecDeque<Queued>>,
    ready: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Queued {
    message: PeerMessage,
    bytes: usize,
    at: Instant,
}

impl Lanes {
    /// Empty queues for `channel`.
    pub fn new(channel: Channel) -> Lanes {
        let (count, bytes_max) = match channel {
            Channel::Control => (1, PEER_CONTROL_QUEUE_BYTES_MAX),
            Channel::Bulk => (PEER_BULK_STREAMS, PEER_BULK_QUEUE_BYTES_MAX),
        };
        let budget = Arc::new(Budget { bytes: AtomicUsize::new(0), messages: AtomicUsize::new(0), bytes_max });
        let lane = || Lane { queue: Mutex::default(), ready: Notify::new(), budget: budget.clone() };
        Lanes { lanes: (0..count).map(|_| Arc::new(lane())).collect(), budget }
    }

    /// The lanes, each for one writer.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// Queues what fits and returns how many messages did not. After the first one of a lane that does not fit, no
    /// later one of this call enters that lane: what arrives is always a prefix.
    pub fn push(&self, messages: Vec<PeerMessage>) -> usize {
        let now = Instant::now();
        let mut full = vec![false; self.lanes.len()];
        let mut touched = full.clone();
        let mut dropped = 0;
        for message in messages {
            let at = self.lane_of(&message);
            if full[at] || !self.lanes[at].push(message, now) {
                full[at] = true;
                dropped += 1;
            } else {
                touched[at] = true;
            }
        }
        self.lanes.iter().zip(touched).filter(|(_, touched)| *touched).for_each(|(lane, _)| lane.ready.notify_one());
        dropped
    }

    /// One group always takes the same lane, so that its messages stay in order.
    fn lane_of(&self, message: &PeerMessage) -> usize {
        let key = match message {
            PeerMessage::Raft { group, .. } => group.0,
            PeerMessage::CheckpointPull(pull) => pull.group.0,
            PeerMessage::CheckpointChunk(chunk) => chunk.group.0,
            PeerMessage::Forward(forward) => forward.id,
            PeerMessage::ForwardReply(reply) => reply.id,
            _ => 0,
        };
        let lanes = self.lanes.len() as u64;
        usize::try_from(hash64(&[key]) % lanes).expect("below the number of lanes")
    }

    /// Throws away what waited too long for a connection; returns how many messages.
    pub fn drop_stale(&self) -> usize {
        let now = Instant::now();
        self.lanes.iter().map(|lane| lane.retain(|queued| now.duration_since(queued.at) < STALE)).sum()
    }

    /// Throws away everything; returns how many messages.
    pub fn clear(&self) -> usize {
        self.lanes.iter().map(|lane| lane.retain(|_| false)).sum()
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        self.budget.bytes.load(Ordering::Relaxed)
    }
}

impl Lane {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: PeerMessage, at: Instant) -> bool {
        let bytes = approximate_bytes(&message);
        let fits = self.budget.take(bytes);
        if fits {
            self.queue().push_back(Queued { message, bytes, at });
        }
        fits
    }

    /// The messages of the next frame, once there are any. For one caller at a time; safe to cancel.
    pub async fn next(&self) -> Vec<PeerMessage> {
        loop {
            let messages = self.take_frame();
            if !messages.is_empty() {
                return messages;
            }
            self.ready.notified().await;
        }
    }

    fn take_frame(&self) -> Vec<PeerMessage> {
        let mut queue = self.queue();
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while bytes < FRAME_BYTES_AIM && messages.len() < FRAME_MESSAGES_MAX {
            match queue.front() {
                // A large message that would take the frame far beyond the aim goes alone.
                Some(next) if messages.is_empty() || bytes + next.bytes <= 2 * FRAME_BYTES_AIM => {}
                _ => break,
            }
            let Some(queued) = queue.pop_front() else { break };
            bytes += queued.bytes;
            messages.push(queued.message);
        }
        self.budget.give_back(messages.len(), bytes);
        messages
    }

    fn retain(&self, keep: impl Fn(&Queued) -> bool) -> usize {
        let mut queue = self.queue();
        let (mut messages, mut bytes) = (0, 0);
        queue.retain(|queued| {
            let keep = keep(queued);
            if !keep {
                messages += 1;
                bytes += queued.bytes;
            }
            keep
        });
        self.budget.give_back(messages, bytes);
        messages
    }
}

/// What a message takes in memory and on the wire, to within a few dozen bytes per entry.
pub fn approximate_bytes(message: &PeerMessage) -> usize {
    const BASE: usize = 96;
    BASE + match message {
        PeerMessage::Raft { message, .. } => {
            let entries: usize = message.entries.iter().map(|entry| 32 + entry.data.len()).sum();
            let members = message.snapshot.as_ref().map_or(0, |snapshot| {
                let membership = &snapshot.membership;
                membership.voters.len() + membership.learners.len() + membership.voters_outgoing.len()
            });
            entries + message.context.len() + members * 16
        }
        PeerMessage::Gossip(gossip) => gossip.leaders.len() * 32,
        PeerMessage::Forward(forward) => forward.body.len(),
        PeerMessage::ForwardReply(reply) => reply.body.len(),
        PeerMessage::CheckpointPull(_) => 0,
        PeerMessage::CheckpointChunk(chunk) => chunk.data.len(),
        PeerMessage::Members(news) => {
            let bytes = |member: &wire::Member| {
                let address = &member.address;
                let direct: usize = address.direct.iter().map(String::len).sum();
                let labels: usize = member.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
                256 + member.name.len() + address.kafka.len() + address.api.len() + direct + labels
            };
            news.members.iter().map(bytes).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use base::GroupId;
    use bytes::Bytes;
    use wire::{CheckpointChunk, ForwardReply};

    use super::*;

    fn reply(id: u64, size: usize) -> PeerMessage {
        PeerMessage::ForwardReply(ForwardReply { id, body: Bytes::from(vec![0; size]) })
    }

    fn chunk(group: u64, offset: u64) -> PeerMessage {
        let data = Bytes::from_static(b"x");
        PeerMessage::CheckpointChunk(CheckpointChunk {
            group: GroupId(group),
            index: 1,
            offset,
            total: 9,
            crc: 0,
            data,
        })
    }

    #[test]
    fn the_number_of_messages_is_bounded_and_room_comes_back() {
        let lanes = Lanes::new(Channel::Control);
        assert_eq!(lanes.push((0..PEER_QUEUE_MAX as u64 + 5).map(|id| reply(id, 1)).collect()), 5);
        let first = lanes.lanes()[0].take_frame();
        assert_eq!(first.len(), FRAME_MESSAGES_MAX);
        assert_eq!(lanes.push((0..2_000).map(|id| reply(id, 1)).collect()), 2_000 - FRAME_MESSAGES_MAX);
        assert_eq!(lanes.clear(), PEER_QUEUE_MAX);
        assert_eq!(lanes.bytes(), 0);
    }

    #[test]
    fn the_bytes_are_bounded_over_all_lanes_of_a_channel() {
        let lanes = Lanes::new(Channel::Bulk);
        let dropped = lanes.push((0..100).map(|id| reply(id, 1 << 20)).collect());
        assert_eq!(dropped, 37, "63 messages of 1 MiB and a little fit into 64 MiB");
        assert!(lanes.bytes() <= PEER_BULK_QUEUE_BYTES_MAX);
    }

    #[test]
    fn one_group_keeps_its_order_and_its_lane() {
        let lanes = Lanes::new(Channel::Bulk);
        lanes.push((0..1_000).map(|n| chunk(n % 7, n)).collect());
        let mut seen = std::collections::BTreeMap::new();
        for (at, lane) in lanes.lanes().iter().enumerate() {
            for message in lane.take_frame() {
                let PeerMessage::CheckpointChunk(chunk) = message else { panic!("{message:?}") };
                let (last_lane, last) = seen.insert(chunk.group, (at, chunk.offset)).unwrap_or((at, 0));
                assert!(last_lane == at && last <= chunk.offset, "group {} moved or was reordered", chunk.group);
            }
        }
        assert_eq!(seen.len(), 7);
        assert!(seen.values().map(|(lane, _)| lane).collect::<std::collections::BTreeSet<_>>().len() > 1);
    }

    #[test]
    fn frames_are_merged_up_to_their_aim_and_a_giant_goes_alone() {
        let lanes = Lanes::new(Channel::Control);
        lanes.push(vec![reply(1, 1_000), reply(2, 5 << 20), reply(3, 600 << 10), reply(4, 600 << 10), reply(5, 1)]);
        let sizes = std::iter::from_fn(|| {
            let frame = lanes.lanes()[0].take_frame();
            (!frame.is_empty()).then_some(frame.len())
        });
        let sizes: Vec<usize> = sizes.collect();
        assert_eq!(sizes, [1, 1, 2, 1]);
    }
}
