//! What goes to the terminal.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use base::ErrorCode;
use doors::render::{self, Format};
use ops::OpError;
use serde_json::Value;

/// Prints a line to stdout. A reader that went away (`muster vm logs web | head`) ends the process quietly.
pub(crate) fn print(text: impl AsRef<str>) -> anyhow::Result<()> {
    write(format!("{}\n", text.as_ref()).as_bytes())
}

/// Whether a person reads stdout, and no file or program.
pub(crate) fn is_read_by_a_person() -> bool {
    std::io::stdout().is_terminal()
}

/// Writes bytes to stdout as they are; the same if the reader went away.
pub(crate) fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// How this program was called, for commands that are to be copied: it may not be on the path.
pub(crate) fn program() -> String {
    std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "muster".into())
}

/// Tells what a process that runs on has come to: `text` to people; to programs one JSON object a line, with `event` in it
/// and the members of `fields`.
pub(crate) fn tell(format: Format, event: &str, fields: Value, text: impl AsRef<str>) -> anyhow::Result<()> {
    match format {
        Format::Human => print(text),
        Format::Json => {
            let mut told = serde_json::Map::from_iter([("event".to_owned(), event.into())]);
            if let Value::Object(fields) = fields {
                told.extend(fields);
            }
            print(Value::Object(told).to_string())
        }
    }
}

/// Seconds since `began`, to the millisecond.
pub(crate) fn seconds_since(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

/// Tells of a failure, with the chain of its causes.
pub(crate) fn fail(error: &anyhow::Error, format: Format) -> ExitCode {
    // What could not be started has a reason outside: a port in use, a directory that is another's.
    let told = OpError::new(ErrorCode::FailedPrecondition, format!("{error:#}"));
    complain(&render::failure(&told, format));
    ExitCode::from(1)
}

/// Help and version print to stdout and end with 0; misuse ends with 2, told as the words of the command line want it.
pub(crate) fn misused(error: &clap::Error, words: &[OsString]) -> ExitCode {
    if !error.use_stderr() || !wants_json(words) {
        error.exit()
    }
    let text = error.render().to_string();
    let mut parts = text.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = parts.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let rest: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    let hint = rest.iter().find_map(|part| part.strip_prefix("tip: ")).or(rest.last().map(String::as_str));
    let told = OpError { hint: hint.map(str::to_owned), ..OpError::new(ErrorCode::InvalidArgument, message) };
    complain(&render::failure(&told, Format::Json));
    ExitCode::from(2)
}

/// Whether `--output json` is among words that clap could not read.
fn wants_json(words: &[OsString]) -> bool {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    words.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]))
        || words.iter().any(|word| matches!(*word, "-ojson" | "-o=json" | "--output=json"))
}

/// Prints a line to stderr; if nobody listens there, nobody can be told.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_wanted_however_it_is_spelled() {
        let wants = |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["muster -o json vn", "muster vn --output json", "muster vn --output=json", "muster -ojson vn"] {
            assert!(wants(line), "{line}");
        }
        for line in ["muster vn", "muster vn --output human", "muster vm create json -o", "muster json"] {
            assert!(!wants(line), "{line}");
        }
    }
}
