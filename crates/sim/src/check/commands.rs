//! The commands of `__meta`, replayed apart from every node: each committed entry once, in order. What a command may do
//! is judged from the states before and after it:
//!
//! - a command takes effect once: what is repeated under its session and sequence, or comes under a session that is not
//!   open, changes nothing; a token that a client asked for once is made once;
//! - whoever becomes a member has a token that is good for it, and takes a use of it; whoever has a member's key and not its
//!   data is refused;
//! - what was acknowledged at an index is the command that stands there;
//! - epoch and incarnation of a VM never go back, ids of VMs are never used again, an epoch is given to one node, and a
//!   report under another epoch, incarnation or node than the current ones changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId, SessionId, VmEpoch, VmId};
use compute::{Assignment, VmReportEvent};
use metadata::{Command, CommandEnvelope, CommandResult, Metadata, TokenRecord, token_hash};
use wire::{Entry, EntryKind};

/// States kept for comparison with nodes that lag.
const STATES_KEPT: usize = 4_000;

/// See the module.
#[derive(Default)]
pub struct Commands {
    states: BTreeMap<u64, Metadata>,
    commands: BTreeMap<u64, Command>,
    /// Where each command was carried out.
    carried_out: BTreeMap<(SessionId, u64), u64>,
    /// Secrets of tokens that are asked for once, and whether they were made.
    once: BTreeMap<[u8; 32], bool>,
    assigned: BTreeMap<(VmId, VmEpoch), NodeId>,
    highest_vm: VmId,
    /// Entries that repeated a command.
    pub repeats: u64,
    /// Reports that were refused as stale.
    pub stale_reports: u64,
}

impl Commands {
    /// A node has this state; whether it is the one that the cluster was born with, seen for the first time.
    pub fn born(&mut self, state: &Metadata) -> bool {
        let first = self.states.is_empty() && state.applied == 1;
        if first {
            self.states.insert(1, state.clone());
        }
        first
    }

    /// The cluster goes on from this state, which a survivor of another life of it brought along.
    pub fn recovered(&mut self, state: &Metadata) {
        self.states.insert(state.applied, state.clone());
        self.highest_vm = state.vms.keys().copied().max().unwrap_or_default();
        let assigned = state.vms.values().filter_map(|vm| Some((vm.id, vm.assignment?)));
        self.assigned.extend(assigned.map(|(vm, at)| ((vm, at.epoch), at.node)));
    }

    /// The state at an index, if it is (still) known.
    #[must_use]
    pub fn at(&self, index: u64) -> Option<&Metadata> {
        self.states.get(&index)
    }

    /// The last state.
    #[must_use]
    pub fn last(&self) -> Option<&Metadata> {
        self.states.last_key_value().map(|(_, state)| state)
    }

    /// The command that stands at an index.
    #[must_use]
    pub fn command(&self, index: u64) -> Option<&Command> {
        self.commands.get(&index)
    }

    /// The node that got a VM under an epoch.
    #[must_use]
    pub fn assigned(&self, vm: VmId, epoch: VmEpoch) -> Option<NodeId> {
        self.assigned.get(&(vm, epoch)).copied()
    }

    /// Whether a partition existed and was deleted.
    #[must_use]
    pub fn is_deleted(&self, group: GroupId) -> bool {
        self.last().is_some_and(|state| group.0 <= state.groups_given_out() && !state.partitions.contains_key(&group))
    }

    /// A client asks once for a token with this hash.
    pub fn expect_once(&mut self, hash: [u8; 32]) {
        self.once.insert(hash, false);
    }

    /// An entry of `__meta` was committed that nobody applied before.
    ///
    /// # Errors
    /// It does not follow the last one, or does what it must not.
    pub fn committed(&mut self, entry: &Entry) -> Result<(), String> {
        let Some(before) = self.last().cloned() else { return Ok(()) };
        if entry.index != before.applied + 1 {
            return Err(format!("index {} of __meta is committed after {}", entry.index, before.applied));
        }
        let mut after = before.clone();
        if entry.kind == EntryKind::Command {
            let envelope: CommandEnvelope =
                wire::decode(&entry.data).map_err(|why| format!("index {} of __meta: {why}", entry.index))?;
            let result = after.apply(entry.index, &envelope);
            self.judge(&before, &after, &envelope, &result)
                .map_err(|why| format!("index {} of __meta, {:?}: {why}", entry.index, envelope.command))?;
            self.commands.insert(entry.index, envelope.command);
        } else {
            after.skip(entry.index);
        }
        self.states.insert(entry.index, after);
        if self.states.len() > STATES_KEPT {
            self.states.pop_first();
        }
        Ok(())
    }

    fn judge(
        &mut self,
        before: &Metadata,
        after: &Metadata,
        envelope: &CommandEnvelope,
        result: &CommandResult,
    ) -> Result<(), String> {
        if let Some(origin) = envelope.origin {
            let place = (origin.session, origin.sequence);
            let repeated = self.carried_out.contains_key(&place);
            let open = before.sessions.contains_key(&origin.session);
            if (repeated || !open) && !same_tables(before, after) {
                let why = if repeated { "was carried out before" } else { "belongs to no open session" };
                return Err(format!("it {why}, and changes the state"));
            }
            self.repeats += u64::from(repeated);
            if repeated || !open {
                return Ok(());
            }
            if after.sessions.get(&origin.session).is_some_and(|s| s.results.contains_key(&origin.sequence)) {
                self.carried_out.entry(place).or_insert(after.applied);
            }
        }
        self.judge_token(before, after, &envelope.command)?;
        judge_admission(before, after, envelope, result)?;
        self.judge_report(before, after, &envelope.command, result)?;
        if before.vms.ptr_eq(&after.vms) { Ok(()) } else { self.judge_vms(before, after) }
    }

    fn judge_token(&mut self, before: &Metadata, after: &Metadata, command: &Command) -> Result<(), String> {
        let Command::CreateToken { secret_hash, .. } = command else { return Ok(()) };
        let Some(made) = self.once.get_mut(secret_hash) else { return Ok(()) };
        let new = after.tokens.keys().any(|id| !before.tokens.contains_key(id));
        if new && std::mem::replace(made, true) {
            return Err("the token was asked for once, and is made again".into());
        }
        Ok(())
    }

    fn judge_report(
        &mut self,
        before: &Metadata,
        after: &Metadata,
        command: &Command,
        result: &CommandResult,
    ) -> Result<(), String> {
        let Command::ReportVm { node, report } = command else { return Ok(()) };
        let Some(vm) = before.vms.get(&report.vm) else { return Ok(()) };
        // A removal is about the assignment, not about one start.
        let current = vm.assignment == Some(Assignment { node: *node, epoch: report.epoch })
            && (vm.incarnation == report.incarnation || report.event == VmReportEvent::Removed);
        self.stale_reports += u64::from(!current);
        if !current && (!before.vms.ptr_eq(&after.vms) || !matches!(result, CommandResult::Refused { .. })) {
            return Err(format!(
                "{} is at {:?} incarnation {}, and believes it",
                vm.name, vm.assignment, vm.incarnation
            ));
        }
        Ok(())
    }

    fn judge_vms(&mut self, before: &Metadata, after: &Metadata) -> Result<(), String> {
        for (id, vm) in &after.vms {
            match before.vms.get(id) {
                None if *id <= self.highest_vm => return Err(format!("the id {id} of a VM is given out again")),
                None => self.highest_vm = *id,
                Some(was) if (vm.epoch, vm.incarnation) < (was.epoch, was.incarnation) => {
                    return Err(format!(
                        "VM {} goes back from epoch {} incarnation {} to epoch {} incarnation {}",
                        vm.name, was.epoch, was.incarnation, vm.epoch, vm.incarnation
                    ));
                }
                Some(_) => {}
            }
            let Some(assignment) = vm.assignment else { continue };
            match self.assigned.insert((*id, assignment.epoch), assignment.node) {
                Some(other) if other != assignment.node => {
                    let Assignment { node, epoch } = assignment;
                    return Err(format!(
                        "VM {} is given to node {node} under epoch {epoch}, as to node {other}",
                        vm.name
                    ));
                }
                _ => {}
            }
        }
        let names: BTreeSet<&str> = after.vms.values().map(|vm| vm.name.as_str()).collect();
        if names.len() != after.vms.len() {
            return Err("two VMs have one name".into());
        }
        Ok(())
    }
}

fn judge_admission(
    before: &Metadata,
    after: &Metadata,
    envelope: &CommandEnvelope,
    result: &CommandResult,
) -> Result<(), String> {
    let Command::AdmitNode { token_id, secret, member } = &envelope.command else { return Ok(()) };
    if matches!(result, CommandResult::Refused { .. }) {
        return if before.nodes == after.nodes { Ok(()) } else { Err("it is refused, and changes the members".into()) };
    }
    if let Some(known) = before.node_of(&member.address.endpoint) {
        let same = known.member.store == member.store;
        return if same { Ok(()) } else { Err(format!("node {} is let in without its data", known.member.node)) };
    }
    let good = |token: &&TokenRecord| {
        token.secret_hash == token_hash(secret) && token.uses_left > 0 && token.expires >= envelope.wall
    };
    let Some(token) = before.tokens.get(token_id).filter(good) else {
        return Err(format!("a node joins with a token that is no good: {:?}", before.tokens.get(token_id)));
    };
    let left = after.tokens.get(token_id).map(|token| token.uses_left);
    if left == Some(token.uses_left - 1) { Ok(()) } else { Err(format!("no use of {token:?} is taken")) }
}

/// Whether nothing but the index differs.
fn same_tables(one: &Metadata, other: &Metadata) -> bool {
    let mut other = other.clone();
    other.applied = one.applied;
    *one == other
}
