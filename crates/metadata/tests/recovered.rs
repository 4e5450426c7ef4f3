//! What a survivor of a lost majority goes on with (decision 0012).

use std::collections::BTreeSet;

use base::limits::RECOVERY_IDS_SKIPPED;
use base::{ClusterId, Incarnation, NodeId, RecoveryId, TopicId, Wall};
use metadata::{Command, CommandEnvelope, CommandResult, Metadata, Survival};
use serde_json::Value;
use wire::Member;

const RECOVERY: RecoveryId = RecoveryId([9; 16]);

/// A cluster of one node, whose events all wait.
fn survivor() -> Metadata {
    let member = Member { name: "one".into(), ..Member::default() };
    let mut state = Metadata::bootstrap(ClusterId([1; 16]), member, Wall(0));
    for (index, name) in [(2, "a"), (3, "b"), (4, "c")] {
        let command = Command::CreateTopic {
            name: name.into(),
            topic_id: TopicId([index as u8; 16]),
            partitions: 1,
            replication_factor: None,
            config: Vec::new(),
        };
        let result = state.apply(index, &CommandEnvelope::new(None, Wall(7), command));
        assert!(matches!(result, CommandResult::TopicCreated { .. }), "{result:?}");
    }
    state
}

/// As it goes on if its topic of events ends with that one.
fn recovered(state: &Metadata, published: u64) -> Metadata {
    let kept: BTreeSet<_> = state.partitions.keys().copied().collect();
    let survival = Survival { node: NodeId(1), store: 5, recovery: RECOVERY, kept: &kept, published, now: Wall(9) };
    state.recovered(survival).0
}

/// The events that wait, without what they say of their number, which is the one under which they wait.
fn waiting(state: &Metadata) -> Vec<Value> {
    let events = state.outbox.iter().map(|(sequence, event)| {
        let mut told: Value = serde_json::from_str(&event.json).expect("JSON");
        assert_eq!((event.sequence, &told["sequence"]), (*sequence, &Value::from(*sequence)));
        told["sequence"] = Value::Null;
        told
    });
    events.collect()
}

#[test]
fn events_that_wait_follow_under_numbers_that_nobody_has_given_out() {
    let state = survivor();
    let next = state.outbox_next;
    assert_eq!(waiting(&state).len() as u64, next - 1, "none was published");
    // None of them, some, all, and more than this survivor has heard of.
    for published in [0, 2, next - 1, next + 10] {
        let after = recovered(&state, published);
        let numbers: Vec<u64> = after.outbox.keys().copied().collect();
        let first = next.max(published + 1) + RECOVERY_IDS_SKIPPED;
        assert_eq!((after.outbox_first, numbers.first()), (first, Some(&first)));
        assert_eq!(numbers, (first..after.outbox_next).collect::<Vec<_>>(), "without gaps");
        let rest = waiting(&state).split_off(published.min(next - 1) as usize);
        let (last, kept) = waiting(&after).split_last().map(|(last, kept)| (last.clone(), kept.to_vec())).expect("one");
        assert_eq!(kept, rest, "in order");
        assert_eq!(last["event"], "cluster.recovered");
        assert_eq!(last["recovery"], RECOVERY.to_string());
    }
}

#[test]
fn a_recovered_state_gives_nothing_out_again_and_says_of_which_recovery_it_is() {
    let state = survivor();
    assert_eq!(state.recovery, None);
    let after = recovered(&state, 0);
    assert_eq!((after.cluster_incarnation, after.recovery), (Incarnation(1), Some(RECOVERY)));
    assert_eq!((after.gives_out_again(&state), state.gives_out_again(&after)), (None, Some("ids of nodes")));
    assert_eq!(Metadata::decode(&after.encode()).expect("readable"), after);
    // Another survivor of the same.
    let kept = state.partitions.keys().copied().collect();
    let recovery = RecoveryId([8; 16]);
    let survival = Survival { node: NodeId(1), store: 6, recovery, kept: &kept, published: 0, now: Wall(9) };
    let other = state.recovered(survival).0;
    assert_eq!((other.cluster_incarnation, other.recovery), (Incarnation(1), Some(recovery)));
}
