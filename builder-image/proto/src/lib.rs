//! The job API between Kiln's operator and its agents, generated from `agent.proto`.

// Generated code: its documentation is that of the proto file, its style is the generator's.
#![allow(missing_docs, clippy::pedantic)]

tonic::include_proto!("kiln.agent.v1");
