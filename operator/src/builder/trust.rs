//! What a new builder trusts.

use kiln_crds::CaRef;
use kube::ResourceExt;

use super::config::Bundles;
use crate::context::Context;
use crate::references::{Error, ca_bundle};

/// The pool's CAs, and those that the namespace's ImageBuilds name, so that none of them need have the builder replaced.
/// One that cannot be read matters to its own ImageBuild alone.
pub async fn bundles(context: &Context, namespace: &str, of_pool: &[String]) -> Result<Bundles, Error> {
    let mut bundles: Bundles = of_pool.iter().cloned().collect();
    let mut references: Vec<CaRef> = context
        .stores
        .image_builds
        .state()
        .iter()
        .filter(|build| build.namespace().as_deref() == Some(namespace))
        .filter_map(|build| build.spec.image.as_ref()?.ca_ref.clone())
        .collect();
    references.sort();
    references.dedup();
    for reference in references {
        match ca_bundle(&context.client, namespace, &reference, "image.caRef").await {
            Ok(pem) => {
                bundles.insert(pem);
            }
            Err(Error::Fault(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bundles)
}
