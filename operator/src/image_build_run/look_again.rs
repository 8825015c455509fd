//! Looks again at the tags that a run has moved, where a write of another run had no answer: one that comes late is put right.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build::{BuiltImage, TagStatus, UnknownWrite};
use kiln_crds::image_build_run::ImageBuildRunStatus;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use tracing::warn;

use super::replaced::write_status;
use super::status::short_digest;
use super::{Error, image_build};
use crate::context::{Context, until, whole};
use crate::reason::Reason;
use crate::references::{self, Target, pool_bundles, registry_access};
use crate::tags::late::{self, Late};
use crate::tags::ownership::Place;
use crate::tags::{self, Asker};
use kiln_registry::{Digest, IndexBytes, Tag};

/// Looks if that is due. A look that fails is made again when the next one is due.
pub(super) async fn look_again(
    run: &Arc<ImageBuildRun>,
    status: &ImageBuildRunStatus,
    context: &Context,
    now: Timestamp,
) -> Result<Action, Error> {
    let uid = run.uid().unwrap_or_default();
    let (Some(image), Some(moved_at)) = (&status.image, late::moved_at(run)) else { return Ok(Action::await_change()) };
    let mut late = Vec::new();
    if now.duration_since(moved_at) < late::RECKONED {
        let others = context.stores.runs.state_filter(|other| late::matters(run, other));
        late = late::looked_for(run, &others, now);
    }
    if late.is_empty() {
        context.looked.remove(&uid);
        return Ok(Action::await_change());
    }
    let next = |looked_at| {
        let at = late::next_look(moved_at, looked_at);
        Action::requeue(until(at, now) + std::time::Duration::from_millis(10))
    };
    let looked_at = context.looked.get(&uid);
    if late::next_look(moved_at, looked_at) > now {
        return Ok(next(looked_at));
    }
    let Some(_turn) = context.moving.begin(&run.spec.image_build.uid) else {
        return Ok(Action::requeue(std::time::Duration::from_secs(1)));
    };
    match look(run, image, &late, context).await {
        Ok(()) => {}
        Err(LookError::Write(error)) => return Err(error.into()),
        Err(error) => warn!(run = run.name_any(), %error, "tags could not be looked at again"),
    }
    context.looked.set(&uid, Some(now));
    Ok(next(Some(now)))
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Reference(#[from] references::Error),
    #[error(transparent)]
    Registry(#[from] kiln_registry::Error),
    #[error(transparent)]
    Write(#[from] kube::Error),
}

async fn look(run: &Arc<ImageBuildRun>, image: &BuiltImage, late: &[Late], context: &Context) -> Result<(), LookError> {
    let (Some(build), Ok(digest)) = (image_build(context, run), image.digest.parse::<Digest>()) else { return Ok(()) };
    let is_looked_for = |tag: &&TagStatus| {
        tag.digest.as_deref() == Some(&image.digest) && late.iter().any(|write| write.place == Place::of(tag))
    };
    let of_run = run.status.iter().flat_map(|status| &status.tags);
    let own: Vec<TagStatus> = of_run.filter(is_looked_for).cloned().collect();
    let namespace = run.namespace().unwrap_or_default();
    // Whoever has them by now keeps them.
    let asker = Asker { uid: &run.spec.image_build.uid, namespace: &namespace, claimed_at: None };
    tags::check(context, &own, asker).map_err(references::Error::from)?;
    let pool = super::pool(context, run).map_err(references::Error::from)?;
    let reading = async {
        let bundles = pool_bundles(context, &pool).await?;
        registry_access(context, &namespace, &run.spec.build, &pool, &bundles).await
    };
    let access = references::bounded(Box::pin(reading)).await?;
    let mut index = None;
    for Target { repository, client, .. } in &access.targets {
        for claimed in &own {
            let place = Place::of(claimed);
            let of_target = TagStatus { repository: repository.to_string(), ..claimed.clone() };
            let Ok(tag) = claimed.tag.parse::<Tag>() else { continue };
            if Place::of(&of_target) != place {
                continue;
            }
            let there = client.head_manifest(repository, &tag.clone().into()).await?;
            let there = there.map(|there| there.digest().clone());
            if there.as_ref() == Some(&digest) {
                continue;
            }
            if index.is_none() {
                if !say_unknown(run, &own, context).await? {
                    return Ok(());
                }
                index = Some(IndexBytes::from(client.get_manifest(repository, &digest.clone().into()).await?));
            }
            let Some(index) = &index else { continue };
            kiln_registry::write_tag(client, repository, index, &tag, |_| ()).await?;
            let message = put_right(&of_target, there.as_ref(), late, run);
            warn!(message, "a tag is put right");
            context.event(&*build, EventType::Warning, Reason::TagMoved.as_str(), &message);
        }
    }
    Ok(())
}

/// Before it writes a tag anew, the run says that nobody knows what becomes of it: an operator that dies here has said so.
/// Whether it could: it may be gone.
async fn say_unknown(run: &Arc<ImageBuildRun>, tags: &[TagStatus], context: &Context) -> Result<bool, kube::Error> {
    let _in_memory = context.large.acquire().await;
    // What the copy leaves out is not to be lost.
    let Some(mut found) = whole(&context.client, &**run).await? else { return Ok(false) };
    let Some(status) = &mut found.status else { return Ok(false) };
    let now = MicroTime(Timestamp::now());
    for tag in status.tags.iter_mut().filter(|tag| tags.iter().any(|own| Place::of(own) == Place::of(tag))) {
        tag.unknown = Some(UnknownWrite { digest: tag.digest.clone(), sent_at: now.clone() });
    }
    let status = status.clone();
    write_status(context, &found, &status).await?;
    Ok(true)
}

/// What is told of a tag that was elsewhere.
fn put_right(tag: &TagStatus, there: Option<&Digest>, late: &[Late], run: &ImageBuildRun) -> String {
    let late = late.iter().filter(|write| write.place == Place::of(tag));
    let TagStatus { repository, tag, digest, .. } = tag;
    let is_known =
        late.clone().find(|write| write.digest.is_some() && write.digest.as_deref() == there.map(AsRef::as_ref));
    let was = match (there, is_known) {
        (None, _) => "it was gone".to_owned(),
        (Some(there), Some(write)) => format!(
            "a write of it by {}, which the registry had not answered, came late and moved it to {}",
            write.whose(),
            short_digest(there.as_ref())
        ),
        (Some(there), None) => format!(
            "a write that the registry had not answered, or something else, had moved it to {}",
            short_digest(there.as_ref())
        ),
    };
    let belongs = short_digest(digest.as_deref().unwrap_or_default());
    format!("the tag {tag} of {repository} is put right: {was}; it is {belongs} of {} again", run.name_any())
}
