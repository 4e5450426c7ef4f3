//! Every test of the built binary, in one test program.

mod addresses;
mod bad_input;
mod damaged_disk;
mod departures;
mod dev;
mod failover;
mod formation;
mod full_disk;
mod joining;
mod json_output;
mod kafka;
mod main_job;
mod recover;
mod single_node;
mod support;
mod verbs;
mod vms;
