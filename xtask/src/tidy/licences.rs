//! The licences of the whole tree against the list in `deny.toml`.
//!
//! `cargo deny` does the same and more (advisories, sources), but takes long to install; this much is always checked.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;

const LIST: &str = "deny.toml";

/// What `deny.toml` allows.
#[derive(Debug, Default)]
struct Allowed {
    everywhere: BTreeSet<String>,
    /// By package.
    exceptions: BTreeMap<String, BTreeSet<String>>,
}

/// Every package whose licence is not allowed; every allowed licence that no package needs.
///
/// `licences`: packages that are not muster's own, with what their manifests say.
pub fn check(list: &str, licences: &BTreeMap<String, String>) -> Vec<Finding> {
    let allowed = parse_list(list);
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    for (package, licence) in licences {
        let exceptions = allowed.exceptions.get(package);
        let mut accept = |name: &str| {
            let accepted = allowed.everywhere.contains(name) || exceptions.is_some_and(|list| list.contains(name));
            if accepted {
                used.insert(name.to_owned());
            }
            accepted
        };
        if !satisfied(licence, &mut accept) {
            let message =
                format!("`{package}` is under {licence:?}, which {LIST} does not allow: choose another library");
            findings.push(finding(package, message));
        }
    }
    for name in allowed.everywhere.iter().filter(|name| !used.contains(*name)) {
        findings.push(finding(name, format!("no dependency needs the licence {name}: delete it from the list")));
    }
    for package in allowed.exceptions.keys().filter(|package| !licences.contains_key(*package)) {
        findings.push(finding(package, format!("`{package}` is not in the tree any more: delete its exception")));
    }
    findings
}

/// Reads the section `[licenses]`: the strings of `allow`, and `{ crate = "x", allow = ["y"] }` lines.
fn parse_list(list: &str) -> Allowed {
    let mut allowed = Allowed::default();
    let section = list.split("\n[").find(|section| section.starts_with("licenses]")).unwrap_or_default();
    for line in section.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let strings: Vec<String> = line.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        match strings.split_first() {
            Some((package, licences)) if line.starts_with("{ crate") => {
                allowed.exceptions.insert(package.clone(), licences.iter().cloned().collect());
            }
            Some((licence, [])) if line.starts_with('"') => drop(allowed.everywhere.insert(licence.clone())),
            _ => {}
        }
    }
    allowed
}

/// Evaluates an SPDX expression (and Cargo's old `A/B`): every part of AND, any part of OR.
fn satisfied(expression: &str, accept: &mut dyn FnMut(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let holds = any_of(&words, &mut at, accept);
    holds && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, accept: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut holds = all_of(words, at, accept);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= all_of(words, at, accept);
    }
    holds
}

fn all_of(words: &[&str], at: &mut usize, accept: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut holds = one(words, at, accept);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(words, at, accept);
    }
    holds
}

fn one(words: &[&str], at: &mut usize, accept: &mut dyn FnMut(&str) -> bool) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let holds = any_of(words, at, accept);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return holds && closed;
    }
    let mut name = word.trim_end_matches('+').to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    accept(&name)
}

fn finding(item: &str, message: String) -> Finding {
    Finding { path: LIST.into(), line: 1, rule: "licence", item: item.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "[graph]\nx = 1\n[licenses]\nversion = 2\nallow = [\n  \"MIT\",\n  \"ISC\",\n]\n# \"GPL\"\nexceptions = [\n  { crate = \"imbl\", allow = [\"MPL-2.0\"] },\n]\n[bans]\n\"BSD\"\n";

    #[track_caller]
    fn items(rows: &[(&str, &str)], expect: &[&str]) {
        let licences = rows.iter().map(|(package, licence)| ((*package).into(), (*licence).into())).collect();
        let found: Vec<_> = check(LIST, &licences).into_iter().map(|finding| finding.item).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn licences_are_held_against_the_list() {
        let fine = [("a", "MIT"), ("b", "GPL-3.0 OR ISC"), ("imbl", "MPL-2.0+")];
        items(&fine, &[]);
        let more = |row| fine.into_iter().chain([row]).collect::<Vec<_>>();
        items(&more(("c", "GPL-3.0")), &["c"]);
        items(&more(("c", "MIT AND GPL-3.0")), &["c"]);
        items(&more(("c", "MPL-2.0")), &["c"]);
        items(&more(("c", "(MIT OR GPL-3.0) AND ISC")), &[]);
        items(&more(("c", "MIT/GPL-3.0")), &[]);
        items(&more(("c", "MIT WITH Some-exception")), &["c"]);
        items(&more(("c", "")), &["c"]);
        items(&more(("c", "BSD")), &["c"]);
    }

    #[test]
    fn the_list_holds_only_what_is_needed() {
        items(&[("a", "MIT"), ("imbl", "MPL-2.0")], &["ISC"]);
        items(&[("a", "MIT AND ISC")], &["imbl"]);
    }
}
