//! Kernel modules for a guest: those that muster's devices need, with what they depend on, in load order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ImageError, io_error, read_bounded};

/// What the devices of a muster guest need. The agent's port comes first, because readiness waits for it. A kernel
/// that has one of these built in has no file for it, and needs none.
const WANTED: [&str; 8] =
    ["virtio_mmio", "virtio_console", "pvpanic_mmio", "button", "evdev", "virtio_blk", "virtio_net", "virtio_rng"];
/// Directories below a module directory, at most.
const DEPTH_MAX: usize = 12;

/// One module, unpacked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The modules wanted and all they depend on, each after what it depends on.
pub(crate) fn collect(directory: &Path) -> Result<Vec<Module>, ImageError> {
    let mut files = BTreeMap::new();
    find(directory, DEPTH_MAX, &mut files)?;
    let mut collected = Vec::new();
    for name in WANTED {
        add(name, &mut files, &mut collected)?;
    }
    Ok(collected)
}

/// Adds `name` behind its dependencies. Taking the file out of `files` first ends any cycle.
fn add(name: &str, files: &mut BTreeMap<String, PathBuf>, to: &mut Vec<Module>) -> Result<(), ImageError> {
    let Some(path) = files.remove(name) else { return Ok(()) };
    let bytes = unpack(&path)?;
    for dependency in dependencies(&bytes) {
        add(&dependency, files, to)?;
    }
    to.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// All modules below `directory`, by name. Links are not followed (`build` and `source` lead far away).
fn find(directory: &Path, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    for entry in std::fs::read_dir(directory).map_err(io_error(directory))? {
        let entry = entry.map_err(io_error(directory))?;
        let kind = entry.file_type().map_err(io_error(directory))?;
        if kind.is_dir() && depth > 0 {
            find(&entry.path(), depth - 1, files)?;
        } else if kind.is_file()
            && let Some((name, "" | ".xz" | ".zst" | ".gz")) = entry.file_name().to_string_lossy().split_once(".ko")
        {
            files.insert(plain(name), entry.path());
        }
    }
    Ok(())
}

/// The kernel takes `-` and `_` in names for the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn unpack(path: &Path) -> Result<Vec<u8>, ImageError> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return read_bounded(path),
    };
    let failed = |reason: String| ImageError::Module { path: path.to_owned(), reason };
    let output = Command::new(tool)
        .args(["-dc"])
        .arg(path)
        .output()
        .map_err(|error| failed(format!("cannot run {tool} to unpack it ({error}): install it")))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(failed(format!("{tool} says {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// The names in the module's `depends=` entry (section `.modinfo`: entries that end with a zero byte).
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let Some(at) = module.windows(KEY.len() + 1).position(|part| part[0] == 0 && &part[1..] == KEY) else {
        return Vec::new();
    };
    let value = module[at + 1 + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = value.split(|&byte| byte == b',').filter(|name| !name.is_empty());
    names.map(|name| plain(&String::from_utf8_lossy(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF..\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn modules_come_after_what_they_depend_on_each_once() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("kernel/drivers");
        std::fs::create_dir_all(&deep).unwrap();
        for (file, depends) in [
            ("virtio_mmio.ko", "virtio_ring,virtio"),
            ("virtio.ko", "virtio_ring"),
            ("virtio_ring.ko", ""),
            ("pvpanic-mmio.ko", "pvpanic"),
            ("pvpanic.ko", "pvpanic-mmio"),
            ("unrelated.ko", ""),
            ("evdev.ko.debug", ""),
        ] {
            std::fs::write(deep.join(file), module(depends)).unwrap();
        }
        let names: Vec<_> = collect(directory.path()).unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_mmio", "pvpanic", "pvpanic_mmio"]);
    }

    #[test]
    fn packed_modules_are_unpacked_and_damage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("evdev.ko");
        std::fs::write(&path, module("")).unwrap();
        assert!(Command::new("xz").arg(&path).status().expect("xz is installed").success());
        assert_eq!(collect(directory.path()).unwrap(), [Module { name: "evdev".into(), bytes: module("") }]);
        std::fs::write(directory.path().join("evdev.ko.xz"), b"not xz").unwrap();
        let error = collect(directory.path()).unwrap_err().to_string();
        assert!(error.contains("evdev.ko.xz") && error.contains("xz says"), "{error}");
    }
}
