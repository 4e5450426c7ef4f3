//! How nodes go: an operator's orders to drain, to leave, to remove and to replace, asked of some member until they are
//! carried out; what becomes of the machines; and those that join anew, as other nodes.

use base::{EndpointId, GroupId, NodeId};
use engine::{Request, Target};
use metadata::{Command, Metadata, NodeLifecycle};
use wire::Member;

use crate::config::Fault;
use crate::node::{Order, SimNode, Stage};
use crate::queue::{Ev, NodeIx};
use crate::requests::{CommandKind, Owner, What};
use crate::schedule::Successor;
use crate::time::{Nanos, ms};
use crate::world::{World, place};

/// Between two looks of an operator.
const LOOK: Nanos = ms(300);
/// All have heard of a node for this long before a careful operator has it take another one's place.
const PROVEN: Nanos = ms(1_000);
/// At a look at a node that goes without a successor, an operator thinks of one in so many of a million cases.
const AFTERTHOUGHT: u64 = 100_000;

/// Whether nobody wants the node to go.
fn stays(it: &SimNode) -> bool {
    let goes = matches!(it.order, Some(Order::Leave { .. } | Order::Remove { .. }));
    !it.retired && !it.departed && !goes
}

impl World {
    /// Whether a node was a member and is none any more, by the last committed word.
    #[must_use]
    pub fn was_member(&self, node: NodeId) -> bool {
        self.checks.commands.last().is_some_and(|state| state.departed.contains_key(&node))
    }

    /// Members that are there and that nobody wants to go.
    fn settled_members(&self) -> usize {
        let stays = |it: &&SimNode| {
            !it.retired && !it.departed && it.stage == Stage::Formed && !matches!(it.order, Some(Order::Leave { .. }))
        };
        self.nodes.iter().filter(stays).count()
    }

    /// Whether a node can be given an order: it is a member, in a cluster that others stay in, and has none yet.
    fn takes_orders(&self, node: NodeIx, others: usize) -> bool {
        let it = &self.nodes[node];
        let member = it.stage == Stage::Formed && !it.retired && it.order.is_none();
        let known = self.checks.commands.last().is_some_and(|state| state.nodes.contains_key(&it.id()));
        member && known && self.forming.formed_at.is_some() && self.settled_members() > others
    }

    fn lost_lately(&self) -> bool {
        let lately = |it: &SimNode| it.retired && !it.departed && self.queue.now < it.lost_at + ms(1_000);
        self.nodes.iter().any(lately)
    }

    /// An operator orders something. Whether it was possible.
    pub fn order(&mut self, node: NodeIx, order: Order) -> bool {
        let possible = match order {
            // Nobody empties a node just when another one burns; soon after, it is known.
            Order::Leave { .. } => self.takes_orders(node, 1) && !self.lost_lately(),
            _ => self.takes_orders(node, 0),
        };
        if possible {
            self.nodes[node].order = Some(order);
            self.queue.after(0, Ev::Operate { node });
        }
        possible
    }

    /// A machine burns down. Only one that every group can spare; whoever goes already is not counted on.
    pub fn destroy(
        &mut self,
        node: NodeIx,
        noticed: Nanos,
        (back_in, with): (Option<Nanos>, Option<Successor>),
    ) -> bool {
        if !self.takes_orders(node, 2) || !self.may_lose(node) {
            return false;
        }
        self.retire(node, "its machine is lost");
        self.nodes[node].order = Some(Order::Remove { back_in, with });
        self.queue.after(noticed, Ev::Operate { node });
        true
    }

    /// A node is replaced, by one that asks to join now or has joined already. Whether that was possible.
    pub fn replace(&mut self, node: NodeIx, with: Successor, lost: Option<Nanos>, back_in: Option<Nanos>) -> bool {
        let begun = match lost {
            Some(noticed) => self.destroy(node, noticed, (back_in, Some(with))),
            None => self.order(node, Order::Leave { back_in, with: Some(with) }),
        };
        if begun {
            self.join_late(with.node);
        }
        begun
    }

    /// A node stopped for good by itself, and an operator of a cluster in which nodes go notices, sooner or later.
    pub fn give_up(&mut self, node: NodeIx) {
        let gone = [Fault::Leave, Fault::Destroy, Fault::Replace, Fault::Drain];
        if gone.into_iter().any(|fault| self.nemesis.has(fault)) {
            let back_in = self.random.chance(500_000).then(|| ms(self.random.between(10, 2_000)));
            self.nodes[node].order = Some(Order::Remove { back_in, with: None });
            let noticed = ms(self.random.between(100, 12_000));
            self.queue.after(noticed, Ev::Operate { node });
        }
    }

    /// A drained node is to work again.
    pub fn end_drain(&mut self, node: NodeIx) {
        if self.nodes[node].order == Some(Order::Drain) {
            self.nodes[node].order = Some(Order::Resume);
            self.queue.after(0, Ev::Operate { node });
        }
    }

    /// Looks how far an order is, and gives it (again).
    pub fn operate(&mut self, node: NodeIx) {
        if let (true, Some(Order::Leave { back_in, with })) = (self.nodes[node].retired, self.nodes[node].order) {
            // It cannot leave any more.
            self.nodes[node].order = Some(Order::Remove { back_in, with });
        }
        let Some(order) = self.nodes[node].order else { return };
        let id = self.nodes[node].id();
        let lifecycle =
            self.checks.commands.last().and_then(|state| state.nodes.get(&id)).map(|record| record.lifecycle);
        let command = match (order, lifecycle) {
            (Order::Leave { .. }, Some(NodeLifecycle::Leaving)) => self.another_successor(node, false),
            (Order::Remove { .. }, Some(NodeLifecycle::Removing)) => self.another_successor(node, true),
            (Order::Remove { .. }, None) => return self.is_forgotten(node),
            // It finds out by itself.
            (Order::Leave { .. }, None) => return,
            (Order::Drain, Some(NodeLifecycle::Draining)) => return,
            (Order::Resume, Some(NodeLifecycle::Active | NodeLifecycle::Lost))
            | (Order::Drain | Order::Resume, None) => {
                self.nodes[node].order = None;
                return;
            }
            (Order::Drain, Some(_)) => Some(Command::DrainNode { node: id, drain: true }),
            (Order::Resume, Some(_)) => Some(Command::DrainNode { node: id, drain: false }),
            (Order::Leave { with, .. }, Some(_)) => self.removal(id, false, with),
            (Order::Remove { with, .. }, Some(_)) => self.removal(id, true, with),
        };
        if let Some(command) = command
            && let Some(sponsor) = self.some_running()
        {
            let leader = Target::Leader(GroupId::META);
            let what = What::Command(CommandKind::Other);
            self.ask(Owner::Operator, sponsor, leader, Request::Command(command), what, ms(3_000));
        }
        self.queue.after(LOOK, Ev::Operate { node });
    }

    /// The command by which a node goes. `None`: not yet, because its successor is no member that answers (where that is gone,
    /// too, or another one takes the place already, nobody waits for it), or because it leaves, and another one burns.
    fn removal(&self, node: NodeId, dead: bool, with: Option<Successor>) -> Option<Command> {
        if !dead && self.lost_lately() {
            return None;
        }
        let state = self.checks.commands.last()?;
        let own = state.nodes.get(&node)?.successor;
        let free = |it: &SimNode| own.is_none_or(|own| own == it.id() || !state.takes_replicas(own));
        let it = with.map(|with| (with, &self.nodes[with.node])).filter(|(_, it)| stays(it) && free(it));
        let Some((with, it)) = it else {
            return Some(Command::RemoveNode { node, dead, successor: None });
        };
        // As `node replace` has it.
        let active = state.takes_replicas(it.id());
        let proven = !with.proven || self.queue.now >= it.unheard_at + PROVEN;
        (active && it.runs() && proven).then(|| Command::RemoveNode { node, dead, successor: Some(it.id()) })
    }

    /// The command that gives a node which goes already another successor, because its own one goes too, or now and then a
    /// first one. Only where nodes are replaced at all.
    fn another_successor(&mut self, node: NodeIx, dead: bool) -> Option<Command> {
        if !self.nemesis.has(Fault::Replace) {
            return None;
        }
        let id = self.nodes[node].id();
        let state = self.checks.commands.last()?;
        let lacks_one = match state.nodes.get(&id)?.successor {
            Some(own) => !state.takes_replicas(own),
            None => self.nemesis.random.chance(AFTERTHOUGHT),
        };
        if !lacks_one {
            return None;
        }
        let fits = |it: &&SimNode| stays(it) && it.runs() && state.takes_replicas(it.id());
        let all: Vec<NodeId> = self.nodes.iter().filter(fits).map(SimNode::id).collect();
        let next = *all.get(self.nemesis.random.below(all.len() as u64) as usize)?;
        Some(Command::RemoveNode { node: id, dead, successor: Some(next) })
    }

    /// A command of `__meta` was committed: what becomes of those that are replaced is judged from the states before and
    /// after it.
    pub fn judge_replacements(&mut self, index: u64, before: Option<&Metadata>) {
        let (commands, nodes, places, now) = (&self.checks.commands, &self.nodes, &self.places, self.queue.now);
        let (Some(before), Some(after), Some(command)) = (before, commands.last(), commands.command(index)) else {
            return;
        };
        let unheard_at = |node: NodeId| places.get(&node).map_or(now, |place| nodes[*place].unheard_at);
        let verdict = self.checks.replacements.committed((before, after), command, now, unheard_at);
        self.check("successors take over", verdict);
    }

    /// A core says who the members are: nobody else stays connected.
    pub fn members_told(&mut self, node: NodeIx, members: Vec<Member>, departed: Vec<(NodeId, EndpointId)>) {
        let known = members.iter().filter_map(|member| place(&member.address.endpoint)).collect();
        let before = std::mem::replace(&mut self.nodes[node].known, known);
        self.nodes[node].members = members;
        self.nodes[node].known_departed = departed.into_iter().map(|(id, _)| id).collect();
        let gone: Vec<NodeIx> = before.difference(&self.nodes[node].known).copied().collect();
        for peer in gone.into_iter().filter(|peer| *peer != node) {
            self.reset(node, peer);
        }
    }

    /// A core says that its node is no member any more, and its process ends.
    pub fn departs(&mut self, node: NodeIx, asked: bool, reason: &str) {
        let id = self.nodes[node].id();
        if !self.was_member(id) {
            return self.fail("members are not expelled", format!("n{node} (node {id}): {reason}"));
        }
        let ordered = matches!(self.nodes[node].order, Some(Order::Leave { .. }));
        if asked && !ordered {
            return self.fail("who leaves was told to", format!("n{node} (node {id}): {reason}"));
        }
        if !self.nodes[node].host.running().is_empty() {
            return self
                .fail("who leaves has no VMs", format!("n{node} (node {id}): {:?}", self.nodes[node].host.running()));
        }
        self.trace.node(self.queue.now, node, || format!("departs: {reason}"));
        self.end_process(node, false);
        self.is_forgotten(node);
    }

    fn is_forgotten(&mut self, node: NodeIx) {
        let it = &mut self.nodes[node];
        let order = it.order.take();
        (it.retired, it.departed) = (true, true);
        self.stats.departed += 1;
        if let Some(Order::Leave { back_in: Some(later), .. } | Order::Remove { back_in: Some(later), .. }) = order
            && self.finale.began.is_none()
        {
            self.queue.after(later, Ev::Renew { node });
        }
    }

    /// The machine joins as a node of which nobody has heard.
    pub fn renew(&mut self, node: NodeIx) {
        if self.finale.began.is_some() || !self.nodes[node].departed {
            return;
        }
        self.nodes[node].renew(self.cfg.seed);
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            // Whatever is still on the way was the former node's.
            self.net.forget(node, peer);
        }
        self.trace.node(self.queue.now, node, || "is set up anew".into());
        self.stats.renewed += 1;
        self.queue.after(0, Ev::Join { node });
    }

    /// At the end every drained node works again, also if an order to drain it comes late.
    pub fn resume_drained(&mut self) {
        for node in 0..self.nodes.len() {
            self.end_drain(node);
            let record = self.checks.commands.last().and_then(|state| state.nodes.get(&self.nodes[node].id()));
            let drained = record.is_some_and(|record| record.lifecycle == NodeLifecycle::Draining);
            if drained && self.nodes[node].order.is_none() {
                self.nodes[node].order = Some(Order::Resume);
                self.queue.after(0, Ev::Operate { node });
            }
        }
    }
}
