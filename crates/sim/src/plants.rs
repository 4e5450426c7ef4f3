//! How sharp the simulator is: for every mistake that can be planted, how many seeds it takes until a checker objects,
//! and which one.

use std::fmt;

use base::simulation::Plant;

use crate::check::Violation;
use crate::config::SimConfig;
use crate::mistake::Mistake;
use crate::run::{replay_command, run, sweep};

/// What became of the search for one mistake.
#[derive(Debug)]
pub struct Hunt {
    pub mistake: Mistake,
    /// As it was run, with the first seed.
    pub cfg: SimConfig,
    pub seeds_max: u64,
    /// The first seed that showed it, and how.
    pub found: Option<(u64, Violation)>,
    /// What that seed breaks without the mistake: then it is not the mistake that was found, but a real one.
    pub real: Option<Violation>,
}

impl Hunt {
    /// Seeds run until it was found, that one included.
    #[must_use]
    pub fn seeds(&self) -> Option<u64> {
        self.found.as_ref().map(|(seed, _)| seed - self.cfg.seed + 1)
    }

    /// The command that shows it.
    #[must_use]
    pub fn command(&self) -> Option<String> {
        let (seed, _) = self.found.as_ref()?;
        Some(replay_command(&SimConfig { seed: *seed, ..self.cfg.clone() }))
    }
}

/// Mistakes in the product's code that are hard to find: most show only after more seeds than `make test` can run, some after
/// fewer as long as runs are drawn as they are. `make plants` hunts them.
pub const RARE: [Plant; 12] = [
    Plant::OldCheckpointRemovedEarly,
    Plant::UncertainNotRewritten,
    Plant::UnknownReplicaRemoved,
    Plant::StaleTablesActedOn,
    Plant::SegmentReusedEarly,
    Plant::MembersNotTold,
    Plant::RequestNamesReused,
    Plant::ReasonsRepeated,
    Plant::LearnersPromotedAtOnce,
    Plant::ReadsShareAnOlderRound,
    Plant::ReadsTrustLease,
    Plant::TornFramesAccepted,
];

/// Whether it takes long to find.
#[must_use]
pub fn is_rare(mistake: Mistake) -> bool {
    matches!(mistake, Mistake::Code(plant) if RARE.contains(&plant))
}

/// Hunts some of the mistakes on all cores, and prints what came of it: how many, and which were not found in so many
/// seeds.
#[must_use]
pub fn hunt_all(seeds_max: u64, which: impl Fn(Mistake) -> bool) -> (usize, Vec<&'static str>) {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (mut hunted, mut hidden) = (0, Vec::new());
    for mistake in Mistake::all().filter(|mistake| which(*mistake)) {
        let hunt = hunt(&SimConfig::with_mistake(mistake, 1), seeds_max, jobs);
        println!("{hunt}");
        hunted += 1;
        if hunt.found.is_none() {
            hidden.push(mistake.name());
        }
    }
    (hunted, hidden)
}

/// Runs seeds from `cfg.seed` on with the mistake that `cfg` plants, until one fails or `seeds_max` did not.
///
/// # Panics
/// If nothing is planted.
#[must_use]
pub fn hunt(cfg: &SimConfig, seeds_max: u64, jobs: usize) -> Hunt {
    let mistake = cfg.plant.expect("there is something to hunt");
    let found = sweep(cfg, seeds_max, jobs, false).failed.into_iter().next();
    let without = |seed: u64| run(&SimConfig { seed, plant: None, ..cfg.clone() }).violation;
    let real = found.as_ref().and_then(|(seed, _)| without(*seed));
    let found = found.filter(|_| real.is_none());
    Hunt { mistake, cfg: cfg.clone(), seeds_max, found, real }
}

impl fmt::Display for Hunt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, meaning) = (self.mistake.name(), self.mistake.meaning());
        match (&self.found, self.seeds()) {
            (Some((_, violation)), Some(seeds)) => {
                write!(f, "{name:32} {seeds:5}  {:45} {meaning}", violation.invariant)
            }
            _ if let Some(violation) = &self.real => {
                write!(f, "{name:32} A SEED FAILS WITHOUT IT, TOO: {violation}")
            }
            _ => write!(f, "{name:32} HIDDEN after {} seeds  {meaning}", self.seeds_max),
        }
    }
}

/// The hunts as `docs/simulation-plants.md`.
#[must_use]
pub fn markdown(hunts: &[Hunt]) -> String {
    let rows = |code: bool| {
        let of_kind = hunts.iter().filter(move |hunt| matches!(hunt.mistake, Mistake::Code(_)) == code);
        of_kind.map(row).collect::<String>()
    };
    format!(
        "# What the simulator finds\n\n\
         A simulator that never fails proves nothing. So mistakes are planted, one at a time: in the product's own code, \
         at the place that keeps a rule (`if planted(Plant::...)`, constant `false` outside of the simulator's build), \
         and in the simulator's seams. Each table says after how many seeds, counted from 1, a checker objected, and \
         which one. `cargo test -p sim --test sharpness` holds the simulator to it, and `make plants` for those that are \
         hard to find, of which most take more than 100 seeds; the tables are what\n\n\
         ```\nmuster-sim plants --markdown > docs/simulation-plants.md\n```\n\n\
         wrote.\n\n\
         ## In the product's code\n\n{HEAD}{}\n\
         ## In the simulator's seams\n\n{HEAD}{}",
        rows(true),
        rows(false)
    )
}

const HEAD: &str = "| mistake | what it does | seeds | caught by | seen again with `muster-sim replay` and |\n\
                    |---|---|---|---|---|\n";

fn row(hunt: &Hunt) -> String {
    let (name, meaning) = (hunt.mistake.name(), hunt.mistake.meaning());
    let seeds = hunt.seeds().map_or_else(|| format!("hidden for {}", hunt.seeds_max), |seeds| seeds.to_string());
    let invariant = hunt.found.as_ref().map_or("-", |(_, violation)| violation.invariant);
    let command = hunt.command().unwrap_or_default();
    let arguments = command.strip_prefix("muster-sim replay ").unwrap_or_default();
    let arguments = arguments.split(" --trace").next().unwrap_or_default();
    format!("| `{name}` | {meaning} | {seeds} | {invariant} | `{arguments}` |\n")
}
