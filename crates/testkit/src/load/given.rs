//! What one producer gave to one partition, and whether all of it is there: nothing lost, nothing changed, in order.
//!
//! Producers are stock clients without a producer id (the Kafka listener has no `InitProducerId` yet), which send again what
//! they got no answer to. So a record may come twice, and of several requests of one run, sent again to a new leader, one may
//! overtake another. What holds all the same: a run that was acknowledged was in the log before the next one began, so the
//! runs' records come in that order, each when it comes for the first time.

use anyhow::{Context, ensure};

use crate::kcat::Record;

/// Of every record.
const KEY: &[u8] = b"k";

/// Records by one producer for one partition, run after run: `NAME-0`, `NAME-1` and so on.
#[derive(Clone, Debug)]
pub struct Given {
    name: String,
    width: usize,
    runs: Vec<Run>,
}

/// Records that were given together.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// The number after its last record's.
    end: u64,
    /// All of them; of others nothing is known.
    acknowledged: bool,
}

impl Given {
    /// Nothing yet, by a producer of that name. A record's number is filled up to so many bytes.
    #[must_use]
    pub fn by(name: &str, width: usize) -> Given {
        Given { name: name.to_owned(), width, runs: Vec::new() }
    }

    /// Key and value of each record of the next run.
    #[must_use]
    pub fn next_run(&self, records: usize) -> Vec<(&'static [u8], String)> {
        let first = self.end();
        (first..first + records as u64).map(|number| (KEY, self.value(number))).collect()
    }

    /// The next run has ended.
    pub fn ran(&mut self, records: usize, acknowledged: bool) {
        self.runs.push(Run { end: self.end() + records as u64, acknowledged });
    }

    /// Records that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.runs().filter(|(_, run)| run.acknowledged).map(|(first, run)| run.end - first).sum()
    }

    /// Whether the partition, read from its beginning to its end, holds what it has to, and nothing that nobody gave.
    ///
    /// # Errors
    /// Naming what is missing, changed, strange or out of order.
    pub fn check(&self, read: &[Record]) -> anyhow::Result<()> {
        let mut seen = vec![false; usize::try_from(self.end())?];
        let (mut offset, mut latest) = (-1, 0);
        for record in read {
            ensure!(record.offset > offset, "offset {} comes after {offset}", record.offset);
            offset = record.offset;
            let number = self.number(record)?;
            if std::mem::replace(&mut seen[usize::try_from(number)?], true) {
                continue;
            }
            let at = self.runs.partition_point(|run| run.end <= number);
            if self.runs[at].acknowledged {
                ensure!(
                    at >= latest,
                    "record {number}, of run {at}, comes at offset {offset} after one of run {latest}"
                );
                latest = at;
            }
        }
        let acknowledged = self.runs().filter(|(_, run)| run.acknowledged).flat_map(|(first, run)| first..run.end);
        let missing: Vec<u64> =
            acknowledged.filter(|number| usize::try_from(*number).is_ok_and(|number| !seen[number])).collect();
        let some = &missing[..missing.len().min(10)];
        let (count, name) = (missing.len(), &self.name);
        ensure!(missing.is_empty(), "{count} acknowledged records of {name} are missing, among them {some:?}");
        Ok(())
    }

    /// Which of the records it is, to the last byte.
    fn number(&self, record: &Record) -> anyhow::Result<u64> {
        let text = record.text();
        let number = text.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        let number = number.and_then(|number| number.trim_end().parse::<u64>().ok()).filter(|number| {
            let same = record.key == KEY && record.value == self.value(*number).as_bytes() && record.headers.is_empty();
            *number < self.end() && same
        });
        number.with_context(|| format!("{} did not give the record at offset {}: {text:?}", self.name, record.offset))
    }

    fn value(&self, number: u64) -> String {
        format!("{}-{number:<width$}", self.name, width = self.width)
    }

    /// The number after the last record's.
    fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.end)
    }

    /// Each run with its first record's number.
    fn runs(&self) -> impl Iterator<Item = (u64, Run)> {
        let firsts = std::iter::once(0).chain(self.runs.iter().map(|run| run.end));
        firsts.zip(self.runs.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two runs of two records, and between them one of two that was not acknowledged.
    fn given() -> Given {
        let mut given = Given::by("7", 5);
        assert_eq!(given.next_run(2), [(KEY, "7-0    ".to_owned()), (KEY, "7-1    ".to_owned())]);
        given.ran(2, true);
        given.ran(2, false);
        given.ran(2, true);
        given
    }

    /// What is read, by numbers.
    fn read(numbers: &[u64]) -> Vec<Record> {
        let record = |(number, offset)| Record {
            offset,
            key: KEY.to_vec(),
            value: given().value(number).into_bytes(),
            headers: String::new(),
        };
        numbers.iter().copied().zip(0..).map(record).collect()
    }

    fn refused(records: &[Record], why: &str) {
        let error = format!("{:#}", given().check(records).expect_err(why));
        assert!(error.contains(why), "{error} is not that {why}");
    }

    #[test]
    fn what_is_there_in_order_is_enough_and_what_nobody_acknowledged_may_be_anywhere() {
        assert_eq!(given().acknowledged(), 4);
        for numbers in [&[0, 1, 4, 5][..], &[0, 1, 3, 2, 4, 5], &[2, 0, 1, 4, 5, 3]] {
            given().check(&read(numbers)).unwrap();
        }
        // Sent again: the last run once more, and the first one late.
        given().check(&read(&[0, 1, 4, 5, 4, 5, 0])).unwrap();
        // Requests of one run that were sent again to a new leader.
        given().check(&read(&[1, 0, 5, 4])).unwrap();
        assert!(Given::by("8", 0).check(&[]).is_ok());
    }

    #[test]
    fn a_lost_record_is_noticed_although_another_came_twice() {
        refused(&read(&[0, 0, 4, 5]), "1 acknowledged records of 7 are missing, among them [1]");
        refused(&read(&[]), "4 acknowledged records of 7 are missing");
    }

    #[test]
    fn a_later_run_that_comes_first_is_noticed() {
        refused(&read(&[0, 4, 1, 5]), "record 1, of run 0, comes at offset 2 after one of run 2");
        refused(&read(&[4, 5, 0, 1]), "after one of run 2");
        let mut backwards = read(&[0, 1, 4, 5]);
        backwards[2].offset = 1;
        refused(&backwards, "offset 1 comes after 1");
    }

    #[test]
    fn a_changed_or_strange_record_is_noticed() {
        let changed = |change: fn(&mut Record)| {
            let mut records = read(&[0, 1, 4, 5]);
            change(&mut records[1]);
            refused(&records, "did not give the record at offset 1");
        };
        changed(|record| record.value = b"7-1".to_vec());
        changed(|record| record.value = b"7-01   ".to_vec());
        changed(|record| record.value = b"8-1    ".to_vec());
        changed(|record| record.value = b"7-6    ".to_vec());
        changed(|record| record.key = b"q".to_vec());
        changed(|record| record.headers = "a=b".to_owned());
    }
}
