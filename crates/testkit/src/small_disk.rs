//! A disk that is soon full.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::process::run_as_root;

/// A file system in memory of a few MiB, gone with this value. Needs root or sudo without a password.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `path`, which is made if it is missing.
    ///
    /// # Errors
    /// If the mount is refused.
    pub fn mount(path: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let options = format!("size={mebibytes}m,mode=0777");
        run_as_root(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &path.display().to_string()])?;
        Ok(SmallDisk { path: path.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills what is left with one file, to the last byte.
    ///
    /// # Errors
    /// If that fails for any reason but the full disk.
    pub fn fill(&self) -> anyhow::Result<()> {
        use std::io::{ErrorKind, Write};
        let mut file = std::fs::File::create(self.filler())?;
        for block in [1 << 20, 4096, 1] {
            let zeros = vec![0u8; block];
            loop {
                match file.write_all(&zeros) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("cannot fill the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn free(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.filler()).context("cannot free the disk")
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps it until it is closed.
        if let Err(error) = run_as_root(&["umount", "--lazy", &self.path.display().to_string()]) {
            eprintln!("testkit: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_frees_and_vanishes() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("small");
        let disk = SmallDisk::mount(&path, 2)?;
        disk.fill()?;
        assert!(std::fs::write(path.join("more"), [1]).is_err(), "a full disk took a byte");
        disk.free()?;
        std::fs::write(path.join("more"), [1])?;
        drop(disk);
        assert!(!path.join("more").exists(), "it is still mounted");
        Ok(())
    }
}
