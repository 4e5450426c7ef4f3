//! How a process finds its place: it forms a cluster, joins one, or returns to the one it was in.

use base::{ClusterId, ClusterVersion, Incarnation, NodeId};
use engine::Formation;
use transport::Transport;
use wire::{JoinRequest, JoinToken, Member};

use crate::data_dir::{ClusterRecord, DataDir};
use crate::error::NodeError;

/// Finds the record of this node's cluster, or makes it; durable on return. The incarnation is a new one.
pub(crate) async fn find_place(
    data: &DataDir,
    token: Option<&JoinToken>,
    transport: &Transport,
    me: &Member,
) -> Result<ClusterRecord, NodeError> {
    let record = match (data.load()?, token) {
        (Some(known), token) => {
            if let Some(token) = token.filter(|token| token.cluster != known.cluster) {
                return Err(NodeError::Config(format!(
                    "{} belongs to cluster {}, the token is for cluster {}: choose an empty --data-dir to join that one",
                    data.path().display(),
                    known.cluster,
                    token.cluster
                )));
            }
            data.check_version(&known, me.versions)?;
            if token.is_some() {
                tracing::info!(node = %known.node, cluster = %known.cluster, "a member already: the token is not needed");
            }
            ClusterRecord { incarnation: Incarnation(known.incarnation.0 + 1), ..known }
        }
        (None, Some(token)) => join(token, transport, me).await?,
        (None, None) => ClusterRecord {
            cluster: ClusterId(random()?),
            node: NodeId(1),
            incarnation: Incarnation(1),
            formed: false,
            joined: None,
            seed: seed()?,
            cluster_version: ClusterVersion::default(),
            recovery: None,
        },
    };
    data.save(&record)?;
    Ok(record)
}

async fn join(token: &JoinToken, transport: &Transport, me: &Member) -> Result<ClusterRecord, NodeError> {
    let request = JoinRequest { cluster: token.cluster, token_id: token.id, secret: token.secret, member: me.clone() };
    let accepted = transport.join(&token.seeds, request).await?;
    Ok(ClusterRecord {
        cluster: accepted.cluster,
        node: accepted.node,
        incarnation: Incarnation(1),
        formed: false,
        joined: Some(accepted),
        seed: seed()?,
        cluster_version: ClusterVersion::default(),
        recovery: None,
    })
}

/// How the core is to begin.
pub(crate) fn formation(record: &ClusterRecord) -> Formation {
    match (&record.joined, record.formed) {
        (_, true) => Formation::Restart,
        (Some(accepted), false) => Formation::Join(Box::new(accepted.clone())),
        (None, false) => Formation::Bootstrap,
    }
}

fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| NodeError::Start { what: "without random bytes", reason: error.to_string() })?;
    Ok(bytes)
}

fn seed() -> Result<u64, NodeError> {
    random().map(u64::from_le_bytes)
}
