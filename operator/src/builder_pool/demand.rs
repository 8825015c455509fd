//! What the ImageBuilds of a pool want to be there before they build, and the making of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use kiln_crds::image_build::ImageBuildSpec;
use kiln_crds::{BuilderPool, Platform, SecurityProfile};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::select;
use super::warm::Demand;
use crate::builder::ensure::{self, Made};
use crate::builder::node::NodeFacts;
use crate::builder::{BuilderId, TrustDomain, observe, trust};
use crate::context::Context;
use crate::image_build::plan::platforms;
use crate::image_build_run::execution::{Available, Wish, placement};
use crate::references;
use crate::watches::is_queued;

/// What a pool's ImageBuilds want.
#[must_use]
pub fn demand(context: &Context, pool: &BuilderPool, nodes: &[NodeFacts]) -> Demand {
    let least = pool.spec.min_builders.unwrap_or(0) as usize;
    // Such builders can never be made: each try would end in their removal.
    let refused = pool.spec.security_profile == Some(SecurityProfile::UserNamespace)
        && context.api_drops_host_users.load(Ordering::Relaxed);
    if least == 0 || refused {
        return Demand::default();
    }
    let available = Available::of(pool, nodes);
    let mut demand = Demand { least, ..Demand::default() };
    // They may be ten thousand, of a few namespaces.
    let mut theirs: BTreeMap<(String, Option<String>), bool> = BTreeMap::new();
    let mut is_ours = |namespace: &str, named: Option<&str>| {
        *theirs
            .entry((namespace.to_owned(), named.map(str::to_owned)))
            .or_insert_with(|| select::pool(context, namespace, named).is_ok_and(|found| found.uid() == pool.uid()))
    };
    for build in context.stores.image_builds.state() {
        let (Some(namespace), Some(uid)) = (build.namespace(), build.uid()) else { continue };
        if build.metadata.deletion_timestamp.is_some() || !is_ours(&namespace, build.spec.pool.as_deref()) {
            continue;
        }
        let found = context.stores.namespaces.get(&ObjectRef::new(&namespace));
        let found = found.filter(|found| found.metadata.deletion_timestamp.is_none());
        let Some(namespace_uid) = found.and_then(|found| found.uid()) else { continue };
        let named = build.spec.cache.as_ref().and_then(|cache| cache.scope);
        for architecture in architectures(&build.spec, &context.settings.default_platforms, &available) {
            let profile = observe::profile(context, pool, &architecture, nodes);
            let scope = named.unwrap_or(profile.default_scope());
            let domain = TrustDomain::new(&namespace, &namespace_uid, &uid, scope).asked_by(&build.name_any());
            demand.domains.insert(domain.clone());
            demand.places.insert((domain, architecture));
        }
    }
    let queued = context.stores.runs.state_filter(is_queued);
    let waiting = queued.iter().filter_map(|run| Some((run.namespace()?, run.spec.build.pool.as_deref())));
    demand.waiting =
        waiting.filter(|(namespace, named)| is_ours(namespace, *named)).map(|(namespace, _)| namespace).collect();
    demand
}

/// The architectures that an ImageBuild builds on.
fn architectures(build: &ImageBuildSpec, default: &[Platform], available: &Available<'_>) -> BTreeSet<String> {
    let built = platforms(build.platforms.as_deref(), default).unwrap_or_default();
    let built = built.iter().filter(|spec| spec.image.is_none());
    let places = built.filter_map(|spec| {
        let platform: Platform = spec.name.parse().ok()?;
        let build_on = spec.build_on.as_ref().and_then(|name| name.parse::<Platform>().ok());
        let wish = Wish { platform: &platform, build_on: build_on.as_ref(), needs_node: false };
        Some(placement(wish, available).ok()?.architecture)
    });
    places.collect()
}

/// Makes these builders.
pub async fn start(
    context: &Context,
    pool: &BuilderPool,
    nodes: &[NodeFacts],
    ids: &[BuilderId],
) -> Result<(), super::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let of_pool = references::pool_bundles(context, pool).await?;
    for id in ids {
        let bundles = trust::bundles(context, &id.domain, &of_pool).await?;
        let profile = observe::profile(context, pool, &id.architecture, nodes);
        let template = observe::template(context, pool);
        tracing::info!(builder = id.name(), "starting a builder to keep the pool's least number up");
        let made = ensure::make(&context.client, &context.authority, template, pool, id, profile, &bundles).await?;
        if made == Made::WithoutUserNamespace {
            context.api_drops_host_users.store(true, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_build_wants_the_builders_that_its_platforms_are_built_by() {
        let available = Available { nodes: ["amd64", "arm64"].into(), ..Available::default() };
        let of = |platforms: serde_json::Value| {
            let build: ImageBuildSpec = serde_json::from_value(serde_json::json!({"platforms": platforms})).unwrap();
            architectures(&build, &["linux/arm64".parse().unwrap()], &available)
                .into_iter()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(of(serde_json::Value::Null), "arm64", "the operator's default list");
        assert_eq!(of(serde_json::json!([{"name": "linux/amd64"}, {"name": "linux/386"}])), "amd64");
        assert_eq!(of(serde_json::json!([{"name": "linux/arm64", "buildOn": "linux/amd64"}])), "amd64");
        assert_eq!(
            of(serde_json::json!([{"name": "linux/arm64", "image": "r.example/a@sha256:0"}])),
            "",
            "built elsewhere"
        );
    }
}
