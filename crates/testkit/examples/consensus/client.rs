//! The client: a thread and a connection each, one request at a time, as little work as HTTP/1.1 allows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::systems::System;

/// What is to be done.
pub struct Load {
    pub put: bool,
    pub clients: usize,
    /// Until then, on keys at random; without, every key once.
    pub until: Option<Instant>,
    pub keys: u64,
    pub value_bytes: usize,
}

/// How long each operation took.
pub struct Outcome {
    pub times: Vec<Duration>,
}

/// Carries the load out.
///
/// # Errors
/// If any operation fails: a benchmark of failures means nothing.
pub fn run(system: &dyn System, load: &Load) -> anyhow::Result<Outcome> {
    let next = AtomicU64::new(0);
    let addresses = system.addresses();
    let value = "v".repeat(load.value_bytes);
    let results: Vec<anyhow::Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let one = |number: usize| {
            let (next, value, address) = (&next, &value, addresses[number % addresses.len()]);
            scope.spawn(move || client(system, load, number as u64, next, value, address))
        };
        let clients: Vec<_> = (0..load.clients).map(one).collect();
        let joined =
            |client: std::thread::ScopedJoinHandle<'_, _>| client.join().unwrap_or_else(|_| bail!("a client panicked"));
        clients.into_iter().map(joined).collect()
    });
    let mut times = Vec::new();
    for result in results {
        times.extend(result?);
    }
    Ok(Outcome { times })
}

fn client(
    system: &dyn System,
    load: &Load,
    number: u64,
    next: &AtomicU64,
    value: &str,
    address: SocketAddr,
) -> anyhow::Result<Vec<Duration>> {
    let mut connection = Connection::open(address)?;
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut times = Vec::new();
    loop {
        let key = match load.until {
            Some(until) if Instant::now() >= until => return Ok(times),
            Some(_) => {
                // Xorshift (Marsaglia 2003).
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % load.keys
            }
            None => match next.fetch_add(1, Ordering::Relaxed) {
                key if key < load.keys => key,
                _ => return Ok(times),
            },
        };
        let key = format!("bench-{key:06}");
        let (head, body) = if load.put { system.put(&key, value) } else { system.get(&key) };
        let began = Instant::now();
        let answer = connection.call(&head, &body)?;
        times.push(began.elapsed());
        ensure!(system.is_answer(load.put, answer), "{} answered {answer}", system.name());
    }
}

/// A connection that is kept.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    answer: String,
}

impl Connection {
    fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Connection { stream, buffer: Vec::new(), answer: String::new() })
    }

    /// Sends a request (its first line), and returns the body of an answer with status 200.
    fn call(&mut self, first_line: &str, body: &str) -> anyhow::Result<&str> {
        let request = match body.is_empty() {
            true => format!("{first_line} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
            false => format!(
                "{first_line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
        };
        self.stream.write_all(request.as_bytes())?;
        self.buffer.clear();
        loop {
            let mut chunk = [0; 4_096];
            let read = self.stream.read(&mut chunk).context("no answer")?;
            ensure!(read > 0, "the connection was closed");
            self.buffer.extend_from_slice(&chunk[..read]);
            let Some(head) = find(&self.buffer, b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&self.buffer[..head]).context("a head that is no text")?;
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let length = length.with_context(|| format!("an answer without a length: {text}"))?;
            if self.buffer.len() < head + 4 + length {
                continue;
            }
            self.answer = String::from_utf8_lossy(&self.buffer[head + 4..]).into_owned();
            ensure!(text.starts_with("HTTP/1.1 200"), "{text}\n{}", self.answer);
            return Ok(&self.answer);
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
