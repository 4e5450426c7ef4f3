//! The default guest kernel: Debian's cloud kernel, downloaded by apt and unpacked, never installed.
//!
//! Kept under `IMAGES/kernels/PACKAGE/` as `vmlinuz` and `modules/`. Once there it is used as it is: a newer package
//! does not change what VMs boot until the directory is removed.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ImageError, KernelSource, Progress, Scratch, io_error, modules, publish};

#[cfg(target_arch = "x86_64")]
const META_PACKAGE: &str = "linux-image-cloud-amd64";
#[cfg(not(target_arch = "x86_64"))]
const META_PACKAGE: &str = "linux-image-cloud-arm64";

/// The kernel, downloaded unless it is there. The caller holds the lock of `root`.
pub(crate) fn fetch(root: &Path, progress: &Progress) -> Result<KernelSource, ImageError> {
    let kernels = root.join("kernels");
    std::fs::create_dir_all(&kernels).map_err(io_error(&kernels))?;
    if let Some(source) = cached(&kernels) {
        return Ok(source);
    }
    let package = resolve()?;
    progress(&format!("downloading the guest kernel {package} (27 MB, once)"));
    let scratch = Scratch::new(root)?;
    download(&package, &scratch.0)?;
    progress(&format!("unpacking the guest kernel {package}"));
    let finished = scratch.0.join("finished");
    unpack(&scratch.0, &finished)?;
    publish(&finished, &kernels.join(&package))?;
    cached(&kernels).ok_or_else(|| failed(format!("{package} was unpacked into {} and is gone", kernels.display())))
}

/// The newest kernel kept, by name.
fn cached(kernels: &Path) -> Option<KernelSource> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(kernels).ok()?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    let directory = names.into_iter().rev().find(|path| path.join("vmlinuz").is_file())?;
    Some(KernelSource { kernel: directory.join("vmlinuz"), modules: Some(directory.join("modules")) })
}

/// The package that holds the kernel, from the package that always points to the current one.
fn resolve() -> Result<String, ImageError> {
    let mut command = Command::new("apt-cache");
    command.args(["show", "--no-all-versions", META_PACKAGE]);
    let shown = run(command)?;
    kernel_package(&shown).ok_or_else(|| failed(format!("apt-cache knows no kernel for {META_PACKAGE}")))
}

fn kernel_package(shown: &str) -> Option<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let names = depends.split(',').filter_map(|part| part.split_ascii_whitespace().next());
    names.into_iter().find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn download(package: &str, into: &Path) -> Result<(), ImageError> {
    let mut command = Command::new("apt-get");
    // Without this, apt as root wants the directory to be readable by its user `_apt`.
    command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"]);
    command.args(["download", package]).current_dir(into);
    run(command).map(drop)
}

fn unpack(scratch: &Path, finished: &Path) -> Result<(), ImageError> {
    let package = find_in(scratch, |name| name.ends_with(".deb"))?;
    let tree = scratch.join("tree");
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(&package).arg(&tree);
    run(command)?;
    let kernel = find_in(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    // A merged /usr has its modules there.
    let modules_root = ["lib/modules", "usr/lib/modules"].iter().map(|path| tree.join(path)).find(|path| path.is_dir());
    let modules_root = modules_root.ok_or_else(|| failed(format!("{} has no lib/modules", package.display())))?;
    let modules_to = finished.join("modules");
    std::fs::create_dir_all(&modules_to).map_err(io_error(&modules_to))?;
    for module in modules::collect(&modules_root)? {
        let path = modules_to.join(format!("{}.ko", module.name));
        std::fs::write(&path, module.bytes).map_err(io_error(&path))?;
    }
    let kernel_to = finished.join("vmlinuz");
    std::fs::copy(&kernel, &kernel_to).map(drop).map_err(io_error(&kernel_to))
}

fn find_in(directory: &Path, matches: impl Fn(&str) -> bool) -> Result<PathBuf, ImageError> {
    let entries = std::fs::read_dir(directory).map_err(io_error(directory))?;
    let found = entries.flatten().find(|entry| matches(&entry.file_name().to_string_lossy()));
    found
        .map(|entry| entry.path())
        .ok_or_else(|| failed(format!("what was downloaded into {} is not a kernel package", directory.display())))
}

/// Runs a tool of the Debian package system; what it prints is the answer, or the reason of the failure.
fn run(mut command: Command) -> Result<String, ImageError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| failed(format!("cannot run {name}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(failed(format!("{name} failed: {said}")))
}

fn failed(reason: String) -> ImageError {
    ImageError::Fetch { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_behind_the_package_that_points_to_it() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
             Depends: foo (>= 2), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: Linux\n";
        assert_eq!(kernel_package(shown).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(kernel_package(""), None);
    }

    #[test]
    fn a_kernel_that_is_there_is_used_without_asking_apt() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("kernels/linux-image-1");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("vmlinuz"), b"").unwrap();
        let progress: Progress = std::sync::Arc::new(|text| panic!("{text}"));
        assert_eq!(fetch(root.path(), &progress).unwrap().kernel, directory.join("vmlinuz"));
    }

    #[test]
    fn a_tool_that_fails_or_is_missing_is_named_with_the_way_out() {
        let missing = run(Command::new("muster-no-such-tool")).unwrap_err().to_string();
        assert!(missing.contains("muster-no-such-tool") && missing.contains("--kernel PATH"), "{missing}");
        let mut apt = Command::new("apt-get");
        apt.args(["download", "muster-no-such-package"]);
        let error = run(apt).unwrap_err().to_string();
        assert!(error.contains("muster-no-such-package") && error.contains("apt-get update"), "{error}");
    }
}
