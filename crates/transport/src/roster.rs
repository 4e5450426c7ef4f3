//! Who may speak: the members, this node's own place among them, and the judgement of a hello. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{ClusterId, ClusterVersion, EndpointId, ErrorCode, Incarnation, NodeId, RecoveryId, VersionRange};
use wire::{Hello, HelloPurpose, JoinRequest, NodeAddress, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal};

use crate::twins::Process;

/// The members, by what the network knows of them.
pub type Members = BTreeMap<EndpointId, (NodeId, NodeAddress)>;

/// Former members.
pub type Departed = BTreeSet<(EndpointId, NodeId)>;

/// This node's place in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    /// The cluster.
    pub cluster: ClusterId,
    /// Of the cluster: raised by a recovery from a lost majority.
    pub cluster_incarnation: Incarnation,
    /// Which recovery that was, if there was one.
    pub recovery: Option<RecoveryId>,
    /// This node.
    pub node: NodeId,
    /// This process.
    pub incarnation: Incarnation,
    /// Where it works; see [`HelloPurpose::Member`].
    pub home: u64,
    /// The cluster versions that it can.
    pub versions: VersionRange,
}

/// What is known of members and of this node.
#[derive(Debug, Default)]
pub struct Roster {
    local: Option<Local>,
    members: Arc<Members>,
    /// Former members; only the reason in a refusal depends on it.
    departed: Arc<Departed>,
    /// The active cluster version, as this node has applied it: who cannot work at it is not heard.
    cluster_version: ClusterVersion,
}

/// What becomes of a hello.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A member: go on.
    Member { node: NodeId, process: Process },
    /// Let the cluster decide.
    Join(Box<JoinRequest>),
    /// No.
    Refused(Refusal),
}

impl Roster {
    pub fn local(&self) -> Option<Local> {
        self.local
    }

    pub fn set_local(&mut self, local: Local) {
        self.local = Some(local);
    }

    pub fn is_member(&self, endpoint: &EndpointId) -> bool {
        self.members.contains_key(endpoint)
    }

    pub fn set_members(&mut self, members: Arc<Members>, departed: Arc<Departed>) {
        (self.members, self.departed) = (members, departed);
    }

    pub fn cluster_version(&self) -> ClusterVersion {
        self.cluster_version
    }

    pub fn set_cluster_version(&mut self, active: ClusterVersion) {
        self.cluster_version = active;
    }

    /// Judges a hello that came from `endpoint`, whose key the connection has proven.
    pub fn judge(&self, endpoint: EndpointId, hello: Hello) -> Verdict {
        if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&hello.protocol) {
            let reason = format!(
                "it speaks peer protocol {}, this node speaks {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}; run the same \
                 muster version on both, or upgrade one release at a time",
                hello.protocol
            );
            return refused(ErrorCode::UnsupportedVersion, reason);
        }
        let Some(local) = self.local else {
            let reason =
                "this node is not a member of a cluster itself (yet); try again, or call another node".to_owned();
            return refused(ErrorCode::FailedPrecondition, reason);
        };
        let misfit = hello.versions.objection(self.cluster_version);
        match hello.purpose {
            HelloPurpose::Join(request) if request.cluster != local.cluster => {
                let reason = format!(
                    "the join token is for cluster {}, this node belongs to cluster {}; use a token made here",
                    request.cluster, local.cluster
                );
                refused(ErrorCode::PermissionDenied, reason)
            }
            HelloPurpose::Join(request) => match misfit {
                None => Verdict::Join(request),
                Some(reason) => self.outdated(reason),
            },
            HelloPurpose::Member { cluster, cluster_incarnation, node, incarnation, recovery, home } => {
                let objection = self.objection(local, endpoint, (cluster, cluster_incarnation, recovery), node);
                match (objection, misfit) {
                    (Some((code, reason)), _) => refused(code, reason),
                    (None, Some(reason)) => self.outdated(reason),
                    (None, None) => Verdict::Member { node, process: Process { incarnation, home } },
                }
            }
        }
    }

    fn outdated(&self, reason: String) -> Verdict {
        let active = Some(self.cluster_version);
        Verdict::Refused(Refusal { active, ..Refusal::new(ErrorCode::UnsupportedVersion, reason) })
    }

    /// Why somebody who says that it is a member is not heard.
    fn objection(
        &self,
        local: Local,
        endpoint: EndpointId,
        (cluster, incarnation, recovery): (ClusterId, Incarnation, Option<RecoveryId>),
        node: NodeId,
    ) -> Option<(ErrorCode, String)> {
        if cluster != local.cluster {
            let reason = format!("it belongs to cluster {cluster}, this node to cluster {}", local.cluster);
            return Some((ErrorCode::PermissionDenied, reason));
        }
        if incarnation < local.cluster_incarnation {
            let reason = format!(
                "it follows incarnation {incarnation}, but the cluster was recovered without it and goes on as incarnation {}; \
                 wipe its data directory and let it join anew with a token",
                local.cluster_incarnation
            );
            return Some((ErrorCode::StaleEpoch, reason));
        }
        if incarnation > local.cluster_incarnation {
            let reason = format!(
                "it follows incarnation {incarnation}: the cluster was recovered without this node, which is still of \
                 incarnation {}",
                local.cluster_incarnation
            );
            return Some((ErrorCode::PermissionDenied, reason));
        }
        // Whoever does not say joined with a release that did not know of it.
        if let (Some(theirs), Some(mine)) = (recovery, local.recovery)
            && theirs != mine
        {
            let reason = format!(
                "two survivors were recovered apart, and became two clusters of the same name, both of incarnation {incarnation}: \
                 it is of recovery {theirs}, this node of recovery {mine}. Keep one of the two; wipe the data directories of \
                 all nodes of the other one, and let them join anew with a token"
            );
            return Some((ErrorCode::PermissionDenied, reason));
        }
        match self.members.get(&endpoint) {
            Some((known, _)) if *known == node => None,
            Some((known, _)) => {
                let reason = format!("it calls itself node {node}, but its key is that of node {known}");
                Some((ErrorCode::PermissionDenied, reason))
            }
            None if self.departed.contains(&(endpoint, node)) => {
                let reason =
                    format!("node {node} was removed from the cluster; to come back it must join with a token");
                Some((ErrorCode::Expelled, reason))
            }
            None => Some((ErrorCode::PermissionDenied, self.why_unknown(endpoint, node))),
        }
    }

    fn why_unknown(&self, endpoint: EndpointId, node: NodeId) -> String {
        let taken = self.members.values().any(|(known, _)| *known == node);
        if taken {
            format!("node {node} is a member under another key; was its identity file replaced?")
        } else {
            format!("endpoint {endpoint} is not a member of this cluster; join it with a token first")
        }
    }
}

fn refused(code: ErrorCode, reason: String) -> Verdict {
    Verdict::Refused(Refusal::new(code, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 16]);
    const FRIEND: EndpointId = EndpointId([2; 32]);
    const STRANGER: EndpointId = EndpointId([9; 32]);
    const RECOVERY: RecoveryId = RecoveryId([3; 16]);

    fn roster() -> Roster {
        let mut roster = Roster::default();
        roster.set_local(Local {
            cluster: CLUSTER,
            cluster_incarnation: Incarnation(4),
            recovery: Some(RECOVERY),
            node: NodeId(1),
            incarnation: Incarnation(1),
            home: 1,
            versions: VersionRange::BINARY,
        });
        let members = Arc::new(BTreeMap::from([(FRIEND, (NodeId(2), NodeAddress::default()))]));
        roster.set_members(members, Arc::default());
        roster
    }

    fn member(cluster: ClusterId, cluster_incarnation: u64, node: u64) -> Hello {
        of_recovery(cluster, cluster_incarnation, node, Some(RECOVERY))
    }

    fn of_recovery(cluster: ClusterId, cluster_incarnation: u64, node: u64, recovery: Option<RecoveryId>) -> Hello {
        let (cluster_incarnation, incarnation) = (Incarnation(cluster_incarnation), Incarnation(7));
        let (node, home) = (NodeId(node), Some(2));
        let purpose = HelloPurpose::Member { cluster, cluster_incarnation, node, incarnation, recovery, home };
        Hello { protocol: PROTOCOL_VERSION, purpose, versions: VersionRange::default() }
    }

    fn join(cluster: ClusterId) -> Hello {
        let request = JoinRequest { cluster, token_id: 1, secret: [0; 32], member: wire::Member::default() };
        let purpose = HelloPurpose::Join(Box::new(request));
        Hello { protocol: PROTOCOL_VERSION, purpose, versions: VersionRange::default() }
    }

    #[track_caller]
    fn check_refused(roster: &Roster, from: EndpointId, hello: Hello, code: ErrorCode, word: &str) {
        match roster.judge(from, hello) {
            Verdict::Refused(refusal) => {
                assert_eq!(refusal.code, code);
                assert!(refusal.reason.contains(word), "{}", refusal.reason);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn members_pass_and_everybody_else_is_told_why_not() {
        let mut roster = roster();
        let process = Process { incarnation: Incarnation(7), home: Some(2) };
        let welcome = Verdict::Member { node: NodeId(2), process };
        assert_eq!(roster.judge(FRIEND, member(CLUSTER, 4, 2)), welcome);
        let other = ClusterId([8; 16]);
        check_refused(&roster, FRIEND, member(other, 4, 2), ErrorCode::PermissionDenied, "belongs to cluster 0808");
        check_refused(&roster, FRIEND, member(CLUSTER, 3, 2), ErrorCode::StaleEpoch, "recovered without it");
        check_refused(&roster, FRIEND, member(CLUSTER, 5, 2), ErrorCode::PermissionDenied, "without this node");
        check_refused(&roster, FRIEND, member(CLUSTER, 4, 3), ErrorCode::PermissionDenied, "calls itself node 3");
        check_refused(&roster, STRANGER, member(CLUSTER, 4, 3), ErrorCode::PermissionDenied, "not a member");
        check_refused(&roster, STRANGER, member(CLUSTER, 4, 2), ErrorCode::PermissionDenied, "identity file replaced");
        for protocol in [0, PROTOCOL_VERSION + 1] {
            let hello = Hello { protocol, ..member(CLUSTER, 4, 2) };
            check_refused(&roster, FRIEND, hello, ErrorCode::UnsupportedVersion, "peer protocol");
        }
        roster.set_members(Arc::default(), Arc::new(BTreeSet::from([(FRIEND, NodeId(2))])));
        check_refused(&roster, FRIEND, member(CLUSTER, 4, 2), ErrorCode::Expelled, "was removed");
        check_refused(&roster, FRIEND, member(CLUSTER, 4, 3), ErrorCode::PermissionDenied, "not a member");
    }

    #[test]
    fn survivors_that_were_recovered_apart_refuse_each_other_whoever_they_are() {
        let mut roster = roster();
        let apart = |incarnation, node| of_recovery(CLUSTER, incarnation, node, Some(RecoveryId([4; 16])));
        for (from, node) in [(FRIEND, 2), (FRIEND, 3), (STRANGER, 9)] {
            check_refused(
                &roster,
                from,
                apart(4, node),
                ErrorCode::PermissionDenied,
                "two survivors were recovered apart",
            );
        }
        let both = format!("it is of recovery {}, this node of recovery {RECOVERY}", RecoveryId([4; 16]));
        check_refused(&roster, FRIEND, apart(4, 2), ErrorCode::PermissionDenied, &both);
        check_refused(&roster, FRIEND, apart(4, 2), ErrorCode::PermissionDenied, "wipe the data directories");
        // What is of another incarnation is of another recovery, too, and there is more to be said of it.
        check_refused(&roster, FRIEND, apart(3, 2), ErrorCode::StaleEpoch, "recovered without it");
        check_refused(&roster, FRIEND, apart(5, 2), ErrorCode::PermissionDenied, "without this node");
        // A former member of before the recovery is not told to join again as if it had been removed.
        roster.set_members(Arc::default(), Arc::new(BTreeSet::from([(FRIEND, NodeId(2))])));
        check_refused(&roster, FRIEND, apart(4, 2), ErrorCode::PermissionDenied, "recovered apart");
    }

    #[test]
    fn who_does_not_say_of_which_recovery_it_is_is_judged_by_the_rest() {
        let mut roster = roster();
        let silent = || of_recovery(CLUSTER, 4, 2, None);
        assert!(matches!(roster.judge(FRIEND, silent()), Verdict::Member { .. }));
        let local = roster.local().expect("it was set");
        roster.set_local(Local { recovery: None, ..local });
        assert!(matches!(roster.judge(FRIEND, silent()), Verdict::Member { .. }));
        assert!(matches!(roster.judge(FRIEND, member(CLUSTER, 4, 2)), Verdict::Member { .. }));
    }

    #[test]
    fn who_cannot_work_at_the_active_version_is_told_what_to_do() {
        let mut roster = roster();
        roster.set_cluster_version(ClusterVersion(2));
        for (from, hello) in [(FRIEND, member(CLUSTER, 4, 2)), (STRANGER, join(CLUSTER))] {
            check_refused(&roster, from, hello, ErrorCode::UnsupportedVersion, "can 1: upgrade muster there");
        }
        let versions = VersionRange { min: ClusterVersion(3), max: ClusterVersion(4) };
        let hello = Hello { versions, ..member(CLUSTER, 4, 2) };
        check_refused(&roster, FRIEND, hello, ErrorCode::UnsupportedVersion, "too new");
        let versions = VersionRange { min: ClusterVersion(1), max: ClusterVersion(2) };
        let hello = Hello { versions, ..member(CLUSTER, 4, 2) };
        assert!(matches!(roster.judge(FRIEND, hello), Verdict::Member { .. }));
    }

    #[test]
    fn only_joiners_of_this_cluster_reach_it_and_only_once_there_is_one() {
        assert!(matches!(roster().judge(STRANGER, join(CLUSTER)), Verdict::Join(_)));
        let foreign = join(ClusterId([8; 16]));
        check_refused(&roster(), STRANGER, foreign, ErrorCode::PermissionDenied, "token is for cluster 0808");
        let homeless = Roster::default();
        check_refused(&homeless, STRANGER, join(CLUSTER), ErrorCode::FailedPrecondition, "not a member of a cluster");
    }
}
