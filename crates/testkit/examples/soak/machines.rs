//! Virtual machines that come and go, to keep the machine busy.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::{Answer, Api, wait_until};

/// A machine boots on an emulated CPU, on cores that have other things to do.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Until it is told to stop: one machine after the other is made, boots, and goes.
pub fn boot_over_and_over(api: &Api, prefix: &str, stop: &AtomicBool, booted: &AtomicUsize) -> anyhow::Result<()> {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("{prefix}{number}");
        // Whoever is told "busy", or nothing, asks again; by then it may have been done.
        wait_until(BOOT_LIMIT, "the machine is ordered", || {
            done_or(409, api.post("/v1/vms", &json!({ "name": name }))?)
        })?;
        let runs = wait_until(BOOT_LIMIT, "the machine runs", || {
            let vm = api.get(&format!("/v1/vms/{name}"))?.ok()?;
            let runs = vm["phase"] == "Running";
            ensure!(runs || stop.load(Ordering::SeqCst), "it is {vm}");
            Ok(runs)
        })?;
        booted.fetch_add(usize::from(runs), Ordering::SeqCst);
        wait_until(BOOT_LIMIT, "the machine goes", || done_or(404, api.delete(&format!("/v1/vms/{name}"))?))?;
    }
    Ok(())
}

/// Whether a call succeeded, or one before it.
fn done_or(status: u16, answer: Answer) -> anyhow::Result<()> {
    if answer.status != status {
        answer.ok()?;
    }
    Ok(())
}
