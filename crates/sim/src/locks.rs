//! Clients that contend for locks: unlike those of `workload.rs` they call the operations (`lock.acquire`, `lease.keep`,
//! `lock.release`) of whichever node they reach (`api.rs`). A call that fails, or takes too long, is repeated under its
//! Idempotency-Key, perhaps through another node, while the node that was asked before may not know that nobody listens any
//! more. Some give up while they wait, and some holders just stop renewing. A place in the queue for one of the locks has a lease
//! that outlasts the run: it is gone in the end only if somebody took it away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use base::{ErrorCode, LeaseId, SplitMix64, hash64};
use engine::{Reply, Request, RequestError};
use metadata::{Command, CommandResult, KeyExpect};
use operations::Ports;
use ops::{OpError, Registry};
use serde_json::{Value, json};

use crate::api::{Answer, Api, Calling};
use crate::check::LASTING;
use crate::node::SimNode;
use crate::queue::{Ev, NodeIx};
use crate::requests::{CommandKind, Outcome, Owner, Pending, What};
use crate::time::{Nanos, ms, us};
use crate::world::World;

const CLIENTS: u64 = 4;
const LOCKS: [&str; 2] = ["backup", "deploy"];

/// Those who contend for locks, and the calls that they made.
pub struct LockClients {
    clients: Vec<Client>,
    registry: Option<Arc<Registry<Ports>>>,
    /// Of the processes that were called.
    apis: BTreeMap<NodeIx, Api>,
    calls: BTreeMap<u64, Call>,
    last_call: u64,
    /// By ticket: who in a call waits for the core.
    answers: BTreeMap<u64, Answer>,
    last_ticket: u64,
    random: SplitMix64,
}

/// A call under way.
struct Call {
    node: NodeIx,
    listener: Option<usize>,
    /// The node is about to notice that nobody listens.
    hung_up: bool,
    calling: Calling,
}

struct Client {
    doing: Doing,
    /// The call that it listens to, and until when it does.
    call: Option<(u64, Nanos)>,
    /// What came of that.
    heard: Option<Result<Value, OpError>>,
    /// Counts what it calls for; repeated calls have the same number.
    number: u64,
    random: SplitMix64,
}

#[derive(Clone, Copy)]
enum Doing {
    Rests {
        until: Nanos,
    },
    Wants {
        lock: &'static str,
        number: u64,
        ttl_s: u64,
        timeout_s: u64,
        next: Nanos,
        until: Nanos,
    },
    Holds {
        lock: &'static str,
        lease: LeaseId,
        ttl: Nanos,
        /// `None`: it never renews, nor gives the lock back.
        next: Option<Nanos>,
        until: Nanos,
    },
    Releases {
        lock: &'static str,
        lease: LeaseId,
        number: u64,
        next: Nanos,
        until: Nanos,
    },
}

impl Client {
    /// It goes on with what it does a while from now.
    fn later(&mut self, now: Nanos) {
        let later = now + ms(self.random.between(1, 200));
        if let Doing::Wants { next, .. } | Doing::Holds { next: Some(next), .. } | Doing::Releases { next, .. } =
            &mut self.doing
        {
            *next = later;
        }
    }

    fn rest(&mut self, now: Nanos) {
        self.doing = Doing::Rests { until: now + ms(self.random.between(0, 800)) };
    }

    /// Chooses a lock.
    fn want(&mut self, now: Nanos) {
        self.number += 1;
        let any = LOCKS[self.random.below(LOCKS.len() as u64) as usize];
        // Mostly in vain: whoever dies while he stands there keeps his place.
        let (lock, ttl_s, most) = match self.random.chance(200_000) {
            true => (LASTING, 600, 4_000),
            false => (any, self.random.between(2, 3), 12_000),
        };
        self.doing = Doing::Wants {
            lock,
            number: self.number,
            ttl_s,
            timeout_s: self.random.below(4),
            next: now,
            until: now + ms(self.random.between(1_000, most)),
        };
    }
}

impl LockClients {
    /// Of the run of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let client = |number: u64| Client {
            doing: Doing::Rests { until: 0 },
            call: None,
            heard: None,
            number: 0,
            random: SplitMix64::new(hash64(&[seed, 42, number])),
        };
        LockClients {
            clients: (0..CLIENTS).map(client).collect(),
            registry: None,
            apis: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            answers: BTreeMap::new(),
            last_ticket: 0,
            random: SplitMix64::new(hash64(&[seed, 43])),
        }
    }

    /// The API of the process that runs there.
    fn api(&mut self, node: &SimNode, seed: u64) -> &Api {
        let registry = self.registry.get_or_insert_with(|| {
            Arc::new(operations::registry().expect("a test of the operations says that they fit each other"))
        });
        let seed = hash64(&[seed, 44, node.ix as u64, node.boot]);
        self.apis.entry(node.ix).or_insert_with(|| Api::new(Arc::clone(registry), node.id(), seed))
    }
}

impl World {
    /// All calls go on, and then the clients.
    pub fn locks_step(&mut self) {
        if self.finale.quiet {
            self.hang_up_all();
        } else {
            let calls: Vec<u64> = self.locks.calls.keys().copied().collect();
            calls.into_iter().for_each(|call| self.poll_call(call));
            (0..self.locks.clients.len()).for_each(|client| self.lock_client(client));
        }
        if let Some(state) = self.checks.commands.last() {
            let verdict = self.checks.locks.stays_away(state);
            self.check("who has left the queue for a lock stays away", verdict);
        }
        let pause = us(self.locks.random.between(2_000, 10_000));
        self.queue.after(pause, Ev::Locks);
    }

    fn poll_call(&mut self, id: u64) {
        let Some(call) = self.locks.calls.get_mut(&id) else { return };
        let it = &self.nodes[call.node];
        let Some(api) = self.locks.apis.get(&it.ix).filter(|_| it.runs()) else { return };
        api.see(it.now(self.queue.now), &it.shown);
        let (node, listener) = (call.node, call.listener);
        let ended = match call.hung_up {
            true => Poll::Ready(None),
            false => call.calling.as_mut().poll(&mut Context::from_waker(Waker::noop())).map(Some),
        };
        if let Poll::Ready(result) = ended {
            // Whoever waits for a lock leaves the queue when it is dropped.
            self.locks.calls.remove(&id);
            if let Some(lease) = result.as_ref().and_then(|it| it.as_ref().ok()?["lease"].as_u64()) {
                self.checks.locks.got(LeaseId(lease));
            }
            if let Some(client) = listener {
                self.locks.clients[client].heard = result;
            }
        }
        self.hand_over(node);
    }

    /// What operations on a node asked its core for is asked.
    fn hand_over(&mut self, node: NodeIx) {
        let Some(api) = self.locks.apis.get(&node) else { return };
        let (asked, defect) = api.take();
        if let Some(defect) = defect {
            self.fail("operations fail as they declare", format!("n{node}: {defect}"));
        }
        for asked in asked {
            let (now, mono) = (self.queue.now, self.nodes[node].now(self.queue.now).mono);
            match &asked.request {
                Request::Command(Command::PutKey { value, expect: Some(KeyExpect::Absent), .. }) => {
                    self.checks.locks.asks_for_place(value, node);
                }
                // It takes up another call's place.
                Request::Command(Command::PutKey { value, .. }) => self.checks.locks.may_stay(value),
                _ => {}
            }
            let what = match &asked.request {
                Request::Command(_) => What::Command(CommandKind::Other),
                Request::Barrier => What::Barrier,
                Request::KeepLease { lease } => What::Lease { lease: Some(*lease), since: now },
                _ => What::Other,
            };
            self.locks.last_ticket += 1;
            let ticket = self.locks.last_ticket;
            self.locks.answers.insert(ticket, asked.answer);
            let timeout = ms(asked.deadline.since(mono).0);
            self.ask(Owner::Operation(ticket), node, asked.target, asked.request, what, timeout);
        }
    }

    /// The core answered an operation.
    pub fn operation_answered(&mut self, ticket: u64, pending: &Pending, outcome: &Outcome) {
        match (&pending.what, &pending.command, outcome) {
            // The operation may have it renewed for somebody who does not listen any more: the lease lives all the same.
            (What::Lease { lease: Some(lease), since }, _, Outcome::Ok(Reply::LeaseKept { ttl_ms })) => {
                let until = since + ms(*ttl_ms);
                self.checks.leases.held(*lease, until);
                let verdict = self.checks.locks.renewed(*lease, until, self.queue.now);
                self.check("a lock has one holder", verdict);
            }
            (
                _,
                Some(Command::PutKey { expect: Some(KeyExpect::Revision(_)), .. }),
                Outcome::Ok(Reply::Command { result: CommandResult::KeyPut { .. }, .. }),
            ) => self.stats.locks_joined += 1,
            // Any other failure leaves open what became of it.
            (_, Some(Command::PutKey { value, .. }), Outcome::Failed(error)) if !tells(error) => {
                self.checks.locks.may_stay(value);
            }
            // So a call leaves the queue.
            (_, Some(Command::DeleteKeys { expect: Some(KeyExpect::Value(value)), .. }), outcome) => match outcome {
                Outcome::Failed(error) if !tells(error) => self.checks.locks.may_stay(value),
                Outcome::Lost => self.checks.locks.may_stay(value),
                _ => {
                    self.stats.locks_left += 1;
                    self.checks.locks.left(value);
                }
            },
            _ => {}
        }
        let Some(answer) = self.locks.answers.remove(&ticket) else { return };
        match outcome {
            Outcome::Ok(reply) => drop(answer.send(Ok(reply.clone()))),
            Outcome::Failed(error) => drop(answer.send(Err(error.clone()))),
            Outcome::Lost => {}
        }
    }

    /// The node died, and its calls with it: they ask for nothing any more, and whoever listens sees the connection break.
    pub fn calls_lost(&mut self, node: NodeIx) {
        if let Some(api) = self.locks.apis.remove(&node) {
            api.dies();
        }
        self.checks.locks.died(node);
        let lost: Vec<u64> = self.locks.calls.iter().filter(|(_, call)| call.node == node).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(client) = self.locks.calls.remove(&id).and_then(|call| call.listener) {
                self.locks.clients[client].heard = Some(Err(unreachable()));
            }
        }
    }

    /// The clients are done.
    fn hang_up_all(&mut self) {
        for (_, call) in std::mem::take(&mut self.locks.calls) {
            let node = call.node;
            drop(call);
            self.hand_over(node);
        }
    }

    fn lock_client(&mut self, client: usize) {
        let now = self.queue.now;
        if let Some(heard) = self.locks.clients[client].heard.take() {
            self.locks.clients[client].call = None;
            self.lock_heard(client, heard);
        }
        self.lock_lapses(client);
        match self.locks.clients[client].call {
            Some((call, until)) if now >= until => self.hang_up(client, call),
            Some(_) => {}
            None => self.lock_goes_on(client),
        }
    }

    /// A holder whose lease is over knows that he holds nothing any more.
    fn lock_lapses(&mut self, client: usize) {
        let (now, it) = (self.queue.now, &mut self.locks.clients[client]);
        let Doing::Holds { lock, lease, .. } = it.doing else { return };
        if self.checks.leases.until(lease) > now {
            return;
        }
        it.rest(now);
        if let Some((id, _)) = it.call.take()
            && let Some(call) = self.locks.calls.get_mut(&id)
        {
            call.listener = None;
        }
        self.stats.locks_lapsed += 1;
        self.checks.locks.given_up(lock, client);
        self.trace.line(now, "lock", || format!("client {client} holds {lock} no more: lease {lease} is over"));
    }

    /// The call takes too long. The node may notice that nobody listens any more, or never.
    fn hang_up(&mut self, client: usize, call: u64) {
        let (now, it) = (self.queue.now, &mut self.locks.clients[client]);
        let (noticed, waits) = (it.random.chance(600_000), matches!(it.doing, Doing::Wants { .. }));
        if let Some(call) = self.locks.calls.get_mut(&call) {
            (call.listener, call.hung_up) = (None, noticed);
        }
        self.stats.locks_hung_up += u64::from(noticed && waits);
        it.call = None;
        if waits && it.random.chance(250_000) {
            it.rest(now);
        } else {
            it.later(now);
        }
    }

    fn lock_goes_on(&mut self, client: usize) {
        let (now, it) = (self.queue.now, &mut self.locks.clients[client]);
        match it.doing {
            Doing::Rests { until } if now >= until => it.want(now),
            Doing::Wants { until, .. } | Doing::Releases { until, .. } if now >= until => it.rest(now),
            Doing::Wants { lock, number, ttl_s, timeout_s, next, .. } if now >= next => {
                let patience = ms(it.random.between(200, timeout_s * 1_000 + 2_000));
                let owner = format!("client {client}");
                let input = json!({ "name": lock, "ttl_s": ttl_s, "timeout_s": timeout_s, "owner": owner });
                self.call(client, "lock.acquire", input, Some(number), patience);
            }
            Doing::Holds { lock, lease, next: Some(_), until, .. } if now >= until => {
                it.number += 1;
                it.doing = Doing::Releases { lock, lease, number: it.number, next: now, until: now + ms(3_000) };
                self.checks.locks.given_up(lock, client);
                self.trace.line(now, "lock", || format!("client {client} gives {lock} back, lease {lease}"));
            }
            Doing::Holds { lock, lease, ttl, next: Some(next), until } if now >= next => {
                it.doing = Doing::Holds { lock, lease, ttl, next: Some(now + ttl / 3), until };
                let input = json!({ "lease": lease.0, "once": true });
                self.call(client, "lease.keep", input, None, ttl / 2);
            }
            Doing::Releases { lock, lease, number, next, .. } if now >= next => {
                let patience = ms(it.random.between(200, 2_000));
                let input = json!({ "name": lock, "lease": lease.0 });
                self.call(client, "lock.release", input, Some(number), patience);
            }
            _ => {}
        }
    }

    /// Calls an operation of some node, and listens for so long.
    fn call(&mut self, client: usize, operation: &str, input: Value, number: Option<u64>, patience: Nanos) {
        let running: Vec<&SimNode> = self.nodes.iter().filter(|it| it.runs() && it.recovered).collect();
        let it = &mut self.locks.clients[client];
        let pick = it.random.below(running.len() as u64) as usize;
        let Some(node) = running.get(pick) else {
            it.heard = Some(Err(unreachable()));
            return;
        };
        let key = number.map(|number| format!("{client}-{number}"));
        let calling = self.locks.api(node, self.cfg.seed).call(operation, input, key);
        self.locks.last_call += 1;
        let id = self.locks.last_call;
        self.locks.calls.insert(id, Call { node: node.ix, listener: Some(client), hung_up: false, calling });
        self.locks.clients[client].call = Some((id, self.queue.now + patience));
    }

    fn lock_heard(&mut self, client: usize, heard: Result<Value, OpError>) {
        let (now, it) = (self.queue.now, &mut self.locks.clients[client]);
        match (it.doing, heard) {
            (Doing::Wants { lock, ttl_s, .. }, Ok(value)) => self.lock_acquired(client, lock, ttl_s, &value),
            (Doing::Holds { lock, lease, .. }, Err(error)) if error.code == ErrorCode::NotFound => {
                it.rest(now);
                self.checks.locks.given_up(lock, client);
                let verdict = self.checks.leases.gone(lease, now);
                self.check("leases live as long as their holders were told", verdict);
            }
            // A release that was done before finds nothing to do.
            (Doing::Releases { .. }, Err(error)) if error.code != ErrorCode::NotFound => it.later(now),
            (Doing::Releases { .. }, _) => it.rest(now),
            (_, Err(_)) => it.later(now),
            (_, Ok(_)) => {}
        }
    }

    fn lock_acquired(&mut self, client: usize, lock: &'static str, ttl_s: u64, value: &Value) {
        let now = self.queue.now;
        let (Some(lease), Some(token)) = (value["lease"].as_u64(), value["token"].as_u64()) else {
            return self.fail("answers fit", format!("a lock was acquired by {value}"));
        };
        let lease = LeaseId(lease);
        let lives = self.checks.leases.until(lease);
        self.trace.line(now, "lock", || format!("client {client} holds {lock} by lease {lease}, token {token}"));
        self.stats.locks_acquired += 1;
        let verdict = self.checks.locks.acquired(lock, client, (lease, token), lives, now);
        self.check("a lock has one holder", verdict);
        let it = &mut self.locks.clients[client];
        let (ttl, until) = (ms(ttl_s * 1_000), now + ms(it.random.between(100, 4_000)));
        let next = (lock == LASTING || it.random.chance(800_000)).then_some(now + ttl / 3);
        it.doing = Doing::Holds { lock, lease, ttl, next, until };
    }
}

/// The key was not what it was expected to be: the command did nothing, and will do nothing.
fn tells(error: &RequestError) -> bool {
    error.code == ErrorCode::FailedPrecondition
}

fn unreachable() -> OpError {
    OpError::new(ErrorCode::Unreachable, "the connection broke")
}
