//! `muster recover`: the majority is gone for good, and this node's data directory is to be the whole cluster (decision
//! 0012). Works on a directory that no process runs on, and holds its lock meanwhile.
//!
//! The new journal is written beside the old one, which is only read. The record of the cluster names the one that counts:
//! replacing that file is the moment at which the recovery happens, as a whole or not at all.

mod report;

use std::path::{Path, PathBuf};

use base::limits::WAL_SEGMENT_BYTES;
use base::{RecoveryId, VersionRange};
use engine::recover::Survivor;
use journal::{DiskDone, DiskError, DiskOpKind};
use runtime::Clock;

pub use report::{Comparison, LogReport, MemberReport, PartitionReport, Report, compare};

use crate::data_dir::{ClusterRecord, DataDir, Recovery};
use crate::disk::Files;
use crate::error::NodeError;
use crate::formation;

/// A data directory that was looked into, locked until this is dropped.
pub struct Inspection {
    data: DataDir,
    record: ClusterRecord,
    survivor: Survivor,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Of the cluster, from now on.
    pub incarnation: u64,
    /// Which recovery that is, in hexadecimal digits.
    pub recovery: String,
    /// The journal as it was, which nothing needs any more.
    pub old_journal: PathBuf,
}

/// Reads what is left in a data directory; changes nothing in it.
///
/// # Errors
/// If there is no member's data, a process runs on it, or its journal cannot be read.
pub fn inspect(data_dir: &Path) -> Result<Inspection, NodeError> {
    if !crate::Config::is_member(data_dir) {
        return Err(NodeError::Config(format!("{} holds no member of a cluster", data_dir.display())));
    }
    let data = DataDir::open(data_dir)?;
    let Some(record) = data.load()? else {
        return Err(NodeError::Config(format!("{} holds no member of a cluster", data_dir.display())));
    };
    data.check_version(&record, VersionRange::BINARY)?;
    let files = Files::of(data.journal());
    let survivor = engine::recover::inspect(record.node, WAL_SEGMENT_BYTES, &mut |kind| only_read(&files, &kind))
        .map_err(|source| NodeError::Recover { path: data.journal().to_path_buf(), source })?;
    Ok(Inspection { data, record, survivor })
}

/// Carries out what changes nothing, and says of everything else that it is done.
fn only_read(files: &Files, kind: &DiskOpKind) -> Result<DiskDone, DiskError> {
    match kind {
        DiskOpKind::List | DiskOpKind::Read { .. } => files.carry_out(kind),
        DiskOpKind::Create { .. }
        | DiskOpKind::Write { .. }
        | DiskOpKind::Rename { .. }
        | DiskOpKind::Remove { .. } => Ok(DiskDone::Done),
    }
}

impl Inspection {
    /// What was found, and what a recovery would lose.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { recovered: self.is_recovered(), ..Report::of(&self.survivor, self.data.path()) }
    }

    /// Whether this was done already, and no other node has joined since: then nobody is lost. (One that joined is in the
    /// table before anything else, and out of it after everything else.)
    fn is_recovered(&self) -> bool {
        let state = &self.survivor.metadata;
        let here = self.record.recovery.is_some_and(|recovery| recovery.incarnation == state.cluster_incarnation);
        here && state.nodes.len() == 1
    }

    /// Makes this data directory the whole cluster; durable on return.
    ///
    /// # Errors
    /// If the new journal cannot be written: then everything is as it was.
    pub fn recover(self) -> Result<Recovered, NodeError> {
        let recoveries = self.record.recoveries() + 1;
        let (old, new) = (self.data.journal().to_path_buf(), self.data.journal_after(recoveries));
        // What an attempt that came to nothing left behind.
        match std::fs::remove_dir_all(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NodeError::file("remove", &new)(error));
            }
            _ => {}
        }
        let store = self.data.store_in(&new)?;
        let recovery = RecoveryId(formation::random()?);
        let (from, to) = (Files::of(&old), Files::of(&new));
        let state = engine::recover::recover(
            &self.survivor,
            WAL_SEGMENT_BYTES,
            (&mut |kind| only_read(&from, &kind), &mut |kind| to.carry_out(&kind)),
            (store, recovery, Clock.now().wall),
        );
        let state = state.map_err(|source| NodeError::Recover { path: new.clone(), source })?;
        let incarnation = state.cluster_incarnation;
        self.data.save(&ClusterRecord {
            recovery: Some(Recovery { incarnation, count: recoveries, id: Some(recovery) }),
            // Whoever admitted this node is gone.
            joined: None,
            formed: true,
            outdone: None,
            ..self.record
        })?;
        Ok(Recovered { incarnation: incarnation.0, recovery: recovery.to_string(), old_journal: old })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base::{ClusterId, ClusterVersion, EndpointId, Incarnation, Mono, NodeId, Now, Wall, limits};
    use engine::{CoreConfig, Effect, Event, Formation, NodeCore};
    use wire::{Member, NodeAddress};

    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    /// A node alone on a directory, until it has nothing more to do.
    fn live(data: &DataDir, formation: Formation) -> NodeCore {
        let address = NodeAddress { endpoint: EndpointId([1; 32]), ..NodeAddress::default() };
        let name = "node1".to_owned();
        let config = CoreConfig {
            me: Member { node: NodeId(1), name, address, store: data.store().expect("a name"), ..Member::default() },
            cluster: CLUSTER,
            formation,
            incarnation: Incarnation(1 + data.load().expect("readable").map_or(0, |record| record.recoveries())),
            seed: 1,
            segment_bytes: WAL_SEGMENT_BYTES,
            election_timeout: limits::ELECTION_TIMEOUT_MIN,
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            checkpoint_entries: limits::META_CHECKPOINT_ENTRIES,
            checkpoint_keep_entries: limits::META_CHECKPOINT_KEEP_ENTRIES,
            checkpoint_part_bytes: limits::CHECKPOINT_CHUNK_BYTES,
            checkpoint_bytes_max: limits::CHECKPOINT_BYTES_MAX,
            node_lost_after: limits::NODE_LOST_AFTER,
            observe: false,
        };
        let files = Files::of(data.journal());
        let mut now = Now { mono: Mono(0), wall: Wall(0) };
        let mut core = NodeCore::new(config, now);
        for _ in 0..200 {
            for effect in core.flush(now) {
                match effect {
                    Effect::Disk(op) => {
                        let result = files.carry_out(&op.kind);
                        core.handle(now, Event::Disk { op: op.id, result });
                    }
                    Effect::Work(work) => core.handle(now, Event::Worked(work.carry_out())),
                    Effect::Fatal(reason) => panic!("{reason}"),
                    _ => {}
                }
            }
            now.mono = now.mono.plus(base::Millis(20));
            core.handle(now, Event::Tick);
        }
        assert!(core.status().ready, "{}", core.status().reason);
        core
    }

    /// A member's directory.
    fn member(dir: &Path) -> NodeCore {
        let data = DataDir::open(dir).expect("opens");
        data.store().expect("a name");
        data.save(&ClusterRecord {
            cluster: CLUSTER,
            node: NodeId(1),
            incarnation: Incarnation(1),
            formed: true,
            joined: None,
            seed: 1,
            cluster_version: ClusterVersion(1),
            recovery: None,
            outdone: None,
        })
        .expect("writes");
        live(&data, Formation::Bootstrap)
    }

    /// Every file below, with what is in it.
    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                all.extend(contents(&path));
            } else if path.file_name().is_some_and(|name| name != "lock") {
                all.insert(path.clone(), std::fs::read(&path).expect("readable"));
            }
        }
        all
    }

    #[test]
    fn looking_changes_nothing_and_one_file_decides() {
        let dir = tempfile::tempdir().expect("a directory");
        let before = member(dir.path()).metadata().clone();
        let files = contents(dir.path());
        let report = inspect(dir.path()).expect("it is whole").report();
        assert_eq!((report.node, report.incarnation, report.meta.last_index), (1, 0, before.applied));
        assert_eq!(contents(dir.path()), files);

        // An attempt that ended before the record was replaced: nothing has happened, and the next one begins anew.
        let record = std::fs::read(dir.path().join("cluster")).expect("readable");
        let attempt = inspect(dir.path()).expect("it is whole").recover().expect("there is room");
        assert_eq!(attempt.old_journal, dir.path().canonicalize().expect("it is there").join("journal"));
        let kept = |all: &BTreeMap<PathBuf, Vec<u8>>| {
            let old = |path: &&PathBuf| path.starts_with(dir.path().join("journal"));
            all.keys().filter(old).map(|path| all[path].clone()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&contents(dir.path())), kept(&files), "the old journal is as it was");
        std::fs::write(dir.path().join("cluster"), record).expect("writes");
        assert_eq!(inspect(dir.path()).expect("it is whole").report(), report);

        let done = inspect(dir.path()).expect("it is whole").recover().expect("there is room");
        assert_eq!(done.incarnation, 1);
        let data = DataDir::open(dir.path()).expect("opens");
        assert!(data.journal().ends_with("journal-1"));
        assert_eq!(data.load().expect("readable").map(|record| record.cluster_incarnation()), Some(Incarnation(1)));
        let core = live(&data, Formation::Restart);
        assert!(core.metadata().applied > before.applied + limits::RECOVERY_IDS_SKIPPED);
        assert_eq!(core.metadata().cluster_incarnation, Incarnation(1));
        assert_eq!(core.metadata().topics.keys().collect::<Vec<_>>(), before.topics.keys().collect::<Vec<_>>());
    }

    #[test]
    fn survivors_that_are_recovered_apart_are_two_clusters_and_one_that_is_recovered_needs_it_no_more() {
        let (one, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let report = |dir: &tempfile::TempDir| inspect(dir.path()).expect("it is whole").report();
        let recover = |dir: &tempfile::TempDir| {
            drop(member(dir.path()));
            let before = report(dir);
            assert_eq!((before.recovered, &before.recovery), (false, &None));
            inspect(dir.path()).expect("it is whole").recover().expect("there is room")
        };
        let (first, second) = (recover(&one), recover(&other));
        assert_eq!((first.incarnation, second.incarnation), (1, 1));
        assert_ne!(first.recovery, second.recovery);
        let found = compare(&report(&one), &[report(&other)]);
        assert!(found.refusals.iter().any(|why| why.contains("was recovered apart")), "{found:?}");

        let after = report(&one);
        assert_eq!((after.recovered, after.recovery.as_deref()), (true, Some(first.recovery.as_str())));
        let data = DataDir::open(one.path()).expect("opens");
        let id = data.load().expect("readable").and_then(|record| record.recovery_id());
        let core = live(&data, Formation::Restart);
        assert_eq!((core.metadata().recovery, id.map(|id| id.to_string())), (id, Some(first.recovery)));
        drop(data);
        assert!(report(&one).recovered, "it ran alone");
    }

    #[test]
    fn a_directory_that_is_no_members_or_in_use_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(inspect(dir.path()), Err(NodeError::Config(_))));
        assert!(!dir.path().join("lock").exists(), "nothing is made");
        drop(member(dir.path()));
        let _running = DataDir::open(dir.path()).expect("opens");
        assert!(matches!(inspect(dir.path()), Err(NodeError::InUse { .. })));
    }
}
