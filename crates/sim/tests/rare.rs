//! `make plants`: the mistakes that take more seeds than `make test` has time for are caught, too.

use sim::plants::{RARE, hunt_all, is_rare};

#[test]
fn rare_mistakes_in_the_code_are_caught() {
    let (hunted, hidden) = hunt_all(2_000, is_rare);
    assert!(hidden.is_empty(), "not found in 2,000 seeds: {hidden:?}");
    assert_eq!(hunted, RARE.len());
}
