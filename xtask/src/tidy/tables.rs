//! Every mark and every plantable mistake stands in the code that it is about: one that stands nowhere says that a state
//! is never reached, or that a rule is safe to break, when nobody ever looked.

use std::collections::BTreeMap;

use super::Finding;
use super::source::{Source, is_identifier, matching};

/// Where the tables are defined; a use in these files is none.
const FOLDER: &str = "crates/base/src/simulation/";
const TABLES: &[&str] = &["crates/base/src/simulation/mark.rs", "crates/base/src/simulation/plant.rs"];

/// Every variant of the tables that no code uses, tests left out, and every table that cannot be found.
pub fn check(sources: &BTreeMap<String, Source>) -> Vec<Finding> {
    TABLES.iter().flat_map(|path| check_table(path, sources)).collect()
}

fn check_table(path: &str, sources: &BTreeMap<String, Source>) -> Vec<Finding> {
    let finding = |line: usize, item: &str, message: String| Finding {
        path: path.into(),
        line,
        rule: "unused-variant",
        item: item.into(),
        message,
    };
    let Some((table, variants)) = sources.get(path).and_then(table) else {
        let message = "no `super::table!` with variants is found here: tidy would check nothing".into();
        return vec![finding(1, "", message)];
    };
    let unused = |(name, line): (String, usize)| {
        let item = format!("{table}::{name}");
        let used = sources
            .values()
            .filter(|source| !source.path.starts_with(FOLDER))
            .any(|source| source.find_word(&item).into_iter().any(|at| !source.is_test(at)));
        let message = format!("`{item}` stands nowhere in the code: put it where it belongs, or delete it");
        (!used).then(|| finding(line, &name, message))
    };
    variants.into_iter().filter_map(unused).collect()
}

/// The name of the table that the file defines, and its variants with their lines.
fn table(source: &Source) -> Option<(String, Vec<(String, usize)>)> {
    let code = &source.code;
    let invocation = *source.find_word("table!").first()?;
    let open = invocation + code[invocation..].find('{')?;
    let inner = open + 1 + code[open + 1..].find('{')?;
    let name = code[open + 1..inner].split_whitespace().next_back()?.to_owned();
    let end = matching(code, inner)?;
    let mut variants = Vec::new();
    let mut at = inner + 1;
    // Literals are blanked, so a comma is one between two variants.
    for part in code[inner + 1..end].split(',') {
        let start = at + (part.len() - part.trim_start().len());
        let variant: String = code[start..end].bytes().take_while(|b| is_identifier(*b)).map(char::from).collect();
        if !variant.is_empty() {
            variants.push((variant, source.line_of(start)));
        }
        at += part.len() + 1;
    }
    (!variants.is_empty()).then_some((name, variants))
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    const MARKS: &str = "super::table! {\n    /// Rare, {odd}.\n    Mark {\n        // One subject, two.\n        \
                         Seen \"seen\"\n            \"It, was {seen}.\",\n        Unseen \"unseen\" \"Never.\",\n    }\n}\n\
                         fn f() { Mark::Unseen; }\n";
    const PLANTS: &str = "super::table! { Plant { Rule \"rule\" \"Broken.\", } }";

    fn findings(files: &[(&str, &str)]) -> Vec<(String, usize, String)> {
        let texts = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        check(&source::parse_all(texts)).into_iter().map(|found| (found.path, found.line, found.item)).collect()
    }

    #[test]
    fn a_variant_counts_as_used_only_in_code_outside_of_the_tables_and_of_tests() {
        let found = findings(&[
            (TABLES[0], MARKS),
            (TABLES[1], PLANTS),
            ("crates/x/src/lib.rs", "fn f() { mark(Mark::Seen); if planted(Plant::Rule) {} }"),
            ("crates/x/src/a.rs", "#[cfg(test)]\nmod tests { fn f() { Mark::Unseen; } }"),
            ("crates/x/src/b.rs", "// Mark::Unseen\nfn f() { Mark::UnseenToo; \"Mark::Unseen\"; }"),
            ("crates/x/tests/c.rs", "fn f() { Mark::Unseen; }"),
        ]);
        assert_eq!(found, [(TABLES[0].to_owned(), 7, "Unseen".to_owned())]);
    }

    #[test]
    fn a_table_that_is_not_found_is_a_finding() {
        let found = findings(&[(TABLES[0], "enum Mark { Seen }"), ("crates/x/src/lib.rs", "fn f() { Mark::Seen; }")]);
        assert_eq!(found.iter().map(|found| found.0.as_str()).collect::<Vec<_>>(), TABLES);
    }
}
