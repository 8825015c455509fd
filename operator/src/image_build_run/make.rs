//! Makes builders for a run, with the CAs that they are to trust.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_crds::image_build::BuildFailure;
use kiln_crds::{BuilderPool, SecurityProfile};
use kube::ResourceExt;

use super::dereference::Inputs;
use crate::builder::ensure::{self, Made};
use crate::builder::node::NodeFacts;
use crate::builder::observe::profile;
use crate::builder::pod::Template;
use crate::builder::{BuilderId, trust};
use crate::context::Context;
use crate::reason::Reason;

/// Makes them. A failure that is returned is the run's: the cluster cannot do what the pool asks for.
pub async fn make(
    context: &Context,
    pool: &Arc<BuilderPool>,
    template: Template<'_>,
    inputs: &Inputs,
    nodes: &[NodeFacts],
    ids: Vec<BuilderId>,
) -> Result<Option<BuildFailure>, super::Error> {
    // The security profile, and with it the trust domain, may differ from one architecture to the next.
    let make_one = async |id: BuilderId| {
        let mut bundles = trust::bundles(context, &id.domain, &inputs.pool_bundles).await?;
        bundles.extend(inputs.registry.ca.clone());
        let profile = profile(context, pool, &id.architecture, nodes);
        let made = ensure::make(&context.client, &context.authority, template, pool, &id, profile, &bundles).await?;
        if made == Made::WithoutUserNamespace {
            // From now on Auto means Rootless, whose trust domains are others: this builder is not made again.
            context.api_drops_host_users.store(true, Ordering::Relaxed);
        }
        Ok::<_, super::Error>(made)
    };
    let made = futures::future::try_join_all(ids.into_iter().map(make_one)).await?;
    let is_explicit = pool.spec.security_profile == Some(SecurityProfile::UserNamespace);
    Ok((is_explicit && made.contains(&Made::WithoutUserNamespace)).then(|| BuildFailure {
        reason: Reason::SecurityProfileUnsupported.to_string(),
        message: format!(
            "the BuilderPool {} asks for the security profile UserNamespace, which this cluster's API server does not \
             know: upgrade to Kubernetes 1.33, or set securityProfile to Auto or Rootless",
            pool.name_any()
        ),
        ..BuildFailure::default()
    }))
}
