//! The rules for topics: names, partition counts, configuration keys.

use base::limits::{RECORD_BATCH_BYTES_MAX, RECORD_TIMESTAMP_AHEAD_MAX, TOPIC_NAME_BYTES_MAX, TOPIC_PARTITIONS_MAX};

/// Why a topic is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicError {
    #[error("a topic name may not be empty")]
    NameEmpty,
    #[error("topic names may not be '.' or '..'")]
    NameDots,
    #[error("the topic name has {bytes} characters, at most {TOPIC_NAME_BYTES_MAX} are allowed")]
    NameTooLong { bytes: usize },
    #[error("topic name '{name}' has the character '{character}': only letters, digits, '.', '_' and '-' are allowed")]
    NameCharacter { name: String, character: char },
    #[error("topic name '{name}' collides with '{existing}': '.' and '_' count as the same")]
    NameCollision { name: String, existing: String },
    #[error("{partitions} partitions: a topic has 1 to {TOPIC_PARTITIONS_MAX}")]
    Partitions { partitions: i64 },
    #[error("replication factor {factor} is larger than the number of nodes, {nodes}")]
    ReplicationFactor { factor: i64, nodes: usize },
    #[error("unknown topic configuration '{key}'{}", suggestion.map(|s| format!(": did you mean '{s}'?")).unwrap_or_default())]
    ConfigUnknown { key: String, suggestion: Option<&'static str> },
    #[error("topic configuration {key}={value}: {expected}")]
    ConfigValue { key: String, value: String, expected: String },
}

/// Checks a topic name by Kafka's rules (`org.apache.kafka.common.internals.Topic`).
///
/// # Errors
/// The first rule broken.
pub fn check_name(name: &str) -> Result<(), TopicError> {
    if name.is_empty() {
        return Err(TopicError::NameEmpty);
    }
    if name == "." || name == ".." {
        return Err(TopicError::NameDots);
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(TopicError::NameTooLong { bytes: name.len() });
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        None => Ok(()),
        Some(character) => Err(TopicError::NameCharacter { name: name.to_owned(), character }),
    }
}

/// Refuses a name that differs from an existing one only in '.' against '_' (metric names cannot tell them apart).
///
/// # Errors
/// Names the topic that it collides with. The name itself existing is no collision.
pub fn check_collision<'a>(name: &str, existing: impl IntoIterator<Item = &'a str>) -> Result<(), TopicError> {
    if !name.contains(['.', '_']) {
        return Ok(());
    }
    let plain = name.replace('.', "_");
    match existing.into_iter().find(|other| *other != name && other.replace('.', "_") == plain) {
        None => Ok(()),
        Some(existing) => Err(TopicError::NameCollision { name: name.to_owned(), existing: existing.to_owned() }),
    }
}

/// Checks a partition count; -1 is the default, 1.
///
/// # Errors
/// Not within 1 to [`TOPIC_PARTITIONS_MAX`].
pub fn check_partitions(partitions: i64) -> Result<u32, TopicError> {
    match u32::try_from(partitions) {
        Ok(count) if (1..=TOPIC_PARTITIONS_MAX).contains(&count) => Ok(count),
        _ if partitions == -1 => Ok(1),
        _ => Err(TopicError::Partitions { partitions }),
    }
}

/// Checks a replication factor against the number of nodes; -1 is elastic (`None`).
///
/// # Errors
/// 0, negative, or more than there are nodes.
pub fn check_replication_factor(factor: i64, nodes: usize) -> Result<Option<u16>, TopicError> {
    match u16::try_from(factor) {
        Ok(count) if count >= 1 && usize::from(count) <= nodes => Ok(Some(count)),
        _ if factor == -1 => Ok(None),
        _ => Err(TopicError::ReplicationFactor { factor, nodes }),
    }
}

/// What a configuration value may be.
#[derive(Clone, Copy, Debug)]
enum ConfigKind {
    /// A whole number from the first to the second.
    Number(i64, i64),
    /// A fraction from 0 to 1.
    Fraction,
    Boolean,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Only what muster does anyway, with how that is.
    Only(&'static str, &'static str),
    Text,
}

use ConfigKind::{Boolean, Choice, Fraction, Number, Only, Text};

/// Kafka's topic configuration keys (`TopicConfig`, 4.0), with the values that muster accepts. Values that would ask
/// for something muster does not do (retention, compaction, recompression, log append time) are refused rather than ignored;
/// those that only tune how Kafka works inside, or mean nothing without compaction, are taken.
const CONFIG_KEYS: &[(&str, ConfigKind)] = &[
    ("cleanup.policy", Only("delete", "topics are not compacted yet")),
    ("compression.gzip.level", Number(-1, 9)),
    ("compression.lz4.level", Number(1, 17)),
    ("compression.type", Choice(&["producer"])),
    ("compression.zstd.level", Number(-131_072, 22)),
    ("delete.retention.ms", Number(0, i64::MAX)),
    ("file.delete.delay.ms", Number(0, i64::MAX)),
    ("flush.messages", Number(1, i64::MAX)),
    ("flush.ms", Number(0, i64::MAX)),
    ("follower.replication.throttled.replicas", Only("", "replication is not throttled")),
    ("index.interval.bytes", Number(0, i32::MAX as i64)),
    ("leader.replication.throttled.replicas", Only("", "replication is not throttled")),
    ("max.compaction.lag.ms", Number(1, i64::MAX)),
    ("max.message.bytes", Number(RECORD_BATCH_BYTES_MAX as i64, RECORD_BATCH_BYTES_MAX as i64)),
    ("message.downconversion.enable", Boolean),
    ("message.format.version", Text),
    (
        "message.timestamp.after.max.ms",
        Number(RECORD_TIMESTAMP_AHEAD_MAX.0 as i64, RECORD_TIMESTAMP_AHEAD_MAX.0 as i64),
    ),
    ("message.timestamp.before.max.ms", Number(i64::MAX, i64::MAX)),
    ("message.timestamp.difference.max.ms", Number(i64::MAX, i64::MAX)),
    ("message.timestamp.type", Choice(&["CreateTime"])),
    ("min.cleanable.dirty.ratio", Fraction),
    ("min.compaction.lag.ms", Number(0, i64::MAX)),
    ("min.insync.replicas", Only("1", "with acks=all a majority of the replicas has a record, 2 of 3")),
    ("preallocate", Boolean),
    ("retention.bytes", Only("-1", "records are kept until their topic is deleted")),
    ("retention.ms", Only("-1", "records are kept until their topic is deleted")),
    ("segment.bytes", Number(14, i32::MAX as i64)),
    ("segment.index.bytes", Number(4, i32::MAX as i64)),
    ("segment.jitter.ms", Number(0, i64::MAX)),
    ("segment.ms", Number(1, i64::MAX)),
    ("unclean.leader.election.enable", Choice(&["false"])),
];

/// Checks one topic configuration.
///
/// # Errors
/// An unknown key, with the nearest known one; a value that the key does not take, with what it does take.
pub fn check_config(key: &str, value: &str) -> Result<(), TopicError> {
    let Some((_, kind)) = CONFIG_KEYS.iter().find(|(known, _)| *known == key) else {
        return Err(TopicError::ConfigUnknown { key: key.to_owned(), suggestion: nearest(key) });
    };
    let accepted = match kind {
        Number(low, high) => value.parse::<i64>().is_ok_and(|number| (*low..=*high).contains(&number)),
        Fraction => value.parse::<f64>().is_ok_and(|number| (0.0..=1.0).contains(&number)),
        Boolean => matches!(value, "true" | "false"),
        Choice(choices) => choices.contains(&value),
        Only(only, _) => value == *only,
        Text => true,
    };
    if accepted {
        return Ok(());
    }
    let expected = match kind {
        Number(low, high) if low == high => format!("only {low} is supported"),
        Number(low, i64::MAX) => format!("a whole number from {low} up is expected"),
        Number(low, high) => format!("a whole number from {low} to {high} is expected"),
        Fraction => "a number from 0 to 1 is expected".to_owned(),
        Boolean => "'true' or 'false' is expected".to_owned(),
        Choice(choices) => format!("only '{}' is supported", choices.join("' or '")),
        Only(only, because) => format!("only '{only}' is supported: {because}"),
        Text => String::new(),
    };
    Err(TopicError::ConfigValue { key: key.to_owned(), value: value.to_owned(), expected })
}

/// The known key nearest to `key`, if it is near enough to be a slip of the pen.
fn nearest(key: &str) -> Option<&'static str> {
    // Keys beyond every known one's length are not worth comparing, whoever sends them.
    if key.len() > 64 {
        return None;
    }
    let key = key.to_ascii_lowercase().replace(['_', '-'], ".");
    let scored = CONFIG_KEYS.iter().map(|(known, _)| (edit_distance(&key, known), *known));
    scored.min().filter(|(distance, known)| *distance <= known.len() / 3).map(|(_, known)| known)
}

/// Levenshtein's distance, over bytes.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
