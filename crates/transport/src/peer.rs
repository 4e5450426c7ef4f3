//! What is kept of one other member: its queues, its connections, how it fares.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::{EndpointId, Incarnation, NodeId, Wall};
use iroh::endpoint::Connection;
use tokio::sync::Notify;
use wire::{Channel, NodeAddress, PeerMessage, Refusal};

use crate::close;
use crate::lane::Lanes;
use crate::metrics::PeerMetrics;
use crate::twins::{Known, Process};
use runtime::{Clock, Registry};

/// Without a connection for this long, messages are dropped at once instead of queued.
const QUEUE_WITHOUT_CONNECTION: Duration = Duration::from_secs(1);

/// The peer's own call is not sacrificed more often than this.
const HANG_UP_INTERVAL: Duration = Duration::from_secs(10);

/// How one other member fares, as seen from here.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The member.
    pub node: NodeId,
    /// Its key.
    pub endpoint: EndpointId,
    /// Where it is looked for.
    pub addresses: Vec<String>,
    /// Since when messages reach it; None while they do not.
    pub connected_since: Option<Wall>,
    /// Its process, as it last said; None before the first connection.
    pub incarnation: Option<Incarnation>,
    /// Round trip of the connection, smoothed; None without one.
    pub rtt: Option<Duration>,
    /// Connections made to it so far.
    pub connects: u64,
    /// Messages that were not sent to it, over both channels.
    pub dropped: u64,
    /// Bytes waiting to be sent to it, over both channels.
    pub queued_bytes: usize,
    /// Why it cannot be reached, or why it last could not.
    pub last_error: Option<String>,
}

/// One other member.
#[derive(Debug)]
pub struct Peer {
    pub node: NodeId,
    pub endpoint: EndpointId,
    control: Lanes,
    bulk: Lanes,
    pub metrics: PeerMetrics,
    /// Told when dialling again at once may help: a new address, or a call from the peer.
    pub wake: Notify,
    link: Mutex<Link>,
}

#[derive(Debug)]
struct Link {
    address: NodeAddress,
    /// The connection that this node dialled and sends on.
    outgoing: Option<Connection>,
    /// The connection that the peer dialled and sends on, and who dialled it.
    incoming: Option<(Connection, Process)>,
    connected_since: Option<Wall>,
    /// When the last connection was lost; at first when the peer was made.
    lost_at: Instant,
    /// The process that answered last when the peer was called.
    process: Option<Process>,
    /// Which processes may speak for the peer.
    known: Known,
    last_error: Option<String>,
    last_hang_up: Option<Instant>,
}

impl Link {
    /// The processes of the peer whose connections are there.
    fn present(&self) -> [Option<Process>; 2] {
        let calling = self.incoming.as_ref().filter(|(conn, _)| conn.close_reason().is_none());
        let called = self.outgoing.as_ref().filter(|conn| conn.close_reason().is_none());
        [calling.map(|(_, caller)| *caller), called.and(self.process)]
    }

    fn forget_who_is_gone(&mut self) {
        if self.present() == [None; 2] {
            self.known.gone();
        }
    }
}

impl Peer {
    pub fn new(node: NodeId, endpoint: EndpointId, address: NodeAddress, registry: &Registry) -> Self {
        let link = Link {
            address,
            outgoing: None,
            incoming: None,
            connected_since: None,
            lost_at: Instant::now(),
            process: None,
            known: Known::default(),
            last_error: None,
            last_hang_up: None,
        };
        Peer {
            node,
            endpoint,
            control: Lanes::new(Channel::Control),
            bulk: Lanes::new(Channel::Bulk),
            metrics: PeerMetrics::new(registry, node),
            wake: Notify::new(),
            link: Mutex::new(link),
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lanes(&self, channel: Channel) -> &Lanes {
        match channel {
            Channel::Control => &self.control,
            Channel::Bulk => &self.bulk,
        }
    }

    /// Queues what fits; counts the rest.
    pub fn send(&self, channel: Channel, messages: Vec<PeerMessage>) {
        let hopeless = {
            let link = self.link();
            link.outgoing.is_none() && link.lost_at.elapsed() > QUEUE_WITHOUT_CONNECTION
        };
        let count = messages.len();
        let dropped = if hopeless { count } else { self.lanes(channel).push(messages) };
        self.metrics.channel(channel).dropped.add(dropped as u64);
    }

    pub fn address(&self) -> NodeAddress {
        self.link().address.clone()
    }

    /// Takes a new address and dials again if it differs.
    pub fn set_address(&self, address: &NodeAddress) {
        let mut link = self.link();
        let moved = link.address.direct != address.direct || link.address.relay_url != address.relay_url;
        link.address = address.clone();
        drop(link);
        if moved {
            self.wake.notify_one();
        }
    }

    /// The peer welcomed `conn`: what is queued and not stale can go.
    pub fn connected(&self, conn: &Connection, process: Process) {
        self.drop_stale();
        let mut link = self.link();
        link.outgoing = Some(conn.clone());
        link.connected_since = Some(Clock.now().wall);
        link.process = Some(process);
        self.metrics.connects.inc();
        self.metrics.connected.set(1.0);
    }

    /// The connection is gone.
    pub fn disconnected(&self, reason: &str) {
        let mut link = self.link();
        link.outgoing = None;
        link.connected_since = None;
        link.lost_at = Instant::now();
        link.forget_who_is_gone();
        link.last_error = Some(reason.to_owned());
        self.metrics.connected.set(0.0);
    }

    /// An attempt to connect failed. What waits for a connection in vain must not wait for ever.
    pub fn unreachable(&self, reason: &str) {
        self.link().last_error = Some(reason.to_owned());
        self.drop_stale();
    }

    fn drop_stale(&self) {
        for channel in [Channel::Control, Channel::Bulk] {
            let dropped = self.lanes(channel).drop_stale();
            self.metrics.channel(channel).dropped.add(dropped as u64);
        }
    }

    /// The peer called. Its older connection, if any, has had its day. If another process called than the one that this
    /// node sends to, that one is dead: no need to wait until the connection to it times out.
    ///
    /// # Errors
    /// If that process must not speak for the peer; nothing was changed.
    pub fn called(&self, conn: &Connection, caller: Process) -> Result<(), Refusal> {
        let mut link = self.link();
        let present = link.present();
        link.known.admit(caller, present)?;
        if let Some((old, _)) = link.incoming.replace((conn.clone(), caller)) {
            close::close(&old, close::SUPERSEDED, "a newer connection took its place");
        }
        if link.process.map(|process| process.incarnation) != Some(caller.incarnation)
            && let Some(stale) = &link.outgoing
        {
            close::close(stale, close::SUPERSEDED, "the peer was restarted");
        }
        drop(link);
        self.wake.notify_one();
        Ok(())
    }

    /// A process answered when the peer was called.
    ///
    /// # Errors
    /// If it must not speak for the peer.
    pub fn answered(&self, process: Process) -> Result<(), Refusal> {
        let mut link = self.link();
        let present = link.present();
        link.known.admit(process, present)
    }

    /// The cluster has heard of a process of the peer: those before it are hung up on.
    pub fn heard_of(&self, incarnation: Incarnation) {
        let mut link = self.link();
        link.known.heard_of(incarnation);
        let (known, reason) = (link.known, "a later process of this node was heard of");
        if let Some((old, _)) = link.incoming.take_if(|(_, caller)| known.is_past(caller.incarnation)) {
            close::close(&old, close::SUPERSEDED, reason);
        }
        if link.process.is_some_and(|process| known.is_past(process.incarnation))
            && let Some(stale) = &link.outgoing
        {
            close::close(stale, close::SUPERSEDED, reason);
        }
    }

    /// The connection that the peer dialled ended.
    pub fn call_ended(&self, conn: &Connection) {
        let mut link = self.link();
        if link.incoming.as_ref().is_some_and(|(own, _)| own.stable_id() == conn.stable_id()) {
            link.incoming = None;
            link.forget_who_is_gone();
        }
    }

    /// Hangs up on the peer's own call, if there is one; it calls again at once.
    ///
    /// iroh keeps one path per remote endpoint as long as any connection to it is open, and sends first packets of new
    /// connections nowhere else. If a peer comes back at another address while a connection to the old one has not
    /// timed out yet, that path is the dead one, and stays so (iroh issue 3602; 1.4 forgets it with the last
    /// connection). So when nothing answers although the peer calls, everything is hung up on, and both start afresh.
    pub fn hang_up_on_caller(&self) {
        let mut link = self.link();
        if link.last_hang_up.is_some_and(|at| at.elapsed() < HANG_UP_INTERVAL) {
            return;
        }
        if let Some((conn, _)) = link.incoming.take() {
            link.last_hang_up = Some(Instant::now());
            close::close(&conn, close::GOODBYE, "this node cannot reach you in return; call again");
        }
    }

    /// The connection timed out, so the one from the peer is as dead, and must not outlive it (see
    /// [`hang_up_on_caller`](Self::hang_up_on_caller)).
    pub fn forget_caller(&self) {
        if let Some((conn, _)) = self.link().incoming.take() {
            close::close(&conn, close::GOODBYE, "this node lost its connection to you; call again");
        }
    }

    /// The peer is no member any more: closes what there is and forgets what waits.
    pub fn remove(&self, reason: &str) {
        let (outgoing, incoming) = {
            let mut link = self.link();
            (link.outgoing.take(), link.incoming.take().map(|(conn, _)| conn))
        };
        for conn in [outgoing, incoming].iter().flatten() {
            close::close(conn, close::GOODBYE, reason);
        }
        self.control.clear();
        self.bulk.clear();
    }

    /// Says in the registry how much waits.
    pub fn count_waiting(&self) {
        for channel in [Channel::Control, Channel::Bulk] {
            self.metrics.channel(channel).queued.set(self.lanes(channel).messages() as f64);
        }
    }

    pub fn status(&self) -> PeerStatus {
        let link = self.link();
        PeerStatus {
            node: self.node,
            endpoint: self.endpoint,
            addresses: link.address.direct.clone(),
            connected_since: link.connected_since,
            incarnation: link.process.map(|process| process.incarnation),
            rtt: link.outgoing.as_ref().and_then(rtt),
            connects: self.metrics.connects.get(),
            dropped: self.metrics.channel(Channel::Control).dropped.get()
                + self.metrics.channel(Channel::Bulk).dropped.get(),
            queued_bytes: self.control.bytes() + self.bulk.bytes(),
            last_error: link.last_error.clone(),
        }
    }
}

/// Round trip over the path in use.
pub fn rtt(conn: &Connection) -> Option<Duration> {
    conn.paths().iter().find(|path| path.is_selected()).map(|path| path.rtt())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use runtime::Exposition;
    use wire::{ForwardReply, Gossip};

    use super::*;

    #[test]
    fn what_waits_for_a_peer_that_is_away_is_counted_by_channel_until_it_is_thrown_away() {
        let registry = Registry::new();
        let peer = Peer::new(NodeId(2), EndpointId([2; 32]), NodeAddress::default(), &registry);
        let answer = |id| PeerMessage::ForwardReply(ForwardReply { id, body: Bytes::new() });
        let urgent = PeerMessage::Gossip(Gossip::default());
        peer.send(Channel::Control, vec![urgent, answer(1), answer(2)]);
        peer.send(Channel::Bulk, vec![answer(3)]);
        let check = |control: usize, bulk: usize| {
            peer.count_waiting();
            let mut out = Exposition::new();
            registry.render_into(&mut out);
            let text = out.finish();
            for (channel, waiting) in [("control", control), ("bulk", bulk)] {
                let line = format!("muster_peer_messages_queued{{peer=\"2\",channel=\"{channel}\"}} {waiting}\n");
                assert!(text.contains(&line), "no {line} in {text}");
            }
        };
        check(3, 1);
        peer.remove("it is no member any more");
        check(0, 0);
    }
}
