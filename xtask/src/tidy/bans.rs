//! Words that must not stand in the code, each with where and why.

use super::Finding;
use super::layers;
use super::source::Source;

/// Where a ban holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Where {
    Everywhere,
    /// Everywhere but in tests.
    Product,
    /// Only in tests, and in the crate that tests are made with.
    Tests,
    /// In layers 0 to 4, tests included.
    Pure,
    /// In layers 0 to 4, except in their tests.
    PureProduct,
}

/// One ban: any of the words, where it holds, and what to do instead.
struct Ban {
    rule: &'static str,
    words: &'static [&'static str],
    holds: Where,
    instead: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        rule: "unwrap",
        words: &[".unwrap()", "clippy::unwrap_used"],
        holds: Where::Product,
        instead: "return the error, or `expect(\"why this holds\")` if an invariant says that it cannot happen",
    },
    Ban {
        rule: "unfinished",
        words: &["todo!", "unimplemented!", "dbg!"],
        holds: Where::Everywhere,
        instead: "build it, or leave the feature out",
    },
    Ban {
        rule: "ignored-test",
        words: &["#[ignore"],
        holds: Where::Everywhere,
        instead: "a test runs or does not exist: make it quick and sure, or delete it",
    },
    Ban {
        rule: "sleep-in-test",
        words: &["sleep(", "sleep_until("],
        holds: Where::Tests,
        instead: "wait for a condition with a deadline (testkit: `wait_until`), and say what was seen instead",
    },
    Ban {
        rule: "unbounded-channel",
        words: &[
            "unbounded_channel",
            "UnboundedSender",
            "UnboundedReceiver",
            "unbounded(",
            "mpsc::channel()",
            "mpsc::channel::<",
        ],
        holds: Where::Everywhere,
        instead: "use a bounded channel whose size is a constant of `base::limits`; answer \"busy\" when it is full",
    },
    Ban {
        rule: "clock",
        words: &["Instant", "SystemTime", "UNIX_EPOCH", "clock_gettime"],
        holds: Where::Pure,
        instead: "take `base::Now` as a value: the pure layers read no clock",
    },
    Ban {
        rule: "randomness",
        words: &["thread_rng", "rand::rng", "OsRng", "getrandom", "from_entropy", "from_os_rng"],
        holds: Where::Pure,
        instead: "draw from a seeded `base::SplitMix64`: the pure layers must replay from a seed",
    },
    Ban {
        rule: "hash-order",
        words: &["HashMap", "HashSet", "RandomState"],
        holds: Where::Pure,
        instead: "use `BTreeMap` or `BTreeSet`: the default hasher is seeded at random, so order would differ per run",
    },
    Ban {
        rule: "io",
        // Addresses of `std::net` are values; its sockets are not.
        words: &[
            "std::fs",
            "std::process",
            "std::env",
            "std::os",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "ToSocketAddrs",
            "File::open",
            "File::create",
            "rustix",
        ],
        holds: Where::PureProduct,
        instead: "emit an effect and let the driver (crate `node`) carry it out: the pure layers do no I/O",
    },
    Ban {
        rule: "threads",
        words: &["std::thread", "thread::spawn", "tokio"],
        holds: Where::PureProduct,
        instead: "the pure layers are called, they never run by themselves; put the task into `runtime` or `node`",
    },
    Ban {
        rule: "print",
        words: &["println!", "eprintln!", "print!", "eprint!"],
        holds: Where::PureProduct,
        instead: "return it or emit an effect; the pure layers do not print",
    },
];

/// What `use std::{...}` must not bring into layers 0 to 4.
const IO_MODULES: &[&str] = &["fs", "process", "env", "os", "thread"];

/// Every ban that `source` breaks.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    // An example is a program beside the crate: it may measure and print.
    let example = source.path.contains("/examples/");
    let pure = !example && layers::layer_of(source.krate()).is_some_and(|layer| layer <= layers::LAST_PURE);
    for ban in BANS {
        for word in ban.words {
            for at in source.find_word(word) {
                // A trait's method of that name is defined in tests too; calling it is what counts.
                if source.code[..at].ends_with("fn ") {
                    continue;
                }
                let test = if ban.holds == Where::Tests { is_test_support(source, at) } else { source.is_test(at) };
                if holds(ban.holds, pure, test) {
                    let message = format!("`{}`: {}", word.trim_end_matches('('), ban.instead);
                    findings.push(finding(source, at, ban.rule, word, message));
                }
            }
        }
    }
    findings.extend(imported_channel(source));
    if pure {
        findings.extend(imported_io(source));
    }
    findings
}

/// Where tests and what tests are made with stand, as far as sleeping is concerned.
fn is_test_support(source: &Source, at: usize) -> bool {
    source.is_test(at) || source.krate() == "testkit"
}

fn holds(place: Where, pure: bool, test: bool) -> bool {
    match place {
        Where::Everywhere => true,
        Where::Product => !test,
        Where::Tests => test,
        Where::Pure => pure,
        Where::PureProduct => pure && !test,
    }
}

/// `use std::sync::mpsc::channel`, alone or in a group: called later as a bare `channel()`.
fn imported_channel(source: &Source) -> Vec<Finding> {
    let imports = source.find_word("std::sync::mpsc::");
    let names_channel = |at: &usize| {
        let end = source.code[*at..].find(';').map_or(source.code.len(), |length| at + length);
        source.find_word("channel").iter().any(|channel| (*at..end).contains(channel))
    };
    let message = "`std::sync::mpsc::channel` is unbounded: use `sync_channel` with a bound of `base::limits`";
    let found = imports.into_iter().filter(names_channel);
    found.map(|at| finding(source, at, "unbounded-channel", "channel", message.into())).collect()
}

/// `use std::{fs, io}` in a pure crate, which the plain words do not see.
fn imported_io(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for group in source.find_word("use std::{") {
        let end = source.code[group..].find(';').map_or(source.code.len(), |length| group + length);
        for module in IO_MODULES {
            for at in source.find_word(module) {
                if (group..end).contains(&at) && !source.is_test(at) {
                    let message = format!(
                        "`use std::{{{module}}}`: emit an effect and let the driver carry it out: the pure layers do no I/O"
                    );
                    findings.push(finding(source, at, "io", module, message));
                }
            }
        }
    }
    findings
}

fn finding(source: &Source, at: usize, rule: &'static str, item: &str, message: String) -> Finding {
    Finding { path: source.path.clone(), line: source.line_of(at), rule, item: item.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules that `text` breaks as a file at `path`, with their lines.
    #[track_caller]
    fn broken(path: &str, text: &str, expect: &[(&str, usize)]) {
        let found: Vec<_> =
            check(&Source::parse(path, text, false)).into_iter().map(|finding| (finding.rule, finding.line)).collect();
        assert_eq!(found, expect, "in {path}: {text}");
    }

    const PURE: &str = "crates/stream/src/a.rs";
    const DRIVER: &str = "crates/node/src/a.rs";

    #[test]
    fn unwrap_is_for_tests() {
        broken(DRIVER, "fn f() {\n x.unwrap();\n}", &[("unwrap", 2)]);
        broken(DRIVER, "#![allow(clippy::unwrap_used)]", &[("unwrap", 1)]);
        broken(DRIVER, "#[test]\nfn f() {\n x.unwrap();\n}", &[]);
        broken("crates/node/tests/main.rs", "fn f() { x.unwrap(); }", &[]);
        broken(DRIVER, "// x.unwrap()\nfn f() { g(\".unwrap()\"); x.unwrap_or(1); }", &[]);
    }

    #[test]
    fn unfinished_code_and_ignored_tests_are_found_anywhere() {
        broken(DRIVER, "fn f() { todo!() }", &[("unfinished", 1)]);
        broken(DRIVER, "fn f() { unimplemented!() }", &[("unfinished", 1)]);
        broken(DRIVER, "#[test]\n#[ignore = \"slow\"]\nfn f() {}", &[("ignored-test", 2)]);
    }

    #[test]
    fn tests_do_not_sleep() {
        broken(DRIVER, "fn f() { std::thread::sleep(d); }", &[]);
        broken("crates/kafka/tests/main.rs", "fn f() { thread::sleep(d); }", &[("sleep-in-test", 1)]);
        broken("crates/kafka/tests/main.rs", "fn sleep_until(&self, _: Mono) {}", &[]);
        broken("crates/testkit/src/lib.rs", "fn f() { thread::sleep(d); }", &[("sleep-in-test", 1)]);
        broken(DRIVER, "#[tokio::test]\nasync fn f() { tokio::time::sleep(d).await; }", &[("sleep-in-test", 2)]);
    }

    #[test]
    fn unbounded_channels_are_found_however_they_are_named() {
        broken(DRIVER, "let c = tokio::sync::mpsc::unbounded_channel();", &[("unbounded-channel", 1)]);
        broken(DRIVER, "let c = mpsc::channel();", &[("unbounded-channel", 1)]);
        broken(DRIVER, "let c = mpsc::channel::<u8>();", &[("unbounded-channel", 1)]);
        broken(DRIVER, "use std::sync::mpsc::{Receiver, channel};", &[("unbounded-channel", 1)]);
        broken(DRIVER, "use std::sync::mpsc::{Receiver, sync_channel};\nlet c = mpsc::channel(8);", &[]);
        broken(DRIVER, "let c = oneshot::channel();", &[]);
    }

    #[test]
    fn pure_layers_have_no_clock_no_chance_no_io_and_no_hash_order() {
        broken(PURE, "let t = Instant::now();", &[("clock", 1)]);
        broken(PURE, "let t = std::time::SystemTime::now();", &[("clock", 1)]);
        broken(PURE, "let r = rand::thread_rng();", &[("randomness", 1)]);
        broken(PURE, "use std::collections::HashMap;", &[("hash-order", 1)]);
        broken(PURE, "let f = std::fs::read(p);", &[("io", 1)]);
        broken(PURE, "use std::{fmt, fs};", &[("io", 1)]);
        broken(PURE, "use std::{fmt, process::Command, io};", &[("io", 1)]);
        broken(PURE, "use std::net::{IpAddr, UdpSocket};", &[("io", 1)]);
        broken(PURE, "use std::net::SocketAddr;", &[]);
        broken(PURE, "tokio::spawn(f());", &[("threads", 1)]);
        broken(PURE, "println!(\"x\");", &[("print", 1)]);
        broken(
            PURE,
            "#[cfg(test)]\nmod tests {\n fn f() { std::fs::read(p); println!(); let t = Instant::now(); }\n}",
            &[("clock", 3)],
        );
    }

    #[test]
    fn upper_layers_and_examples_may() {
        broken("crates/stream/examples/a.rs", "let t = Instant::now();", &[]);
        broken(DRIVER, "let t = Instant::now(); let m = HashMap::new(); std::fs::read(p); tokio::spawn(f());", &[]);
    }
}
