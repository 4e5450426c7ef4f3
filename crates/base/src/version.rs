//! Versions: what muster understands of what is sent and stored, in one place.
//!
//! Two kinds of number. A *format* says how bytes are laid out, so that a reader knows at once whether it can read them; it
//! changes rarely, and alone. The *cluster version* says what may occur in them (commands, messages, fields) and what is
//! done with it. Nodes of different releases run together, so a newer node does what only newer ones understand when all
//! members can, and not before: the active cluster version stands in `__meta`, it only rises, and it rises when every
//! member has said that it can follow. See docs/decisions/0013-versions.md, which also says how to add a command.

use std::fmt;
use std::str::FromStr;

/// Format of the hello and of what follows it: streams, frames, message lengths. Two nodes whose ranges of it do not meet
/// cannot even say so to each other, so it changes last of all.
pub const PEER_PROTOCOL: u32 = 1;
/// The oldest that is still understood.
pub const PEER_PROTOCOL_MIN: u32 = 1;
/// First byte of every value that is sent or stored: CBOR with numbered fields follows.
pub const ENVELOPE_FORMAT: u8 = 1;
/// Format of the segments of the write-ahead log; stands in their headers. A newer one is written only once the cluster
/// version that brings it is active, so that until then the older release can be started again.
pub const SEGMENT_FORMAT: u32 = 1;
/// What host and guest agent speak.
pub const AGENT_PROTOCOL: u32 = 1;

/// What a host remembers of a VM (`record.json`).
pub const VM_RECORD: u32 = 1;

/// What the nodes of a cluster may say to each other and write into `__meta`, as one number that only rises.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode, minicbor::CborLen)]
#[cbor(transparent)]
pub struct ClusterVersion(#[n(0)] pub u16);

impl ClusterVersion {
    /// Everything up to the first release.
    pub const V1: ClusterVersion = ClusterVersion(1);
    /// Keys and leases; commands under an Idempotency-Key; the rise of the version can be held back.
    pub const V2: ClusterVersion = ClusterVersion(2);

    /// The highest that this binary can.
    pub const NEWEST: ClusterVersion = ClusterVersion::V2;
    /// The lowest that this binary still works at.
    pub const OLDEST: ClusterVersion = ClusterVersion::V1;
    /// The highest that a release has spoken: what stands in the fixtures of it and below never changes. 0: none yet.
    pub const RELEASED: ClusterVersion = ClusterVersion(0);
}

impl Default for ClusterVersion {
    /// Of a cluster that nothing is known of: what every node can.
    fn default() -> Self {
        ClusterVersion::V1
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterVersion({})", self.0)
    }
}

impl FromStr for ClusterVersion {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(ClusterVersion)
    }
}

/// The cluster versions that a node can work at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, minicbor::Encode, minicbor::Decode)]
pub struct VersionRange {
    #[n(0)]
    pub min: ClusterVersion,
    /// Inclusive.
    #[n(1)]
    pub max: ClusterVersion,
}

impl VersionRange {
    /// What this binary can.
    pub const BINARY: VersionRange = VersionRange { min: ClusterVersion::OLDEST, max: ClusterVersion::NEWEST };

    /// Whether a node that can these works in a cluster at `version`.
    #[must_use]
    pub fn contains(self, version: ClusterVersion) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// These, but none above `max`; `None` if that leaves nothing.
    #[must_use]
    pub fn up_to(self, max: ClusterVersion) -> Option<VersionRange> {
        (max >= self.min).then(|| VersionRange { max: max.min(self.max), ..self })
    }

    /// Why a node that can these cannot be in a cluster at `active`, and what to do about it; `None`: it can.
    #[must_use]
    pub fn objection(self, active: ClusterVersion) -> Option<String> {
        let advice = if active > self.max {
            "upgrade muster there (or raise its --cluster-version-max)"
        } else if active < self.min {
            "it is too new: upgrade the cluster to the releases in between first, one at a time"
        } else {
            return None;
        };
        Some(format!("the cluster is at cluster version {active}, that node can {self}: {advice}"))
    }
}

impl Default for VersionRange {
    /// Of a node that does not say: the first version.
    fn default() -> Self {
        VersionRange { min: ClusterVersion::V1, max: ClusterVersion::V1 }
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { self.min.fmt(f) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: u16, max: u16) -> VersionRange {
        VersionRange { min: ClusterVersion(min), max: ClusterVersion(max) }
    }

    #[test]
    fn who_cannot_follow_is_told_which_side_is_too_old() {
        let said = |it: VersionRange| it.objection(ClusterVersion(3));
        assert_eq!(said(range(2, 3)), None);
        assert!(said(range(1, 2)).expect("too old").contains("that node can 1 to 2: upgrade muster"));
        assert!(said(range(4, 4)).expect("too new").contains("that node can 4: it is too new"));
    }

    #[test]
    fn a_range_is_held_back_only_within_itself() {
        assert_eq!(range(2, 4).up_to(ClusterVersion(3)), Some(range(2, 3)));
        assert_eq!(range(2, 4).up_to(ClusterVersion(9)), Some(range(2, 4)));
        assert_eq!(range(2, 4).up_to(ClusterVersion(1)), None);
    }
}
