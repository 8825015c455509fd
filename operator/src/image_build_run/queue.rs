//! The queue of a pool: the platforms of all its runs that wait for a builder, in the order in which they are served.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus};
use kiln_crds::{BuilderPool, ImageBuildRun, Platform};
use kube::ResourceExt;

use super::execution::{Available, Impossible, Placement, Wish, placement};
use super::memory::wants_all;
use super::order::fair;
use super::plan::{due, job_id};
use super::waiting::named;
use crate::builder::node::NodeFacts;
use crate::builder::observe::{is_leaving, pod, profile};
use crate::builder::pick::Request;
use crate::builder::profile::Profile;
use crate::builder::{BuilderId, TrustDomain};
use crate::context::Context;
use crate::reason::Reason;

/// All queued platforms of a pool in the order in which they are served ([`fair`]).
#[derive(Default)]
pub struct Queue {
    /// Which of them are one run's own: the platform's index, how it comes to a builder, and where it is built.
    pub own: Vec<(usize, Turn, Placement)>,
    /// What each platform wants.
    pub requests: Vec<Request>,
    /// Why one of the run's own can never be built.
    pub impossible: Option<BuildFailure>,
}

/// How a platform comes to a builder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Turn {
    /// By what is chosen for the request at this position.
    Queued(usize),
    /// It has been given this one: the copy of its run is out of date.
    Given(BuilderId),
}

/// Queues them. `bundles`: the CAs that this run needs.
pub fn queue(
    context: &Context,
    run: &ImageBuildRun,
    pool: &BuilderPool,
    nodes: &[NodeFacts],
    bundles: &[String],
    platforms: &[PlatformStatus],
    now: Timestamp,
) -> Queue {
    let available = Available::of(pool, nodes);
    let mut runs: Vec<Arc<ImageBuildRun>> = context.stores.runs.state_filter(|other| {
        other.uid() != run.uid()
            && !other.status.as_ref().is_some_and(|status| status.phase.is_final())
            && super::pool(context, other).is_ok_and(|theirs| theirs.uid() == pool.uid())
    });
    runs.push(Arc::new(run.clone()));
    runs.sort_by_key(|run| (run.creation_timestamp().map(|time| time.0), run.namespace(), run.name_any()));
    let has_queued = |other: &Arc<ImageBuildRun>| {
        let theirs = other.status.as_ref().map(|status| status.platforms.as_slice()).unwrap_or_default();
        other.uid() == run.uid() || theirs.iter().any(|platform| platform.phase == PlatformPhase::Queued)
    };
    let (waiting, working): (Vec<_>, Vec<_>) = runs.into_iter().partition(has_queued);
    let mut held = BTreeMap::new();
    let holds = |run: &&Arc<ImageBuildRun>| {
        run.status.iter().flat_map(|status| &status.platforms).any(|platform| platform.phase.is_assigned())
    };
    for namespace in working.iter().filter(holds).filter_map(|run| run.namespace()) {
        *held.entry(namespace).or_default() += 1;
    }
    let last = last_builders(context, &waiting);
    let runs = fair(waiting, |run| run.namespace().unwrap_or_default(), &held);
    let mut queue = Queue::default();
    for other in runs {
        let is_own = other.uid() == run.uid();
        let theirs = other.status.as_ref().map(|status| status.platforms.as_slice()).unwrap_or_default();
        for (index, platform) in if is_own { platforms } else { theirs }.iter().enumerate() {
            let waits = platform.phase == PlatformPhase::Queued
                && due(other.metadata.uid.as_deref().unwrap_or_default(), platform).is_none_or(|due| due <= now);
            if !waits {
                continue;
            }
            let Some(placement) = place_platform(&other, platform, &available) else { continue };
            let placement = match placement {
                Ok(placement) => placement,
                Err(why) if is_own => {
                    queue.impossible.get_or_insert_with(|| BuildFailure {
                        platform: Some(platform.name.clone()),
                        reason: Reason::PlatformNotRunnable.to_string(),
                        message: format!(
                            "{} cannot be built in the BuilderPool {}: {why}",
                            named(&platform.name, super::has_default_platforms(context, run)),
                            pool.name_any()
                        ),
                        ..BuildFailure::default()
                    });
                    continue;
                }
                Err(_) => continue,
            };
            let profile = profile(context, pool, &placement.architecture, nodes);
            let Some(domain) = domain(context, &other, profile) else { continue };
            let given = given(context, &other, platform);
            let last = last.get(&(other.spec.image_build.uid.clone(), platform.name.clone()));
            let request = Request {
                domain,
                architecture: placement.architecture.clone(),
                bundles: if is_own { bundles.to_vec() } else { Vec::new() },
                last: last.map(|(_, builder)| builder.clone()),
                alone: wants_all(platform),
                avoids: avoided(context, platform),
            };
            queue.add(is_own.then_some(index), given, placement, request);
        }
    }
    queue
}

impl Queue {
    /// Queues a platform behind all others. `own`: its index, where it is one of the run's own.
    fn add(&mut self, own: Option<usize>, given: Option<BuilderId>, placement: Placement, request: Request) {
        // To count both its place and its request would open builders that nobody needs.
        let turn = if let Some(id) = given {
            Turn::Given(id)
        } else {
            self.requests.push(request);
            Turn::Queued(self.requests.len() - 1)
        };
        if let Some(index) = own {
            self.own.push((index, turn, placement));
        }
    }
}

/// Which builder each platform of these runs' ImageBuilds had last, by the ImageBuild's UID and the platform's name, with
/// the number of the run.
fn last_builders(context: &Context, waiting: &[Arc<ImageBuildRun>]) -> HashMap<(String, String), (u64, String)> {
    let uids: HashSet<&str> = waiting.iter().map(|run| run.spec.image_build.uid.as_str()).collect();
    let mut last = HashMap::<(String, String), (u64, String)>::new();
    for run in context.stores.runs.state_filter(|run| uids.contains(run.spec.image_build.uid.as_str())) {
        for platform in run.status.iter().flat_map(|status| &status.platforms) {
            let Some(builder) = &platform.builder else { continue };
            let known = last.entry((run.spec.image_build.uid.clone(), platform.name.clone())).or_default();
            if known.0 <= run.spec.number {
                *known = (run.spec.number, builder.pod.clone());
            }
        }
    }
    last
}

/// The builder on which a platform's last attempt failed for the infrastructure's sake. A new pod of that name is another.
fn avoided(context: &Context, platform: &PlatformStatus) -> Option<String> {
    let failed_on = platform.failed_on.as_ref()?;
    let pod = pod(context, &failed_on.pod)?;
    (pod.metadata.uid.as_deref() == Some(&failed_on.uid)).then(|| failed_on.pod.clone())
}

/// The builder that holds a place for a platform's next attempt, which the copy of its run does not show yet. One that goes
/// holds none.
fn given(context: &Context, run: &ImageBuildRun, platform: &PlatformStatus) -> Option<BuilderId> {
    let next = job_id(run.metadata.uid.as_deref().unwrap_or_default(), &platform.name, platform.attempt + 1);
    let pod = pod(context, &context.jobs.builder(&next)?)?;
    let stays = !is_leaving(context, &pod);
    stays.then(|| BuilderId::of(&pod.metadata)).flatten()
}

/// Where a platform of a run is built. `None`: its name is none.
fn place_platform(
    run: &ImageBuildRun,
    status: &PlatformStatus,
    available: &Available<'_>,
) -> Option<Result<Placement, Impossible>> {
    let platform: Platform = status.name.parse().ok()?;
    let spec = run.spec.build.platforms.iter().flatten().find(|spec| spec.name == status.name);
    let build_on = spec.and_then(|spec| spec.build_on.as_ref()?.parse::<Platform>().ok());
    let wish = Wish { platform: &platform, build_on: build_on.as_ref(), needs_node: status.needs_node };
    Some(placement(wish, available))
}

/// Whom a run's builders work for. `None`: its namespace is gone or going.
pub fn domain(context: &Context, run: &ImageBuildRun, profile: Profile) -> Option<TrustDomain> {
    let namespace = run.namespace()?;
    let key = kube::runtime::reflector::ObjectRef::new(&namespace);
    // One that is being deleted may be followed by another of its name, which is to inherit nothing.
    let found = context.stores.namespaces.get(&key).filter(|found| found.metadata.deletion_timestamp.is_none());
    let uid = found?.uid()?;
    let scope = run.spec.build.cache.as_ref().and_then(|cache| cache.scope);
    let scope = scope.unwrap_or(profile.default_scope());
    let of = &run.spec.image_build;
    Some(TrustDomain::new(&namespace, &uid, &of.uid, scope).asked_by(&of.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_crds::image_build::CacheScope;
    use kiln_crds::image_build_run::Execution;

    #[test]
    fn what_has_a_builder_asks_for_none() {
        let placement = || Placement { architecture: "amd64".into(), execution: Execution::Native };
        let domain = |of: &str| TrustDomain::new(of, of, "uid", CacheScope::Namespace);
        let id = |of: &str| BuilderId { pool: "p".into(), domain: domain(of), architecture: "amd64".into(), slot: 0 };
        let asks = |of: &str| Request {
            domain: domain(of),
            architecture: "amd64".into(),
            bundles: vec![],
            last: None,
            alone: false,
            avoids: None,
        };
        let mut queue = Queue::default();
        queue.add(None, Some(id("a")), placement(), asks("a"));
        queue.add(None, None, placement(), asks("b"));
        queue.add(Some(0), Some(id("c")), placement(), asks("c"));
        queue.add(Some(1), None, placement(), asks("c"));
        assert_eq!(queue.requests, [asks("b"), asks("c")]);
        let own: Vec<_> = queue.own.into_iter().map(|(index, turn, _)| (index, turn)).collect();
        assert_eq!(own, [(0, Turn::Given(id("c"))), (1, Turn::Queued(1))]);
    }
}
