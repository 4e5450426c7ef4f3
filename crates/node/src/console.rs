//! Consoles of VMs: lines into topics, and topics into lines.
//!
//! Lines are produced with a producer id of their own per start of a VM and process of the node, so that a repeat after
//! a change of leader is recognised.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::limits::{
    CONSOLE_WAITING_BYTES_MAX, CONSOLE_WAITING_MAX, PRODUCER_ID_RESERVED_MAX, RECORD_BATCH_BYTES_MAX,
    REQUEST_DEADLINE_DEFAULT, VM_NAME_BYTES_MAX,
};
use base::{ErrorCode, GroupId, Incarnation, VmEpoch, VmId, VmIncarnation, hash64};
use bytes::Bytes;
use engine::{Acks, Produce, Request, RequestError, Target};
use metadata::console_topic;
use runtime::Clock;
use stream::{ProducerStamp, Record, encode_batch};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

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
/// Bytes of them: half of what a batch may have, so that what stands beside the text fits, too.
const BATCH_TEXT_BYTES: usize = RECORD_BATCH_BYTES_MAX / 2;
/// Bytes counted for a waiting line beside its text, so that empty lines are bounded too.
const LINE_OVERHEAD_BYTES: usize = 32;
/// Before a busy leader is asked again.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// The first id that is not fixed.
const PRODUCER_ID_MIN: u64 = PRODUCER_ID_RESERVED_MAX as u64 + 1;

/// Where the next batch of one start of a VM goes on.
struct Producer {
    id: i64,
    next_sequence: i32,
}

/// Appends console lines to their topics until the queue closes. Each VM has a writer and a bounded queue of its own: a
/// partition without a leader, or a slow one, holds up the lines of no other VM.
pub(crate) async fn write_lines(handle: NodeHandle, process: Incarnation, mut queue: mpsc::Receiver<ConsoleLines>) {
    let mut writers: BTreeMap<VmId, Writer> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    while let Some(lines) = queue.recv().await {
        let vm = lines.vm;
        if !writers.contains_key(&vm) {
            // A writer ends with its queue. Those of VMs that are gone are no longer needed.
            let metadata = handle.metadata();
            writers.retain(|vm, _| metadata.vms.contains_key(vm));
            while tasks.try_join_next().is_some() {}
            let (sender, receiver) = mpsc::channel(CONSOLE_WAITING_MAX);
            let bytes = Arc::new(Semaphore::new(CONSOLE_WAITING_BYTES_MAX));
            tasks.spawn(write_one(handle.clone(), process, receiver));
            writers.insert(vm, Writer { queue: sender, bytes });
        }
        if !writers.get(&vm).is_some_and(|writer| writer.take(lines)) {
            tracing::warn!(%vm, "console lines lost: their topic does not take them");
        }
    }
    drop(writers);
    while tasks.join_next().await.is_some() {}
}

/// The way to one VM's writer.
struct Writer {
    queue: mpsc::Sender<Waiting>,
    /// What is left of [`CONSOLE_WAITING_BYTES_MAX`].
    bytes: Arc<Semaphore>,
}

/// Lines that wait, and the bytes that they take up until they are written.
struct Waiting {
    lines: ConsoleLines,
    _bytes: OwnedSemaphorePermit,
}

impl Writer {
    /// Whether there was room.
    fn take(&self, lines: ConsoleLines) -> bool {
        let bytes: usize = lines.lines.iter().map(|line| line.len() + LINE_OVERHEAD_BYTES).sum();
        let room = u32::try_from(bytes).ok().and_then(|bytes| self.bytes.clone().try_acquire_many_owned(bytes).ok());
        room.is_some_and(|room| self.queue.try_send(Waiting { lines, _bytes: room }).is_ok())
    }
}

/// Appends the lines of one VM to its topic until the queue closes.
async fn write_one(handle: NodeHandle, process: Incarnation, mut queue: mpsc::Receiver<Waiting>) {
    let mut current: Option<(VmIncarnation, Producer)> = None;
    let mut held_over: Option<Waiting> = None;
    loop {
        let first = match held_over.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        // What waits behind it goes out in the same batch, if it is of the same start of the VM.
        let mut group = vec![first];
        let mut count = group[0].lines.lines.len();
        while count < LINES_PER_BATCH
            && let Ok(next) = queue.try_recv()
        {
            if next.lines.incarnation != group[0].lines.incarnation {
                held_over = Some(next);
                break;
            }
            count += next.lines.lines.len();
            group.push(next);
        }
        let ConsoleLines { vm, epoch, incarnation, .. } = group[0].lines;
        let lines = group.iter_mut().flat_map(|waiting| std::mem::take(&mut waiting.lines.lines)).collect();
        let producer = match &mut current {
            Some((of, producer)) if *of == incarnation => producer,
            other => {
                let parts = [vm.0, epoch.0, incarnation.0, handle.me().0, process.0];
                let id = hash64(&parts) % (i64::MAX as u64 - PRODUCER_ID_MIN) + PRODUCER_ID_MIN;
                &mut other.insert((incarnation, Producer { id: id as i64, next_sequence: 0 })).1
            }
        };
        append(&handle, producer, &ConsoleLines { vm, epoch, incarnation, lines }).await;
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
    let mut rest = &lines.lines[..];
    while !rest.is_empty() {
        let (part, after) = rest.split_at(fitting(rest));
        rest = after;
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

/// How many of the lines one batch takes: at least one.
fn fitting(lines: &[String]) -> usize {
    let mut bytes = 0;
    let fits = |line: &&String| {
        bytes += line.len() + LINE_OVERHEAD_BYTES;
        bytes <= BATCH_TEXT_BYTES
    };
    lines.iter().take(LINES_PER_BATCH).take_while(fits).count().max(1)
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

#[cfg(test)]
mod tests {
    use base::limits::CONSOLE_LINE_BYTES_MAX;
    use base::{ClusterId, Wall};
    use compute::VmSpec;
    use engine::Reply;
    use metadata::{Command, CommandEnvelope, Metadata};
    use tokio::sync::watch;

    use super::*;
    use crate::handle::{Asked, Views};

    /// Longer than any of it takes, so that a writer that is held up fails the test.
    const WITHIN: Duration = Duration::from_secs(20);

    /// A node with VMs 1 and 2, its consoles' writers, and the questions that they ask of the core.
    fn node() -> (mpsc::Sender<ConsoleLines>, mpsc::Receiver<Asked>, [GroupId; 2], Keep) {
        let mut metadata = Metadata::bootstrap(ClusterId([1; 16]), wire::Member::default(), Wall(0));
        for (index, name) in [(2, "one"), (3, "two")] {
            let spec = VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None };
            let command = Command::CreateVm { name: name.into(), spec };
            metadata.apply(index, &CommandEnvelope::new(None, Wall(0), command));
        }
        let groups = ["one", "two"].map(|name| metadata.topics[&console_topic(name)].partitions[0]);
        let (queue, asked) = mpsc::channel(64);
        let (keep, metadata) = watch::channel(Arc::new(metadata));
        let handle = NodeHandle { queue, views: Arc::new(Views::default()), metadata };
        let (lines, line_queue) = mpsc::channel(2 * CONSOLE_WAITING_MAX);
        let task = tokio::spawn(write_lines(handle, Incarnation(1), line_queue));
        (lines, asked, groups, Keep { _metadata: keep, task })
    }

    struct Keep {
        _metadata: watch::Sender<Arc<Metadata>>,
        task: tokio::task::JoinHandle<()>,
    }

    fn say(vm: u64, line: &str) -> ConsoleLines {
        let (epoch, incarnation) = (VmEpoch(1), VmIncarnation(1));
        ConsoleLines { vm: VmId(vm), epoch, incarnation, lines: vec![line.to_owned()] }
    }

    /// The next batch that a writer produces: where, what, and whom to answer.
    async fn produced(asked: &mut mpsc::Receiver<Asked>) -> (GroupId, Vec<String>, Asked) {
        let next = tokio::time::timeout(WITHIN, asked.recv()).await.expect("a writer is held up").expect("a question");
        let Request::Produce(produce) = &next.request else { panic!("{:?}", next.request) };
        let records = stream::record::decode_batch(&produce.batches[0]).unwrap();
        let text = |value: Option<Bytes>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        (produce.group, records.into_iter().map(|(_, record)| text(record.value)).collect(), next)
    }

    fn accept(asked: Asked) {
        drop(asked.reply.send(Ok(Reply::Produced { base_offset: 0, log_start_offset: 0 })));
    }

    #[tokio::test]
    async fn a_console_that_cannot_be_written_holds_up_no_other_and_is_bounded() {
        let (lines, mut asked, [one, two], keep) = node();
        lines.send(say(1, "first")).await.unwrap();
        let (group, _, unanswered) = produced(&mut asked).await;
        assert_eq!(group, one);
        // More than its queue holds, in bytes as in number: what does not fit is lost, and the other goes on.
        let long = "x".repeat(CONSOLE_LINE_BYTES_MAX);
        let lines_of_a_quarter = CONSOLE_WAITING_BYTES_MAX / 4 / CONSOLE_LINE_BYTES_MAX;
        for _ in 0..8 {
            lines.send(ConsoleLines { lines: vec![long.clone(); lines_of_a_quarter], ..say(1, "") }).await.unwrap();
        }
        for _ in 0..2 * CONSOLE_WAITING_MAX {
            lines.send(say(1, "short")).await.unwrap();
        }
        for n in 0..3 {
            lines.send(say(2, &format!("line {n}"))).await.unwrap();
            let (group, said, question) = produced(&mut asked).await;
            assert_eq!((group, said), (two, vec![format!("line {n}")]));
            accept(question);
        }
        // Once its topic answers, what was kept follows, in order; and the writers end with their queue.
        accept(unanswered);
        drop(lines);
        let mut kept = Vec::new();
        while let Ok(Some(question)) = tokio::time::timeout(WITHIN, asked.recv()).await {
            let Request::Produce(produce) = &question.request else { panic!("{:?}", question.request) };
            let records = stream::record::decode_batch(&produce.batches[0]).unwrap();
            kept.extend(records.into_iter().map(|(_, record)| record.value.unwrap().len()));
            accept(question);
        }
        // Three quarters, for there is something beside the text; then as many pieces as the queue takes.
        let long_ones = 3 * lines_of_a_quarter;
        assert_eq!(kept.iter().take_while(|length| **length == long.len()).count(), long_ones);
        assert_eq!(kept[long_ones..], vec!["short".len(); CONSOLE_WAITING_MAX - 3]);
        tokio::time::timeout(WITHIN, keep.task).await.expect("the writers do not end").unwrap();
    }
}
