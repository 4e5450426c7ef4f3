//! Every test of the built binary, in one test program.

mod addresses;
mod bad_input;
mod contended;
mod copies;
mod damaged_disk;
mod departures;
mod dev;
mod failover;
mod formation;
mod full_disk;
mod joining;
mod json_output;
mod kafka;
mod kv;
mod main_job;
mod metrics;
mod recover;
mod saturated;
mod settings;
mod shaken;
mod single_node;
mod support;
mod upgrades;
mod verbs;
mod vms;
mod zones;
