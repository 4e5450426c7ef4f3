//! What a host remembers of a VM across restarts of its daemon: `record.json` in the VM's directory.
//!
//! It fences (no start or stop below the epoch and incarnation recorded) and it finds a hypervisor again that outlived
//! its daemon. Written by rename, so that it is whole or absent. Not synced: after a power loss no hypervisor is left
//! to find, and the cluster's own epochs fence.

use std::io;
use std::path::{Path, PathBuf};

use base::{VmEpoch, VmId, VmIncarnation};
use serde::{Deserialize, Serialize};

use crate::process::ProcessIdentity;

const FILE: &str = "record.json";
const VERSION: u32 = base::version::VM_RECORD;
/// A record is some hundred bytes; anything larger is not one.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// One VM as this host knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    id: u64,
    pub(crate) name: String,
    epoch: u64,
    incarnation: u64,
    /// True from before the hypervisor is spawned until its end was seen.
    pub(crate) live: bool,
    /// The backend whose hypervisor it is.
    pub(crate) hypervisor: String,
    /// Known once it is spawned.
    pub(crate) process: Option<ProcessIdentity>,
}

impl Record {
    pub(crate) fn new(id: VmId, name: &str, epoch: VmEpoch, incarnation: VmIncarnation) -> Record {
        Record {
            version: VERSION,
            id: id.0,
            name: name.to_owned(),
            epoch: epoch.0,
            incarnation: incarnation.0,
            live: false,
            hypervisor: String::new(),
            process: None,
        }
    }

    pub(crate) fn id(&self) -> VmId {
        VmId(self.id)
    }

    pub(crate) fn epoch(&self) -> VmEpoch {
        VmEpoch(self.epoch)
    }

    pub(crate) fn incarnation(&self) -> VmIncarnation {
        VmIncarnation(self.incarnation)
    }

    /// Reads the record in `directory`; none if there is no file.
    pub(crate) fn read(directory: &Path) -> io::Result<Option<Record>> {
        let path = directory.join(FILE);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(data) if data.len() > RECORD_BYTES_MAX => return Err(damaged(&path, "it is too large")),
            Ok(_) => {}
        }
        let record: Record =
            serde_json::from_slice(&std::fs::read(&path)?).map_err(|error| damaged(&path, &error.to_string()))?;
        match record.version {
            VERSION => Ok(Some(record)),
            other => Err(damaged(&path, &format!("version {other} is unknown"))),
        }
    }

    /// Writes the record into `directory`, whole or not at all.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        let fresh = directory.join(format!("{FILE}.new"));
        std::fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(fresh, directory.join(FILE))
    }
}

/// The directory of VM `id`.
pub(crate) fn directory(vms: &Path, id: VmId) -> PathBuf {
    vms.join(id.to_string())
}

fn damaged(path: &Path, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1 wrote it: it stays readable.
    const V1: &str = r#"{
  "version": 1,
  "id": 7,
  "name": "web",
  "epoch": 2,
  "incarnation": 3,
  "live": true,
  "hypervisor": "qemu",
  "process": null
}"#;

    #[test]
    fn the_first_version_stays_readable_and_a_later_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let expected = Record {
            live: true,
            hypervisor: "qemu".to_owned(),
            ..Record::new(VmId(7), "web", VmEpoch(2), VmIncarnation(3))
        };
        expected.write(directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(directory.path().join(FILE)).unwrap(), V1);
        assert_eq!(Record::read(directory.path()).unwrap(), Some(expected));
        std::fs::write(directory.path().join(FILE), V1.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let refused = Record::read(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("version 2 is unknown"), "{refused}");
    }

    #[test]
    fn records_round_trip_and_damage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), None);
        let mut record = Record::new(VmId(7), "web", VmEpoch(3), VmIncarnation(9));
        record.process = Some(ProcessIdentity { pid: 42, start_ticks: 1000, host_boot_id: "b".into() });
        record.live = true;
        record.write(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), Some(record));
        for damage in ["", "{}", "null", r#"{"version":2}"#] {
            std::fs::write(directory.path().join(FILE), damage).unwrap();
            let error = Record::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains("record.json is damaged"), "{damage:?}: {error}");
        }
    }

    #[test]
    fn a_record_of_the_first_version_is_read_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"id":7,"name":"web","epoch":3,"incarnation":9,"live":true,
            "hypervisor":"qemu","process":{"pid":42,"start_ticks":1000,"host_boot_id":"b"}}"#;
        std::fs::write(directory.path().join(FILE), text).unwrap();
        let record = Record::read(directory.path()).unwrap().unwrap();
        assert_eq!((record.id(), record.epoch(), record.incarnation()), (VmId(7), VmEpoch(3), VmIncarnation(9)));
    }
}
