//! What can be asked of a cluster: one operation, one file.
//!
//! [`operations`] is the one table of them all; REST routes, OpenAPI, the command line and its help are drawn from it.
//! What handlers need of a node they ask for through [`Ports`].
//!
//! Invariants: this crate knows no door, and decides nothing that the cluster's state machines decide. An operation
//! over every node lists each member, and one that did not answer with the reason: never left out, never invented.

mod cluster;
mod common;
mod group;
#[cfg(test)]
mod key_tests;
mod kv;
mod lease;
mod lock;
mod node;
mod ports;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod token;
mod topic;
mod vm;

pub use kv::plain_text;
pub use ports::{ConsoleFrom, ConsoleLine, ConsoleLog, Core, Images, LineStream, Ports, Random, TaskView, Tasks};

use ops::{Operation, Registry, RegistryError};

/// All operations.
#[must_use]
pub fn operations() -> Vec<Operation<Ports>> {
    vec![
        cluster::consensus::operation(),
        cluster::hold::operation(),
        cluster::release::operation(),
        cluster::status::operation(),
        cluster::version::operation(),
        group::list::operation(),
        kv::cas::operation(),
        kv::delete::operation(),
        kv::get::operation(),
        kv::list::operation(),
        kv::put::operation(),
        kv::watch::operation(),
        lease::grant::operation(),
        lease::keep::operation(),
        lease::list::operation(),
        lease::revoke::operation(),
        lock::acquire::operation(),
        lock::list::operation(),
        lock::release::operation(),
        node::drain::operation(),
        node::leave::operation(),
        node::list::operation(),
        node::remove::operation(),
        node::replace::operation(),
        node::resume::operation(),
        task::list::operation(),
        token::create::operation(),
        token::list::operation(),
        token::revoke::operation(),
        topic::create::operation(),
        topic::delete::operation(),
        topic::describe::operation(),
        topic::list::operation(),
        vm::create::operation(),
        vm::delete::operation(),
        vm::inspect::operation(),
        vm::list::operation(),
        vm::logs::operation(),
        vm::start::operation(),
        vm::stop::operation(),
        vm::wait::operation(),
    ]
}

/// A registry of all operations.
///
/// # Errors
/// If they contradict each other, which a test excludes.
pub fn registry() -> Result<Registry<Ports>, RegistryError> {
    Registry::new(operations())
}
