//! The builders as the copies of the cluster's objects show them, and their removal.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::BuilderPool;
use kiln_crds::image_build_run::BuilderRef;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::BuilderId;
use super::ensure;
use super::node::NodeFacts;
use super::pick::Builder;
use super::pod::{BUNDLES, TEMPLATE_HASH, Template};
use super::profile::{Profile, choose};
use crate::agent::Agent;
use crate::context::Context;
use crate::image_build_run::plan::job_id;

/// How long after its deletion a pod on a healthy node is gone at the latest, beyond its grace period.
const STUCK: SignedDuration = SignedDuration::from_secs(60);

/// Removes a builder's pod, and gives it no job from now on, though the copy of the pods does not show it yet.
pub async fn remove_pod(
    context: &Context,
    id: &BuilderId,
    uid: Option<String>,
    grace: Option<u32>,
) -> Result<(), ensure::Error> {
    context
        .removed_pods
        .retain(|removed| context.stores.pods.find(|pod| pod.metadata.uid.as_deref() == Some(removed)).is_some());
    if let Some(uid) = &uid {
        context.removed_pods.set(uid, true);
    }
    ensure::remove_pod(&context.client, &context.settings.builders_namespace, id, uid, grace).await?;
    context.jobs.builder_gone(&id.name());
    Ok(())
}

/// Whether a pod should have been gone long since, as on a lost node.
#[must_use]
pub fn is_stuck(pod: &Pod, now: Timestamp) -> bool {
    pod.metadata.deletion_timestamp.as_ref().is_some_and(|deleted| now.duration_since(deleted.0) > STUCK)
}

/// What the pool's builders are made from.
#[must_use]
pub fn template<'a>(context: &'a Context, pool: &'a BuilderPool) -> Template<'a> {
    Template {
        pool: &pool.spec,
        image: &context.settings.builder_image,
        pull_secrets: &context.settings.builder_pull_secrets,
        namespace: &context.settings.builders_namespace,
        authority: context.authority.certificate(),
    }
}

/// The profile of a pool's builders of one architecture.
#[must_use]
pub fn profile(context: &Context, pool: &BuilderPool, architecture: &str, nodes: &[NodeFacts]) -> Profile {
    choose(&pool.spec, architecture, nodes, context.api_drops_host_users.load(Ordering::Relaxed))
}

/// The pool's builders as they stand, with the jobs that they hold or that a place is kept for.
#[must_use]
pub fn builders(
    context: &Context,
    pool: &BuilderPool,
    template: Template<'_>,
    nodes: &[NodeFacts],
    now: Timestamp,
) -> Vec<Builder> {
    let held = held(context);
    // Once for each profile: it is a hash of all that a pod is made from.
    let hashes = [Profile::UserNamespace, Profile::Rootless].map(|profile| (profile, template.hash(profile)));
    context
        .stores
        .pods
        .state()
        .iter()
        .filter_map(|pod| {
            let id = BuilderId::of(&pod.metadata).filter(|id| id.pool == pool.name_any())?;
            let annotation = |key: &str| pod.annotations().get(key).map(String::as_str).unwrap_or_default();
            let bundles = annotation(BUNDLES).split(',').filter(|hash| !hash.is_empty()).map(str::to_owned).collect();
            let profile = profile(context, pool, &id.architecture, nodes);
            let current = hashes.iter().any(|(of, hash)| *of == profile && annotation(TEMPLATE_HASH) == hash);
            let name = pod.name_any();
            let jobs = held.iter().filter(|(_, builder)| *builder == name).count();
            let removed = pod.metadata.uid.as_deref().is_some_and(|uid| context.removed_pods.get(uid));
            Some(Builder {
                jobs: u32::try_from(jobs).unwrap_or(u32::MAX),
                bundles,
                current,
                terminating: removed || pod.metadata.deletion_timestamp.is_some(),
                stuck: is_stuck(pod, now),
                id,
            })
        })
        .collect()
}

/// Jobs and the builders that hold them: from the runs' statuses, and from what is about to be written there.
#[must_use]
pub fn held(context: &Context) -> HashSet<(String, String)> {
    let mut held: HashSet<(String, String)> = context.jobs.places().into_iter().collect();
    for run in context.stores.runs.state() {
        for platform in run.status.iter().flat_map(|status| &status.platforms) {
            if let Some(builder) = platform.builder.as_ref().filter(|_| platform.phase.is_assigned()) {
                let job = job_id(&run.uid().unwrap_or_default(), &platform.name, platform.attempt);
                held.insert((job, builder.pod.clone()));
            }
        }
    }
    held
}

/// The pod of the builder of this name.
#[must_use]
pub fn pod(context: &Context, builder: &str) -> Option<Arc<Pod>> {
    let key = ObjectRef::new(builder).within(&context.settings.builders_namespace);
    context.stores.pods.get(&key)
}

/// The agent of a pod that has an address, and the pod as a status names it. It is not waited for to be Ready.
#[must_use]
pub fn ready(pod: &Pod) -> Option<(Agent, BuilderRef)> {
    if has_ended(pod) {
        return None;
    }
    let address: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let builder = BuilderRef { pod: pod.name_any(), uid: pod.uid()?, node };
    Some((Agent { builder: pod.name_any(), address }, builder))
}

/// Whether a pod has ended for good, as after an eviction.
#[must_use]
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}
