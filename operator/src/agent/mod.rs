//! The operator's side of the job API: reaching agents, following the jobs that they run, and what they say of themselves.

pub mod connection;
pub mod facts;
mod follower;
pub mod jobs;
pub mod pulse;
#[cfg(test)]
mod stand_in;

pub use connection::{Agent, Connections};
pub use facts::{Described, Facts};
pub use jobs::{Jobs, Observation, Whole};
