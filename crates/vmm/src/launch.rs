//! From a request to a running guest: image, directory, process, connections. And back to one from a record.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::{VmEpoch, VmId, VmIncarnation};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::agent::AgentLink;
use crate::backend::{
    self, AGENT_SOCKET, Backend, CONSOLE_SOCKET, CONTROL_SOCKET, Control, ControlCommand, Guest, PID_FILE,
    connect_socket,
};
use crate::error::chain;
use crate::event::{Hypervisor, StartVm};
use crate::image::{ImageStore, Progress};
use crate::process::Process;
use crate::record::{self, Record};
use crate::running::Running;

/// What the hypervisor prints, for people and for the reasons in events.
pub(crate) const LOG_FILE: &str = "hypervisor.log";
/// How much of it a reason quotes.
const LOG_QUOTE_BYTES_MAX: u64 = 2 << 10;
/// How long a hypervisor may take to open its sockets (about 45 ms on an idle host).
const CONTROL_WITHIN: Duration = Duration::from_secs(20);
/// The same for one that runs already.
const ADOPTED_WITHIN: Duration = Duration::from_secs(5);
/// Between tries to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// What all supervisors of a host share.
pub(crate) struct Host {
    pub(crate) vms: PathBuf,
    pub(crate) node: String,
    pub(crate) qemu: Option<PathBuf>,
    pub(crate) images: ImageStore,
    /// Looked for at each use until found.
    pub(crate) hypervisor: OnceCell<(&'static dyn Backend, Hypervisor)>,
    pub(crate) tsc_khz: OnceCell<u64>,
}

impl Host {
    /// The hypervisor to use, if there is one.
    pub(crate) async fn hypervisor(&self) -> Option<&(&'static dyn Backend, Hypervisor)> {
        let look = || async {
            let path = self.qemu.clone();
            let look = move || {
                let found = backend::ALL.into_iter().map(|backend| (backend, backend.detect(path.as_deref())));
                found.filter_map(|(backend, hypervisor)| Some((backend, hypervisor?))).next()
            };
            tokio::task::spawn_blocking(look).await.ok().flatten().ok_or(())
        };
        self.hypervisor.get_or_try_init(look).await.ok()
    }

    async fn tsc_khz(&self) -> u64 {
        let measure = || async { tokio::task::spawn_blocking(crate::tsc::measure_khz).await.unwrap_or(0) };
        *self.tsc_khz.get_or_init(measure).await
    }

    pub(crate) fn directory(&self, id: VmId) -> PathBuf {
        record::directory(&self.vms, id)
    }
}

/// Kills a process that nobody took over: a launch may be abandoned at any point.
struct Guard(Option<Process>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill();
        }
    }
}

/// Makes what `spec` asks for and runs it. On failure nothing is left running; the reason is for people.
pub(crate) async fn launch(host: &Host, spec: &StartVm, progress: Progress) -> Result<Running, String> {
    let Some((backend, hypervisor)) = host.hypervisor().await else {
        return Err("no hypervisor on this host: install qemu-system-x86".to_owned());
    };
    let boot = host.images.ensure(&spec.image, progress).await.map_err(|error| chain(&error))?;
    let directory = host.directory(spec.id);
    let mut record = Record::new(spec.id, &spec.name, spec.epoch, spec.incarnation);
    record.live = true;
    record.hypervisor = backend.kind().to_owned();
    let token = token(spec.id, spec.epoch, spec.incarnation);
    let guest = Guest {
        directory: &directory,
        token: &token,
        boot: &boot,
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        name: &spec.name,
        node: &host.node,
        tsc_khz: host.tsc_khz().await,
    };
    let io = |what: &'static str| move |error: std::io::Error| format!("cannot {what} for the VM: {error}");
    clear(&directory).map_err(io("clear the directory"))?;
    record.write(&directory).map_err(io("write the record"))?;
    let log =
        OpenOptions::new().create(true).append(true).open(directory.join(LOG_FILE)).map_err(io("open the log"))?;
    let mut command = backend.command(hypervisor, &guest);
    command.stdout(log.try_clone().map_err(io("open the log"))?).stderr(log);
    let process =
        Process::spawn(command).map_err(|error| format!("cannot run {}: {error}", hypervisor.path.display()))?;
    let mut guard = Guard(Some(process));
    if let Some(process) = &guard.0 {
        record.process = Some(process.identity().clone());
    }
    record.write(&directory).map_err(io("write the record"))?;

    let connected = match &mut guard.0 {
        Some(process) => connect(*backend, &directory, process).await,
        None => Err("the process is gone".to_owned()),
    };
    let (control, console, agent) =
        connected.map_err(|reason| with_log(&hypervisor.to_string(), &reason, &directory))?;
    control.call(ControlCommand::Resume).await.map_err(|reason| format!("{hypervisor} does not run it: {reason}"))?;
    let process = guard.0.take().ok_or("the process is gone")?;
    Ok(Running::new(record, hypervisor.to_string(), false, directory, process, control, console, agent))
}

/// The argument that tells one VM's hypervisor from all others of this host's daemon.
fn token(id: VmId, epoch: VmEpoch, incarnation: VmIncarnation) -> String {
    format!("muster-vm-{id}-{epoch}-{incarnation}")
}

/// An empty directory but for the record, which fences.
fn clear(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for file in [CONTROL_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET, PID_FILE, LOG_FILE] {
        match std::fs::remove_file(directory.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

type Connections = (Control, tokio::net::UnixStream, AgentLink);

/// Waits until the hypervisor has opened its sockets, or has ended instead.
async fn connect(backend: &dyn Backend, directory: &Path, process: &mut Process) -> Result<Connections, String> {
    let deadline = Instant::now() + CONTROL_WITHIN;
    let connecting = async {
        loop {
            match open(backend, directory).await {
                Ok(connections) => return Ok(connections),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("did not open its control socket within {CONTROL_WITHIN:?}: {error}"));
                }
                Err(_) => tokio::time::sleep(CONNECT_PAUSE).await,
            }
        }
    };
    tokio::select! {
        connected = connecting => connected,
        status = process.wait() => Err(match status {
            Some(status) => format!("ended at once ({status})"),
            None => "ended at once".to_owned(),
        }),
    }
}

async fn open(backend: &dyn Backend, directory: &Path) -> std::io::Result<Connections> {
    let control = backend.connect(directory).await?;
    let console = connect_socket(directory, CONSOLE_SOCKET).await?;
    let agent = AgentLink::new(connect_socket(directory, AGENT_SOCKET).await?);
    Ok((control, console, agent))
}

/// `reason` with the end of what the hypervisor printed.
pub(crate) fn with_log(hypervisor: &str, reason: &str, directory: &Path) -> String {
    match log_end(&directory.join(LOG_FILE)) {
        Ok(said) if !said.is_empty() => format!("{hypervisor} {reason}; it says: {said}"),
        _ => format!("{hypervisor} {reason}"),
    }
}

fn log_end(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_QUOTE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_QUOTE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; "))
}

/// What became of a VM that was running when its daemon ended.
pub(crate) enum Found {
    /// It runs, and we hold it.
    Alive(Box<Running>),
    /// It does not run: it had ended, or it was ended here because it could not be used.
    Gone { detail: String },
}

/// Takes over the VM of `record`, if its hypervisor is there and answers. One that is there and does not is ended.
pub(crate) async fn adopt(host: &Host, record: Record) -> std::io::Result<Found> {
    let directory = host.directory(record.id());
    let token = token(record.id(), record.epoch(), record.incarnation());
    let found = match &record.process {
        Some(identity) => Process::find(identity, &directory)?,
        None => Process::find_by_pid_file(&directory.join(PID_FILE), &directory, &token)?,
    };
    let Some(process) = found else {
        return Ok(Found::Gone { detail: "the hypervisor had ended when the daemon came back".to_owned() });
    };
    let mut guard = Guard(Some(process));
    let reattached = tokio::time::timeout(ADOPTED_WITHIN, reattach(&record, &directory)).await;
    let connections = match reattached {
        Ok(Ok(connections)) => connections,
        Ok(Err(reason)) => return end(guard, &reason).await,
        Err(_) => return end(guard, &format!("it did not answer within {ADOPTED_WITHIN:?}")).await,
    };
    let Some(process) = guard.0.take() else { return Ok(Found::Gone { detail: String::new() }) };
    let (control, console, agent) = connections;
    let mut record = record;
    record.process = Some(process.identity().clone());
    record.write(&directory)?;
    let name = record.hypervisor.clone();
    Ok(Found::Alive(Box::new(Running::new(record, name, true, directory, process, control, console, agent))))
}

async fn reattach(record: &Record, directory: &Path) -> Result<Connections, String> {
    let backend = backend::by_kind(&record.hypervisor)
        .ok_or_else(|| format!("this version does not know the hypervisor {:?}", record.hypervisor))?;
    let connections = open(backend, directory).await.map_err(|error| format!("cannot reach it: {error}"))?;
    match connections.0.call(ControlCommand::Status).await?.as_str() {
        "running" => Ok(connections),
        other => Err(format!("it is not running but {other:?}")),
    }
}

/// Ends a hypervisor that cannot be used, and waits until it is gone.
async fn end(mut guard: Guard, reason: &str) -> std::io::Result<Found> {
    if let Some(mut process) = guard.0.take() {
        tracing::warn!(
            pid = process.pid(),
            reason,
            "a hypervisor left by an earlier daemon cannot be used: killing it"
        );
        process.kill();
        process.wait().await;
    }
    Ok(Found::Gone { detail: format!("the hypervisor left by an earlier daemon could not be used: {reason}") })
}
