//! A node that is a whole data set behind is cut off for a moment while it pulls a checkpoint: the transfer goes on where it
//! was. In a network namespace of its own, cut with nft.
//!
//! Nobody writes meanwhile. Whoever has not asked for a part for 2 s does not count as pulling any more, and under load the
//! leader may have a newer checkpoint by then (crates/engine/src/checkpoints.rs): then it begins anew, and is right to.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::{Cluster, Cuts, Load, Start, wait_until};

use super::{CAUGHT_UP_MAX, Scene, bystander, newest_checkpoint, plan, prepared, received};
use crate::dataset::DataSet;
use crate::figures::{Figures, Limit};
use crate::look::{PATIENCE, in_own_network, judge, let_pass};
use crate::options::Options;

/// Once so much of the checkpoint has come, the node is cut off: if the transfer began anew, more than [`RECEIVED_MAX`] would
/// come in all. Early enough for the rules to be made before all of it has come.
const PART: f64 = 0.4;
/// Longer than a connection lives without a word (1.25 s), and a leader without the answer of one follower does not care; shorter
/// than a pull goes on that gets nothing (10 s).
const CUT: Duration = Duration::from_secs(2);
/// What came before the cut, and what comes after it, in sizes of the checkpoint. The entries behind it, of which there are up
/// to 30,000, take a twentieth of it, and one part or two may come twice.
const RECEIVED_MAX: f64 = 1.3;
/// Checkpoints that are being encoded when the load ends are there.
const SETTLE: Duration = Duration::from_secs(15);

pub fn run(options: &Options, figures: &mut Figures) {
    let mib = options.fill_mib;
    in_own_network("resume", &["--fill-mib", &mib.to_string()], figures, |folder, figures| {
        let mut cluster = prepared(folder, mib)?;
        resumes(&mut cluster, &DataSet::of_mib(mib), figures)
    });
}

fn resumes(cluster: &mut Cluster, data: &DataSet, figures: &mut Figures) -> anyhow::Result<()> {
    let at = bystander(cluster)?;
    let others = [(at + 1) % 3, (at + 2) % 3];
    data.put(&cluster.nodes[others[0]], 0..data.count())?;
    let load = {
        let cluster: &Cluster = cluster;
        Load::start_at(&others.map(|other| &cluster.nodes[other]), plan())?
    };
    let mut scene = Scene { cluster: &mut *cluster, figures: &mut *figures, at, others, windows: Vec::new() };
    let behind = scene.falls_behind()?;
    let outcome = load.stop()?;
    let_pass(scene.cluster, SETTLE)?;
    scene.is_cut_off_on_the_way(behind.has)?;

    let verified = data.verify(&cluster.nodes[at]);
    let seen = match &verified {
        Ok(()) => format!("{} keys, {} MiB, byte by byte", data.count(), data.mib()),
        Err(error) => format!("{error:#}"),
    };
    figures.verdict("resume: the node that was cut off holds the whole data set", verified.is_ok(), &seen);
    judge(figures, "resume", &outcome, cluster);
    Ok(())
}

impl Scene<'_> {
    /// It starts with nothing above an index, and is cut off from both others while it pulls what they have.
    fn is_cut_off_on_the_way(&mut self, has: u64) -> anyhow::Result<()> {
        let behind = self.is_left_behind(has, 0)?;
        let cuts = Cuts::none()?;
        let leader = self.cluster.meta_leader(PATIENCE)?;
        let other = self.others.into_iter().find(|other| *other != leader).context("there is another one")?;
        self.cluster.nodes[self.at].start(&Start::Up)?;
        self.wait_received(&behind, PART)?;
        // First from whom it pulls: that goes on while rules are made.
        let nodes = &self.cluster.nodes;
        cuts.between(&nodes[leader], &nodes[self.at])?;
        cuts.between(&nodes[other], &nodes[self.at])?;
        let cut = Instant::now();
        wait_until(PATIENCE, "all have noticed", || {
            ensure!(cut.elapsed() >= CUT, "not yet");
            Ok(())
        })?;
        let before = received(self.node())? / behind.bytes as f64;
        let checkpoint = newest_checkpoint(self.node(), true)?;
        cuts.heal()?;
        let healed = Instant::now();
        // A whole one would be in its journal by then.
        let in_the_middle = checkpoint.index < behind.ahead;
        let seen = format!("{before:.2} of it had come; its journal holds one of index {}", checkpoint.index);
        self.figures.verdict("resume: a node is cut off while a checkpoint is pulled", in_the_middle, &seen);

        let back = self.follow(&behind, &self.others)?;
        let took = back.caught_up.at - healed;
        self.figures.times(
            "resume: from the end of the cut until it has caught up",
            vec![took],
            Limit::max(CAUGHT_UP_MAX),
        );
        let what = "resume: bytes that came, in sizes of the checkpoint";
        self.figures.number(what, &[back.received], "", Some(RECEIVED_MAX));
        Ok(())
    }
}
