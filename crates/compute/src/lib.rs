//! Virtual machines as pure state.

mod vm;
pub use vm::*;
