//! Verbs that are operations: asked of a node's API, shown as the operation says.

use std::io::Read;
use std::process::ExitCode;

use base::ErrorCode;
use base::limits::KV_VALUE_BYTES_MAX;
use clap::ArgMatches;
use doors::render::{self, Format};
use operations::Ports;
use ops::{Human, OpError, Registry, Spec};
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::command::{API_DEFAULT, API_ENV};
use crate::terminal;

/// What is read of standard input. That is more than a value may have, also of one in base64, and little enough to reach the
/// API, which says so.
const STDIN_BYTES_MAX: u64 = KV_VALUE_BYTES_MAX as u64 / 2 * 3;

/// Carries out what the command line asks for.
pub(crate) fn run(registry: &Registry<Ports>, matches: &ArgMatches) -> ExitCode {
    let format = format(matches);
    let wanted = match doors::cli::wanted(registry, matches) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => {
            let error = OpError::new(ErrorCode::Internal, "this command is not carried out by anything");
            return failed(&error, format, 2);
        }
        Err(error) => return failed(&error, format, 2),
    };
    let client = Client::new(&api(matches)).with_deadline(matches.get_one::<base::Millis>("deadline").copied());
    let input = match with_stdin(wanted.spec, wanted.input.clone()) {
        Ok(input) => input,
        Err(error) => return failed(&error, format, 2),
    };
    if let Err(error) = show(&client, wanted.spec, &input, format) {
        return failed(&error, format, 1);
    }
    if let Some((spec, input)) = &wanted.then
        && let Err(error) = show(&client, spec, input, format)
    {
        return failed(&error, format, 1);
    }
    ExitCode::SUCCESS
}

/// Reads the field that stands for standard input, if it is `-`.
fn with_stdin(spec: &Spec, input: Value) -> Result<Value, OpError> {
    let Some(field) = spec.stdin.filter(|field| input[*field] == "-") else { return Ok(input) };
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(STDIN_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| OpError::new(ErrorCode::InvalidArgument, format!("cannot read standard input: {error}")))?;
    Ok(filled(input, field, &bytes))
}

/// The input with bytes in a field: as they are if they are text, otherwise in base64.
fn filled(mut input: Value, field: &str, bytes: &[u8]) -> Value {
    let base64 = |bytes: &[u8]| Value::from(data_encoding::BASE64.encode(bytes));
    match operations::plain_text(bytes) {
        Some(text) => input[field] = text.into(),
        None => {
            input[field] = base64(bytes);
            // `kv cas` has both of its values in one encoding.
            let expect = input.get("expect").and_then(Value::as_str).map(|text| base64(text.as_bytes()));
            if let Some(expect) = expect.filter(|_| input["encoding"] != "base64") {
                input["expect"] = expect;
            }
            input["encoding"] = "base64".into();
        }
    }
    input
}

/// `muster version`.
pub(crate) fn version(matches: &ArgMatches) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    terminal::print(match format(matches) {
        Format::Json => serde_json::json!({ "version": version }).to_string(),
        Format::Human => format!("muster {version}"),
    })
}

/// The API to ask: `--api`, the environment, or this machine.
fn api(matches: &ArgMatches) -> String {
    let from_environment = || std::env::var(API_ENV).ok().filter(|value| !value.is_empty());
    let given = matches.get_one::<String>("api").cloned();
    given.or_else(from_environment).unwrap_or_else(|| API_DEFAULT.to_owned())
}

/// How to answer: `--output`.
pub(crate) fn format(matches: &ArgMatches) -> Format {
    match matches.get_one::<String>("output").map(String::as_str) {
        Some("json") => Format::Json,
        _ => Format::Human,
    }
}

/// Carries out one operation and prints what it gives, as it comes.
pub(crate) fn show(client: &Client, spec: &Spec, input: &Value, format: Format) -> Result<(), OpError> {
    let cannot_print = |error: anyhow::Error| OpError::new(ErrorCode::Internal, format!("cannot print: {error}"));
    let print = |value: &Value| {
        let text = render::output(spec, value, format);
        let printed = if text.is_empty() { Ok(()) } else { terminal::print(text) };
        printed.map_err(cannot_print)
    };
    match client.call(spec, input)? {
        Answer::Value(value) => match spec.human {
            Human::Bytes { bytes, .. } if format == Format::Human && !terminal::is_read_by_a_person() => {
                terminal::write(&bytes(&value)).map_err(cannot_print)
            }
            _ => print(&value),
        },
        Answer::Items(items) => items.into_iter().try_for_each(|item| print(&item?)),
    }
}

fn failed(error: &OpError, format: Format, code: u8) -> ExitCode {
    terminal::complain(&render::failure(error, format));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_standard_input_holds_travels_as_text_or_in_base64() {
        let text = "blue\n\t\"quoted\" \u{e9}\r\n";
        let input = json!({ "key": "k", "value": "-" });
        assert_eq!(filled(input.clone(), "value", text.as_bytes()), json!({ "key": "k", "value": text }));
        for bytes in [&b"\xff"[..], b"\0", b"\x1b[2J", b"\x7f", "\u{9b}2J".as_bytes()] {
            let expect = json!({ "key": "k", "value": BASE64.encode(bytes), "encoding": "base64" });
            assert_eq!(filled(input.clone(), "value", bytes), expect);
        }
    }

    #[test]
    fn what_is_expected_is_in_the_same_encoding_as_what_is_set() {
        let set = |expect: &str, bytes: &[u8]| filled(json!({ "value": "-", "expect": expect }), "value", bytes);
        assert_eq!(set("blue", b"red"), json!({ "value": "red", "expect": "blue" }));
        let base64 = json!({ "value": "AA==", "expect": BASE64.encode(b"blue"), "encoding": "base64" });
        assert_eq!(set("blue", b"\0"), base64);
        // It was said to be base64 already.
        let said = json!({ "value": "-", "expect": "AAE=", "encoding": "base64" });
        assert_eq!(filled(said, "value", b"\0"), json!({ "value": "AA==", "expect": "AAE=", "encoding": "base64" }));
    }
}
