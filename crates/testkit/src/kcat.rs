//! kcat, a stock Kafka client, as a process.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::process::{Finished, run};
use crate::wait::wait_until;

/// Longest time that one run may take.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// Separates key, value and headers in what kcat prints; the tests use no record that contains it.
const FIELD: u8 = 0x1f;
/// Ends a record in what kcat prints.
const RECORD: u8 = 0x1e;

/// A client of the brokers at some addresses.
#[derive(Clone, Debug)]
pub struct Kcat {
    brokers: String,
    limit: Duration,
}

/// A record as kcat shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// As `name=value`, joined by commas.
    pub headers: String,
}

impl Finished {
    /// Of a kcat that was to produce: whether all records were acknowledged. kcat ends with success even if some were not; it
    /// only says so. What it says of brokers that are gone means nothing.
    #[must_use]
    pub fn delivered(&self) -> bool {
        self.status.success() && !self.text().contains("Delivery failed")
    }
}

impl Record {
    /// The value as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }
}

impl Kcat {
    /// A client that finds the cluster through `broker`.
    #[must_use]
    pub fn at(broker: SocketAddr) -> Self {
        Kcat { brokers: broker.to_string(), limit: RUN_LIMIT }
    }

    /// A client that finds the cluster through any of `brokers`.
    #[must_use]
    pub fn at_any(brokers: &[SocketAddr]) -> Self {
        let brokers: Vec<String> = brokers.iter().map(SocketAddr::to_string).collect();
        Kcat { brokers: brokers.join(","), limit: RUN_LIMIT }
    }

    /// The same client, giving up after `limit`.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Kcat { limit, ..self }
    }

    /// Produces records, each key and value as given, all with the same headers (`name=value`), and waits until all
    /// are acknowledged by every replica that must (acks=all).
    ///
    /// # Errors
    /// If kcat reports a failed delivery, or does not end.
    pub fn produce<'a>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        headers: &[&str],
        extra: &[&str],
    ) -> anyhow::Result<()> {
        let finished = self.try_produce(topic, records, headers, extra)?;
        let text = finished.text();
        let delivered = finished.delivered() && !text.contains("% ERROR");
        ensure!(delivered, "kcat could not produce to {topic} ({}):\n{text}", finished.status);
        Ok(())
    }

    /// As [`Kcat::produce`], but gives what kcat said, whatever it was.
    ///
    /// # Errors
    /// If kcat cannot be run or does not end.
    pub fn try_produce<'a>(
        &self,
        topic: &str,
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        headers: &[&str],
        extra: &[&str],
    ) -> anyhow::Result<Finished> {
        let mut input = Vec::new();
        for (key, value) in records {
            ensure!(
                ![key, value].iter().any(|part| part.contains(&FIELD) || part.contains(&RECORD)),
                "a record contains a separator of kcat's input"
            );
            input.extend([key, &[FIELD], value, &[RECORD]].concat());
        }
        let mut arguments = vec!["-P", "-b", &self.brokers, "-t", topic, "-K", "\x1f", "-D", "\x1e", "-X", "acks=all"];
        headers.iter().for_each(|header| arguments.extend(["-H", *header]));
        arguments.extend(extra);
        run("kcat", &arguments, file_of(&input)?, self.limit)
    }

    /// The command that produces each line that it reads to a partition, acks=all, and says so of each that was
    /// acknowledged.
    pub(crate) fn line_producer(&self, topic: &str, partition: i64, settings: &[String]) -> Command {
        let (mut command, partition) = (Command::new("kcat"), partition.to_string());
        command.args(["-P", "-b", &self.brokers, "-t", topic, "-p", &partition, "-X", "acks=all"]);
        for setting in settings {
            command.args(["-X", setting]);
        }
        // It speaks of deliveries from the second on.
        command.args(["-v", "-v"]);
        command
    }

    /// Produces a record to a partition that the broker with this id led and must not take records for any more, acks=all,
    /// and gives the reason.
    ///
    /// To be without a leader, or not to be it, is what a client waits for the end of: kcat says only that the time is over,
    /// as it would of a broker that is gone. So the reason is what the broker answers when it is asked who leads: nobody
    /// (LEADER_NOT_AVAILABLE), or another one.
    ///
    /// # Errors
    /// If the record is delivered within `limit`, or the broker does not answer, or says that it leads.
    pub fn refused(
        &self,
        topic: &str,
        (broker, partition): (i64, i64),
        key: &str,
        limit: Duration,
    ) -> anyhow::Result<String> {
        let (number, timeout) = (partition.to_string(), format!("message.timeout.ms={}", limit.as_millis()));
        let record = [(key.as_bytes(), &b"no"[..])];
        let said = self.try_produce(topic, record, &[], &["-p", &number, "-X", &timeout])?;
        let text = said.text();
        ensure!(!said.delivered(), "partition {partition} of {topic} took a record:\n{text}");
        let what = format!("broker {broker} says that it does not lead partition {partition} of {topic}");
        let leader = wait_until(limit, &what, || {
            let partitions = self.partitions(topic)?;
            let leader = partitions.get(&partition).map(|(leader, _)| *leader);
            leader.filter(|leader| *leader != broker).with_context(|| format!("it says that {leader:?} leads"))
        })?;
        Ok(match leader {
            ..0 => format!("partition {partition} has no leader"),
            _ => format!("broker {leader} leads partition {partition}"),
        })
    }

    /// Every record of `topic` (all partitions) from its beginning to its present end, in the order of arrival.
    ///
    /// # Errors
    /// If kcat fails or does not end.
    pub fn consume(&self, topic: &str) -> anyhow::Result<Vec<Record>> {
        self.consume_with(topic, &["-o", "beginning", "-e"])
    }

    /// As [`Kcat::consume`], with kcat's own arguments for where to begin and to end.
    ///
    /// # Errors
    /// If kcat fails or does not end.
    pub fn consume_with(&self, topic: &str, extra: &[&str]) -> anyhow::Result<Vec<Record>> {
        let mut arguments = vec!["-C", "-b", &self.brokers, "-t", topic, "-q", "-f", "%o\x1f%k\x1f%s\x1f%h\x1e"];
        arguments.extend(extra);
        let finished = run("kcat", &arguments, Stdio::null(), self.limit)?;
        let errors = String::from_utf8_lossy(&finished.stderr);
        ensure!(finished.status.success(), "kcat could not read {topic} ({}):\n{errors}", finished.status);
        finished.stdout.split(|byte| *byte == RECORD).filter(|record| !record.is_empty()).map(parse).collect()
    }

    /// Every record of one partition from its beginning to its present end.
    ///
    /// # Errors
    /// If kcat fails or does not end.
    pub fn consume_partition(&self, topic: &str, partition: impl Display) -> anyhow::Result<Vec<Record>> {
        self.consume_with(topic, &["-p", &partition.to_string(), "-o", "beginning", "-e"])
    }

    /// Leader and replicas (by broker id) of each partition of `topic`, as this broker tells clients.
    ///
    /// # Errors
    /// If kcat fails or answers in another shape.
    pub fn partitions(&self, topic: &str) -> anyhow::Result<BTreeMap<i64, (i64, Vec<i64>)>> {
        let finished = run("kcat", &["-L", "-J", "-b", &self.brokers, "-t", topic], Stdio::null(), self.limit)?;
        ensure!(finished.status.success(), "kcat -L: {}", finished.text());
        let answer: serde_json::Value = serde_json::from_slice(&finished.stdout).context("kcat -J gave no JSON")?;
        let partitions = answer["topics"][0]["partitions"].as_array().context("no partitions in kcat's answer")?;
        let read = |partition: &serde_json::Value| {
            let replicas = partition["replicas"].as_array()?.iter().filter_map(|replica| replica["id"].as_i64());
            Some((partition["partition"].as_i64()?, (partition["leader"].as_i64()?, replicas.collect())))
        };
        partitions.iter().map(read).collect::<Option<_>>().with_context(|| format!("kcat said {answer}"))
    }
}

fn parse(record: &[u8]) -> anyhow::Result<Record> {
    let fields: Vec<&[u8]> = record.split(|byte| *byte == FIELD).collect();
    let [offset, key, value, headers] = fields[..] else {
        anyhow::bail!("kcat printed {} fields: {:?}", fields.len(), String::from_utf8_lossy(record))
    };
    let offset = std::str::from_utf8(offset)?.parse().context("kcat printed no offset")?;
    let headers = String::from_utf8_lossy(headers).into_owned();
    Ok(Record { offset, key: key.to_vec(), value: value.to_vec(), headers })
}

/// A file that holds `input`, to be read from its beginning.
fn file_of(input: &[u8]) -> anyhow::Result<Stdio> {
    use std::io::{Seek, Write};
    let mut file: File = tempfile::tempfile().context("cannot make a temporary file")?;
    file.write_all(input)?;
    file.rewind()?;
    Ok(Stdio::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_from_what_kcat_prints() -> anyhow::Result<()> {
        let record = parse(b"7\x1fkey\x1fa\nb\xff\x1fh=1,i=2")?;
        let expect = Record { offset: 7, key: b"key".into(), value: b"a\nb\xff".into(), headers: "h=1,i=2".into() };
        assert_eq!(record, expect);
        assert!(parse(b"7\x1fkey").is_err());
        Ok(())
    }
}
