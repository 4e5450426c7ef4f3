//! The key-value store, command by command.

use base::limits::{KV_HISTORY_CHANGES_MAX, KV_VALUE_BYTES_MAX};
use base::{ClusterId, ErrorCode, LeaseId, VersionRange, Wall};
use bytes::Bytes;
use metadata::{Command, CommandEnvelope, CommandResult, KeyChanged, KeyExpect, KeyLife, Metadata, valid_key};
use wire::Member;

struct Store(Metadata);

impl Store {
    fn new() -> Store {
        let member = Member { versions: VersionRange::BINARY, ..Member::default() };
        Store(Metadata::bootstrap(ClusterId([1; 16]), member, Wall(0)))
    }

    fn apply(&mut self, command: Command) -> CommandResult {
        let index = self.0.applied + 1;
        self.0.apply(index, &CommandEnvelope::new(None, Wall(0), command))
    }

    fn put(&mut self, key: &str, value: &str, expect: Option<KeyExpect>, life: KeyLife) -> CommandResult {
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.apply(Command::PutKey { key: key.into(), value, expect, life })
    }

    /// Puts for good; the revision.
    fn set(&mut self, key: &str, value: &str) -> u64 {
        match self.put(key, value, None, KeyLife::Lasting) {
            CommandResult::KeyPut { revision, .. } => revision,
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, key: &str, prefix: bool) -> u64 {
        match self.apply(Command::DeleteKeys { key: key.into(), prefix, expect: None }) {
            CommandResult::KeysDeleted { count, .. } => count,
            other => panic!("{other:?}"),
        }
    }

    fn lease(&mut self) -> LeaseId {
        match self.apply(Command::GrantLease { ttl_ms: 1_000 }) {
            CommandResult::LeaseGranted { lease } => lease,
            other => panic!("{other:?}"),
        }
    }

    fn keys<'a>(&'a self, prefix: &'a str) -> Vec<&'a str> {
        self.0.kv.range(prefix, None).map(|(key, _)| key).collect()
    }

    /// Key and what became of it, of every change behind a revision.
    fn changes(&self, after: u64) -> Vec<(String, &'static str)> {
        let changes = self.0.kv.changes_after(after).unwrap_or_else(|kept| panic!("compacted at {kept}"));
        let what = |what: &KeyChanged| match what {
            KeyChanged::Put(_) => "put",
            KeyChanged::Deleted => "deleted",
            KeyChanged::Expired => "expired",
        };
        changes.map(|change| (change.key.clone(), what(&change.what))).collect()
    }
}

#[track_caller]
fn refused(result: &CommandResult, expected: ErrorCode) -> String {
    match result {
        CommandResult::Refused { code, message } if *code == expected => message.clone(),
        other => panic!("expected a refusal with {expected}, got {other:?}"),
    }
}

#[test]
fn a_key_has_revisions_and_a_version_of_its_own() {
    let mut store = Store::new();
    let first = store.set("a", "1");
    store.set("b", "1");
    let last = store.set("a", "2");
    let record = store.0.kv.key("a").expect("it is there");
    assert_eq!((record.created, record.modified, record.version, &record.value[..]), (first, last, 2, &b"2"[..]));
    assert!(last > first + 1, "revisions rise over all keys");
    assert_eq!((store.delete("a", false), store.delete("a", false)), (1, 0));
    store.set("a", "3");
    assert_eq!(store.0.kv.key("a").expect("it is there").version, 1, "it came to be anew");
}

#[test]
fn of_two_that_expect_the_same_one_succeeds() {
    let mut store = Store::new();
    let lasting = KeyLife::Lasting;
    assert!(matches!(store.put("a", "x", Some(KeyExpect::Absent), lasting), CommandResult::KeyPut { .. }));
    let revision = store.0.applied;
    let message = refused(&store.put("a", "y", Some(KeyExpect::Absent), lasting), ErrorCode::FailedPrecondition);
    assert!(message.contains(&format!("is at revision {revision}")), "{message}");
    assert!(matches!(store.put("a", "y", Some(KeyExpect::Revision(revision)), lasting), CommandResult::KeyPut { .. }));
    refused(&store.put("a", "z", Some(KeyExpect::Revision(revision)), lasting), ErrorCode::FailedPrecondition);
    let is = |value: &'static str| Some(KeyExpect::Value(Bytes::from_static(value.as_bytes())));
    refused(&store.put("a", "z", is("x"), lasting), ErrorCode::FailedPrecondition);
    assert!(matches!(store.put("a", "z", is("y"), lasting), CommandResult::KeyPut { .. }));
    let message = refused(&store.put("b", "z", is("y"), lasting), ErrorCode::FailedPrecondition);
    assert!(message.contains("does not exist"), "{message}");
    let gone = Command::DeleteKeys { key: "a".into(), prefix: false, expect: is("y") };
    refused(&store.apply(gone), ErrorCode::FailedPrecondition);
    assert_eq!(store.keys(""), ["a"]);
}

#[test]
fn keys_are_found_and_deleted_by_what_they_begin_with() {
    let mut store = Store::new();
    for key in ["app", "app/", "app/b", "app/a", "apple", "b"] {
        store.set(key, "");
    }
    assert_eq!(store.keys("app/"), ["app/", "app/a", "app/b"]);
    let behind: Vec<_> = store.0.kv.range("app/", Some("app/a")).map(|(key, _)| key).collect();
    assert_eq!(behind, ["app/b"]);
    let count = |prefix, after| store.0.kv.range(prefix, after).count();
    let counts = ["a", "app/", "app/aa", "app/b", "app/c", "b"].map(|after| count("app/", Some(after)));
    assert_eq!(counts, [3, 2, 1, 0, 0, 0], "before, at, between, and behind the keys");
    assert_eq!(store.delete("app/", true), 3);
    assert_eq!(store.keys(""), ["app", "apple", "b"]);
}

#[test]
fn keys_go_with_their_lease_and_only_they() {
    let mut store = Store::new();
    let lease = store.lease();
    for key in ["a", "b"] {
        store.put(key, "", None, KeyLife::Bound(lease));
    }
    store.set("b", "stays: it was put again, for good");
    let before = store.0.applied;
    store.apply(Command::EndLease { lease, expired: true });
    assert_eq!(store.keys(""), ["b"]);
    assert_eq!(store.changes(before), [("a".to_owned(), "expired")]);
    refused(&store.apply(Command::EndLease { lease, expired: true }), ErrorCode::NotFound);
    refused(&store.put("c", "", None, KeyLife::Bound(lease)), ErrorCode::NotFound);
    refused(&store.apply(Command::GrantLease { ttl_ms: 999 }), ErrorCode::InvalidArgument);
}

#[test]
fn a_lease_made_for_one_key_goes_with_it() {
    let mut store = Store::new();
    let ttl = KeyLife::Ttl(2_000);
    store.put("a", "1", None, ttl);
    store.put("a", "2", None, ttl);
    assert_eq!(store.0.kv.leases.len(), 1, "the earlier one is of no use any more");
    store.delete("a", false);
    assert!(store.0.kv.leases.is_empty());
    store.put("a", "1", None, ttl);
    store.set("a", "2");
    assert!(store.0.kv.leases.is_empty(), "it lasts now");
    store.put("b", "1", None, ttl);
    let own = store.0.kv.key("b").expect("it is there").lease.expect("it has one");
    store.put("c", "1", None, KeyLife::Bound(own));
    store.delete("b", false);
    store.apply(Command::EndLease { lease: own, expired: true });
    assert_eq!(store.keys(""), ["a"], "nothing is bound to a lease that does not exist");
}

#[test]
fn what_cannot_be_a_key_or_a_value_is_refused() {
    let mut store = Store::new();
    for key in ["", "a\nb", "\u{7f}", "x".repeat(1_025).as_str()] {
        assert!(valid_key(key).is_err());
        refused(&store.put(key, "", None, KeyLife::Lasting), ErrorCode::InvalidArgument);
    }
    let large = "x".repeat(KV_VALUE_BYTES_MAX);
    store.set("a", &large);
    refused(&store.put("a", &(large + "x"), None, KeyLife::Lasting), ErrorCode::TooLarge);
}

#[test]
fn the_store_has_a_bound_and_deleting_makes_room() {
    let mut store = Store::new();
    let large = "x".repeat(KV_VALUE_BYTES_MAX);
    let mut count = 0;
    let message = loop {
        match store.put(&format!("k{count}"), &large, None, KeyLife::Lasting) {
            CommandResult::KeyPut { .. } => count += 1,
            refusal => break refused(&refusal, ErrorCode::TooLarge),
        }
    };
    assert!(count > 250 && message.contains("delete keys first"), "{count}: {message}");
    store.set("k0", &large);
    store.delete("k0", false);
    store.set("another", &large);
    let bytes = store.0.kv.bytes();
    assert_eq!(Metadata::decode(&store.0.encode()).expect("it was encoded just now").kv.bytes(), bytes);
}

#[test]
fn a_watcher_misses_nothing_or_is_told_so() {
    let mut store = Store::new();
    let from = store.0.applied;
    store.set("a", "1");
    store.set("b", "1");
    let middle = store.0.applied;
    store.delete("", true);
    let all =
        [("a", "put"), ("b", "put"), ("a", "deleted"), ("b", "deleted")].map(|(key, what)| (key.to_owned(), what));
    assert_eq!(store.changes(from), all);
    assert_eq!(store.changes(middle), all[2..], "both changes of one revision");
    for n in 0..KV_HISTORY_CHANGES_MAX {
        store.set("c", &n.to_string());
    }
    let kept = store.0.kv.changes_after(from).map(drop).expect_err("that is long ago");
    assert_eq!(store.changes(kept).len(), KV_HISTORY_CHANGES_MAX);
}

#[test]
fn a_checkpoint_holds_keys_leases_and_the_history() {
    let mut store = Store::new();
    let from = store.0.applied;
    let lease = store.lease();
    store.put("a", "1", None, KeyLife::Bound(lease));
    store.put("b", "2", None, KeyLife::Ttl(5_000));
    store.set("c", "3");
    store.delete("c", false);
    let mut read = Store(Metadata::decode(&store.0.encode()).expect("it was encoded just now"));
    assert_eq!(read.0, store.0);
    assert_eq!(read.changes(from), store.changes(from));
    assert_eq!(read.lease(), store.lease(), "ids are not given out again");
    read.apply(Command::EndLease { lease, expired: false });
    assert_eq!(read.keys(""), ["b"], "it knows what belongs to the lease");
}
