//! The key-value store: by command line and REST, through every node, over the death of its leader.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Folder, Node, Process, Signal, Start, wait_until};

use crate::support::{PATIENCE, machine_shared, wait_tolerant};

#[test]
fn keys_are_the_same_through_every_node_and_outlive_their_leader() {
    let _machine = machine_shared();
    Folder::scenario("kv", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let [one, two, three] = [&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]];
        let first = put(one, &["app/color", "blue"])?;
        ensure!(said(two, &["kv", "get", "app/color"])? == "blue");
        let watch = three.cli_start("watch", &["kv", "watch", "app/", "--from-revision", &first.to_string()])?;
        seen(&watch, "put app/color blue")?;
        let second = put(two, &["app/color", "green"])?;
        ensure!(second > first, "{second} came after {first}");

        // Compare and set: of two that expect the same, one succeeds.
        let expect = second.to_string();
        let cas = |node: &Node, value: &str| node.cli(&["kv", "cas", "app/color", value, "--revision", &expect]);
        ensure!(cas(three, "red")?.status.success(), "it is as expected");
        let late = cas(one, "black")?;
        ensure!(late.status.code() == Some(1) && late.text().contains("was expected at revision"), "{}", late.text());
        binary_values_go_through_files(folder, one, two)?;
        ensure!(said(one, &["kv", "delete", "app/", "--prefix"])?.contains("2 keys deleted"));
        for what in ["put app/color green", "put app/color red", "put app/binary", "deleted app/color"] {
            seen(&watch, what)?;
        }

        put(one, &["app/lasting", "before"])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        cluster.nodes[leader].kill()?;
        let survivor = (leader + 1) % 3;
        // Through a survivor at once: the call waits for the next leader.
        ensure!(said(&cluster.nodes[survivor], &["kv", "get", "app/lasting"])? == "before");
        put(&cluster.nodes[survivor], &["app/lasting", "after"])?;
        cluster.nodes[leader].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        ensure!(said(&cluster.nodes[leader], &["kv", "get", "app/lasting"])? == "after", "a restarted node is behind");

        // Who goes on watching through another node misses nothing.
        let rest = json_lines(&cluster.nodes[leader], &format!("/v1/kv-changes?prefix=app/&from_revision={first}"), 8)?;
        let told: Vec<_> = rest.iter().map(|item| item["what"].as_str().unwrap_or_default()).collect();
        ensure!(told == ["watching", "put", "put", "put", "put", "deleted", "deleted", "put"], "{told:?}");
        let future = cluster.nodes[leader].api().get("/v1/kv-changes?from_revision=99999999")?;
        ensure!(future.status == 400, "a watch from the future: {future:?}");
        let _ = watch.signal(Signal::Interrupt);
        Ok(())
    });
}

fn binary_values_go_through_files(folder: &Folder, from: &Node, to: &Node) -> anyhow::Result<()> {
    let bytes: Vec<u8> = (0..=255).collect();
    let file = folder.path().join("binary");
    std::fs::write(&file, &bytes)?;
    let mut command = Command::new(testkit::muster_binary()?);
    command.args(["--api", &from.api.to_string(), "kv", "put", "app/binary", "-"]);
    let input = Stdio::from(std::fs::File::open(&file)?);
    let mut put = Process::start_with_input(&mut command, input, "binary", folder.path())?;
    let ended = put.wait(PATIENCE)?;
    ensure!(ended.status.success(), "{}", ended.text());
    let got = to.api().get("/v1/kv/app%2Fbinary")?.ok()?;
    ensure!(got["encoding"] == "base64" && got["version"] == 1, "{got}");
    let large = json!({ "value": "x".repeat((1 << 20) + 1) });
    let refused = to.api().put("/v1/kv/large", &large)?;
    ensure!(refused.status == 413, "more than a value may have: {refused:?}");
    let whole = "x".repeat(1 << 20);
    to.api().put("/v1/kv/large", &json!({ "value": whole }))?.ok()?;
    ensure!(from.api().get("/v1/kv/large")?.ok()?["value"] == whole.as_str(), "1 MiB came back as something else");
    Ok(())
}

#[test]
fn a_key_with_a_time_goes_and_one_whose_lease_is_kept_stays_over_a_change_of_leaders() {
    let _machine = machine_shared();
    Folder::scenario("leases", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let node = &cluster.nodes[0];
        put(node, &["short", "x", "--ttl-s", "1"])?;
        let put_at = Instant::now();
        let lease = node.cli_json(&["lease", "grant", "3"])?["lease"].as_u64().context("no lease")?.to_string();
        put(node, &["held", "x", "--lease", &lease])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        let survivor = (leader + 1) % 3;
        let mut keep = cluster.nodes[survivor].cli_start("keep", &["lease", "keep", &lease])?;
        wait_until(PATIENCE, "the short one is gone", || {
            let node = &cluster.nodes[survivor];
            ensure!(node.api().get("/v1/kv/short")?.status == 404, "still there after {:?}", put_at.elapsed());
            Ok(())
        })?;
        ensure!(put_at.elapsed() >= Duration::from_millis(900), "gone after {:?}", put_at.elapsed());
        cluster.nodes[leader].kill()?;
        let killed = Instant::now();
        let renewals = keep.output().lines().count();
        wait_until(PATIENCE, "it is renewed by the next leader", || {
            ensure!(keep.output().lines().count() > renewals + 3, "{} {}", keep.output(), keep.log());
            Ok(())
        })?;
        let node = &cluster.nodes[survivor];
        ensure!(node.api().get("/v1/kv/held")?.status == 200, "kept, and gone after {:?}", killed.elapsed());
        keep.kill()?;
        wait_until(PATIENCE, "nobody keeps it, and it goes", || {
            ensure!(node.api().get("/v1/kv/held")?.status == 404, "still there");
            Ok(())
        })?;
        let late = node.cli(&["lease", "keep", &lease, "--once"])?;
        ensure!(late.status.code() == Some(1) && late.text().contains("there is no lease"), "{}", late.text());
        Ok(())
    });
}

#[test]
fn a_call_that_is_repeated_through_another_node_is_carried_out_once() {
    let _machine = machine_shared();
    Folder::scenario("repeated", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let asked = cluster.meta_leader(PATIENCE)?;
        let other = (asked + 1) % 3;
        let (lease, swap) = (json!({ "ttl_s": 600 }), json!({ "value": "first", "revision": 0 }));
        let grant = |node: &Node, key: &str| node.api().with_key(key).post("/v1/leases", &lease)?.ok();
        let cas = |node: &Node, key: &str| node.api().with_key(key).post("/v1/kv/once/cas", &swap);
        let value = json!({ "value": "first" });
        let set = |node: &Node| node.api().with_key("put-1").put("/v1/kv/set", &value)?.ok();
        let delete = |node: &Node| node.api().with_key("delete-1").delete("/v1/kv/gone")?.ok();
        let granted = grant(&cluster.nodes[asked], "grant-1")?;
        let swapped = cas(&cluster.nodes[asked], "cas-1")?.ok()?;
        let was_set = set(&cluster.nodes[asked])?;
        put(&cluster.nodes[asked], &["gone", "first"])?;
        let deleted = delete(&cluster.nodes[asked])?;
        ensure!(deleted["deleted"] == 1, "it was there: {deleted}");
        for key in ["once", "set", "gone"] {
            put(&cluster.nodes[other], &[key, "later"])?;
        }

        // Whoever was asked knows nothing of it any more, and whoever is asked now never did.
        cluster.nodes[asked].kill()?;
        let again = wait_until(PATIENCE, "there is a leader again", || grant(&cluster.nodes[other], "grant-1"))?;
        repeated(&granted, &again)?;
        repeated(&swapped, &cas(&cluster.nodes[other], "cas-1")?.ok()?)?;
        repeated(&was_set, &set(&cluster.nodes[other])?)?;
        repeated(&deleted, &delete(&cluster.nodes[other])?)?;
        cluster.nodes[asked].start(&Start::Up)?;
        cluster.wait_ready(PATIENCE)?;
        repeated(&granted, &grant(&cluster.nodes[asked], "grant-1")?)?;
        repeated(&swapped, &cas(&cluster.nodes[asked], "cas-1")?.ok()?)?;
        repeated(&was_set, &set(&cluster.nodes[asked])?)?;
        repeated(&deleted, &delete(&cluster.nodes[asked])?)?;

        let node = &cluster.nodes[other];
        let leases = node.api().get("/v1/leases")?.ok()?;
        ensure!(leases["leases"].as_array().is_some_and(|leases| leases.len() == 1), "one was granted: {leases}");
        for (key, version) in [("once", 2), ("set", 2), ("gone", 1)] {
            let key = node.api().get(&format!("/v1/kv/{key}"))?.ok()?;
            ensure!(key["value"] == "later" && key["version"] == version, "a repeated call changed it again: {key}");
        }
        // Under another key they are other calls.
        let another = grant(node, "grant-2")?;
        ensure!(another["lease"] != granted["lease"], "{another} is what was granted before");
        let refused = cas(node, "cas-2")?;
        ensure!((400..500).contains(&refused.status), "the key is there: {refused:?}");
        Ok(())
    });
}

fn repeated(first: &Value, again: &Value) -> anyhow::Result<()> {
    ensure!(first == again, "the first call gave {first}, its repetition {again}");
    Ok(())
}

#[test]
fn a_lock_has_one_holder_and_goes_to_whoever_waits_longest() {
    let _machine = machine_shared();
    Folder::scenario("locks", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        let [one, two, three] = [&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]];
        let acquire = |node: &Node, wait: &str| {
            node.cli(&["lock", "acquire", "backup", "--ttl-s", "60", "--timeout-s", wait, "-o", "json"])
        };
        let held: Value = serde_json::from_slice(&acquire(one, "0")?.stdout)?;
        let refused = acquire(two, "0")?;
        ensure!(refused.text().contains("is held by lease"), "{}", refused.text());
        let waits = ["lock", "acquire", "backup", "--ttl-s", "60", "--timeout-s", "60", "-o", "json"];
        let mut second = two.cli_start("second", &waits)?;
        waiting(three, 1)?;
        let mut third = three.cli_start("third", &waits)?;
        waiting(three, 2)?;
        said(three, &["lock", "release", "backup", &held["lease"].to_string()])?;
        let ended = second.wait(PATIENCE)?;
        let next: Value = serde_json::from_slice(&ended.stdout)?;
        ensure!(next["token"].as_u64() > held["token"].as_u64(), "{next} after {held}");
        third.ensure_running()?;
        // A holder that dies is replaced when its lease ends; here an operator does not wait for that.
        said(one, &["lease", "revoke", &next["lease"].to_string()])?;
        let last: Value = serde_json::from_slice(&third.wait(PATIENCE)?.stdout)?;
        ensure!(last["token"].as_u64() > next["token"].as_u64(), "{last} after {next}");
        said(one, &["lock", "release", "backup", &last["lease"].to_string()])?;
        ensure!(said(two, &["lock", "list"])?.contains("no locks"));
        ensure!(two.cli_json(&["lease", "list"])? == json!({ "leases": [] }), "a lease was left behind");
        Ok(())
    });
}

#[test]
fn a_waiter_that_is_killed_leaves_the_queue_and_a_retry_under_its_key_gets_the_lock() {
    let _machine = machine_shared();
    Folder::scenario("lock-waiters", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        let [one, two, three] = [&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]];
        // Nobody's lease ends by itself while this runs.
        let acquire = |node: &Node, key: &str, wait: u32| {
            let input = json!({ "ttl_s": 600, "timeout_s": wait });
            node.api().with_key(key).post("/v1/locks/backup/acquire", &input)
        };
        let held = acquire(one, "holder", 0)?.ok()?;
        let waits = ["lock", "acquire", "backup", "--ttl-s", "600", "--timeout-s", "600", "-o", "json"];
        let mut second = two.cli_start("second", &waits)?;
        waiting(three, 1)?;
        let mut third = three.cli_start("third", &waits)?;
        waiting(three, 2)?;
        second.kill()?;
        waiting(one, 1)?;
        let refused = acquire(two, "late", 0)?;
        ensure!(refused.body["code"] == "deadline_exceeded", "it is held: {refused:?}");
        ensure!(lock_of(one, "backup")?["waiting"] == 1, "who was refused waits on");

        said(one, &["lock", "release", "backup", &held["lease"].to_string()])?;
        let next: Value = serde_json::from_slice(&third.wait(PATIENCE)?.stdout)?;
        ensure!(next["token"].as_u64() > held["token"].as_u64(), "{next} after {held}");
        said(one, &["lock", "release", "backup", &next["lease"].to_string()])?;
        // What failed under a key may be tried again under it, and is done once, whoever is asked.
        let got = acquire(two, "late", 0)?.ok()?;
        ensure!(got["token"].as_u64() > next["token"].as_u64(), "{got} after {next}");
        repeated(&got, &acquire(three, "late", 0)?.ok()?)?;
        ensure!(lock_of(one, "backup")?["waiting_leases"] == json!([]), "somebody is left in the queue");
        Ok(())
    });
}

#[test]
fn a_node_that_stops_waits_for_none_of_those_who_wait_and_tells_each_of_them() {
    let _machine = machine_shared();
    Folder::scenario("stopping", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        // Nobody's lease ends by itself while this runs.
        let acquire = ["lock", "acquire", "backup", "--ttl-s", "600", "--timeout-s"];
        said(&cluster.nodes[0], &[&acquire[..], &["0"]].concat())?;
        let node = &cluster.nodes[1];
        let mut clients = [
            node.cli_start("watch", &["kv", "watch", "app/", "-o", "json"])?,
            node.cli_start("waiter", &[&acquire[..], &["600", "-o", "json"]].concat())?,
        ];
        seen(&clients[0], "watching")?;
        waiting(&cluster.nodes[2], 1)?;

        cluster.nodes[1].stop()?;
        let log = cluster.nodes[1].log();
        let stopped =
            log.lines().find(|line| line.contains("the API stopped")).context("it does not say how it stopped")?;
        ensure!(stopped.contains("ended=2 cut=0"), "who waits held it up: {stopped}");
        for client in &mut clients {
            let ended = client.wait(PATIENCE)?;
            ensure!(ended.status.code() == Some(1), "it ended with {}: {}", ended.status, ended.text());
            let failure: Value = serde_json::from_slice(&ended.stderr).with_context(|| ended.text())?;
            let hint = failure["error"]["hint"].as_str().unwrap_or_default();
            ensure!(failure["error"]["code"] == "shutting_down" && hint.contains("--api"), "it was told {failure}");
        }
        // Those behind one that waited do not wait for the end of its lease.
        waiting(&cluster.nodes[2], 0)
    });
}

#[test]
fn locks_outlive_a_killed_leader_and_go_on_only_when_they_are_released_or_their_lease_is_over() {
    let _machine = machine_shared();
    Folder::scenario("lock-failover", |folder| {
        let mut cluster = Cluster::start(folder, 3)?;
        wait_tolerant(&cluster.nodes[0])?;
        let leader = cluster.meta_leader(PATIENCE)?;
        let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
        let acquire = |node: &Node, lock: &str, ttl: &str| {
            node.cli_json(&["lock", "acquire", lock, "--ttl-s", ttl, "--timeout-s", "0"])
        };
        let wait = |node: &Node, lock: &str| {
            let words = ["lock", "acquire", lock, "--ttl-s", "10", "--timeout-s", "60", "-o", "json"];
            node.cli_start(&format!("waits-{lock}"), &words)
        };
        // Of one lock the holder renews its lease; that of the other one is left to its time.
        let kept = acquire(&cluster.nodes[one], "kept", "10")?;
        let mut keeper = cluster.nodes[one].cli_start("keeper", &["lease", "keep", &kept["lease"].to_string()])?;
        let mut next_of_kept = wait(&cluster.nodes[two], "kept")?;
        let left_at = Instant::now();
        let left = acquire(&cluster.nodes[one], "left", "3")?;
        let mut next_of_left = wait(&cluster.nodes[two], "left")?;
        for lock in ["kept", "left"] {
            wait_until(PATIENCE, &format!("somebody waits for {lock}"), || {
                ensure!(lock_of(&cluster.nodes[one], lock)?["waiting"] == 1, "nobody does");
                Ok(())
            })?;
        }

        cluster.nodes[leader].kill()?;
        let (node, waiter) = (&cluster.nodes[one], &mut next_of_left);
        let (held, passed) = std::thread::scope(|scope| {
            let passed = scope.spawn(move || waiter.wait(PATIENCE).map(|ended| (ended, left_at.elapsed())));
            let held = held_all_along(node, &kept, &keeper, &mut next_of_kept);
            (held, passed.join())
        });
        held?;
        let (ended, after) = passed.map_err(|_| anyhow::anyhow!("the one that waits panicked"))??;
        ensure!(after >= Duration::from_secs(3), "a lease of 3 s was over after {after:?}");
        let next: Value = serde_json::from_slice(&ended.stdout).with_context(|| ended.text())?;
        ensure!(next["token"].as_u64() > left["token"].as_u64(), "{next} after {left}");
        let late = node.cli(&["lease", "keep", &left["lease"].to_string(), "--once"])?;
        ensure!(late.text().contains("there is no lease"), "who held it before may go on: {}", late.text());

        next_of_kept.ensure_running()?;
        said(node, &["lock", "release", "kept", &kept["lease"].to_string()])?;
        let ended = next_of_kept.wait(PATIENCE)?;
        let next: Value = serde_json::from_slice(&ended.stdout).with_context(|| ended.text())?;
        ensure!(next["token"].as_u64() > kept["token"].as_u64(), "{next} after {kept}");
        ensure!(lock_of(node, "kept")?["lease"] == next["lease"], "{next} is not what the others see");
        let ended = keeper.wait(PATIENCE)?;
        ensure!(ended.text().contains("there is no lease"), "what was released is kept: {}", ended.text());
        Ok(())
    });
}

/// Waits until a lease was renewed twice more. All the while whoever looks finds the lock held by it, under the same
/// token, and the one that waits goes on waiting.
fn held_all_along(node: &Node, held: &Value, keeper: &Process, waiter: &mut Process) -> anyhow::Result<()> {
    let renewals = || keeper.output().lines().count();
    let before = renewals();
    wait_until(PATIENCE, "the lease is renewed by the next leader, and once more", || {
        if let Err(ended) = waiter.ensure_running() {
            return Ok(Err(ended.context("it waits for what another one holds")));
        }
        let lock = lock_of(node, "kept")?;
        if lock["lease"] != held["lease"] || lock["token"] != held["token"] {
            return Ok(Err(anyhow::anyhow!("it was {held}, and is {lock}")));
        }
        ensure!(renewals() >= before + 2, "after {before} renewals: {} {}", keeper.output(), keeper.log());
        Ok(Ok(()))
    })?
}

/// A lock as a node sees it; null if nobody holds it.
fn lock_of(node: &Node, name: &str) -> anyhow::Result<Value> {
    let body = node.api().get("/v1/locks")?.ok()?;
    let locks = body["locks"].as_array().with_context(|| format!("no list of locks in {body}"))?;
    Ok(locks.iter().find(|lock| lock["name"] == name).cloned().unwrap_or_default())
}

fn waiting(node: &Node, count: u64) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("{count} wait for the lock"), || {
        let locks = node.api().get("/v1/locks")?.ok()?;
        ensure!(locks["locks"][0]["waiting"] == count, "{locks}");
        Ok(())
    })
}

/// Puts a key; the revision.
pub fn put(node: &Node, what: &[&str]) -> anyhow::Result<u64> {
    let words: Vec<&str> = ["kv", "put"].iter().chain(what).copied().collect();
    node.cli_json(&words)?["revision"].as_u64().context("no revision")
}

/// What the command line says, which must succeed.
pub fn said(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let finished = node.cli(arguments)?;
    ensure!(finished.status.success(), "muster {arguments:?}: {}", finished.text());
    Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
}

fn seen(watch: &Process, what: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("the watch shows {what:?}"), || {
        ensure!(watch.output().contains(what), "it shows {:?}", watch.output());
        Ok(())
    })
}

/// The first lines of a stream of JSON values.
fn json_lines(node: &Node, path: &str, count: usize) -> anyhow::Result<Vec<Value>> {
    let lines = node.api().lines(path, count)?;
    lines.iter().map(|line| serde_json::from_str(line).with_context(|| line.clone())).collect()
}
