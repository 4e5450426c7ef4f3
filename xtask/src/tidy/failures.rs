//! The list of failure modes names tests and planted mistakes that exist. A row whose test is gone would say that
//! something cannot come back when nobody looks for it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;

use super::Finding;
use super::source::{Source, is_identifier};

const DOCUMENT: &str = "docs/failure-modes.md";
/// Where planted mistakes get their names.
pub const MISTAKES: &str = "crates/base/src/simulation/plant.rs";
/// What a row says if there is nothing that a test could do.
const NO_TEST: &[&str] = &["by construction", "type system"];

/// Checks the document against the code.
///
/// # Errors
/// If it, or the table of mistakes, cannot be read.
pub fn check(root: &Path, sources: &BTreeMap<String, Source>) -> anyhow::Result<Vec<Finding>> {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
    let tests = sources.values().flat_map(test_functions).collect();
    Ok(check_document(&read(DOCUMENT)?, &tests, &mistakes(&read(MISTAKES)?)))
}

/// The functions of a file that are tests.
fn test_functions(source: &Source) -> Vec<String> {
    let code = &source.code;
    let is_test = |at: &usize| {
        let before = &code[..*at];
        let item = before.rfind(['{', '}', ';']).map_or(0, |end| end + 1);
        ["[test]", "::test]", "::test("].iter().any(|attribute| before[item..].contains(attribute))
    };
    let name = |at: usize| -> String {
        let after = code[at + 2..].trim_start();
        after.bytes().take_while(|byte| is_identifier(*byte)).map(char::from).collect()
    };
    source.find_word("fn").into_iter().filter(is_test).map(name).collect()
}

/// The names in the table of mistakes: `Variant "its-name"`; what they mean stands on the next line.
pub fn mistakes(table: &str) -> BTreeSet<String> {
    let quoted = table.lines().filter_map(|line| line.split('"').nth(1));
    let is_name = |text: &&str| text.contains('-') && text.bytes().all(|b| b == b'-' || b.is_ascii_lowercase());
    quoted.filter(is_name).map(str::to_owned).collect()
}

/// Every row whose last cell names what is not there, or nothing although a test would be possible.
fn check_document(document: &str, tests: &BTreeSet<String>, mistakes: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut inside, mut rows) = (false, 0);
    for (number, line) in document.lines().enumerate() {
        let rule = line.starts_with("|-");
        inside = line.starts_with('|') && (inside || rule);
        if !inside || rule {
            continue;
        }
        rows += 1;
        let cell = line.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !NO_TEST.iter().any(|words| line.to_lowercase().contains(words)) {
            let message = format!("the row names no test: write one, or say why none is possible ({NO_TEST:?})");
            findings.push(finding(number + 1, "", message));
        }
        for name in names {
            let message = match name.contains('-') {
                true if !mistakes.contains(name) => format!("no mistake is called `{name}` in {MISTAKES}"),
                false if !tests.contains(name) => format!("no test is called `{name}`"),
                _ => continue,
            };
            findings.push(finding(number + 1, name, message));
        }
    }
    if rows == 0 {
        findings.push(finding(1, "", "no table is found here: tidy would check nothing".into()));
    }
    findings
}

fn finding(line: usize, item: &str, message: String) -> Finding {
    Finding { path: DOCUMENT.into(), line, rule: "failure-mode", item: item.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[track_caller]
    fn check_rows(rows: &str, expect: &[(usize, &str)]) {
        let document = format!("# `Title`\n\n| mode | why | tests |\n|---|---|---|\n{rows}\n\nAfter `it`.\n");
        let found = check_document(&document, &set(&["it_holds"]), &set(&["rule-broken"]));
        let found: Vec<_> = found.iter().map(|finding| (finding.line, finding.item.as_str())).collect();
        assert_eq!(found, expect, "{rows}");
    }

    #[test]
    fn a_row_names_tests_and_mistakes_that_exist_or_says_why_it_names_none() {
        check_rows("| a | `f()`, `no-name` | `it_holds`, `rule-broken` |", &[]);
        check_rows("| a | By construction: `f()` | - |", &[]);
        check_rows("| a | b | `it_held` |\n| a | b | `rule-kept`, `it_holds` |", &[(5, "it_held"), (6, "rule-kept")]);
        check_rows("| a | `it_holds` | |", &[(5, "")]);
        assert_eq!(check_document("No table.", &set(&[]), &set(&[])).len(), 1);
    }

    #[test]
    fn tests_and_mistakes_are_found_where_they_are_defined() {
        let text = "fn helper() {}\n#[test]\nfn plain() { fn inner() {} }\n#[tokio::test(flavor = \"x\")]\n\
                    async fn waits() {}\n#[test]\n#[should_panic(expected = \"x\")]\nfn panics() {}\n\
                    // #[test]\nfn none() {}\n";
        let source = Source::parse("crates/x/src/lib.rs", text, false);
        assert_eq!(test_functions(&source), ["plain", "waits", "panics"]);
        let table = "Plant {\n    Kept \"rule-kept\"\n        \"A rule, well-known.\",\n}\n";
        assert_eq!(mistakes(table), set(&["rule-kept"]));
    }
}
