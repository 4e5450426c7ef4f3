//! The house rules that neither the compiler nor clippy can state, checked over the text of every file.
//!
//! It runs as a test and as `cargo xtask tidy`. Exceptions stand in [`allow`], each with its reason; an exception that
//! nothing needs any more is itself a finding, so that the list only holds what is true.

mod allow;
mod bans;
mod documents;
mod failures;
mod layers;
mod lengths;
mod licences;
mod source;
mod tables;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use source::Source;

/// One broken rule, at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Relative to the root of the repository.
    pub path: String,
    /// From 1 up.
    pub line: usize,
    /// The rule's short name, as exceptions refer to it.
    pub rule: &'static str,
    /// What the rule is about at this place, such as a function's name; exceptions may name it.
    pub item: String,
    /// What is wrong and what to do instead.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.message)
    }
}

/// Checks the repository at `root`.
///
/// # Errors
/// One error that lists every finding.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let findings = check(root)?;
    if findings.is_empty() {
        println!("tidy: every rule holds");
        return Ok(());
    }
    let list: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    bail!("{list}tidy: {} finding(s)", findings.len())
}

/// Every finding in the repository at `root`, exceptions taken out.
fn check(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let sources = read_sources(root)?;
    let metadata = layers::Packages::of(root)?;
    let mut findings = metadata.check();
    for source in sources.values() {
        findings.extend(bans::check(source));
        findings.extend(lengths::check(source));
    }
    findings.extend(tables::check(&sources));
    let list = std::fs::read_to_string(root.join("deny.toml")).context("cannot read deny.toml")?;
    findings.extend(licences::check(&list, metadata.licences()));
    findings.extend(documents::check(root, &sources, &metadata)?);
    findings.extend(failures::check(root, &sources)?);
    Ok(allow::without_exceptions(findings, allow::EXCEPTIONS))
}

/// Every Rust file of the workspace by its path, test modules marked.
fn read_sources(root: &Path) -> anyhow::Result<BTreeMap<String, Source>> {
    let mut texts = BTreeMap::new();
    for folder in ["crates", "xtask"] {
        collect(root, &root.join(folder), &mut texts)?;
    }
    if texts.is_empty() {
        bail!("no Rust file under {}: tidy would check nothing", root.display());
    }
    Ok(source::parse_all(texts))
}

fn collect(root: &Path, folder: &Path, texts: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(root, &path, texts)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            texts.insert(relative, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let findings = check(&crate::root()).expect("tidy can read the repository");
        let list: String = findings.iter().map(|finding| format!("\n{finding}")).collect();
        assert!(findings.is_empty(), "{} finding(s):{list}", findings.len());
    }

    #[test]
    fn a_finding_names_its_place() {
        let finding = Finding {
            path: "crates/x/src/lib.rs".into(),
            line: 3,
            rule: "unwrap",
            item: String::new(),
            message: "no".into(),
        };
        assert_eq!(finding.to_string(), "crates/x/src/lib.rs:3: [unwrap] no");
    }
}
