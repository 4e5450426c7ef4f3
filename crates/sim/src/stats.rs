//! What happened in a run, in numbers: one sees from them that faults did happen.

use std::collections::BTreeMap;
use std::fmt;

use base::simulation::Mark;
use base::{ErrorCode, GroupId};

use crate::check::Checks;
use crate::time::Nanos;

/// Counters of one run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub virtual_time: Nanos,
    pub events: u64,
    pub frames: u64,
    pub frames_lost: u64,
    pub requests: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub failures: BTreeMap<ErrorCode, u64>,
    /// Requests to partitions that were deleted.
    pub gone: u64,
    pub records_acknowledged: u64,
    pub commands_acknowledged: u64,
    pub reads: u64,
    /// Records seen committed.
    pub records: u64,
    /// Records that consumers got.
    pub consumed: u64,
    /// Log entries seen committed.
    pub commits: u64,
    pub snapshots_installed: u64,
    pub states_compared: u64,
    pub replicas_compared: u64,
    pub elections: u64,
    pub elections_meta: u64,
    pub max_term: u64,
    pub max_term_meta: u64,
    /// Names whose histories were judged, their operations, and the names whose search was given up.
    pub names: u64,
    pub names_operations: u64,
    pub names_undecided: u64,
    /// Log entries that repeated a command.
    pub commands_repeated: u64,
    /// Renewals that were granted of leases of before a recovery.
    pub leases_outlived: u64,
    /// Locks that clients were told to hold, and of those the ones whose lease was not renewed in time.
    pub locks_acquired: u64,
    pub locks_lapsed: u64,
    /// Calls for a lock that took up the place of an earlier one, and calls whose node was told that nobody listens.
    pub locks_joined: u64,
    pub locks_hung_up: u64,
    /// Calls that left the queue for a lock.
    pub locks_left: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub writes_torn: u64,
    pub frames_doubled: u64,
    /// Nodes that stopped for good because a bit flipped.
    pub retired: u64,
    /// Nodes that the cluster has forgotten, and machines that joined again after that.
    pub departed: u64,
    pub renewed: u64,
    /// Joiners that were refused because of their token, and lost machines that came back without their data.
    pub tokens_refused: u64,
    pub impostors_refused: u64,
    /// Replicas that were made on successors of nodes that were replaced.
    pub taken_over: u64,
    /// Successors that were named when their node went already: as the first one, or in place of another one.
    pub named_late: u64,
    pub successors_changed: u64,
    /// From the first moment until all nodes were members, voters as planned.
    pub formed_after: Nanos,
    /// From the end of the faults until everything accepted writes.
    pub accepted_after: Nanos,
    pub runs: u64,
    /// How often each rare state was reached.
    pub marks: BTreeMap<Mark, u64>,
}

impl Stats {
    /// Takes over what the checkers counted.
    pub fn gather(&mut self, checks: &Checks) {
        self.runs = 1;
        self.records = checks.partitions.records;
        self.consumed = checks.partitions.consumed;
        self.commits = checks.logs.commits;
        self.snapshots_installed = checks.logs.jumps;
        self.states_compared = checks.states.compared;
        self.replicas_compared = checks.states.replicas_compared;
        self.elections = checks.elections.won_in_all();
        self.elections_meta = checks.elections.won(GroupId::META);
        self.commands_repeated = checks.commands.repeats;
        self.leases_outlived = checks.leases.outlived;
        self.taken_over = checks.replacements.taken_over;
        self.named_late = checks.replacements.named_late;
        self.successors_changed = checks.replacements.changed;
        self.max_term = checks.elections.highest_term().1;
        self.max_term_meta = checks.elections.term_of(GroupId::META);
    }

    /// What became of nodes, and of whoever was not to be one.
    fn gone_and_refused(&self) -> String {
        format!(
            "{} nodes, because of a bit that flipped or a machine that was lost; {} departed, {} joined again; {} replicas \
             taken over by successors; {} successors named late, {} changed; {} joiners refused because of their token, {} \
             wiped machines because of their key",
            self.retired,
            self.departed,
            self.renewed,
            self.taken_over,
            self.named_late,
            self.successors_changed,
            self.tokens_refused,
            self.impostors_refused
        )
    }

    /// Counts a fault.
    pub fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    /// Adds another run's numbers; terms and delays are maxima.
    pub fn add(&mut self, other: &Stats) {
        let sums: [(&mut u64, u64); 39] = [
            (&mut self.virtual_time, other.virtual_time),
            (&mut self.events, other.events),
            (&mut self.frames, other.frames),
            (&mut self.frames_lost, other.frames_lost),
            (&mut self.requests, other.requests),
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.unknown, other.unknown),
            (&mut self.records_acknowledged, other.records_acknowledged),
            (&mut self.commands_acknowledged, other.commands_acknowledged),
            (&mut self.reads, other.reads),
            (&mut self.records, other.records),
            (&mut self.consumed, other.consumed),
            (&mut self.commits, other.commits),
            (&mut self.snapshots_installed, other.snapshots_installed),
            (&mut self.states_compared, other.states_compared),
            (&mut self.gone, other.gone),
            (&mut self.names, other.names),
            (&mut self.names_operations, other.names_operations),
            (&mut self.names_undecided, other.names_undecided),
            (&mut self.replicas_compared, other.replicas_compared),
            (&mut self.commands_repeated, other.commands_repeated),
            (&mut self.leases_outlived, other.leases_outlived),
            (&mut self.locks_acquired, other.locks_acquired),
            (&mut self.locks_lapsed, other.locks_lapsed),
            (&mut self.locks_joined, other.locks_joined),
            (&mut self.locks_hung_up, other.locks_hung_up),
            (&mut self.locks_left, other.locks_left),
            (&mut self.elections, other.elections),
            (&mut self.elections_meta, other.elections_meta),
            (&mut self.writes_torn, other.writes_torn),
            (&mut self.frames_doubled, other.frames_doubled),
            (&mut self.retired, other.retired),
            (&mut self.departed, other.departed),
            (&mut self.renewed, other.renewed),
            (&mut self.tokens_refused, other.tokens_refused),
            (&mut self.impostors_refused, other.impostors_refused),
            (&mut self.taken_over, other.taken_over),
            (&mut self.named_late, other.named_late),
            (&mut self.successors_changed, other.successors_changed),
        ];
        sums.into_iter().for_each(|(to, from)| *to += from);
        self.runs += other.runs;
        self.max_term = self.max_term.max(other.max_term);
        self.max_term_meta = self.max_term_meta.max(other.max_term_meta);
        self.formed_after = self.formed_after.max(other.formed_after);
        self.accepted_after = self.accepted_after.max(other.accepted_after);
        for (name, count) in &other.faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (mark, count) in &other.marks {
            *self.marks.entry(*mark).or_default() += count;
        }
        for (code, count) in &other.failures {
            *self.failures.entry(*code).or_default() += count;
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |nanos: Nanos| nanos as f64 / 1e9;
        writeln!(
            f,
            "runs                {} ({:.0} virtual s, {} events)",
            self.runs,
            seconds(self.virtual_time),
            self.events
        )?;
        writeln!(
            f,
            "elections           {} ({} of __meta), highest term {} ({} of __meta)",
            self.elections, self.elections_meta, self.max_term, self.max_term_meta
        )?;
        writeln!(
            f,
            "commits             {} entries, {} records, {} snapshots installed",
            self.commits, self.records, self.snapshots_installed
        )?;
        writeln!(
            f,
            "requests            {} ({} acknowledged, {} unknown, {} to partitions deleted meanwhile)",
            self.requests, self.acknowledged, self.unknown, self.gone
        )?;
        writeln!(
            f,
            "acknowledged        {} records, {} commands, {} reads of logs; {} records consumed",
            self.records_acknowledged, self.commands_acknowledged, self.reads, self.consumed
        )?;
        let failures: Vec<_> = self.failures.iter().map(|(code, count)| format!("{code} {count}")).collect();
        writeln!(f, "failures            {}", if failures.is_empty() { "none".into() } else { failures.join(", ") })?;
        let faults: Vec<_> = self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "faults              {}", if faults.is_empty() { "none".into() } else { faults.join(", ") })?;
        writeln!(
            f,
            "frames              {} ({} lost, {} doubled), {} unsynced writes at risk in crashes",
            self.frames, self.frames_lost, self.frames_doubled, self.writes_torn
        )?;
        writeln!(f, "stopped for good    {}", self.gone_and_refused())?;
        writeln!(
            f,
            "judged              {} states of __meta, {} of partitions, {} operations on {} contended names ({} undecided), \
             {} repeated commands",
            self.states_compared,
            self.replicas_compared,
            self.names_operations,
            self.names,
            self.names_undecided,
            self.commands_repeated
        )?;
        writeln!(
            f,
            "locks               {} acquired, {} not renewed in time; {} calls joined an earlier one, {} hung up, {} left",
            self.locks_acquired, self.locks_lapsed, self.locks_joined, self.locks_hung_up, self.locks_left
        )?;
        writeln!(f, "marks               {} of {} states reached", self.marks.len(), Mark::ALL.len())?;
        write!(
            f,
            "formed after        at most {:.2} virtual s; writes accepted again after at most {:.2} virtual s",
            seconds(self.formed_after),
            seconds(self.accepted_after)
        )
    }
}
