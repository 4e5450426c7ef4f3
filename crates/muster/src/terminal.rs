//! What goes to the terminal.

use std::io::Write;
use std::process::ExitCode;

/// Prints a line to stdout. A reader that went away (`muster vm logs web | head`) ends the process quietly.
pub(crate) fn print(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// How this program was called, for commands that are to be copied: it may not be on the path.
pub(crate) fn program() -> String {
    std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "muster".into())
}

/// Tells of a failure, with the chain of its causes.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    complain(&format!("error: {error:#}"));
    ExitCode::from(1)
}

/// Prints a line to stderr; if nobody listens there, nobody can be told.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
