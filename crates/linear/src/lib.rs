//! Linearizability (Herlihy & Wing 1990): whether what clients were told could have come from one copy that does one
//! operation at a time, each at some moment between its invocation and its answer.
//!
//! What clients did is a [`History`]; what one copy does is a [`Model`]; [`judge`] looks for an order. It searches depth
//! first (Wing & Gong 1993) and never visits the same set of operations in the same states twice (Lowe 2017), as
//! porcupine and knossos do. Histories are kept by key, because a history is linearizable if that of each key is
//! (Herlihy & Wing, theorem 1), and short histories are cheap.
//!
//! - An operation whose answer never came, or came as "outcome unknown", stays **open**: it may take effect at any
//!   moment after its invocation, however late, or never. One that was refused for certain is taken out of the history.
//! - Operations of one moment count as concurrent, so that the grain of the clock never accuses anybody.
//! - A model may be nondeterministic, and may change by itself ([`Model::drift`]): the search goes through sets of
//!   states instead of states.
//! - The work is bounded. A search that was given up is [`Verdict::Undecided`]: it proves nothing.
//!
//! Invariant: nothing of muster is known here. The simulator judges its clients with it, and `testkit`, which sees muster
//! only from outside, judges those of real processes.

mod history;
mod key;
mod search;
#[cfg(test)]
mod tests;

pub use history::{History, Operation, OperationId};
pub use key::{Key, KeyOp, KeyTold};
pub use search::{Verdict, judge};

use std::fmt::Debug;

/// Nanoseconds since some moment, the same one for all clients of a history.
pub type Nanos = u64;

/// What one copy does, one operation after the other.
pub trait Model {
    /// As small as the outcomes allow.
    type State: Clone + Ord + Debug;
    /// What can be asked for. Equal ones are interchangeable while they are open.
    type Operation: PartialEq + Debug;
    /// What a caller can be told.
    type Outcome: Debug;

    /// The state before the first operation.
    fn initial(&self) -> Self::State;

    /// The states in which the operation may leave `state`, if its caller was told `outcome`: none if it cannot have been
    /// told that there. Without an outcome, the states in which it may leave it when it takes effect.
    fn step(
        &self,
        state: &Self::State,
        operation: &Self::Operation,
        outcome: Option<&Self::Outcome>,
    ) -> Vec<Self::State>;

    /// Whether the operation, with that outcome, leaves every state as it is: it only tells about it.
    fn only_looks(&self, _operation: &Self::Operation, _outcome: &Self::Outcome) -> bool {
        false
    }

    /// The states that may follow `state` without any operation.
    fn drift(&self, _state: &Self::State) -> Vec<Self::State> {
        Vec::new()
    }
}
