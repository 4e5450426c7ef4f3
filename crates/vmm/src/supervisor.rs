//! One VM's supervisor: a task that owns the VM, takes requests in order and reports what happens.
//!
//! It never waits inside a step: images, launches, guests and consumers of events are all waited for in one place
//! ([`Supervisor::run`]), so that a request to stop is heard at any time.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use base::{VmEpoch, VmIncarnation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use wire::agent::{AgentMessage, HostMessage};

use crate::agent::agent_info;
use crate::backend::ControlCommand;
use crate::error::VmmError;
use crate::event::{ExitReason, StartVm, VmEvent, VmEventKind};
use crate::image::Progress;
use crate::launch::{Host, launch};
use crate::outbox::Outbox;
use crate::record::Record;
use crate::running::{Happening, Running};

/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// Between pings to a guest agent.
const PING_EVERY: Duration = Duration::from_secs(10);
/// After this long without a word the agent is reported as silent.
const SILENT_AFTER: Duration = Duration::from_secs(35);
/// How long a guest may take to its hello; a cold boot under TCG takes 1.4-1.9 s on an idle host.
const HELLO_WITHIN: Duration = Duration::from_secs(180);
/// Between presses of the power button while a guest is to end by itself. An agent may not hear what it is told, and
/// a press is not heard while the guest boots.
const PRESS_EVERY: Duration = Duration::from_secs(2);
/// How long a hypervisor may take to end when asked to, or when it has hung up.
const QUIT_WITHIN: Duration = Duration::from_secs(2);
/// How long events may take to be taken after the supervisor's end.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);
/// What a launch tells people while it goes on.
const PROGRESS_QUEUE: usize = 8;

/// A request to a supervisor.
pub(crate) enum Request {
    Start(StartVm, Reply),
    Stop { epoch: VmEpoch, grace: Duration, reply: Reply },
    Remove { epoch: VmEpoch, reply: Reply },
    Shutdown { grace: Duration },
}

/// Says whether a request was accepted; its outcome is an event.
pub(crate) type Reply = oneshot::Sender<Result<(), VmmError>>;

type Launch = Pin<Box<dyn Future<Output = Result<Box<Running>, String>> + Send>>;

/// What the VM is doing.
enum Phase {
    Idle,
    Launching(Launch),
    Running(Box<Running>),
}

/// Why a running VM is being ended by us.
enum Purpose {
    Stop,
    Shutdown,
    Remove,
    /// For a newer start, unless that was told to stop in the meantime.
    Supersede {
        spec: StartVm,
        cancelled: bool,
    },
    AgentTimeout,
}

/// An end under way.
struct Ending {
    purpose: Purpose,
    /// When the next, harder step is due.
    deadline: Instant,
    /// When the power button is pressed next, as long as the guest is only asked.
    press: Instant,
    step: EndStep,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EndStep {
    /// The guest was asked.
    Asked,
    /// The hypervisor was told.
    Quit,
    /// The process was killed.
    Killed,
}

enum Input {
    Request(Option<Request>),
    Progress(String),
    Launched(Result<Box<Running>, String>),
    Happening(Happening),
    Tick,
    Pumped,
}

pub(crate) struct Supervisor {
    host: Arc<Host>,
    record: Record,
    outbox: Outbox,
    requests: mpsc::Receiver<Request>,
    progress: mpsc::Receiver<String>,
    progress_to: mpsc::Sender<String>,
    phase: Phase,
    ending: Option<Ending>,
    /// False until the record stands for a start that was begun.
    ran: bool,
    pinged: Instant,
    pings: u64,
    finished: bool,
}

impl Supervisor {
    /// A supervisor of a VM that does not run. `record` fences what may come; `ran` says that its start was begun.
    pub(crate) fn new(
        host: Arc<Host>,
        record: Record,
        ran: bool,
        events: mpsc::Sender<VmEvent>,
        requests: mpsc::Receiver<Request>,
    ) -> Supervisor {
        let (progress_to, progress) = mpsc::channel(PROGRESS_QUEUE);
        let outbox = Outbox::new(record.id(), events);
        Supervisor {
            host,
            record,
            outbox,
            requests,
            progress,
            progress_to,
            phase: Phase::Idle,
            ending: None,
            ran,
            pinged: Instant::now(),
            pings: 0,
            finished: false,
        }
    }

    /// Takes over a VM that runs.
    pub(crate) fn take_over(&mut self, running: Box<Running>) {
        self.set_running(running);
    }

    /// Reports that the VM of the record ended while nobody watched.
    pub(crate) fn report_lost(&mut self, detail: String) {
        self.settle();
        self.report(VmEventKind::Exited { reason: ExitReason::Lost, detail, exit_code: None });
    }

    /// Serves until the VM is removed, the host shuts down, or the `Vmm` is dropped. In the last case the guest runs
    /// on, for the next daemon to adopt.
    pub(crate) async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !self.finished {
            match self.next(&mut ticks).await {
                Input::Request(None) => return,
                Input::Request(Some(request)) => self.handle(request),
                Input::Progress(what) => self.report(VmEventKind::Preparing { what }),
                Input::Launched(outcome) => self.launched(outcome),
                Input::Happening(Happening::Ended(status)) => self.ended(status).await,
                Input::Happening(happening) => self.happened(happening),
                Input::Tick => self.tick(),
                Input::Pumped => {}
            }
        }
        let outbox = &mut self.outbox;
        let drain = async {
            while !outbox.is_empty() {
                outbox.pump().await;
            }
        };
        if tokio::time::timeout(DRAIN_WITHIN, drain).await.is_err() {
            tracing::warn!(vm = %self.record.id(), "the last events of this VM were not taken");
        }
    }

    async fn next(&mut self, ticks: &mut Interval) -> Input {
        let phase = async {
            match &mut self.phase {
                Phase::Idle => std::future::pending().await,
                Phase::Launching(launch) => Input::Launched(launch.await),
                Phase::Running(running) => Input::Happening(running.next().await),
            }
        };
        tokio::select! {
            request = self.requests.recv() => Input::Request(request),
            Some(what) = self.progress.recv() => Input::Progress(what),
            input = phase => input,
            () = self.outbox.pump() => Input::Pumped,
            _ = ticks.tick() => Input::Tick,
        }
    }

    fn report(&mut self, kind: VmEventKind) {
        self.outbox.push(self.record.epoch(), self.record.incarnation(), kind);
    }

    // ---- Requests ----

    fn handle(&mut self, request: Request) {
        match request {
            Request::Start(spec, reply) => {
                let accepted = self.start(spec);
                let _ = reply.send(accepted);
            }
            Request::Stop { epoch, grace, reply } => {
                let accepted = self.fence_epoch(epoch);
                if accepted.is_ok() {
                    self.stop(grace);
                }
                let _ = reply.send(accepted);
            }
            Request::Remove { epoch, reply } => {
                let accepted = self.fence_epoch(epoch);
                if accepted.is_ok() {
                    self.remove();
                }
                let _ = reply.send(accepted);
            }
            Request::Shutdown { grace } => self.shut_down(grace),
        }
    }

    /// The newest start accepted: the one that runs, or the one that waits for it to end.
    fn newest(&self) -> (VmEpoch, VmIncarnation) {
        match &self.ending {
            Some(Ending { purpose: Purpose::Supersede { spec, .. }, .. }) => (spec.epoch, spec.incarnation),
            _ => (self.record.epoch(), self.record.incarnation()),
        }
    }

    /// Refuses a start older than what is known here.
    fn fence(&self, asked_epoch: VmEpoch, asked_incarnation: VmIncarnation) -> Result<(), VmmError> {
        let (epoch, incarnation) = self.newest();
        if (asked_epoch, asked_incarnation) >= (epoch, incarnation) {
            return Ok(());
        }
        Err(VmmError::Stale { id: self.record.id(), epoch, incarnation, asked_epoch, asked_incarnation })
    }

    /// Refuses a request of an epoch older than what is known here.
    fn fence_epoch(&self, asked: VmEpoch) -> Result<(), VmmError> {
        self.fence(asked, self.newest().1)
    }

    fn start(&mut self, spec: StartVm) -> Result<(), VmmError> {
        self.fence(spec.epoch, spec.incarnation)?;
        if matches!(self.ending, Some(Ending { purpose: Purpose::Remove | Purpose::Shutdown, .. })) {
            return Err(VmmError::Busy(spec.id));
        }
        if self.ran && (spec.epoch, spec.incarnation) == self.newest() {
            let begun = !matches!(self.phase, Phase::Idle)
                && !matches!(self.ending, Some(Ending { purpose: Purpose::Stop | Purpose::AgentTimeout, .. }));
            return if begun { Ok(()) } else { Err(VmmError::AlreadyRan(spec.id, spec.incarnation)) };
        }
        match self.phase {
            Phase::Idle => self.launch(spec),
            Phase::Launching(_) => {
                self.phase = Phase::Idle;
                self.exited(ExitReason::Superseded, "a newer start took its place".to_owned(), None);
                self.launch(spec);
            }
            Phase::Running(_) => {
                self.end(Purpose::Supersede { spec, cancelled: false }, EndStep::Killed, Duration::ZERO);
            }
        }
        Ok(())
    }

    fn launch(&mut self, spec: StartVm) {
        self.record = Record::new(spec.id, &spec.name, spec.epoch, spec.incarnation);
        self.ran = true;
        // Written before anything is begun, so that this start is never repeated.
        self.save();
        let host = Arc::clone(&self.host);
        let progress_to = self.progress_to.clone();
        let progress: Progress = Arc::new(move |what: &str| drop(progress_to.try_send(what.to_owned())));
        self.phase = Phase::Launching(Box::pin(async move { launch(&host, &spec, progress).await.map(Box::new) }));
    }

    fn stop(&mut self, grace: Duration) {
        match self.phase {
            Phase::Idle => self.report(VmEventKind::Stopped { graceful: true }),
            Phase::Launching(_) => {
                self.phase = Phase::Idle;
                self.settle();
                self.report(VmEventKind::Stopped { graceful: false });
            }
            Phase::Running(_) => self.end(Purpose::Stop, EndStep::Asked, grace),
        }
    }

    fn remove(&mut self) {
        match self.phase {
            Phase::Running(_) => self.end(Purpose::Remove, EndStep::Killed, Duration::ZERO),
            _ => self.removed(),
        }
    }

    fn shut_down(&mut self, grace: Duration) {
        match self.phase {
            Phase::Idle => self.finished = true,
            Phase::Launching(_) => {
                self.phase = Phase::Idle;
                self.exited(ExitReason::HostShutdown, "this node is stopping".to_owned(), None);
                self.finished = true;
            }
            Phase::Running(_) => self.end(Purpose::Shutdown, EndStep::Asked, grace),
        }
    }

    // ---- Ending ----

    /// Begins to end the running guest, or goes on with that for another purpose and not more gently than before.
    fn end(&mut self, purpose: Purpose, step: EndStep, grace: Duration) {
        let now = Instant::now();
        let deadline = now + grace;
        match &mut self.ending {
            // A removal includes whatever else is asked for.
            Some(Ending { purpose: Purpose::Remove, .. }) if !matches!(purpose, Purpose::Shutdown) => {}
            Some(Ending { purpose: Purpose::Supersede { cancelled, .. }, .. }) if matches!(purpose, Purpose::Stop) => {
                *cancelled = true;
            }
            Some(ending) => {
                ending.purpose = purpose;
                ending.deadline = ending.deadline.min(deadline);
                if step == EndStep::Killed {
                    self.end_step(step);
                }
            }
            None => {
                self.ending = Some(Ending { purpose, deadline, press: now + PRESS_EVERY, step });
                self.end_step(step);
            }
        }
    }

    fn end_step(&mut self, step: EndStep) {
        let (Phase::Running(running), Some(ending)) = (&mut self.phase, &mut self.ending) else { return };
        ending.step = step;
        match step {
            EndStep::Asked if running.info.is_some() => running.agent.send(HostMessage::Stop),
            EndStep::Asked => running.control.request(ControlCommand::PowerDown),
            EndStep::Quit => {
                running.control.request(ControlCommand::Quit);
                ending.deadline = Instant::now() + QUIT_WITHIN;
            }
            EndStep::Killed => {
                running.process.kill();
                ending.deadline = Instant::now() + QUIT_WITHIN;
            }
        }
    }

    /// The process is gone: reports why, and goes on with what it was ended for.
    async fn ended(&mut self, status: Option<ExitStatus>) {
        let Phase::Running(mut running) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        for line in running.drain().await {
            self.outbox.push_line(self.record.epoch(), self.record.incarnation(), line);
        }
        let exit_code = status.and_then(|status| status.code());
        let (reason, detail) = running.verdict(status);
        let ending = self.ending.take();
        match ending.map(|ending| (ending.purpose, ending.step)) {
            None => self.exited(reason, detail, exit_code),
            Some((Purpose::Stop, step)) => {
                self.settle();
                let graceful = step == EndStep::Asked && reason == ExitReason::GuestShutdown;
                self.report(VmEventKind::Stopped { graceful });
            }
            Some((Purpose::Shutdown, _)) => {
                self.exited(ExitReason::HostShutdown, format!("this node is stopping; {detail}"), exit_code);
                self.finished = true;
            }
            Some((Purpose::Remove, _)) => self.removed(),
            Some((Purpose::Supersede { spec, cancelled }, _)) => {
                self.exited(ExitReason::Superseded, "a newer start took its place".to_owned(), exit_code);
                if cancelled {
                    self.record = Record::new(spec.id, &spec.name, spec.epoch, spec.incarnation);
                    self.save();
                    self.report(VmEventKind::Stopped { graceful: false });
                } else {
                    self.launch(spec);
                }
            }
            Some((Purpose::AgentTimeout, _)) => {
                let detail = format!("the guest agent did not say hello within {HELLO_WITHIN:?}");
                self.exited(ExitReason::AgentTimeout, detail, exit_code);
            }
        }
    }

    fn exited(&mut self, reason: ExitReason, detail: String, exit_code: Option<i32>) {
        self.settle();
        self.report(VmEventKind::Exited { reason, detail, exit_code });
    }

    /// Nothing runs any more, and the record says so.
    fn settle(&mut self) {
        self.record.live = false;
        self.record.process = None;
        self.save();
    }

    fn removed(&mut self) {
        self.phase = Phase::Idle;
        let directory = self.host.directory(self.record.id());
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::error!(directory = %directory.display(), %error, "cannot delete a VM's files");
            }
            _ => {}
        }
        self.report(VmEventKind::Removed);
        self.finished = true;
    }

    fn save(&self) {
        let directory = self.host.directory(self.record.id());
        let saved = std::fs::create_dir_all(&directory).and_then(|()| self.record.write(&directory));
        if let Err(error) = saved {
            tracing::error!(directory = %directory.display(), %error, "cannot write a VM's record");
        }
    }

    // ---- What happens ----

    fn launched(&mut self, outcome: Result<Box<Running>, String>) {
        match outcome {
            Ok(running) => self.set_running(running),
            Err(reason) => {
                self.phase = Phase::Idle;
                self.settle();
                self.report(VmEventKind::Failed { reason });
            }
        }
    }

    fn set_running(&mut self, running: Box<Running>) {
        self.record = running.record.clone();
        self.report(VmEventKind::Started {
            pid: running.process.pid(),
            hypervisor: running.hypervisor.clone(),
            adopted: running.adopted,
        });
        self.pinged = Instant::now();
        self.phase = Phase::Running(running);
    }

    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Lines(lines) => {
                for line in lines {
                    self.outbox.push_line(self.record.epoch(), self.record.incarnation(), line);
                }
            }
            Happening::Agent(message) => self.heard(&message),
            Happening::Noted | Happening::Ended(_) => {}
        }
    }

    fn heard(&mut self, message: &AgentMessage) {
        let Phase::Running(running) = &mut self.phase else { return };
        running.heard = Instant::now();
        let was_silent = std::mem::take(&mut running.silent);
        let known = running.info.clone();
        if let AgentMessage::Hello(hello) = message {
            let info = agent_info(hello);
            // It says hello when it opens the port and again when we ask; a hostile one says it all the time. An
            // incarnation is one boot, and is ready once.
            if known.is_some() && !was_silent {
                return;
            }
            running.info = Some(info.clone());
            // Told to stop while it booted.
            if self.ending.as_ref().is_some_and(|ending| ending.step == EndStep::Asked) {
                running.agent.send(HostMessage::Stop);
            }
            self.report(VmEventKind::Ready { agent: info });
        } else if was_silent && let Some(agent) = known {
            self.report(VmEventKind::Ready { agent });
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if let Some(ending) = &mut self.ending {
            if now >= ending.deadline {
                let harder = if ending.step == EndStep::Asked { EndStep::Quit } else { EndStep::Killed };
                self.end_step(harder);
            } else if ending.step == EndStep::Asked
                && now >= ending.press
                && let Phase::Running(running) = &self.phase
            {
                ending.press = now + PRESS_EVERY;
                running.control.request(ControlCommand::PowerDown);
            }
            return;
        }
        let Phase::Running(running) = &mut self.phase else { return };
        if running.is_out_of_control(now, QUIT_WITHIN) {
            running.process.kill();
            return;
        }
        if running.info.is_none() && now.duration_since(running.since) > HELLO_WITHIN {
            self.end(Purpose::AgentTimeout, EndStep::Killed, Duration::ZERO);
            return;
        }
        if now.duration_since(self.pinged) < PING_EVERY {
            return;
        }
        self.pinged = now;
        running.bound_log();
        if running.info.is_none() {
            return;
        }
        self.pings += 1;
        running.agent.send(HostMessage::Ping { nonce: self.pings });
        let quiet = now.duration_since(running.heard);
        if quiet > SILENT_AFTER && !running.silent {
            running.silent = true;
            self.report(VmEventKind::Unready {
                reason: format!("the guest agent is silent for {} s", quiet.as_secs()),
            });
        }
    }
}
