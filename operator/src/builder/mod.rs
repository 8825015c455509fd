//! Builder pods: their names, their place, their volumes and certificates.
//!
//! A builder belongs to one pool, one trust domain and one architecture; its slot tells it from its siblings. Its name
//! follows from these, so making it twice is harmless.

pub mod authority;
pub mod config;
pub mod ensure;
pub mod identity;
pub mod node;
pub mod observe;
pub mod pick;
pub mod pod;
pub mod profile;
pub mod trust;

pub use authority::Authority;
pub use identity::{BuilderId, TrustDomain};
