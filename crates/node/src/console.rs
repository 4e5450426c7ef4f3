//! Consoles of VMs: lines into topics, and topics into lines.
//!
//! Lines are produced with a producer id of their own per start of a VM and process of the node, so that a repeat after
//! a change of leader is recognised.

use std::collections::BTreeMap;
use std::time::Duration;

use base::limits::{PRODUCER_ID_RESERVED_MAX, REQUEST_DEADLINE_DEFAULT, VM_NAME_BYTES_MAX};
use base::{ErrorCode, GroupId, Incarnation, VmEpoch, VmId, VmIncarnation, hash64};
use bytes::Bytes;
use engine::{Acks, Produce, Request, RequestError, Target};
use metadata::console_topic;
use runtime::Clock;
use stream::{ProducerStamp, Record, encode_batch};
use tokio::sync::mpsc;

use crate::handle::NodeHandle;

/// Console lines of one VM, in order.
pub(crate) struct ConsoleLines {
    pub vm: VmId,
    pub epoch: VmEpoch,
    pub incarnation: VmIncarnation,
    pub lines: Vec<String>,
}

/// Lines of one record batch.
const LINES_PER_BATCH: usize = 256;
/// Before a busy leader is asked again.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// The first id that is not fixed.
const PRODUCER_ID_MIN: u64 = PRODUCER_ID_RESERVED_MAX as u64 + 1;

/// Where the next batch of one start of a VM goes on.
struct Producer {
    id: i64,
    next_sequence: i32,
}

/// Appends console lines to their topics until the queue closes.
pub(crate) async fn write_lines(handle: NodeHandle, process: Incarnation, mut queue: mpsc::Receiver<ConsoleLines>) {
    let mut producers: BTreeMap<(VmId, VmIncarnation), Producer> = BTreeMap::new();
    while let Some(first) = queue.recv().await {
        // What waits behind it goes out in the same batch, if it is the same VM's.
        let mut group = vec![first];
        while let Ok(next) = queue.try_recv() {
            match group.last_mut().filter(|last| (last.vm, last.incarnation) == (next.vm, next.incarnation)) {
                Some(last) if last.lines.len() < LINES_PER_BATCH => last.lines.extend(next.lines),
                _ => group.push(next),
            }
            if group.len() >= LINES_PER_BATCH {
                break;
            }
        }
        for lines in group {
            producers.retain(|(vm, incarnation), _| *vm != lines.vm || *incarnation == lines.incarnation);
            let producer = producers.entry((lines.vm, lines.incarnation)).or_insert_with(|| {
                let parts = [lines.vm.0, lines.epoch.0, lines.incarnation.0, handle.me().0, process.0];
                let id = hash64(&parts) % (i64::MAX as u64 - PRODUCER_ID_MIN) + PRODUCER_ID_MIN;
                Producer { id: id as i64, next_sequence: 0 }
            });
            append(&handle, producer, &lines).await;
        }
    }
}

async fn append(handle: &NodeHandle, producer: &mut Producer, lines: &ConsoleLines) {
    let Some(name) = handle.metadata().vms.get(&lines.vm).map(|vm| vm.name.clone()) else {
        return; // Deleted meanwhile.
    };
    debug_assert!(name.len() <= VM_NAME_BYTES_MAX);
    let topic = console_topic(&name);
    let Some(group) = partition(handle, &topic) else {
        tracing::warn!(vm = name, topic, "console lines lost: the topic is gone");
        return;
    };
    let timestamp = Clock.now().wall.0;
    let incarnation = Bytes::from(lines.incarnation.to_string());
    for part in lines.lines.chunks(LINES_PER_BATCH) {
        let record = |line: &String| Record {
            key: Some(Bytes::from(name.clone())),
            value: Some(Bytes::from(line.clone())),
            headers: vec![("incarnation".to_owned(), Some(incarnation.clone()))],
            timestamp,
        };
        let records: Vec<_> = part.iter().map(record).collect();
        let stamp = ProducerStamp { id: producer.id, epoch: 0, base_sequence: producer.next_sequence };
        let batch = match encode_batch(&records, Some(stamp)) {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(vm = name, %error, "console lines lost");
                continue;
            }
        };
        match produce(handle, group, batch).await {
            Ok(()) => producer.next_sequence = next_sequence(producer.next_sequence, records.len()),
            Err(error) => {
                tracing::warn!(vm = name, %error, lines = records.len(), "console lines lost");
                // What became of the batch is unknown: go on under another id, so that no sequence is missing.
                producer.id = (producer.id % (i64::MAX - 1)) + 1;
                producer.id = producer.id.max(PRODUCER_ID_MIN as i64);
                producer.next_sequence = 0;
                if error.code == ErrorCode::ShuttingDown {
                    return;
                }
            }
        }
    }
}

/// Appends a batch; tries again while the leader is busy, such as with handing over. Its sequence makes that harmless.
async fn produce(handle: &NodeHandle, group: GroupId, batch: Bytes) -> Result<(), RequestError> {
    let deadline = Clock.now().mono.plus(REQUEST_DEADLINE_DEFAULT);
    loop {
        let request = Request::Produce(Produce { group, acks: Acks::All, batches: vec![batch.clone()] });
        match handle.request(Target::Leader(group), deadline, request).await {
            Err(busy) if busy.code == ErrorCode::Busy && Clock.now().mono < deadline => {
                tokio::time::sleep(BUSY_RETRY).await;
            }
            outcome => return outcome.map(drop),
        }
    }
}

/// Kafka's sequences wrap from 2^31 - 1 to 0.
fn next_sequence(sequence: i32, count: usize) -> i32 {
    let next = (i64::from(sequence) + count as i64) % (1 << 31);
    i32::try_from(next).unwrap_or(0)
}

/// The only partition of a console's topic.
pub(crate) fn partition(handle: &NodeHandle, topic: &str) -> Option<GroupId> {
    handle.metadata().topics.get(topic)?.partitions.first().copied()
}
