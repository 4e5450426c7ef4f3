//! A Rust file as tidy sees it: its code with comments and literals blanked out, and which lines are test code.
//!
//! No parser: the rules need to know where code stands, not what it means. The scanner knows comments, strings, raw
//! strings, character literals and lifetimes, which is all that can hide a brace.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// One file.
#[derive(Debug)]
pub struct Source {
    /// Relative to the root of the repository.
    pub path: String,
    /// The text with the same length and lines, but comments and the contents of literals are spaces.
    pub code: String,
    /// Whether the whole file is test code.
    all_test: bool,
    /// Byte ranges of test code in `code`.
    tests: Vec<Range<usize>>,
    line_starts: Vec<usize>,
}

impl Source {
    /// Parses one file that stands alone. `all_test`: every line of it is test code.
    pub fn parse(path: &str, text: &str, all_test: bool) -> Self {
        let code = mask(text);
        let line_starts =
            std::iter::once(0).chain(code.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
        let line_starts = line_starts.collect();
        let tests = test_ranges(&code);
        Source { path: path.into(), all_test: all_test || is_test_path(path), tests, line_starts, code }
    }

    /// The line, from 1 up, that holds the byte at `at`.
    pub fn line_of(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// Lines in the file.
    pub fn lines(&self) -> usize {
        self.code.lines().count()
    }

    /// Whether the byte at `at` is test code.
    pub fn is_test(&self, at: usize) -> bool {
        self.all_test || self.tests.iter().any(|range| range.contains(&at))
    }

    /// The name of the crate that the file belongs to.
    pub fn krate(&self) -> &str {
        let mut parts = self.path.split('/');
        match parts.next() {
            Some("crates") => parts.next().unwrap_or_default(),
            Some(first) => first,
            None => "",
        }
    }

    /// Where `word` stands as a word of its own (if it begins or ends with a letter, no letter adjoins there).
    pub fn find_word(&self, word: &str) -> Vec<usize> {
        let bytes = self.code.as_bytes();
        let is_word = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(|b| is_identifier(*b));
        let starts_word = word.bytes().next().is_some_and(is_identifier);
        let ends_word = word.bytes().last().is_some_and(is_identifier);
        self.code
            .match_indices(word)
            .map(|(at, _)| at)
            .filter(|at| !(starts_word && is_word(at.checked_sub(1))))
            .filter(|at| !(ends_word && is_word(Some(at + word.len()))))
            .collect()
    }
}

/// Parses files that belong together: a module declared under `#[cfg(test)]` makes its file test code.
pub fn parse_all(texts: BTreeMap<String, String>) -> BTreeMap<String, Source> {
    let mut test_files = BTreeSet::new();
    for (path, text) in &texts {
        let code = mask(text);
        for range in test_ranges(&code) {
            if let Some(name) = declared_module(&code[range]) {
                let folder = module_folder(path);
                test_files.insert(format!("{folder}/{name}.rs"));
                test_files.insert(format!("{folder}/{name}/"));
            }
        }
    }
    let is_test_file =
        |path: &str| test_files.iter().any(|t| path == t || (t.ends_with('/') && path.starts_with(t.as_str())));
    texts
        .into_iter()
        .map(|(path, text)| {
            let source = Source::parse(&path, &text, is_test_file(&path));
            (path, source)
        })
        .collect()
}

pub fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Files that Cargo builds only for tests and benchmarks.
fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "benches")
}

/// The folder in which the child modules of the file at `path` are looked for.
fn module_folder(path: &str) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    match file {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        other => format!("{folder}/{}", other.trim_end_matches(".rs")),
    }
}

/// The name in `... mod NAME;`.
fn declared_module(item: &str) -> Option<&str> {
    let before = item.trim_end().strip_suffix(';')?;
    let mut words = before.split_whitespace().rev();
    let name = words.next()?;
    (words.next() == Some("mod")).then_some(name)
}

/// Blanks comments and the contents of literals; newlines stay.
fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let hidden = hidden_at(bytes, at);
        match hidden {
            Some(range) => {
                for byte in &mut out[range.clone()] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                at = range.end.max(at + 1);
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("whole literals and comments of valid UTF-8 were replaced by ASCII")
}

/// If a comment or literal starts at `at`: the range to hide, which ends where scanning goes on.
fn hidden_at(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let rest = &bytes[at..];
    let in_word = at > 0 && is_identifier(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => Some(at..at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(at..at + block_comment_length(rest)),
        [b'"', ..] => Some(at..at + string_length(rest)),
        [b'\'', ..] => char_length(rest).map(|length| at..at + length),
        [b'r' | b'b' | b'c', ..] if !in_word => raw_string_length(rest).map(|length| at..at + length),
        _ => None,
    }
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character literal, or `None` for a lifetime.
fn char_length(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        // The escaped character itself may be a quote.
        return rest.iter().skip(3).position(|b| *b == b'\'').map(|more| more + 4);
    }
    let width = match rest.get(1)? {
        0..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// The length of `r"..."`, `br#"..."#` and so on, or `None` if it is none.
fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let prefix = match rest {
        [b'b' | b'c', b'r', ..] => 2,
        [b'r', ..] => 1,
        _ => return None,
    };
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    let body = &rest[open + 1..];
    let end = body.windows(closing.len()).position(|window| window == closing).unwrap_or(body.len());
    Some((open + 1 + end + closing.len()).min(rest.len()))
}

/// The ranges of items under a test attribute, attribute included.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    for (at, _) in code.match_indices("#[").chain(code.match_indices("#![")) {
        let open = at + code[at..].find('[').unwrap_or(0);
        let Some(close) = matching(code, open) else { continue };
        if !is_test_attribute(&code[open + 1..close]) {
            continue;
        }
        if code[at..].starts_with("#!") {
            return std::iter::once(0..code.len()).collect();
        }
        ranges.push(at..item_end(code, close + 1));
    }
    ranges
}

/// `cfg(test)`, `cfg(all(test, ...))`, `test`, `tokio::test(...)`.
fn is_test_attribute(attribute: &str) -> bool {
    let (path, arguments) = attribute.split_once('(').unwrap_or((attribute, ""));
    match path.trim() {
        "cfg" => {
            !arguments.contains("not(test")
                && arguments.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "test")
        }
        path => path.rsplit("::").next() == Some("test"),
    }
}

/// Where the item that starts at `from` ends: behind its closing brace or its semicolon.
pub fn item_end(code: &str, from: usize) -> usize {
    match body_open(code, from) {
        Some(open) if code.as_bytes()[open] == b'{' => matching(code, open).map_or(code.len(), |close| close + 1),
        Some(semicolon) => semicolon + 1,
        None => code.len(),
    }
}

/// The first `{` or `;` from `from` on that stands in no parentheses or brackets.
pub fn body_open(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' | b';' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// The bracket that closes the one at `open`, whichever of the three kinds it is.
pub fn matching(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.checked_sub(1)?,
            _ => continue,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_mask(text: &str, expect: &str) {
        assert_eq!(mask(text), expect, "masking {text:?}");
    }

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        check_mask("a // b\nc", "a     \nc");
        check_mask("a /* b /* c */ d */ e", "a                   e");
        check_mask(r#"f("x.unwrap()", 1)"#, "f(            , 1)");
        check_mask(r#""a\"b" c"#, "       c");
        check_mask(r###"r#"a"b"# c"###, "         c");
        check_mask("br\"a\\\" c", "       c");
        check_mask("r#type", "r#type");
        check_mask("for_\"a\"", "for_   ");
        check_mask("'{' '\\'' 'é' x", &format!("{}x", " ".repeat(14)));
    }

    #[test]
    fn lifetimes_are_not_character_literals() {
        check_mask("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
        check_mask("'outer: loop {}", "'outer: loop {}");
    }

    #[test]
    fn test_items_are_known_by_their_attribute() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n#[tokio::test(flavor = \"x\")]\nasync fn d() {\n}\n#[cfg(not(test))]\nfn e() {}";
        let source = Source::parse("crates/x/src/lib.rs", text, false);
        let is_test = |needle: &str| source.is_test(source.find_word(needle)[0]);
        assert!(!is_test("a") && is_test("b") && !is_test("c") && is_test("d") && !is_test("e"));
    }

    #[test]
    fn files_of_test_modules_and_of_tests_folders_are_test_code() {
        let texts = [
            ("crates/x/src/lib.rs", "mod a;\n#[cfg(test)]\nmod check;"),
            ("crates/x/src/a.rs", "fn f() {}\n#[cfg(test)]\npub(crate) mod deep;"),
            ("crates/x/src/check.rs", "fn f() {}"),
            ("crates/x/src/a/deep.rs", "fn f() {}"),
            ("crates/x/src/deep.rs", "fn f() {}"),
            ("crates/x/tests/main.rs", "fn f() {}"),
        ];
        let sources = parse_all(texts.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect());
        let tests: Vec<_> =
            sources.values().filter(|source| source.is_test(0)).map(|source| source.path.as_str()).collect();
        assert_eq!(tests, ["crates/x/src/a/deep.rs", "crates/x/src/check.rs", "crates/x/tests/main.rs"]);
    }

    #[test]
    fn words_stand_alone() {
        let source = Source::parse("crates/x/src/lib.rs", "HashMap FxHashMap HashMapper\nHashMap", false);
        let lines: Vec<_> = source.find_word("HashMap").into_iter().map(|at| source.line_of(at)).collect();
        assert_eq!(lines, [1, 2]);
        assert_eq!(source.krate(), "x");
    }
}
