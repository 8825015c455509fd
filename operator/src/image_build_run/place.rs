//! Finds a builder for each queued platform, and makes or removes builders on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::{BuilderRef, PlatformPhase, PlatformStatus};
use kiln_crds::{BuilderPool, ImageBuildRun, Platform, SecurityProfile};
use kube::ResourceExt;

use super::dereference::Inputs;
use super::order::fair;
use super::plan::{due, job_id};
use super::status::Waiting;
use crate::builder::config::{Bundles, bundle_hash};
use crate::builder::ensure::{self, Made};
use crate::builder::node::{NodeFacts, architectures};
use crate::builder::observe::{builders, pod, profile, ready, remove_pod, remove_with_volume, template, volumes};
use crate::builder::pick::{Choice, Limits, Request, Wait, pick};
use crate::builder::pod::Template;
use crate::builder::profile::Profile;
use crate::builder::{BuilderId, TrustDomain};
use crate::builder_pool::IDLE_GRACE;
use crate::builder_pool::select::limits;
use crate::context::Context;
use crate::reason::Reason;
use crate::references::{self, ca_bundle};

/// How long a build waits for a node unless the pool says it.
const SCHEDULING_TIMEOUT: Duration = Duration::from_mins(10);

/// When to look again though no watch may tell.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// What came of looking for builders.
#[derive(Debug, Default)]
pub struct Placed {
    /// What the first platform that still waits is waiting for.
    pub waiting: Option<Waiting>,
    /// Why the run cannot go on.
    pub failure: Option<BuildFailure>,
    /// Jobs that a place was kept for: given back if the status cannot be written.
    pub reserved: Vec<String>,
    /// When to look again, where no watch will tell.
    pub look_again: Option<Timestamp>,
}

/// Finds a builder for each queued platform of a run, and writes it into `platforms`.
pub async fn place(
    context: &Context,
    run: &ImageBuildRun,
    pool: &Arc<BuilderPool>,
    inputs: &Inputs,
    platforms: &mut [PlatformStatus],
    now: Timestamp,
) -> Result<Placed, super::Error> {
    let nodes = context.nodes();
    let mut placed = Placed::default();
    let placing = context.placing.lock().await;
    let template = template(context, pool);
    let bundles: Vec<String> =
        inputs.pool_bundles.iter().chain(&inputs.registry.ca).map(|pem| bundle_hash(pem)).collect();
    let (choices, limits) = choose(context, run, pool, &nodes, &bundles, platforms, now);
    let mut to_make: Vec<BuilderId> = Vec::new();
    for (index, choice) in choices {
        let platform = &mut platforms[index];
        let waiting = match &choice {
            Choice::Existing(id) => match pod(context, &id.name()) {
                Some(pod) => match ready(&pod) {
                    Some((agent, builder)) => {
                        // Not `now`, from before the wait for the lock: the job that had this place may have ended since.
                        *platform = next_attempt(platform, builder, Timestamp::now());
                        let job = job_id(&run.uid().unwrap_or_default(), &platform.name, platform.attempt);
                        if context.jobs.reserve(&job, &agent.builder) {
                            placed.reserved.push(job);
                        }
                        continue;
                    }
                    None => not_ready(&pod, platform, pool, run, &nodes, now, &mut placed),
                },
                None => coming(),
            },
            Choice::New(id) => {
                if !to_make.contains(id) {
                    to_make.push(id.clone());
                }
                coming()
            }
            Choice::Evict(id) => {
                let uid = pod(context, &id.name()).and_then(|pod| pod.uid());
                if let Err(error) = remove_pod(context, id, uid, Some(IDLE_GRACE)).await {
                    give_back(context, &placed);
                    return Err(error.into());
                }
                coming()
            }
            Choice::Reclaim(id) => {
                tracing::info!(builder = id.name(), "removing a volume to keep its namespace within the pool's limits");
                if let Err(error) = remove_with_volume(context, id).await {
                    give_back(context, &placed);
                    return Err(error.into());
                }
                coming()
            }
            Choice::Wait(wait) => {
                // Capacity wakes the run; a slot whose pod hangs on a lost node is given up by time alone.
                placed.look_again = now.checked_add(LOOK_AGAIN).ok();
                full(platform, *wait, pool, &limits)
            }
        };
        placed.waiting.get_or_insert(waiting);
    }
    if !to_make.is_empty() {
        match make(context, run, pool, template, inputs, &nodes, to_make).await {
            Ok(None) => {}
            Ok(Some(failure)) => placed.failure = Some(failure),
            // The other platforms go on. It is tried again, and the user is told why it waits.
            Err(super::Error::Builder(error)) => {
                placed.look_again = now.checked_add(LOOK_AGAIN).ok();
                placed.waiting = Some(Waiting { reason: Reason::BuilderRejected, message: error.to_string() });
            }
            Err(error) => {
                give_back(context, &placed);
                return Err(error);
            }
        }
    }
    drop(placing);
    Ok(placed)
}

/// What comes of a run whose queued platforms all have to wait, whatever CAs they need: nothing that it names has to be
/// read for that, and of a hundred builds that were made at once most wait. `None`: a builder may be had.
pub fn wait_for_capacity(
    context: &Context,
    run: &ImageBuildRun,
    pool: &BuilderPool,
    platforms: &[PlatformStatus],
    now: Timestamp,
) -> Option<Placed> {
    // A builder that lacks a CA is replaced where it is idle, and one that is idle has room for a job without a CA.
    let (choices, limits) = choose(context, run, pool, &context.nodes(), &[], platforms, now);
    let mut waiting = None;
    for (index, choice) in choices {
        let Choice::Wait(wait) = choice else { return None };
        waiting.get_or_insert_with(|| full(&platforms[index], wait, pool, &limits));
    }
    waiting.as_ref()?;
    Some(Placed { waiting, look_again: now.checked_add(LOOK_AGAIN).ok(), ..Placed::default() })
}

/// A choice for each queued platform of a run, with the platform's index, and the limits that were kept.
fn choose(
    context: &Context,
    run: &ImageBuildRun,
    pool: &BuilderPool,
    nodes: &[NodeFacts],
    bundles: &[String],
    platforms: &[PlatformStatus],
    now: Timestamp,
) -> (Vec<(usize, Choice)>, Limits) {
    let template = template(context, pool);
    let (own, requests) = queue(context, run, pool, nodes, bundles, platforms, now);
    let builders = builders(context, pool, template, nodes, now);
    let limits = limits(pool, template.volume_size());
    let choices = pick(&pool.name_any(), &requests, &builders, &volumes(context, pool), limits);
    (own.into_iter().map(|(index, position)| (index, choices[position].clone())).collect(), limits)
}

fn full(platform: &PlatformStatus, wait: Wait, pool: &BuilderPool, limits: &Limits) -> Waiting {
    Waiting {
        reason: Reason::WaitingForCapacity,
        message: format!("{}: {}", platform.name, wait.explain(&pool.name_any(), limits)),
    }
}

/// A platform whose next attempt has been given to a builder. Of the last one, why it failed stays.
fn next_attempt(platform: &PlatformStatus, builder: BuilderRef, now: Timestamp) -> PlatformStatus {
    PlatformStatus {
        name: platform.name.clone(),
        phase: PlatformPhase::Starting,
        attempt: platform.attempt + 1,
        builder: Some(builder),
        started_at: Some(MicroTime(now)),
        failure: platform.failure.clone(),
        ..PlatformStatus::default()
    }
}

fn give_back(context: &Context, placed: &Placed) {
    for job in &placed.reserved {
        context.jobs.release(job);
    }
}

fn coming() -> Waiting {
    Waiting { reason: Reason::WaitingForBuilder, message: "a builder is being started".to_owned() }
}

/// All queued platforms of the pool in the order in which they are served ([`fair`]), and which of them are this run's
/// own, as pairs of the platform's index and its position. `bundles`: the CAs that this run needs.
fn queue(
    context: &Context,
    run: &ImageBuildRun,
    pool: &BuilderPool,
    nodes: &[NodeFacts],
    bundles: &[String],
    platforms: &[PlatformStatus],
    now: Timestamp,
) -> (Vec<(usize, usize)>, Vec<Request>) {
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
    let runs = fair(waiting, |run| run.namespace().unwrap_or_default(), &held);
    let mut own = Vec::new();
    let mut requests = Vec::new();
    for other in runs {
        let is_own = other.uid() == run.uid();
        let theirs = other.status.as_ref().map(|status| status.platforms.as_slice()).unwrap_or_default();
        for (index, platform) in if is_own { platforms } else { theirs }.iter().enumerate() {
            let waits = platform.phase == PlatformPhase::Queued && due(platform).is_none_or(|due| due <= now);
            let Ok(parsed) = platform.name.parse::<Platform>() else { continue };
            let architecture = parsed.node_architecture().to_owned();
            if !waits {
                continue;
            }
            let Some(domain) = domain(context, &other, profile(context, pool, &architecture, nodes)) else { continue };
            if is_own {
                own.push((index, requests.len()));
            }
            requests.push(Request {
                domain,
                architecture,
                bundles: if is_own { bundles.to_vec() } else { Vec::new() },
            });
        }
    }
    (own, requests)
}

/// Whom a run's builders work for. `None`: its namespace is gone or going.
fn domain(context: &Context, run: &ImageBuildRun, profile: Profile) -> Option<TrustDomain> {
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

/// What a platform waits for whose builder is not up, and since when it is too long.
fn not_ready(
    pod: &Pod,
    platform: &PlatformStatus,
    pool: &BuilderPool,
    run: &ImageBuildRun,
    nodes: &[NodeFacts],
    now: Timestamp,
    placed: &mut Placed,
) -> Waiting {
    let status = pod.status.as_ref();
    let unschedulable = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let architecture = platform.name.parse::<Platform>().map(|platform| platform.architecture).unwrap_or_default();
    let waiting = match unschedulable {
        Some(condition) => Waiting {
            reason: Reason::WaitingForNode,
            message: format!(
                "{}: no node can take a builder of architecture {architecture} yet (nodes have: {}; scheduler: {})",
                platform.name,
                architectures(nodes),
                condition.message.as_deref().unwrap_or("nothing said")
            ),
        },
        None => match trouble(pod) {
            Some(trouble) => Waiting {
                reason: Reason::WaitingForBuilder,
                message: format!("{}: the builder {} does not start: {trouble}", platform.name, pod.name_any()),
            },
            None => coming(),
        },
    };
    // Its own builder's wait: time in the queue before that does not count.
    let times = [
        platform.finished_at.as_ref().map(|time| time.0),
        run.creation_timestamp().map(|time| time.0),
        pod.creation_timestamp().map(|time| time.0),
    ];
    let since = times.into_iter().flatten().max();
    let timeout = pool.spec.scheduling_timeout.map_or(SCHEDULING_TIMEOUT, Duration::from);
    if let Some(deadline) = since.and_then(|since| since.checked_add(timeout).ok()) {
        if deadline <= now {
            placed.failure.get_or_insert(BuildFailure {
                platform: Some(platform.name.clone()),
                reason: Reason::BuilderUnschedulable.to_string(),
                message: format!(
                    "{}: waited {}s, the BuilderPool's schedulingTimeout; {}",
                    waiting.message,
                    timeout.as_secs(),
                    if waiting.reason == Reason::WaitingForNode {
                        "add such a node, or build another platform".to_owned()
                    } else {
                        let namespace = pod.namespace().unwrap_or_default();
                        format!("kubectl -n {namespace} describe pod {} tells more", pod.name_any())
                    }
                ),
                ..BuildFailure::default()
            });
        } else {
            placed.look_again = Some(placed.look_again.map_or(deadline, |other| other.min(deadline)));
        }
    }
    waiting
}

/// What keeps a pod's containers from starting, as the kubelet tells it.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
        .find(|waiting| !matches!(waiting.reason.as_deref(), None | Some("ContainerCreating" | "PodInitializing")))
        // Without the kubelet's message: it counts, and would change the status at each try.
        .map(|waiting| match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" => "its image cannot be pulled (ImagePullBackOff)".to_owned(),
            reason => reason.to_owned(),
        })
}

async fn make(
    context: &Context,
    run: &ImageBuildRun,
    pool: &Arc<BuilderPool>,
    template: Template<'_>,
    inputs: &Inputs,
    nodes: &[NodeFacts],
    ids: Vec<BuilderId>,
) -> Result<Option<BuildFailure>, super::Error> {
    let bundles = bundles(context, run, inputs).await?;
    let make_one = |id: BuilderId| {
        let bundles = &bundles;
        async move {
            let profile = profile(context, pool, &id.architecture, nodes);
            let made = ensure::make(&context.client, &context.authority, template, pool, &id, profile, bundles).await?;
            if made == Made::WithoutUserNamespace {
                // From now on Auto means Rootless, whose trust domains are others: this builder is not made again.
                context.api_drops_host_users.store(true, Ordering::Relaxed);
            }
            Ok::<_, super::Error>(made)
        }
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

/// What a new builder trusts: the pool's CAs, this run's, and those that the namespace's other ImageBuilds name, so that
/// they need not have it replaced. One that cannot be read matters to its own ImageBuild alone.
async fn bundles(context: &Context, run: &ImageBuildRun, inputs: &Inputs) -> Result<Bundles, super::Error> {
    let mut bundles: Bundles = inputs.pool_bundles.iter().cloned().collect();
    bundles.extend(inputs.registry.ca.clone());
    let namespace = run.namespace().unwrap_or_default();
    let mut references: Vec<_> = context
        .stores
        .image_builds
        .state()
        .iter()
        .filter(|other| other.namespace().as_deref() == Some(&namespace))
        .filter_map(|other| other.spec.image.as_ref()?.ca_ref.clone())
        .collect();
    references.sort();
    references.dedup();
    for reference in references {
        match ca_bundle(&context.client, &namespace, &reference, "image.caRef").await {
            Ok(pem) => {
                bundles.insert(pem);
            }
            Err(references::Error::Fault(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bundles)
}
