//! A check at start: the request decoder reserves address space by claimed counts, which is harmless only where the
//! kernel hands out address space freely. Requests are checked before they are decoded (see `shape`), so this is the
//! second line of defence, kept because one forgotten field there would be an abort here.

use std::net::SocketAddr;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OvercommitError {
    #[error(
        "the Kafka listener does not listen on {listen}: the address space of this process is limited to {limit} bytes \
         (RLIMIT_AS), so that a hostile request could end it. Lift the limit, listen on loopback, or set \
         kafka.allow_limited_address_space"
    )]
    AddressSpace { listen: SocketAddr, limit: u64 },
    #[error(
        "the Kafka listener does not listen on {listen}: vm.overcommit_memory=2 forbids overcommit, so that a hostile \
         request could end the process. Set it to 0 or 1, listen on loopback, or set kafka.allow_limited_address_space"
    )]
    NoOvercommit { listen: SocketAddr },
}

/// Refuses to listen beyond loopback on a host that limits address space, unless `allow_limited` says to.
///
/// # Errors
/// Names what limits it and what to do.
pub fn check_overcommit(listen: SocketAddr, allow_limited: bool) -> Result<(), OvercommitError> {
    // Where there is no /proc there is nothing to be read, and no such limit that this could know.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let mode = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    judge(listen, allow_limited, &limits, &mode)
}

fn judge(listen: SocketAddr, allow_limited: bool, limits: &str, mode: &str) -> Result<(), OvercommitError> {
    if allow_limited || listen.ip().is_loopback() {
        return Ok(());
    }
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    if let Some(limit) = soft.and_then(|soft| soft.parse().ok()) {
        return Err(OvercommitError::AddressSpace { listen, limit });
    }
    if mode.trim() == "2" { Err(OvercommitError::NoOvercommit { listen }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
                        Max address space         unlimited            unlimited            bytes\n";
    const LIMITED: &str = "Max address space         17179869184          unlimited            bytes\n";

    #[test]
    fn hosts_that_limit_address_space_are_refused_beyond_loopback() {
        let (inside, outside): (SocketAddr, SocketAddr) =
            ("127.0.0.1:9092".parse().unwrap(), "0.0.0.0:9092".parse().unwrap());
        assert_eq!(judge(outside, false, FREE, "0\n"), Ok(()));
        let limit = 17_179_869_184;
        assert_eq!(
            judge(outside, false, LIMITED, "0\n"),
            Err(OvercommitError::AddressSpace { listen: outside, limit })
        );
        assert_eq!(judge(outside, false, FREE, "2\n"), Err(OvercommitError::NoOvercommit { listen: outside }));
        for (limits, mode) in [(LIMITED, "0\n"), (FREE, "2\n")] {
            assert_eq!(judge(outside, true, limits, mode), Ok(()), "the flag allows it");
            assert_eq!(judge(inside, false, limits, mode), Ok(()), "loopback is trusted");
        }
    }

    #[test]
    fn this_process_can_be_judged() {
        assert_eq!(check_overcommit("127.0.0.1:1".parse().unwrap(), false), Ok(()));
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert!(limits.contains("Max address space"), "the kernel still names it so: {limits}");
    }
}
