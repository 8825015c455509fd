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
mod failed_runs;
mod failures;
mod lifecycle;
mod multi_arch;
mod private;
mod security;
mod source;
mod status_words;
mod volume;
