//! What Kiln survives: lost answers, its operator away or killed at any point of a build, a leader that is cut off, builders that
//! are lost, an upgrade, and things that arrive late.

mod answers;
mod away;
mod builders;
mod burst;
pub mod host;
mod late;
mod leader;
mod memory;
mod operator;
mod outage;
mod overtaken;
mod points;
mod proxy;
mod rotation;
mod stage;
mod upgrade;

kiln_e2e::tests![in answers, away, builders, burst, late, leader, memory, outage, overtaken, points, rotation, upgrade];
