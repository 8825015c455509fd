//! Kiln on a real cluster, topic by topic.
//!
//! One program for all topics: it links once, and its tests run side by side, each in a namespace of its own. A test that
//! disturbs the others, as one that kills the operator, is listed as `alone` and runs when they have ended.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]
#![allow(clippy::assigning_clones, reason = "a test sets a field once; what reads best counts")]
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
mod hostile;
mod hostile_git;
mod hostile_input;
mod hostile_registry;
mod lifecycle;
mod limits;
mod max_age;
mod multi_arch;
mod namespaces;
mod network;
mod no_landlock;
mod out_of_memory;
mod own_cluster;
mod pipeline;
mod platforms;
mod policies;
mod pools;
mod private;
mod publishing;
mod quickstart;
mod rbac;
mod recovery;
mod registries;
mod samples;
mod secrets;
mod security;
mod source;
mod sources;
mod status_words;
mod tags;
mod traces;
mod trust;
mod volume;
mod whole_cluster;

kiln_e2e::tests![in
    api_rules, build_options, builders, cache, contexts, diagnosis, dockerfile_failures, emulation, examples, failed_runs,
    failures, hostile, hostile_git, hostile_input, hostile_registry, lifecycle, limits, max_age, multi_arch, namespaces,
    network, no_landlock, out_of_memory, own_cluster, pipeline, platforms, policies, pools, private, publishing, quickstart, rbac, recovery, registries, samples, secrets, security, source, sources,
    status_words, tags, traces, trust, volume, whole_cluster,
];

fn main() -> std::process::ExitCode {
    kiln_e2e::suite::main(tests())
}
