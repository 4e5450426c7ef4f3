//! How a process finds its place: it forms a cluster, joins one, or returns to the one it was in.
//!
//! Whoever forms a cluster writes its record before the node has a key or a journal. So one of these without a record is
//! never what is left of a first start that failed: it is what a node that lost the rest has kept, or one that was to join.
//! Neither forms a cluster (docs/decisions/0022-who-forms-a-cluster.md).

use std::path::Path;

use base::{ClusterId, ClusterVersion, Incarnation, NodeId};
use engine::Formation;
use transport::Transport;
use wire::{JoinRequest, JoinToken, Member};

use crate::config::Config;
use crate::data_dir::{ClusterRecord, DataDir};
use crate::error::NodeError;

/// Makes the record of a new cluster if the node is to form one: it has none, no token, and was never anything else. Durable
/// on return. To be called before the node has a key.
///
/// # Errors
/// What says that there is a cluster in which the node was, or to which it belongs, and what to do. Nothing was made then.
pub(crate) fn found_cluster(data: &DataDir, config: &Config) -> Result<(), NodeError> {
    if config.join.is_some() || data.load()?.is_some() {
        return Ok(());
    }
    if let Some(left) = data.left_behind() {
        return Err(lost(data.path(), &left, &config.name));
    }
    if let Some(peer) = config.peers.first() {
        let dir = data.path().display();
        return Err(NodeError::Config(format!(
            "{dir} belongs to no cluster, and --peer {peer} (or `peers`) names a member of one: join it with a token (`muster \
             token create` there). A member whose data is gone is given up first ({}). To form a new cluster, leave out --peer",
            give_up(&config.name)
        )));
    }
    data.save(&ClusterRecord {
        cluster: ClusterId(random()?),
        node: NodeId(1),
        // It has not started yet.
        incarnation: Incarnation(0),
        formed: false,
        joined: None,
        seed: seed()?,
        cluster_version: ClusterVersion::default(),
        recovery: None,
        outdone: None,
    })
}

/// How to give up a node that does not know any more what its cluster calls it: the name that it was told may be another's.
fn give_up(told: &str) -> String {
    format!(
        "`muster node remove` with the name or id that `muster node list` shows for it: it was told to be called {told}, and \
         has another name if a member had that one"
    )
}

/// Why a node that has something and no record does not form a cluster.
fn lost(dir: &Path, left: &Path, name: &str) -> NodeError {
    let (dir, left) = (dir.display(), left.display());
    NodeError::Config(format!(
        "{left} is there, and {dir}/cluster, which says to which cluster it belongs, is not. A node whose data is gone neither \
         comes back as what it was nor forms a cluster beside its own: restore that file if nothing else is lost; if not, give \
         the node up in its cluster ({}), wipe the whole of {dir}, and join anew with a token. If it never was a member, or is \
         to form a new cluster, wipe the whole of {dir}",
        give_up(name)
    ))
}

/// Finds the record of this node's cluster, or joins one; durable on return. The incarnation is a new one.
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
        // It was there when the process began (`found_cluster()`).
        (None, None) => return Err(lost(data.path(), &data.identity(), &me.name)),
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

    fn founds(data: &DataDir, config: &Config) -> Result<ClusterRecord, String> {
        found_cluster(data, config).map_err(|error| error.to_string())?;
        data.load().map_err(|error| error.to_string())?.ok_or_else(|| "no record".to_owned())
    }

    /// Two hosts were told to be called node7: the one that has the name is not to be given up for the other.
    fn names_nobody(error: &str) -> bool {
        let how =
            "`muster node remove` with the name or id that `muster node list` shows for it: it was told to be called";
        error.contains(&format!("{how} node7")) && !error.contains("remove node7")
    }

    #[test]
    fn only_a_node_that_never_was_anything_else_forms_a_cluster_and_a_first_start_that_failed_may_be_repeated() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("opens");
        let config = Config { name: "node7".to_owned(), ..Config::embedded(dir.path()) };
        let record = founds(&data, &config).expect("it is new");
        assert_eq!((record.node, record.incarnation, record.formed), (NodeId(1), Incarnation(0), false));
        // It was killed before it had a key, and after.
        assert_eq!(founds(&data, &config), Ok(record.clone()));
        std::fs::write(data.identity(), [7; 32]).expect("writes");
        data.store().expect("made");
        assert_eq!(founds(&data, &config), Ok(record));

        std::fs::remove_file(dir.path().join("cluster")).expect("removed");
        let refused = |left: &str| {
            let error = founds(&data, &config).expect_err("it forms a cluster of its own");
            let begins = format!("{} is there, and", data.path().join(left).display());
            assert!(error.starts_with(&begins) && names_nobody(&error), "{error}");
            assert!(!dir.path().join("cluster").exists(), "the next start would go on with it");
        };
        refused("identity.key");
        std::fs::remove_file(data.identity()).expect("removed");
        refused("journal/STORE");
        // With a token the cluster decides.
        let token = JoinToken { cluster: CLUSTER, id: 1, secret: [0; 32], seeds: Vec::new(), recovery: None };
        let joins = Config { join: Some(token), ..config.clone() };
        assert_eq!(founds(&data, &joins), Err("no record".to_owned()));
        std::fs::remove_dir_all(data.journal()).expect("wiped");
        assert_eq!(founds(&data, &joins), Err("no record".to_owned()));

        let told = Config { peers: vec![std::net::SocketAddr::from(([10, 0, 0, 2], 7401))], ..config.clone() };
        let error = founds(&data, &told).expect_err("it was told of others");
        assert!(error.contains("--peer 10.0.0.2:7401") && error.contains("leave out --peer"), "{error}");
        assert!(names_nobody(&error), "{error}");
        founds(&data, &config).expect("wiped as a whole, it is new");
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
