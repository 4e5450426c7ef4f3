//! Names that clients contend for: all of them make, delete and look at the same few topics, VMs and keys. A look is a read
//! point (`Barrier`) and then the table that the node shows, at the moment of the answer. Which answers fit together is judged
//! in `check/names.rs`.

use base::{ErrorCode, TopicId};
use compute::VmSpec;
use engine::{Reply, Request, RequestError, Target};
use linear::{KeyOp, KeyTold};
use metadata::{Command, CommandResult, KeyExpect, KeyLife};

use crate::check::{Asked, MachineOp, MachineTold, Names, TopicOp, TopicTold, key_in};
use crate::queue::NodeIx;
use crate::requests::{Outcome, What};
use crate::world::World;

/// Prefix of the contended topics, whose partitions take records like any other, and go when the topic is deleted.
pub const TOPIC_PREFIX: &str = "shared-";
const TOPICS: [&str; 2] = ["shared-a", "shared-b"];
/// The contended VMs.
pub const MACHINES: [&str; 2] = ["common-a", "common-b"];
/// The contended keys.
const KEYS: [&str; 2] = ["shared/a", "shared/b"];
/// Topics that the clients of one run make under contended names: each one is a Raft group on every node.
const TOPICS_MADE_MAX: u64 = 8;

/// What was asked about a contended name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shared {
    Topic { name: String, what: TopicOp },
    Machine { name: String, what: MachineOp },
    Key { name: String, what: KeyOp },
}

impl World {
    /// A client asks for something about a contended name.
    pub fn shared(&mut self, client: usize) -> bool {
        let value = self.clients[client].fresh_value();
        let random = &mut self.clients[client].random;
        if random.chance(500_000) {
            let name = KEYS[random.below(KEYS.len() as u64) as usize].to_owned();
            // What it is thought to be is what somebody put there a moment ago, or a guess that is wrong.
            let guess = self.shared_value.filter(|_| random.chance(700_000));
            let what = match random.below(10) {
                0..2 => KeyOp::Put(value),
                2..6 => KeyOp::Cas(guess, value),
                6..7 => KeyOp::Delete,
                _ => KeyOp::Look,
            };
            if let KeyOp::Put(value) | KeyOp::Cas(_, value) = what {
                self.shared_value = Some(value);
            }
            self.ask_shared(client, Shared::Key { name, what })
        } else if random.chance(500_000) {
            let name = TOPICS[random.below(TOPICS.len() as u64) as usize].to_owned();
            let mut id = [0; 16];
            id[..8].copy_from_slice(&random.next_u64().to_be_bytes());
            let what = match random.below(10) {
                0..3 if self.shared_topics_made < TOPICS_MADE_MAX => TopicOp::Create(TopicId(id)),
                3..6 => TopicOp::Delete,
                _ => TopicOp::Look,
            };
            self.ask_shared(client, Shared::Topic { name, what })
        } else {
            let name = MACHINES[random.below(MACHINES.len() as u64) as usize].to_owned();
            let what = match random.below(20) {
                0..4 => MachineOp::Create,
                4..7 => MachineOp::Delete,
                7..10 => MachineOp::Stop,
                10..13 => MachineOp::Start,
                _ => MachineOp::Look,
            };
            self.ask_shared(client, Shared::Machine { name, what })
        }
    }

    fn ask_shared(&mut self, client: usize, shared: Shared) -> bool {
        let now = self.queue.now;
        let (asked, request) = match &shared {
            Shared::Topic { name, what } => {
                (self.checks.names.ask_topic(name, client, *what, now), topic_request(name.clone(), *what))
            }
            Shared::Machine { name, what } => {
                (self.checks.names.ask_machine(name, client, *what, now), machine_request(name.clone(), *what))
            }
            Shared::Key { name, what } => {
                (self.checks.names.ask_key(name, client, *what, now), key_request(name.clone(), *what))
            }
        };
        let target = match &request {
            Request::Barrier => Target::Here,
            _ => Target::Leader(base::GroupId::META),
        };
        self.plain(client, target, request, What::Shared(asked, shared))
    }

    /// What the client was told: something that fits the name's history, that nothing was done, or nothing at all.
    pub fn judge_shared(&mut self, node: NodeIx, asked: Asked, shared: &Shared, outcome: &Outcome) {
        let now = self.queue.now;
        match outcome {
            Outcome::Failed(error) if refused_for_certain(error) => return self.checks.names.refused(asked),
            Outcome::Lost => return,
            _ => {}
        }
        let looked = matches!(outcome, Outcome::Ok(Reply::Done));
        let state = Some(&self.nodes[node].shown).filter(|_| looked);
        match (asked, shared) {
            (Asked::Topic(id), Shared::Topic { name, what }) => {
                let told = state.map(|state| Names::topic_in(state, name)).or_else(|| told_topic(*what, outcome));
                self.shared_topics_made +=
                    u64::from(matches!((what, told), (TopicOp::Create(_), Some(TopicTold::Done))));
                if let Some(told) = told {
                    self.checks.names.told_topic(id, told, now);
                }
            }
            (Asked::Machine(id), Shared::Machine { name, .. }) => {
                let told = state.map(|state| Names::machine_in(state, name)).or_else(|| told_machine(outcome));
                if let Some(told) = told {
                    self.checks.names.told_machine(id, told, now);
                }
            }
            (Asked::Key(id), Shared::Key { name, .. }) => {
                let told = state.map(|state| key_in(state, name)).or_else(|| told_key(outcome));
                if let Some(told) = told {
                    self.checks.names.told_key(id, told, now);
                }
            }
            _ => {}
        }
    }
}

fn key_request(key: String, what: KeyOp) -> Request {
    let put = |key, value: u64, expect| {
        let value = value.to_be_bytes().to_vec().into();
        Request::Command(Command::PutKey { key, value, expect, life: KeyLife::Lasting })
    };
    match what {
        KeyOp::Put(value) => put(key, value, None),
        KeyOp::Cas(None, value) => put(key, value, Some(KeyExpect::Absent)),
        KeyOp::Cas(Some(expected), value) => {
            put(key, value, Some(KeyExpect::Value(expected.to_be_bytes().to_vec().into())))
        }
        KeyOp::Delete => Request::Command(Command::DeleteKeys { key, prefix: false, expect: None }),
        KeyOp::Look => Request::Barrier,
    }
}

/// `None`: the outcome is open.
fn told_key(outcome: &Outcome) -> Option<KeyTold> {
    match outcome {
        Outcome::Ok(Reply::Command { result: CommandResult::KeysDeleted { count, .. }, .. }) => {
            Some(KeyTold::Deleted(*count))
        }
        Outcome::Ok(_) => Some(KeyTold::Done),
        Outcome::Failed(RequestError { code: ErrorCode::FailedPrecondition, .. }) => Some(KeyTold::Other),
        _ => None,
    }
}

fn topic_request(name: String, what: TopicOp) -> Request {
    match what {
        TopicOp::Create(topic_id) => Request::Command(Command::CreateTopic {
            name,
            topic_id,
            partitions: 1,
            replication_factor: None,
            config: Vec::new(),
        }),
        TopicOp::Delete => Request::Command(Command::DeleteTopic { name }),
        TopicOp::Look => Request::Barrier,
    }
}

fn machine_request(name: String, what: MachineOp) -> Request {
    let spec = VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None };
    match what {
        MachineOp::Create => Request::Command(Command::CreateVm { name, spec }),
        MachineOp::Start => Request::Command(Command::StartVm { name }),
        MachineOp::Stop => Request::Command(Command::StopVm { name }),
        MachineOp::Delete => Request::Command(Command::DeleteVm { name }),
        MachineOp::Look => Request::Barrier,
    }
}

/// `None`: the outcome is open.
fn told_topic(what: TopicOp, outcome: &Outcome) -> Option<TopicTold> {
    match (outcome, what) {
        (
            Outcome::Ok(Reply::Command { result: CommandResult::TopicCreated { topic_id, .. }, .. }),
            TopicOp::Create(id),
        ) if *topic_id == id => Some(TopicTold::Done),
        (Outcome::Ok(Reply::Command { result: CommandResult::Done, .. }), TopicOp::Delete) => Some(TopicTold::Done),
        // Something that was not asked for: it fits nowhere, and shows.
        (Outcome::Ok(_), _) => Some(TopicTold::Is(Some(TopicId([0xff; 16])))),
        (Outcome::Failed(RequestError { code: ErrorCode::AlreadyExists, .. }), _) => Some(TopicTold::Exists),
        (Outcome::Failed(RequestError { code: ErrorCode::NotFound, .. }), _) => Some(TopicTold::Missing),
        _ => None,
    }
}

/// `None`: the outcome is open.
fn told_machine(outcome: &Outcome) -> Option<MachineTold> {
    match outcome {
        Outcome::Ok(Reply::Command { result: CommandResult::VmCreated { vm }, .. }) => Some(MachineTold::Created(*vm)),
        Outcome::Ok(_) => Some(MachineTold::Done),
        Outcome::Failed(RequestError { code: ErrorCode::AlreadyExists, .. }) => Some(MachineTold::Exists),
        Outcome::Failed(RequestError { code: ErrorCode::NotFound, .. }) => Some(MachineTold::Missing),
        Outcome::Failed(RequestError { code: ErrorCode::FailedPrecondition, .. }) => Some(MachineTold::Leaving),
        _ => None,
    }
}

/// The answer says something about the name, even though it is an error.
#[must_use]
pub fn tells(error: &RequestError) -> bool {
    matches!(error.code, ErrorCode::AlreadyExists | ErrorCode::NotFound | ErrorCode::FailedPrecondition)
}

/// Whether a command that failed so was not carried out, and never will be. Everything else leaves that open: a deadline
/// that passed, a node that did not answer, leadership that changed, a node that stops.
#[must_use]
pub fn refused_for_certain(error: &RequestError) -> bool {
    match error.code {
        // Said before anything was proposed.
        ErrorCode::Busy | ErrorCode::DiskFull | ErrorCode::NotLeader | ErrorCode::NoLeader => true,
        ErrorCode::TooLarge | ErrorCode::UnsupportedVersion => true,
        // Said by the state itself, which then did not change.
        ErrorCode::InvalidArgument | ErrorCode::PermissionDenied | ErrorCode::UnknownSession => true,
        _ => false,
    }
}
