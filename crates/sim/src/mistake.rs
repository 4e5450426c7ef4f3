//! Mistakes that a run can have planted. A run with one must end in a violation: that shows that the checkers can fail,
//! and that the faults reach what they are to reach.
//!
//! Some lie in the simulator's own seams, where the product relies on disk, network and driver ([`Seam`]); the others
//! in the product's code, at the places that keep its rules ([`Plant`]).

use std::fmt;
use std::str::FromStr;

use base::simulation::{Plant, plant};

use crate::config::{Fault, FaultSet, SimConfig};

/// A mistake of the world around the product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seam {
    /// Disks call writes durable that are not.
    LyingDisk,
    /// A crash takes a disk back, whole and undamaged, to what it was some time before (a restored backup).
    RestoredDisk,
    /// A crashed node comes back with an empty disk and its old identity.
    AmnesiacNode,
    /// The network turns refused votes into granted ones.
    ForgedVotes,
    /// The network raises the term of every tenth control message.
    RaisedTerms,
    /// The driver tells producers that a failed write succeeded.
    FalseAcknowledgement,
    /// The driver drops the answers of every fifth request.
    LostReplies,
    /// The network flips a bit in the payload of some entries.
    FlippedEntries,
}

impl Seam {
    /// All of them, with name and meaning.
    const ALL: [(Seam, &'static str, &'static str); 8] = [
        (Seam::LyingDisk, "lying-disk", "Disks call writes durable that are not."),
        (Seam::RestoredDisk, "restored-disk", "A crash takes a disk back to what it was some time before."),
        (Seam::AmnesiacNode, "amnesiac-node", "A crashed node comes back with an empty disk and its old identity."),
        (Seam::ForgedVotes, "forged-votes", "The network turns refused votes into granted ones."),
        (Seam::RaisedTerms, "raised-terms", "The network raises the term of every tenth control message."),
        (
            Seam::FalseAcknowledgement,
            "false-acknowledgement",
            "The driver tells producers that a failed write succeeded.",
        ),
        (Seam::LostReplies, "lost-replies", "The driver drops the answers of every fifth request."),
        (Seam::FlippedEntries, "flipped-entries", "The network flips a bit in the payload of some entries."),
    ];

    fn row(self) -> (&'static str, &'static str) {
        let row = Seam::ALL.iter().find(|(seam, ..)| *seam == self);
        row.map_or(("", ""), |(_, name, meaning)| (name, meaning))
    }
}

/// What is planted in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// In the simulator's seams.
    Seam(Seam),
    /// In the product's code.
    Code(Plant),
}

impl Mistake {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Mistake> {
        let seams = Seam::ALL.iter().map(|(seam, ..)| Mistake::Seam(*seam));
        seams.chain(Plant::ALL.iter().copied().map(Mistake::Code))
    }

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mistake::Seam(seam) => seam.row().0,
            Mistake::Code(plant) => plant.name(),
        }
    }

    /// What it does, in a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Mistake::Seam(seam) => seam.row().1,
            Mistake::Code(plant) => plant.meaning(),
        }
    }
}

impl FromStr for Mistake {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Mistake::all().map(Mistake::name).collect::<Vec<_>>().join(", ");
        Mistake::all()
            .find(|mistake| mistake.name() == text)
            .ok_or_else(|| format!("no mistake is called {text:?}: {}", names()))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Plants a mistake in the product's code on this thread, until it is dropped.
pub struct Planted(());

impl Planted {
    /// Plants what lies in the code; a seam is asked for where it is.
    #[must_use]
    pub fn new(mistake: Option<Mistake>) -> Self {
        plant(match mistake {
            Some(Mistake::Code(it)) => Some(it),
            _ => None,
        });
        Planted(())
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        plant(None);
    }
}

impl SimConfig {
    /// Whether this seam is broken in this run.
    #[must_use]
    pub fn breaks(&self, seam: Seam) -> bool {
        self.plant == Some(Mistake::Seam(seam))
    }

    /// A run that the mistake ought not to survive, for one seed of many: as short, and with as few faults, as shows it
    /// soon. Every fault is allowed where that does no harm.
    #[must_use]
    pub fn with_mistake(mistake: Mistake, seed: u64) -> Self {
        let nodes = match mistake {
            // There must be a choice.
            Mistake::Code(Plant::SuccessorsIgnored) => 5,
            // With others beside it, a leader's disk alone promises nothing that outlives the leader; and others refuse a
            // node that went back, often before it has read its log.
            Mistake::Code(
                Plant::AcksOneBeforeDurable | Plant::CampaignBeforeLogDurable | Plant::UnappliableSkipped,
            ) => 1,
            _ => 3,
        };
        let seconds = match mistake {
            // A leader must stand still for so long that it steps down, while its disk is stuck for even longer.
            Mistake::Code(Plant::CampaignBeforeLogDurable) => 60,
            // A group must have come to rest before its leader is cut off.
            Mistake::Code(Plant::RestWithoutQuorum) => 20,
            // A disk must be stuck for long after its node has handed over.
            Mistake::Code(Plant::StuckWaitersKept) => 20,
            // A put must be lost, and whoever asked for it must hang up within the second after which it is sent again.
            Mistake::Code(Plant::UndoneBeforeDone) => 20,
            _ => 8,
        };
        // Whatever clients do is written down in `muster.events`, the group that everybody has.
        let clients = match mistake {
            Mistake::Code(Plant::MembersCommitNotSaved) => Some(0),
            // Some must read through one node at the same time.
            Mistake::Code(Plant::ReadsShareAnOlderForward) => Some(24),
            _ => None,
        };
        SimConfig {
            seconds,
            nodes,
            faults: faults_that_show(mistake),
            clients,
            locks: mistake == Mistake::Code(Plant::UndoneBeforeDone),
            plant: Some(mistake),
            ..SimConfig::new(seed)
        }
    }
}

/// What is to go wrong beside a mistake, so that it shows soon.
fn faults_that_show(mistake: Mistake) -> FaultSet {
    let some = |faults: &[Fault]| FaultSet(faults.iter().copied().collect());
    match mistake {
        Mistake::Seam(Seam::RaisedTerms) => FaultSet::none(),
        // What is on its way must take its time.
        Mistake::Code(Plant::ReadsShareAnOlderForward) => some(&[Fault::Delay]),
        // Nothing is lost: that answers do not fit each other is all that shows it.
        Mistake::Code(Plant::CommandsAnsweredBeforeCommit | Plant::ReadsNotShown) => FaultSet::none(),
        Mistake::Seam(Seam::ForgedVotes) => some(&[Fault::Delay, Fault::Crash]),
        // Stale only while a leader that lost the others does not know it yet.
        Mistake::Code(Plant::ReadsTrustLease) => some(&[Fault::Partition, Fault::Flap, Fault::Moment]),
        // Nothing else may be the reason to step down.
        Mistake::Code(Plant::PauseUnnoticed) => some(&[Fault::Pause]),
        // What a disk did not write must be missed.
        Mistake::Code(Plant::WriteErrorsIgnored) => some(&[Fault::BrokenDisk, Fault::Crash, Fault::PowerLoss]),
        // A node must go back soon after the version rose.
        Mistake::Code(Plant::UnappliableSkipped) => some(&[Fault::Upgrade]),
        // A leader must be alone for long, and nothing else may wake its group.
        Mistake::Code(Plant::RestWithoutQuorum) => some(&[Fault::Partition]),
        // Nothing else may keep the others from taking over.
        Mistake::Code(Plant::StuckDiskIgnored | Plant::StuckWaitersKept) => some(&[Fault::StuckDisk]),
        // What was read back must be old, and what was written must be torn.
        Mistake::Code(Plant::SegmentReusedEarly | Plant::OldLivesAccepted | Plant::TornFramesAccepted) => {
            some(&[Fault::Crash, Fault::PowerLoss, Fault::SlowDisk])
        }
        // A put that goes with its node needs nobody to leave.
        Mistake::Code(Plant::UndoneBeforeDone) => some(&[Fault::Loss]),
        Mistake::Code(Plant::RequestNamesReused) => some(&[Fault::Kill, Fault::Crash, Fault::Delay]),
        // A member must be away while another joins, and whoever knows both must stop leading.
        Mistake::Code(Plant::MembersNotTold) => some(&[Fault::Crash, Fault::Kill, Fault::Join, Fault::Transfer]),
        // The answer to a joiner must be lost.
        Mistake::Code(Plant::AdmittedTwice) => some(&[Fault::Join, Fault::Partition]),
        // A machine must be lost, and come back.
        Mistake::Code(Plant::ImpostorsAdmitted) => some(&[Fault::Destroy, Fault::Intruder]),
        Mistake::Code(Plant::ExpiredTokensTaken) => some(&[Fault::Intruder]),
        Mistake::Code(Plant::SpeculateThoughRefused) => some(&[Fault::Transfer, Fault::Crash]),
        // A group must have grown, and its first node must be gone for good with the same power loss that makes the
        // others forget, before anybody was elected or anything was written since.
        Mistake::Code(Plant::MembersCommitNotSaved) => some(&[Fault::BitRot]),
        // Where others vote, their answers come after the log is durable. Where nobody else does, the last write must end
        // just when a campaign is due, so that both are taken in at once.
        Mistake::Code(Plant::CampaignBeforeLogDurable) => some(&[Fault::Pause, Fault::StuckDisk, Fault::Busy]),
        Mistake::Code(Plant::DamagedCheckpointTaken) => some(&[Fault::Damage, Fault::Crash, Fault::Join]),
        // Somebody must be gone for good while somebody else is to go.
        Mistake::Code(Plant::VotersDroppedTooEarly) => some(&[Fault::Leave, Fault::Destroy, Fault::Crash]),
        Mistake::Code(Plant::LearnersPromotedAtOnce) => some(&[Fault::Leave, Fault::Destroy, Fault::Partition]),
        // Somebody must come for whoever goes.
        Mistake::Code(Plant::VotersDroppedFirst | Plant::SuccessorsIgnored) => some(&[Fault::Replace]),
        Mistake::Code(Plant::UnknownReplicaRemoved | Plant::StaleTablesActedOn) => {
            some(&[Fault::Crash, Fault::Moment, Fault::Partition])
        }
        Mistake::Code(Plant::VersionNotAwaited | Plant::CommandsNotGated) => some(&[Fault::Upgrade, Fault::Kill]),
        // A cluster whose nodes are upgraded one after the other refuses for a while what others are found by; where
        // checkpoints do not come through, nobody takes one; a busy machine takes much in at once, with few moments
        // in between; a node whose disk is broken is not there; one machine more is one more that has what others
        // lose; and what intruders ask for moves all else.
        _ => {
            let apart =
                [Fault::Upgrade, Fault::Damage, Fault::Busy, Fault::BrokenDisk, Fault::Replace, Fault::Intruder];
            let harms = |fault: &Fault| apart.contains(fault);
            FaultSet(FaultSet::all().0.into_iter().filter(|fault| !harms(fault)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_mistake_has_a_name_of_its_own_and_is_found_by_it() {
        let names: BTreeSet<&str> = Mistake::all().map(Mistake::name).collect();
        assert_eq!(names.len(), Mistake::all().count());
        for mistake in Mistake::all() {
            assert_eq!(mistake.name().parse(), Ok(mistake));
            assert!(mistake.meaning().ends_with('.'), "{mistake} means something");
        }
        assert!("no-such".parse::<Mistake>().expect_err("unknown").contains("lying-disk"));
    }
}
