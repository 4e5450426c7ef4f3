//! Carries out the journal's disk operations, on a few threads of its own: a slow disk never holds up the core.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::Event;
use journal::{DiskDone, DiskError, DiskOp, DiskOpKind, FileId};
use runtime::{Counter, Histogram, LATENCY_BUCKETS_S, Registry};
use rustix::fs::{FallocateFlags, fallocate};
use tokio::sync::mpsc;

use crate::error::NodeError;

/// Threads: two rounds in flight and reads beside them.
const THREADS: usize = 4;
/// Operations handed over and not begun.
const QUEUE: usize = 4_096;
const ZEROS: usize = 1 << 20;

/// The hands of the journal.
pub(crate) struct Disk {
    queue: std_mpsc::SyncSender<DiskOp>,
    /// What the queue has no room for, in order. The journal bounds it: it knows each of these operations, too. The core
    /// must never wait for the disk threads, because they wait for it when it does not take their completions.
    waiting: VecDeque<DiskOp>,
}

/// The files of a journal, and what can be done with them.
pub(crate) struct Files {
    dir: PathBuf,
    open: Mutex<HashMap<FileId, Arc<File>>>,
}

struct Shared {
    files: Files,
    queue: Mutex<std_mpsc::Receiver<DiskOp>>,
    done: mpsc::Sender<Event>,
    metrics: DiskMetrics,
}

/// What the threads count.
struct DiskMetrics {
    write: Histogram,
    read: Histogram,
    other: Histogram,
    written: Counter,
    read_bytes: Counter,
    errors: Counter,
}

impl DiskMetrics {
    fn new(registry: &Registry) -> DiskMetrics {
        let help =
            "Disk operations of the journal as the disk took them, by kind: writes with the sync that they ask for.";
        let seconds =
            |kind| registry.histogram("muster_disk_operation_seconds", help, &[("kind", kind)], LATENCY_BUCKETS_S);
        let counter = |name, help| registry.counter(name, help, &[]);
        DiskMetrics {
            write: seconds("write"),
            read: seconds("read"),
            other: seconds("other"),
            written: counter("muster_disk_written_bytes_total", "Bytes that the journal wrote."),
            read_bytes: counter("muster_disk_read_bytes_total", "Bytes that the journal read."),
            errors: counter(
                "muster_disk_errors_total",
                "Disk operations of the journal that failed, for want of space too.",
            ),
        }
    }

    fn count(&self, kind: &DiskOpKind, result: &Result<DiskDone, DiskError>, took: Duration) {
        let seconds = match kind {
            DiskOpKind::Write { .. } => &self.write,
            DiskOpKind::Read { .. } => &self.read,
            _ => &self.other,
        };
        seconds.observe(took.as_secs_f64());
        match (kind, result) {
            (_, Err(_)) => self.errors.inc(),
            (DiskOpKind::Write { data, .. }, _) => self.written.add(data.iter().map(|it| it.len() as u64).sum()),
            (_, Ok(DiskDone::Data(data))) => self.read_bytes.add(data.len() as u64),
            _ => {}
        }
    }
}

impl Disk {
    /// Starts the threads; completions go to `done`.
    pub fn start(dir: &Path, done: mpsc::Sender<Event>, registry: &Registry) -> Result<Disk, NodeError> {
        std::fs::create_dir_all(dir).map_err(NodeError::file("make the directory", dir))?;
        let (sender, receiver) = std_mpsc::sync_channel(QUEUE);
        let metrics = DiskMetrics::new(registry);
        let shared = Arc::new(Shared { files: Files::of(dir), queue: Mutex::new(receiver), done, metrics });
        for number in 0..THREADS {
            let shared = shared.clone();
            runtime::spawn_priority_thread(&format!("disk-{number}"), -5, move || shared.work())
                .map_err(|error| NodeError::Start { what: "a disk thread", reason: error.to_string() })?;
        }
        Ok(Disk { queue: sender, waiting: VecDeque::new() })
    }

    /// Takes an operation; never waits.
    pub fn submit(&mut self, op: DiskOp) {
        self.waiting.push_back(op);
        self.hand_over();
    }

    /// Hands over what there is room for. To be called after completions, which make room.
    pub fn hand_over(&mut self) {
        while let Some(op) = self.waiting.pop_front() {
            match self.queue.try_send(op) {
                Ok(()) => {}
                Err(std_mpsc::TrySendError::Full(op)) => return self.waiting.push_front(op),
                Err(std_mpsc::TrySendError::Disconnected(_)) => tracing::error!("the disk threads have ended"),
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(op) = next else { return };
            let began = Instant::now();
            let result = self.files.carry_out(&op.kind);
            self.metrics.count(&op.kind, &result, began.elapsed());
            if self.done.blocking_send(Event::Disk { op: op.id, result }).is_err() {
                return;
            }
        }
    }
}

impl Files {
    /// Those in a directory, which exists.
    pub fn of(dir: &Path) -> Files {
        Files { dir: dir.to_path_buf(), open: Mutex::default() }
    }

    /// Does it, and comes back when it is done.
    pub fn carry_out(&self, kind: &DiskOpKind) -> Result<DiskDone, DiskError> {
        self.attempt(kind).map_err(|error| describe(kind, &error))
    }

    fn path(&self, file: FileId) -> PathBuf {
        self.dir.join(file.name())
    }

    fn opened(&self, file: FileId) -> io::Result<Arc<File>> {
        let mut files = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = files.get(&file) {
            return Ok(open.clone());
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path(file))?;
        let open = Arc::new(open);
        files.insert(file, open.clone());
        Ok(open)
    }

    fn close(&self, file: FileId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn attempt(&self, kind: &DiskOpKind) -> io::Result<DiskDone> {
        match kind {
            DiskOpKind::List => self.list().map(DiskDone::Listed),
            DiskOpKind::Create { file, len } => self.create(*file, *len).map(|()| DiskDone::Done),
            DiskOpKind::Read { file, offset, len } => self.read(*file, *offset, *len).map(DiskDone::Data),
            DiskOpKind::Write { file, offset, data, sync } => {
                self.write(*file, *offset, data, *sync).map(|()| DiskDone::Done)
            }
            DiskOpKind::Rename { from, to } => {
                self.close(*from);
                self.close(*to);
                std::fs::rename(self.path(*from), self.path(*to))?;
                self.sync_dir().map(|()| DiskDone::Done)
            }
            DiskOpKind::Remove { file } => {
                self.close(*file);
                match std::fs::remove_file(self.path(*file)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => self.sync_dir().map(|()| DiskDone::Done),
                }
            }
        }
    }

    /// What is listed is durable: a rename that a killed process left unsynced must not be undone by a later power
    /// loss, after the journal has built on it.
    fn list(&self) -> io::Result<Vec<(FileId, u64)>> {
        self.sync_dir()?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(file) = entry.file_name().to_str().and_then(FileId::parse) {
                files.push((file, entry.metadata()?.len()));
            }
        }
        Ok(files)
    }

    /// The space is asked for first, so that a full disk shows before anything is written.
    fn create(&self, file: FileId, len: u64) -> io::Result<()> {
        let path = self.path(file);
        self.close(file);
        let fill = || {
            let new = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
            // Not every file system has it; writing zeros finds out the same, later.
            let asked = fallocate(&new, FallocateFlags::empty(), 0, len);
            if let Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) = asked {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let zeros = vec![0; ZEROS];
            let mut offset = 0;
            while offset < len {
                let part = zeros.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
                new.write_all_at(&zeros[..part], offset)?;
                offset += part as u64;
            }
            new.sync_all()?;
            self.sync_dir()
        };
        let result = fill();
        if result.is_err() {
            // What is half made only takes space.
            let _ = std::fs::remove_file(&path);
        }
        result
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> io::Result<Bytes> {
        let open = self.opened(file)?;
        let mut buffer = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match open.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(Bytes::from(buffer))
    }

    fn write(&self, file: FileId, offset: u64, data: &[Bytes], sync: bool) -> io::Result<()> {
        let open = self.opened(file)?;
        let mut at = offset;
        for chunk in data.chunks(512) {
            let mut slices: Vec<_> = chunk.iter().map(|bytes| IoSlice::new(bytes)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(&*open, rest, at))?;
                if written == 0 && rest.iter().any(|slice| !slice.is_empty()) {
                    return Err(io::Error::from(io::ErrorKind::WriteZero));
                }
                at += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
        if sync { open.sync_data() } else { Ok(()) }
    }
}

fn describe(kind: &DiskOpKind, error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full,
        _ => {
            let what = match kind {
                DiskOpKind::List => "list".to_owned(),
                DiskOpKind::Create { file, .. } => format!("create {}", file.name()),
                DiskOpKind::Read { file, .. } => format!("read {}", file.name()),
                DiskOpKind::Write { file, .. } => format!("write {}", file.name()),
                DiskOpKind::Rename { from, .. } => format!("rename {}", from.name()),
                DiskOpKind::Remove { file } => format!("remove {}", file.name()),
            };
            DiskError::Io(format!("{what}: {error}"))
        }
    }
}
