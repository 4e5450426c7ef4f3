//! Builds the guest agent as a static binary and hands it to `include_bytes!`, so that muster stays one file.
//!
//! The agent is built by a second cargo in a target directory of its own (two cargos in one would wait for each other
//! for ever), shared by every profile, and with none of the outer build's flags and wrappers: `cargo clippy` or a
//! sanitizer must not leak into the guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for part in ["guest-agent/src", "guest-agent/Cargo.toml", "wire/src", "wire/Cargo.toml", "base/src"] {
        println!("cargo::rerun-if-changed={}", crates.join(part).display());
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    // OUT_DIR is TARGET_DIR/PROFILE/build/vmm-HASH/out.
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("guest-agent");
    let target = variable("TARGET");
    build(&crates, &target_dir, &target);
    let binary = target_dir.join(&target).join("release/guest-agent");
    if let Err(error) = fs::copy(&binary, out.join("guest-agent")) {
        panic!("cannot copy the guest agent {}: {error}", binary.display());
    }
}

fn build(crates: &Path, target_dir: &Path, target: &str) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--package", "guest-agent", "--target", target, "--target-dir"]);
    cargo.arg(target_dir).arg("--manifest-path").arg(crates.join("guest-agent/Cargo.toml"));
    let inherited = ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if inherited.contains(&name.as_ref()) || name.starts_with("CARGO_CFG_") || name.starts_with("CARGO_FEATURE_") {
            cargo.env_remove(name.as_ref());
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let profile = [
        ("OPT_LEVEL", "s"),
        ("PANIC", "abort"),
        ("LTO", "true"),
        ("CODEGEN_UNITS", "1"),
        ("STRIP", "symbols"),
        ("DEBUG", "false"),
    ];
    for (key, value) in profile {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    match cargo.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("the guest agent does not build:\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("cannot run cargo for the guest agent: {error}"),
    }
}

fn variable(name: &str) -> String {
    match env::var(name) {
        Ok(value) => value,
        Err(error) => panic!("cargo did not set {name}: {error}"),
    }
}
