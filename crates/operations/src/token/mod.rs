//! Join tokens: how a new host becomes a member.

pub(crate) mod create;
pub(crate) mod list;
pub(crate) mod revoke;
