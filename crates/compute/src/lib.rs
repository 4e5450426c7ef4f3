//! Virtual machines as pure state: what a machine is ([`VmRecord`]), where it should run ([`place`]), what a node must
//! do about it ([`Reconciler`]), and how its phase follows from requests and reports ([`lifecycle`]).
//!
//! Never here: hypervisors, files, clocks. Whatever a node does is an action asked for by the reconciler, and whatever
//! is true is a report under the current epoch and incarnation.

pub mod lifecycle;
mod placement;
mod reconciler;
mod vm;

pub use placement::{Host, Placement, place};
pub use reconciler::{Reconciler, Step};
pub use vm::*;
