//! Kiln on a real cluster, topic by topic.
//!
//! One program for all topics: it links once, and its tests run side by side, each in a namespace of its own. What needs
//! the cluster for itself is in `whole_cluster.rs`, a program that cargo starts after this one has ended, for it starts test
//! programs in the order of their names.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]
#![allow(clippy::large_futures, reason = "a test's future is polled where it is made, and is not moved about")]

mod api_rules;
mod build_options;
mod builders;
mod cache;
mod contexts;
mod diagnosis;
mod dockerfile_failures;
mod emulation;
mod examples;
mod failed_runs;
mod failures;
mod hostile_git;
mod hostile_input;
mod hostile_registry;
mod lifecycle;
mod limits;
mod max_age;
mod multi_arch;
mod namespaces;
mod network;
mod platforms;
mod pools;
mod private;
mod publishing;
mod registries;
mod secrets;
mod security;
mod source;
mod sources;
mod status_words;
mod traces;
mod trust;
mod volume;
