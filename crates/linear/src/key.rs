//! A key of a key-value store, which is put, compared and set, deleted and looked at.

use crate::Model;

/// What is asked of a key. Values are numbers that nobody else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOp {
    Put(u64),
    /// If it is that, or not there.
    Cas(Option<u64>, u64),
    Delete,
    Look,
}

/// What a client is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTold {
    Done,
    /// It was not what it was expected to be.
    Other,
    /// So many keys went.
    Deleted(u64),
    Is(Option<u64>),
}

/// A key: not there, or with a value.
pub struct Key;

impl Model for Key {
    type State = Option<u64>;
    type Operation = KeyOp;
    type Outcome = KeyTold;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn step(&self, state: &Option<u64>, what: &KeyOp, told: Option<&KeyTold>) -> Vec<Option<u64>> {
        let (after, fits) = match what {
            KeyOp::Put(value) => (Some(*value), KeyTold::Done),
            KeyOp::Cas(expected, value) if expected == state => (Some(*value), KeyTold::Done),
            KeyOp::Cas(..) => (*state, KeyTold::Other),
            KeyOp::Delete => (None, KeyTold::Deleted(u64::from(state.is_some()))),
            KeyOp::Look => (*state, KeyTold::Is(*state)),
        };
        if told.is_none_or(|told| *told == fits) { vec![after] } else { Vec::new() }
    }

    fn only_looks(&self, what: &KeyOp, told: &KeyTold) -> bool {
        *what == KeyOp::Look || matches!(told, KeyTold::Other | KeyTold::Deleted(0))
    }
}

#[cfg(test)]
mod tests {
    use super::KeyOp::{Cas, Delete, Look, Put};
    use super::KeyTold::{Deleted, Done, Is, Other};
    use super::*;
    use crate::{History, Nanos, Verdict, judge};

    #[test]
    fn a_key_is_what_was_put_last() {
        let fits = |state, what, told| !Key.step(&state, &what, Some(&told)).is_empty();
        assert!(fits(None, Put(1), Done));
        assert!(fits(Some(1), Cas(Some(1), 2), Done));
        assert!(!fits(Some(1), Cas(Some(3), 2), Done));
        assert!(fits(Some(1), Cas(None, 2), Other));
        assert!(!fits(None, Look, Is(Some(1))));
        assert!(fits(None, Delete, Deleted(0)) && !fits(Some(1), Delete, Deleted(0)));
    }

    /// (what, invoked, answered and told); without an answer its outcome is unknown.
    type Line = (KeyOp, Nanos, Option<(Nanos, KeyTold)>);

    #[track_caller]
    fn check(lines: &[Line], linearizable: bool) {
        let mut history = History::default();
        for (client, (what, invoked, answer)) in lines.iter().enumerate() {
            let id = history.begin((), client, *what, *invoked);
            if let Some((at, told)) = answer {
                history.answered(id, *told, *at);
            }
        }
        match judge(&Key, &history.by_key()[&()], 1_000) {
            Verdict::Linearizable => assert!(linearizable, "{lines:?} passed"),
            Verdict::Impossible(why) => assert!(!linearizable, "{lines:?}: {why}"),
            Verdict::Undecided => panic!("{lines:?} is too much"),
        }
    }

    /// Told at once.
    fn told(what: KeyOp, at: Nanos, told: KeyTold) -> Line {
        (what, at, Some((at + 1, told)))
    }

    #[test]
    fn a_value_that_was_replaced_is_not_read_again() {
        let puts = [told(Put(1), 10, Done), told(Put(2), 20, Done)];
        check(&[&puts[..], &[told(Look, 30, Is(Some(2)))]].concat(), true);
        check(&[&puts[..], &[told(Look, 30, Is(Some(1)))]].concat(), false);
        check(&[&puts[..], &[told(Look, 30, Is(None))]].concat(), false);
        check(&[&puts[..], &[told(Delete, 30, Deleted(1)), told(Look, 40, Is(Some(2)))]].concat(), false);
    }

    #[test]
    fn of_two_who_expect_the_same_one_succeeds() {
        let swap = |value, told| (Cas(Some(1), value), 20, Some((30, told)));
        let put = told(Put(1), 10, Done);
        check(&[put, swap(2, Done), swap(3, Other)], true);
        check(&[put, swap(2, Done), swap(3, Done)], false);
        check(&[put, swap(2, Other), swap(3, Other)], false);
    }

    #[test]
    fn nothing_is_set_where_something_else_was_expected() {
        check(&[told(Put(1), 10, Done), told(Cas(Some(2), 3), 20, Done)], false);
        check(&[told(Put(1), 10, Done), told(Cas(None, 3), 20, Done)], false);
        check(&[told(Cas(Some(2), 3), 10, Other), told(Cas(None, 3), 20, Done), told(Look, 30, Is(Some(3)))], true);
    }

    #[test]
    fn what_nobody_knows_the_outcome_of_may_show_once_however_late() {
        let open = (Cas(Some(1), 2), 20, None);
        let put = told(Put(1), 10, Done);
        check(&[put, open, told(Look, 30, Is(Some(1))), told(Look, 40, Is(Some(2)))], true);
        check(&[put, open, told(Look, 30, Is(Some(2))), told(Look, 40, Is(Some(1)))], false);
        check(&[put, open, told(Put(3), 30, Done), told(Look, 40, Is(Some(2)))], false);
    }
}
