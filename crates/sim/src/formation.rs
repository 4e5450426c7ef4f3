//! How the cluster of a run comes to be: the founder forms it, a token is made, the others are admitted by a member and
//! start with what that member told them, as the real node does over its join hello.

use base::{GroupId, SplitMix64, hash64};
use engine::{Reply, Request, Target};
use metadata::{Command, CommandResult, Metadata, NodeRecord, token_hash};
use wire::JoinAccepted;

use crate::check::meta_voters_wanted;
use crate::config::Fault;
use crate::node::Stage;
use crate::queue::{Ev, NodeIx};
use crate::requests::{CommandKind, Outcome, Owner, Pending, What};
use crate::time::{Nanos, ms};
use crate::world::World;

/// A healthy cluster forms within this time (issue: all members healthy in under 5 s).
const HEALTHY: Nanos = ms(5_000);

/// State of the formation.
pub struct Forming {
    pub secret: [u8; 32],
    token: Option<u64>,
    asked_for_token: bool,
    pub formed_at: Option<Nanos>,
    random: SplitMix64,
}

impl Forming {
    /// Nothing yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = SplitMix64::new(hash64(&[seed, 30]));
        let mut secret = [0; 32];
        secret.iter_mut().for_each(|byte| *byte = random.next_u64() as u8);
        Forming { secret, token: None, asked_for_token: false, formed_at: None, random }
    }
}

impl World {
    /// A stranger asks some member to be admitted.
    pub fn join(&mut self, node: NodeIx) {
        if self.nodes[node].stage != Stage::Stranger {
            return;
        }
        let again = ms(self.forming.random.between(100, 400));
        let Some(sponsor) = self.some_running() else {
            return self.queue.after(again, Ev::Join { node });
        };
        let Some(token_id) = self.forming.token else {
            self.ask_for_token(sponsor);
            return self.queue.after(again, Ev::Join { node });
        };
        let token_id = self.flawed_token(node).unwrap_or(token_id);
        let member = self.nodes[node].member.clone();
        let command = Command::AdmitNode { token_id, secret: self.forming.secret, member };
        let what = What::Command(CommandKind::Admit(node));
        let leader = Target::Leader(GroupId::META);
        self.ask(Owner::Joining(node), sponsor, leader, Request::Command(command), what, ms(5_000));
    }

    /// A node that was held back asks to join. Whether there was one.
    pub fn join_late(&mut self, node: NodeIx) -> bool {
        let late = std::mem::take(&mut self.nodes[node].late);
        if late {
            self.queue.after(0, Ev::Join { node });
        }
        late
    }

    fn ask_for_token(&mut self, sponsor: NodeIx) {
        if std::mem::replace(&mut self.forming.asked_for_token, true) {
            return;
        }
        let expires = self.nodes[sponsor].now(self.queue.now).wall.plus(base::Millis(24 * 3_600_000));
        let command = Command::CreateToken { secret_hash: token_hash(&self.forming.secret), expires, uses: 10_000 };
        let what = What::Command(CommandKind::CreateToken);
        let leader = Target::Leader(GroupId::META);
        self.ask(Owner::Token, sponsor, leader, Request::Command(command), what, ms(5_000));
    }

    /// The token is there, or not.
    pub fn token_answered(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok(Reply::Command { result: CommandResult::TokenCreated { token_id }, .. }) => {
                self.forming.token = Some(*token_id);
                self.make_flawed_tokens();
            }
            _ => self.forming.asked_for_token = false,
        }
    }

    /// The sponsor has the cluster's answer.
    pub fn admission_answered(&mut self, node: NodeIx, pending: &Pending, outcome: &Outcome) {
        let sponsor = self.nodes[pending.node].core.as_ref();
        let (
            Outcome::Ok(Reply::Command { result: CommandResult::NodeAdmitted { node: id, meta_replica }, .. }),
            Some(core),
        ) = (outcome, sponsor)
        else {
            self.judge_refusal(pending, outcome);
            if self.is_outdated(node) {
                // It was told to be upgraded first.
                self.install_newest(node);
            }
            let again = ms(self.forming.random.between(100, 400));
            return self.queue.after(again, Ev::Join { node });
        };
        let accepted = accepted(core.metadata(), *id, *meta_replica);
        let it = &mut self.nodes[node];
        if it.stage != Stage::Stranger {
            return;
        }
        it.member.node = *id;
        (it.cluster_incarnation, it.recovery) = (accepted.cluster_incarnation, accepted.recovery);
        it.accepted = Some(Box::new(accepted.clone()));
        it.stage = Stage::Admitted(Box::new(accepted));
        self.places.insert(*id, node);
        self.start_node(node);
    }

    /// Looks whether the cluster has formed, and lets the faults begin when it has.
    pub fn watch(&mut self) {
        let now = self.queue.now;
        if self.forming.formed_at.is_some() || self.finale.began.is_some() {
            return;
        }
        if self.formed() {
            self.forming.formed_at = Some(now);
            self.stats.formed_after = now;
            self.trace.line(now, "**", || "the cluster has formed".into());
            if !self.nemesis.schedule.from_the_start {
                self.begin_faults();
            }
            return;
        }
        let slow = [Fault::SlowDisk, Fault::StuckDisk];
        let healthy = !self.nemesis.schedule.from_the_start && !slow.iter().all(|fault| self.nemesis.has(*fault));
        if healthy && now > HEALTHY && self.cfg.plant.is_none() {
            let what = self.describe();
            return self.fail("a healthy cluster forms in 5 s", what);
        }
        self.queue.after(ms(50), Ev::Watch);
    }

    /// All nodes are members and ready, with as many voters of `__meta` as there should be.
    #[must_use]
    pub fn formed(&self) -> bool {
        let asked = self.nodes.iter().filter(|node| !node.late && !node.departed).count();
        self.nodes.iter().filter(|node| !node.late && !node.retired).all(|node| {
            node.stage == Stage::Formed
                && node.core.as_ref().is_some_and(|core| {
                    let status = core.status();
                    let votes = |record: &NodeRecord| status.meta_voters.contains(&record.member.node);
                    status.ready
                        && (status.meta_voters.len() == meta_voters_wanted(core.metadata(), votes)
                            || self.any_retired(&status.meta_learners))
                        && core.metadata().nodes.len() == asked
                })
        })
    }

    /// Whether one of them is gone for good. All learners of one step become voters together, and such a one holds up
    /// the others.
    fn any_retired(&self, nodes: &[base::NodeId]) -> bool {
        let place = |id| self.places.get(id).is_some_and(|place| self.nodes[*place].retired);
        nodes.iter().any(place)
    }

    /// All nodes as they see themselves, for messages about what did not happen.
    #[must_use]
    pub fn describe(&self) -> String {
        let one = |node: &crate::node::SimNode| {
            let Some(core) = &node.core else { return format!("n{} is down ({:?})", node.ix, node.stage) };
            let status = core.status();
            let groups: Vec<_> = status
                .groups
                .iter()
                .map(|g| {
                    let leader = g.leader.map_or("nobody".into(), |id| id.to_string());
                    format!(
                        "{}:{} t{} leader {leader} commit {} applied {} last {} hw {:?}",
                        g.group, g.role, g.term, g.commit, g.applied, g.last_index, g.high_watermark
                    )
                })
                .collect();
            format!(
                "n{} ready {} ({}) voters {:?} learners {:?} [{}]",
                node.ix,
                status.ready,
                status.reason,
                status.meta_voters,
                status.meta_learners,
                groups.join("; ")
            )
        };
        self.nodes.iter().map(one).collect::<Vec<_>>().join(" | ")
    }
}

fn accepted(state: &Metadata, node: base::NodeId, meta_replica: base::ReplicaId) -> JoinAccepted {
    JoinAccepted {
        cluster: state.cluster,
        cluster_incarnation: state.cluster_incarnation,
        node,
        meta_replica,
        members: state.nodes.values().map(|record| record.member.clone()).collect(),
        meta_replicas: state.nodes.values().map(|record| record.meta_replica).collect(),
        recovery: state.recovery,
    }
}
