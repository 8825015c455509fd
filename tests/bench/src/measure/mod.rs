//! What is measured: a file each.

pub mod at_rest;
pub mod base_image;
pub mod cold;
pub mod many;
pub mod multi_arch;
pub mod operator;
pub mod slow_registry;
pub mod warm;
