//! A hostile Dockerfile: what it tries, what is expected of each attempt under each security profile, and what it got.
//!
//! Each attempt and its expectation stand in a table in the code ([`look::ATTEMPTS`] and beside the other tests). What
//! they got is written to `target/hostile-attempts.md`. Nothing here sends to an address that the local cluster does not
//! own.

mod disk;
mod endless;
mod leftover;
mod log;
mod look;
mod processes;
mod report;
mod variables;

kiln_e2e::tests![in disk, endless, leftover, log, look, processes, variables];
