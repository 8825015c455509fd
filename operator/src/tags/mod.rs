//! The tags that runs move: what templates give, whom a tag belongs to, and who is about to move it.

pub mod claims;
pub mod late;
pub mod moving;
pub mod ownership;
pub mod template;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::TagStatus;

use crate::context::Context;
use crate::references::Fault;

/// Who asks for tags.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The ImageBuild's UID.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// When its run has claimed them. `None`: it has not, and every other claim stands.
    pub claimed_at: Option<Timestamp>,
}

/// Fails with `TagConflict` where another ImageBuild has one of these tags, or moves one now.
pub fn check(context: &Context, wanted: &[TagStatus], asker: Asker<'_>) -> Result<(), Fault> {
    if wanted.is_empty() {
        return Ok(());
    }
    let (builds, runs) = (context.stores.image_builds.state(), context.stores.runs.state());
    match ownership::owner(wanted, asker, &builds, &runs)
        .or_else(|| claims::claimant(wanted, asker, &context.claims.standing(&runs)))
    {
        Some(conflict) => Err(conflict.fault(asker)),
        None => Ok(()),
    }
}
