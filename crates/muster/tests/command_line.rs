//! The built binary, as people call it: help, mistakes, exit codes, a node that is not there.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

fn muster(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(args)
        .env_remove("MUSTER_API")
        .env("COLUMNS", "120")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compares with a committed text; `UPDATE=1` rewrites it.
fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), actual, "{name}; UPDATE=1 rewrites it");
}

#[test]
fn help_is_as_committed() {
    for args in [
        vec!["--help"],
        vec!["vm", "--help"],
        vec!["vm", "create", "--help"],
        vec!["vm", "logs", "-h"],
        vec!["up", "-h"],
    ] {
        let output = muster(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let name = format!("{}.txt", args.join("_").replace("--", "").replace('-', ""));
        golden(&name, &text(&output.stdout));
    }
}

#[test]
fn the_version_is_told_to_people_and_to_programs() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(text(&muster(&["version"]).stdout), format!("muster {version}\n"));
    for args in [["-o", "json", "version"], ["version", "-o", "json"]] {
        let told: serde_json::Value = serde_json::from_slice(&muster(&args).stdout).unwrap();
        assert_eq!(told, serde_json::json!({ "version": version }));
    }
}

#[test]
fn mistakes_end_with_2_and_say_what_was_meant() {
    for (args, says) in [
        (vec!["vm", "lsit"], "'list'"),
        (vec!["vm", "create"], "<NAME>"),
        (vec!["vm", "create", "web", "--cpu", "1"], "'--cpus'"),
        (vec!["vm", "create", "web", "--cpus", "0"], "error: `cpus` must be at least 1, is 0"),
        (vec!["vm", "create", "web", "--cpus", "two"], "error: `cpus` must be an integer, is \"two\""),
        (vec!["topic", "create", "t", "--config", "x"], "error: `config` must be KEY=VALUE, is \"x\""),
        (vec!["status", "--output", "yaml"], "[possible values: human, json]"),
        (vec!["status", "--deadline", "soon"], "it must be a number of seconds, minutes or hours"),
        // What is refused otherwise, with 1, once it has begun.
        (vec!["node", "--config", "/nowhere/node.toml", "--deadline", "5s"], "`muster node --config` has none"),
        (vec!["recover", "--data-dir", "/nowhere", "--deadline", "5s"], "`muster recover` has none"),
        (vec!["node"], "--config"),
    ] {
        let output = muster(&args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

#[test]
fn where_no_node_answers_it_says_so_and_ends_with_1() {
    // A port that was free a moment ago, with nobody listening.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = muster(&["status", "--api", &address]);
    assert_eq!(output.status.code(), Some(1));
    let expect = format!("error: no node answers at {address}: start one with `muster up`, or name one with --api\n");
    assert_eq!(text(&output.stderr), expect);
    let json = muster(&["status", "--api", &address, "--output", "json"]);
    let error: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unreachable");
    let strange = muster(&["status", "--api", "not an address"]);
    assert_eq!(strange.status.code(), Some(1));
}

/// Takes one request, to its end, and gives its connection and its key.
fn request_at(listener: &TcpListener) -> (TcpStream, Option<String>) {
    let (stream, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let (mut key, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some(("idempotency-key", value)) => key = Some(value.to_owned()),
            Some(("content-length", value)) => length = value.parse().unwrap(),
            _ => {}
        }
    }
    lines.read_exact(&mut vec![0; length]).unwrap();
    (stream, key)
}

#[test]
fn a_call_whose_connection_breaks_is_sent_again_under_its_key() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let calls = std::thread::spawn(move || muster(&["topic", "delete", "orders", "--api", &address]));
    let (first, key) = request_at(&listener);
    drop(first);
    let (mut second, again) = request_at(&listener);
    let problem = r#"{"code":"not_found","detail":"there is no topic `orders`"}"#;
    let head = "HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\nconnection: close\r\n";
    write!(second, "{head}content-length: {}\r\n\r\n{problem}", problem.len()).unwrap();
    assert!(key.is_some(), "it had none");
    assert_eq!(key, again);
    assert!(text(&calls.join().unwrap().stderr).contains("there is no topic `orders`"));
}

#[test]
fn a_deadline_is_told_to_the_node() {
    for place in ["before", "behind"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let calls = std::thread::spawn(move || match place {
            "before" => muster(&["--deadline", "2s", "topic", "list", "--api", &address]),
            _ => muster(&["topic", "list", "--api", &address, "--deadline", "2s"]),
        });
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        assert!(head.iter().any(|line| line.eq_ignore_ascii_case("muster-deadline-ms: 2000")), "{place}: {head:?}");
        assert_eq!(calls.join().unwrap().status.code(), Some(1));
    }
}

#[test]
fn addresses_that_nobody_can_connect_to_are_refused_before_anything_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (start, flag, address, says) in [
        (
            "up",
            "--kafka-listen",
            "0.0.0.0:19092",
            "--kafka-advertise HOST:PORT, such as --kafka-advertise 192.168.1.10:19092",
        ),
        ("up", "--kafka-listen", "[::]:19092", "--kafka-advertise HOST:PORT"),
        ("up", "--api-listen", "0.0.0.0:17400", "--api-advertise HOST:PORT"),
        ("up", "--peer-listen", "0.0.0.0:17401", "name the one address at which other nodes reach this host"),
        ("up", "--kafka-advertise", "0.0.0.0:9092", "must be an address to connect to"),
        ("up", "--kafka-advertise", "example.org", "--kafka-advertise must be host:port"),
        ("dev", "--kafka-listen", "0.0.0.0:19092", "name one address of this host"),
        ("demo", "--peer-listen", "[::]:0", "name one address of this host"),
    ] {
        let output = muster(&[start, "--data-dir", data.to_str().unwrap(), flag, address]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{start} {flag} {address}: {said}");
        assert!(said.starts_with("error: ") && said.contains(says), "{start} {flag} {address}: {said}");
        assert!(!data.join("identity").exists() && !data.join("node1").exists(), "{start} {flag} {address}");
    }
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, "name = \"a\"\nkafka_lisen = \"127.0.0.1:0\"\n").unwrap();
    let output = muster(&["node", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let expect = format!("error: {}:2: unknown key \"kafka_lisen\": did you mean \"kafka_listen\"?\n", file.display());
    assert_eq!(text(&output.stderr), expect);
    let output = muster(&["join", "hello"]);
    assert!(text(&output.stderr).contains("not a muster join token"), "{}", text(&output.stderr));
}
