//! What the command line asks for.

use std::str::FromStr;

use anyhow::{Context, bail};

use crate::{groups, idle};

/// How often, how long, how many.
#[derive(Clone, Debug)]
pub struct Options {
    scenarios: Vec<String>,
    pub cold_starts: usize,
    pub load_minutes: f64,
    pub kills: usize,
    pub handovers: usize,
    pub restarts: usize,
    pub cuts: usize,
    /// As many as the scenario makes by itself, if not said.
    pub partitions: Option<usize>,
    pub fill_mib: usize,
    pub starve_minutes: f64,
    pub burners: usize,
    pub vms: bool,
}

impl Options {
    /// Reads the arguments. `None`: help was asked for, and given.
    pub fn read(arguments: impl Iterator<Item = String>, known: &[(&str, &str)]) -> anyhow::Result<Option<Options>> {
        let mut options = Options {
            scenarios: Vec::new(),
            cold_starts: 100,
            load_minutes: 10.0,
            kills: 50,
            handovers: 20,
            restarts: 20,
            cuts: 5,
            partitions: None,
            fill_mib: 200,
            starve_minutes: 5.0,
            burners: 0,
            vms: true,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--help" => {
                    help(&options, known);
                    return Ok(None);
                }
                "--cold-starts" => options.cold_starts = number(&argument, arguments.next())?,
                "--load-minutes" => options.load_minutes = number(&argument, arguments.next())?,
                "--kills" => options.kills = number(&argument, arguments.next())?,
                "--handovers" => options.handovers = number(&argument, arguments.next())?,
                "--restarts" => options.restarts = number(&argument, arguments.next())?,
                "--cuts" => options.cuts = number(&argument, arguments.next())?,
                "--partitions" => options.partitions = Some(number(&argument, arguments.next())?),
                "--fill-mib" => options.fill_mib = number(&argument, arguments.next())?,
                "--starve-minutes" => options.starve_minutes = number(&argument, arguments.next())?,
                "--burners" => options.burners = number(&argument, arguments.next())?,
                "--no-vms" => options.vms = false,
                name if known.iter().any(|(known, _)| *known == name) => options.scenarios.push(argument),
                other => bail!("{other} is no scenario and no option; --help lists them"),
            }
        }
        Ok(Some(options))
    }

    /// Whether a scenario is to be run.
    pub fn wants(&self, name: &str) -> bool {
        self.scenarios.is_empty() || self.scenarios.iter().any(|wanted| wanted == name)
    }
}

fn number<T: FromStr>(option: &str, text: Option<String>) -> anyhow::Result<T> {
    let text = text.with_context(|| format!("{option} needs a number"))?;
    text.parse().ok().with_context(|| format!("{option} needs a number, not {text:?}"))
}

fn help(options: &Options, known: &[(&str, &str)]) {
    println!("soak [SCENARIO...] [OPTION...]\n\nscenarios (all, if none is named):");
    known.iter().for_each(|(name, says)| println!("  {name:16} {says}"));
    println!("\noptions:");
    for (option, default, says) in [
        ("--cold-starts", options.cold_starts as f64, "clusters that are formed (cold)"),
        ("--load-minutes", options.load_minutes, "of saturating load (steady)"),
        ("--kills", options.kills as f64, "of the leader (kills)"),
        ("--handovers", options.handovers as f64, "of the leader's work (handover)"),
        ("--restarts", options.restarts as f64, "of all nodes (rolling)"),
        ("--cuts", options.cuts as f64, "of each kind (partitions)"),
        ("--partitions", idle::PARTITIONS as f64, "that nobody uses (idle), ..."),
        ("", groups::PARTITIONS as f64, "... and of several topics (groups)"),
        ("--fill-mib", options.fill_mib as f64, "of values that a node is behind (snapshot, resume)"),
        ("--starve-minutes", options.starve_minutes, "without a core to spare (starved)"),
        ("--burners", options.burners as f64, "processes that only take CPU time (starved)"),
    ] {
        println!("  {option:16} {default:5} {says}");
    }
    println!("  {:16}       the load boots no virtual machines (steady, starved)", "--no-vms");
}
