//! Pushes a run's index and moves its tags.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuiltImage, PlatformImage};
use kiln_crds::image_build_run::ImageBuildRunStatus;
use kiln_crds::{ImageBuildRun, Platform};
use kube::ResourceExt;

use super::dereference::Inputs;
use super::tags::{Values, render};
use crate::condition::seconds;
use crate::context::Context;
use crate::reason::Reason;
use crate::references::Fault;
use kiln_registry::{self as registry, IndexBytes, PublishOutcome};

/// Pushes index and tags. `None`: a newer run has taken over, and nothing more was written.
pub async fn publish(
    context: &Context,
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    inputs: &Inputs,
) -> Result<Option<BuiltImage>, Fault> {
    let created = run.creation_timestamp().map_or_else(Timestamp::now, |time| time.0);
    let values = Values {
        reference: run.spec.reference.as_deref(),
        commit: run.spec.commit.as_deref(),
        created,
        number: run.spec.number,
    };
    let tags = render(run.spec.build.image.as_ref().map_or(&[], |image| &image.tags), values)?;
    let index = index(run, status)?;
    let Some(target) = inputs.registry.targets.first() else { return Ok(None) };
    let repository = &target.repository;
    let still_newest = || async { context.leader.is_leader() && super::is_newest(context, run) };
    let outcome = kiln_registry::publish(&target.client, repository, &index, &tags, still_newest).await?;
    if outcome == PublishOutcome::Superseded {
        return Ok(None);
    }
    Ok(Some(BuiltImage {
        reference: format!("{repository}@{}", index.digest),
        repository: repository.to_string(),
        tags: tags.iter().map(ToString::to_string).collect(),
        digest: index.digest.to_string(),
        pushed_at: Time(seconds(Timestamp::now())),
        platforms: status
            .platforms
            .iter()
            .map(|platform| PlatformImage {
                name: platform.name.clone(),
                digest: platform.digest.clone().unwrap_or_default(),
                origin: platform.origin.clone(),
                content: platform.content.clone(),
            })
            .collect(),
        copies: Vec::new(),
    }))
}

/// The index of the platforms' manifests, in the spec's order.
fn index(run: &ImageBuildRun, status: &ImageBuildRunStatus) -> Result<IndexBytes, Fault> {
    let broken = |platform: &str| {
        let message = format!("the builder's answer for {platform} is no image: report this as a fault of Kiln");
        Fault::user(Reason::RegistryProtocol, message)
    };
    let parts = status.platforms.iter().map(|platform| {
        let name = &platform.name;
        let digest = platform.digest.as_deref().unwrap_or_default().parse().map_err(|_| broken(name))?;
        let size = platform.size.and_then(|size| u64::try_from(size).ok()).ok_or_else(|| broken(name))?;
        let parsed: Platform = name.parse().map_err(|_| broken(name))?;
        Ok(kiln_registry::PlatformImage {
            platform: parsed,
            media_type: platform.media_type.clone().unwrap_or_default(),
            digest,
            size,
        })
    });
    let parts = parts.collect::<Result<Vec<_>, Fault>>()?;
    Ok(kiln_registry::assemble(&parts, &run.spec.build.annotations))
}
