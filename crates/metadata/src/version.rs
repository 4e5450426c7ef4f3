//! The active cluster version: who can follow, when it rises, and what may not be done before.

use base::simulation::{Mark, Plant, mark, planted};
use base::{ClusterVersion, ErrorCode, VersionRange};
use minicbor::{Decode, Encode};
use serde_json::json;

use crate::apply::{Context, refuse};
use crate::{Command, CommandEnvelope, CommandResult, Metadata, NodeRecord};

/// A command in the log that this node must not pass over and cannot carry out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It is of a later version.
    #[error(
        "this node's version cannot read a command of cluster version {needs}, it can {can}: upgrade muster on this node. \
         Nothing is lost"
    )]
    Newer { needs: ClusterVersion, can: VersionRange },
    #[error("the command cannot be read: {0}")]
    Unreadable(#[from] wire::WireError),
}

/// What every version reads of a command.
#[derive(Encode, Decode)]
struct EnvelopeVersion {
    #[n(4)]
    version: ClusterVersion,
}

impl CommandEnvelope {
    /// Reads a command from the log, by a node that can `versions`.
    ///
    /// # Errors
    /// It is of a version that the node cannot, or damaged.
    pub fn read(bytes: &[u8], versions: VersionRange) -> Result<CommandEnvelope, CommandError> {
        // First the version alone: of the rest this node may not know the shape.
        let EnvelopeVersion { version } = wire::decode(bytes)?;
        if version > versions.max {
            return Err(CommandError::Newer { needs: version, can: versions });
        }
        Ok(wire::decode(bytes)?)
    }
}

impl Command {
    /// The first cluster version at which it may be proposed: before, some member may be unable to read it. A command that
    /// got a field later is of that later version when the field says something.
    ///
    /// Whoever adds a command says so here; docs/decisions/0013-versions.md has the steps.
    #[must_use]
    pub fn since(&self) -> ClusterVersion {
        match self {
            Command::OpenSession { .. }
            | Command::AdmitNode { .. }
            | Command::UpdateNode { .. }
            | Command::CreateToken { .. }
            | Command::RevokeToken { .. }
            | Command::CreateTopic { .. }
            | Command::DeleteTopic { .. }
            | Command::AddReplica { .. }
            | Command::ReplicaVoter { .. }
            | Command::CreateVm { .. }
            | Command::StopVm { .. }
            | Command::StartVm { .. }
            | Command::DeleteVm { .. }
            | Command::AssignVm { .. }
            | Command::ExplainVm { .. }
            | Command::ReportVm { .. }
            | Command::TrimOutbox { .. }
            | Command::DrainNode { .. }
            | Command::RemoveNode { .. }
            | Command::NodeLost { .. }
            | Command::ForgetNode { .. }
            | Command::RemoveReplica { .. }
            | Command::EvictVm { .. }
            | Command::RetireReplica { .. }
            | Command::SetClusterVersion { .. } => ClusterVersion::V1,
            Command::PutKey { .. }
            | Command::DeleteKeys { .. }
            | Command::GrantLease { .. }
            | Command::EndLease { .. }
            | Command::HoldVersion { .. } => ClusterVersion::V2,
            Command::Once { command, .. } => command.since().max(ClusterVersion::V2),
        }
    }
}

impl Metadata {
    /// Members that cannot be in a cluster at `version`.
    pub fn unable(&self, version: ClusterVersion) -> impl Iterator<Item = &NodeRecord> + '_ {
        self.nodes.values().filter(move |node| !node.member.versions.contains(version))
    }

    /// The version that the cluster can rise to now: all members can it, and nobody holds it back.
    #[must_use]
    pub fn next_version(&self) -> Option<ClusterVersion> {
        let most = self.nodes.values().map(|node| node.member.versions.max);
        let all_can = if planted(Plant::VersionNotAwaited) { most.max() } else { most.min() }?;
        let next = self.version_hold.map_or(all_can, |hold| all_can.min(hold.max(self.cluster_version)));
        let able = planted(Plant::VersionNotAwaited) || self.unable(next).next().is_none();
        (next > self.cluster_version && able).then_some(next)
    }

    /// Why something that came with version `since` is not done yet, and who must be upgraded; `None`: it may be done.
    #[must_use]
    pub fn too_early(&self, since: ClusterVersion) -> Option<String> {
        if since <= self.cluster_version {
            return None;
        }
        let active = self.cluster_version;
        let old = names(self.unable(since));
        let wait = match (old.is_empty(), self.version_hold) {
            (false, _) => format!("upgrade muster on {old}"),
            (true, Some(hold)) if hold < since => {
                format!("an operator holds the cluster at {hold} (`muster cluster release`)")
            }
            (true, _) => "all nodes can it, so it will be active in a moment: try again".to_owned(),
        };
        Some(format!("this needs cluster version {since}, the cluster is at {active}: {wait}"))
    }

    /// Why a node cannot be a member as it is.
    pub(crate) fn misfit(&self, versions: VersionRange) -> Option<CommandResult> {
        let objection = versions.objection(self.cluster_version)?;
        mark(Mark::VersionRefused);
        Some(refuse(ErrorCode::UnsupportedVersion, objection))
    }

    pub(crate) fn set_cluster_version(&mut self, context: Context, version: ClusterVersion) -> CommandResult {
        if version <= self.cluster_version {
            return CommandResult::Done;
        }
        let old = names(self.unable(version));
        if !old.is_empty() && !planted(Plant::VersionNotAwaited) {
            // A member came, or came back as an older one, since this was proposed.
            mark(Mark::VersionRaisedTooEarly);
            let message = format!("cluster version {version} has to wait for {old}");
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        let from = std::mem::replace(&mut self.cluster_version, version);
        mark(Mark::VersionRaised);
        let event = json!({ "event": "cluster.version", "version": version.0, "from": from.0 });
        self.publish(context, "cluster", event);
        CommandResult::Done
    }

    pub(crate) fn hold_version(&mut self, context: Context, at: Option<ClusterVersion>) -> CommandResult {
        if let Some(at) = at.filter(|at| *at < self.cluster_version) {
            let active = self.cluster_version;
            let message =
                format!("the cluster is at cluster version {active} already, and there is no way back to {at}");
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        if self.version_hold != at {
            self.version_hold = at;
            let event = json!({ "event": "cluster.version_hold", "at": at.map(|at| at.0) });
            self.publish(context, "cluster", event);
        }
        CommandResult::Done
    }
}

/// `n2 (can 1), n3 (can 1)`.
fn names<'a>(nodes: impl Iterator<Item = &'a NodeRecord>) -> String {
    let name = |node: &NodeRecord| format!("{} (can {})", node.member.name, node.member.versions);
    nodes.map(name).collect::<Vec<_>>().join(", ")
}
