//! The search for an order of a history's operations.
//!
//! A node of the search is the set of operations done so far and the states that may hold after them. From there any
//! operation may come next that was invoked before every operation still to be done was answered. What keeps the tree
//! small:
//!
//! - a node that was visited is never visited again;
//! - a look that fits all states is done at once, without an alternative: whatever order exists, the look can be moved to
//!   its front (a write that changes nothing *here* cannot: it may be needed later);
//! - of open operations that ask for the same, only the one invoked first is tried, and none that would change nothing.

use std::collections::BTreeSet;

use crate::{Model, Nanos, Operation};

/// What came of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none; how far the best one goes.
    Impossible(String),
    /// Given up after as many steps as allowed.
    Undecided,
}

/// Looks for an order of one key's operations, in at most `steps_max` steps of the model.
#[must_use]
pub fn judge<M: Model>(model: &M, operations: &[&Operation<M::Operation, M::Outcome>], steps_max: u64) -> Verdict {
    let mut answered: Vec<Answered<'_, M>> = Vec::new();
    let mut open: Vec<&Operation<M::Operation, M::Outcome>> = Vec::new();
    for operation in operations {
        match &operation.answer {
            Some((at, outcome)) => answered.push(Answered { operation, outcome, at: *at }),
            None => open.push(operation),
        }
    }
    answered.sort_by_key(|it| it.operation.invoked);
    open.sort_by_key(|it| it.invoked);
    let done = Done { answered: vec![false; answered.len()], open: vec![false; open.len()], low: 0, high: 0, count: 0 };
    let search = Search {
        model,
        answered,
        open,
        done,
        seen: BTreeSet::new(),
        steps: 0,
        steps_max,
        furthest: Furthest::default(),
    };
    search.run()
}

struct Answered<'a, M: Model> {
    operation: &'a Operation<M::Operation, M::Outcome>,
    outcome: &'a M::Outcome,
    at: Nanos,
}

/// An operation, by its place among those of its kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pick {
    Answered(usize),
    Open(usize),
}

/// Which operations are done.
struct Done {
    answered: Vec<bool>,
    open: Vec<bool>,
    /// All answered ones below are done.
    low: usize,
    /// No answered one from here on is done.
    high: usize,
    /// Answered ones done.
    count: usize,
}

impl Done {
    /// (low, high) from before, for [`Done::undo`].
    fn mark(&mut self, pick: Pick) -> (usize, usize) {
        let before = (self.low, self.high);
        match pick {
            Pick::Open(at) => self.open[at] = true,
            Pick::Answered(at) => {
                self.answered[at] = true;
                self.count += 1;
                self.high = self.high.max(at + 1);
                while self.answered.get(self.low) == Some(&true) {
                    self.low += 1;
                }
            }
        }
        before
    }

    fn undo(&mut self, pick: Pick, before: (usize, usize)) {
        match pick {
            Pick::Open(at) => self.open[at] = false,
            Pick::Answered(at) => {
                self.answered[at] = false;
                self.count -= 1;
            }
        }
        (self.low, self.high) = before;
    }

    /// The set in few words: operations are done nearly in the order of their invocations.
    fn key(&self) -> Key {
        let window = self.answered.get(self.low..self.high).unwrap_or_default();
        Key { low: self.low, window: words(window), open: words(&self.open) }
    }
}

fn words(bits: &[bool]) -> Vec<u64> {
    bits.chunks(64).map(|chunk| chunk.iter().rev().fold(0, |word, bit| word << 1 | u64::from(*bit))).collect()
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    low: usize,
    window: Vec<u64>,
    open: Vec<u64>,
}

/// What may come next, and the states after it.
type Choice<M> = (Pick, Vec<<M as Model>::State>);

/// A node on the path that is being tried.
struct Node<M: Model> {
    choices: Vec<Choice<M>>,
    next: usize,
    /// What led here, and how to take it back.
    taken: Option<(Pick, (usize, usize))>,
}

/// The best order found, for people.
#[derive(Default)]
struct Furthest {
    count: usize,
    text: String,
}

struct Search<'a, M: Model> {
    model: &'a M,
    answered: Vec<Answered<'a, M>>,
    open: Vec<&'a Operation<M::Operation, M::Outcome>>,
    done: Done,
    seen: BTreeSet<(Key, Vec<M::State>)>,
    steps: u64,
    steps_max: u64,
    furthest: Furthest,
}

impl<M: Model> Search<'_, M> {
    fn run(mut self) -> Verdict {
        let states = self.closed(vec![self.model.initial()]);
        let mut path = vec![self.node(&states, None)];
        while let Some(node) = path.last_mut() {
            if self.done.count == self.answered.len() {
                return Verdict::Linearizable;
            }
            if self.steps > self.steps_max {
                return Verdict::Undecided;
            }
            let Some(choice) = node.choices.get_mut(node.next) else {
                let taken = node.taken;
                path.pop();
                if let Some((pick, before)) = taken {
                    self.done.undo(pick, before);
                }
                continue;
            };
            node.next += 1;
            let (pick, states) = (choice.0, std::mem::take(&mut choice.1));
            let before = self.done.mark(pick);
            if self.seen.insert((self.done.key(), states.clone())) {
                path.push(self.node(&states, Some((pick, before))));
            } else {
                self.done.undo(pick, before);
            }
        }
        let Furthest { count, text } = self.furthest;
        Verdict::Impossible(format!("{count} of {} operations fit; then {text}", self.answered.len()))
    }

    fn node(&mut self, states: &[M::State], taken: Option<(Pick, (usize, usize))>) -> Node<M> {
        let picks = self.picks();
        let mut choices = Vec::new();
        for pick in &picks {
            let after = self.after(states, *pick);
            let changes = after != states;
            match pick {
                _ if after.is_empty() => {}
                Pick::Answered(at) if !changes && self.only_looks(*at) => {
                    choices = vec![(*pick, after)];
                    break;
                }
                Pick::Open(_) if !changes => {}
                _ => choices.push((*pick, after)),
            }
        }
        if self.furthest.text.is_empty() || self.done.count > self.furthest.count {
            self.furthest = Furthest { count: self.done.count, text: self.describe(states, &picks) };
        }
        Node { choices, next: 0, taken }
    }

    fn only_looks(&self, at: usize) -> bool {
        self.model.only_looks(&self.answered[at].operation.what, self.answered[at].outcome)
    }

    /// The operations that may come next, answered ones first: the open ones are needed only where those lead nowhere.
    fn picks(&self) -> Vec<Pick> {
        let mut first_answer = Nanos::MAX;
        let mut picks = Vec::new();
        for (at, it) in self.answered.iter().enumerate().skip(self.done.low) {
            if it.operation.invoked > first_answer {
                break;
            }
            if !self.done.answered[at] {
                first_answer = first_answer.min(it.at);
                picks.push(Pick::Answered(at));
            }
        }
        for (at, it) in self.open.iter().enumerate().filter(|(at, _)| !self.done.open[*at]) {
            let asked_before = |pick: &Pick| matches!(pick, Pick::Open(other) if self.open[*other].what == it.what);
            if it.invoked <= first_answer && !picks.iter().any(asked_before) {
                picks.push(Pick::Open(at));
            }
        }
        picks
    }

    /// The states after one more operation.
    fn after(&mut self, states: &[M::State], pick: Pick) -> Vec<M::State> {
        let (what, outcome) = match pick {
            Pick::Answered(at) => (&self.answered[at].operation.what, Some(self.answered[at].outcome)),
            Pick::Open(at) => (&self.open[at].what, None),
        };
        self.steps += states.len() as u64;
        let after = states.iter().flat_map(|state| self.model.step(state, what, outcome)).collect();
        self.closed(after)
    }

    /// With all that may follow by itself, in order, each once.
    fn closed(&self, states: Vec<M::State>) -> Vec<M::State> {
        let mut all = BTreeSet::new();
        let mut new = states;
        while let Some(state) = new.pop() {
            if !all.contains(&state) {
                new.extend(self.model.drift(&state));
                all.insert(state);
            }
        }
        all.into_iter().collect()
    }

    fn describe(&self, states: &[M::State], picks: &[Pick]) -> String {
        let one = |pick: &Pick| match pick {
            Pick::Answered(at) => {
                let Answered { operation: it, outcome, at } = &self.answered[*at];
                let (from, to) = (seconds(it.invoked), seconds(*at));
                format!("client {} asked for {:?} at {from} s and was told {outcome:?} at {to} s", it.client, it.what)
            }
            Pick::Open(at) => {
                let it = self.open[*at];
                format!("client {} asked for {:?} at {} s, outcome unknown", it.client, it.what, seconds(it.invoked))
            }
        };
        let next: Vec<String> = picks.iter().map(one).collect();
        format!("the state is one of {states:?}, and nothing fits of: {}", next.join("; "))
    }
}

/// With six places.
fn seconds(at: Nanos) -> String {
    format!("{}.{:06}", at / 1_000_000_000, at / 1_000 % 1_000_000)
}
