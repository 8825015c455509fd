//! The operator of Kiln: resolves an ImageBuild's source, has its platforms built by the agents of builder pods, pushes the
//! index and moves the tags.
//!
//! One folder a resource, and in each the same verbs: dereference (read what the spec names), plan (pure: what should
//! happen), apply (do it), status (pure: what to report). What they share stands beside them: builders, agents, the
//! registry and Git clients.

pub mod agent;
pub mod api_server;
pub mod builder;
pub mod builder_pool;
pub mod cluster_network;
pub mod condition;
pub mod config;
pub mod context;
pub mod delay;
pub mod git;
pub mod image_build;
pub mod image_build_run;
pub mod leader;
pub mod metrics;
pub mod network_policy;
pub mod operator;
pub mod outage;
pub mod parsers;
#[cfg(not(test))]
pub mod program;
pub mod readable;
pub mod reason;
pub mod references;
pub mod refusal;
pub mod removal;
pub mod server;
pub mod shutdown;
pub mod tags;
pub mod telemetry;
pub mod trace;
pub mod trim;
pub mod turns;
pub mod watches;
