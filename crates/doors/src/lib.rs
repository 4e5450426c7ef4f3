//! The doors of a node: REST, OpenAPI and the command line, all drawn from the registry of operations.
//!
//! - [`rest`]: serves the registry over HTTP/1.1; every call goes through [`ops::Pipeline`].
//! - [`openapi`]: the document that describes it.
//! - [`cli`]: clap commands from the registry, and the input that a command line stands for.
//! - [`render`]: outputs as tables for people or JSON for programs.
//! - [`http`]: how an input travels in a request, both ways.
//!
//! Invariant: nothing here knows any one operation.

pub mod cli;
pub mod http;
pub mod openapi;
pub mod render;
pub mod rest;
