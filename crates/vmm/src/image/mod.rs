//! Images on this host's disk: what a guest boots from.
//!
//! An image is a directory `IMAGES/BLAKE3-of-its-inputs/` with `kernel` and `initrd`. It is made in a scratch directory
//! and renamed into place, so that it is whole or absent; makers in several processes take turns by a lock file. The
//! one built-in image, `minimal`, is made from a Linux kernel, a static busybox and the guest agent in this binary.

mod bzimage;
mod cpio;
mod debian;
mod modules;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Mutex, oneshot};

use self::cpio::Archive;
use self::modules::Module;

/// The built-in image.
pub const IMAGE_MINIMAL: &str = "minimal";
/// Every image there is.
pub const IMAGES: &[&str] = &[IMAGE_MINIMAL];

/// The guest agent as a static binary, built by `build.rs`.
const GUEST_AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-agent"));

/// Raised when the same inputs make another image.
const MINIMAL_FORMAT: &[u8] = b"muster minimal image 1";
/// Where a static busybox may be.
const BUSYBOX_PATHS: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox-static"];
/// What people expect to find in a guest.
const BUSYBOX_APPLETS: [&str; 16] = [
    "cat", "df", "dmesg", "echo", "free", "ip", "kill", "ls", "mount", "ping", "ps", "sh", "sleep", "top", "umount",
    "vi",
];
/// A kernel, unpacked or not, or any other input file.
const INPUT_BYTES_MAX: u64 = 512 << 20;

/// Tells people what takes so long.
pub(crate) type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// What a guest boots from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BootFiles {
    /// An ELF vmlinux where one could be had, else a bzImage.
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// Why an image could not be made: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name.
    #[error("no image is called {0:?}: this version knows {known}", known = IMAGES.join(", "))]
    Unknown(String),
    /// A file that is needed cannot be read or written.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel could not be fetched.
    #[error(
        "no guest kernel: {reason}. Run `apt-get update` where a Debian archive is reachable, or name a kernel with \
         --kernel PATH (a bzImage or vmlinux, its modules beside it in `modules`)"
    )]
    Fetch {
        /// What failed.
        reason: String,
    },
    /// The kernel file is not one.
    #[error("{path} is not a kernel for this machine: {reason}; name another with --kernel PATH")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A kernel module cannot be used.
    #[error("kernel module {path}: {reason}")]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No busybox that runs without libraries.
    #[error("no static busybox among {BUSYBOX_PATHS:?}: install busybox-static")]
    NoBusybox,
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { path: path.to_owned(), source }
}

/// The images under one directory.
pub(crate) struct ImageStore {
    root: PathBuf,
    kernel: Option<PathBuf>,
    minimal: Mutex<Option<BootFiles>>,
}

impl ImageStore {
    pub(crate) fn new(root: PathBuf, kernel: Option<PathBuf>) -> ImageStore {
        ImageStore { root, kernel, minimal: Mutex::new(None) }
    }

    /// The image `name`, made first if need be. May take as long as a download of 30 MB.
    pub(crate) async fn ensure(&self, name: &str, progress: Progress) -> Result<BootFiles, ImageError> {
        if !IMAGES.contains(&name) {
            return Err(ImageError::Unknown(name.to_owned()));
        }
        let mut made = self.minimal.lock().await;
        if let Some(files) = &*made
            && files.kernel.exists()
            && files.initrd.exists()
        {
            return Ok(files.clone());
        }
        let (root, kernel) = (self.root.clone(), self.kernel.clone());
        // A thread, not a blocking task of the runtime: a stopping daemon does not wait for a download.
        let (answer, answers) = oneshot::channel();
        std::thread::Builder::new()
            .name("image".into())
            .spawn(move || drop(answer.send(make_minimal(&root, kernel.as_deref(), &progress))))
            .map_err(io_error(&self.root))?;
        let files = match answers.await {
            Ok(result) => result?,
            Err(_) => return Err(io_error(&self.root)(io::Error::other("the maker of the image panicked"))),
        };
        *made = Some(files.clone());
        Ok(files)
    }
}

/// A kernel and where its modules are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KernelSource {
    pub(crate) kernel: PathBuf,
    pub(crate) modules: Option<PathBuf>,
}

fn make_minimal(root: &Path, kernel: Option<&Path>, progress: &Progress) -> Result<BootFiles, ImageError> {
    std::fs::create_dir_all(root).map_err(io_error(root))?;
    let _turn = take_turn(root, progress)?;
    let source = match kernel {
        Some(path) => named_kernel(path),
        None => debian::fetch(root, progress)?,
    };
    let kernel = read_bounded(&source.kernel)?;
    let modules = match &source.modules {
        Some(directory) => modules::collect(directory)?,
        None => Vec::new(),
    };
    let busybox = read_busybox()?;
    let directory = root.join(inputs_hash(&kernel, &modules, &busybox).to_hex().as_str());
    let files = BootFiles { kernel: directory.join("kernel"), initrd: directory.join("initrd") };
    if directory.exists() {
        return Ok(files);
    }
    progress("building the image `minimal`");
    if modules.is_empty() {
        tracing::warn!(kernel = %source.kernel.display(), "no modules for this kernel: its virtio drivers must be built in");
    }
    let unpacked = bzimage::unpack(&kernel)
        .map_err(|reason| ImageError::Kernel { path: source.kernel.clone(), reason: reason.to_string() })?;
    let initrd = initrd(&modules, &busybox);
    let scratch = Scratch::new(root)?;
    for (name, bytes) in [("kernel", unpacked.as_deref().unwrap_or(&kernel)), ("initrd", &initrd)] {
        let path = scratch.0.join(name);
        std::fs::write(&path, bytes).map_err(io_error(&path))?;
    }
    publish(&scratch.0, &directory)?;
    Ok(files)
}

/// Moves a finished directory to its place. If somebody else's is there already, that one is as good.
fn publish(scratch: &Path, place: &Path) -> Result<(), ImageError> {
    match std::fs::rename(scratch, place) {
        Err(_) if place.exists() => Ok(()),
        outcome => outcome.map_err(io_error(place)),
    }
}

/// Holds the directory's lock file until dropped.
fn take_turn(root: &Path, progress: &Progress) -> Result<File, ImageError> {
    let path = root.join(".lock");
    let lock = File::create(&path).map_err(io_error(&path))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress("waiting for another process that makes an image");
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| io_error(&path)(error.into()))?;
    }
    Ok(lock)
}

/// A directory that is removed when dropped, unless it was moved away.
struct Scratch(PathBuf);

impl Scratch {
    /// The lock is held: a scratch directory that is there already was left by a process that was killed.
    fn new(root: &Path) -> Result<Scratch, ImageError> {
        let path = root.join(".scratch");
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).map_err(io_error(&path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The kernel that the operator named, with its modules from `modules` beside it, or from where a distribution
/// keeps those of `/boot/vmlinuz-RELEASE`.
fn named_kernel(path: &Path) -> KernelSource {
    let beside = path.parent().map(|parent| parent.join("modules"));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let installed = name.strip_prefix("vmlinuz-").map(|release| Path::new("/lib/modules").join(release));
    let modules = [beside, installed].into_iter().flatten().find(|directory| directory.is_dir());
    KernelSource { kernel: path.to_owned(), modules }
}

fn inputs_hash(kernel: &[u8], modules: &[Module], busybox: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for bytes in [MINIMAL_FORMAT, GUEST_AGENT, kernel, busybox] {
        add(bytes);
    }
    for module in modules {
        add(module.name.as_bytes());
        add(&module.bytes);
    }
    hasher.finalize()
}

fn initrd(modules: &[Module], busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        archive.directory(directory);
    }
    for directory in ["lib", "lib/muster", "lib/muster/modules"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("init", 0o755, GUEST_AGENT);
    archive.file("bin/busybox", 0o755, busybox);
    for applet in BUSYBOX_APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    let mut order = String::new();
    for module in modules {
        let file = format!("{}.ko", module.name);
        archive.file(&format!("lib/muster/modules/{file}"), 0o644, &module.bytes);
        order.push_str(&file);
        order.push('\n');
    }
    archive.file("lib/muster/modules/order", 0o644, order.as_bytes());
    archive.finish()
}

fn read_busybox() -> Result<Vec<u8>, ImageError> {
    let candidates = BUSYBOX_PATHS.iter().filter_map(|path| read_bounded(Path::new(path)).ok());
    candidates.into_iter().find(|bytes| is_static_elf(bytes)).ok_or(ImageError::NoBusybox)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ImageError> {
    let size = std::fs::metadata(path).map_err(io_error(path))?.len();
    if size > INPUT_BYTES_MAX {
        return Err(io_error(path)(io::Error::other(format!("{size} bytes are more than {INPUT_BYTES_MAX}"))));
    }
    std::fs::read(path).map_err(io_error(path))
}

/// True for a 64-bit little-endian ELF program that asks for no interpreter (no dynamic linker).
fn is_static_elf(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let kind = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let no_interpreter = || {
        let table = usize::try_from(word(32)?).ok()?;
        let (entry_bytes, entries) = (half(54)?, half(56)?);
        for entry in 0..entries {
            if kind(table.checked_add(entry * entry_bytes)?)? == PT_INTERP {
                return Some(false);
            }
        }
        Some(true)
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && no_interpreter().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Progress {
        Arc::new(|_| {})
    }

    #[test]
    fn the_agent_in_this_binary_needs_no_library() {
        assert!(is_static_elf(GUEST_AGENT));
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(!is_static_elf(&own), "a test binary is linked dynamically");
        assert!(!is_static_elf(b"\x7fELF\x02\x01"));
        assert!(!is_static_elf(b"#!/bin/sh"));
    }

    #[test]
    fn the_hash_depends_on_every_input_and_its_bounds() {
        let module = |name: &str, bytes: &[u8]| Module { name: name.into(), bytes: bytes.to_vec() };
        let of = |kernel: &[u8], modules: &[Module], busybox: &[u8]| inputs_hash(kernel, modules, busybox);
        let hashes = [
            of(b"k", &[], b"b"),
            of(b"kb", &[], b""),
            of(b"", &[], b"kb"),
            of(b"k", &[module("m", b"")], b"b"),
            of(b"k", &[module("", b"m")], b"b"),
        ];
        let distinct: std::collections::BTreeSet<_> = hashes.iter().map(|hash| *hash.as_bytes()).collect();
        assert_eq!(distinct.len(), hashes.len());
    }

    #[test]
    fn a_kernel_that_is_none_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("kernel");
        let missing = make_minimal(&root.path().join("images"), Some(&kernel), &silent()).unwrap_err();
        assert!(matches!(missing, ImageError::Io { .. }), "{missing}");
        std::fs::write(&kernel, b"#!/bin/sh\n").unwrap();
        let error = make_minimal(&root.path().join("images"), Some(&kernel), &silent()).unwrap_err().to_string();
        assert!(error.contains("is not a kernel") && error.contains("--kernel PATH"), "{error}");
        let left: Vec<_> = std::fs::read_dir(root.path().join("images")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "only the lock file is left: {left:?}");
    }

    #[test]
    fn makers_at_the_same_time_end_with_one_image() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("images");
        let kernel = root.path().join("kernel");
        std::fs::write(&kernel, bzimage::tests::tiny_vmlinux()).unwrap();
        let makers: Vec<_> = (0..4)
            .map(|_| {
                let (images, kernel) = (images.clone(), kernel.clone());
                std::thread::spawn(move || make_minimal(&images, Some(&kernel), &silent()).unwrap())
            })
            .collect();
        let made: Vec<_> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
        assert!(made.iter().all(|files| *files == made[0]));
        assert_eq!(std::fs::read(&made[0].kernel).unwrap(), bzimage::tests::tiny_vmlinux());
        // The image and the lock file.
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 2);
    }
}
