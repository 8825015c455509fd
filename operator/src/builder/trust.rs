//! What a new builder trusts.

use kiln_crds::CaRef;
use kube::ResourceExt;

use super::TrustDomain;
use super::config::{Bundle, Bundles, LONGEST_REGISTRY};
use crate::context::Context;
use crate::references::{Error, ca_bundle};
use kiln_registry::Repository;

/// The pool's CAs, and those that the ImageBuilds of the trust domain name for their registries, so that none of them need
/// have the builder replaced.
/// One that cannot be read matters to its own ImageBuild alone.
pub async fn bundles(context: &Context, domain: &TrustDomain, of_pool: &[String]) -> Result<Bundles, Error> {
    let namespace = domain.namespace.as_str();
    let mut bundles: Bundles = of_pool.iter().map(|pem| Bundle::of_pool(pem)).collect();
    let mut named: Vec<(CaRef, String)> = context
        .stores
        .image_builds
        .state()
        .iter()
        .filter(|build| build.namespace().as_deref() == Some(namespace))
        .filter(|build| domain.image_build_uid.is_none() || domain.image_build_uid == build.uid())
        .filter_map(|build| {
            let image = build.spec.image.as_ref()?;
            Some((image.ca_ref.clone()?, image.repository.parse::<Repository>().ok()?.registry))
        })
        // Its file has the registry's name: no builder may fail for that of one ImageBuild.
        .filter(|(_, registry)| registry.len() <= LONGEST_REGISTRY)
        .collect();
    named.sort();
    named.dedup();
    for (reference, registry) in named {
        match ca_bundle(&context.client, namespace, &reference, "image.caRef").await {
            Ok(pem) => {
                bundles.insert(Bundle { registry: Some(registry), pem });
            }
            Err(Error::Fault(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bundles)
}
