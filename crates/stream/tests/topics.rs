//! Names, counts and configuration of topics.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

use stream::topic::{
    TopicError, check_collision, check_config, check_name, check_partitions, check_replication_factor,
};

#[test]
fn names_are_kafkas() {
    for good in ["a", "muster.events", "vm.web-1.console", "A_b-C.9", &"x".repeat(249), "..."] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    assert_eq!(check_name(""), Err(TopicError::NameEmpty));
    assert_eq!(check_name("."), Err(TopicError::NameDots));
    assert_eq!(check_name(".."), Err(TopicError::NameDots));
    assert_eq!(check_name(&"x".repeat(250)), Err(TopicError::NameTooLong { bytes: 250 }));
    for (bad, character) in [("a b", ' '), ("é", 'é'), ("a/b", '/'), ("a\0", '\0'), ("a\n", '\n')] {
        assert_eq!(check_name(bad), Err(TopicError::NameCharacter { name: bad.to_owned(), character }));
    }
}

#[test]
fn dots_and_underscores_collide() {
    let existing = ["a.b", "plain"];
    assert_eq!(check_collision("a.b", existing), Ok(()));
    assert_eq!(check_collision("a.c", existing), Ok(()));
    assert_eq!(check_collision("plain", existing), Ok(()));
    let error = TopicError::NameCollision { name: "a_b".into(), existing: "a.b".into() };
    assert_eq!(check_collision("a_b", existing), Err(error));
}

#[test]
fn counts() {
    assert_eq!(check_partitions(-1), Ok(1));
    assert_eq!(check_partitions(1024), Ok(1024));
    for bad in [0, -2, 1025, i64::MAX, i64::MIN] {
        assert_eq!(check_partitions(bad), Err(TopicError::Partitions { partitions: bad }));
    }
    assert_eq!(check_replication_factor(-1, 1), Ok(None));
    assert_eq!(check_replication_factor(3, 3), Ok(Some(3)));
    for bad in [0, -2, 4, i64::MAX] {
        assert_eq!(check_replication_factor(bad, 3), Err(TopicError::ReplicationFactor { factor: bad, nodes: 3 }));
    }
}

#[test]
fn configuration_is_checked_and_slips_are_corrected() {
    for (key, value) in [
        ("retention.ms", "-1"),
        ("cleanup.policy", "delete"),
        ("compression.type", "producer"),
        ("min.insync.replicas", "1"),
        ("min.cleanable.dirty.ratio", "0.5"),
        ("unclean.leader.election.enable", "false"),
    ] {
        assert_eq!(check_config(key, value), Ok(()), "{key}={value}");
    }
    for (key, value) in [
        // What muster does not do is not promised.
        ("retention.ms", "86400000"),
        ("retention.bytes", "1000000"),
        ("cleanup.policy", "compact,delete"),
        ("min.insync.replicas", "2"),
        ("max.message.bytes", "1000"),
        ("message.timestamp.before.max.ms", "1000"),
        ("retention.ms", "-2"),
        ("retention.ms", "a week"),
        ("cleanup.policy", "burn"),
        ("compression.type", "gzip"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.cleanable.dirty.ratio", "NaN"),
        ("preallocate", "yes"),
        ("max.message.bytes", "999999999"),
    ] {
        assert!(matches!(check_config(key, value), Err(TopicError::ConfigValue { .. })), "{key}={value}");
    }
    for (key, suggestion) in [
        ("retention_ms", Some("retention.ms")),
        ("Retention.MS", Some("retention.ms")),
        ("cleanup.polcy", Some("cleanup.policy")),
        ("min.insync.replica", Some("min.insync.replicas")),
        ("colour", None),
        (&"x".repeat(100_000), None),
    ] {
        let error = TopicError::ConfigUnknown { key: key.to_owned(), suggestion };
        assert_eq!(check_config(key, "1"), Err(error));
    }
    let text = check_config("retention_ms", "1").unwrap_err().to_string();
    assert_eq!(text, "unknown topic configuration 'retention_ms': did you mean 'retention.ms'?");
}
