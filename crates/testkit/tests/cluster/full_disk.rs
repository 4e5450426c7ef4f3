//! A disk without space: writes are refused, reads go on, and so do writes once there is space.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, SmallDisk, wait_until};

use crate::support::{PATIENCE, borrowed, ensure_exactly, machine_shared, numbered};

/// Room for a few segments of the journal.
const DISK_MIB: u32 = 384;

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let _machine = machine_shared();
    Folder::scenario("full-disk", |folder| {
        let disk = SmallDisk::mount(&folder.path().join("disk"), DISK_MIB)?;
        let mut cluster = Cluster::prepare(folder, 1)?;
        cluster.nodes[0].data_dir = disk.path().join("node1");
        cluster.form()?;
        cluster.wait_ready(PATIENCE)?;
        let pid = cluster.nodes[0].pid();
        let records = numbered("kept", 0..1_000);
        cluster.nodes[0].kcat().produce("kept", borrowed(&records), &[], &[])?;

        disk.fill()?;
        wait_writes_refused(&cluster.nodes[0])?;
        let node = &cluster.nodes[0];
        ensure_exactly(&node.kcat().consume("kept")?, &records)?;
        let status = node.api().get("/v1/status")?.ok()?;
        ensure!(status["nodes"][0]["disk_full"] == true, "the full disk does not show in {}", status["nodes"][0]);

        disk.free()?;
        wait_until(PATIENCE, "writes are accepted again", || {
            node.kcat().produce("again", [(&b"k"[..], &b"v"[..])], &[], &["-X", "message.timeout.ms=2000"])?;
            node.api().post("/v1/topics", &json!({ "name": "after" }))?.ok()
        })?;
        ensure!(cluster.nodes[0].pid() == pid, "the process was replaced");
        cluster.nodes[0].ensure_ready()?;

        // Nothing acknowledged was lost, and the journal is whole.
        cluster.nodes[0].kill()?;
        cluster.nodes[0].start(&testkit::Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        ensure_exactly(&cluster.nodes[0].kcat().consume("kept")?, &records)
    });
}

/// Writes until both kinds of write are refused: what was set aside before the disk was full may still take some.
fn wait_writes_refused(node: &Node) -> anyhow::Result<()> {
    let value = vec![b'x'; 500_000];
    let mut tries = 0;
    wait_until(PATIENCE, "writes are refused", || {
        tries += 1;
        let records: Vec<_> = (0..8).map(|_| (&b"k"[..], &value[..])).collect();
        let quick = ["-X", "message.timeout.ms=2000"];
        let produced = node.kcat().produce("filler", records, &[], &quick);
        ensure!(produced.is_err(), "records are still accepted");
        let answer = node.api().post("/v1/topics", &json!({ "name": format!("refused{tries}") }))?;
        ensure!(answer.status >= 400, "topics are still created: {}", answer.body);
        let code = error_code(&answer.body).with_context(|| format!("no error code in {}", answer.body))?;
        ensure!(code == "disk_full", "refused as {code}: {}", answer.body);
        Ok(())
    })
}

/// The stable word under which the API reports a failure.
fn error_code(body: &Value) -> Option<&str> {
    body["error"]["code"].as_str().or_else(|| body["code"].as_str())
}
