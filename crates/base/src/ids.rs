//! Identifiers as newtypes. Numeric ids are handed out by `__meta` and never reused; the wide ones are random or keys.

use std::fmt;
use std::str::FromStr;

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            minicbor::Encode, minicbor::Decode, minicbor::CborLen,
        )]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

numeric_id!(
    /// A member of the cluster. Given out by `__meta` when the node is admitted, from 1 up; 0 is never a node.
    NodeId
);
numeric_id!(
    /// One replica of one Raft group: the id Raft itself sees. Given out by `__meta`, from 1 up, never reused:
    /// a replica that lost durable state comes back only under a new id.
    ReplicaId
);
numeric_id!(
    /// A Raft group. 0 is `__meta`; every partition is a group of its own.
    GroupId
);
numeric_id!(
    /// A client session, registered by command; commands carry (session, sequence) and are applied once.
    SessionId
);
numeric_id!(
    /// A request inside one engine, chosen by whoever hands the request in; unique while it is outstanding.
    RequestId
);
numeric_id!(
    /// A virtual machine. Names can be taken again after a delete; ids cannot.
    VmId
);
numeric_id!(
    /// A lease of the key-value store: keys that are bound to it go when it ends. Given out by `__meta`, never reused.
    LeaseId
);
numeric_id!(
    /// Counts assignments of one VM to a node; a higher one fences all lower ones.
    VmEpoch
);
numeric_id!(
    /// Counts the starts of one VM's hypervisor, over all its assignments.
    VmIncarnation
);
numeric_id!(
    /// Counts the starts of one node's process (or, for a cluster, its recoveries from lost majorities).
    Incarnation
);

impl GroupId {
    /// The group that holds the cluster's own state.
    pub const META: GroupId = GroupId(0);
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            minicbor::Encode, minicbor::Decode, minicbor::CborLen,
        )]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] #[cbor(with = "minicbor::bytes")] pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map(Self)
            }
        }
    };
}

bytes_id!(
    /// The cluster, chosen at random once, when its first node forms it.
    ClusterId,
    16
);
bytes_id!(
    /// One recovery of a cluster from a lost majority, chosen at random: what tells two survivors apart that were both made
    /// the whole cluster, under the same incarnation.
    RecoveryId,
    16
);
bytes_id!(
    /// A node's Ed25519 public key: its identity on the network, made once and kept.
    EndpointId,
    32
);
bytes_id!(
    /// A topic's Kafka id (KIP-516), which outlives renames and tells a recreated topic from the old one.
    TopicId,
    16
);

/// A text that is not hexadecimal digits of the right number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseHexError {
    /// Digits expected.
    pub expected: usize,
}

impl fmt::Display for ParseHexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} hexadecimal digits", self.expected)
    }
}

impl std::error::Error for ParseHexError {}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseHexError> {
    let error = ParseHexError { expected: N * 2 };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(error);
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(error),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_ids_round_trip_and_reject_other_text() {
        let id = ClusterId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", "zz".repeat(16).as_str(), "é".repeat(16).as_str()] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn ids_print_as_what_they_are() {
        assert_eq!(format!("{:?} {}", NodeId(3), NodeId(3)), "NodeId(3) 3");
    }
}
