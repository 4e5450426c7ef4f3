//! Stock Kafka clients, and bytes that no client sends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::{Cluster, Folder, Kcat};

use crate::support::{PATIENCE, Pair, borrowed, ensure_exactly, machine_shared, wait_voters};

/// Records in each round.
const RECORDS: usize = 100_000;

#[test]
fn a_hundred_thousand_records_come_back_byte_for_byte_through_any_node() {
    let _machine = machine_shared();
    Folder::scenario("records", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        let records = odd_records(RECORDS);
        for (round, codec) in ["none", "gzip", "lz4", "snappy", "zstd"].into_iter().enumerate() {
            let topic = format!("records-{codec}");
            let through = &cluster.nodes[round % 3];
            let headers = ["codec=".to_owned() + codec, format!("round={round}")];
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            patient(through.kcat()).produce(&topic, borrowed(&records), &headers, &["-z", codec])?;
            // Each node once for the plain round; then one that is not the one written through.
            let readers = if round == 0 { 0..3 } else { (round + 1) % 3..(round + 1) % 3 + 1 };
            for reader in readers {
                let read = patient(cluster.nodes[reader].kcat()).consume(&topic)?;
                ensure_exactly(&read, &records).with_context(|| format!("{codec}, read through node {reader}"))?;
                let expect = headers.join(",");
                let odd = read.iter().find(|record| record.headers != expect);
                ensure!(odd.is_none(), "headers {expect:?} came back as {odd:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn offsets_and_acknowledgements_are_as_kafka_has_them() {
    let _machine = machine_shared();
    Folder::scenario("offsets", |folder| {
        let cluster = Cluster::start(folder, 3)?;
        let kcat = cluster.nodes[0].kcat();
        for (n, acks) in ["all", "1", "0"].into_iter().enumerate() {
            let record = (format!("{n}").into_bytes(), acks.as_bytes().to_vec());
            kcat.produce("t", [(&record.0[..], &record.1[..])], &[], &["-X", &format!("acks={acks}")])?;
            // acks=0 is not answered, and promises nothing; but here nothing is in its way.
            testkit::wait_until(PATIENCE, "the record is there", || {
                let read = cluster.nodes[1].kcat().consume("t")?;
                ensure!(read.len() == n + 1, "{read:?}");
                Ok(())
            })?;
        }
        wait_voters(&cluster.nodes[0], "t", 3)?;
        let from_one = cluster.nodes[2].kcat().consume_with("t", &["-o", "1", "-e"])?;
        let offsets: Vec<i64> = from_one.iter().map(|record| record.offset).collect();
        ensure!(offsets == [1, 2], "from offset 1 came {from_one:?}");
        let last = kcat.consume_with("t", &["-o", "-1", "-e"])?;
        ensure!(last.len() == 1 && last[0].value == b"0", "the last record is {last:?}");
        // From a time before all of them: everything. (kcat: `s@` takes milliseconds since 1970.)
        let timed = kcat.consume_with("t", &["-o", "s@1", "-e"])?;
        ensure!(timed.len() == 3, "since 1970 there are {timed:?}");
        Ok(())
    });
}

#[test]
fn a_short_request_that_claims_billions_of_elements_is_refused_and_harms_nobody() {
    let _machine = machine_shared();
    Folder::scenario("counts", |folder| {
        let mut cluster = Cluster::start(folder, 1)?;
        let node = &mut cluster.nodes[0];
        let mut neighbour = TcpStream::connect(node.kafka)?;
        ensure_answers(&mut neighbour)?;
        for api_key in 0..=92i16 {
            for version in [0, 1, 4, 9, 12] {
                for count in [&[0x7f, 0xff, 0xff, 0xff][..], &[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x80; 12][..]] {
                    let mut stream = TcpStream::connect(node.kafka)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    let body =
                        [&api_key.to_be_bytes()[..], &(version as i16).to_be_bytes(), &[0, 0, 0, 7], count].concat();
                    // With the client id that the header calls for (none), and without.
                    for body in [body.clone(), [&body[..8], &[0xff, 0xff], count].concat()] {
                        let frame = [&u32::try_from(body.len())?.to_be_bytes()[..], &body].concat();
                        if stream.write_all(&frame).is_err() {
                            break;
                        }
                    }
                    drop(stream.shutdown(std::net::Shutdown::Write));
                    // An answer or the end of the connection; not a hang.
                    drain(stream).with_context(|| format!("request {api_key} version {version}"))?;
                }
            }
        }
        node.process()?.ensure_running()?;
        ensure_answers(&mut neighbour).context("a neighbour's connection")?;
        node.kcat().produce("t", [(&b"k"[..], &b"v"[..])], &[], &[])?;
        ensure!(node.kcat().consume("t")?.len() == 1, "the node does not work any more");
        Ok(())
    });
}

/// Keys and values with every byte that kcat's separators leave, empty ones, and repetitions that compress.
fn odd_records(count: usize) -> Vec<Pair> {
    let alphabet: Vec<u8> = (0..=255).filter(|byte| ![0x1e, 0x1f].contains(byte)).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = |length: u64| -> Vec<u8> {
        (0..length).map(|_| alphabet[usize::try_from(next() % 254).unwrap_or_default()]).collect()
    };
    let record = |n: usize| {
        let length = (n % 97) as u64;
        let value = if n.is_multiple_of(3) { vec![b'z'; n % 300 + 1] } else { bytes(length + 1) };
        ([format!("{n}:").into_bytes(), bytes(length % 11)].concat(), value)
    };
    (0..count).map(record).collect()
}

fn patient(kcat: Kcat) -> Kcat {
    kcat.with_limit(Duration::from_secs(120))
}

/// Asks for the versions (ApiVersions 0) on an open connection, and reads the answer.
pub fn ensure_answers(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 42, 0xff, 0xff])?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length))?.min(1 << 20)];
    stream.read_exact(&mut answer)?;
    ensure!(answer.starts_with(&[0, 0, 0, 42, 0, 0]), "ApiVersions was answered with {answer:02x?}");
    Ok(())
}

/// Reads until the other side closes. A reset counts as closing.
pub fn drain(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the connection was not closed"),
        }
    }
}
