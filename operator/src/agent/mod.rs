//! The operator's side of the job API: reaching agents, and following the jobs that they run.

pub mod connection;
pub mod jobs;

pub use connection::{Agent, Connections};
pub use jobs::{Jobs, Observation};
