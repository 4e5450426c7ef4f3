//! `make bench-consensus`: three nodes of muster against three of etcd, on this machine, in one run, both syncing, asked by
//! the same client over HTTP/1.1 with JSON: puts of 256 bytes and linearizable gets, by 1, 64 and 256 clients that wait for
//! each answer, spread over the nodes. Prints a table for `docs/benchmarks.md`.

mod client;
mod systems;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use testkit::{Folder, muster_binary};

use client::{Load, Outcome};
use systems::{Etcd, Muster, System};

/// How long each cell of the table is measured, each time.
const SECONDS: u64 = 8;
/// How often; the median counts.
const ROUNDS: usize = 3;
const CLIENTS: [usize; 3] = [1, 64, 256];
/// Keys that are written and read.
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
/// Ticks per second in /proc, on every architecture that Linux shows them on.
const USER_HZ: u64 = 100;

/// One line of the table, measured once.
#[derive(Clone, Debug)]
struct Cell {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    /// Of all three nodes together, per operation.
    cpu: Duration,
    /// The largest node's, at the end.
    resident_mib: u64,
}

fn main() {
    let Wanted { seconds, rounds, words, counts } = match Wanted::read(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(wrong) => {
            eprintln!(
                "{wrong:#}\nconsensus [SECONDS [ROUNDS [put] [get] [1] [64] [256]]]: what is named, or all of it"
            );
            std::process::exit(2);
        }
    };
    Folder::scenario("bench-consensus", |folder| {
        let _ = muster_binary()?;
        let muster = Muster::start(folder)?;
        let etcd = Etcd::start(folder)?;
        let systems: [&dyn System; 2] = [&muster, &etcd];
        for system in systems {
            fill(system)?;
        }
        let mut cells: BTreeMap<(bool, usize, &str), Vec<Cell>> = BTreeMap::new();
        for round in 1..=rounds {
            for (put, clients) in [true, false].into_iter().flat_map(|put| CLIENTS.map(|clients| (put, clients))) {
                // In turn, so that what the machine does meanwhile hits both.
                for system in systems.into_iter().filter(|_| words.contains(&word(put)) && counts.contains(&clients)) {
                    let cell = measure(system, put, clients, Duration::from_secs(seconds))?;
                    eprintln!("round {round}, {} {}, {clients} clients: {cell:?}", system.name(), word(put));
                    cells.entry((put, clients, system.name())).or_default().push(cell);
                }
            }
        }
        show(&cells, systems);
        Ok(())
    });
}

/// What is to be measured.
struct Wanted {
    seconds: u64,
    rounds: usize,
    words: Vec<&'static str>,
    counts: Vec<usize>,
}

impl Wanted {
    fn read(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Wanted> {
        let mut number = |usual: u64, what: &str| match arguments.next() {
            None => Ok(usual),
            Some(text) => text.parse::<u64>().with_context(|| format!("{what} is a number, not {text:?}")),
        };
        let (seconds, rounds) = (number(SECONDS, "SECONDS")?, number(ROUNDS as u64, "ROUNDS")?);
        let mut wanted = Wanted { seconds, rounds: usize::try_from(rounds)?, words: Vec::new(), counts: Vec::new() };
        for named in arguments {
            match (["put", "get"].into_iter().find(|word| *word == named), named.parse()) {
                (Some(word), _) => wanted.words.push(word),
                (None, Ok(count)) if CLIENTS.contains(&count) => wanted.counts.push(count),
                _ => bail!("nothing here is named {named:?}"),
            }
        }
        if wanted.words.is_empty() {
            wanted.words.extend([word(true), word(false)]);
        }
        if wanted.counts.is_empty() {
            wanted.counts.extend(CLIENTS);
        }
        Ok(wanted)
    }
}

fn word(put: bool) -> &'static str {
    if put { "put" } else { "get" }
}

/// Every key gets a value, so that every get finds one.
fn fill(system: &dyn System) -> anyhow::Result<()> {
    let load = Load { put: true, clients: 64, until: None, keys: KEYS, value_bytes: VALUE_BYTES };
    let done = client::run(system, &load)?;
    ensure!(done.times.len() as u64 == KEYS, "{} of {KEYS} keys were put", done.times.len());
    Ok(())
}

fn measure(system: &dyn System, put: bool, clients: usize, length: Duration) -> anyhow::Result<Cell> {
    let load =
        |length| Load { put, clients, until: Some(Instant::now() + length), keys: KEYS, value_bytes: VALUE_BYTES };
    client::run(system, &load(Duration::from_secs(1)))?;
    let before = cpu(system)?;
    let began = Instant::now();
    let Outcome { mut times } = client::run(system, &load(length))?;
    let took = began.elapsed();
    let used = cpu(system)? - before;
    times.sort_unstable();
    let at = |part: f64| times.get(((times.len() as f64 - 1.0) * part) as usize).copied().unwrap_or_default();
    Ok(Cell {
        per_second: times.len() as f64 / took.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        cpu: used / u32::try_from(times.len().max(1)).unwrap_or(u32::MAX),
        resident_mib: system.processes().iter().map(|pid| resident_mib(*pid)).max().unwrap_or_default(),
    })
}

/// Processor time of all nodes, user and system.
fn cpu(system: &dyn System) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for pid in system.processes() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a node has ended")?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        ticks += field(11) + field(12);
    }
    Ok(Duration::from_millis(ticks * 1_000 / USER_HZ))
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) / 1_024
}

fn show(cells: &BTreeMap<(bool, usize, &str), Vec<Cell>>, systems: [&dyn System; 2]) {
    println!("| | clients | system | per second | p50 ms | p99 ms | CPU us each | largest node MiB |");
    println!("|---|---|---|---|---|---|---|---|");
    for put in [true, false] {
        for clients in CLIENTS {
            for system in systems {
                let Some(cells) = cells.get(&(put, clients, system.name())) else { continue };
                let median = |of: &dyn Fn(&Cell) -> f64| {
                    let mut all: Vec<f64> = cells.iter().map(of).collect();
                    all.sort_by(f64::total_cmp);
                    all[all.len() / 2]
                };
                println!(
                    "| {} | {clients} | {} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} |",
                    word(put),
                    system.name(),
                    median(&|cell| cell.per_second),
                    median(&|cell| cell.p50.as_secs_f64() * 1_000.0),
                    median(&|cell| cell.p99.as_secs_f64() * 1_000.0),
                    median(&|cell| cell.cpu.as_secs_f64() * 1_000_000.0),
                    median(&|cell| cell.resident_mib as f64),
                );
            }
        }
    }
}
