//! The `muster` command: starts nodes, and asks them for things.
//!
//! Verbs that are operations come from the registry ([`operations`]) by way of [`doors::cli`] and travel to a node's
//! API; only what starts processes is written here. Exit codes: 0 done, 1 failed, 2 misused.

mod client;
mod command;
mod demo;
mod dev;
mod recover;
mod remote;
mod signals;
mod start;
mod terminal;

use std::process::ExitCode;

use doors::render::Format;

/// Reserves memory lazily: the Kafka decoder believes element counts before it has seen the elements
/// (docs/decisions: the Kafka codec).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let registry = match operations::registry() {
        Ok(registry) => registry,
        Err(error) => return terminal::fail(&anyhow::Error::new(error), Format::Human),
    };
    let words: Vec<_> = std::env::args_os().collect();
    let matches = match command::parse(command::command(&registry), words.clone()) {
        Ok(matches) => matches,
        Err(error) => return terminal::misused(&error, &words),
    };
    let outcome = match matches.subcommand() {
        Some(("up", args)) => start::up(args),
        Some(("join", args)) => start::join(args),
        Some(("node", args)) if args.subcommand().is_none() => start::node(args),
        Some(("dev", args)) => dev::run(args),
        Some(("demo", args)) => demo::run(&registry, args),
        Some(("recover", args)) => recover::run(args),
        Some(("version", args)) => remote::version(args),
        _ => return remote::run(&registry, &matches),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::fail(&error, remote::format(&matches)),
    }
}
