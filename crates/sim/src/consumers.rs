//! Consumers: each reads every partition from its first record on, as a Kafka client would. It asks whatever node its
//! own calls the leader, under the leader epoch that it knows (KIP-320), and never takes the word of an older one. What
//! it may get is decided by `stream::Reader`, which the driver feeds with what the core publishes; what is below the
//! reader's tail is read from the log. Now and then it reads through the core instead (`Request::ReadPartition`), as
//! nodes without a replica do.

use std::collections::BTreeMap;

use base::limits::PARTITION_TAIL_BYTES;
use base::{ErrorCode, GroupId, SplitMix64, hash64};
use bytes::Bytes;
use engine::{Event, PartitionBatches, ReadLog, ReadPartition, Reply, Request, RequestError, Target};
use stream::{FetchPlan, Reader, Update, UpdateError};

use crate::queue::{Ev, NodeIx};
use crate::requests::{Outcome, Owner, Pending, What};
use crate::time::{Nanos, ms, us};
use crate::world::World;

/// Consumers of one run.
const CONSUMERS: usize = 2;
/// Of a request to a core.
const TIMEOUT: Nanos = ms(2_000);

/// All consumers, and what the nodes' drivers keep for them.
pub struct Consumers {
    readers: BTreeMap<(NodeIx, GroupId), Reader>,
    /// So small, in most runs, that much is read from the log.
    tail_bytes: usize,
    all: Vec<Consumer>,
}

struct Consumer {
    home: NodeIx,
    /// The partition that it reads.
    group: GroupId,
    positions: BTreeMap<GroupId, Position>,
    random: SplitMix64,
}

/// How far a consumer has come in a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    next: i64,
    /// The newest leader epoch that it has heard of.
    epoch: i32,
}

/// What came of an attempt to read.
enum Read {
    /// Batches, perhaps none.
    Batches(Vec<Bytes>),
    /// A core was asked.
    Asked,
    /// Nobody to ask now.
    Later,
}

impl Consumers {
    /// Consumers at the beginning of everything.
    #[must_use]
    pub fn new(seed: u64, nodes: usize) -> Self {
        let tails = [0, 600, 4_000, PARTITION_TAIL_BYTES];
        let one = |number: usize| Consumer {
            home: (number + 1) % nodes,
            group: GroupId::META,
            positions: BTreeMap::new(),
            random: SplitMix64::new(hash64(&[seed, 60, number as u64])),
        };
        Consumers {
            readers: BTreeMap::new(),
            tail_bytes: tails[(hash64(&[seed, 61]) % tails.len() as u64) as usize],
            all: (0..CONSUMERS).map(one).collect(),
        }
    }

    /// A core has news for the readers of a partition.
    ///
    /// # Errors
    /// They do not continue what came before.
    pub fn published(&mut self, node: NodeIx, group: GroupId, update: Update) -> Result<(), UpdateError> {
        let tail_bytes = self.tail_bytes;
        self.readers.entry((node, group)).or_insert_with(|| Reader::with_tail(tail_bytes)).apply(update)
    }

    /// A partition left a node.
    pub fn unpublished(&mut self, node: NodeIx, group: GroupId) {
        self.readers.remove(&(node, group));
    }

    /// A process ended.
    pub fn restarted(&mut self, node: NodeIx) {
        self.readers.retain(|(of, _), _| *of != node);
    }

    /// The consumers' numbers.
    #[must_use]
    pub fn numbers(&self) -> std::ops::Range<usize> {
        0..self.all.len()
    }

    /// A consumer that has not read up to `end` in a partition.
    #[must_use]
    pub fn behind(&self, group: GroupId, end: i64) -> Option<String> {
        let next = |it: &Consumer| it.positions.get(&group).map_or(0, |position| position.next);
        let (number, it) = self.all.iter().enumerate().find(|(_, it)| next(it) != end)?;
        Some(format!("consumer {number} has read {} of {end} records of group {group}", next(it)))
    }
}

impl World {
    /// A consumer's next step.
    pub fn consumer_step(&mut self, consumer: usize) {
        if !self.choose_partition(consumer) {
            return self.consumer_rests(consumer);
        }
        let through_core = self.consumers.all[consumer].random.chance(100_000);
        match if through_core { self.read_through_core(consumer) } else { self.fetch(consumer) } {
            Read::Batches(batches) => self.consume(consumer, &batches),
            Read::Asked => {}
            Read::Later => {
                self.move_home(consumer);
                self.consumer_rests(consumer);
            }
        }
    }

    fn consumer_rests(&mut self, consumer: usize) {
        let rest = us(self.consumers.all[consumer].random.between(5_000, 40_000));
        self.queue.after(rest, Ev::Consumer { consumer });
    }

    /// Kafka's clients take the view of the cluster from any node.
    fn move_home(&mut self, consumer: usize) {
        let pick = self.consumers.all[consumer].random.below(self.nodes.len() as u64) as usize;
        self.consumers.all[consumer].home = pick;
        self.consumers.all[consumer].group = GroupId(self.consumers.all[consumer].group.0 + 1);
    }

    /// Stays with its partition if its node knows it, or goes on to the next one.
    fn choose_partition(&mut self, consumer: usize) -> bool {
        let it = &mut self.consumers.all[consumer];
        let Some(core) = self.nodes[it.home].core.as_ref().filter(|_| self.nodes[it.home].runs()) else {
            self.move_home(consumer);
            return false;
        };
        let partitions = &core.metadata().partitions;
        let next = partitions.range(it.group..).next().or_else(|| partitions.iter().next()).map(|(group, _)| *group);
        it.group = next.unwrap_or_default();
        next.is_some()
    }

    /// Asks the leader, as far as its own node knows it.
    fn fetch(&mut self, consumer: usize) -> Read {
        let it = &mut self.consumers.all[consumer];
        let (home, group) = (&self.nodes[it.home], it.group);
        let position = it.positions.entry(group).or_default();
        let base =
            home.core.as_ref().and_then(|core| core.metadata().partitions.get(&group)).map_or(0, |p| p.epoch_base);
        let Some(info) = home.leaders.get(&group) else { return Read::Later };
        let epoch = i32::try_from(u64::from(base) + info.term).unwrap_or(i32::MAX);
        let leader = info.leader.and_then(|id| self.places.get(&id)).copied();
        let Some(node) = leader.filter(|node| epoch >= position.epoch && self.nodes[*node].runs()) else {
            return Read::Later;
        };
        let Some(reader) = self.consumers.readers.get(&(node, group)) else { return Read::Later };
        let (next, bytes_max) = (position.next, it.random.between(50, 3_000) as usize);
        let plan = reader.plan_fetch(next, bytes_max, Some(epoch), it.random.chance(900_000));
        if matches!(plan, FetchPlan::Tail(_) | FetchPlan::ReadLog { .. } | FetchPlan::Wait) {
            position.epoch = epoch;
        }
        let high_watermark = reader.high_watermark();
        let show = || format!("consumer {consumer} reads {group} from {next} in epoch {epoch}: {}", plan_name(&plan));
        self.trace.node(self.queue.now, node, show);
        match plan {
            FetchPlan::Tail(batches) => Read::Batches(batches),
            FetchPlan::ReadLog { low, high, bytes_max, .. } => {
                let request = Request::ReadLog(ReadLog { group, low, high, bytes_max });
                let what = What::Fetch { group, position: next };
                self.ask(Owner::Consumer(consumer), node, Target::Here, request, what, TIMEOUT);
                Read::Asked
            }
            FetchPlan::Wait if high_watermark == next => Read::Batches(Vec::new()),
            FetchPlan::Wait | FetchPlan::OutOfRange => {
                let what = format!(
                    "n{node} leads group {group} in epoch {epoch} with {high_watermark} records and answers {plan:?} to a \
                     consumer that has read {next}"
                );
                self.fail("consumers keep what they saw", what);
                Read::Later
            }
            FetchPlan::NotLeader | FetchPlan::FencedEpoch | FetchPlan::UnknownEpoch => Read::Later,
        }
    }

    fn read_through_core(&mut self, consumer: usize) -> Read {
        let it = &mut self.consumers.all[consumer];
        let (home, group) = (it.home, it.group);
        let offset = it.positions.entry(group).or_default().next;
        let bytes_max = it.random.between(50, 3_000) as u32;
        let request = Request::ReadPartition(ReadPartition { group, offset, bytes_max });
        let what = What::ReadPartition { group, position: offset };
        self.ask(Owner::Consumer(consumer), home, Target::Leader(group), request, what, TIMEOUT);
        Read::Asked
    }

    /// A core answered, or will not.
    pub fn consumer_answered(&mut self, consumer: usize, pending: &Pending, outcome: &Outcome) {
        match (&pending.what, outcome) {
            (What::Fetch { .. }, Outcome::Ok(Reply::Batches { batches, .. })) if !batches.is_empty() => {
                self.consume(consumer, batches);
            }
            (What::ReadPartition { .. }, Outcome::Ok(Reply::PartitionBatches(read))) => {
                self.consume(consumer, &read.batches);
            }
            // A consumer that hears this starts over somewhere else, and skips records or gets them twice.
            (
                What::Fetch { group, position },
                Outcome::Ok(_) | Outcome::Failed(RequestError { code: ErrorCode::OffsetOutOfRange, .. }),
            ) if !self.checks.commands.is_deleted(*group) => {
                let what = format!("n{} has group {group} up to {position} and answers {outcome:?}", pending.node);
                self.fail("consumers keep what they saw", what);
            }
            _ => {
                self.move_home(consumer);
                self.consumer_rests(consumer);
            }
        }
    }

    fn consume(&mut self, consumer: usize, batches: &[Bytes]) {
        let it = &mut self.consumers.all[consumer];
        let position = it.positions.entry(it.group).or_default();
        match self.checks.partitions.consumed(it.group, position.next, batches) {
            Err(why) => self.fail("consumers read every record once, in order", format!("consumer {consumer}: {why}")),
            Ok(None) => {
                it.group = GroupId(it.group.0 + 1);
                self.consumer_rests(consumer);
            }
            Ok(Some((next, epoch))) => {
                *position = Position { next, epoch: epoch.max(position.epoch) };
                let soon = us(it.random.between(500, 5_000));
                self.queue.after(soon, Ev::Consumer { consumer });
            }
        }
    }

    /// The driver's part of `Request::ReadPartition`: reads from the tail, or from the log below it.
    pub fn read_for_another(&mut self, node: NodeIx, ticket: u64, read: ReadPartition) {
        let failed = || RequestError { code: ErrorCode::NotLeader, message: "does not lead".into(), leader: None };
        let Some(reader) = self.consumers.readers.get(&(node, read.group)) else {
            return self.tell(node, Event::Answered { ticket, outcome: Err(failed()) });
        };
        let (high_watermark, log_start_offset) = (reader.high_watermark(), reader.log_start_offset());
        let offset = read.offset.max(log_start_offset);
        let batches = match reader.plan_fetch(offset, read.bytes_max as usize, None, true) {
            FetchPlan::Tail(batches) => batches,
            FetchPlan::Wait | FetchPlan::OutOfRange => Vec::new(),
            FetchPlan::ReadLog { low, high, bytes_max, .. } => {
                let request = Request::ReadLog(ReadLog { group: read.group, low, high, bytes_max });
                let boot = self.nodes[node].boot;
                let owner = Owner::Driver { node, boot, ticket, high_watermark, log_start_offset };
                return self.ask(owner, node, Target::Here, request, What::ReadLog(read.group), TIMEOUT);
            }
            _ => return self.tell(node, Event::Answered { ticket, outcome: Err(failed()) }),
        };
        let reply = Reply::PartitionBatches(PartitionBatches { batches, high_watermark, log_start_offset });
        self.tell(node, Event::Answered { ticket, outcome: Ok(reply) });
    }

    /// The log was read for somebody on another node.
    pub fn driver_read(&mut self, owner: Owner, outcome: &Outcome) {
        let Owner::Driver { node, boot, ticket, high_watermark, log_start_offset } = owner else { return };
        if self.nodes[node].boot != boot {
            return;
        }
        let outcome = match outcome {
            Outcome::Ok(Reply::Batches { batches, .. }) => {
                let batches = batches.clone();
                Ok(Reply::PartitionBatches(PartitionBatches { batches, high_watermark, log_start_offset }))
            }
            Outcome::Failed(error) => Err(error.clone()),
            Outcome::Ok(_) | Outcome::Lost => return,
        };
        self.tell(node, Event::Answered { ticket, outcome });
    }
}

fn plan_name(plan: &FetchPlan) -> String {
    match plan {
        FetchPlan::Tail(batches) => format!("{} batches", batches.len()),
        other => format!("{other:?}"),
    }
}
