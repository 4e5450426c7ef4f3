//! `cargo xtask ci`: the checks that a change must pass, in the order in which they fail fastest.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Runs every check and stops at the first that fails.
pub fn run(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    crate::tidy::run(root)?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    // The integration tests start the built binary, which `cargo test` alone does not build.
    make(root, "test")
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    step(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(arguments).current_dir(root))
}

fn make(root: &Path, target: &str) -> anyhow::Result<()> {
    step(Command::new("make").arg(target).current_dir(root))
}

/// Runs one command in the open, so that its output is seen as it comes.
fn step(command: &mut Command) -> anyhow::Result<()> {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    println!("ci: {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(status.success(), "ci: `{line}` failed: {status}");
    Ok(())
}
