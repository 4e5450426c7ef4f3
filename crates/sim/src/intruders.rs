//! Those who must not become members, and ask to: joiners with a token that is spent, has expired or was revoked, before they
//! come with a good one; and lost machines that come back wiped, with the key that they had. That none is let in is judged by
//! what is committed (`check/commands.rs`); here they ask, and have to be told why not.

use std::collections::{BTreeMap, BTreeSet};

use base::{ErrorCode, GroupId, Millis, SplitMix64, Wall, hash64};
use engine::{Reply, Request, Target};
use metadata::{Command, CommandResult, token_hash};
use wire::Member;

use crate::config::Fault;
use crate::queue::{Ev, NodeIx};
use crate::requests::{CommandKind, Outcome, Owner, Pending, What};
use crate::time::ms;
use crate::world::World;

/// No token has this id. A wiped machine comes with it, so that it is let in by nobody after its record is gone, too.
const NO_TOKEN: u64 = 0;

/// Why a token lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It was good for one node. Whoever of this run comes first is that one.
    Spent,
    Expired,
    Revoked,
}

impl Flaw {
    const ALL: [Flaw; 3] = [Flaw::Spent, Flaw::Expired, Flaw::Revoked];

    /// What whoever comes with it is told.
    fn told(self) -> &'static str {
        match self {
            Flaw::Spent => "was used already",
            Flaw::Expired => "has expired",
            Flaw::Revoked => "was revoked",
        }
    }
}

/// State of those who ask.
pub struct Intruders {
    /// Tokens that are no good.
    flawed: BTreeMap<u64, Flaw>,
    /// Keys of joiners that have come with one of those.
    tried: BTreeSet<[u8; 32]>,
    /// For nothing else, so that runs without intruders are what they were.
    random: SplitMix64,
}

impl Intruders {
    /// Nobody yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let random = SplitMix64::new(hash64(&[seed, 31]));
        Intruders { flawed: BTreeMap::new(), tried: BTreeSet::new(), random }
    }
}

impl World {
    /// There is a good token: there are to be others, too.
    pub fn make_flawed_tokens(&mut self) {
        if self.nemesis.has(Fault::Intruder) {
            for flaw in Flaw::ALL {
                let now = self.nodes[0].now(self.queue.now).wall;
                let expires = if flaw == Flaw::Expired { Wall(1) } else { now.plus(Millis(24 * 3_600_000)) };
                let secret_hash = token_hash(&self.forming.secret);
                self.ask_about_token(flaw, Command::CreateToken { secret_hash, expires, uses: 1 });
            }
        }
    }

    fn ask_about_token(&mut self, flaw: Flaw, command: Command) {
        let Some(sponsor) = self.some_running() else { return };
        let (leader, what) = (Target::Leader(GroupId::META), What::Command(CommandKind::Other));
        self.ask(Owner::FlawedToken(flaw), sponsor, leader, Request::Command(command), what, ms(5_000));
    }

    /// Such a token was made, or revoked. If not, nobody comes with it.
    pub fn flawed_token_answered(&mut self, flaw: Flaw, pending: &Pending, outcome: &Outcome) {
        let Outcome::Ok(Reply::Command { result, .. }) = outcome else { return };
        match (result, &pending.command) {
            (CommandResult::TokenCreated { token_id }, _) if flaw == Flaw::Revoked => {
                self.ask_about_token(flaw, Command::RevokeToken { token_id: *token_id });
            }
            (CommandResult::TokenCreated { token_id }, _)
            | (CommandResult::Done, Some(Command::RevokeToken { token_id })) => {
                self.intruders.flawed.insert(*token_id, flaw);
            }
            _ => {}
        }
    }

    /// With which token a joiner comes first, if not with the good one.
    pub fn flawed_token(&mut self, node: NodeIx) -> Option<u64> {
        let intruders = &mut self.intruders;
        if intruders.flawed.is_empty() || !intruders.tried.insert(self.nodes[node].member.address.endpoint.0) {
            return None;
        }
        let flawed: Vec<u64> = intruders.flawed.keys().copied().collect();
        flawed.get(intruders.random.below(flawed.len() as u64) as usize).copied()
    }

    /// A joiner was not admitted: if that is because of its token, it must have been told so.
    pub fn judge_refusal(&mut self, pending: &Pending, outcome: &Outcome) {
        let (Some(Command::AdmitNode { token_id, .. }), Outcome::Failed(error)) = (&pending.command, outcome) else {
            return;
        };
        let Some(flaw) = self.intruders.flawed.get(token_id).copied() else { return };
        if error.code != ErrorCode::PermissionDenied {
            return;
        }
        if !error.message.contains(flaw.told()) {
            return self.fail("who may not join is told why", format!("{flaw:?}: {}", error.message));
        }
        self.stats.tokens_refused += 1;
        self.stats.fault(Fault::Intruder.name());
    }

    /// A machine that was lost will come back wiped, with its old key.
    pub fn intrude_soon(&mut self, node: NodeIx) {
        if self.nemesis.has(Fault::Intruder) {
            let later = ms(self.intruders.random.between(10, 300));
            self.queue.after(later, Ev::Intrude { node });
        }
    }

    /// It does. Once the cluster has forgotten it, it comes as another node only.
    pub fn intrude(&mut self, node: NodeIx) {
        let it = &self.nodes[node];
        if !it.retired || it.departed || self.finale.began.is_some() {
            return;
        }
        let member = Member { store: !it.member.store, ..it.member.clone() };
        let Some(sponsor) = self.some_running() else { return self.intrude_soon(node) };
        self.trace.node(self.queue.now, node, || "asks to join with its old key, and without its data".into());
        let command = Command::AdmitNode { token_id: NO_TOKEN, secret: self.forming.secret, member };
        let (leader, what) = (Target::Leader(GroupId::META), What::Command(CommandKind::Other));
        self.ask(Owner::Intruder(node), sponsor, leader, Request::Command(command), what, ms(3_000));
    }

    /// It must have been told that it is not what it was, and what to do; or nobody has heard it, and it asks again.
    pub fn intruder_answered(&mut self, node: NodeIx, outcome: &Outcome) {
        match outcome {
            Outcome::Ok(reply) => self.fail("whose data is gone is refused", format!("n{node}: {reply:?}")),
            Outcome::Failed(error)
                if error.code == ErrorCode::PermissionDenied
                    && error.message.contains("its data is not")
                    && error.message.contains("join anew") =>
            {
                self.stats.impostors_refused += 1;
                self.stats.fault(Fault::Intruder.name());
            }
            _ => self.intrude_soon(node),
        }
    }
}
