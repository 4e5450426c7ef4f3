//! How a process finds its place: it forms a cluster, joins one, or returns to the one it was in.

use std::path::Path;

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
            if let Some(reason) = token.and_then(|token| misfit(data.path(), &known, token)) {
                return Err(NodeError::Config(reason));
            }
            data.check_version(&known, me.versions)?;
            if let Some(later) = known.outdone.filter(|later| known.incarnation < *later) {
                let dir = data.path().display();
                return Err(NodeError::Config(format!(
                    "{dir} is an older copy of the data of node {}: process {later} of the node was at work, the last one here \
                     was {}. Start the node where that process worked, or remove it from the cluster and let this host join \
                     with a token and an empty data directory",
                    known.node, known.incarnation
                )));
            }
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
            outdone: None,
        },
    };
    data.save(&record)?;
    Ok(record)
}

/// Why a node that has a place does not go on there when it is started with a token: it is for another cluster, or for what
/// became of this one without the node. A token of before the last recovery here is one that the node was started with then.
fn misfit(dir: &Path, known: &ClusterRecord, token: &JoinToken) -> Option<String> {
    let dir = dir.display();
    if token.cluster != known.cluster {
        let (here, there) = (known.cluster, token.cluster);
        return Some(format!(
            "{dir} belongs to cluster {here}, the token is for cluster {there}: choose an empty --data-dir to join that one"
        ));
    }
    let incarnation = known.cluster_incarnation();
    let there = token.recovery.filter(|there| there.incarnation >= incarnation)?;
    if there.incarnation > incarnation {
        return Some(format!(
            "{dir} holds a member of incarnation {incarnation} of the cluster, which was recovered without it: the token is for \
             incarnation {}. Wipe the directory to join that one, or start without the token to go on as before",
            there.incarnation
        ));
    }
    let here = known.recovery_id().filter(|here| *here != there.id)?;
    Some(format!(
        "two survivors were recovered apart, and became two clusters of the same name: {dir} is of recovery {here}, the token of \
         recovery {}. Keep one of the two; to keep that of the token, wipe the directory, and join anew with the token",
        there.id
    ))
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
        outdone: None,
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

/// As many random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| NodeError::Start { what: "without random bytes", reason: error.to_string() })?;
    Ok(bytes)
}

fn seed() -> Result<u64, NodeError> {
    random().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use base::RecoveryId;
    use wire::TokenRecovery;

    use super::*;
    use crate::data_dir::Recovery;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    /// A member of an incarnation that came of a recovery, started with a token for such a one.
    fn check(here: (u64, Option<u8>), there: Option<(u64, u8)>, refused: Option<&str>) {
        let id = |n: u8| RecoveryId([n; 16]);
        let recovery = Recovery { incarnation: Incarnation(here.0), count: 1, id: here.1.map(id) };
        let known = ClusterRecord {
            cluster: CLUSTER,
            node: NodeId(1),
            incarnation: Incarnation(1),
            formed: true,
            joined: None,
            seed: 1,
            cluster_version: ClusterVersion::default(),
            recovery: (here.0 > 0).then_some(recovery),
            outdone: None,
        };
        let recovery = there.map(|(incarnation, n)| TokenRecovery { incarnation: Incarnation(incarnation), id: id(n) });
        let token = JoinToken { cluster: CLUSTER, id: 1, secret: [0; 32], seeds: Vec::new(), recovery };
        let reason = misfit(Path::new("/data"), &known, &token);
        match refused {
            Some(word) => assert!(reason.as_ref().is_some_and(|reason| reason.contains(word)), "{reason:?}"),
            None => assert_eq!(reason, None),
        }
        let foreign = misfit(Path::new("/data"), &known, &JoinToken { cluster: ClusterId([2; 16]), ..token });
        assert!(foreign.is_some_and(|reason| reason.contains("/data belongs to cluster 0101")));
    }

    #[test]
    fn a_member_does_not_go_on_by_itself_with_a_token_of_what_became_of_its_cluster_without_it() {
        check((0, None), None, None);
        check((1, Some(7)), None, None);
        check((1, Some(7)), Some((1, 7)), None);
        check((1, Some(7)), Some((1, 8)), Some("recovered apart"));
        check((0, None), Some((1, 7)), Some("recovered without it"));
        check((1, Some(7)), Some((2, 8)), Some("recovered without it"));
        // It came with that token, and was a survivor later; or its files do not say.
        check((2, Some(8)), Some((1, 7)), None);
        check((1, None), Some((1, 7)), None);
    }
}
