//! ImageBuildRun: a job for each platform on a builder of its architecture, then the index, then the tags.
//!
//! A reconcile observes the jobs, decides with [`plan`], writes the status, and only then acts on what it wrote: attempt
//! and builder are in the status before a job is sent, so that a new operator asks the same agent.

pub mod dereference;
pub mod end;
pub mod execution;
pub mod hold;
pub mod job;
pub mod labels;
mod look_again;
pub mod make;
pub mod memory;
pub mod order;
pub mod outcome;
pub mod place;
pub mod plan;
pub mod publish;
mod publish_try;
pub mod queue;
pub mod replaced;
mod start;
pub mod status;
pub mod steps;
pub mod tagging;
pub mod taken;
mod telling;
pub mod times;
pub mod waiting;
pub mod warnings;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, PlatformStatus, RunPhase};
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use tracing::{info, warn};

use self::dereference::{Inputs, dereference};
use self::end::{cancel_jobs, end, failure_of, finish, secret_versions};
use self::hold::{conclude, hold, is_held, release};
use self::place::{Placed, give_back, place, wait_for_capacity};
use self::plan::{Bounds, Holder, Next, Stop, advance, due, job_id, next, overdue};
use self::replaced::write_status;
use self::start::Start;
use self::status::Waiting;
use crate::agent::{Agent, Observation, Whole};
use crate::builder::{BuilderId, observe};
use crate::builder_pool::select;
use crate::condition::find;
use crate::context::{Context, is_conflict, until};
use crate::delay;
use crate::outage;
use crate::reason::Reason;
use crate::references::{self, Fault};
use crate::trace::traceparent;
use crate::turns;
use kiln_registry::http_client::FailureClass;

/// How often it is looked again, at least, whether a fault is mended.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How often a run whose time is over is looked at, until its builder is heard again or lost.
const OVERDUE: SignedDuration = SignedDuration::from_secs(1);

/// What is remembered of a run's publishing.
#[derive(Clone, Debug, Default)]
pub struct Publishing {
    /// Tries that failed in a row.
    failures: u32,
    /// When to try again.
    retry_at: Option<Timestamp>,
    /// What went wrong at the last one.
    fault: Option<Fault>,
}

impl Publishing {
    /// A try has failed: what is told of it, and how long it takes until the next.
    fn failed(&mut self, fault: Fault, uid: &str, now: Timestamp) -> (Fault, Duration) {
        let delay = outage::delay(&fault, &mut self.failures, uid);
        let told = outage::told(self.fault.take(), fault);
        *self = Self { failures: self.failures, retry_at: now.checked_add(delay).ok(), fault: Some(told.clone()) };
        (told, delay)
    }
}

/// Why a reconcile failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something named could not be read.
    #[error(transparent)]
    Reference(#[from] references::Error),
    /// A builder could not be made or removed.
    #[error(transparent)]
    Builder(#[from] crate::builder::ensure::Error),
    /// The status or the finalizer could not be written.
    #[error("writing the ImageBuildRun: {}", crate::refusal::words(.0))]
    Write(#[from] kube::Error),
    /// An agent did not cancel a job.
    #[error("cancelling job {job} on builder {builder}: {source}")]
    Cancel {
        /// The job's id.
        job: String,
        /// The builder's name.
        builder: String,
        /// What the agent said.
        source: Box<tonic::Status>,
    },
}

/// Brings a run one step on.
pub async fn reconcile(run: Arc<ImageBuildRun>, context: Arc<Context>) -> Result<Action, Error> {
    if context.replaced.is_stale(&run) {
        return Ok(Action::await_change());
    }
    match Box::pin(context.outages.asking(&*run, step(&run, &context))).await {
        // The object has changed since it was read: the newer one wakes the next reconcile.
        Err(Error::Write(error)) if is_conflict(&error) => Ok(Action::await_change()),
        other => other,
    }
}

async fn step(run: &Arc<ImageBuildRun>, context: &Context) -> Result<Action, Error> {
    let now = Timestamp::now();
    let former = run.status.clone().unwrap_or_default();
    if former.phase.is_final() {
        // From now on the copy of the runs tells what it has moved.
        context.claims.release(&run.uid().unwrap_or_default());
        context.moved.remove(&run.uid().unwrap_or_default());
        if is_held(run) {
            // What is held changes by that, which wakes the next reconcile.
            return conclude(run, context).await;
        }
        release(run, context);
        let has_time = run.metadata.deletion_timestamp.is_none();
        return if has_time {
            look_again::look_again(run, &former, context, now).await
        } else {
            Ok(Action::await_change())
        };
    }
    let bounds = Bounds::of(&run.spec.build);
    let mut status = observe(run, &former, bounds, context, now);
    remove_unreachable(run, &status, context).await?;
    let stop = Stop {
        cancelled: run.spec.cancel || run.metadata.deletion_timestamp.is_some() || is_orphaned(context, run),
        superseded: !is_newest(context, run),
    };
    let silence = silence(run, &status, context);
    match next(&status, stop, bounds.timeout, silence, now) {
        Next::End(phase, failure) => {
            cancel_jobs(run, &mut status, context, now).await?;
            end(run, status, phase, *failure, context, now).await
        }
        Next::Publish => finish(run, status, context, now).await,
        Next::Build => Box::pin(build(run, former, status, bounds, context, now)).await,
    }
}

/// The status with what is known of the jobs folded in.
fn observe(
    run: &ImageBuildRun,
    former: &ImageBuildRunStatus,
    bounds: Bounds,
    context: &Context,
    now: Timestamp,
) -> ImageBuildRunStatus {
    let (uid, namespace) = (run.uid().unwrap_or_default(), run.namespace().unwrap_or_default());
    let mut status = former.clone();
    status.queued_at.get_or_insert(MicroTime(now));
    let (moved, warning) = context.moved.get(&uid);
    if !moved.is_empty() {
        status.tags = moved;
    } else if former.phase == RunPhase::Publishing {
        tagging::left_by_former(&mut status.tags, now);
        context.moved.set(&uid, (status.tags.clone(), None));
    }
    if let Some(warning) = warning {
        tagging::warn(&mut status, warning);
    }
    if status.platforms.is_empty() {
        status.platforms = taken::platforms(run, &status, now);
    }
    for platform in &mut status.platforms {
        let job = job_id(&uid, &platform.name, platform.attempt);
        let (mut observed, progress) = context.jobs.seen(&job).unzip();
        if let Some(Observation::Failed(failure)) = &mut observed {
            failure.message = references::told(&failure.message, &failure.reason, None, &run.spec.build, &namespace);
        }
        let builder = Holder {
            alive: agent_of(run, platform, context).is_some(),
            ended: pod_of(run, platform, context).and_then(|pod| observe::buildkitd_ended(&pod)),
        };
        if let Some(progress) = progress.filter(|_| platform.phase.is_assigned()) {
            *platform = progress.in_status(std::mem::take(platform));
        }
        *platform = advance(platform, observed.as_ref(), builder, bounds.retries, now);
        if observed == Some(Observation::Refused) {
            // The next job has the same id.
            context.jobs.release(&job);
        }
        if platform.phase == PlatformPhase::Succeeded && platform.origin.is_none() {
            platform.origin = taken::archive(run, &platform.name);
        }
    }
    status
}

/// For how long nothing was heard of a builder that holds one of the run's jobs.
fn silence(run: &ImageBuildRun, status: &ImageBuildRunStatus, context: &Context) -> Duration {
    let uid = run.uid().unwrap_or_default();
    let assigned = status.platforms.iter().filter(|platform| platform.phase.is_assigned());
    let jobs = assigned.map(|platform| job_id(&uid, &platform.name, platform.attempt));
    jobs.map(|job| context.jobs.silence(&job).unwrap_or(Duration::MAX)).max().unwrap_or_default()
}

/// The agent that holds a platform's job. `None`: its pod is gone, or is another one by now.
fn agent_of(run: &ImageBuildRun, platform: &PlatformStatus, context: &Context) -> Option<Agent> {
    let builder = platform.builder.as_ref()?;
    let pod = pod_of(run, platform, context)?;
    let (agent, found) = observe::ready(&pod)?;
    (found.uid == builder.uid && !observe::is_stuck(&pod, Timestamp::now())).then_some(agent)
}

/// The pod of a platform's builder. `None`: it is gone, or the status names one that is not for this run.
fn pod_of(run: &ImageBuildRun, platform: &PlatformStatus, context: &Context) -> Option<Arc<Pod>> {
    let pod = observe::pod(context, &platform.builder.as_ref()?.pod)?;
    let namespace = run.namespace()?;
    let namespace_uid = context.stores.namespaces.get(&ObjectRef::new(&namespace)).and_then(|found| found.uid());
    let (image_build, pool) = (&run.spec.image_build.uid, run.spec.build.pool.as_deref());
    let is_for = BuilderId::of(&pod.metadata)?.is_for(&namespace, namespace_uid.as_deref(), image_build, pool);
    if !is_for && platform.phase.is_assigned() {
        // It counts as lost: another attempt gets a builder of its own.
        let message = format!(
            "{}: the status names a builder that Kiln did not give to this run; see who may write to the subresource \"status\"",
            platform.name
        );
        context.event(run, EventType::Warning, Reason::StatusReset.as_str(), &message);
    }
    is_for.then_some(pod)
}

/// Removes builders whose agent cannot be reached though their pod seems alive: another attempt begins only when the pod,
/// and with it the job, is gone.
async fn remove_unreachable(run: &ImageBuildRun, status: &ImageBuildRunStatus, context: &Context) -> Result<(), Error> {
    let uid = run.uid().unwrap_or_default();
    for platform in status.platforms.iter().filter(|platform| platform.phase.is_assigned()) {
        let job = job_id(&uid, &platform.name, platform.attempt);
        let Some(Observation::Unreachable(why)) = context.jobs.observation(&job) else { continue };
        let Some(pod) = pod_of(run, platform, context).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            continue;
        };
        let Some(id) = BuilderId::of(&pod.metadata) else { continue };
        warn!(builder = id.name(), why, "removing a builder that cannot be reached");
        observe::remove_pod(context, &id, pod.uid(), Some(10)).await?;
    }
    Ok(())
}

/// Finds builders for what is queued, writes the status, then follows the jobs that it names.
async fn build(
    mut run: &Arc<ImageBuildRun>,
    former: ImageBuildRunStatus,
    mut status: ImageBuildRunStatus,
    bounds: Bounds,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    let held;
    let pool = match pool(context, run) {
        Ok(pool) => pool,
        Err(fault) => {
            // What builds already needs no pool.
            follow(run, &status, None, context);
            return wait_for_mending(run, former, status, &fault, context, now).await;
        }
    };
    let uid = run.uid().unwrap_or_default();
    let queued = status
        .platforms
        .iter()
        .any(|platform| platform.phase == PlatformPhase::Queued && due(&uid, platform).is_none_or(|due| due <= now));
    let starting = status.platforms.iter().any(|platform| {
        platform.phase == PlatformPhase::Starting
            && context.jobs.observation(&job_id(&uid, &platform.name, platform.attempt)).is_none()
    });
    let takes = taken::waiting(run, &mut status.platforms).next().is_some();
    let mut placed = Placed::default();
    let mut inputs = None;
    if queued
        && !starting
        && !takes
        && let Some(waits) = wait_for_capacity(context, run, &pool, &status.platforms, now)
    {
        placed = waits;
    } else if queued || starting {
        match dereference(context, run, &pool).await {
            Ok(read) => {
                status.secrets.clone_from(&read.versions);
                if let Err((platform, fault)) = taken::take(run, &read, &mut status.platforms, now).await {
                    if fault.class == FailureClass::Infrastructure {
                        return wait_for_mending(run, former, status, &fault, context, now).await;
                    }
                    cancel_jobs(run, &mut status, context, now).await?;
                    return end(run, status, RunPhase::Failed, taken::failure(platform, fault, run), context, now)
                        .await;
                }
                if status.platforms.iter().all(|platform| platform.phase == PlatformPhase::Succeeded) {
                    return finish(run, status, context, now).await;
                }
                placed = place(context, run, &pool, &read, &mut status.platforms, now).await?;
                inputs = Some(read);
            }
            Err(references::Error::Fault(fault)) if fault.class == FailureClass::Infrastructure => {
                return wait_for_mending(run, former, status, &fault, context, now).await;
            }
            Err(references::Error::Fault(fault)) => {
                status.secrets = secret_versions(context, run).await?;
                cancel_jobs(run, &mut status, context, now).await?;
                return end(run, status, RunPhase::Failed, failure_of(fault, run), context, now).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(failure) = placed.failure {
        give_back(context, &placed.reserved);
        cancel_jobs(run, &mut status, context, now).await?;
        return end(run, status, RunPhase::Failed, failure, context, now).await;
    }
    if status.started_at.is_none() && status.platforms.iter().any(|platform| platform.phase.is_assigned()) {
        status.started_at = Some(MicroTime(now));
    }
    status::complete(&mut status, &run.spec, placed.waiting.as_ref(), run.metadata.generation, now);
    if status != former {
        if !is_held(run) && status.platforms.iter().any(|platform| platform.phase.is_assigned()) {
            held = hold(run, context).await.inspect_err(|_| give_back(context, &placed.reserved))?;
            run = &held;
        }
        if let Err(error) = write_status(context, run, &status).await {
            give_back(context, &placed.reserved);
            return Err(error.into());
        }
        // Attempts that have ended hold no place any more.
        for platform in status.platforms.iter().filter(|platform| !platform.phase.is_assigned()) {
            context.jobs.release(&job_id(&uid, &platform.name, platform.attempt));
        }
        tell(run, &former, &status, context);
    }
    follow(run, &status, inputs.map(|inputs| (pool, Arc::new(inputs))).as_ref(), context);
    Ok(requeue(&uid, &status, bounds, placed.look_again, now))
}

/// Says what is wrong and looks again: the fault may mend itself, and the user may mend it.
async fn wait_for_mending(
    run: &Arc<ImageBuildRun>,
    former: ImageBuildRunStatus,
    mut status: ImageBuildRunStatus,
    fault: &Fault,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    let waiting = Waiting { reason: fault.reason, message: fault.message.clone() };
    status::complete(&mut status, &run.spec, Some(&waiting), run.metadata.generation, now);
    if status != former {
        write_status(context, run, &status).await?;
    }
    let asked = fault.outage.as_ref().and_then(|outage| outage.retry_after).unwrap_or_default();
    let left = overdue(&status, Bounds::of(&run.spec.build).timeout).map_or(asked, |overdue| until(overdue, now));
    Ok(Action::requeue(delay::spread(LOOK_AGAIN, run.uid()).max(asked.min(left))))
}

/// Follows the jobs that the status names: those that are starting are sent to their agent first.
fn follow(
    run: &Arc<ImageBuildRun>,
    status: &ImageBuildRunStatus,
    inputs: Option<&(Arc<BuilderPool>, Arc<Inputs>)>,
    context: &Context,
) {
    let uid = run.uid().unwrap_or_default();
    for platform in status.platforms.iter().filter(|platform| platform.phase.is_assigned()) {
        let id = job_id(&uid, &platform.name, platform.attempt);
        if context.jobs.observation(&id).is_some() {
            continue;
        }
        let Some(agent) = agent_of(run, platform, context) else { continue };
        let Some(of) = pod_of(run, platform, context).and_then(|pod| BuilderId::of(&pod.metadata)) else { continue };
        let job = if platform.phase == PlatformPhase::Starting {
            let Some((pool, inputs)) = inputs else { continue };
            // Only where a collector takes the spans that BuildKit would make.
            let traceparent = context.traces.as_ref().map(|_| traceparent(&uid, &platform.name)).unwrap_or_default();
            let start = Start {
                client: context.client.clone(),
                room: context.sending.clone(),
                run: run.clone(),
                pool: pool.clone(),
                inputs: inputs.clone(),
                id: id.clone(),
                platform: platform.clone(),
                traceparent,
            };
            Some(Box::new(start) as Box<dyn Whole>)
        } else {
            None
        };
        info!(
            job = id,
            builder = agent.builder,
            platform = platform.name,
            attempt = platform.attempt,
            "job given to a builder"
        );
        context.jobs.follow(&id, &ObjectRef::from_obj(&**run), &of.pool, agent, job);
    }
}

/// When to look again where no watch will tell.
fn requeue(
    uid: &str,
    status: &ImageBuildRunStatus,
    bounds: Bounds,
    look_again: Option<Timestamp>,
    now: Timestamp,
) -> Action {
    let queued = status.platforms.iter().filter(|platform| platform.phase == PlatformPhase::Queued);
    let retries = queued.filter_map(|platform| due(uid, platform));
    let kubelets = status.platforms.iter().filter_map(memory::look_again);
    // One that is overdue already waits for a builder to be heard again.
    let soon = now.checked_add(OVERDUE).unwrap_or(now);
    let overdue = overdue(status, bounds.timeout).map(|overdue| overdue.max(soon));
    let at = retries.filter(|due| *due > now).chain(overdue).chain(look_again);
    let at = at.chain(kubelets).min();
    at.map_or_else(Action::await_change, |at| Action::requeue(until(at, now) + Duration::from_millis(10)))
}

/// An Event for each attempt that was lost, and where the run's condition got another reason worth telling.
fn tell(run: &ImageBuildRun, former: &ImageBuildRunStatus, status: &ImageBuildRunStatus, context: &Context) {
    for (reason, message) in status::lost_attempts(former, status) {
        context.event(run, EventType::Warning, &reason, &message);
    }
    let Some(condition) = find(&status.conditions, "Succeeded") else { return };
    if find(&former.conditions, "Succeeded").is_some_and(|former| former.reason == condition.reason) {
        return;
    }
    let kind = match condition.reason.as_str() {
        "WaitingForNode" => EventType::Warning,
        "Building" | "Cancelled" | "Superseded" => EventType::Normal,
        _ if status.phase == RunPhase::Failed => EventType::Warning,
        _ => return,
    };
    context.event(run, kind, &condition.reason, &condition.message);
}

/// The pool that builds a run.
pub fn pool(context: &Context, run: &ImageBuildRun) -> Result<Arc<BuilderPool>, Fault> {
    select::pool(context, &run.namespace().unwrap_or_default(), run.spec.build.pool.as_deref())
}

/// Whether nobody wants the run any more: its ImageBuild is gone, as after a restore of runs alone.
fn is_orphaned(context: &Context, run: &ImageBuildRun) -> bool {
    image_build(context, run).is_none()
}

/// Whether a run's platforms are the operator's default list, for its ImageBuild names none.
#[must_use]
pub fn has_default_platforms(context: &Context, run: &ImageBuildRun) -> bool {
    image_build(context, run).is_some_and(|build| build.spec.platforms.is_none())
}

/// The ImageBuild that a run belongs to.
fn image_build(context: &Context, run: &ImageBuildRun) -> Option<Arc<ImageBuild>> {
    let owner = &run.spec.image_build;
    let key = ObjectRef::new(&owner.name).within(run.metadata.namespace.as_deref().unwrap_or_default());
    context.stores.image_builds.get(&key).filter(|build| build.metadata.uid.as_deref() == Some(&owner.uid))
}

/// Whether the run is cancelled or deleted, as far as is known now.
#[must_use]
pub fn is_unwanted(context: &Context, run: &ImageBuildRun) -> bool {
    let known = context.stores.runs.get(&ObjectRef::from_obj(run));
    known.is_none_or(|known| known.spec.cancel || known.metadata.deletion_timestamp.is_some())
}

/// What a reconcile of the run may wait for.
#[must_use]
pub fn waits_for(run: &ImageBuildRun) -> turns::Kind {
    let publishes = run.status.as_ref().filter(|status| status.phase == RunPhase::Publishing);
    let wanted = !run.spec.cancel && run.metadata.deletion_timestamp.is_none();
    match publishes {
        Some(status) if wanted && publish::transfers(run, status) => turns::Kind::Transfers,
        _ => turns::Kind::Usual,
    }
}

/// Whether the run's ImageBuild has no newer one.
#[must_use]
pub fn is_newest(context: &Context, run: &ImageBuildRun) -> bool {
    context
        .stores
        .runs
        .find(|other| {
            other.metadata.namespace == run.metadata.namespace
                && other.spec.image_build.uid == run.spec.image_build.uid
                && other.spec.number > run.spec.number
        })
        .is_none()
}
