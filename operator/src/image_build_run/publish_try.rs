//! One try to publish a run, for as long as it is wanted, with credentials read afresh.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kiln_crds::ImageBuildRun;
use kiln_crds::image_build::TagStatus;
use kiln_crds::image_build_run::ImageBuildRunStatus;
use kube::ResourceExt;

use super::dereference::dereference;
use super::publish::{Published, publish};
use super::tagging::Tagging;
use super::{image_build, warnings};
use crate::context::{Context, whole};
use crate::references;
use crate::tags::ownership;
use crate::trim;
use kiln_registry::http_client::FailureClass;
use kiln_registry::transfer;

/// Publishes, and stops where the run is cancelled or deleted meanwhile: `None`. The change that says so wakes the next
/// reconcile, which ends the run. What comes when a tag is being written comes too late: the run goes on to its end.
pub(super) async fn publish_while_wanted(
    run: &ImageBuildRun,
    status: &mut ImageBuildRunStatus,
    context: &Context,
    tagging: &Tagging,
) -> Option<Result<Published, references::Error>> {
    let namespace = run.namespace().unwrap_or_default();
    let mut publishing = Box::pin(transfer::of_tenant(&namespace, try_publish(run, status, context, tagging)));
    tokio::select! {
        biased;
        published = &mut publishing => return Some(published),
        () = unwanted(context, run) => {}
    }
    if tagging.has_begun() { Some(publishing.await) } else { None }
}

/// Where the run's ImageBuild has left its tags, as far as it is known.
pub(super) fn left(run: &ImageBuildRun, context: &Context) -> Vec<TagStatus> {
    let Some(build) = image_build(context, run) else { return Vec::new() };
    let own = context.stores.runs.state_filter(|other| {
        other.metadata.namespace == run.metadata.namespace && other.spec.image_build.uid == run.spec.image_build.uid
    });
    ownership::held(&build, own.iter().map(|run| &**run))
}

/// Ends once the run is cancelled or deleted.
async fn unwanted(context: &Context, run: &ImageBuildRun) {
    loop {
        let mut told = std::pin::pin!(context.cancelled.notified());
        // From now on nothing is missed.
        told.as_mut().enable();
        if super::is_unwanted(context, run) {
            return;
        }
        told.await;
    }
}

/// Publishes with credentials read afresh; where they are refused, they are read once more before it counts.
async fn try_publish(
    run: &ImageBuildRun,
    status: &mut ImageBuildRunStatus,
    context: &Context,
    tagging: &Tagging,
) -> Result<Published, references::Error> {
    let pool = super::pool(context, run)?;
    let mut inputs = dereference(context, run, &pool).await?.for_publishing();
    let annotations = annotations(run, context).await?;
    let mut result = publish(context, run, status, &inputs, &annotations, tagging).await;
    if result.as_ref().is_err_and(|fault| fault.class == FailureClass::Credential) {
        inputs = dereference(context, run, &pool).await?.for_publishing();
        result = publish(context, run, status, &inputs, &annotations, tagging).await;
    }
    let percent = run.spec.build.image.as_ref().and_then(|image| image.growth_warning_percent);
    if let (Ok(Published::Image(_)), Some(percent), Some(last_good)) = (&result, percent, &inputs.last_good) {
        status.warnings.retain(warnings::is_of_tags);
        status.warnings.extend(warnings::grown(&status.platforms, last_good, percent));
    }
    status.secrets = inputs.versions;
    Ok(result?)
}

/// The annotations of the index.
async fn annotations<'a>(
    run: &'a ImageBuildRun,
    context: &Context,
) -> Result<Cow<'a, BTreeMap<String, String>>, references::Error> {
    if trim::has_whole_spec(run) {
        return Ok(Cow::Borrowed(&run.spec.build.annotations));
    }
    let _in_memory = context.large.acquire().await;
    let whole = whole(&context.client, run).await.map_err(|source| references::Error::Api {
        what: format!("the ImageBuildRun {}", run.name_any()),
        source: source.into(),
    })?;
    // Of one that is gone nothing is published.
    Ok(Cow::Owned(whole.map(|whole| whole.spec.build.annotations).unwrap_or_default()))
}
