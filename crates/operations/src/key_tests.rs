//! Keys, leases and locks against real tables: calls that are repeated, and callers that go away or do not read.

use std::sync::{Arc, Weak};

use base::limits::{IDEMPOTENCY_KEPT, KV_HISTORY_BYTES_MAX, KV_VALUE_BYTES_MAX};
use base::{ErrorCode, LeaseId, Millis, Mono};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt};
use metadata::{Command, CommandResult, KeyLife};
use ops::Output;
use serde_json::{Value, json};

use crate::Core;
use crate::testing::{World, call};

#[test]
fn a_put_or_a_delete_that_is_repeated_under_its_key_undoes_nothing() {
    let world = World::new(3);
    let first = json!({ "key": "a", "value": "first" });
    let put = world.keyed("put-1", "kv.put", first.clone()).unwrap();
    world.value("kv.put", json!({ "key": "a", "value": "later" })).unwrap();
    assert_eq!(world.keyed("put-1", "kv.put", first.clone()).unwrap(), put);
    let now = world.value("kv.get", json!({ "key": "a" })).unwrap();
    assert_eq!((&now["value"], &now["version"]), (&json!("later"), &json!(2)));

    let going = json!({ "key": "a", "revision": now["revision"] });
    let deleted = world.keyed("delete-1", "kv.delete", going.clone()).unwrap();
    world.value("kv.put", json!({ "key": "a", "value": "anew" })).unwrap();
    assert_eq!(world.keyed("delete-1", "kv.delete", going).unwrap(), deleted);
    assert_eq!(world.value("kv.get", json!({ "key": "a" })).unwrap()["value"], "anew");

    // Under another key, or under none, they are other calls.
    for key in ["put-2", "put-3"] {
        world.keyed(key, "kv.put", first.clone()).unwrap();
    }
    assert_eq!(world.value("kv.put", first).unwrap()["version"], 4);
    assert_eq!(world.value("kv.delete", json!({ "key": "a" })).unwrap()["deleted"], 1);
    let gone = world.value("kv.get", json!({ "key": "a" })).unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
}

fn end(world: &World, lease: &Value) {
    let lease = LeaseId(lease.as_u64().unwrap());
    let ended = world.apply(Command::EndLease { lease, expired: false });
    assert!(matches!(ended, CommandResult::KeysDeleted { .. }), "{ended:?}");
}

#[test]
fn a_lock_waiter_that_hangs_up_leaves_the_queue() {
    let world = World::new(3);
    let acquire = || json!({ "name": "backup", "ttl_s": 600, "timeout_s": 600 });
    let held = world.value("lock.acquire", acquire()).unwrap();
    world.patient();
    world.hang_ups();
    let pipeline = world.pipeline();
    let mut waiting = Box::pin(pipeline.invoke(call("lock.acquire", acquire())));
    assert!(waiting.as_mut().now_or_never().is_none(), "the lock is held");
    let lock = world.value("lock.list", json!({})).unwrap()["locks"][0].clone();
    assert_eq!((&lock["lease"], &lock["waiting"]), (&held["lease"], &json!(1)));
    let lease = LeaseId(lock["waiting_leases"][0].as_u64().unwrap());
    assert!(world.metadata().kv.leases.contains_key(&lease));
    let shown = world.shown("lock.list", json!({}));
    let row: Vec<_> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[row.len() - 2..], ["1".to_owned(), lease.to_string()], "{shown}");

    drop(waiting);
    let lock = world.value("lock.list", json!({})).unwrap()["locks"][0].clone();
    assert_eq!((&lock["lease"], &lock["waiting_leases"]), (&held["lease"], &json!([])));
    assert!(!world.metadata().kv.leases.contains_key(&lease), "its lease is left behind");
    // Who has the lock keeps it when the call is over.
    assert_eq!(world.metadata().kv.leases.len(), 1);
}

#[test]
fn a_lock_that_was_not_got_in_time_is_got_by_a_retry_under_the_same_key() {
    let world = World::new(3);
    let acquire = json!({ "name": "backup", "timeout_s": 0 });
    let held = world.value("lock.acquire", acquire.clone()).unwrap();
    for _ in 0..3 {
        let late = world.keyed("k", "lock.acquire", acquire.clone()).unwrap_err();
        assert_eq!(late.code, ErrorCode::DeadlineExceeded, "{late:?}");
        assert_eq!(world.metadata().kv.leases.len(), 1, "a lease is left behind");
    }
    end(&world, &held["lease"]);
    let got = world.keyed("k", "lock.acquire", acquire.clone()).unwrap();
    assert!(got["token"].as_u64() > held["token"].as_u64(), "{got} after {held}");
    // Its answer was lost: once more, through another node.
    assert_eq!(world.keyed("k", "lock.acquire", acquire.clone()).unwrap(), got);
    // It was held, and is not any more.
    end(&world, &got["lease"]);
    let next = world.keyed("k", "lock.acquire", acquire).unwrap();
    assert!(next["token"].as_u64() > got["token"].as_u64(), "{next} after {got}");
}

#[test]
fn a_lock_is_not_said_to_be_held_any_more_because_an_earlier_call_under_the_key_was_told_so() {
    let world = World::new(3);
    let pipeline = world.pipeline();
    let first = answered(pipeline.invoke(waits_for_backup()));
    // Its answer was lost: once more, through the same node.
    assert_eq!(answered(pipeline.invoke(waits_for_backup())), first);
    end(&world, &first["lease"]);
    let held = world.value("lock.acquire", json!({ "name": "backup" })).unwrap();
    world.patient();
    world.hang_ups();
    let mut again = Box::pin(pipeline.invoke(waits_for_backup()));
    assert!(again.as_mut().now_or_never().is_none(), "somebody else holds the lock");
    end(&world, &held["lease"]);
    let next = answered(again);
    assert!(next["token"].as_u64() > held["token"].as_u64(), "{next} after {held}");
}

#[test]
fn a_lock_waiter_that_hangs_up_before_it_was_told_that_it_stands_in_the_queue_leaves_it() {
    let world = World::new(3);
    world.hang_ups();
    world.answers_are_lost(true);
    let pipeline = world.pipeline();
    let mut waiting = Box::pin(pipeline.invoke(waits_for_backup()));
    assert!(waiting.as_mut().now_or_never().is_none(), "it is not answered");
    assert_eq!(world.value("lock.list", json!({})).unwrap()["locks"].as_array().map(Vec::len), Some(1));
    drop(waiting);
    assert_eq!(world.value("lock.list", json!({})).unwrap()["locks"], json!([]));
    assert!(world.metadata().kv.leases.is_empty(), "a lease is left behind");
}

#[test]
fn a_key_that_is_used_again_after_it_was_forgotten_does_not_share_the_lock() {
    let world = World::new(3);
    let first = answered(world.pipeline().invoke(waits_for_backup()));
    world.pass(Millis(IDEMPOTENCY_KEPT.0 + 1));
    let late = json!({ "name": "backup", "ttl_s": 600, "timeout_s": 0 });
    world.keyed("other", "lock.acquire", late).unwrap_err();
    world.patient();
    world.hang_ups();
    let pipeline = world.pipeline();
    let mut next = Box::pin(pipeline.invoke(waits_for_backup()));
    assert!(next.as_mut().now_or_never().is_none(), "the first one holds the lock");
    end(&world, &first["lease"]);
    let got = answered(next);
    assert!(got["token"].as_u64() > first["token"].as_u64());
    // Its answer was lost: the retry takes up that place, though the first one is free.
    assert_eq!(answered(world.pipeline().invoke(waits_for_backup())), got);
}

#[test]
fn who_shares_a_place_and_gives_up_is_told_how_to_leave_it() {
    let (world, held, _first) = one_holds_and_one_waits();
    let mut again = elsewhere(&world);
    assert!(again.as_mut().now_or_never().is_none(), "the lock is held");
    let shared = world.value("lock.list", json!({})).unwrap()["locks"][0]["waiting_leases"][0].clone();
    world.pass(Millis(601_000));
    world.apply(Command::GrantLease { ttl_ms: 1_000 });
    let late = again.as_mut().now_or_never().expect("it ends").err().expect("it fails");
    assert_eq!(late.code, ErrorCode::DeadlineExceeded, "{late:?}");
    assert!(
        late.hint.as_deref().is_some_and(|hint| hint.contains(&format!("lock release backup {shared}"))),
        "{late:?}"
    );
    assert_eq!(world.value("lock.list", json!({})).unwrap()["locks"][0]["lease"], held["lease"]);
}

#[test]
fn who_takes_over_an_earlier_calls_place_goes_on_when_that_one_hangs_up() {
    let (world, held, first) = one_holds_and_one_waits();
    let mut again = elsewhere(&world);
    assert!(again.as_mut().now_or_never().is_none());
    let waiting = || world.value("lock.list", json!({})).unwrap()["locks"][0]["waiting_leases"].clone();
    let shared = waiting();
    assert_eq!(shared.as_array().map(Vec::len), Some(1), "one call, one place: {shared}");
    drop(first);
    assert!(again.as_mut().now_or_never().is_none(), "it waits on");
    assert_eq!(waiting(), shared);
    // The place is lost when somebody takes it away: it was not to wait any more.
    end(&world, &shared[0]);
    let lost = again.as_mut().now_or_never().expect("it ends").err().expect("it fails");
    assert_eq!(lost.code, ErrorCode::FailedPrecondition, "{lost:?}");
    assert_eq!(world.value("lock.list", json!({})).unwrap()["locks"][0]["lease"], held["lease"]);
}

fn waits_for_backup() -> ops::Invocation {
    let input = json!({ "name": "backup", "ttl_s": 600, "timeout_s": 600 });
    ops::Invocation { idempotency_key: Some("k".into()), ..call("lock.acquire", input) }
}

/// Such a call, through a node that was not asked before.
fn elsewhere(world: &Arc<World>) -> LocalBoxFuture<'static, Result<Output, ops::OpError>> {
    let pipeline = world.pipeline();
    async move { pipeline.invoke(waits_for_backup()).await }.boxed_local()
}

/// Somebody holds the lock, and such a call waits for it.
fn one_holds_and_one_waits() -> (Arc<World>, Value, LocalBoxFuture<'static, Result<Output, ops::OpError>>) {
    let world = World::new(3);
    let held = world.value("lock.acquire", json!({ "name": "backup" })).unwrap();
    world.patient();
    world.hang_ups();
    let mut waits = elsewhere(&world);
    assert!(waits.as_mut().now_or_never().is_none(), "the lock is held");
    (world, held, waits)
}

/// What a call has answered by now.
fn answered(call: impl Future<Output = Result<ops::Output, ops::OpError>>) -> Value {
    match call.now_or_never().expect("it ends").unwrap() {
        ops::Output::Value(value) => value,
        ops::Output::Stream(_) => panic!("it streams"),
    }
}

#[test]
fn who_has_the_lock_keeps_it_when_the_call_that_asked_first_under_its_key_leaves_late() {
    let (world, held, first) = one_holds_and_one_waits();
    end(&world, &held["lease"]);
    let got = answered(elsewhere(&world));
    drop(first);
    let lock = world.value("lock.list", json!({})).unwrap()["locks"][0].clone();
    assert_eq!((&lock["lease"], &lock["token"]), (&got["lease"], &got["token"]), "it was taken away");
}

#[test]
fn who_has_the_lock_keeps_it_when_a_call_that_asked_again_under_its_key_hangs_up() {
    let (world, held, mut first) = one_holds_and_one_waits();
    end(&world, &held["lease"]);
    let got = answered(first.as_mut());
    world.renewals_hang();
    let mut again = elsewhere(&world);
    assert!(again.as_mut().now_or_never().is_none(), "it renews the lease");
    drop(again);
    let lock = world.value("lock.list", json!({})).unwrap()["locks"][0].clone();
    assert_eq!((&lock["lease"], &lock["token"]), (&got["lease"], &got["token"]), "it was taken away");
}

#[test]
fn a_lock_is_not_asked_for_much_longer_than_its_timeout() {
    let world = World::new(3);
    let seconds = |s: u64| Mono(0).plus(Millis(s * 1_000));
    world.value("lock.acquire", json!({ "name": "backup", "ttl_s": 600, "timeout_s": 0 })).unwrap();
    assert_eq!(world.last_deadline(), seconds(30));
    world.patient();
    world.hang_ups();
    let pipeline = world.pipeline();
    let input = json!({ "name": "backup", "ttl_s": 600, "timeout_s": 300 });
    let mut waiting = Box::pin(pipeline.invoke(call("lock.acquire", input)));
    assert!(waiting.as_mut().now_or_never().is_none(), "the lock is held");
    // It wakes, and renews its lease.
    world.pass(Millis(250_000));
    world.apply(Command::GrantLease { ttl_ms: 1_000 });
    assert!(waiting.as_mut().now_or_never().is_none(), "the lock is held");
    assert_eq!(world.last_deadline(), seconds(330));

    let world = World::new(3);
    world.no_leader();
    let late = world.value("lock.acquire", json!({ "name": "backup", "timeout_s": 5 })).unwrap_err();
    assert_eq!(world.last_deadline(), seconds(35));
    assert_eq!(late.code, ErrorCode::NoLeader, "{late:?}");
    assert!(late.hint.as_deref().is_some_and(|hint| hint.contains("`muster status`")), "{late:?}");
}

#[test]
fn a_lock_that_is_freed_again_under_the_same_key_stays_with_the_next_one() {
    let world = World::new(3);
    let acquire = || world.value("lock.acquire", json!({ "name": "backup" })).unwrap();
    let release =
        |key: &str, lease: &Value| world.keyed(key, "lock.release", json!({ "name": "backup", "lease": lease }));
    let held = acquire();
    let released = release("release-1", &held["lease"]).unwrap();
    let next = acquire();
    // The answer was lost: once more, through another node.
    assert_eq!(release("release-1", &held["lease"]).unwrap(), released);
    assert_eq!(world.value("lock.list", json!({})).unwrap()["locks"][0]["lease"], next["lease"]);
    // Another call, and a lease that has nothing to do with the lock, are told so.
    assert_eq!(release("release-2", &held["lease"]).unwrap_err().code, ErrorCode::NotFound);
    let other = world.value("lease.grant", json!({ "ttl_s": 60 })).unwrap();
    assert_eq!(release("release-3", &other["lease"]).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.metadata().kv.leases.len(), 2, "a lease was ended that is none of the lock's");
}

#[test]
fn a_token_is_made_anew_when_it_is_asked_for_again_through_another_node_as_its_docs_say() {
    let world = World::new(3);
    let [first, again] = [(); 2].map(|()| world.keyed("token-1", "token.create", json!({})).unwrap());
    assert!(first["id"] != again["id"] && first["token"] != again["token"], "{first} {again}");
    let registry = crate::registry().unwrap();
    assert!(registry.get("token.create").unwrap().spec().docs.contains("makes a second token"));
}

#[test]
fn text_that_json_would_bloat_or_a_terminal_obey_comes_in_base64() {
    let world = World::new(1);
    for (bytes, encoding) in [
        (&b"blue\n\tand \"red\" \xc3\xa9\r\n"[..], "text"),
        (&b""[..], "text"),
        (&b"\0"[..], "base64"),
        (&b"\x1b[2J"[..], "base64"),
        (&b"blue\x7f"[..], "base64"),
        // U+009B, with which ESC [ can be written in one character.
        ("\u{9b}2J".as_bytes(), "base64"),
        ("\u{a0}".as_bytes(), "text"),
        (&b"\xff\xfe"[..], "base64"),
    ] {
        let value = data_encoding::BASE64.encode(bytes);
        world.value("kv.put", json!({ "key": "a", "value": value, "encoding": "base64" })).unwrap();
        let got = world.value("kv.get", json!({ "key": "a" })).unwrap();
        assert_eq!(got["encoding"], encoding, "{got}");
        let registry = crate::registry().unwrap();
        let ops::Human::Bytes { text, bytes: exact } = registry.get("kv.get").unwrap().spec().human else {
            panic!("it is not shown as bytes");
        };
        assert_eq!(exact(&got), bytes);
        assert_eq!(text(&got).starts_with("(base64) "), encoding == "base64", "people cannot tell: {}", text(&got));
    }
}

fn put(world: &World, key: &str, value: Bytes) {
    let put = world.apply(Command::PutKey { key: key.into(), value, expect: None, life: KeyLife::Lasting });
    assert!(matches!(put, CommandResult::KeyPut { .. }), "{put:?}");
}

/// Puts a value that tells whether anybody has it still.
fn put_traced(world: &World, key: &str, len: usize) -> Weak<[u8]> {
    let value: Arc<[u8]> = vec![b'x'; len].into();
    let trace = Arc::downgrade(&value);
    put(world, key, Bytes::from_owner(value));
    trace
}

#[test]
fn a_watcher_that_does_not_read_holds_a_mebibyte_of_changes_and_no_state_of_then() {
    let world = World::new(1);
    world.hang_ups();
    let from = world.metadata().applied + 1;
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let traces: Vec<_> = keys.iter().map(|key| put_traced(&world, key, KV_VALUE_BYTES_MAX / 8)).collect();
    let held = || traces.iter().filter(|trace| trace.strong_count() > 0).count();
    let begun = |input: Value| {
        let Ok(Output::Stream(mut items)) = world.output("kv.watch", input) else { panic!("it does not watch") };
        let first = items.next().now_or_never().flatten().expect("it begins").unwrap();
        assert_eq!(first["what"], "watching");
        items
    };
    let _of_what_comes = begun(json!({}));
    let mut behind = begun(json!({ "from_revision": from }));
    let mut next = || behind.next().now_or_never().flatten().expect("there is more");
    assert_eq!(next().unwrap()["revision"], from);

    // Other values come, until the history has forgotten these.
    keys.iter().for_each(|key| put(&world, key, Bytes::new()));
    let long = Bytes::from(vec![b'x'; KV_VALUE_BYTES_MAX]);
    (0..=KV_HISTORY_BYTES_MAX / KV_VALUE_BYTES_MAX as u64).for_each(|_| put(&world, "long", long.clone()));
    assert_eq!(held(), 7, "of 8 that fit into 1 MiB one was told");
    // What it holds is told, and then that the rest is lost to it.
    for revision in from + 1..from + 8 {
        assert_eq!(next().unwrap()["revision"], revision);
    }
    assert_eq!(held(), 0);
    assert_eq!(next().unwrap_err().code, ErrorCode::Compacted);
}
