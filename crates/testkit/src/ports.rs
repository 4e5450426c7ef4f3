//! Ports for the nodes under test.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::bail;

/// Below the range that the kernel gives to outgoing connections, so that none of those takes a node's port while the
/// node is down.
const FIRST: u32 = 12_000;
const COUNT: u32 = 18_000;

/// A port of 127.0.0.1 that is free for TCP and UDP, and that this process did not give out before.
///
/// # Errors
/// If there is none left.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at once begin at different places.
    let start = std::process::id().wrapping_mul(2_654_435_761) % COUNT;
    for _ in 0..COUNT {
        let next = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + (start + next) % COUNT)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port of 127.0.0.1 between {FIRST} and {}", FIRST + COUNT)
}

/// Whether nothing accepts connections at `address`.
#[must_use]
pub fn tcp_is_closed(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_out_once() {
        let ports: std::collections::BTreeSet<_> = (0..50).map(|_| free_port().expect("ports are free")).collect();
        assert_eq!(ports.len(), 50);
        assert!(ports.iter().all(|port| tcp_is_closed(SocketAddr::from(([127, 0, 0, 1], *port)))));
    }
}
