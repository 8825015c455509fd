//! What Kiln survives: its operator killed at any point of a build, a leader that is cut off, builders that are lost, an
//! upgrade, and things that arrive late.
//!
//! A program of its own: cargo runs test programs one after the other, so that no other test suffers from an operator
//! that is killed. Tests that disturb the operator hold [`OPERATOR`] alone; the others share it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this code runs in tests only")]
#![allow(clippy::large_futures, reason = "a test's future is polled where it is made, and is not moved about")]

mod builders;
mod host;
mod late;
mod leader;
mod operator;
mod points;
mod proxy;
mod rotation;
mod stage;
mod upgrade;

use tokio::sync::RwLock;

/// Held for writing by a test that disturbs the operator, for reading by one that needs it undisturbed.
static OPERATOR: RwLock<()> = RwLock::const_new(());
