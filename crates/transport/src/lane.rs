//! Outgoing queues: one lane per stream. Pushing never waits; the lanes of one channel share one budget.
//!
//! On the control channel, what keeps leadership alive (Raft's heartbeats and votes, gossip) overtakes the small requests
//! beside it, in frames of its own and with a budget of its own: clients who forward much must neither delay nor drop a
//! heartbeat.

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
/// The same on the control channel, where a heartbeat may come to wait for a frame that is being written.
const CONTROL_FRAME_BYTES_AIM: usize = 128 << 10;
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
    urgent_budget: Arc<Budget>,
}

/// The queue of one stream.
#[derive(Debug)]
pub struct Lane {
    queues: Mutex<Queues>,
    ready: Notify,
    frame_bytes_aim: usize,
    budget: Arc<Budget>,
    urgent_budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Queues {
    /// Goes first.
    urgent: VecDeque<Queued>,
    rest: VecDeque<Queued>,
}

/// What one frame carries.
#[derive(Debug)]
pub struct Frame {
    /// In order, never empty.
    pub messages: Vec<PeerMessage>,
    /// When the first of them was queued.
    pub oldest: Instant,
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
        let (count, bytes_max, frame_bytes_aim) = match channel {
            Channel::Control => (1, PEER_CONTROL_QUEUE_BYTES_MAX, CONTROL_FRAME_BYTES_AIM),
            Channel::Bulk => (PEER_BULK_STREAMS, PEER_BULK_QUEUE_BYTES_MAX, FRAME_BYTES_AIM),
        };
        let budget = || Arc::new(Budget { bytes: AtomicUsize::new(0), messages: AtomicUsize::new(0), bytes_max });
        let (budget, urgent_budget) = (budget(), budget());
        let lane = || Lane {
            queues: Mutex::default(),
            ready: Notify::new(),
            frame_bytes_aim,
            budget: budget.clone(),
            urgent_budget: urgent_budget.clone(),
        };
        Lanes { lanes: (0..count).map(|_| Arc::new(lane())).collect(), budget, urgent_budget }
    }

    /// The lanes, each for one writer.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// Queues what fits and returns how many messages did not. After the first one of a lane that does not fit, no
    /// later one of this call enters that lane (urgent ones and the rest apart): what arrives is always a prefix.
    pub fn push(&self, messages: Vec<PeerMessage>) -> usize {
        let now = Instant::now();
        let mut full = vec![[false; 2]; self.lanes.len()];
        let mut touched = vec![false; self.lanes.len()];
        let mut dropped = 0;
        for message in messages {
            let (at, urgent) = (self.lane_of(&message), message.is_urgent());
            let full = &mut full[at][usize::from(urgent)];
            if *full || !self.lanes[at].push(message, urgent, now) {
                *full = true;
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

    /// Messages waiting.
    pub fn messages(&self) -> usize {
        [&self.budget, &self.urgent_budget].map(|budget| budget.messages.load(Ordering::Relaxed)).iter().sum()
    }

    /// Bytes waiting.
    pub fn bytes(&self) -> usize {
        [&self.budget, &self.urgent_budget].map(|budget| budget.bytes.load(Ordering::Relaxed)).iter().sum()
    }
}

impl Lane {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, message: PeerMessage, urgent: bool, at: Instant) -> bool {
        let bytes = approximate_bytes(&message);
        let budget = if urgent { &self.urgent_budget } else { &self.budget };
        let fits = budget.take(bytes);
        if fits {
            let mut queues = self.queues();
            let queue = if urgent { &mut queues.urgent } else { &mut queues.rest };
            queue.push_back(Queued { message, bytes, at });
        }
        fits
    }

    /// The messages of the next frame, once there are any. For one caller at a time; safe to cancel.
    pub async fn next(&self) -> Frame {
        loop {
            if let Some(frame) = self.take_frame() {
                return frame;
            }
            self.ready.notified().await;
        }
    }

    fn take_frame(&self) -> Option<Frame> {
        let mut queues = self.queues();
        let (queue, budget) = match queues.urgent.is_empty() {
            false => (&mut queues.urgent, &self.urgent_budget),
            true => (&mut queues.rest, &self.budget),
        };
        let oldest = queue.front()?.at;
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while bytes < self.frame_bytes_aim && messages.len() < FRAME_MESSAGES_MAX {
            match queue.front() {
                // A large message that would take the frame far beyond the aim goes alone.
                Some(next) if messages.is_empty() || bytes + next.bytes <= 2 * self.frame_bytes_aim => {}
                _ => break,
            }
            let Some(queued) = queue.pop_front() else { break };
            bytes += queued.bytes;
            messages.push(queued.message);
        }
        budget.give_back(messages.len(), bytes);
        Some(Frame { messages, oldest })
    }

    fn retain(&self, keep: impl Fn(&Queued) -> bool) -> usize {
        let mut queues = self.queues();
        let Queues { urgent, rest } = &mut *queues;
        retain(urgent, &self.urgent_budget, &keep) + retain(rest, &self.budget, &keep)
    }
}

/// Keeps some; returns how many went.
fn retain(queue: &mut VecDeque<Queued>, budget: &Budget, keep: impl Fn(&Queued) -> bool) -> usize {
    let (mut messages, mut bytes) = (0, 0);
    queue.retain(|queued| {
        let keep = keep(queued);
        if !keep {
            messages += 1;
            bytes += queued.bytes;
        }
        keep
    });
    budget.give_back(messages, bytes);
    messages
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
        let first = lanes.lanes()[0].take_frame().unwrap();
        assert_eq!(first.messages.len(), FRAME_MESSAGES_MAX);
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
            for message in lane.take_frame().into_iter().flat_map(|frame| frame.messages) {
                let PeerMessage::CheckpointChunk(chunk) = message else { panic!("{message:?}") };
                let (last_lane, last) = seen.insert(chunk.group, (at, chunk.offset)).unwrap_or((at, 0));
                assert!(last_lane == at && last <= chunk.offset, "group {} moved or was reordered", chunk.group);
            }
        }
        assert_eq!(seen.len(), 7);
        assert!(seen.values().map(|(lane, _)| lane).collect::<std::collections::BTreeSet<_>>().len() > 1);
    }

    #[test]
    fn a_heartbeat_overtakes_requests_and_finds_room_where_they_have_none() {
        let lanes = Lanes::new(Channel::Control);
        let heartbeat = || PeerMessage::Gossip(wire::Gossip::default());
        assert_eq!(lanes.push((0..5_000).map(|id| reply(id, 10_000)).chain([heartbeat()]).collect()), 3_339);
        let first = lanes.lanes()[0].take_frame().unwrap();
        assert_eq!(first.messages, [heartbeat()]);
        let second = lanes.lanes()[0].take_frame().unwrap();
        assert_eq!(second.messages.len(), 13, "a frame that the next heartbeat waits for is small");
        assert!(second.oldest <= first.oldest);
        lanes.clear();
        assert_eq!(lanes.bytes(), 0);
    }

    #[test]
    fn frames_are_merged_up_to_their_aim_and_a_giant_goes_alone() {
        let lanes = Lanes::new(Channel::Control);
        lanes.push(vec![reply(1, 1_000), reply(2, 5 << 20), reply(3, 75 << 10), reply(4, 75 << 10), reply(5, 1)]);
        let sizes = std::iter::from_fn(|| Some(lanes.lanes()[0].take_frame()?.messages.len()));
        let sizes: Vec<usize> = sizes.collect();
        assert_eq!(sizes, [1, 1, 2, 1]);
    }
}
