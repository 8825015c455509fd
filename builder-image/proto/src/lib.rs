//! The job API between Kiln's operator and its agents, generated from `agent.proto`; and what an agent
//! asks buildkitd itself, from `buildkitd.proto`.

// Generated code: its documentation is that of the proto file, its style is the generator's.
#![allow(missing_docs, clippy::pedantic)]

tonic::include_proto!("kiln.agent.v1");

/// The part of BuildKit's own API that an agent uses.
pub mod buildkitd {
    tonic::include_proto!("moby.buildkit.v1");
}
