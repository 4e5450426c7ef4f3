//! `muster dev` with real processes: it forms, tells of a node that dies, stops whole, and goes on where it was.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

struct Dev {
    child: Child,
    out: std::path::PathBuf,
}

impl Dev {
    fn start(dir: &Path, nodes: &[&str], name: &str) -> Dev {
        let out = dir.join(name);
        let file = File::create(&out).unwrap();
        let any = "127.0.0.1:0";
        let child = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(["dev", "--data-dir"])
            .arg(dir.join("data"))
            .args(["--kafka-listen", any, "--api-listen", any, "--peer-listen", any])
            .args(nodes)
            .stdin(Stdio::null())
            .stderr(file.try_clone().unwrap())
            .stdout(file)
            .spawn()
            .unwrap();
        Dev { child, out }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    fn wait_until_it_says(&mut self, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !self.said().contains(wanted) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no {wanted:?} ({ended:?}) in:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_its_end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The nodes end with it: the kernel tells them.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that runs a node, by the lock of its data directory.
fn pid_of(dir: &Path, node: &str) -> Pid {
    let text = std::fs::read_to_string(dir.join("data").join(node).join("lock")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

fn status(dir: &Path) -> Value {
    let layout: Value = serde_json::from_slice(&std::fs::read(dir.join("data/dev.json")).unwrap()).unwrap();
    let api = layout["nodes"][0]["api"].as_str().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_muster")).args(["status", "-o", "json", "--api", api]).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

#[test]
fn a_cluster_forms_tells_of_deaths_stops_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &["--nodes", "3"], "first.out");
    dev.wait_until_it_says("all 3 nodes are ready");
    dev.wait_until_it_says("Try next:");
    let before = status(dir.path());
    let nodes = before["nodes"].as_array().unwrap();
    assert!(nodes.len() == 3 && nodes.iter().all(|node| node["state"] == "ready"), "{before:#}");

    kill_process(pid_of(dir.path(), "node3"), Signal::KILL).unwrap();
    dev.wait_until_it_says("node3 ended by signal 9");
    dev.wait_until_it_says("start it again with: muster up --data-dir");

    let left = [pid_of(dir.path(), "node1"), pid_of(dir.path(), "node2")];
    kill_process(Pid::from_child(&dev.child), Signal::TERM).unwrap();
    assert_eq!(dev.wait_for_its_end(), Some(0), "{}", dev.said());
    assert!(!dev.said().contains("is killed"), "every node stopped by itself:\n{}", dev.said());
    for pid in left {
        assert!(test_kill_process(pid).is_err(), "{pid:?} still runs");
    }

    let fewer = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(["dev", "--nodes", "2", "--data-dir"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&fewer.stderr).contains("start it with --nodes 3"), "{fewer:?}");

    let mut again = Dev::start(dir.path(), &[], "again.out");
    again.wait_until_it_says("all 3 nodes are ready");
    let after = status(dir.path());
    assert_eq!(after["cluster"], before["cluster"]);
    let names = |status: &Value| -> Vec<(Value, Value)> {
        status["nodes"].as_array().unwrap().iter().map(|n| (n["id"].clone(), n["name"].clone())).collect()
    };
    assert_eq!(names(&after), names(&before), "the same nodes under the same ids");

    let mut second = Dev::start(dir.path(), &[], "second.out");
    assert_eq!(second.wait_for_its_end(), Some(1));
    assert!(second.said().contains("is in use by the muster process"), "{}", second.said());

    // Even if it is killed itself, no node stays behind.
    let nodes = ["node1", "node2", "node3"].map(|node| pid_of(dir.path(), node));
    drop(again);
    let deadline = Instant::now() + Duration::from_secs(30);
    while nodes.iter().any(|pid| test_kill_process(*pid).is_ok()) {
        assert!(Instant::now() < deadline, "nodes stayed behind: {nodes:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
