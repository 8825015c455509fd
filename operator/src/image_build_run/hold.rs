//! A run is kept as long as one of its jobs may run: its finalizer is there before the first is sent, and goes when the last has
//! ended. No longer, for a namespace with such a run in it does not go while the operator is away.

use std::sync::Arc;

use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::PlatformStatus;
use kube::ResourceExt;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::runtime::controller::Action;
use tracing::warn;

use super::plan::job_id;
use super::{Error, agent_of};
use crate::context::{Context, is_conflict, namespaced};
use crate::trim;

/// What keeps it.
pub const FINALIZER: &str = "kiln.build/cancel-jobs";

/// Of how many attempts of a platform an agent is told that nobody asks for them any more: those before have ended long ago.
const MOST_TOLD: u32 = 32;

/// Whether Kiln holds the run: one of its jobs may run.
#[must_use]
pub fn is_held(run: &ImageBuildRun) -> bool {
    run.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Sends the trace of a run that has ended, and lets go of it.
pub(super) async fn conclude(run: &Arc<ImageBuildRun>, context: &Context) -> Result<Action, Error> {
    // Before it is let go of: an operator that dies here leaves it to the next one.
    if let Some(traces) = &context.traces {
        traces.export(run).await;
    }
    let_go(run, context).await?;
    Ok(Action::await_change())
}

/// Gives the places of a run back whose jobs have all ended.
pub(super) fn release(run: &ImageBuildRun, context: &Context) {
    for (_, job) in jobs(run) {
        context.jobs.release(&job);
    }
}

/// The jobs that a run has had, each with how its platform stands.
fn jobs(run: &ImageBuildRun) -> impl Iterator<Item = (&PlatformStatus, String)> {
    let platforms = run.status.iter().flat_map(|status| &status.platforms);
    platforms.flat_map(|platform| {
        let attempts = platform.attempt.saturating_sub(MOST_TOLD).max(1)..=platform.attempt;
        let uid = run.metadata.uid.as_deref().unwrap_or_default();
        attempts.map(move |attempt| (platform, job_id(uid, &platform.name, attempt)))
    })
}

/// Keeps the run from now on: a job is about to be sent. The run with that comes back.
pub(super) async fn hold(run: &ImageBuildRun, context: &Context) -> Result<Arc<ImageBuildRun>, Error> {
    with_finalizers(run, context, |finalizers| finalizers.push(FINALIZER.to_owned())).await
}

/// Gives the places back, lets the agents forget, and keeps the run no longer: its status tells how all of its jobs ended. The
/// run without that comes back.
async fn let_go(run: &Arc<ImageBuildRun>, context: &Context) -> Result<Arc<ImageBuildRun>, Error> {
    release(run, context);
    if !is_held(run) {
        return Ok(run.clone());
    }
    for (platform, job) in jobs(run) {
        if let Some(agent) = agent_of(run, platform, context) {
            context.jobs.forget(agent, job);
        }
    }
    with_finalizers(run, context, |finalizers| finalizers.retain(|finalizer| finalizer != FINALIZER)).await
}

/// Lets go of a run that goes on. Where that fails, it is let go of at its end.
pub(super) async fn let_go_or_later(run: &Arc<ImageBuildRun>, context: &Context) -> Arc<ImageBuildRun> {
    let_go(run, context).await.unwrap_or_else(|error| {
        if !matches!(&error, Error::Write(error) if is_conflict(error)) {
            warn!(%error, "the run is kept until it has ended");
        }
        run.clone()
    })
}

/// Changes the run's finalizers, if it is still the one that was read.
async fn with_finalizers(
    run: &ImageBuildRun,
    context: &Context,
    change: impl FnOnce(&mut Vec<String>),
) -> Result<Arc<ImageBuildRun>, Error> {
    let api = namespaced::<ImageBuildRun>(&context.client, &run.namespace().unwrap_or_default());
    let name = run.name_any();
    let read =
        if trim::has_all_finalizers(run) { run.metadata.clone() } else { api.get_metadata(&name).await?.metadata };
    let mut finalizers = read.finalizers.unwrap_or_default();
    change(&mut finalizers);
    let patch = serde_json::json!({"metadata": {
        "finalizers": finalizers,
        "uid": run.metadata.uid,
        "resourceVersion": read.resource_version,
    }});
    let changed = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch)).await?.metadata;
    let (before, after) = (read.resource_version.as_deref(), changed.resource_version.as_deref());
    context.replaced.add(&run.uid().unwrap_or_default(), before, after);
    let metadata = trim::written_over(ObjectMeta { managed_fields: None, ..changed }, &run.metadata);
    Ok(Arc::new(ImageBuildRun { metadata, spec: run.spec.clone(), status: run.status.clone() }))
}
