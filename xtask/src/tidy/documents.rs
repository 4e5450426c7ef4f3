//! Documents that speak of the code and must stay true: the list of dependencies, the drawing of the house, and the
//! table of what the simulator finds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;

use super::Finding;
use super::failures::{self, MISTAKES};
use super::layers::Packages;
use super::lengths;
use super::source::Source;

const DEPENDENCIES: &str = "docs/dependencies.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
/// What `muster-sim plants --markdown` wrote.
const PLANTS: &str = "docs/simulation-plants.md";
/// Where the mistakes of the simulator's own seams get their names; those of the code do in [`MISTAKES`].
const SEAMS: &str = "crates/sim/src/mistake.rs";

/// Checks the documents against the code.
///
/// # Errors
/// If one of them cannot be read.
pub fn check(root: &Path, sources: &BTreeMap<String, Source>, packages: &Packages) -> anyhow::Result<Vec<Finding>> {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
    let mut findings = check_dependencies(&read("Cargo.toml")?, &read(DEPENDENCIES)?, &|name| packages.uses(name));
    let functions = sources.values().flat_map(lengths::functions).map(|function| function.name).collect();
    let exists = |path: &str| root.join(path).exists();
    let crates: Vec<&str> = packages.crates().collect();
    findings.extend(check_architecture(&read(ARCHITECTURE)?, &crates, &functions, &exists));
    findings.extend(check_plants(&read(PLANTS)?, &read(MISTAKES)?, &read(SEAMS)?));
    Ok(findings)
}

/// `manifest` names what the workspace may use; `document` must have one row for each, and no other.
fn check_dependencies(manifest: &str, document: &str, is_used: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let declared = external_dependencies(manifest);
    let described = described(document);
    let mut findings = Vec::new();
    for (name, line) in &declared {
        if !described.contains_key(name) {
            let message =
                format!("`{name}` has no row in {DEPENDENCIES}: say what it is for, why not its rival, its health");
            findings.push(finding("Cargo.toml", *line, "dependency", name, message));
        }
        if !is_used(name) {
            let message = format!("no crate uses `{name}`: delete the line");
            findings.push(finding("Cargo.toml", *line, "dependency", name, message));
        }
    }
    for (name, line) in &described {
        if !declared.contains_key(name) {
            let message = format!("`{name}` is not in [workspace.dependencies]: delete the row");
            findings.push(finding(DEPENDENCIES, *line, "dependency", name, message));
        }
    }
    findings
}

/// What `[workspace.dependencies]` declares besides the house itself, with lines.
fn external_dependencies(manifest: &str) -> BTreeMap<String, usize> {
    let mut inside = false;
    let mut found = BTreeMap::new();
    for (number, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim() == "[workspace.dependencies]";
        } else if let Some((name, value)) = line.split_once('=')
            && inside
            && !line.starts_with('#')
            && !value.contains("path =")
        {
            found.insert(name.trim().to_owned(), number + 1);
        }
    }
    found
}

/// What has a table row: lines that begin with "| `name`".
fn described(document: &str) -> BTreeMap<String, usize> {
    let rows = document.lines().enumerate().filter_map(|(number, line)| {
        let name = line.strip_prefix("| `")?.split('`').next()?;
        Some((name.to_owned(), number + 1))
    });
    rows.collect()
}

/// Every crate stands in the drawing; every `function()` and every path that it names exists.
fn check_architecture(
    document: &str,
    crates: &[&str],
    functions: &BTreeSet<String>,
    exists: &dyn Fn(&str) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for krate in crates {
        if !document.contains(&format!("`{krate}`")) {
            findings.push(finding(ARCHITECTURE, 1, "architecture", krate, format!("crate `{krate}` is not drawn")));
        }
    }
    for (number, line) in document.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            let message = if let Some(call) = quoted.strip_suffix("()") {
                let name = call.rsplit("::").next().unwrap_or(call);
                (!functions.contains(name)).then(|| format!("no function is called `{name}`"))
            } else {
                let is_path = quoted.contains('/') && quoted.ends_with(".rs");
                (is_path && !exists(quoted)).then(|| format!("there is no file {quoted}"))
            };
            let Some(message) = message else { continue };
            findings.push(finding(ARCHITECTURE, number + 1, "architecture", quoted, message));
        }
    }
    findings
}

/// Every mistake that can be planted has a row that says after how many seeds it was found: without one it was planted, and
/// nobody looked whether a run shows it. No row is of a mistake that is gone: it would say that a run shows what none can.
fn check_plants(document: &str, code: &str, seams: &str) -> Vec<Finding> {
    let finding = |line: usize, name: &str, message: String| finding(PLANTS, line, "planted-mistake", name, message);
    // Tests name what is none.
    let seams = seams.split("#[cfg(test)]").next().unwrap_or_default();
    let mut mistakes = BTreeSet::new();
    for (path, table) in [(MISTAKES, code), (SEAMS, seams)] {
        let found = failures::mistakes(table);
        if found.is_empty() {
            return vec![finding(1, "", format!("no mistake is found in {path}: tidy would check nothing"))];
        }
        mistakes.extend(found);
    }
    let described = described(document);
    let mut findings = Vec::new();
    for name in mistakes.iter().filter(|name| !described.contains_key(*name)) {
        let message = format!("`{name}` has no row: make the table anew, as it says at its beginning");
        findings.push(finding(1, name, message));
    }
    for (name, line) in described.iter().filter(|(name, _)| !mistakes.contains(*name)) {
        let message = format!("no mistake is called `{name}` in {MISTAKES} or {SEAMS}: make the table anew");
        findings.push(finding(*line, name, message));
    }
    findings
}

fn finding(path: &str, line: usize, rule: &'static str, item: &str, message: String) -> Finding {
    Finding { path: path.into(), line, rule, item: item.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[workspace]\nmembers = []\n[workspace.dependencies]\nbase = { path = \"crates/base\" }\n# why\nbytes = \"1\"\nraft = { version = \"1\" }\n[profile.dev]\ndebug = 1\n";

    #[track_caller]
    fn messages(findings: &[Finding], expect: &[(&str, usize, &str)]) {
        let found: Vec<_> = findings.iter().map(|f| (f.path.as_str(), f.line, f.item.as_str())).collect();
        assert_eq!(found, expect, "{findings:?}");
    }

    #[test]
    fn dependencies_and_their_rows_match() {
        let both = "| name | for |\n| `bytes` | x |\n| `raft` | y |\n";
        messages(&check_dependencies(MANIFEST, both, &|_| true), &[]);
        messages(&check_dependencies(MANIFEST, "| `bytes` | x |", &|_| true), &[("Cargo.toml", 7, "raft")]);
        let more = format!("{both}| `gone` | z |");
        messages(&check_dependencies(MANIFEST, &more, &|_| true), &[(DEPENDENCIES, 4, "gone")]);
        messages(&check_dependencies(MANIFEST, both, &|name| name != "raft"), &[("Cargo.toml", 7, "raft")]);
    }

    #[test]
    fn the_drawing_names_what_exists() {
        let functions = BTreeSet::from(["flush".to_owned()]);
        let check = |text: &str| check_architecture(text, &["base"], &functions, &|path| path == "crates/a.rs");
        messages(&check("`base` `NodeCore::flush()` `crates/a.rs`"), &[]);
        messages(&check("nothing"), &[(ARCHITECTURE, 1, "base")]);
        messages(&check("`base`\n`NodeCore::gone()`"), &[(ARCHITECTURE, 2, "NodeCore::gone()")]);
        messages(&check("`base` `crates/b.rs`"), &[(ARCHITECTURE, 1, "crates/b.rs")]);
    }

    #[test]
    fn every_mistake_that_can_be_planted_has_a_row_and_no_row_is_of_another() {
        let code = "Bent \"rule-bent\"\n\"A rule, bent.\",\nBroken \"rule-broken\"\n\"A rule, broken.\",\n";
        let seams = "(Seam::Liar, \"lying-disk\", \"It lies.\"),\n#[cfg(test)]\nmod tests { \"no-such\" }\n";
        let all =
            "| mistake | again with |\n|---|---|\n| `rule-broken` | x |\n| `rule-bent` | y |\n\n| `lying-disk` | z |\n";
        messages(&check_plants(all, code, seams), &[]);
        let fewer = "Of `rule-bent`:\n\n| `rule-broken` | `--plant rule-bent` |\n";
        messages(&check_plants(fewer, code, seams), &[(PLANTS, 1, "lying-disk"), (PLANTS, 1, "rule-bent")]);
        let more = format!("{all}| `rule-gone` | x |\n| `no-such` | y |\n");
        messages(&check_plants(&more, code, seams), &[(PLANTS, 8, "no-such"), (PLANTS, 7, "rule-gone")]);
        for (code, seams) in [("", seams), (code, "")] {
            messages(&check_plants(all, code, seams), &[(PLANTS, 1, "")]);
        }
    }
}
