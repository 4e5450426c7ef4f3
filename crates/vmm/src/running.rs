//! A guest that runs: what is connected to it, and what can be told about it.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::Instant;
use wire::agent::AgentMessage;

use crate::agent::AgentLink;
use crate::backend::{Control, ControlEvent};
use crate::console::LineSplitter;
use crate::event::{AgentInfo, ExitReason};
use crate::launch::{LOG_FILE, with_log};
use crate::process::Process;
use crate::record::Record;

/// How long what a hypervisor left in its sockets may take to arrive after its end.
const DRAIN_WITHIN: Duration = Duration::from_millis(500);
const CONSOLE_READ_BYTES: usize = 16 << 10;
/// What the hypervisor prints is cut above this.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// One incarnation's process and connections.
pub(crate) struct Running {
    pub(crate) record: Record,
    /// In words, for reports.
    pub(crate) hypervisor: String,
    pub(crate) adopted: bool,
    pub(crate) process: Process,
    pub(crate) control: Control,
    pub(crate) agent: AgentLink,
    /// The guest's hello, once it came.
    pub(crate) info: Option<AgentInfo>,
    /// When the hypervisor was started or taken over.
    pub(crate) since: Instant,
    /// When the agent was last heard.
    pub(crate) heard: Instant,
    /// True while the agent is reported as silent.
    pub(crate) silent: bool,
    directory: PathBuf,
    console: Option<UnixStream>,
    lines: LineSplitter,
    chunk: Vec<u8>,
    cause: Cause,
    /// When the control connection was seen to be closed.
    hung_up: Option<Instant>,
}

/// What was seen on the way to the end.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cause {
    /// The hypervisor's own word.
    shutdown: Option<String>,
    panicked: bool,
    /// The control connection ended, and why.
    control_closed: Option<String>,
    /// We killed it, because nothing else could be done with it.
    given_up: bool,
}

/// What a running guest does next.
pub(crate) enum Happening {
    /// Whole lines on its console.
    Lines(Vec<String>),
    /// The agent speaks.
    Agent(AgentMessage),
    /// Something that only matters at the end, or at the next tick.
    Noted,
    /// The process has ended; this was its last word.
    Ended(Option<ExitStatus>),
}

impl Running {
    #[allow(clippy::too_many_arguments)] // The parts of a launch, each of its own type, put together in two places.
    pub(crate) fn new(
        record: Record,
        hypervisor: String,
        adopted: bool,
        directory: PathBuf,
        process: Process,
        control: Control,
        console: UnixStream,
        agent: AgentLink,
    ) -> Running {
        let now = Instant::now();
        Running {
            record,
            hypervisor,
            adopted,
            process,
            control,
            agent,
            info: None,
            since: now,
            heard: now,
            silent: false,
            directory,
            console: Some(console),
            lines: LineSplitter::default(),
            chunk: vec![0; CONSOLE_READ_BYTES],
            cause: Cause::default(),
            hung_up: None,
        }
    }

    /// Waits for the next thing. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Happening {
        let console = async {
            match &mut self.console {
                Some(stream) => stream.read(&mut self.chunk).await,
                None => std::future::pending().await,
            }
        };
        let control = async {
            match self.cause.control_closed {
                None => self.control.events.recv().await,
                Some(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            event = control => {
                self.cause.note(event);
                Happening::Noted
            }
            read = console => match read {
                Ok(count) if count > 0 => {
                    let mut lines = Vec::new();
                    self.lines.push(&self.chunk[..count], |line| lines.push(line));
                    Happening::Lines(lines)
                }
                _ => {
                    self.console = None;
                    Happening::Noted
                }
            },
            message = self.agent.next() => Happening::Agent(message),
            status = self.process.wait() => Happening::Ended(status),
        }
    }

    /// After the end: the rest of the console, and the hypervisor's last events.
    pub(crate) async fn drain(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let deadline = Instant::now() + DRAIN_WITHIN;
        while let Some(stream) = &mut self.console {
            match tokio::time::timeout_at(deadline, stream.read(&mut self.chunk)).await {
                Ok(Ok(count)) if count > 0 => self.lines.push(&self.chunk[..count], |line| lines.push(line)),
                _ => self.console = None,
            }
        }
        lines.extend(self.lines.finish());
        while self.cause.control_closed.is_none() {
            match tokio::time::timeout_at(deadline, self.control.events.recv()).await {
                Ok(event) => self.cause.note(event),
                Err(_) => break,
            }
        }
        lines
    }

    /// Why it ended, by what was seen: for the event, and for people.
    pub(crate) fn verdict(&self, status: Option<ExitStatus>) -> (ExitReason, String) {
        let (reason, text) = self.cause.verdict(status);
        let detail = match reason {
            ExitReason::HypervisorFailed => with_log(&self.hypervisor, &text, &self.directory),
            _ => text,
        };
        (reason, detail)
    }

    /// True when the hypervisor has hung up for longer than `patience`. It hangs up just before it ends; one that
    /// goes on without a control connection can only be killed.
    pub(crate) fn is_out_of_control(&mut self, now: Instant, patience: Duration) -> bool {
        if self.cause.control_closed.is_none() {
            return false;
        }
        let hung_up = *self.hung_up.get_or_insert(now);
        self.cause.given_up = now.duration_since(hung_up) > patience;
        self.cause.given_up
    }

    /// Cuts what the hypervisor has printed, so that it never fills the disk.
    pub(crate) fn bound_log(&self) {
        let path = self.directory.join(LOG_FILE);
        if std::fs::metadata(&path).is_ok_and(|data| data.len() > LOG_BYTES_MAX) {
            // It appends, so it goes on at the new end.
            let cut = std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
            tracing::warn!(path = %path.display(), ok = cut.is_ok(), "a hypervisor prints a lot: its log was cut");
        }
    }
}

impl Cause {
    fn note(&mut self, event: Option<ControlEvent>) {
        match event {
            Some(ControlEvent::ShuttingDown { reason }) => self.shutdown = Some(reason),
            Some(ControlEvent::Panicked) => self.panicked = true,
            Some(ControlEvent::Closed { reason }) => self.control_closed = Some(reason),
            None => self.control_closed = Some("closed".to_owned()),
        }
    }

    /// The first of these that fits: the guest's own doing, a signal, the hypervisor's doing.
    fn verdict(&self, status: Option<ExitStatus>) -> (ExitReason, String) {
        let shutdown = self.shutdown.as_deref();
        if self.panicked || shutdown == Some("guest-panic") {
            return (ExitReason::GuestPanicked, "the guest's kernel panicked".to_owned());
        }
        match shutdown {
            Some("guest-shutdown") => return (ExitReason::GuestShutdown, "the guest powered off".to_owned()),
            Some("guest-reset") => return (ExitReason::GuestReset, "the guest reset itself".to_owned()),
            _ => {}
        }
        if self.given_up {
            let reason = self.control_closed.as_deref().unwrap_or_default();
            return (
                ExitReason::HypervisorFailed,
                format!("could not be controlled any more ({reason}) and was killed"),
            );
        }
        if let Some(signal) = status.and_then(|status| status.signal()) {
            return (ExitReason::Killed, format!("the hypervisor was killed by signal {signal}"));
        }
        if shutdown == Some("host-signal") {
            return (ExitReason::Killed, "the hypervisor was told by a signal to end".to_owned());
        }
        match (shutdown, status) {
            // Not our child (adopted), and without a word: only a signal or a crash ends a hypervisor like that.
            (None, None) => (ExitReason::Killed, "the hypervisor is gone without a word".to_owned()),
            (Some(word), _) => (ExitReason::HypervisorFailed, format!("ended ({word})")),
            (None, Some(status)) => (ExitReason::HypervisorFailed, format!("ended by itself ({status})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_by_what_was_seen() {
        let exit = |code: i32| Some(ExitStatus::from_raw(code << 8));
        let cases = [
            (None, Some("guest-shutdown"), exit(0), ExitReason::GuestShutdown),
            (None, Some("guest-reset"), exit(0), ExitReason::GuestReset),
            (Some(()), Some("guest-panic"), exit(1), ExitReason::GuestPanicked),
            (Some(()), None, None, ExitReason::GuestPanicked),
            (None, None, Some(ExitStatus::from_raw(9)), ExitReason::Killed),
            (None, Some("host-signal"), exit(0), ExitReason::Killed),
            (None, None, None, ExitReason::Killed),
            (None, None, exit(1), ExitReason::HypervisorFailed),
            (None, Some("host-error"), exit(1), ExitReason::HypervisorFailed),
        ];
        for (panicked, shutdown, status, expect) in cases {
            let shutdown = shutdown.map(str::to_owned);
            let cause = Cause { panicked: panicked.is_some(), shutdown, ..Cause::default() };
            let (reason, detail) = cause.verdict(status);
            assert_eq!(reason, expect, "{cause:?} {status:?}: {detail}");
        }
    }
}
