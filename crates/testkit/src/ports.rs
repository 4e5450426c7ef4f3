//! Ports for the nodes under test.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Below the range that the kernel gives to outgoing connections, so that none of those takes a node's port while the
/// node is down.
const FIRST: u32 = 12_000;
const COUNT: u32 = 18_000;

/// A port that no socket of this network uses, TCP or UDP, and that this process did not give out before.
///
/// The kernel's tables are read instead of binding the port for a try: a process that another test starts at that
/// moment inherits the socket of such a try until it executes its program, and holds the port against its owner.
///
/// # Errors
/// If there is none left.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at once begin at different places.
    let start = std::process::id().wrapping_mul(2_654_435_761) % COUNT;
    let used = used_ports()?;
    for _ in 0..COUNT {
        let next = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + (start + next) % COUNT)?;
        if !used.contains(&port) {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// The local ports of all sockets in the network of this thread, proc(5).
fn used_ports() -> anyhow::Result<BTreeSet<u16>> {
    let mut used = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let text = match std::fs::read_to_string(&path) {
            // A machine without IPv6 has half of the tables.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.with_context(|| format!("cannot read {path}"))?,
        };
        // `  sl  local_address rem_address ...`, and an address is `0100007F:2383`.
        used.extend(text.lines().skip(1).filter_map(|line| {
            let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
            u16::from_str_radix(port, 16).ok()
        }));
    }
    Ok(used)
}

/// Whether nothing accepts connections at `address`.
#[must_use]
pub fn tcp_is_closed(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn ports_with_a_socket_are_used() -> anyhow::Result<()> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (tcp, udp) = (TcpListener::bind(any)?, UdpSocket::bind(any)?);
        let used = used_ports()?;
        assert!(used.contains(&tcp.local_addr()?.port()) && used.contains(&udp.local_addr()?.port()), "{used:?}");
        Ok(())
    }

    #[test]
    fn ports_are_given_out_once() {
        let ports: BTreeSet<_> = (0..50).map(|_| free_port().expect("ports are free")).collect();
        assert_eq!(ports.len(), 50);
        assert!(ports.iter().all(|port| tcp_is_closed(SocketAddr::from(([127, 0, 0, 1], *port)))));
    }
}
