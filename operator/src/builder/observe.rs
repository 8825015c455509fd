//! The builders as the copies of the cluster's objects show them, and their removal.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodCondition};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::BuilderPool;
use kiln_crds::image_build_run::BuilderRef;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::runtime::reflector::ObjectRef;

use super::BuilderId;
use super::ensure;
use super::node::NodeFacts;
use super::pick::{Builder, Volume};
use super::pod::{AGENT_CONTAINER, BUILDKITD_CONTAINER, BUNDLES, LAST_USED, TEMPLATE_HASH, Template, bytes};
use super::profile::{Profile, choose};
use crate::agent::Agent;
use crate::builder_pool::activity::Activity;
use crate::context::Context;

/// How long after its deletion a pod on a healthy node is gone at the latest, beyond its grace period.
const STUCK: SignedDuration = SignedDuration::from_secs(60);

/// Removes a builder's pod, and gives it no job from now on, though the copy of the pods does not show it yet. `uid`: that of
/// the pod that was seen, if there was one.
pub async fn remove_pod(
    context: &Context,
    id: &BuilderId,
    uid: Option<String>,
    grace: Option<u32>,
) -> Result<(), ensure::Error> {
    let Some(uid) = uid else { return Ok(()) };
    let namespace = &context.settings.builders_namespace;
    let removal = ensure::remove_pod(&context.client, namespace, id, &uid, grace);
    marked(context, id, std::slice::from_ref(&uid), removal).await
}

/// Removes a builder with its volume, and counts on neither from now on, though the copies do not show it yet.
pub async fn remove_with_volume(context: &Context, id: &BuilderId) -> Result<(), ensure::Error> {
    let namespace = &context.settings.builders_namespace;
    let claim = context.stores.claims.get(&ObjectRef::new(&id.name()).within(namespace));
    let pod = pod(context, &id.name());
    let (claim, pod) = (claim.as_ref().map(|claim| &claim.metadata), pod.as_ref().map(|pod| &pod.metadata));
    let uids: Vec<String> = claim.into_iter().chain(pod).filter_map(|seen| seen.uid.clone()).collect();
    marked(context, id, &uids, ensure::remove(&context.client, namespace, id, pod, claim)).await
}

/// Removes what has these UIDs, and marks it as removed. Where the API server did not take the removal, it is counted on
/// again: whoever waits for its end would wait for ever.
async fn marked(
    context: &Context,
    id: &BuilderId,
    uids: &[String],
    removal: impl Future<Output = Result<(), ensure::Error>>,
) -> Result<(), ensure::Error> {
    context.removed_pods.retain(|removed| {
        context.stores.pods.find(|pod| pod.metadata.uid.as_deref() == Some(removed)).is_some()
            || context.stores.claims.find(|claim| claim.metadata.uid.as_deref() == Some(removed)).is_some()
    });
    for uid in uids {
        context.removed_pods.set(uid, true);
    }
    let removed = removal.await;
    if removed.is_err() {
        for uid in uids {
            context.removed_pods.remove(uid);
        }
    } else {
        context.jobs.builder_gone(&id.name());
    }
    removed
}

/// Whether a pod or a volume is on its way out: marked as deleted, or removed though the copy does not show it yet.
#[must_use]
pub fn is_going(context: &Context, object: &ObjectMeta) -> bool {
    object.deletion_timestamp.is_some() || object.uid.as_deref().is_some_and(|uid| context.removed_pods.get(uid))
}

/// Whether a pod takes no job any more, for it is on its way out or has no future.
#[must_use]
pub fn is_leaving(context: &Context, pod: &Pod) -> bool {
    is_going(context, &pod.metadata) || has_ended(pod) || is_breaking(pod)
}

/// Whether what runs in a pod is about to end or just has: something evicts it, or one of its containers is down. The kubelet
/// says so before it says that the pod has failed, and meanwhile each job that was sent there would be one more attempt lost.
fn is_breaking(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let is_evicted = |condition: &PodCondition| condition.type_ == "DisruptionTarget" && condition.status == "True";
    let own = [BUILDKITD_CONTAINER, AGENT_CONTAINER];
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let mut own = containers.filter(|container| own.contains(&container.name.as_str()));
    status.conditions.iter().flatten().any(is_evicted)
        || own.any(|container| container.state.as_ref().is_some_and(|state| state.terminated.is_some()))
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
        otlp_endpoint: context.settings.otlp_endpoint.as_deref(),
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
    let activity = Activity::of(&context.stores.runs.state(), context.jobs.places());
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
            let jobs = activity.jobs.get(&name).copied().unwrap_or(0);
            Some(Builder {
                jobs: u32::try_from(jobs).unwrap_or(u32::MAX),
                bundles,
                current,
                taken: activity.taken.contains(&name),
                terminating: is_leaving(context, pod),
                stuck: is_stuck(pod, now),
                suspect: context.jobs.suspect_since(&name).is_some(),
                id,
            })
        })
        .collect()
}

/// The pool's cache volumes as they stand.
#[must_use]
pub fn volumes(context: &Context, pool: &BuilderPool) -> Vec<Volume> {
    let claims = context.stores.claims.state();
    let of_pool = claims.iter().filter_map(|claim| {
        let id = BuilderId::of(&claim.metadata).filter(|id| id.pool == pool.name_any())?;
        let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
        Some(Volume {
            size: requests.get("storage").and_then(bytes).unwrap_or(0),
            last_used: last_used(claim)?,
            terminating: is_going(context, &claim.metadata),
            id,
        })
    });
    of_pool.collect()
}

/// When a volume was last known to be in use, or was made.
#[must_use]
pub fn last_used(claim: &PersistentVolumeClaim) -> Option<Timestamp> {
    let used = claim.annotations().get(LAST_USED).and_then(|time| time.parse().ok());
    used.into_iter().chain(claim.creation_timestamp().map(|time| time.0)).max()
}

/// Asks a pool's builders what they emulate now, where the pool emulates at all: handlers may have been installed on their
/// nodes since they came up. An answer that is news changes the pool's status, and that wakes the builds that wait.
pub fn describe_again(context: &Context, pool: &BuilderPool) {
    if !pool.spec.allow.as_ref().and_then(|allow| allow.emulation).unwrap_or(false) {
        return;
    }
    for pod in context.stores.pods.state() {
        let Some(id) = BuilderId::of(&pod.metadata).filter(|id| id.pool == pool.name_any()) else { continue };
        if let (Some(uid), Some((agent, _))) = (pod.uid(), ready(&pod)) {
            context.described.ask_again(&uid, &id.pool, agent);
        }
    }
}

/// Whether a builder has said what it runs, and its pool's status knows it: until then nothing is to be emulated there.
#[must_use]
pub fn is_described(context: &Context, pool: &BuilderPool, builder: &BuilderRef) -> bool {
    let known = pool.status.iter().flat_map(|status| &status.builders).find(|known| known.name == builder.pod);
    context.described.facts(&builder.uid).is_some() && known.is_some_and(|known| known.buildkit.is_some())
}

/// The pod of the builder of this name.
#[must_use]
pub fn pod(context: &Context, builder: &str) -> Option<Arc<Pod>> {
    let key = ObjectRef::new(builder).within(&context.settings.builders_namespace);
    context.stores.pods.get(&key)
}

/// How a pod's buildkitd ended last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ended {
    /// When, to the second.
    pub at: Timestamp,
    /// Whether its container was killed for want of memory.
    pub for_memory: bool,
}

/// How a pod's buildkitd ended last, as its kubelet tells. `None`: it has not, or the kubelet has not told yet.
#[must_use]
pub fn buildkitd_ended(pod: &Pod) -> Option<Ended> {
    let containers = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let buildkitd = containers.iter().find(|container| container.name == BUILDKITD_CONTAINER)?;
    let [now, last] = [&buildkitd.state, &buildkitd.last_state].map(|state| state.as_ref()?.terminated.as_ref());
    let ended = now.or(last)?;
    Some(Ended { at: ended.finished_at.as_ref()?.0, for_memory: ended.reason.as_deref() == Some("OOMKilled") })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_given_no_job() {
        let container = |name: &str, state: &str| {
            serde_json::json!([{
                "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {state: if state == "terminated" { serde_json::json!({"exitCode": 0}) } else { serde_json::json!({}) }},
            }])
        };
        let condition = |kind: &str, status: &str| serde_json::json!([{"type": kind, "status": status}]);
        let running = serde_json::json!({"phase": "Running", "podIP": "10.0.0.1"});
        for (field, value, expected) in [
            ("phase", "Running".into(), false),
            ("phase", "Pending".into(), false),
            ("phase", "Failed".into(), true),
            ("phase", "Succeeded".into(), true),
            ("conditions", condition("DisruptionTarget", "True"), true),
            ("conditions", condition("DisruptionTarget", "False"), false),
            ("conditions", condition("Ready", "True"), false),
            ("containerStatuses", container("agent", "terminated"), true),
            ("containerStatuses", container("agent", "waiting"), false),
            ("containerStatuses", container("agent", "running"), false),
            ("initContainerStatuses", container("buildkitd", "terminated"), true),
            ("initContainerStatuses", container("buildkitd", "running"), false),
            // Somebody's webhook adds containers that end when they have done their work.
            ("initContainerStatuses", container("other", "terminated"), false),
        ] {
            let mut status = running.clone();
            status[field] = value;
            let pod: Pod = serde_json::from_value(serde_json::json!({"status": status})).unwrap();
            assert_eq!(has_ended(&pod) || is_breaking(&pod), expected, "{status}");
        }
        assert!(!has_ended(&Pod::default()) && !is_breaking(&Pod::default()));
    }

    #[test]
    fn how_buildkitd_ended_last() {
        let ended = |second: i64, reason: &str| {
            let at = Timestamp::from_second(second).unwrap().to_string();
            serde_json::json!({"terminated": {"exitCode": 137, "reason": reason, "finishedAt": at}})
        };
        let at = |second, for_memory| Some(Ended { at: Timestamp::from_second(second).unwrap(), for_memory });
        let none = serde_json::json!({});
        for (name, state, last_state, expected) in [
            ("buildkitd", &none, &ended(5, "OOMKilled"), at(5, true)),
            ("buildkitd", &none, &ended(5, "Error"), at(5, false)),
            // Not started again yet.
            ("buildkitd", &ended(9, "OOMKilled"), &ended(5, "Error"), at(9, true)),
            ("buildkitd", &none, &none, None),
            ("agent", &none, &ended(5, "OOMKilled"), None),
        ] {
            let container = serde_json::json!({
                "name": name, "image": "", "imageID": "", "ready": true, "restartCount": 1,
                "state": state, "lastState": last_state,
            });
            let pod = serde_json::json!({"status": {"initContainerStatuses": [container]}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(buildkitd_ended(&pod), expected, "{name} {state} {last_state}");
        }
        assert_eq!(buildkitd_ended(&Pod::default()), None);
    }
}
