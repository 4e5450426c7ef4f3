//! Functions fit a screen, files have one subject.

use super::Finding;
use super::source::{Source, body_open, is_identifier, matching};

/// Lines of one function, from `fn` to its closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;
/// Lines of one file, tests included.
pub const FILE_LINES_MAX: usize = 800;

/// The file, if it is too long, and every function in it that is.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.lines();
    if lines > FILE_LINES_MAX {
        findings.push(Finding {
            path: source.path.clone(),
            line: lines,
            rule: "file-length",
            item: String::new(),
            message: format!("{lines} lines, at most {FILE_LINES_MAX}: it has more than one subject, split it"),
        });
    }
    for function in functions(source) {
        if function.lines > FUNCTION_LINES_MAX {
            findings.push(Finding {
                path: source.path.clone(),
                line: function.line,
                rule: "function-length",
                message: format!(
                    "`fn {}` has {} lines, at most {FUNCTION_LINES_MAX}: give its steps names of their own",
                    function.name, function.lines
                ),
                item: function.name,
            });
        }
    }
    findings
}

/// A function with a body.
pub struct Function {
    pub name: String,
    /// Where `fn` stands.
    pub line: usize,
    pub lines: usize,
}

/// Every function with a body, nested ones included.
pub fn functions(source: &Source) -> Vec<Function> {
    let code = &source.code;
    let mut functions = Vec::new();
    for at in source.find_word("fn") {
        let after = code[at + 2..].trim_start();
        let name: String = after.bytes().take_while(|b| is_identifier(*b)).map(char::from).collect();
        let Some(open) = body_open(code, at) else { continue };
        if name.is_empty() || code.as_bytes()[open] == b';' {
            continue;
        }
        let line = source.line_of(at);
        let end = matching(code, open).unwrap_or(code.len());
        functions.push(Function { name, line, lines: source.line_of(end) - line + 1 });
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function_of(lines: usize) -> String {
        format!(
            "struct A;\nfn long(x: [u8; 2], f: fn(u8) -> u8) -> bool {{\n{}}}\n",
            "  // \"{\" }\n".repeat(lines - 2)
        )
    }

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let fits = Source::parse("crates/x/src/lib.rs", &function_of(FUNCTION_LINES_MAX), false);
        assert_eq!(check(&fits), []);
        let source = Source::parse("crates/x/src/lib.rs", &function_of(FUNCTION_LINES_MAX + 1), false);
        let findings = check(&source);
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].line, findings[0].rule, findings[0].item.as_str()), (2, "function-length", "long"));
    }

    #[test]
    fn declarations_and_function_types_have_no_length() {
        let source =
            Source::parse("crates/x/src/lib.rs", "trait T { fn a(&self); fn b() {} }\ntype F = fn(u8);", false);
        let names: Vec<_> = functions(&source).into_iter().map(|function| function.name).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn long_files_are_found() {
        let source = Source::parse("crates/x/src/lib.rs", &"\n".repeat(FILE_LINES_MAX + 1), false);
        assert_eq!(check(&source).iter().map(|finding| finding.rule).collect::<Vec<_>>(), ["file-length"]);
        let fits = Source::parse("crates/x/src/lib.rs", &"\n".repeat(FILE_LINES_MAX), false);
        assert_eq!(check(&fits), []);
    }
}
