//! The handle through which a node runs its VMs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::limits::{VM_CPUS_MAX, VM_MEMORY_MIB_MIN, VM_NAME_BYTES_MAX};
use base::{VmEpoch, VmId, VmIncarnation};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::{VmmError, chain};
use crate::event::{AdoptedVm, Hypervisor, StartVm, VmEvent};
use crate::image::{ImageError, ImageStore, Progress};
use crate::launch::{Found, Host, adopt};
use crate::record::Record;
use crate::supervisor::{Reply, Request, Supervisor};

/// Requests of one VM that wait for its supervisor, which takes them at once.
const REQUEST_QUEUE: usize = 32;
/// What a supervisor may need beyond the grace time at shutdown: to quit, to kill, to drain its events.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(8);
/// The longest node name that is shown to a guest.
const NODE_NAME_BYTES_MAX: usize = 64;

/// Where a host's VMs live and what they are made with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmmConfig {
    /// One directory per VM: record, sockets, log. Belongs to one daemon at a time.
    pub vms: PathBuf,
    /// Images and kernels; several daemons of a host may share it.
    pub images: PathBuf,
    /// This node's name, with which guests greet.
    pub node: String,
    /// The guest kernel, a bzImage or vmlinux with its modules in `modules` beside it; else Debian's is downloaded.
    pub kernel: Option<PathBuf>,
    /// The QEMU to use; else `qemu-system-x86_64` from PATH.
    pub qemu: Option<PathBuf>,
}

impl VmmConfig {
    /// Everything under `data_dir`, in `vms` and `images`.
    #[must_use]
    pub fn new(data_dir: &std::path::Path, node: &str) -> VmmConfig {
        VmmConfig {
            vms: data_dir.join("vms"),
            images: data_dir.join("images"),
            node: node.to_owned(),
            kernel: None,
            qemu: None,
        }
    }
}

/// The VMs of this host. Dropping it leaves guests running, for [`adopt`](Self::adopt) to find; end them with
/// [`shutdown`](Self::shutdown). To be used inside a tokio runtime.
pub struct Vmm {
    host: Arc<Host>,
    events: mpsc::Sender<VmEvent>,
    vms: Mutex<BTreeMap<VmId, Handle>>,
    stopping: AtomicBool,
}

struct Handle {
    requests: mpsc::Sender<Request>,
    task: JoinHandle<()>,
}

impl Vmm {
    /// Makes the directories; starts nothing. What happens to VMs goes to `events`.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn new(config: VmmConfig, events: mpsc::Sender<VmEvent>) -> Result<Vmm, VmmError> {
        for path in [&config.vms, &config.images] {
            std::fs::create_dir_all(path).map_err(io(path))?;
        }
        // Hypervisors work elsewhere: a relative path would mean another place to them.
        let [vms, images] = [config.vms, config.images].map(|path| path.canonicalize().map_err(io(&path)));
        let kernel = config.kernel.map(|path| std::path::absolute(&path).unwrap_or(path));
        let host = Host {
            vms: vms?,
            node: for_command_line(&config.node),
            qemu: config.qemu,
            images: ImageStore::new(images?, kernel),
            hypervisor: OnceCell::new(),
            tsc_khz: OnceCell::new(),
        };
        Ok(Vmm { host: Arc::new(host), events, vms: Mutex::new(BTreeMap::new()), stopping: AtomicBool::new(false) })
    }

    /// The hypervisor that will be used, found and tested at the first call (up to two seconds). None: this host runs
    /// no VMs; the next call looks again.
    pub async fn detect(&self) -> Option<Hypervisor> {
        self.host.hypervisor().await.map(|(_, hypervisor)| hypervisor.clone())
    }

    /// Makes an image before it is needed. `progress` is told what takes long, in words.
    ///
    /// # Errors
    /// What is missing and what to do about it.
    pub async fn prepare_image(
        &self,
        image: &str,
        progress: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<(), ImageError> {
        let progress: Progress = Arc::new(progress);
        self.host.images.ensure(image, progress).await.map(drop)
    }

    /// Starts a VM. Returns once the request is accepted; then comes `Started` (and `Ready`, once the guest agent
    /// said hello) or `Failed`. Accepted again without effect while that incarnation runs. A VM that runs under a lower
    /// epoch or incarnation is killed first. The request is recorded on disk before anything is begun.
    ///
    /// # Errors
    /// A request that is wrong, or older than what this host knows.
    pub async fn start(&self, spec: StartVm) -> Result<(), VmmError> {
        check(&spec)?;
        let id = spec.id;
        // A supervisor that is just ending (its VM was removed) drops the request: its successor takes it.
        for _ in 0..2 {
            let requests = self.supervisor(&spec)?;
            if let Some(outcome) = ask(&requests, id, |reply| Request::Start(spec.clone(), reply)).await? {
                return outcome;
            }
        }
        Err(VmmError::Busy(id))
    }

    /// Stops a VM: asks the guest, through its agent and by its power button; after `grace` tells the hypervisor, then
    /// kills. Returns once the request is accepted; then comes `Stopped`, at once if the VM does not run.
    ///
    /// # Errors
    /// An older epoch than this host knows; a VM that this host does not know, which therefore does not run here.
    pub async fn stop(&self, id: VmId, epoch: VmEpoch, grace: Duration) -> Result<(), VmmError> {
        self.request(id, |reply| Request::Stop { epoch, grace, reply }).await
    }

    /// Kills a VM if it runs and deletes its files. Returns once the request is accepted; then comes `Removed`.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn remove(&self, id: VmId, epoch: VmEpoch) -> Result<(), VmmError> {
        self.request(id, |reply| Request::Remove { epoch, reply }).await
    }

    /// Stops all VMs at once, each with `grace`, and waits for them. Each that ran reports `Exited` with the reason
    /// `HostShutdown`: it was not asked to stop for good. Nothing is accepted any more.
    pub async fn shutdown(&self, grace: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        let handles = std::mem::take(&mut *self.lock());
        for (id, handle) in &handles {
            if handle.requests.send(Request::Shutdown { grace }).await.is_err() {
                tracing::debug!(vm = %id, "its supervisor has ended already");
            }
        }
        let deadline = tokio::time::Instant::now() + grace + SHUTDOWN_MARGIN;
        for (id, handle) in handles {
            if tokio::time::timeout_at(deadline, handle.task).await.is_err() {
                tracing::error!(vm = %id, "this VM did not end in time; its hypervisor may still run");
            }
        }
    }

    /// Looks for VMs of an earlier daemon in the VM directory; to be called once, before any start. Those that run
    /// and answer are taken over (`Started` with `adopted`, then `Ready`); those that do not answer are killed, and
    /// those that are gone are reported as `Exited` with the reason `Lost`. Epochs known there fence from now on.
    ///
    /// # Errors
    /// A directory that cannot be read. A VM whose record is damaged is logged and left alone.
    pub async fn adopt(&self) -> Result<Vec<AdoptedVm>, VmmError> {
        let entries = std::fs::read_dir(&self.host.vms).map_err(io(&self.host.vms))?;
        let mut adopted = Vec::new();
        for directory in entries.flatten().map(|entry| entry.path()) {
            match Record::read(&directory) {
                Ok(Some(record)) if self.host.directory(record.id()) == directory => {
                    adopted.extend(self.adopt_one(record).await);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(directory = %directory.display(), error = chain(&error), "VM left alone");
                }
            }
        }
        Ok(adopted)
    }

    async fn adopt_one(&self, record: Record) -> Option<AdoptedVm> {
        let id = record.id();
        if self.lock().contains_key(&id) {
            return None;
        }
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        let mut supervisor = Supervisor::new(Arc::clone(&self.host), record.clone(), true, self.events.clone(), queue);
        let mut taken = None;
        if record.live {
            match adopt(&self.host, record.clone()).await {
                Ok(Found::Alive(running)) => {
                    let pid = running.process.pid();
                    let (epoch, incarnation) = (record.epoch(), record.incarnation());
                    taken = Some(AdoptedVm { id, name: record.name, epoch, incarnation, pid });
                    supervisor.take_over(running);
                }
                Ok(Found::Gone { detail }) => supervisor.report_lost(detail),
                Err(error) => {
                    supervisor.report_lost(format!("it could not be looked for: {}", chain(&error)));
                }
            }
        }
        let task = tokio::spawn(supervisor.run());
        self.lock().insert(id, Handle { requests, task });
        taken
    }

    /// The VM's supervisor, begun if there is none.
    fn supervisor(&self, spec: &StartVm) -> Result<mpsc::Sender<Request>, VmmError> {
        let mut vms = self.lock();
        if self.stopping.load(Ordering::SeqCst) {
            return Err(VmmError::ShuttingDown(spec.id));
        }
        if let Some(handle) = vms.get(&spec.id)
            && !handle.requests.is_closed()
        {
            return Ok(handle.requests.clone());
        }
        let directory = self.host.directory(spec.id);
        let known = Record::read(&directory).map_err(io(&directory))?;
        let ran = known.is_some();
        let record =
            known.unwrap_or_else(|| Record::new(spec.id, &spec.name, VmEpoch::default(), VmIncarnation::default()));
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        let supervisor = Supervisor::new(Arc::clone(&self.host), record, ran, self.events.clone(), queue);
        let task = tokio::spawn(supervisor.run());
        vms.insert(spec.id, Handle { requests: requests.clone(), task });
        Ok(requests)
    }

    async fn request(&self, id: VmId, request: impl FnOnce(Reply) -> Request) -> Result<(), VmmError> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(VmmError::ShuttingDown(id));
        }
        let requests = self.lock().get(&id).map(|handle| handle.requests.clone()).ok_or(VmmError::NotFound(id))?;
        ask(&requests, id, request).await?.unwrap_or(Err(VmmError::NotFound(id)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Handle>> {
        // No code that can panic runs under this lock, so a poisoned one holds a whole table.
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a request to a supervisor. None if that has ended.
async fn ask(
    requests: &mpsc::Sender<Request>,
    id: VmId,
    request: impl FnOnce(Reply) -> Request,
) -> Result<Option<Result<(), VmmError>>, VmmError> {
    let (reply, answer) = oneshot::channel();
    match requests.try_send(request(reply)) {
        Err(mpsc::error::TrySendError::Full(_)) => Err(VmmError::Busy(id)),
        Err(mpsc::error::TrySendError::Closed(_)) => Ok(None),
        Ok(()) => Ok(answer.await.ok()),
    }
}

fn check(spec: &StartVm) -> Result<(), VmmError> {
    let invalid = |reason: String| Err(VmmError::Invalid { id: spec.id, reason });
    let good = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
    if spec.name.is_empty() || spec.name.len() > VM_NAME_BYTES_MAX || !spec.name.chars().all(good) {
        return invalid(format!(
            "the name {:?} is not 1 to {VM_NAME_BYTES_MAX} ASCII letters, digits, `.`, `_` or `-`",
            spec.name
        ));
    }
    if spec.cpus == 0 || spec.cpus > VM_CPUS_MAX {
        return invalid(format!("{} cpus are not 1 to {VM_CPUS_MAX}", spec.cpus));
    }
    if spec.memory_mib < VM_MEMORY_MIB_MIN {
        return invalid(format!("{} MiB of memory are less than {VM_MEMORY_MIB_MIN}", spec.memory_mib));
    }
    Ok(())
}

/// A node's name as one word of a kernel command line.
fn for_command_line(name: &str) -> String {
    let clean = name.chars().map(|char| if char.is_ascii_alphanumeric() || "._-:".contains(char) { char } else { '_' });
    clean.take(NODE_NAME_BYTES_MAX).collect()
}

fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> VmmError {
    move |source| VmmError::Io { path: path.to_owned(), source }
}
