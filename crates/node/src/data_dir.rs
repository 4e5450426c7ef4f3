//! The data directory: its lock, and the record of which cluster the node belongs to.
//!
//! ```text
//! DIR/lock          held while a process runs; names its pid
//! DIR/identity.key  the node's Ed25519 key
//! DIR/cluster       which cluster, which node, how it came to be (replaced atomically)
//! DIR/reserve       a little space for the record on a full disk
//! DIR/journal/      write-ahead log and checkpoints; `STORE` in it names this data, and is gone with it
//! DIR/journal-N/    the same after the N-th recovery from a lost majority; those before it are kept until somebody removes them
//! DIR/vms, images   virtual machines and what they are made of
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use base::limits::DATA_DIR_RESERVE_BYTES;
use base::{ClusterId, ClusterVersion, Incarnation, NodeId, RecoveryId, VersionRange};
use minicbor::{Decode, Encode};
use runtime::{RestartPolicy, Supervisor, TaskContext, TaskResult, TaskSpec};
use rustix::fs::{FlockOperation, flock};
use wire::JoinAccepted;

use crate::error::NodeError;

/// After a try to write the record that failed.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// What a node remembers of its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ClusterRecord {
    #[n(0)]
    pub cluster: ClusterId,
    #[n(1)]
    pub node: NodeId,
    /// The last start of this node.
    #[n(2)]
    pub incarnation: Incarnation,
    /// The node's own state is durable in the journal: an empty journal means that it was lost.
    #[n(3)]
    pub formed: bool,
    /// How it was admitted; `None` for the node that formed the cluster.
    #[n(4)]
    pub joined: Option<JoinAccepted>,
    /// Seeds this node's choices.
    #[n(5)]
    pub seed: u64,
    /// The highest cluster version at which the node worked: an older muster cannot read what is here.
    #[n(6)]
    #[cbor(default)]
    pub cluster_version: ClusterVersion,
    /// The last time that the cluster was recovered on this node, if ever.
    #[n(7)]
    pub recovery: Option<Recovery>,
    /// A later process of this node than the last one here was at work elsewhere.
    #[n(8)]
    pub outdone: Option<Incarnation>,
}

/// The cluster was recovered from a lost majority, with this node as the survivor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Recovery {
    /// Of the cluster, since then.
    #[n(0)]
    pub incarnation: Incarnation,
    /// So many times on this node: names the directory of its journal.
    #[n(1)]
    pub count: u64,
    /// Which recovery it was.
    #[n(2)]
    pub id: Option<RecoveryId>,
}

impl ClusterRecord {
    /// Of the cluster, as far as the files say.
    pub fn cluster_incarnation(&self) -> Incarnation {
        self.last_recovery().0
    }

    /// Which recovery that incarnation came of, if there was one, and the files say which.
    pub fn recovery_id(&self) -> Option<RecoveryId> {
        self.last_recovery().1
    }

    fn last_recovery(&self) -> (Incarnation, Option<RecoveryId>) {
        let joined = self.joined.as_ref().map(|accepted| (accepted.cluster_incarnation, accepted.recovery));
        joined.max(self.recovery.map(|recovery| (recovery.incarnation, recovery.id))).unwrap_or_default()
    }

    /// How often the cluster was recovered on this node.
    pub fn recoveries(&self) -> u64 {
        self.recovery.map_or(0, |recovery| recovery.count)
    }
}

/// Keeps the record true while the node runs.
pub(crate) struct Keeper {
    data: Arc<DataDir>,
    /// Held while it is written, so that what is written last is the whole of it.
    record: Arc<Mutex<ClusterRecord>>,
    formed: bool,
    version: ClusterVersion,
}

impl Keeper {
    pub fn new(data: Arc<DataDir>, record: ClusterRecord) -> Keeper {
        let (formed, version) = (record.formed, record.cluster_version);
        Keeper { data, record: Arc::new(Mutex::new(record)), formed, version }
    }

    /// Carries out [`engine::Effect::Formed`]; durable on return.
    pub fn formed(&mut self) -> Result<(), String> {
        if std::mem::replace(&mut self.formed, true) {
            return Ok(());
        }
        save(&self.data, &self.record, |record| record.formed = true).map_err(|error| error.to_string())
    }

    /// Carries out [`engine::Effect::Outdone`]. The node ends in any case.
    pub fn outdone(&mut self, by: Incarnation) {
        if let Err(error) = save(&self.data, &self.record, |record| record.outdone = Some(by)) {
            tracing::warn!(%error, "the record does not say that this data is an older copy");
        }
    }

    /// The cluster is at `active`. The journal knows it too; the record says it before the journal is touched. It is
    /// written beside the core, whose heartbeats must not wait for a disk, and tried again until it is: durable when the
    /// task that does it in `tree` has ended.
    pub fn at_version(&mut self, active: ClusterVersion, tree: &Supervisor) {
        if active <= self.version {
            return;
        }
        self.version = active;
        // It ends with the keeper: the directory is not held for it.
        let (data, record) = (Arc::downgrade(&self.data), self.record.clone());
        let task = move |context: TaskContext| {
            let written = write_version(data.clone(), record.clone(), active);
            async move {
                tokio::select! {
                    () = context.cancel.cancelled() => Ok(()),
                    written = written => written,
                }
            }
        };
        let spec = TaskSpec::new(format!("record/version/{active}")).policy(RestartPolicy::OnFailure);
        if let Err(error) = tree.start(spec, task) {
            // The next start of the node writes it.
            tracing::warn!(%error, version = %active, "the record does not name the cluster version");
        }
    }
}

/// Writes into the record that the cluster is at `active`, and tries again until that is done.
async fn write_version(data: Weak<DataDir>, record: Arc<Mutex<ClusterRecord>>, active: ClusterVersion) -> TaskResult {
    let mut told = false;
    while let Some(data) = data.upgrade() {
        let record = record.clone();
        let change = move |record: &mut ClusterRecord| record.cluster_version = record.cluster_version.max(active);
        match tokio::task::spawn_blocking(move || save(&data, &record, change)).await? {
            Ok(()) => {
                tracing::info!(version = %active, "the cluster works at this cluster version");
                return Ok(());
            }
            Err(error) if !told => {
                tracing::warn!(%error, version = %active, "the record does not name the cluster version yet");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RECORD_RETRY).await;
    }
    Ok(())
}

fn save(
    data: &DataDir,
    record: &Mutex<ClusterRecord>,
    change: impl FnOnce(&mut ClusterRecord),
) -> Result<(), NodeError> {
    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
    change(&mut record);
    data.save(&record)
}

/// The directory, locked for this process.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    journal: PathBuf,
    lock: File,
}

impl DataDir {
    /// Makes the directory if need be and locks it.
    pub fn open(path: &Path) -> Result<DataDir, NodeError> {
        std::fs::create_dir_all(path).map_err(NodeError::file("make the directory", path))?;
        let path = path.canonicalize().map_err(NodeError::file("open", path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(NodeError::file("open", &lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "of unknown pid".to_owned() } else { pid.trim().to_owned() };
            return Err(NodeError::InUse { path, pid });
        }
        let write = |mut lock: &File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        // A full disk must not keep a node from starting: the lock holds without its text.
        if let Err(error) = write(&lock) {
            tracing::warn!(%error, path = %lock_path.display(), "the lock does not name this process");
        }
        let mut data = DataDir { journal: path.join("journal"), path, lock };
        data.fill_reserve();
        // A record that is damaged is told of by whoever needs it.
        if let Ok(Some(record)) = data.load() {
            data.journal = data.journal_after(record.recoveries());
        }
        Ok(data)
    }

    /// Keeps a little space for the record, so that a node can start on a full disk.
    fn fill_reserve(&self) {
        let path = self.reserve_path();
        let filled = std::fs::metadata(&path).is_ok_and(|found| found.len() == DATA_DIR_RESERVE_BYTES as u64);
        // A disk that is full already has nothing to keep; the next start tries again.
        if !filled && std::fs::write(&path, vec![0; DATA_DIR_RESERVE_BYTES]).is_err() {
            let _ = std::fs::remove_file(&path);
        }
    }

    fn reserve_path(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// Names this directory, on this machine, until it is booted again. No copy has the same name, and as long as the lock
    /// is held nobody else works under it.
    pub fn home(&self) -> Result<u64, NodeError> {
        let file = self.lock.metadata().map_err(NodeError::file("look at the lock in", &self.path))?;
        // On another machine, or after another boot, devices and files may have the same numbers.
        let boot = match std::fs::read("/proc/sys/kernel/random/boot_id") {
            Ok(boot) => boot,
            // Then each process has a name of its own: a restart waits until the connections of the one before have ended.
            Err(_) => crate::formation::random::<16>()?.to_vec(),
        };
        let parts: Vec<u64> = [file.dev(), file.ino()].into_iter().chain(boot.into_iter().map(u64::from)).collect();
        Ok(base::hash64(&parts))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the journal is.
    pub fn journal(&self) -> &Path {
        &self.journal
    }

    /// Where it is after so many recoveries.
    pub fn journal_after(&self, recoveries: u64) -> PathBuf {
        self.path.join(if recoveries == 0 { "journal".to_owned() } else { format!("journal-{recoveries}") })
    }

    /// The name of the data in the journal's directory, which is made if need be; durable on return.
    pub fn store(&self) -> Result<u64, NodeError> {
        self.store_in(&self.journal)
    }

    /// The same of another directory of a journal.
    pub fn store_in(&self, dir: &Path) -> Result<u64, NodeError> {
        let path = dir.join("STORE");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let damaged = || NodeError::State { path, dir: self.path.clone(), reason: "not a number".into() };
                return u64::from_str_radix(text.trim(), 16).map_err(|_| damaged());
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(NodeError::file("read", &path)(error)),
        }
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|error| NodeError::Start { what: "without random bytes", reason: error.to_string() })?;
        // 0 stands for none.
        let store = u64::from_le_bytes(bytes).max(1);
        let temporary = dir.join("STORE.tmp");
        let write = || {
            std::fs::create_dir_all(dir)?;
            let mut file = File::create(&temporary)?;
            writeln!(file, "{store:016x}")?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(NodeError::file("write", &path))?;
        Ok(store)
    }

    pub fn identity(&self) -> PathBuf {
        self.path.join("identity.key")
    }

    /// What a node has made here that is there.
    pub fn left_behind(&self) -> Option<PathBuf> {
        [self.identity(), self.journal.join("STORE")].into_iter().find(|path| path.exists())
    }

    fn record_path(&self) -> PathBuf {
        self.path.join("cluster")
    }

    /// The record, if the node has one.
    pub fn load(&self) -> Result<Option<ClusterRecord>, NodeError> {
        let path = self.record_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NodeError::file("read", &path)(error)),
        };
        let damaged = |reason: String| NodeError::State { path: path.clone(), dir: self.path.clone(), reason };
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("too short".into()))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("checksum".into()));
        }
        wire::decode(body).map(Some).map_err(|error| match error {
            wire::WireError::UnknownFormat(format) => NodeError::Newer {
                path: path.clone(),
                written: format!("in format {format}"),
                reads: "format 1".into(),
            },
            error => damaged(error.to_string()),
        })
    }

    /// Refuses data that a newer muster has written, before anything is read or changed.
    pub fn check_version(&self, record: &ClusterRecord, versions: VersionRange) -> Result<(), NodeError> {
        let version = record.cluster_version;
        if version <= versions.max {
            return Ok(());
        }
        let (path, written) = (self.path.clone(), format!("at cluster version {version}"));
        Err(NodeError::Newer { path, written, reads: format!("cluster versions {versions}") })
    }

    /// Replaces the record; durable on return.
    pub fn save(&self, record: &ClusterRecord) -> Result<(), NodeError> {
        let mut bytes = wire::encode(record).to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let (path, temporary) = (self.record_path(), self.path.join("cluster.tmp"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        let written = match write() {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                let _ = std::fs::remove_file(self.reserve_path());
                let written = write();
                self.fill_reserve();
                written
            }
            written => written,
        };
        written.map_err(NodeError::file("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Fixtures;

    #[test]
    fn the_encoding_of_the_record() {
        let mut fixtures = Fixtures::of(env!("CARGO_MANIFEST_DIR"), "cluster");
        fixtures.value(ClusterVersion::V1, "founder", &record());
        let joined = JoinAccepted {
            cluster: ClusterId([1; 16]),
            cluster_incarnation: Incarnation(1),
            node: NodeId(2),
            meta_replica: base::ReplicaId(4),
            members: vec![wire::Member::default()],
            meta_replicas: vec![base::ReplicaId(4)],
            recovery: None,
        };
        let id = Some(RecoveryId([9; 16]));
        let later = JoinAccepted { recovery: id, ..joined.clone() };
        fixtures.value(ClusterVersion::V1, "joined", &ClusterRecord { joined: Some(joined), ..record() });
        fixtures.value(ClusterVersion::V1, "outdone", &ClusterRecord { outdone: Some(Incarnation(9)), ..record() });
        fixtures.value(ClusterVersion::V1, "joined_recovered", &ClusterRecord { joined: Some(later), ..record() });
        let recovery = Recovery { incarnation: Incarnation(2), count: 1, id: None };
        let survivor = |recovery| ClusterRecord { recovery: Some(recovery), ..record() };
        fixtures.value(ClusterVersion::V1, "survivor", &survivor(recovery));
        fixtures.value(ClusterVersion::V1, "survivor_named", &survivor(Recovery { id, ..recovery }));
        fixtures.finish();
    }

    #[test]
    fn a_record_says_of_which_recovery_its_node_is() {
        let id = |n: u8| Some(RecoveryId([n; 16]));
        let said = |record: &ClusterRecord| (record.cluster_incarnation().0, record.recovery_id());
        assert_eq!(said(&record()), (0, None));
        let accepted = JoinAccepted {
            cluster: ClusterId([1; 16]),
            cluster_incarnation: Incarnation(1),
            node: NodeId(2),
            meta_replica: base::ReplicaId(4),
            members: Vec::new(),
            meta_replicas: Vec::new(),
            recovery: id(7),
        };
        let joined = ClusterRecord { joined: Some(accepted), ..record() };
        assert_eq!(said(&joined), (1, id(7)));
        let recovery = Some(Recovery { incarnation: Incarnation(2), count: 1, id: id(3) });
        assert_eq!(said(&ClusterRecord { recovery, ..joined }), (2, id(3)));
    }

    fn record() -> ClusterRecord {
        ClusterRecord {
            cluster: ClusterId([1; 16]),
            node: NodeId(2),
            incarnation: Incarnation(3),
            formed: true,
            joined: None,
            seed: 4,
            cluster_version: ClusterVersion(1),
            recovery: None,
            outdone: None,
        }
    }

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Waits until nothing of the record is left to be written.
    async fn written(tree: &Supervisor) {
        while !tree.list().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_a_newer_muster_wrote_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = Arc::new(DataDir::open(dir.path()).expect("opens"));
        let tree = Supervisor::new(tokio::runtime::Handle::current());
        let mut keeper = Keeper::new(data.clone(), record());
        keeper.at_version(ClusterVersion(3), &tree);
        tokio::time::timeout(PATIENCE, written(&tree)).await.expect("in time");
        let kept = data.load().expect("readable").expect("there");
        let can = |max: u16| VersionRange { min: ClusterVersion(1), max: ClusterVersion(max) };
        assert!(data.check_version(&kept, can(3)).is_ok());
        let error = data.check_version(&kept, can(2)).expect_err("too new").to_string();
        assert!(error.contains("at cluster version 3") && error.contains("reads cluster versions 1 to 2"), "{error}");

        let mut body = wire::encode(&kept).to_vec();
        body[0] = 9;
        body.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        std::fs::write(dir.path().join("cluster"), body).expect("writes");
        let error = data.load().expect_err("another format").to_string();
        assert!(error.contains("in format 9") && error.contains("upgrade muster"), "{error}");
    }

    #[tokio::test]
    async fn the_record_names_the_cluster_version_as_soon_as_it_can_be_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = Arc::new(DataDir::open(dir.path()).expect("opens"));
        let path = dir.path().join("cluster");
        // In its place is something that is not replaced.
        std::fs::create_dir(&path).expect("made");
        let tree = Supervisor::new(tokio::runtime::Handle::current());
        let mut keeper = Keeper::new(data.clone(), record());
        keeper.at_version(ClusterVersion(3), &tree);
        let waited = tokio::time::timeout(RECORD_RETRY / 2, written(&tree)).await;
        assert!(waited.is_err(), "it cannot be written, and yet it ended");
        assert_eq!(tree.list()[0].name, "record/version/3");
        std::fs::remove_dir(&path).expect("removed");
        tokio::time::timeout(PATIENCE, written(&tree)).await.expect("in time");
        assert_eq!(data.load().expect("readable").map(|kept| kept.cluster_version), Some(ClusterVersion(3)));
    }

    #[test]
    fn the_record_is_kept_and_damage_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("opens");
        assert_eq!(data.load().expect("readable"), None);
        data.save(&record()).expect("writes");
        assert_eq!(data.load().expect("readable"), Some(record()));
        let path = dir.path().join("cluster");
        let bytes = std::fs::read(&path).expect("there");
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).expect("writes");
            assert!(matches!(data.load(), Err(NodeError::State { .. })), "byte {at}");
        }
    }

    #[test]
    fn the_data_keeps_its_name_until_it_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("opens");
        let store = data.store().expect("made");
        assert_eq!(data.store().expect("read"), store);
        std::fs::remove_dir_all(data.journal()).expect("wiped");
        let other = data.store().expect("made anew");
        assert!(store != other && store != 0 && other != 0, "{store} and {other}");
        std::fs::write(data.journal().join("STORE"), "what?").expect("writes");
        assert!(matches!(data.store(), Err(NodeError::State { .. })));
    }

    #[test]
    fn a_directory_has_a_name_of_its_own_that_outlives_its_processes_and_no_copy_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        let home = |path: &Path| DataDir::open(path).expect("opens").home().expect("has a name");
        let name = home(&here);
        assert_eq!(home(&here), name);
        std::fs::create_dir(&there).expect("made");
        std::fs::copy(here.join("lock"), there.join("lock")).expect("copied");
        assert_ne!(home(&there), name);
        // Moved as a whole, it is the same.
        let moved = dir.path().join("moved");
        std::fs::rename(&here, &moved).expect("moved");
        assert_eq!(home(&moved), name);
    }

    #[test]
    fn a_second_start_is_refused_and_names_the_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = DataDir::open(dir.path()).expect("opens");
        let error = DataDir::open(dir.path()).expect_err("locked").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DataDir::open(dir.path()).expect("free again");
    }
}
