//! How a run ends: published, failed or cancelled; then its places are given back, and it is let go of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build::{BuildFailure, TagStatus};
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, RunPhase, SecretVersion};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use tracing::warn;

use super::hold::{conclude, let_go_or_later};
use super::plan::job_id;
use super::publish::Published;
use super::publish_try::{left, publish_while_wanted};
use super::replaced::write_status;
use super::status::{self, Waiting};
use super::tagging::{self, Tagging};
use super::{Error, agent_of, pod_of, taken, tell, waits_for, warnings};
use crate::context::{Context, is_conflict, namespaced, until};
use crate::reason::Reason;
use crate::references::{self, Fault};
use crate::tags::ownership::{self, Place};
use crate::tags::template::Values;
use crate::trim;
use kiln_registry::http_client::FailureClass;

/// How often a run looks whether the write of another run that it waits for has been answered.
const LOOK: Duration = Duration::from_secs(2);
/// How often an agent that seems alive is asked to cancel a job.
const CANCEL_TRIES: u32 = 6;

/// Every platform is built: pushes the index, then the tags, then says so.
pub(super) async fn finish(
    run: &Arc<ImageBuildRun>,
    mut status: ImageBuildRunStatus,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    let uid = run.uid().unwrap_or_default();
    let mut tried = context.publishing.get(&uid);
    if let Some(retry_at) = tried.retry_at.filter(|retry_at| *retry_at > now)
        && context.outages.holds(tried.fault.as_ref(), &**run)
    {
        return Ok(Action::requeue(until(retry_at, now)));
    }
    let claimed = match ownership::wanted(&run.spec.build, Values::of(run)) {
        Ok(claimed) => claimed,
        Err(fault) => return end(run, status, RunPhase::Failed, failure_of(fault, run), context, now).await,
    };
    let waited_for = waits_for(run);
    let run = claim(run, &mut status, claimed, context, now).await?;
    if waits_for(&run) != waited_for {
        // The write wakes it, for a turn of the other kind.
        return Ok(Action::await_change());
    }
    // Held until the status says how it went.
    let Some(_turn) = context.moving.begin(&run.spec.image_build.uid) else {
        let why = "waiting for another run of this ImageBuild to leave its tags";
        return wait(&run, status, (Reason::Publishing, why), LOOK, context, now).await;
    };
    let moving = Tagging::new(status.tags.clone(), left(&run, context));
    let published = publish_while_wanted(&run, &mut status, context, &moving);
    // Nothing that publishing needs is with the agents.
    let (published, run) = tokio::join!(published, let_go_or_later(&run, context));
    let Some(published) = published else {
        return Ok(Action::await_change());
    };
    let expects = moving.expects();
    let (tags, strays) = moving.end();
    let warning = tagging::warning(&strays).or(context.moved.get(&uid).1);
    // A run that is cancelled meanwhile has changed: the next reconcile says so in its place.
    context.moved.set(&uid, (tags.clone(), warning.clone()));
    status.tags = tags;
    if let Some(warning) = warning {
        tagging::warn(&mut status, warning);
    }
    match published {
        // The next leader goes on.
        Ok(_) if !context.leader.is_leader() => Ok(Action::await_change()),
        Ok(published @ (Published::Image(_) | Published::Nothing)) => {
            context.publishing.remove(&uid);
            if let Published::Image(image) = published {
                status.image = Some(*image);
            }
            status.phase = RunPhase::Succeeded;
            let now = Timestamp::now();
            status::complete(&mut status, &run.spec, None, run.metadata.generation, now);
            let written = write_what_is_done(&run, &status, context).await?;
            if expects {
                // The tags are looked at again later.
                context.looked.set(&uid, Some(now));
            }
            context.metrics.ended("Succeeded", Reason::Succeeded.as_str(), &status);
            for warning in status.warnings.iter().filter(|warning| warnings::is_growth(warning)) {
                context.event(&*run, EventType::Warning, &warning.rule, &warning.message);
            }
            conclude(&written, context).await
        }
        Ok(Published::CopyFailed(why)) => {
            warn!(why, "the image is built instead");
            context.publishing.remove(&uid);
            status.copy_failure = Some(why.chars().take(1024).collect());
            status.platforms = taken::platforms(&run, &status, now);
            status.publishing_at = None;
            status.tags.clear();
            context.claims.release(&uid);
            context.moved.remove(&uid);
            status::complete(&mut status, &run.spec, None, run.metadata.generation, now);
            write_status(context, &run, &status).await?;
            // The write wakes it.
            Ok(Action::await_change())
        }
        Ok(Published::Waits(late)) => {
            wait(&run, status, (Reason::Publishing, &late.waiting()), LOOK, context, now).await
        }
        Ok(Published::Superseded) => {
            let failure = BuildFailure {
                reason: Reason::Superseded.to_string(),
                message: format!("a newer run took its place{}", tagging::too_late(&status.tags)),
                ..BuildFailure::default()
            };
            end(&run, status, RunPhase::Cancelled, failure, context, now).await
        }
        Err(references::Error::Fault(fault))
            if fault.class == FailureClass::Infrastructure
                || matches!(fault.reason, Reason::PoolNotFound | Reason::PoolNotAllowed) =>
        {
            let (fault, delay) = tried.failed(fault, &uid, now);
            context.publishing.set(&uid, tried);
            let since = finished_building(&status).unwrap_or(now);
            if now.duration_since(since).as_secs() > 3600 {
                return end(&run, status, RunPhase::Failed, failure_of(fault, &run), context, now).await;
            }
            wait(&run, status, (fault.reason, &fault.message), delay, context, now).await
        }
        Err(references::Error::Fault(fault)) => {
            if fault.class == FailureClass::Credential {
                status.secrets = secret_versions(context, &run).await?;
            }
            end(&run, status, RunPhase::Failed, failure_of(fault, &run), context, now).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Says what a run waits for that publishes, and looks again after `delay`.
async fn wait(
    run: &Arc<ImageBuildRun>,
    mut status: ImageBuildRunStatus,
    (reason, message): (Reason, &str),
    delay: Duration,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    let waiting = Waiting { reason, message: message.to_owned() };
    status::complete(&mut status, &run.spec, Some(&waiting), run.metadata.generation, now);
    if run.status.as_ref() != Some(&status) {
        write_status(context, run, &status).await?;
    }
    Ok(Action::requeue(delay))
}

/// Says that the run publishes, and which tags it is about to move. Written once: what a failed try wrote stays until the
/// next one has ended.
async fn claim(
    run: &Arc<ImageBuildRun>,
    status: &mut ImageBuildRunStatus,
    claimed: Vec<TagStatus>,
    context: &Context,
    now: Timestamp,
) -> Result<Arc<ImageBuildRun>, Error> {
    let places = |tags: &[TagStatus]| tags.iter().map(Place::of).collect::<BTreeSet<_>>();
    let has_claimed =
        |former: &ImageBuildRunStatus| former.phase == RunPhase::Publishing && places(&former.tags) == places(&claimed);
    let uid = run.uid().unwrap_or_default();
    if run.status.as_ref().is_some_and(has_claimed) {
        // Its status tells the claim, at whatever time that was made.
        context.claims.release(&uid);
        return Ok(run.clone());
    }
    let claimed_at = context.claims.claim(run, &claimed, &context.stores.runs.state(), now);
    status.publishing_at = Some(MicroTime(claimed_at));
    // Those that a former try has moved stay so.
    let former = std::mem::replace(&mut status.tags, claimed);
    for tag in &mut status.tags {
        if let Some(former) = former.iter().find(|former| Place::of(former) == Place::of(tag)) {
            tag.clone_from(former);
        }
    }
    status::complete(status, &run.spec, None, run.metadata.generation, now);
    // From here on this process knows what it has written of them.
    let warning = context.moved.get(&uid).1;
    context.moved.set(&uid, (status.tags.clone(), warning));
    let written = write(run, status, context).await.inspect_err(|error| {
        // Where there is no answer it is not known whether the claim is written: it stays.
        // Nor where the copy is out of date: the claim may be what it does not show.
        if matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code)) && !is_conflict(error) {
            context.claims.release(&uid);
        }
    })?;
    for platform in &status.platforms {
        context.jobs.release(&job_id(&uid, &platform.name, platform.attempt));
    }
    Ok(written)
}

pub(super) async fn secret_versions(
    context: &Context,
    run: &ImageBuildRun,
) -> Result<Vec<SecretVersion>, references::Error> {
    references::secret_versions(context, &run.namespace().unwrap_or_default(), &run.spec.build).await
}

/// Has the agents stop what still runs.
pub(super) async fn cancel_jobs(
    run: &ImageBuildRun,
    status: &mut ImageBuildRunStatus,
    context: &Context,
    now: Timestamp,
) -> Result<(), Error> {
    let uid = run.uid().unwrap_or_default();
    for platform in &mut status.platforms {
        if platform.phase.is_assigned() {
            let job = job_id(&uid, &platform.name, platform.attempt);
            // Nobody may send it after it was cancelled.
            context.jobs.release(&job);
            if let Some(agent) = agent_of(run, platform, context)
                && let Err(source) = context.jobs.cancel(&agent, &job).await
            {
                let leaving =
                    pod_of(run, platform, context).is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
                let failures = context.cancelling.get(&job) + 1;
                // The agent ends the job by itself at its timeout; a run must not wait for a lost node until then.
                if !leaving && failures < CANCEL_TRIES {
                    context.cancelling.set(&job, failures);
                    return Err(Error::Cancel { job, builder: agent.builder, source: Box::new(source) });
                }
                warn!(job, builder = agent.builder, %source, "a job could not be cancelled; its builder is left alone");
            }
            context.cancelling.remove(&job);
        }
        if !platform.phase.is_final() {
            platform.phase = PlatformPhase::Cancelled;
            platform.finished_at = Some(MicroTime(now));
        }
    }
    Ok(())
}

/// Ends the run without an image.
pub(super) async fn end(
    run: &Arc<ImageBuildRun>,
    mut status: ImageBuildRunStatus,
    phase: RunPhase,
    failure: BuildFailure,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    let former = run.status.clone().unwrap_or_default();
    context.publishing.remove(&run.uid().unwrap_or_default());
    status.phase = phase;
    status.tags.retain(|tag| tag.digest.is_some() || tag.unknown.is_some());
    let reason = failure.reason.clone();
    status.failure = Some(Box::new(failure));
    status::complete(&mut status, &run.spec, None, run.metadata.generation, now);
    let written = write(run, &status, context).await?;
    context.metrics.ended(if phase == RunPhase::Failed { "Failed" } else { "Cancelled" }, &reason, &status);
    tell(run, &former, &status, context);
    conclude(&written, context).await
}

/// As [`write`], though the run was changed meanwhile: who cancels it now comes too late.
async fn write_what_is_done(
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    context: &Context,
) -> Result<Arc<ImageBuildRun>, kube::Error> {
    match write(run, status, context).await {
        Err(error) if is_conflict(&error) && context.leader.is_leader() => {
            let api = namespaced::<ImageBuildRun>(&context.client, &run.namespace().unwrap_or_default());
            let metadata = api.get_metadata(&run.name_any()).await?.metadata;
            if metadata.uid != run.metadata.uid {
                return Err(error);
            }
            let metadata = trim::written_over(ObjectMeta { managed_fields: None, ..metadata }, &run.metadata);
            let now = ImageBuildRun { metadata, spec: run.spec.clone(), status: run.status.clone() };
            write(&now, status, context).await
        }
        other => other,
    }
}

/// Writes a run's status; the run with it comes back.
async fn write(
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    context: &Context,
) -> Result<Arc<ImageBuildRun>, kube::Error> {
    let metadata = write_status(context, run, status).await?;
    let metadata = trim::written_over(metadata, &run.metadata);
    Ok(Arc::new(ImageBuildRun { metadata, spec: run.spec.clone(), status: Some(status.clone()) }))
}

pub(super) fn failure_of(fault: Fault, run: &ImageBuildRun) -> BuildFailure {
    let Fault { reason, message, .. } = fault.told(&run.spec.build, &run.namespace().unwrap_or_default());
    BuildFailure { reason: reason.to_string(), message, ..BuildFailure::default() }
}

/// When the last platform was built.
fn finished_building(status: &ImageBuildRunStatus) -> Option<Timestamp> {
    status.platforms.iter().filter_map(|platform| Some(platform.finished_at.as_ref()?.0)).max()
}
