//! Histories with known answers, a comparison with the search that tries every order, and the cost of a long one.

use base::SplitMix64;

use super::*;

/// A register: the textbook's example. `None` was never written.
struct Register;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Write(u8),
    Read,
    /// Writes `to` where `from` stands; says whether it did.
    Swap {
        from: u8,
        to: u8,
    },
    /// Writes one of two values, nobody knows which.
    Either(u8, u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Done,
    Is(u8),
    Swapped(bool),
}

impl Model for Register {
    type State = u8;
    type Operation = Op;
    type Outcome = Told;

    fn initial(&self) -> u8 {
        0
    }

    fn step(&self, state: &u8, operation: &Op, outcome: Option<&Told>) -> Vec<u8> {
        match (operation, outcome) {
            (Op::Write(value), _) => vec![*value],
            (Op::Read, Some(Told::Is(value))) if value != state => Vec::new(),
            (Op::Read, _) => vec![*state],
            (Op::Swap { from, .. }, Some(Told::Swapped(did))) if (from == state) != *did => Vec::new(),
            (Op::Swap { from, to }, _) => vec![if from == state { *to } else { *state }],
            (Op::Either(one, other), _) => vec![*one, *other],
        }
    }

    fn only_looks(&self, operation: &Op, _: &Told) -> bool {
        matches!(operation, Op::Read)
    }
}

/// (what, invoked, answered and told).
type Line = (Op, u64, Option<(u64, Told)>);

fn verdict_within(lines: &[Line], steps_max: u64) -> Verdict {
    let mut history = History::default();
    for (client, (what, invoked, answer)) in lines.iter().enumerate() {
        let id = history.begin((), client, *what, *invoked);
        if let Some((at, told)) = answer {
            history.answered(id, *told, *at);
        }
    }
    judge(&Register, &history.by_key().remove(&()).unwrap_or_default(), steps_max)
}

#[track_caller]
fn check(lines: &[Line], linearizable: bool) {
    match verdict_within(lines, 100_000) {
        Verdict::Linearizable => assert!(linearizable, "{lines:?} passed"),
        Verdict::Impossible(why) => assert!(!linearizable, "{lines:?}: {why}"),
        Verdict::Undecided => panic!("{lines:?} is too much"),
    }
}

fn write(value: u8, from: u64, to: u64) -> Line {
    (Op::Write(value), from, Some((to, Told::Done)))
}

fn read(value: u8, from: u64, to: u64) -> Line {
    (Op::Read, from, Some((to, Told::Is(value))))
}

fn lost(what: Op, from: u64) -> Line {
    (what, from, None)
}

#[test]
fn nothing_and_one_after_the_other_is_fine() {
    check(&[], true);
    check(&[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)], true);
    check(&[read(1, 1, 2)], false);
}

#[test]
fn concurrent_reads_may_see_either_value_and_then_never_the_older() {
    check(&[write(1, 1, 10), read(0, 2, 3), read(1, 4, 5)], true);
    check(&[write(1, 1, 10), read(1, 2, 3), read(0, 4, 5)], false);
    check(&[write(1, 1, 10), read(1, 2, 5), read(0, 4, 6)], true);
}

#[test]
fn a_stale_read_is_noticed() {
    check(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)], false);
}

#[test]
fn a_lost_update_is_noticed() {
    let swap = |to, from, at| (Op::Swap { from: 0, to }, from, Some((at, Told::Swapped(true))));
    check(&[swap(1, 1, 5), swap(2, 2, 6)], false);
    check(&[swap(1, 1, 5), (Op::Swap { from: 0, to: 2 }, 2, Some((6, Told::Swapped(false))))], true);
}

#[test]
fn operations_of_one_moment_are_concurrent() {
    check(&[write(1, 1, 5), read(0, 5, 5)], true);
    check(&[write(1, 1, 5), read(0, 6, 6)], false);
}

#[test]
fn an_open_write_may_show_late_or_never() {
    let open = lost(Op::Write(1), 1);
    check(&[open, read(0, 2, 3), read(0, 4, 5)], true);
    check(&[open, read(0, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9), read(1, 10, 11)], true);
    check(&[read(1, 1, 2), lost(Op::Write(1), 3)], false);
}

#[test]
fn an_open_write_that_showed_does_not_vanish_and_does_not_show_twice() {
    let open = lost(Op::Write(1), 1);
    check(&[open, read(1, 2, 3), read(0, 4, 5)], false);
    check(&[open, read(1, 2, 3), write(2, 4, 5), read(1, 6, 7)], false);
    check(&[open, lost(Op::Write(1), 1), read(1, 2, 3), write(2, 4, 5), read(1, 6, 7)], true);
}

#[test]
fn a_write_that_changes_nothing_where_it_could_be_done_first_may_be_needed_later() {
    check(&[write(0, 1, 10), write(1, 2, 3), read(0, 4, 5)], true);
}

#[test]
fn a_refused_operation_never_was() {
    let mut history: History<char, Op, Told> = History::default();
    let id = history.begin('a', 0, Op::Write(1), 1);
    history.refused(id);
    assert!(history.is_empty());
}

#[test]
fn a_choice_of_the_system_is_seen_once_and_for_all() {
    let either = (Op::Either(1, 2), 1, Some((2, Told::Done)));
    check(&[either, read(2, 3, 4), read(2, 5, 6)], true);
    check(&[either, read(2, 3, 4), read(1, 5, 6)], false);
    check(&[either, read(3, 3, 4)], false);
}

/// A lamp that goes out by itself.
struct Lamp;

impl Model for Lamp {
    type State = bool;
    type Operation = bool;
    type Outcome = bool;

    fn initial(&self) -> bool {
        false
    }

    fn step(&self, state: &bool, switch_on: &bool, outcome: Option<&bool>) -> Vec<bool> {
        match (switch_on, outcome) {
            (true, _) => vec![true],
            (false, Some(seen)) if seen != state => Vec::new(),
            (false, _) => vec![*state],
        }
    }

    fn drift(&self, state: &bool) -> Vec<bool> {
        if *state { vec![false] } else { Vec::new() }
    }
}

#[test]
fn what_changes_by_itself_does_so_at_any_time_and_in_one_direction() {
    let seen = |lit: &[bool]| {
        let mut history = History::default();
        let on = history.begin((), 0, true, 1);
        history.answered(on, true, 2);
        for (at, lit) in (3..).zip(lit) {
            let look = history.begin((), 0, false, at * 10);
            history.answered(look, *lit, at * 10 + 1);
        }
        judge(&Lamp, &history.by_key()[&()], 1_000)
    };
    assert_eq!(seen(&[true, true, false, false]), Verdict::Linearizable);
    assert!(matches!(seen(&[true, false, true]), Verdict::Impossible(_)));
}

#[test]
fn what_is_too_much_is_undecided_and_says_so() {
    // Twelve writes at once, and a read of something that none of them wrote.
    let mut lines: Vec<Line> = (1..=12).map(|value| write(value, 1, 100)).collect();
    lines.push(read(77, 1, 100));
    assert_eq!(verdict_within(&lines, 1_000), Verdict::Undecided);
}

#[test]
fn the_text_of_a_failure_names_who_was_told_what() {
    let Verdict::Impossible(why) = verdict_within(&[write(1, 1, 2), read(5, 3, 4)], 100) else { panic!("passed") };
    assert!(why.contains("1 of 2") && why.contains("client 1") && why.contains("Is(5)"), "{why}");
}

// ---- Against every order ----

/// A history of a few operations of a few clients, mostly plausible: a real register serves them at random moments, and
/// now and then something else is told.
fn random_history(random: &mut SplitMix64) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut register = 0;
    for _ in 0..random.between(2, 7) {
        let what = match random.below(5) {
            0 | 1 => Op::Read,
            2 | 3 => Op::Write(random.below(3) as u8),
            _ => Op::Swap { from: random.below(3) as u8, to: random.below(3) as u8 },
        };
        let invoked = random.below(12);
        let answered = invoked + random.below(8);
        let mut told = match what {
            Op::Read => Told::Is(register),
            Op::Swap { from, .. } => Told::Swapped(from == register),
            _ => Told::Done,
        };
        register = Register.step(&register, &what, Some(&told))[0];
        if random.chance(150_000) {
            told = match told {
                Told::Is(_) => Told::Is(random.below(3) as u8),
                Told::Swapped(did) => Told::Swapped(!did),
                Told::Done => Told::Done,
            };
        }
        lines.push((what, invoked, (!random.chance(250_000)).then_some((answered, told))));
    }
    lines
}

/// Every order that real time allows, one after the other.
fn brute_force(lines: &[Line], done: &mut Vec<bool>, state: u8) -> bool {
    let waiting =
        |done: &[bool]| (0..lines.len()).filter(|at| !done[*at] && lines[*at].2.is_some()).collect::<Vec<_>>();
    let Some(first) = waiting(done).iter().filter_map(|at| lines[*at].2.map(|(at, _)| at)).min() else { return true };
    for at in 0..lines.len() {
        let (what, invoked, answer) = &lines[at];
        if done[at] || *invoked > first {
            continue;
        }
        done[at] = true;
        let after = Register.step(&state, what, answer.as_ref().map(|(_, told)| told));
        let found = after.into_iter().any(|state| brute_force(lines, done, state));
        done[at] = false;
        if found {
            return true;
        }
    }
    false
}

#[test]
fn the_search_says_what_trying_every_order_says() {
    let mut random = SplitMix64::new(20_250_101);
    let mut counts = [0, 0];
    for _ in 0..20_000 {
        let lines = random_history(&mut random);
        let expected = brute_force(&lines, &mut vec![false; lines.len()], 0);
        check(&lines, expected);
        counts[usize::from(expected)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 3_000), "the histories are all alike: {counts:?}");
}

#[test]
fn ten_thousand_operations_over_a_hundred_keys_are_cheap() {
    let mut random = SplitMix64::new(7);
    let mut history = History::default();
    let mut registers = [0u8; 100];
    let mut free_at = [0u64; 5];
    for _ in 0..10_000 {
        // Whoever is free first asks next, and the register serves at once: in the order of time.
        let client = (0..5).min_by_key(|client| free_at[*client]).expect("five clients");
        let key = random.below(100) as usize;
        let invoked = free_at[client];
        let answered = invoked + random.between(1, 50);
        free_at[client] = answered + random.between(0, 10);
        let what = if random.chance(500_000) { Op::Read } else { Op::Write(random.below(200) as u8) };
        let told = if what == Op::Read { Told::Is(registers[key]) } else { Told::Done };
        registers[key] = Register.step(&registers[key], &what, Some(&told))[0];
        let id = history.begin(key, client, what, invoked);
        // One write in fifty is never answered; here it took effect all the same.
        if what == Op::Read || !random.chance(20_000) {
            history.answered(id, told, answered);
        }
    }
    let keys = history.by_key();
    assert_eq!(keys.len(), 100);
    let steps_max = 2_000;
    for operations in keys.values() {
        let verdict = judge(&Register, operations, steps_max);
        assert_eq!(verdict, Verdict::Linearizable, "{} operations, in at most {steps_max} steps", operations.len());
    }
}
