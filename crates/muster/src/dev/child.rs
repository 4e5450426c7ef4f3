//! One node process of a development cluster.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::layout::NodePlace;

/// Bytes of a log that are shown when its node ends.
const LOG_TAIL_BYTES: u64 = 2_000;

/// A node process and its log.
pub(crate) struct NodeProcess {
    pub place: NodePlace,
    log: PathBuf,
    /// Where this start's part of the log begins.
    log_from: u64,
    restart: String,
    child: Child,
}

impl NodeProcess {
    /// Starts it. With a token it joins; otherwise it goes on with (or forms) the cluster in its data directory.
    pub(crate) fn start(
        dir: &Path,
        place: &NodePlace,
        kernel: Option<&Path>,
        token: Option<&str>,
    ) -> anyhow::Result<NodeProcess> {
        let program = std::env::current_exe().context("cannot find the muster binary itself")?;
        let log = dir.join(format!("{}.log", place.name));
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let log_from = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let mut args: Vec<std::ffi::OsString> = vec![
            "--data-dir".into(),
            dir.join(&place.name).into(),
            "--name".into(),
            place.name.clone().into(),
            "--kafka-listen".into(),
            place.kafka.to_string().into(),
            "--api-listen".into(),
            place.api.to_string().into(),
            "--peer-listen".into(),
            place.peer.to_string().into(),
        ];
        if let Some(kernel) = kernel {
            args.extend(["--kernel".into(), kernel.into()]);
        }
        let shown: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let restart = format!("muster up {}", shown.join(" "));
        let mut command = Command::new(program);
        // A process group of its own: Ctrl-C in the terminal reaches this process alone, which then stops its nodes.
        command.process_group(0).stdout(file.try_clone()?).stderr(file);
        match token {
            // Over stdin, so that the secret stands in no process list.
            Some(_) => command.args(["join", "-"]).stdin(Stdio::piped()),
            None => command.arg("up").stdin(Stdio::null()),
        };
        command.args(args).arg("--parent").arg(std::process::id().to_string());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", place.name))?;
        if let (Some(token), Some(mut stdin)) = (token, child.stdin.take()) {
            writeln!(stdin, "{token}").with_context(|| format!("{} ended at once", place.name))?;
        }
        Ok(NodeProcess { place: place.clone(), log, log_from, restart, child })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to stop.
    pub(crate) fn ask_to_stop(&self) {
        // The child is ours and not reaped yet, so that its pid cannot be somebody else's.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What to tell of its end: how, the last lines of its log, and how to start it again.
    pub(crate) fn obituary(&self, status: ExitStatus) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("with exit code {code}"),
            (None, Some(signal)) => format!("by signal {signal}"),
            (None, None) => "for an unknown reason".into(),
        };
        let tail: String = self.log_tail().lines().map(|line| format!("\n  | {line}")).collect();
        format!(
            "{} ended {how}; the end of {}:{tail}\n  start it again with: {}",
            self.place.name,
            self.log.display(),
            self.restart
        )
    }

    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL_BYTES).max(self.log_from)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}
