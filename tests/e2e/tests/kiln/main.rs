//! Kiln on a real cluster, topic by topic.
//!
//! One program for all topics: it links once, and its tests run side by side, each in a namespace of its own. What needs
//! the cluster for itself is in `whole_cluster.rs`, a program that cargo starts after this one has ended, for it starts test
//! programs in the order of their names.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]
#![allow(clippy::large_futures, reason = "a test's future is polled where it is made, and is not moved about")]

mod api_rules;
mod builders;
mod cache;
mod diagnosis;
mod failed_runs;
mod failures;
mod hostile_git;
mod hostile_input;
mod hostile_registry;
mod lifecycle;
mod limits;
mod multi_arch;
mod namespaces;
mod network;
mod private;
mod secrets;
mod security;
mod source;
mod status_words;
mod traces;
mod trust;
mod volume;
