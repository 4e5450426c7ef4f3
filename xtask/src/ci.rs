//! `cargo xtask ci`: the checks that a change must pass, in the order in which they fail fastest.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Runs every check and stops at the first that fails.
pub fn run(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    crate::tidy::run(root)?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    // Not among all targets: it is no test of `cargo test`.
    cargo(root, &["clippy", "-p", "sim", "--test", "rare", "--quiet", "--", "-D", "warnings"])?;
    // The integration tests start the built binary, which `cargo test` alone does not build.
    make(root, "test")?;
    make(root, "plants")
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
    for name in set_by_cargo_run(std::env::vars_os().map(|(name, _)| name)) {
        command.env_remove(name);
    }
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(status.success(), "ci: `{line}` failed: {status}");
    Ok(())
}

/// What `cargo run` says of the package that it runs. Build scripts of libraries (ring's) look at variables of these names,
/// set for themselves, and Cargo compares what it finds in its own environment: a build within `cargo xtask` and one
/// outside of it would take turns to build those libraries anew, and all that stands on them.
fn set_by_cargo_run(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let is_one =
        |name: &str| name.starts_with("CARGO_PKG_") || matches!(name, "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH");
    names.filter(move |name| name.to_str().is_some_and(is_one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_see_what_the_user_set_and_nothing_of_xtasks_own_package() {
        let own = ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_PRE"];
        let users = ["CARGO", "CARGO_HOME", "CARGO_INCREMENTAL", "CARGO_TARGET_DIR", "CARGO_TERM_COLOR", "PATH"];
        let removed: Vec<_> = set_by_cargo_run(own.iter().chain(&users).map(OsString::from)).collect();
        assert_eq!(removed, own);
    }

    #[test]
    fn a_step_runs_without_them() {
        // A test has them, as a program that `cargo run` started has.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let script = "! env | grep -E '^CARGO_(PKG_|MANIFEST_)'";
        step(Command::new("sh").args(["-c", script])).unwrap();
    }
}
