//! Partitions: one log for everybody. Offsets are dense from 0 and leader epochs never fall along them; a record that was
//! committed anywhere stays where and what it is; an acknowledged record is there, at its offset; none is there twice,
//! and those of a producer that keeps order are in order; a leader that serves reads has all that was acknowledged, and
//! all that was committed under any leader before it; what a consumer gets is that log, from where it reads on.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, hash64};
use stream::{CommittedBatch, Update};

use crate::queue::NodeIx;
use crate::records;
use crate::workload::keeps_order;

/// See the module.
#[derive(Default)]
pub struct Partitions {
    logs: BTreeMap<GroupId, Log>,
    views: BTreeMap<(NodeIx, GroupId), View>,
    /// Records seen committed.
    pub records: u64,
    /// Records that consumers got.
    pub consumed: u64,
}

#[derive(Default)]
struct Log {
    batches: BTreeMap<i64, Batch>,
    by_index: BTreeMap<u64, i64>,
    end: i64,
    values: BTreeMap<u64, i64>,
    /// Acknowledged, and not yet seen committed.
    unseen: BTreeMap<i64, Vec<u64>>,
    acked_end: i64,
    newest_epoch: i32,
    /// Offset after the last record of each leader epoch.
    epoch_ends: BTreeMap<i32, i64>,
    /// The last value of each producer that keeps order.
    last_values: BTreeMap<u64, u64>,
    unique: bool,
    /// Values of requests that were refused: nothing was written, said the answer.
    refused: BTreeSet<u64>,
    /// The values of a partition that no client writes to.
    texts: Vec<Vec<u8>>,
}

struct Batch {
    index: u64,
    last_offset: i64,
    leader_epoch: i32,
    digest: u64,
    values: Vec<u64>,
}

#[derive(Default)]
struct View {
    next: Option<i64>,
    start: i64,
}

/// What a producer was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub group: GroupId,
    pub base_offset: i64,
    /// Of the records, in order.
    pub values: Vec<u64>,
    /// [`Partitions::acked_end`] when the request was made.
    pub floor: i64,
}

impl Partitions {
    /// A client uses the partition: every record is one of the simulator's and stands there once.
    pub fn expect_unique(&mut self, group: GroupId) {
        self.logs.entry(group).or_default().unique = true;
    }

    /// A node has news for readers.
    ///
    /// # Errors
    /// They contradict what any node or client saw before.
    pub fn published(&mut self, node: NodeIx, group: GroupId, update: &Update) -> Result<(), String> {
        let place = |what: String| format!("n{node}, group {group}: {what}");
        let log = self.logs.entry(group).or_default();
        if update.reset {
            self.views.insert((node, group), View { next: None, start: update.log_start_offset });
        }
        let Some(view) = self.views.get_mut(&(node, group)) else {
            return Err(place("the first news after a start is no reset".into()));
        };
        for batch in &update.committed {
            let next = view.next.unwrap_or(view.start);
            if batch.base_offset != next || batch.last_offset < batch.base_offset {
                let (base, last) = (batch.base_offset, batch.last_offset);
                return Err(place(format!("offsets {base}..={last} follow {next}")));
            }
            view.next = Some(batch.last_offset + 1);
            self.records += log.committed(batch).map_err(place)?;
        }
        let next = view.next.unwrap_or(view.start);
        let high = update.high_watermark;
        if high != next && !(view.next.is_none() && high == 0) {
            return Err(place(format!("high watermark {high}, but the committed records end before {next}")));
        }
        if let Some(epoch) = update.leader_epoch
            && epoch >= log.newest_epoch
        {
            log.newest_epoch = epoch;
            if high < log.acked_end {
                let acked = log.acked_end;
                return Err(place(format!("leads in epoch {epoch} with {high} records, {acked} were acknowledged")));
            }
            if let Some((older, end)) = log.epoch_ends.range(..epoch).next_back()
                && high < *end
            {
                return Err(place(format!(
                    "leads in epoch {epoch} with {high} records, epoch {older} committed {end}"
                )));
            }
        }
        Ok(())
    }

    /// The process of a node ended: what it tells next starts anew.
    pub fn restarted(&mut self, node: NodeIx) {
        self.views.retain(|(of, _), _| *of != node);
    }

    /// The partition is gone from a node.
    pub fn unpublished(&mut self, node: NodeIx, group: GroupId) {
        self.views.remove(&(node, group));
    }

    /// Offset after the last record acknowledged so far: what is produced from now on lies behind it.
    #[must_use]
    pub fn acked_end(&self, group: GroupId) -> i64 {
        self.logs.get(&group).map_or(0, |log| log.acked_end)
    }

    /// Offset after the last record that any node called committed.
    #[must_use]
    pub fn end(&self, group: GroupId) -> i64 {
        self.logs.get(&group).map_or(0, |log| log.end)
    }

    /// What a node told its readers last: the offset after the last record.
    #[must_use]
    pub fn view(&self, node: NodeIx, group: GroupId) -> Option<i64> {
        self.views.get(&(node, group)).map(|view| view.next.unwrap_or(view.start))
    }

    /// A producer got its acknowledgement (acks=all).
    ///
    /// # Errors
    /// Something else stands at that offset, or the offset lies before that of a record acknowledged earlier.
    pub fn acked(&mut self, ack: &Ack) -> Result<(), String> {
        let log = self.logs.entry(ack.group).or_default();
        let Ack { group, base_offset, values, floor } = ack;
        if base_offset < floor {
            return Err(format!("group {group}: {values:?} got offset {base_offset}, though {floor} was acknowledged"));
        }
        log.acked_end = log.acked_end.max(base_offset + values.len() as i64);
        if *base_offset >= log.end {
            log.unseen.insert(*base_offset, values.clone());
            return Ok(());
        }
        log.stands(*base_offset, values).map_err(|why| format!("group {group}: {why}"))
    }

    /// A producer was told that nothing was written.
    ///
    /// # Errors
    /// It was.
    pub fn refused(&mut self, group: GroupId, values: &[u64]) -> Result<(), String> {
        let log = self.logs.entry(group).or_default();
        log.refused.extend(values);
        match values.iter().find_map(|value| log.values.get(value)) {
            Some(at) => Err(format!("group {group}: {values:?} was refused, and stands at offset {at}")),
            None => Ok(()),
        }
    }

    /// A reader got batches from a node's log.
    ///
    /// # Errors
    /// They are not what was committed at those indexes.
    pub fn read(&self, group: GroupId, indexes: &[u64], batches: &[bytes::Bytes]) -> Result<(), String> {
        if indexes.len() != batches.len() {
            return Err(format!("group {group}: {} indexes and {} batches", indexes.len(), batches.len()));
        }
        let Some(log) = self.logs.get(&group) else { return Ok(()) };
        for (index, data) in indexes.iter().zip(batches) {
            let known = log.by_index.get(index).and_then(|base| log.batches.get(base));
            match known {
                Some(known) if known.digest == digest(data) => {}
                Some(_) => return Err(format!("group {group}: a read of index {index} gives another batch")),
                None => return Err(format!("group {group}: a read gives index {index}, which nobody committed")),
            }
        }
        Ok(())
    }

    /// A consumer that reads from `position` got batches: where it goes on, and the leader epoch of the last record.
    ///
    /// # Errors
    /// They are not what was committed there, or leave something out.
    pub fn consumed(
        &mut self,
        group: GroupId,
        position: i64,
        batches: &[bytes::Bytes],
    ) -> Result<Option<(i64, i32)>, String> {
        let place = |what: String| format!("group {group}, read from {position}: {what}");
        let Some(log) = self.logs.get(&group) else {
            return if batches.is_empty() { Ok(None) } else { Err(place("nobody committed anything".into())) };
        };
        let mut end = None;
        for data in batches {
            let base = data.first_chunk().map(|base| i64::from_be_bytes(*base));
            let base = base.ok_or_else(|| place(format!("a batch of {} bytes", data.len())))?;
            let Some(batch) = log.batches.get(&base).filter(|batch| batch.digest == digest(data)) else {
                return Err(place(format!("the batch at offset {base} is not what was committed there")));
            };
            let next = end.map_or(position, |(next, _)| next);
            let first_holds_it = end.is_none() && (base..=batch.last_offset).contains(&next);
            if base != next && !first_holds_it {
                return Err(place(format!("a batch at offset {base} comes where {next} is next")));
            }
            self.consumed += (batch.last_offset + 1 - next) as u64;
            end = Some((batch.last_offset + 1, batch.leader_epoch));
        }
        Ok(end)
    }

    /// Whether the records up to `end` are those that another life of the cluster had there, under older leader epochs than
    /// whatever came later.
    ///
    /// # Errors
    /// A record is another one, or missing, or a leader epoch came again.
    pub fn continues(&self, before: &Partitions, group: GroupId, end: i64) -> Result<(), String> {
        let known = |life: &Partitions| -> Vec<(i64, u64)> {
            let batches = life.logs.get(&group).into_iter().flat_map(|log| log.batches.range(..end));
            batches.map(|(offset, batch)| (*offset, batch.digest)).collect()
        };
        if known(self) != known(before) {
            return Err(format!("group {group}: the records before offset {end} are others than before"));
        }
        let newest = |life: &Partitions| life.logs.get(&group).map_or(0, |log| log.newest_epoch);
        if newest(self) <= newest(before) {
            return Err(format!("group {group}: leader epoch {} follows {}", newest(self), newest(before)));
        }
        Ok(())
    }

    /// Raft indexes of batches that are committed somewhere: something to read.
    #[must_use]
    pub fn indexes(&self, group: GroupId) -> Vec<u64> {
        self.logs.get(&group).map(|log| log.by_index.keys().copied().collect()).unwrap_or_default()
    }

    /// The record values of a partition that no client writes to, in order.
    #[must_use]
    pub fn texts(&self, group: GroupId) -> &[Vec<u8>] {
        self.logs.get(&group).map_or(&[], |log| &log.texts)
    }

    /// Groups that have any record.
    #[must_use]
    pub fn groups(&self) -> BTreeSet<GroupId> {
        self.logs.keys().copied().collect()
    }

    /// The run is over. What was acknowledged in the moment of its partition's deletion need not have been seen.
    ///
    /// # Errors
    /// An acknowledged record was never committed.
    pub fn finish(&self, is_deleted: impl Fn(GroupId) -> bool) -> Result<(), String> {
        for (group, log) in self.logs.iter().filter(|(group, _)| !is_deleted(**group)) {
            if let Some((base, values)) = log.unseen.first_key_value() {
                return Err(format!("group {group}: {values:?} was acknowledged at offset {base} and is nowhere"));
            }
        }
        Ok(())
    }
}

impl Log {
    /// Takes a committed batch: how many records are new.
    fn committed(&mut self, batch: &CommittedBatch) -> Result<u64, String> {
        let base = batch.base_offset;
        let digest = digest(&batch.data);
        if let Some(known) = self.batches.get(&base) {
            if (known.index, known.last_offset, known.digest) != (batch.index, batch.last_offset, digest) {
                return Err(format!("the batch at offset {base} is not what was committed there before"));
            }
            return Ok(0);
        }
        if base != self.end {
            return Err(format!("a batch at offset {base} lies inside another one (the log ends at {})", self.end));
        }
        let decoded = records::decode(&batch.data).map_err(|why| format!("the batch at offset {base}: {why}"))?;
        let said = (base, batch.last_offset, batch.leader_epoch);
        if (decoded.base_offset, decoded.last_offset, decoded.leader_epoch) != said {
            return Err(format!("the batch at offset {base} says of itself {decoded:?}, the node says {said:?}"));
        }
        if let Some((newest, _)) = self.epoch_ends.last_key_value()
            && *newest > batch.leader_epoch
        {
            return Err(format!("the batch at offset {base} is of epoch {}, behind {newest}", batch.leader_epoch));
        }
        let values: Vec<u64> =
            decoded.values.iter().filter_map(|v| v.as_slice().try_into().ok().map(u64::from_be_bytes)).collect();
        if self.unique {
            if values.len() != decoded.values.len() {
                return Err(format!("the batch at offset {base} holds records that no client made"));
            }
            for (value, at) in values.iter().zip(base..) {
                if let Some(before) = self.values.insert(*value, at) {
                    return Err(format!("value {value} stands at offset {before} and again at {at}"));
                }
                if self.refused.contains(value) {
                    return Err(format!("value {value} was refused, and stands at offset {at}"));
                }
                if let Some(producer) = keeps_order(*value)
                    && let Some(before) = self.last_values.insert(producer, *value)
                    && before > *value
                {
                    return Err(format!("value {value} of producer {producer} stands at offset {at}, behind {before}"));
                }
            }
        }
        if !self.unique {
            self.texts.extend(decoded.values.iter().cloned());
        }
        self.end = batch.last_offset + 1;
        self.epoch_ends.insert(batch.leader_epoch, self.end);
        self.by_index.insert(batch.index, base);
        let count = decoded.values.len() as u64;
        let CommittedBatch { index, last_offset, leader_epoch, .. } = *batch;
        self.batches.insert(base, Batch { index, last_offset, leader_epoch, digest, values });
        while let Some((base, values)) = self.unseen.first_key_value() {
            if *base >= self.end {
                break;
            }
            self.stands(*base, values)?;
            self.unseen.pop_first();
        }
        Ok(count)
    }

    fn stands(&self, base: i64, values: &[u64]) -> Result<(), String> {
        match self.batches.get(&base) {
            Some(batch) if batch.values == values => Ok(()),
            Some(batch) => {
                Err(format!("{values:?} was acknowledged at offset {base}, where {:?} stands", batch.values))
            }
            None => Err(format!("{values:?} was acknowledged at offset {base}, inside another batch")),
        }
    }
}

fn digest(data: &[u8]) -> u64 {
    let crc = crc32c::crc32c(data);
    let mut head = [0; 8];
    head.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    hash64(&[u64::from(crc), data.len() as u64, u64::from_be_bytes(head)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const GROUP: GroupId = GroupId(5);

    /// A committed batch as a leader of epoch 1 would have stored it.
    fn batch(index: u64, base: i64, values: &[u64]) -> CommittedBatch {
        let mut data = records::encode(values, 0, records::Producer::NONE).to_vec();
        data[..8].copy_from_slice(&base.to_be_bytes());
        data[12..16].copy_from_slice(&1i32.to_be_bytes());
        CommittedBatch {
            index,
            base_offset: base,
            last_offset: base + values.len() as i64 - 1,
            max_timestamp: 0,
            leader_epoch: 1,
            data: Bytes::from(data),
        }
    }

    fn update(committed: Vec<CommittedBatch>, reset: bool, leads: bool) -> Update {
        let high_watermark = committed.last().map_or(0, |batch| batch.last_offset + 1);
        Update { reset, leader_epoch: leads.then_some(1), high_watermark, log_start_offset: 0, committed }
    }

    fn partitions() -> Partitions {
        let mut partitions = Partitions::default();
        partitions.expect_unique(GROUP);
        let first = update(vec![batch(3, 0, &[1, 2]), batch(4, 2, &[3])], true, true);
        partitions.published(0, GROUP, &first).expect("dense");
        partitions
    }

    fn ack(base_offset: i64, values: &[u64], floor: i64) -> Ack {
        Ack { group: GROUP, base_offset, values: values.to_vec(), floor }
    }

    #[test]
    fn a_faithful_history_passes() {
        let mut partitions = partitions();
        partitions.acked(&ack(0, &[1, 2], 0)).expect("seen");
        partitions.acked(&ack(3, &[4], 2)).expect("not seen yet");
        assert!(partitions.finish(|_| false).is_err(), "acknowledged and nowhere");
        let rest = update(vec![batch(3, 0, &[1, 2]), batch(4, 2, &[3]), batch(6, 3, &[4])], true, true);
        partitions.published(1, GROUP, &rest).expect("the same, and more");
        partitions.finish(|_| false).expect("all there");
        partitions.read(GROUP, &[4], &[batch(4, 2, &[3]).data]).expect("as committed");
    }

    #[test]
    fn what_stands_elsewhere_or_is_another_record_is_noticed() {
        assert!(partitions().acked(&ack(0, &[9, 9], 0)).is_err(), "other values");
        assert!(partitions().acked(&ack(1, &[2], 0)).is_err(), "inside a batch");
        assert!(partitions().acked(&ack(0, &[1, 2], 1)).is_err(), "before one acknowledged earlier");
        let mut lost = partitions();
        lost.acked(&ack(3, &[4], 0)).expect("not seen yet");
        let other = update(vec![batch(3, 0, &[1, 2]), batch(4, 2, &[3]), batch(6, 3, &[5])], true, false);
        assert!(lost.published(1, GROUP, &other).is_err(), "another record took its place");
    }

    #[test]
    fn gaps_changes_and_doubles_are_noticed() {
        let follow = |committed: Vec<CommittedBatch>| {
            let mut partitions = partitions();
            partitions.published(1, GROUP, &update(committed, true, false))
        };
        assert!(follow(vec![batch(3, 0, &[1, 2])]).is_ok());
        assert!(follow(vec![batch(3, 1, &[1, 2])]).is_err(), "not from 0");
        assert!(follow(vec![batch(3, 0, &[1, 2]), batch(4, 3, &[3])]).is_err(), "a gap");
        assert!(follow(vec![batch(3, 0, &[1, 7])]).is_err(), "changed");
        assert!(follow(vec![batch(9, 0, &[1, 2])]).is_err(), "at another index");
        assert!(follow(vec![batch(3, 0, &[1, 2]), batch(4, 2, &[3]), batch(5, 3, &[1])]).is_err(), "twice");
        let damaged = CommittedBatch { data: Bytes::from_static(b"no batch"), ..batch(5, 3, &[4]) };
        assert!(follow(vec![batch(3, 0, &[1, 2]), batch(4, 2, &[3]), damaged]).is_err(), "damaged");
    }

    #[test]
    fn a_leader_without_what_was_acknowledged_is_noticed() {
        let mut partitions = partitions();
        partitions.acked(&ack(2, &[3], 0)).expect("seen");
        let short = |leads| update(vec![batch(3, 0, &[1, 2])], true, leads);
        partitions.published(1, GROUP, &short(false)).expect("a follower may lag");
        assert!(partitions.published(2, GROUP, &short(true)).is_err());
        assert!(
            partitions.published(2, GROUP, &Update { high_watermark: 5, ..short(false) }).is_err(),
            "beyond its log"
        );
    }

    #[test]
    fn a_leader_without_what_an_earlier_one_committed_is_noticed() {
        let mut partitions = partitions();
        let next =
            |high| Update { leader_epoch: Some(2), ..update(vec![batch(3, 0, &[1, 2])][..high].to_vec(), true, true) };
        assert!(partitions.published(1, GROUP, &next(1)).expect_err("one is missing").contains("epoch 1 committed 3"));
    }

    #[test]
    fn records_of_one_producer_out_of_order_are_noticed() {
        let (first, second) = (1 << 40 | 1, 1 << 40 | 2);
        for (values, fits) in [([first, second], true), ([second, first], false)] {
            let mut partitions = Partitions::default();
            partitions.expect_unique(GROUP);
            let news = update(vec![batch(3, 0, &values[..1]), batch(4, 1, &values[1..])], true, false);
            assert_eq!(partitions.published(0, GROUP, &news).is_ok(), fits, "{values:?}");
        }
    }

    #[test]
    fn a_consumer_gets_what_was_committed_from_where_it_reads() {
        let mut partitions = partitions();
        let data = |index, base, values: &[u64]| batch(index, base, values).data;
        let (one, two) = (data(3, 0, &[1, 2]), data(4, 2, &[3]));
        assert_eq!(partitions.consumed(GROUP, 0, &[one.clone(), two.clone()]), Ok(Some((3, 1))));
        assert_eq!(partitions.consumed(GROUP, 1, std::slice::from_ref(&one)), Ok(Some((2, 1))), "from inside a batch");
        assert_eq!(partitions.consumed(GROUP, 3, &[]), Ok(None));
        assert_eq!(partitions.consumed, 4);
        assert!(partitions.consumed(GROUP, 0, std::slice::from_ref(&two)).is_err(), "left out");
        assert!(partitions.consumed(GROUP, 2, &[one.clone(), two.clone()]).is_err(), "too early");
        assert!(partitions.consumed(GROUP, 0, &[one.clone(), one]).is_err(), "twice");
        assert!(partitions.consumed(GROUP, 2, &[data(4, 2, &[4])]).is_err(), "another record");
        assert!(partitions.consumed(GROUP, 3, &[data(5, 3, &[4])]).is_err(), "never committed");
    }

    #[test]
    fn what_was_refused_must_not_appear() {
        assert!(partitions().refused(GROUP, &[2]).is_err(), "was there before");
        let mut partitions = partitions();
        partitions.refused(GROUP, &[4]).expect("not there");
        let more = update(vec![batch(3, 0, &[1, 2]), batch(4, 2, &[3]), batch(6, 3, &[4])], true, false);
        assert!(partitions.published(1, GROUP, &more).is_err(), "is there after");
    }

    #[test]
    fn reads_that_differ_from_what_was_committed_are_noticed() {
        let partitions = partitions();
        assert!(partitions.read(GROUP, &[4], &[batch(4, 2, &[8]).data]).is_err());
        assert!(partitions.read(GROUP, &[5], &[batch(4, 2, &[3]).data]).is_err());
    }
}
