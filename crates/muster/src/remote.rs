//! Verbs that are operations: asked of a node's API, shown as the operation says.

use std::io::Read;
use std::process::ExitCode;

use base::ErrorCode;
use base::limits::API_BODY_BYTES_MAX;
use clap::ArgMatches;
use doors::render::{self, Format};
use operations::Ports;
use ops::{OpError, Registry, Spec};
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::command::{API_DEFAULT, API_ENV};
use crate::terminal;

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

/// Reads the field that stands for standard input, if it is `-`: as text, or in base64 if it is none.
fn with_stdin(spec: &Spec, mut input: Value) -> Result<Value, OpError> {
    let Some(field) = spec.stdin.filter(|field| input[*field] == "-") else { return Ok(input) };
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(API_BODY_BYTES_MAX as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| OpError::new(ErrorCode::InvalidArgument, format!("cannot read standard input: {error}")))?;
    input[field] = match String::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(error) => {
            input["encoding"] = "base64".into();
            data_encoding::BASE64.encode(error.as_bytes()).into()
        }
    };
    Ok(input)
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
    let print = |value: &Value| {
        let text = render::output(spec, value, format);
        let printed = if text.is_empty() { Ok(()) } else { terminal::print(text) };
        printed.map_err(|error| OpError::new(ErrorCode::Internal, format!("cannot print: {error}")))
    };
    match client.call(spec, input)? {
        Answer::Value(value) => print(&value),
        Answer::Items(items) => items.into_iter().try_for_each(|item| print(&item?)),
    }
}

fn failed(error: &OpError, format: Format, code: u8) -> ExitCode {
    terminal::complain(&render::failure(error, format));
    ExitCode::from(code)
}
