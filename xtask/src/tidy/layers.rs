//! The layer rule: a crate imports only lower layers, never a sibling; and some libraries belong to one room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Finding;

/// Every room of the house and its layer, lowest first.
pub const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("wire", 1),
    ("journal", 1),
    ("multiraft", 1),
    ("ops", 1),
    ("linear", 1),
    ("stream", 2),
    ("compute", 2),
    ("metadata", 3),
    ("engine", 4),
    ("runtime", 5),
    ("transport", 6),
    ("vmm", 6),
    ("kafka", 6),
    ("operations", 6),
    ("doors", 6),
    ("beam", 6),
    ("node", 7),
    ("muster", 8),
    ("guest-agent", 8),
    ("sim", 8),
    ("testkit", 8),
    ("xtask", 8),
];

/// Layers up to this one are pure: no I/O, no clock, no chance, no tasks.
pub const LAST_PURE: u8 = 4;

/// Crates of layer 1 that stand on another one of layer 1, with the reason. (The drawing puts them side by side.)
const WITHIN_LAYER: &[(&str, &str, &str)] = &[
    ("journal", "wire", "the journal stores payloads in the encodings of `wire`"),
    ("multiraft", "wire", "Raft messages and entries have their shapes in `wire`"),
];

/// Workspace crates that must not import any other: they know muster only from outside.
const OUTSIDERS: &[&str] = &["testkit", "xtask"];

/// Workspace crates that outsiders may import all the same: they know nothing of muster, and ship without any other crate.
const OF_ANY_SYSTEM: &[&str] = &["linear"];

/// Libraries that only the named crates may declare, so that replacing one changes one room.
const ROOMS: &[(&str, &[&str])] = &[
    ("raft", &["multiraft"]),
    ("iroh", &["transport"]),
    ("kafka-protocol", &["kafka"]),
    ("kvm-ioctls", &["vmm"]),
    ("kvm-bindings", &["vmm"]),
    ("axum", &["doors"]),
];

/// What must be nowhere below a pure crate, however indirectly.
const NEVER_BELOW_PURE: &[&str] = &["tokio", "mio", "async-std", "smol", "hyper", "iroh", "ureq"];

/// The layer of a workspace crate, or `None` if it has no place in the house.
pub fn layer_of(krate: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == krate).map(|(_, layer)| *layer)
}

/// The workspace as Cargo sees it.
#[derive(Debug, Default)]
pub struct Packages {
    /// Crates of the workspace, each with the names of what it declares for what it ships.
    declared: BTreeMap<String, BTreeSet<String>>,
    /// The same, for tests alone.
    declared_dev: BTreeMap<String, BTreeSet<String>>,
    /// Every package of the graph by name, with the names of its resolved normal dependencies.
    resolved: BTreeMap<String, BTreeSet<String>>,
    /// What every package that is not of the workspace says of its licence, by name.
    licences: BTreeMap<String, String>,
}

impl Packages {
    /// Asks Cargo, for Linux alone: the graph of every platform would have to be downloaded first.
    ///
    /// # Errors
    /// If Cargo fails or answers in another shape.
    pub fn of(root: &Path) -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(root)
            .output()
            .context("cannot run `cargo metadata`")?;
        ensure!(output.status.success(), "`cargo metadata` failed:\n{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).context("`cargo metadata` gave no JSON")?;
        let packages = Self::from_metadata(&answer).context("`cargo metadata` answered in an unknown shape")?;
        ensure!(packages.declared.contains_key("base"), "`cargo metadata` does not list the crate `base`");
        Ok(packages)
    }

    fn from_metadata(answer: &Value) -> Option<Self> {
        let mut packages = Packages::default();
        let mut names = BTreeMap::new();
        let mut licences = BTreeMap::new();
        let members: BTreeSet<&str> =
            answer["workspace_members"].as_array()?.iter().filter_map(Value::as_str).collect();
        for package in answer["packages"].as_array()? {
            let (id, name) = (package["id"].as_str()?, package["name"].as_str()?);
            names.insert(id, name);
            if members.contains(id) {
                let dependencies = package["dependencies"].as_array()?;
                let declared = packages.declared.entry(name.into()).or_default();
                let declared_dev = packages.declared_dev.entry(name.into()).or_default();
                for dependency in dependencies {
                    let list = if dependency["kind"] == "dev" { &mut *declared_dev } else { &mut *declared };
                    list.insert(dependency["name"].as_str()?.to_owned());
                }
            }
            let licence = package["license"].as_str().unwrap_or_default();
            licences.insert(id, licence);
        }
        for node in answer["resolve"]["nodes"].as_array()? {
            let id = node["id"].as_str()?;
            let name = names.get(id)?;
            if !members.contains(id) {
                packages.licences.insert((*name).to_owned(), licences.get(id).copied().unwrap_or_default().to_owned());
            }
            let normal = |dependency: &&Value| {
                dependency["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
            };
            let dependencies = node["deps"].as_array()?.iter().filter(normal);
            let found = dependencies.filter_map(|dependency| names.get(dependency["pkg"].as_str()?));
            let found = found.map(|name| (*name).to_owned());
            packages.resolved.entry((*name).to_owned()).or_default().extend(found);
        }
        Some(packages)
    }

    /// Names of the workspace's crates.
    pub fn crates(&self) -> impl Iterator<Item = &str> {
        self.declared.keys().map(String::as_str)
    }

    /// Packages that are not of the workspace, each with the licence that it names.
    pub fn licences(&self) -> &BTreeMap<String, String> {
        &self.licences
    }

    /// Whether any crate of the workspace declares `library`.
    pub fn uses(&self, library: &str) -> bool {
        self.declared.values().chain(self.declared_dev.values()).any(|declared| declared.contains(library))
    }

    /// Every dependency that the house forbids.
    pub fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (krate, declared) in &self.declared {
            let Some(layer) = layer_of(krate) else {
                let message = "no layer: give the crate a place in LAYERS (xtask/src/tidy/layers.rs) and a row in \
                               ARCHITECTURE.md";
                findings.push(finding(krate, krate, message.into()));
                continue;
            };
            for dependency in declared {
                findings.extend(self.check_declared(krate, layer, dependency));
                if OF_ANY_SYSTEM.contains(&krate.as_str()) && self.declared.contains_key(dependency) {
                    let message = format!("imports `{dependency}`: outsiders, who must not, would do so too");
                    findings.push(finding(krate, dependency, message));
                }
            }
            for dependency in self.declared_dev.get(krate).into_iter().flatten() {
                let found = self.check_declared(krate, layer, dependency);
                findings.extend(found.map(|finding| Finding { rule: "layer-of-tests", ..finding }));
            }
            if layer <= LAST_PURE {
                findings.extend(self.check_below(krate));
            }
        }
        findings
    }

    fn check_declared(&self, krate: &str, layer: u8, dependency: &str) -> Option<Finding> {
        if self.declared.contains_key(dependency) {
            if OUTSIDERS.contains(&krate) && !OF_ANY_SYSTEM.contains(&dependency) {
                let message = format!("imports `{dependency}`: `{krate}` knows only the built binary and the files");
                return Some(finding(krate, dependency, message));
            }
            let below = layer_of(dependency).is_some_and(|other| other < layer);
            let excepted = WITHIN_LAYER.iter().any(|(from, to, _)| (*from, *to) == (krate, dependency));
            let message = format!(
                "imports `{dependency}`, which is not in a lower layer: move what both need down, or pass it in as a \
                 value or a small trait"
            );
            return (!below && !excepted).then(|| finding(krate, dependency, message));
        }
        let (_, allowed) = ROOMS.iter().find(|(library, _)| *library == dependency)?;
        let message = format!("declares `{dependency}`, which belongs to {} alone", allowed.join(", "));
        (!allowed.contains(&krate)).then(|| finding(krate, dependency, message))
    }

    /// A library with I/O or tasks below a pure crate, with the way to it.
    fn check_below(&self, krate: &str) -> Option<Finding> {
        let mut seen = BTreeSet::new();
        let mut waiting = vec![vec![krate]];
        while let Some(way) = waiting.pop() {
            let last = way.last().copied().unwrap_or(krate);
            if NEVER_BELOW_PURE.contains(&last) {
                let message = format!(
                    "is pure, but `{last}` stands below it ({}): only layers above {LAST_PURE} may have it",
                    way.join(" -> ")
                );
                return Some(finding(krate, last, message));
            }
            for next in self.resolved.get(last).into_iter().flatten() {
                if seen.insert(next.as_str()) {
                    waiting.push(way.iter().copied().chain([next.as_str()]).collect());
                }
            }
        }
        None
    }
}

fn finding(krate: &str, item: &str, message: String) -> Finding {
    let folder = if krate == "xtask" { "xtask".to_owned() } else { format!("crates/{krate}") };
    let message = format!("crate `{krate}` {message}");
    Finding { path: format!("{folder}/Cargo.toml"), line: 1, rule: "layer", item: item.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace of `members` (crate, what it declares) over `libraries` (library, what it stands on).
    fn house(members: &[(&str, &[&str])], libraries: &[(&str, &[&str])]) -> Packages {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let table = |rows: &[(&str, &[&str])]| {
            rows.iter().map(|(name, below)| ((*name).to_owned(), owned(below))).collect::<BTreeMap<_, _>>()
        };
        let mut resolved = table(members);
        resolved.extend(table(libraries));
        Packages { declared: table(members), resolved, ..Packages::default() }
    }

    #[track_caller]
    fn check_house(members: &[(&str, &[&str])], libraries: &[(&str, &[&str])], expect: &[(&str, &str)]) {
        let findings = house(members, libraries).check();
        let found: Vec<_> = findings.iter().map(|f| (f.path.as_str(), f.item.as_str())).collect();
        assert_eq!(found, expect, "{findings:?}");
    }

    #[test]
    fn imports_go_down() {
        check_house(&[("base", &[]), ("wire", &["base"]), ("journal", &["base", "wire"])], &[], &[]);
        check_house(
            &[("engine", &["stream"]), ("stream", &["engine"])],
            &[],
            &[("crates/stream/Cargo.toml", "engine")],
        );
        check_house(&[("kafka", &["vmm"]), ("vmm", &[])], &[], &[("crates/kafka/Cargo.toml", "vmm")]);
        check_house(
            &[("journal", &[]), ("multiraft", &["journal"])],
            &[],
            &[("crates/multiraft/Cargo.toml", "journal")],
        );
    }

    #[test]
    fn a_crate_without_a_layer_is_found() {
        check_house(&[("shed", &[])], &[], &[("crates/shed/Cargo.toml", "shed")]);
    }

    #[test]
    fn tokio_stays_above_the_pure_layers_even_indirectly() {
        check_house(&[("engine", &["tokio"])], &[("tokio", &[])], &[("crates/engine/Cargo.toml", "tokio")]);
        check_house(
            &[("stream", &["net"])],
            &[("net", &["mio"]), ("mio", &[])],
            &[("crates/stream/Cargo.toml", "mio")],
        );
        check_house(&[("runtime", &["tokio"])], &[("tokio", &[])], &[]);
    }

    #[test]
    fn libraries_stay_in_their_rooms() {
        check_house(&[("kafka", &["kafka-protocol"])], &[], &[]);
        check_house(&[("node", &["kafka-protocol"])], &[], &[("crates/node/Cargo.toml", "kafka-protocol")]);
    }

    #[test]
    fn the_testkit_knows_only_the_binary() {
        check_house(&[("testkit", &["base"]), ("base", &[])], &[], &[("crates/testkit/Cargo.toml", "base")]);
    }

    #[test]
    fn whoever_stands_outside_may_use_what_knows_nothing_of_muster() {
        check_house(&[("testkit", &["linear"]), ("linear", &[])], &[], &[]);
        check_house(&[("linear", &["base"]), ("base", &[])], &[], &[("crates/linear/Cargo.toml", "base")]);
    }

    #[test]
    fn cargo_metadata_is_read() {
        let answer = serde_json::json!({
            "workspace_members": ["a"],
            "packages": [
                { "id": "a", "name": "engine", "dependencies": [
                    { "name": "slow", "kind": null }, { "name": "proptest", "kind": "dev" }, { "name": "iroh", "kind": "dev" },
                ] },
                { "id": "b", "name": "slow", "dependencies": [] },
                { "id": "c", "name": "proptest", "dependencies": [] },
                { "id": "d", "name": "tokio", "dependencies": [] },
            ],
            "resolve": { "nodes": [
                { "id": "a", "deps": [
                    { "pkg": "b", "dep_kinds": [{ "kind": null }] }, { "pkg": "c", "dep_kinds": [{ "kind": "dev" }] },
                ] },
                { "id": "b", "deps": [{ "pkg": "d", "dep_kinds": [{ "kind": null }] }] },
                { "id": "c", "deps": [] }, { "id": "d", "deps": [] },
            ] },
        });
        let packages = Packages::from_metadata(&answer).expect("the shape of cargo metadata");
        assert!(packages.uses("proptest") && packages.crates().eq(["engine"]));
        let findings = packages.check();
        let rules: Vec<_> = findings.iter().map(|finding| (finding.rule, finding.item.as_str())).collect();
        assert_eq!(rules, [("layer-of-tests", "iroh"), ("layer", "tokio")]);
        assert!(findings[1].message.contains("engine -> slow -> tokio"), "{}", findings[1].message);
    }
}
