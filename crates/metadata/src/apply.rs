//! Applying a command: exactly once per session and sequence, then one module per subject.

use base::{ErrorCode, NodeId, TopicId, Wall, hash64};

use crate::{Command, CommandEnvelope, CommandResult, Metadata};

/// What every command may need besides its own fields.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// Index of the entry.
    pub index: u64,
    /// The proposing leader's clock.
    pub now: Wall,
    /// Nothing is born on these.
    pub silent: &'a [NodeId],
}

pub(crate) fn refuse(code: ErrorCode, message: impl Into<String>) -> CommandResult {
    CommandResult::Refused { code, message: message.into() }
}

impl Metadata {
    /// Applies the command at `index`. A command that was applied before (same session and sequence) changes nothing
    /// and gives the same result again; one of an unknown session is refused.
    pub fn apply(&mut self, index: u64, envelope: &CommandEnvelope) -> CommandResult {
        debug_assert!(index > self.applied, "index {index} applied twice");
        self.applied = index;
        let context = Context { index, now: envelope.wall, silent: &envelope.silent };
        // A leader proposes nothing of the kind: what was active once stays so.
        if let Some(reason) = self.too_early(envelope.version.max(envelope.command.since())) {
            return refuse(ErrorCode::UnsupportedVersion, reason);
        }
        let Some(origin) = envelope.origin else {
            return self.dispatch(context, &envelope.command);
        };
        if let Err(known) = self.begin_in_session(origin) {
            return known;
        }
        let result = self.dispatch(context, &envelope.command);
        self.end_in_session(origin, result.clone());
        result
    }

    /// Notes that an entry without effect on the tables (a Noop, a membership change) is applied.
    pub fn skip(&mut self, index: u64) {
        self.applied = index;
    }

    pub(crate) fn dispatch(&mut self, context: Context, command: &Command) -> CommandResult {
        match command {
            Command::OpenSession { node, incarnation } => self.open_session(*node, *incarnation),
            Command::AdmitNode { token_id, secret, member } => self.admit_node(context, *token_id, secret, member),
            Command::UpdateNode { member } => self.update_node(context, member),
            Command::CreateToken { secret_hash, expires, uses } => {
                self.create_token(context, *secret_hash, *expires, *uses)
            }
            Command::RevokeToken { token_id } => self.revoke_token(*token_id),
            Command::CreateTopic { name, topic_id, partitions, replication_factor, config } => {
                if let Err(reason) = crate::free_topic_name(name) {
                    return refuse(ErrorCode::InvalidArgument, reason);
                }
                self.create_topic(context, name, *topic_id, *partitions, *replication_factor, config)
            }
            Command::DeleteTopic { name } => self.delete_topic(context, name),
            Command::AddReplica { group, node } => self.add_replica(*group, *node),
            Command::ReplicaVoter { group, replica, demoted } => self.replica_voter(*group, *replica, !demoted),
            Command::RetireReplica { group, replica } => self.retire_replica(*group, *replica),
            Command::RemoveReplica { group, replica } => self.remove_replica(*group, *replica),
            Command::DrainNode { node, drain } => self.drain_node(context, *node, *drain),
            Command::RemoveNode { node, dead, successor } => self.remove_node(context, *node, *dead, *successor),
            Command::NodeLost { node, lost } => self.node_lost(context, *node, *lost),
            Command::ForgetNode { node } => self.forget_node(context, *node),
            Command::EvictVm { vm, epoch } => self.evict_vm(context, *vm, *epoch),
            Command::CreateVm { name, spec } => self.create_vm(context, name, spec),
            Command::StopVm { name } => self.change_vm(context, name, |vm| compute::lifecycle::stop(vm, context.now)),
            Command::StartVm { name } => self.change_vm(context, name, |vm| compute::lifecycle::start(vm, context.now)),
            Command::DeleteVm { name } => {
                self.change_vm(context, name, |vm| compute::lifecycle::delete(vm, context.now))
            }
            Command::AssignVm { vm, node, epoch, placement } => {
                self.assign_vm(context, *vm, *node, *epoch, placement.clone())
            }
            Command::ExplainVm { vm, reason } => self.explain_vm(context, *vm, reason),
            Command::ReportVm { node, report } => self.report_vm(context, *node, report),
            Command::TrimOutbox { through } => self.trim_outbox(*through),
            Command::PutKey { key, value, expect, life } => self.put_key(context, key, value, expect.as_ref(), *life),
            Command::DeleteKeys { key, prefix: false, expect } => self.delete_key(context, key, expect.as_ref()),
            Command::DeleteKeys { key, prefix: true, .. } => self.delete_prefix(context, key),
            Command::Once { key, command } => self.apply_once(context, *key, command),
            Command::GrantLease { ttl_ms } => self.grant_lease(context, *ttl_ms),
            Command::EndLease { lease, expired } => self.end_lease(context, *lease, *expired),
            Command::SetClusterVersion { version } => self.set_cluster_version(context, *version),
            Command::HoldVersion { at } => self.hold_version(context, *at),
        }
    }

    /// A topic id that follows from the entry that makes the topic.
    pub(crate) fn derived_topic_id(&self, index: u64) -> TopicId {
        let cluster = u64::from_le_bytes(self.cluster.0[..8].try_into().expect("a cluster id has 16 bytes"));
        let mut id = [0; 16];
        id[..8].copy_from_slice(&hash64(&[cluster, index, 1]).to_be_bytes());
        id[8..].copy_from_slice(&hash64(&[cluster, index, 2]).to_be_bytes());
        TopicId(id)
    }
}
