//! More connections to a node's API than it serves: what waits for long leaves room for the rest, and both for probes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::ensure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use testkit::{Cluster, Folder, wait_until};

use crate::support::{PATIENCE, machine_shared};

/// So many watches, waits for locks and the like a node serves at once, ...
const WAITS_MAX: usize = 768;
/// ... and so many connections, besides those in reserve for probes.
const CONNECTIONS_MAX: usize = 1_024;

#[test]
fn watchers_leave_room_for_calls_and_a_full_api_still_answers_probes() {
    let _machine = machine_shared();
    Folder::scenario("crowded", |folder| {
        // The other ends of all those connections are open here.
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
        let cluster = Cluster::start(folder, 1)?;
        let node = &cluster.nodes[0];
        let mut watchers = (0..WAITS_MAX).map(|_| watcher(node.api)).collect::<anyhow::Result<Vec<_>>>()?;
        for path in ["/v1/kv-changes", "/v1/vms/none/logs"] {
            let refused = node.api().get(path)?;
            ensure!(refused.status == 429 && refused.body["code"] == "busy", "one more stream: {refused:?}");
        }
        node.api().put("/v1/kv/a", &json!({ "value": "b" }))?.ok()?;
        for number in [0, WAITS_MAX - 1] {
            until_told(&mut watchers[number], "\"put\"")?;
        }

        // Connections that say nothing are closed after a while: the rest is taken anew each time.
        wait_until(PATIENCE, "calls are refused, and probes are not", || {
            let silent = (WAITS_MAX..CONNECTIONS_MAX).map(|_| TcpStream::connect(node.api));
            let silent = silent.collect::<Result<Vec<_>, _>>()?;
            let refused = node.api().get("/v1/kv/a")?;
            ensure!(refused.status == 503 && refused.body["detail"] == "too many connections", "{refused:?}");
            ensure!(node.api().get("/readyz")?.ok()?["ready"] == true, "it is not ready");
            let metrics = node.api().text("/metrics")?;
            ensure!(metrics.status == 200, "{metrics:?}");
            drop(silent);
            Ok(())
        })?;

        drop(watchers);
        wait_until(PATIENCE, "there is room again", || {
            watcher(node.api)?;
            node.api().get("/v1/kv/a")?.ok()
        })?;
        Ok(())
    });
}

/// A connection on which changes of keys are told.
fn watcher(api: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(api)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /v1/kv-changes HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    until_told(&mut stream, "\"watching\"")?;
    Ok(stream)
}

/// Reads until something was told.
fn until_told(stream: &mut TcpStream, what: &str) -> anyhow::Result<()> {
    let mut told = Vec::new();
    while !String::from_utf8_lossy(&told).contains(what) {
        let mut part = [0; 4_096];
        let length = stream.read(&mut part)?;
        ensure!(length > 0, "it ended before {what}: {}", String::from_utf8_lossy(&told));
        told.extend_from_slice(&part[..length]);
    }
    Ok(())
}
