//! A hostile Dockerfile: what it tries, what is expected of each attempt under each security profile, and what it got.
//!
//! Each attempt and its expectation stand in a table in the code ([`look::ATTEMPTS`] and beside the other tests). What
//! they got is written to `target/hostile-attempts.md`. Nothing here sends to an address that the local cluster does not
//! own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]
#![allow(clippy::large_futures, reason = "a test's future is polled where it is made, and is not moved about")]

mod disk;
mod endless;
mod leftover;
mod log;
mod look;
mod processes;
mod report;
