//! What will happen, and when: the event queue of a world, ordered by (virtual time, sequence of scheduling).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use compute::VmReport;
use engine::Worked;
use journal::OpId;
use wire::Channel;

use crate::disk::Bit;
use crate::schedule::End;
use crate::time::Nanos;

/// A node by its place in the world (0 is the one that forms the cluster), never by its id in the cluster.
pub type NodeIx = usize;

/// One thing that happens to the world. Events of a node carry the boot they belong to; those of an earlier one are
/// forgotten.
#[derive(Debug)]
pub enum Ev {
    /// The node's process looks at its inbox.
    Wake { node: NodeIx, boot: u64 },
    /// The node's timer.
    Tick { node: NodeIx, boot: u64 },
    /// A disk operation ends.
    Disk { node: NodeIx, boot: u64, op: OpId },
    /// A frame arrives.
    Deliver { from: NodeIx, to: NodeIx, channel: Channel, session: u64, frame: Bytes },
    /// Two nodes try to connect.
    Dial { low: NodeIx, high: NodeIx },
    /// A node notices that a connection is dead.
    Notice { node: NodeIx, peer: NodeIx, session: u64 },
    /// The transport's idle timeout of a connection that a fault hit has passed.
    Idle { low: NodeIx, high: NodeIx, session: u64 },
    /// The hypervisor side of a node has something to say.
    Vm { node: NodeIx, boot: u64, report: VmReport },
    /// Something that a node's core had done beside it is done.
    Worked { node: NodeIx, boot: u64, worked: Box<Worked> },
    /// The file that says "formed" is durable.
    FormedDurable { node: NodeIx, boot: u64 },
    /// A process ends.
    Crash { node: NodeIx, boot: u64, end: End },
    /// A crashed node starts again.
    Restart { node: NodeIx },
    /// A paused node goes on.
    Resume { node: NodeIx },
    /// A partition, a slow disk and the like end.
    Mend(Mend),
    /// The fault at this place of the schedule.
    Inject { place: usize },
    /// A flapping link goes down.
    Flap { one: NodeIx, other: NodeIx, period: Nanos, until: Nanos },
    /// A bit that was chosen some time ago flips, if it was at rest since; `all`: at that moment all nodes lose power.
    Rot { node: NodeIx, boot: u64, bit: Box<Bit>, all: bool },
    /// A stranger asks to become a member.
    Join { node: NodeIx },
    /// A machine that was lost asks for it, with its old key and without its data.
    Intrude { node: NodeIx },
    /// An operator looks whether an order is carried out.
    Operate { node: NodeIx },
    /// A machine that is no member any more joins as another node.
    Renew { node: NodeIx },
    /// Looks whether the cluster has formed.
    Watch,
    /// A client's next step.
    Client { client: usize },
    /// A consumer's next step.
    Consumer { consumer: usize },
    /// The next steps of all clients that contend for locks, and of their calls.
    Locks,
    /// By now the request must have been answered.
    Overdue { request: u64 },
    /// Faults stop and everything is repaired.
    Heal,
    /// Looks whether the finale may go on, and probes.
    Finale,
}

/// A fault that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    /// A drained node works again.
    Drain { node: NodeIx },
    /// Links around a node, or one direction of one link.
    Partition { id: u64 },
    /// Loss and delay spikes.
    Weather { id: u64 },
    /// Slow or full disk.
    Disk { node: NodeIx, id: u64 },
    /// Busy machine.
    Busy { node: NodeIx, id: u64 },
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    /// When, in which order, and where in `events`.
    order: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    events: Vec<Option<Ev>>,
    free: Vec<usize>,
    sequence: u64,
    /// Virtual time of the event that is being handled.
    pub now: Nanos,
}

impl Queue {
    /// Schedules `event` in `delay` from now; among events of one moment the first scheduled comes first.
    pub fn after(&mut self, delay: Nanos, event: Ev) {
        self.at(self.now + delay, event);
    }

    /// Schedules `event` at a moment, not before now.
    pub fn at(&mut self, at: Nanos, event: Ev) {
        self.sequence += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.order.push(Reverse((at.max(self.now), self.sequence, place)));
    }

    /// Takes the next event and moves time to it.
    pub fn pop(&mut self) -> Option<Ev> {
        let Reverse((at, _, place)) = self.order.pop()?;
        self.now = at;
        self.free.push(place);
        self.events[place].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_moments_then_of_their_scheduling() {
        let mut queue = Queue::default();
        queue.after(5, Ev::Client { client: 5 });
        queue.after(1, Ev::Client { client: 1 });
        queue.after(5, Ev::Client { client: 6 });
        let mut next = || match queue.pop() {
            Some(Ev::Client { client }) => {
                if client == 1 {
                    queue.at(0, Ev::Client { client: 2 });
                }
                Some((queue.now, client))
            }
            _ => None,
        };
        let all = std::array::from_fn(|_| next());
        assert_eq!(all, [Some((1, 1)), Some((1, 2)), Some((5, 5)), Some((5, 6)), None]);
    }
}
