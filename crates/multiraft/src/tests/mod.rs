//! The groups of whole clusters under faults, and each rule on its own.

mod checker;
mod cluster;
mod cost;
mod disk;
mod fuzz;
mod order;
mod pace;
mod random;
mod rest;
mod rules;

use base::GroupId;

/// The group that the tests run.
const GROUP: GroupId = GroupId(7);
const ELECTION_TICKS: u32 = 20;
