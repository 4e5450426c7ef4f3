//! How much a command can add to the state: whoever proposes commands sees to it that the state stays one that a
//! checkpoint can carry.

use base::limits::{ELASTIC_REPLICATION_FACTOR, NODES_MAX, TOPIC_NAME_BYTES_MAX, TOPIC_PARTITIONS_MAX};

use crate::Command;

/// Whatever a command does besides storing what it says: numbers that it raises, a record of its own, an event with the
/// names of what it is about, a result that its session remembers.
const ALWAYS: u64 = 4_096;
/// As often as this a text of a command may be in the state afterwards: once as it is, and in an event, in which JSON may
/// take six bytes for one, and of which it is the key.
const COPIES: u64 = 8;
/// A key and its value stand in the store and in the history.
const KEY_COPIES: u64 = 2;
/// A partition, besides the name of its topic and its replicas: its record, and its group's id in what the command gave.
const PARTITION: u64 = 128;
/// A replica of it.
const REPLICA: u64 = 64;

impl Command {
    /// The most bytes by which applying this can make the encoded state grow; the command itself has `bytes` bytes in the
    /// log.
    #[must_use]
    pub fn growth_max(&self, bytes: usize) -> u64 {
        let bytes = bytes as u64;
        match self.body() {
            Command::PutKey { .. } => KEY_COPIES * bytes + ALWAYS,
            Command::CreateTopic { name, partitions, replication_factor, .. } => {
                let replicas = replication_factor.map_or(ELASTIC_REPLICATION_FACTOR, usize::from).min(NODES_MAX);
                let named = name.len().min(TOPIC_NAME_BYTES_MAX) as u64;
                let partition = PARTITION + named + replicas as u64 * REPLICA;
                COPIES * bytes + ALWAYS + u64::from((*partitions).min(TOPIC_PARTITIONS_MAX)) * partition
            }
            _ => COPIES * bytes + ALWAYS,
        }
    }

    /// Whether commands of this kind can fill the state, one after the other. What others add is bounded by what is there:
    /// nodes, VMs, replicas.
    #[must_use]
    pub fn fills_state(&self) -> bool {
        matches!(
            self.body(),
            Command::PutKey { .. }
                | Command::CreateTopic { .. }
                | Command::CreateVm { .. }
                | Command::AdmitNode { .. }
                | Command::CreateToken { .. }
                | Command::GrantLease { .. }
        )
    }
}
