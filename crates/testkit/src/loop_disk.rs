//! A disk that can stop moving: every write waits, as on a controller that hangs or a network disk whose server is gone.

use std::fs::File;
use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::process::{Process, as_root, run_as_root};
use crate::wait::wait_until;

/// Longest time that freezing, or thawing, may take: the first writes out what is dirty.
const LIMIT: Duration = Duration::from_secs(20);
/// Freezes until its input ends. Nobody can unmount a frozen file system, or end a process that waits for it, and so the thaw
/// rests on nothing that this program would have to do: however it ends, the pipe ends with it. A signal from the terminal
/// goes to all of its children, and must not end this one first.
const KEEPER: &str = "trap '' HUP INT TERM
fsfreeze --freeze \"$1\" || exit 1
echo frozen
read -r line
fsfreeze --unfreeze \"$1\"";

/// An ext4 in a file, mounted, gone with this value. Needs root or sudo without a password.
#[derive(Debug)]
pub struct LoopDisk {
    path: PathBuf,
}

impl LoopDisk {
    /// Makes one in the file `path.image` and mounts it at `path`.
    ///
    /// # Errors
    /// If the file cannot be made, or the mount is refused.
    pub fn mount(path: &Path, mebibytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let image = path.with_extension("image");
        let file = File::create(&image).with_context(|| format!("cannot make {}", image.display()))?;
        file.set_len(mebibytes << 20)?;
        let (image, at) = (image.display().to_string(), path.display().to_string());
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        run_as_root(&["mkfs.ext4", "-q", "-F", "-m", "0", "-E", &format!("root_owner={user}:{group}"), &image])?;
        run_as_root(&["mount", "-o", "loop", &image, &at])?;
        Ok(LoopDisk { path: path.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on whoever writes there waits; what was written before can be read. A process that waits so cannot be killed:
    /// the value that is given must go before those of processes that work there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn freeze(&self) -> anyhow::Result<Frozen<'_>> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let (output, input) = std::io::pipe().context("cannot make a pipe")?;
        let path = self.path.display().to_string();
        let words = as_root(&["sh", "-c", KEEPER, "sh", &path]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let keeper = Process::start_with_input(&mut command, Stdio::from(output), "freeze", folder.path())?;
        let mut frozen = Frozen { disk: self, input: Some(input), keeper, _folder: folder };
        wait_until(LIMIT, &format!("{path} is frozen"), || {
            // One that failed will never freeze it: do not wait for the deadline.
            if let Err(ended) = frozen.keeper.ensure_running() {
                return Ok(Err(ended));
            }
            ensure!(frozen.keeper.output().contains("frozen"), "it is not yet");
            Ok(Ok(()))
        })??;
        Ok(frozen)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps it until it is closed.
        if let Err(error) = run_as_root(&["umount", "--lazy", &self.path.display().to_string()]) {
            eprintln!("testkit: {error:#}");
        }
    }
}

/// A disk on which nothing moves until this value is gone.
#[derive(Debug)]
pub struct Frozen<'a> {
    disk: &'a LoopDisk,
    /// Its end is the thaw.
    input: Option<PipeWriter>,
    keeper: Process,
    _folder: TempDir,
}

impl Frozen<'_> {
    /// Lets the disk move again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn thaw(mut self) -> anyhow::Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> anyhow::Result<()> {
        if self.input.take().is_none() {
            return Ok(());
        }
        let ended = self.keeper.wait(LIMIT)?;
        let path = self.disk.path.display();
        ensure!(ended.status.success(), "{path} was not frozen, or is so still: {}", ended.text());
        Ok(())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            eprintln!("testkit: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::holds_for;

    #[test]
    fn who_writes_to_a_frozen_disk_waits_until_it_moves() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let disk = LoopDisk::mount(&folder.path().join("disk"), 32)?;
        let file = disk.path().join("file");
        std::fs::write(&file, "before")?;
        let frozen = disk.freeze()?;
        assert_eq!(std::fs::read_to_string(&file)?, "before");
        let mut command = Command::new("sh");
        command.args(["-c", "echo after >> \"$0\""]).arg(&file);
        let mut writer = Process::start(&mut command, "writer", folder.path())?;
        holds_for(Duration::from_millis(500), || writer.ensure_running())?;
        frozen.thaw()?;
        assert!(writer.wait(LIMIT)?.status.success());
        assert_eq!(std::fs::read_to_string(&file)?, "beforeafter\n");
        // It can be frozen again, and is thawed by going out of sight.
        drop(disk.freeze()?);
        std::fs::write(&file, "again")?;
        drop(disk);
        assert!(!file.exists(), "it is still mounted");
        Ok(())
    }
}
