//! Finds a builder for each queued platform, and makes or removes builders on the way.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::{BuilderRef, Execution, PlatformPhase, PlatformStatus};
use kiln_crds::{BuilderPool, ImageBuildRun};
use kube::ResourceExt;

use super::dereference::Inputs;
use super::execution::Placement;
use super::has_default_platforms;
use super::make::make;
use super::plan::job_id;
use super::queue::{Queue, Turn, queue};
use super::status::Waiting;
use super::waiting::{Unplaced, coming, ended, not_ready};
use crate::builder::BuilderId;
use crate::builder::config::Bundle;
use crate::builder::node::NodeFacts;
use crate::builder::observe::{
    builders, describe_again, has_ended, is_described, pod, ready, remove_pod, remove_with_volume, template, volumes,
};
use crate::builder::pick::{Choice, Limits, Wait, pick};
use crate::builder_pool::IDLE_GRACE;
use crate::builder_pool::select::limits;
use crate::context::Context;
use crate::reason::Reason;

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
    let by_default = has_default_platforms(context, run);
    let mut placed = Placed::default();
    let placing = context.placing.lock().await;
    let template = template(context, pool);
    let bundles: Vec<String> = inputs
        .pool_bundles
        .iter()
        .map(|pem| Bundle::of_pool(pem))
        .chain(inputs.registry.ca.clone())
        .map(|of| of.hash())
        .collect();
    let Chosen { choices, limits, impossible } = choose(context, run, pool, &nodes, &bundles, platforms, now);
    placed.failure = impossible;
    describe_again(context, pool);
    let mut to_make: Vec<BuilderId> = Vec::new();
    for (index, placement, choice) in choices {
        let platform = &mut platforms[index];
        let waiting = match &choice {
            Choice::Existing(id) => match pod(context, &id.name()) {
                Some(pod) => match ready(&pod) {
                    Some((_, builder))
                        if placement.execution == Execution::Emulated && !is_described(context, pool, &builder) =>
                    {
                        placed.look_again = now.checked_add(SignedDuration::from_secs(1)).ok();
                        coming()
                    }
                    Some((agent, builder)) => {
                        // Not `now`, from before the wait for the lock: the job that had this place may have ended since.
                        *platform = next_attempt(platform, builder, placement.execution, Timestamp::now());
                        let job = job_id(&run.uid().unwrap_or_default(), &platform.name, platform.attempt);
                        if context.jobs.reserve(&job, &agent.builder) {
                            placed.reserved.push(job);
                        }
                        continue;
                    }
                    None => {
                        let unplaced = Unplaced { platform, placement: &placement, by_default };
                        let waiting = not_ready(&pod, unplaced, pool, run, &nodes, now, &mut placed);
                        if pool.spec.allow.as_ref().and_then(|allow| allow.emulation).unwrap_or(false) {
                            // No watch tells that an emulator was installed.
                            let soon = now.checked_add(LOOK_AGAIN).ok();
                            placed.look_again = placed.look_again.into_iter().chain(soon).min();
                        }
                        waiting
                    }
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
                    give_back(context, &placed.reserved);
                    return Err(error.into());
                }
                coming()
            }
            Choice::Reclaim(id) => {
                tracing::info!(builder = id.name(), "removing a volume to keep its namespace within the pool's limits");
                if let Err(error) = remove_with_volume(context, id).await {
                    give_back(context, &placed.reserved);
                    return Err(error.into());
                }
                coming()
            }
            Choice::Wait(wait) => {
                // Capacity wakes the run; a slot whose pod hangs on a lost node is given up by time alone.
                placed.look_again = now.checked_add(LOOK_AGAIN).ok();
                full(context, run, platform, &placement, *wait, pool, &limits)
            }
        };
        placed.waiting.get_or_insert(waiting);
    }
    if !to_make.is_empty() {
        match make(context, pool, template, inputs, &nodes, to_make).await {
            Ok(None) => {}
            Ok(Some(failure)) => placed.failure = Some(failure),
            // The other platforms go on. It is tried again, and the user is told why it waits.
            Err(super::Error::Builder(error)) => {
                placed.look_again = now.checked_add(LOOK_AGAIN).ok();
                placed.waiting = Some(Waiting { reason: Reason::BuilderRejected, message: error.to_string() });
            }
            Err(error) => {
                give_back(context, &placed.reserved);
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
    let Chosen { choices, limits, impossible } = choose(context, run, pool, &context.nodes(), &[], platforms, now);
    if impossible.is_some() {
        return None;
    }
    let mut waiting = None;
    for (index, placement, choice) in choices {
        let Choice::Wait(wait) = choice else { return None };
        waiting.get_or_insert_with(|| full(context, run, &platforms[index], &placement, wait, pool, &limits));
    }
    waiting.as_ref()?;
    Some(Placed { waiting, look_again: now.checked_add(LOOK_AGAIN).ok(), ..Placed::default() })
}

/// What is chosen for a run.
struct Chosen {
    /// For each of its queued platforms the platform's index, where it is built, and by which builder.
    choices: Vec<(usize, Placement, Choice)>,
    /// The limits that were kept.
    limits: Limits,
    /// Why one of its platforms can never be built.
    impossible: Option<BuildFailure>,
}

fn choose(
    context: &Context,
    run: &ImageBuildRun,
    pool: &BuilderPool,
    nodes: &[NodeFacts],
    bundles: &[String],
    platforms: &[PlatformStatus],
    now: Timestamp,
) -> Chosen {
    let template = template(context, pool);
    let Queue { own, requests, impossible } = queue(context, run, pool, nodes, bundles, platforms, now);
    let builders = builders(context, pool, template, nodes, now);
    let limits = limits(pool, template.volume_size());
    let choices = pick(&pool.name_any(), &requests, &builders, &volumes(context, pool), limits);
    let choices = own.into_iter().map(|(index, turn, placement)| {
        let choice = match turn {
            Turn::Queued(position) => choices[position].clone(),
            Turn::Given(id) => Choice::Existing(id),
        };
        (index, placement, choice)
    });
    Chosen { choices: choices.collect(), limits, impossible }
}

fn full(
    context: &Context,
    run: &ImageBuildRun,
    platform: &PlatformStatus,
    placement: &Placement,
    wait: Wait,
    pool: &BuilderPool,
    limits: &Limits,
) -> Waiting {
    let in_the_way = |pod: &Pod| {
        let id = BuilderId::of(&pod.metadata).filter(|_| wait == Wait::Slot && has_ended(pod));
        id.is_some_and(|id| {
            id.pool == pool.name_any()
                && id.architecture == placement.architecture
                && Some(&id.domain.namespace) == run.metadata.namespace.as_ref()
        })
    };
    if let Some(pod) = context.stores.pods.find(in_the_way) {
        return ended(&pod, &platform.name);
    }
    Waiting {
        reason: Reason::WaitingForCapacity,
        message: format!("{}: {}", platform.name, wait.explain(&pool.name_any(), limits)),
    }
}

/// A platform whose next attempt has been given to a builder. Of the last one, why it failed stays.
fn next_attempt(
    platform: &PlatformStatus,
    builder: BuilderRef,
    execution: Execution,
    now: Timestamp,
) -> PlatformStatus {
    PlatformStatus {
        name: platform.name.clone(),
        phase: PlatformPhase::Starting,
        attempt: platform.attempt + 1,
        builder: Some(builder),
        started_at: Some(MicroTime(now)),
        execution: Some(execution),
        needs_node: platform.needs_node,
        failure: platform.failure.clone(),
        ..PlatformStatus::default()
    }
}

/// Gives back the places of jobs whose status is not written: who has one does not wait for another.
pub fn give_back(context: &Context, reserved: &[String]) {
    for job in reserved {
        context.jobs.release(job);
    }
}
