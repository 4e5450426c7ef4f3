//! A node's identity: an Ed25519 key, made once and kept.
//!
//! The file holds the 32 secret bytes and nothing else. It is written under another name, synced, and linked into
//! place, so that a crash leaves either no key or a whole one, and two processes that start at once agree on one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base::EndpointId;
use ed25519_dalek::SigningKey;

use crate::error::IdentityError;

const KEY_BYTES: usize = 32;

/// Who this node is on the network.
#[derive(Clone)]
pub struct Identity {
    secret: [u8; KEY_BYTES],
    endpoint: EndpointId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity kept at `path`, made (mode 0600) if there is none. On return it is durable.
    ///
    /// # Errors
    /// If the file cannot be read or made, is damaged, or is readable by others. A damaged key is never replaced.
    pub fn load_or_create(path: &Path) -> Result<Identity, IdentityError> {
        match File::open(path) {
            Ok(file) => Self::read(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::create(path)?;
                let file = File::open(path).map_err(failed("open", path))?;
                Self::read(file, path)
            }
            Err(source) => Err(failed("open", path)(source)),
        }
    }

    /// An identity from secret bytes that are kept elsewhere.
    #[must_use]
    pub fn from_secret(secret: [u8; KEY_BYTES]) -> Identity {
        let endpoint = EndpointId(SigningKey::from_bytes(&secret).verifying_key().to_bytes());
        Identity { secret, endpoint }
    }

    /// The public half, by which other nodes know this one.
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    pub(crate) fn secret_key(&self) -> iroh::SecretKey {
        iroh::SecretKey::from_bytes(&self.secret)
    }

    fn read(file: File, path: &Path) -> Result<Identity, IdentityError> {
        let mode = file.metadata().map_err(failed("inspect", path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(1_024).read_to_end(&mut bytes).map_err(failed("read", path))?;
        match <[u8; KEY_BYTES]>::try_from(bytes.as_slice()) {
            Ok(secret) => Ok(Self::from_secret(secret)),
            Err(_) => Err(IdentityError::Damaged { path: path.to_owned(), bytes: bytes.len() }),
        }
    }

    fn create(path: &Path) -> Result<(), IdentityError> {
        let mut secret = [0; KEY_BYTES];
        getrandom::fill(&mut secret).map_err(|error| IdentityError::Randomness(error.to_string()))?;
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).map_err(|error| IdentityError::Randomness(error.to_string()))?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}.new", u64::from_le_bytes(suffix)));
        let fresh = path.with_file_name(name);
        let written = write_synced(&fresh, &secret).map_err(failed("write", &fresh));
        // A link fails if the name is taken: whoever came first wins, and its key is read back.
        let linked = written.and_then(|()| match std::fs::hard_link(&fresh, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(failed("create", path)),
        });
        // If the removal fails a stray file stays; the key is in place all the same.
        let _ = std::fs::remove_file(&fresh);
        linked?;
        sync_directory(path).map_err(failed("sync the directory of", path))
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.key");
        let first = Identity::load_or_create(&path).expect("made");
        let again = Identity::load_or_create(&path).expect("read");
        assert_eq!(first.endpoint(), again.endpoint());
        assert_eq!(first.secret_key().public().as_bytes(), &first.endpoint().0, "iroh and we agree on the public key");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing is left beside it");
        assert!(!format!("{first:?}").contains(&format!("{:?}", first.secret)), "the secret is not printed");
    }

    #[test]
    fn many_starters_agree_on_one_identity() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.key");
        let starters: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || Identity::load_or_create(&path).expect("made or read").endpoint())
            })
            .collect();
        let ids: std::collections::BTreeSet<_> = starters.into_iter().map(|t| t.join().expect("no panic")).collect();
        assert_eq!(ids.len(), 1);
    }

    #[test]
    fn a_damaged_or_exposed_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.key");
        write_synced(&path, &[7; 31]).expect("written");
        let error = Identity::load_or_create(&path).expect_err("31 bytes are no key").to_string();
        assert!(error.contains("damaged (31 bytes") && error.contains("node.key"), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there").len(), 31);
        std::fs::write(&path, [7; 32]).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode set");
        let error = Identity::load_or_create(&path).expect_err("readable by all").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        let missing = dir.path().join("no/such/dir/node.key");
        let error = Identity::load_or_create(&missing).expect_err("no directory").to_string();
        assert!(error.contains("cannot write") && error.contains("no/such/dir"), "{error}");
    }
}
