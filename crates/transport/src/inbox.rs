//! What arrives, on its way to the engine. One inbox per channel, so that bulk that waits never holds up control.

use std::sync::Arc;

use base::limits::{INBOX_BYTES_MAX, INBOX_FRAMES_MAX};
use base::{EndpointId, Incarnation, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wire::{Channel, HelloAck, JoinRequest, PeerMessage};

/// Bytes that one unit of the inbox's budget stands for.
const UNIT_BYTES: usize = 1 << 10;

/// One thing that arrived. All but bulk messages come by the control inbox.
#[derive(Debug)]
pub enum Incoming {
    /// Messages of a member, in its order.
    Peer {
        /// The member.
        from: NodeId,
        /// The channel they came by.
        channel: Channel,
        /// The messages of one frame.
        messages: Vec<PeerMessage>,
    },
    /// Messages to this member now reach it. A new incarnation is a restarted process.
    Up {
        /// The member.
        node: NodeId,
        /// Its process.
        incarnation: Incarnation,
    },
    /// They no longer do.
    Down {
        /// The member.
        node: NodeId,
    },
    /// A member refused this node, because it cannot work at the active cluster version.
    Outdated {
        /// The member.
        by: NodeId,
        /// The version that is active there.
        active: base::ClusterVersion,
    },
    /// A member refused this node, as one that is no member any more.
    Expelled {
        /// The member.
        by: NodeId,
    },
    /// A member refused this node, because it follows an older incarnation of the cluster.
    Superseded {
        /// The member.
        by: NodeId,
    },
    /// A member refused this node, because another process of it is there, or was there later.
    Twin {
        /// The member.
        by: NodeId,
        /// The other process.
        other: Incarnation,
    },
    /// A stranger with a token asks to become a member. Dropping `reply` refuses it as busy.
    Join {
        /// What it says.
        request: Box<JoinRequest>,
        /// Who it is, proven.
        endpoint: EndpointId,
        /// Where the decision goes: `Joined` or `Refused`.
        reply: oneshot::Sender<HelloAck>,
    },
}

/// The receiving end of one channel.
#[derive(Debug)]
pub struct Inbox {
    queue: mpsc::Receiver<Item>,
}

type Item = (Incoming, Option<OwnedSemaphorePermit>);

impl Inbox {
    /// The next thing; None once the transport is gone. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.queue.recv().await.map(|(incoming, _)| incoming)
    }

    /// The next thing if it is there already.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        runtime::take_ready(&mut self.queue).map(|(incoming, _)| incoming)
    }
}

#[allow(clippy::len_without_is_empty, reason = "a number for those who watch")]
impl Inbox {
    /// How much waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

/// The sending end, bounded in frames and in bytes.
#[derive(Clone, Debug)]
pub struct InboxSender {
    queue: mpsc::Sender<Item>,
    budget: Arc<Semaphore>,
}

/// The engine is gone.
#[derive(Debug)]
pub struct InboxGone;

/// A new inbox.
pub fn inbox() -> (InboxSender, Inbox) {
    let (sender, queue) = mpsc::channel(INBOX_FRAMES_MAX);
    (InboxSender { queue: sender, budget: Arc::new(Semaphore::new(INBOX_BYTES_MAX / UNIT_BYTES)) }, Inbox { queue })
}

impl InboxSender {
    /// Hands over what took `bytes` on the wire, once there is room.
    pub async fn send(&self, incoming: Incoming, bytes: usize) -> Result<(), InboxGone> {
        let units = bytes.div_ceil(UNIT_BYTES).min(INBOX_BYTES_MAX / UNIT_BYTES);
        let units = u32::try_from(units).expect("the whole budget is below 2^32 units");
        let permit = match units {
            0 => None,
            units => Some(self.budget.clone().acquire_many_owned(units).await.map_err(|_| InboxGone)?),
        };
        self.queue.send((incoming, permit)).await.map_err(|_| InboxGone)
    }

    /// Hands it over if there is room now; false if not.
    pub fn try_send(&self, incoming: Incoming) -> bool {
        self.queue.try_send((incoming, None)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_waiting_are_bounded() {
        let (sender, mut inbox) = inbox();
        let down = |node| Incoming::Down { node: NodeId(node) };
        sender.send(down(1), INBOX_BYTES_MAX / 2 + 1).await.expect("room");
        let second = sender.send(down(2), INBOX_BYTES_MAX / 2 + 1);
        tokio::pin!(second);
        tokio::select! { biased; _ = &mut second => panic!("there is no room"), () = async {} => {} }
        assert!(matches!(inbox.recv().await, Some(Incoming::Down { node: NodeId(1) })));
        second.await.expect("room again");
        // More than the whole budget passes alone instead of never.
        assert!(matches!(inbox.recv().await, Some(Incoming::Down { node: NodeId(2) })));
        sender.send(down(3), usize::MAX).await.expect("room");
        assert!(inbox.try_recv().is_some() && inbox.try_recv().is_none());
    }
}
