//! What the end-to-end tests of Kiln share: a tenant namespace, Git repositories, a look into the registry, and waiting.
//!
//! The tests need a real cluster with Kiln installed, and the addresses in `.cluster/env`; see [`cluster::Cluster`].
//! Here a panic is a test's failure, so its message says what was expected and what there was instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "this code runs in tests only")]
#![allow(clippy::large_futures, reason = "a test's future is polled where it is made, and is not moved about")]

pub mod admission;
pub mod audit;
pub mod build;
pub mod builder;
pub mod cluster;
mod costs;
pub mod diagnosis;
pub mod elf;
pub mod git;
pub mod git_front;
pub mod git_ssh;
pub mod hostile_server;
mod leftovers;
pub mod lfs;
pub mod page;
pub mod plain_front;
pub mod pod;
pub mod pool;
pub mod recorder;
pub mod registries;
pub mod registry;
pub mod registry_front;
pub mod robots;
pub mod served;
pub mod shell;
pub mod stand_in;
pub mod suite;
pub mod tenant;
pub mod tls_front;
pub mod wait;
pub mod web;

pub use build::Build;
pub use cluster::Cluster;
pub use git::Repository;
pub use tenant::Tenant;
