//! Commands that are carried out once, whoever sends them.

use base::limits::{IDEMPOTENCY_KEPT, ONCE_MAX};
use base::{ClusterId, ErrorCode, VersionRange, Wall};
use metadata::{Command, CommandEnvelope, CommandResult, KeyLife, Metadata, OnceKey};
use wire::Member;

fn put(state: &mut Metadata, at: i64, key: u128, name: &str) -> CommandResult {
    let put = Command::PutKey { key: name.into(), value: "v".into(), expect: None, life: KeyLife::Lasting };
    let once = Command::Once { key: OnceKey(key.to_be_bytes()), command: Box::new(put) };
    state.apply(state.applied + 1, &CommandEnvelope::new(None, Wall(at), once))
}

fn state() -> Metadata {
    let member = Member { versions: VersionRange::BINARY, ..Member::default() };
    Metadata::bootstrap(ClusterId([1; 16]), member, Wall(0))
}

#[test]
fn a_repeat_changes_nothing_and_is_told_the_same() {
    let mut state = state();
    let first = put(&mut state, 0, 1, "a");
    let mut state = Metadata::decode(&state.encode()).expect("it was encoded just now");
    assert_eq!(put(&mut state, 1, 1, "a"), first);
    assert_eq!(state.kv.key("a").expect("it is there").version, 1);
    assert_ne!(put(&mut state, 1, 2, "a"), first, "another name is another command");
    let kept = i64::try_from(IDEMPOTENCY_KEPT.0).expect("minutes");
    assert_eq!(put(&mut state, kept, 1, "a"), first);
    assert_ne!(put(&mut state, kept + 1, 1, "a"), first, "it is forgotten by then");
}

#[test]
fn what_was_refused_may_be_tried_again() {
    let mut state = state();
    for _ in 0..2 {
        assert!(matches!(put(&mut state, 0, 1, ""), CommandResult::Refused { code: ErrorCode::InvalidArgument, .. }));
    }
    assert!(matches!(put(&mut state, 0, 1, "a"), CommandResult::KeyPut { .. }));
}

#[test]
fn the_memory_is_bounded() {
    let mut state = state();
    for key in 0..ONCE_MAX as u128 + 10 {
        put(&mut state, 0, key, "a");
    }
    assert!(state.once.records.len() <= ONCE_MAX + 1);
    assert!(!state.once.records.contains_key(&OnceKey(0u128.to_be_bytes())), "the oldest went");
}
