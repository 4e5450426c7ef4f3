//! Names that several clients contend for: what they were told of topics and VMs of one name could have come from one
//! copy of the cluster's state (see [`linear`]).

use std::collections::BTreeMap;

use base::{TopicId, VmEpoch, VmId, VmIncarnation};
use compute::{VmDesired, VmRecord};
use linear::{History, Key, KeyOp, KeyTold, Model, OperationId, Verdict, judge};
use metadata::Metadata;

use super::keys::key_in;
use crate::shared::MACHINES as CONTENDED;
use crate::time::Nanos;

/// Steps that the search may take per name. Runs of seconds need some hundred.
const STEPS_MAX: u64 = 200_000;
/// In the place of a client: the guest in a machine.
const GUEST: usize = usize::MAX - 1;

/// See the module.
#[derive(Default)]
pub struct Names {
    topics: History<String, TopicOp, TopicTold>,
    machines: History<String, MachineOp, MachineTold>,
    keys: History<String, KeyOp, KeyTold>,
    /// Machines that powered themselves off, and of which the cluster has not taken note.
    power_offs: BTreeMap<Start, OperationId>,
}

/// One run of a VM.
pub type Start = (VmId, VmEpoch, VmIncarnation);

/// What came of judging all names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub names: u64,
    pub operations: u64,
    /// Names whose search was given up: nothing is known of them.
    pub undecided: u64,
}

/// An operation that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Topic(OperationId),
    Machine(OperationId),
    Key(OperationId),
}

/// What is asked of a topic's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicOp {
    /// Under an id that nobody else uses.
    Create(TopicId),
    Delete,
    Look,
}

/// What a client is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicTold {
    Done,
    Exists,
    Missing,
    Is(Option<TopicId>),
}

/// What is asked of a VM's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineOp {
    Create,
    Start,
    Stop,
    Delete,
    Look,
}

/// What a client is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineTold {
    Created(VmId),
    Done,
    Exists,
    Missing,
    /// It is being deleted.
    Leaving,
    Is(Option<(VmId, Wanted)>),
}

/// What a VM's users want of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    Runs,
    Stands,
    Gone,
}

impl Names {
    /// A client asks for something about a topic.
    pub fn ask_topic(&mut self, name: &str, client: usize, what: TopicOp, now: Nanos) -> Asked {
        Asked::Topic(self.topics.begin(name.to_owned(), client, what, now))
    }

    /// A client asks for something about a VM.
    pub fn ask_machine(&mut self, name: &str, client: usize, what: MachineOp, now: Nanos) -> Asked {
        Asked::Machine(self.machines.begin(name.to_owned(), client, what, now))
    }

    /// A client asks for something about a key.
    pub fn ask_key(&mut self, name: &str, client: usize, what: KeyOp, now: Nanos) -> Asked {
        Asked::Key(self.keys.begin(name.to_owned(), client, what, now))
    }

    /// It was told this of the key.
    pub fn told_key(&mut self, asked: OperationId, told: KeyTold, now: Nanos) {
        self.keys.answered(asked, told, now);
    }

    /// It was told this of the topic.
    pub fn told_topic(&mut self, asked: OperationId, told: TopicTold, now: Nanos) {
        self.topics.answered(asked, told, now);
    }

    /// It was told this of the VM.
    pub fn told_machine(&mut self, asked: OperationId, told: MachineTold, now: Nanos) {
        self.machines.answered(asked, told, now);
    }

    /// A start of a machine of that name powers itself off: whether, and when, the cluster takes that for a stop is open
    /// until [`Names::power_off_told`].
    pub fn powered_off(&mut self, name: &str, start: Start, now: Nanos) {
        if CONTENDED.contains(&name) {
            let asked = self.machines.begin(name.to_owned(), GUEST, MachineOp::Stop, now);
            self.power_offs.insert(start, asked);
        }
    }

    /// The cluster took note of the end of that start, and took it for a stop, or not.
    pub fn power_off_told(&mut self, start: Start, stopped: bool, now: Nanos) {
        match self.power_offs.remove(&start) {
            Some(asked) if stopped => self.machines.answered(asked, MachineTold::Done, now),
            Some(asked) => self.machines.refused(asked),
            None => {}
        }
    }

    /// It was told that nothing was done, for certain.
    pub fn refused(&mut self, asked: Asked) {
        match asked {
            Asked::Topic(id) => self.topics.refused(id),
            Asked::Machine(id) => self.machines.refused(id),
            Asked::Key(id) => self.keys.refused(id),
        }
    }

    /// What a state says of a topic's name.
    #[must_use]
    pub fn topic_in(state: &Metadata, name: &str) -> TopicTold {
        TopicTold::Is(state.topics.get(name).map(|topic| topic.topic_id))
    }

    /// What a state says of a VM's name.
    #[must_use]
    pub fn machine_in(state: &Metadata, name: &str) -> MachineTold {
        let wanted = |vm: &VmRecord| match vm.desired {
            VmDesired::Running => Wanted::Runs,
            VmDesired::Stopped => Wanted::Stands,
            VmDesired::Deleted => Wanted::Gone,
        };
        MachineTold::Is(state.vm(name).map(|vm| (vm.id, wanted(vm))))
    }

    /// The run is over, and a node has this state: everybody looks once more, and all is judged.
    ///
    /// # Errors
    /// What clients were told of a name cannot have come from one copy.
    pub fn finish(&mut self, state: &Metadata, now: Nanos) -> Result<Judged, String> {
        let (topics, machines): (Vec<String>, Vec<String>) =
            (self.topics.by_key().into_keys().collect(), self.machines.by_key().into_keys().collect());
        for name in topics {
            let last = self.topics.begin(name.clone(), usize::MAX, TopicOp::Look, now);
            self.topics.answered(last, Self::topic_in(state, &name), now);
        }
        for name in machines {
            let last = self.machines.begin(name.clone(), usize::MAX, MachineOp::Look, now);
            self.machines.answered(last, Self::machine_in(state, &name), now);
        }
        for name in self.keys.by_key().into_keys().collect::<Vec<_>>() {
            let last = self.keys.begin(name.clone(), usize::MAX, KeyOp::Look, now);
            self.keys.answered(last, key_in(state, &name), now);
        }
        let mut judged = Judged::default();
        judge_all(&Topic, &self.topics, &mut judged)?;
        judge_all(&Machine, &self.machines, &mut judged)?;
        judge_all(&Key, &self.keys, &mut judged)?;
        Ok(judged)
    }
}

fn judge_all<M: Model>(
    model: &M,
    history: &History<String, M::Operation, M::Outcome>,
    judged: &mut Judged,
) -> Result<(), String> {
    for (name, operations) in history.by_key() {
        judged.names += 1;
        judged.operations += operations.len() as u64;
        match judge(model, &operations, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Undecided => judged.undecided += 1,
            Verdict::Impossible(why) => return Err(format!("{name}: {why}")),
        }
    }
    Ok(())
}

/// A topic's name: free, or taken under an id.
struct Topic;

impl Model for Topic {
    type State = Option<TopicId>;
    type Operation = TopicOp;
    type Outcome = TopicTold;

    fn initial(&self) -> Option<TopicId> {
        None
    }

    fn step(&self, state: &Option<TopicId>, what: &TopicOp, told: Option<&TopicTold>) -> Vec<Option<TopicId>> {
        let (after, fits) = match (what, state) {
            (TopicOp::Create(id), None) => (Some(*id), TopicTold::Done),
            (TopicOp::Create(_), Some(_)) => (*state, TopicTold::Exists),
            (TopicOp::Delete, Some(_)) => (None, TopicTold::Done),
            (TopicOp::Delete, None) => (None, TopicTold::Missing),
            (TopicOp::Look, _) => (*state, TopicTold::Is(*state)),
        };
        if told.is_none_or(|told| *told == fits) { vec![after] } else { Vec::new() }
    }

    fn only_looks(&self, what: &TopicOp, told: &TopicTold) -> bool {
        *what == TopicOp::Look || matches!(told, TopicTold::Exists | TopicTold::Missing)
    }
}

/// A VM's name: free, or that of a VM of which something is wanted. A VM whose creation nobody was told of has an id that
/// nobody knows yet.
///
/// Left out is whatever is not a user's word: phases, assignments and restarts happen by themselves, and none of them
/// changes what is wanted. A guest that powers itself off does, and counts as one who asks for a stop. A VM that nobody has yet is gone at once when it is deleted; another one goes when its node has said that it
/// is removed.
struct Machine;

type MachineState = Option<(Option<VmId>, Wanted)>;

impl Model for Machine {
    type State = MachineState;
    type Operation = MachineOp;
    type Outcome = MachineTold;

    fn initial(&self) -> MachineState {
        None
    }

    fn step(&self, state: &MachineState, what: &MachineOp, told: Option<&MachineTold>) -> Vec<MachineState> {
        let fits = |expected: MachineTold| told.is_none_or(|told| *told == expected);
        let when = |fits: bool, after: Vec<MachineState>| if fits { after } else { Vec::new() };
        match (what, *state) {
            (MachineOp::Create, None) => match told {
                Some(MachineTold::Created(id)) => vec![Some((Some(*id), Wanted::Runs))],
                Some(_) => Vec::new(),
                None => vec![Some((None, Wanted::Runs))],
            },
            (MachineOp::Create, Some(_)) => when(fits(MachineTold::Exists), vec![*state]),
            (MachineOp::Look, _) => look(*state, told),
            (_, None) => when(fits(MachineTold::Missing), vec![None]),
            (MachineOp::Delete, Some((id, _))) => when(fits(MachineTold::Done), vec![Some((id, Wanted::Gone)), None]),
            (_, Some((_, Wanted::Gone))) => when(fits(MachineTold::Leaving), vec![*state]),
            (MachineOp::Start, Some((id, _))) => when(fits(MachineTold::Done), vec![Some((id, Wanted::Runs))]),
            (MachineOp::Stop, Some((id, _))) => when(fits(MachineTold::Done), vec![Some((id, Wanted::Stands))]),
        }
    }

    fn only_looks(&self, _: &MachineOp, told: &MachineTold) -> bool {
        matches!(told, MachineTold::Exists | MachineTold::Missing | MachineTold::Leaving)
    }

    fn drift(&self, state: &MachineState) -> Vec<MachineState> {
        if matches!(state, Some((_, Wanted::Gone))) { vec![None] } else { Vec::new() }
    }
}

/// A look may also be the first that tells a VM's id.
fn look(state: MachineState, told: Option<&MachineTold>) -> Vec<MachineState> {
    match (state, told) {
        (_, None) => vec![state],
        (None, Some(MachineTold::Is(None))) => vec![None],
        (Some((id, wanted)), Some(MachineTold::Is(Some((seen, says)))))
            if wanted == *says && id.is_none_or(|id| id == *seen) =>
        {
            vec![Some((Some(*seen), wanted))]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TopicId = TopicId([1; 16]);

    /// Judges operations that came one after the other; what nobody was told is open.
    fn topic(lines: &[(TopicOp, Option<TopicTold>)]) -> bool {
        let mut names = Names::default();
        for (at, (what, told)) in (1..).zip(lines) {
            let Asked::Topic(id) = names.ask_topic("t", 0, *what, at * 10) else { continue };
            if let Some(told) = told {
                names.told_topic(id, *told, at * 10 + 1);
            }
        }
        judge_all(&Topic, &names.topics, &mut Judged::default()).is_ok()
    }

    fn machine(lines: &[(MachineOp, Option<MachineTold>)]) -> bool {
        let mut names = Names::default();
        for (at, (what, told)) in (1..).zip(lines) {
            let Asked::Machine(id) = names.ask_machine("m", 0, *what, at * 10) else { continue };
            if let Some(told) = told {
                names.told_machine(id, *told, at * 10 + 1);
            }
        }
        judge_all(&Machine, &names.machines, &mut Judged::default()).is_ok()
    }

    #[test]
    fn a_topic_is_made_once_and_gone_when_it_was_deleted() {
        use TopicOp::{Create, Delete, Look};
        use TopicTold::{Done, Exists, Is, Missing};
        let created = (Create(ID), Some(Done));
        assert!(topic(&[
            (Delete, Some(Missing)),
            created,
            (Create(TopicId([2; 16])), Some(Exists)),
            (Look, Some(Is(Some(ID))))
        ]));
        assert!(topic(&[created, (Delete, Some(Done)), (Look, Some(Is(None)))]));
        assert!(!topic(&[created, (Look, Some(Is(None)))]), "lost");
        assert!(!topic(&[created, (Delete, Some(Done)), (Look, Some(Is(Some(ID))))]), "came back");
        assert!(!topic(&[created, created]), "made twice");
        let open = (Create(ID), None);
        assert!(topic(&[open, (Look, Some(Is(None))), (Look, Some(Is(Some(ID))))]), "shows later");
        assert!(!topic(&[open, (Look, Some(Is(Some(ID)))), (Delete, Some(Done)), (Look, Some(Is(Some(ID))))]), "twice");
        assert!(!topic(&[open, (Look, Some(Is(Some(TopicId([3; 16])))))]), "another one");
    }

    #[test]
    fn what_users_want_of_a_machine_stays_until_they_want_something_else() {
        use MachineOp::{Create, Delete, Look, Start, Stop};
        use MachineTold::{Created, Done, Exists, Is, Leaving, Missing};
        let is = |id, wanted| (Look, Some(Is(Some((VmId(id), wanted)))));
        let created = (Create, Some(Created(VmId(1))));
        assert!(machine(&[created, is(1, Wanted::Runs), (Stop, Some(Done)), is(1, Wanted::Stands)]));
        assert!(machine(&[created, (Stop, Some(Done)), (Start, Some(Done)), is(1, Wanted::Runs)]));
        assert!(!machine(&[created, (Stop, Some(Done)), is(1, Wanted::Runs)]), "a lost stop");
        assert!(!machine(&[created, is(1, Wanted::Stands)]), "nobody wanted that");
        assert!(!machine(&[created, is(2, Wanted::Runs)]), "another id");
        let deleted = [created, (Delete, Some(Done))];
        let then = |more: &[(MachineOp, Option<MachineTold>)]| machine(&[&deleted[..], more].concat());
        assert!(then(&[is(1, Wanted::Gone), (Stop, Some(Leaving)), (Create, Some(Exists)), (Look, Some(Is(None)))]));
        assert!(then(&[(Start, Some(Missing)), (Create, Some(Created(VmId(2)))), is(2, Wanted::Runs)]));
        assert!(!then(&[(Look, Some(Is(None))), is(1, Wanted::Gone)]), "came back");
        assert!(!then(&[is(1, Wanted::Runs)]), "not deleted");
        assert!(machine(&[(Create, None), is(7, Wanted::Runs), is(7, Wanted::Runs)]));
        assert!(!machine(&[(Create, None), is(7, Wanted::Runs), is(8, Wanted::Runs)]), "two of one creation");
        assert!(
            machine(&[created, (Stop, None), is(1, Wanted::Runs), is(1, Wanted::Stands)]),
            "an open stop shows later"
        );
        assert!(!machine(&[created, (Stop, None), is(1, Wanted::Stands), is(1, Wanted::Runs)]), "and does not vanish");
    }
}
