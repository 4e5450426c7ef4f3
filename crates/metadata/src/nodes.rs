//! Members: how the cluster is born, and how nodes are admitted.

use base::limits::NODES_MAX;
use base::simulation::{Mark, Plant, mark, planted};
use base::{ClusterId, ErrorCode, NodeId, ReplicaId, Wall};
use serde_json::json;
use wire::Member;

use crate::apply::{Context, refuse};
use crate::{CommandResult, EVENTS_TOPIC, Metadata, NodeLifecycle, NodeRecord};

/// Whoever comes with a member's key and without its data. It may not take its place: it has forgotten how that voted.
fn impostor(known: &NodeRecord) -> String {
    let (node, name) = (known.member.node, &known.member.name);
    format!(
        "its key is that of node {node} ({name}), but its data is not: a node whose data is gone does not come back as what it \
         was. Give node {node} up (`muster node remove {name}`), wipe the whole data directory here, and join anew"
    )
}

impl Metadata {
    /// The state that a new cluster is born with: its first node, which holds the first replica of `__meta`, and the
    /// topic of its events. It begins at the highest cluster version that the node can. Covers index 1.
    #[must_use]
    pub fn bootstrap(cluster: ClusterId, member: Member, now: Wall) -> Metadata {
        let cluster_version = member.versions.max;
        let mut metadata =
            Metadata { cluster, applied: 1, outbox_next: 1, outbox_first: 1, cluster_version, ..Metadata::default() };
        let context = Context { index: 1, now, silent: &[] };
        let node = metadata.insert_node(context, member);
        debug_assert_eq!(node, (NodeId(1), ReplicaId(1)));
        let created = metadata.create_topic(context, EVENTS_TOPIC, metadata.derived_topic_id(1), 1, None, &[]);
        debug_assert!(matches!(created, CommandResult::TopicCreated { .. }), "{created:?}");
        metadata
    }

    /// A member by its endpoint.
    #[must_use]
    pub fn node_of(&self, endpoint: &base::EndpointId) -> Option<&NodeRecord> {
        self.nodes.values().find(|node| node.member.address.endpoint == *endpoint)
    }

    /// What a node is called that wants this name. It keeps the one that it has if another member is called so (an order by
    /// name must reach one node), and if it is a number, which would pass for an id.
    #[must_use]
    pub fn name_of<'a>(&'a self, node: NodeId, wanted: &'a str) -> &'a str {
        match self.nodes.get(&node) {
            Some(record) if !self.is_free(wanted, node) => &record.member.name,
            _ => wanted,
        }
    }

    /// Whether a node may be called so.
    fn is_free(&self, name: &str, node: NodeId) -> bool {
        let number = name.bytes().all(|byte| byte.is_ascii_digit());
        !number && !self.nodes.values().any(|other| other.member.node != node && other.member.name == name)
    }

    pub(crate) fn admit_node(
        &mut self,
        context: Context,
        token_id: u64,
        secret: &[u8; 32],
        member: &Member,
    ) -> CommandResult {
        if let Some(refused) = self.misfit(member.versions) {
            return refused;
        }
        if let Some(known) = self.node_of(&member.address.endpoint).filter(|_| !planted(Plant::AdmittedTwice)) {
            if known.member.store != member.store && !planted(Plant::ImpostorsAdmitted) {
                return refuse(ErrorCode::PermissionDenied, impostor(known));
            }
            // The first answer was lost: the same endpoint is the same node. No use of the token is taken.
            mark(Mark::NodeAdmittedTwice);
            return CommandResult::NodeAdmitted { node: known.member.node, meta_replica: known.meta_replica };
        }
        if self.nodes.len() >= NODES_MAX {
            return refuse(ErrorCode::FailedPrecondition, format!("the cluster has {NODES_MAX} nodes, its maximum"));
        }
        if let Err(refused) = self.use_token(context.now, token_id, secret) {
            return refused;
        }
        let (node, meta_replica) = self.insert_node(context, member.clone());
        CommandResult::NodeAdmitted { node, meta_replica }
    }

    pub(crate) fn update_node(&mut self, context: Context, member: &Member) -> CommandResult {
        let Some(record) = self.nodes.get(&member.node) else {
            return refuse(ErrorCode::NotFound, format!("node {} is not a member", member.node));
        };
        if record.member.address.endpoint != member.address.endpoint {
            let message = format!("node {} has another identity: it must join anew", member.node);
            return refuse(ErrorCode::PermissionDenied, message);
        }
        if ![0, member.store].contains(&record.member.store) {
            return refuse(ErrorCode::PermissionDenied, impostor(record));
        }
        let name = self.name_of(member.node, &member.name).to_owned();
        let member = &Member { name, ..member.clone() };
        if record.member == *member {
            return CommandResult::Done;
        }
        if let Some(refused) = self.misfit(member.versions) {
            return refused;
        }
        let Some(record) = self.nodes.get_mut(&member.node) else { return CommandResult::Done };
        record.member = member.clone();
        let event = json!({ "event": "node.updated", "node": member.node.0, "name": member.name });
        self.publish(context, &member.name, event);
        CommandResult::Done
    }

    fn insert_node(&mut self, context: Context, mut member: Member) -> (NodeId, ReplicaId) {
        self.next.node += 1;
        let node = NodeId(self.next.node);
        let meta_replica = self.next_replica();
        member.node = node;
        if !self.is_free(&member.name, node) {
            member.name = format!("node-{node}");
        }
        while !self.is_free(&member.name, node) {
            member.name.push_str("-2");
        }
        let event = json!({
            "event": "node.joined", "node": node.0, "name": member.name,
            "endpoint": member.address.endpoint.to_string(),
        });
        self.publish(context, &member.name, event);
        let record =
            NodeRecord { member, meta_replica, joined: context.now, lifecycle: NodeLifecycle::Active, successor: None };
        self.nodes.insert(node, record);
        (node, meta_replica)
    }

    pub(crate) fn next_replica(&mut self) -> ReplicaId {
        self.next.replica += 1;
        ReplicaId(self.next.replica)
    }
}
