//! Records one by one through a kcat that runs on, and when each was acknowledged. Of a run of kcat, as
//! [`Load`](crate::Load) makes them, it is known only when all of its records were: not for how long none was taken.

use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use tempfile::TempDir;

use crate::kcat::Kcat;
use crate::load::longest_gap;
use crate::process::Process;
use crate::wait::wait_until;

/// Between two records. kcat tells of deliveries when it is given the next record, so that no moment is known better.
const PAUSE: Duration = Duration::from_millis(1);
/// Until the first record is acknowledged.
const START_LIMIT: Duration = Duration::from_secs(20);
/// A record that is not acknowledged by then has failed.
const DEADLINE_MS: u64 = 10_000;
/// From the last record until kcat has ended.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Between two times that kcat asks for a leader that it lost; first it asks after a quarter of this.
const ASK_MS: u64 = 20;
/// Before kcat sends a record again that was refused.
const RETRY_MS: u64 = 5;
/// Of a record and its end of line. kcat reads its input in such pieces, and begins with a record only when it has the whole
/// piece in which that ends: shorter ones would wait for each other.
const LINE_BYTES: usize = 1_024;
/// Under this name it writes to its folder.
const NAME: &str = "kcat";

/// A kcat that is given records for one partition, acks=all, until [`Trickle::stop`], or until this value goes.
#[derive(Debug)]
pub struct Trickle {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Trickled>>>,
}

/// What it came to: each of its records was acknowledged.
#[derive(Debug)]
pub struct Trickled {
    name: String,
    acknowledged: Vec<Instant>,
}

impl Trickle {
    /// Begins, and waits until a record is acknowledged. The records begin with `NAME-0`, `NAME-1` and so on.
    ///
    /// # Errors
    /// If none is.
    pub fn start(kcat: &Kcat, topic: &str, partition: i64, name: &str) -> anyhow::Result<Self> {
        let mut feed = Feed::start(kcat, topic, partition, name)?;
        wait_until(START_LIMIT, &format!("{topic}/{partition} takes a record"), || {
            feed.turn()?;
            ensure!(!feed.told.acknowledged.is_empty(), "none of {}: {:?}", feed.sent, feed.told.failures);
            Ok(())
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                feed.turn()?;
                std::thread::sleep(PAUSE);
            }
            feed.finish()
        });
        Ok(Trickle { stop, thread: Some(thread) })
    }

    /// Ends it, and waits until nothing is under way any more.
    ///
    /// # Errors
    /// If a record was not acknowledged by its deadline, or kcat ended before.
    pub fn stop(mut self) -> anyhow::Result<Trickled> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("it was stopped before")?;
        thread.join().map_err(|_| anyhow!("the thread that feeds kcat panicked"))?
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Trickled {
    /// The longest time without an acknowledged record between two moments.
    #[must_use]
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        longest_gap(self.acknowledged.iter().copied(), from, to)
    }

    /// Every record, as it is to be read back.
    pub fn values(&self) -> impl Iterator<Item = String> {
        (0..self.acknowledged.len()).map(move |number| value(&self.name, number))
    }
}

fn value(name: &str, number: usize) -> String {
    format!("{:.<width$}", format!("{name}-{number}"), width = LINE_BYTES - 1)
}

/// A kcat, what it was given, and what it said.
struct Feed {
    name: String,
    sent: usize,
    input: PipeWriter,
    kcat: Process,
    told: Told,
    _folder: TempDir,
}

impl Feed {
    fn start(kcat: &Kcat, topic: &str, partition: i64, name: &str) -> anyhow::Result<Feed> {
        // kcat's own are made for networks far away, and for clients that do not mind.
        let settings = [
            format!("topic.metadata.refresh.fast.interval.ms={}", ASK_MS / 4),
            format!("topic.metadata.refresh.interval.ms={ASK_MS}"),
            format!("retry.backoff.ms={RETRY_MS}"),
            format!("message.timeout.ms={DEADLINE_MS}"),
            "linger.ms=0".to_owned(),
            "socket.nagle.disable=true".to_owned(),
        ];
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let (output, input) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = kcat.line_producer(topic, partition, &settings);
        let kcat = Process::start_with_input(&mut command, Stdio::from(output), NAME, folder.path())?;
        let file = File::open(folder.path().join(format!("{NAME}.err"))).context("kcat's output is not there")?;
        let told = Told { file, unread: Vec::new(), acknowledged: Vec::new(), failures: Vec::new() };
        Ok(Feed { name: name.to_owned(), sent: 0, input, kcat, told, _folder: folder })
    }

    /// Gives it a record, and looks what it has told by now.
    fn turn(&mut self) -> anyhow::Result<()> {
        self.kcat.ensure_running()?;
        let line = format!("{}\n", value(&self.name, self.sent));
        self.input.write_all(line.as_bytes()).context("kcat takes no more records")?;
        self.sent += 1;
        self.told.look()
    }

    /// Gives it no more: kcat ends once each record is acknowledged or has failed.
    fn finish(self) -> anyhow::Result<Trickled> {
        let Feed { name, sent, input, mut kcat, mut told, _folder } = self;
        drop(input);
        let status = kcat.wait(END_LIMIT)?.status;
        told.look()?;
        let Told { acknowledged, failures, .. } = told;
        ensure!(
            status.success() && failures.is_empty() && acknowledged.len() == sent,
            "{} of {sent} records were acknowledged ({status}): {:?}",
            acknowledged.len(),
            failures.first()
        );
        Ok(Trickled { name, acknowledged })
    }
}

/// What kcat said of its records.
struct Told {
    file: File,
    /// The beginning of a line.
    unread: Vec<u8>,
    acknowledged: Vec<Instant>,
    failures: Vec<String>,
}

impl Told {
    fn look(&mut self) -> anyhow::Result<()> {
        self.file.read_to_end(&mut self.unread).context("cannot read what kcat says")?;
        let now = Instant::now();
        for line in whole_lines(&mut self.unread) {
            if line.contains("Message delivered") {
                self.acknowledged.push(now);
            } else if line.contains("Delivery failed") {
                self.failures.push(line);
            }
        }
        Ok(())
    }
}

/// Takes out all lines that have ended.
fn whole_lines(unread: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = unread.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
    let whole: Vec<u8> = unread.drain(..=end).collect();
    String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_once_it_has_ended() {
        let mut unread = b"% Message deli".to_vec();
        assert!(whole_lines(&mut unread).is_empty());
        unread.extend(b"vered to 1\n% Message delivered to 2\n%");
        assert_eq!(whole_lines(&mut unread), ["% Message delivered to 1", "% Message delivered to 2"]);
        assert_eq!(unread, b"%");
        assert!(whole_lines(&mut unread).is_empty());
    }

    #[test]
    fn a_time_without_a_record_counts_from_the_beginning_and_to_the_end() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let trickled = Trickled { name: "a".to_owned(), acknowledged: [0, 10, 90, 100, 400].map(at).to_vec() };
        let gap = |from, to| trickled.longest_gap(at(from), at(to));
        assert_eq!(gap(5, 110), Duration::from_millis(80), "between two records");
        assert_eq!(gap(20, 95), Duration::from_millis(70), "it began before");
        assert_eq!(gap(85, 300), Duration::from_millis(200), "it ended after");
        assert_eq!(gap(150, 350), Duration::from_millis(200), "there is no record in it");
        let last = trickled.values().last().unwrap_or_default();
        assert!(last.starts_with("a-4.") && last.len() == LINE_BYTES - 1, "{last}");
    }
}
