//! Pushes a run's index to every repository, and moves its tags there.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuiltImage, MediaTypes, PlatformImage, PushedCopy, TagStatus};
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformStatus};
use kiln_crds::{ImageBuildRun, Platform};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::dereference::Inputs;
use super::tagging::Tagging;
use super::taken::{copied, spec_of};
use crate::condition::seconds;
use crate::context::Context;
use crate::outage;
use crate::reason::Reason;
use crate::references::{Fault, Target};
use crate::tags::late::{self, Late};
use crate::tags::ownership::Place;
use crate::tags::template::{self, Values, render};
use crate::tags::{self, Asker};
use kiln_registry::http_client::FailureClass;
use kiln_registry::{
    Digest, Error, ErrorKind, INDEX_MEDIA_TYPE, IndexBytes, MANIFEST_LIST_MEDIA_TYPE, PublishOutcome, Reference,
    Repository, Step, Tag, copy_image, inspect,
};

/// How publishing ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Published {
    /// Every repository has answered for the index and its tags, or the archive is written.
    Image(Box<BuiltImage>),
    /// The run is a check: there is nothing to push.
    Nothing,
    /// A newer run has taken over, and nothing more was written.
    Superseded,
    /// The last good image cannot be copied, for this reason; no tag was written.
    CopyFailed(String),
    /// A write of another run may still come; no tag was written.
    Waits(Late),
}

/// Whether layers are copied from one repository to another before the index is pushed.
pub(super) fn transfers(run: &ImageBuildRun, status: &ImageBuildRunStatus) -> bool {
    let build = &run.spec.build;
    build.image.as_ref().is_some_and(|image| !image.copies.is_empty())
        || build.platforms.iter().flatten().any(|platform| platform.image.is_some())
        || copied(run, status).is_some()
}

/// Pushes index and tags, and says in `tagging` how far the tags have come. Fails where another ImageBuild has one of the
/// tags that the run's status claims.
pub async fn publish(
    context: &Context,
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    inputs: &Inputs,
    annotations: &BTreeMap<String, String>,
    tagging: &Tagging,
) -> Result<Published, Fault> {
    let Some(main) = inputs.registry.targets.first() else {
        let archived = run.spec.build.archive.as_ref().map(|archive| archived(run, status, annotations, &archive.path));
        return archived
            .transpose()
            .map(|image| image.map_or(Published::Nothing, |image| Published::Image(image.into())));
    };
    let namespace = run.namespace().unwrap_or_default();
    let asker = Asker {
        uid: &run.spec.image_build.uid,
        namespace: &namespace,
        claimed_at: status.publishing_at.as_ref().map(|at| at.0),
    };
    tags::check(context, &status.tags, asker)?;
    let values = Values::of(run);
    let tagged = inputs.registry.targets.iter().map(|target| Ok((target, render(&target.tags, values)?)));
    let tagged: Vec<(&Target, Vec<Tag>)> = tagged.collect::<Result<_, Fault>>()?;
    // While the first registry is away, nothing is asked of the others.
    let all = push(context, run, status, inputs, annotations, tagging, &tagged);
    outage::ask(inputs.registry.server(&main.repository), Box::pin(all)).await
}

/// Pushes them to the repositories with their tags, of which there is at least one.
async fn push(
    context: &Context,
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    inputs: &Inputs,
    annotations: &BTreeMap<String, String>,
    tagging: &Tagging,
    tagged: &[(&Target, Vec<Tag>)],
) -> Result<Published, Fault> {
    let Some(((main, _), others)) = tagged.split_first() else { return Ok(Published::Nothing) };
    let (index, content) = if let Some(image) = copied(run, status) {
        match copy(image, inputs, main).await {
            Ok(index) => (index.clone(), vec![index.digest]),
            Err(CopyError::Impossible(why)) => return Ok(Published::CopyFailed(why)),
            Err(CopyError::Fault(fault)) => return Err(fault),
        }
    } else {
        take_over(status, run, inputs, main).await?;
        let parts = parts(run, status, Some(main)).await?;
        let content = parts.iter().map(|part| part.digest.clone()).collect();
        (kiln_registry::assemble(&parts, annotations, media_type(run)), content)
    };
    // All that the tags will need first: those of one repository do not move before another is known to take the image.
    let distributed = others.iter().map(|(other, _)| {
        let distributed = async { distribute(main, other, &content).await.map_err(Fault::from) };
        outage::ask(inputs.registry.server(&other.repository), distributed)
    });
    futures::future::try_join_all(distributed).await?;
    if let Some(late) = wait(context, run, status, tagged, tagging).await? {
        return Ok(Published::Waits(late));
    }
    let still_newest = || async {
        // A run that was deleted with its finalizer has no claim any more.
        let known = context.stores.runs.get(&ObjectRef::from_obj(run));
        let is_there = known.is_some_and(|known| known.metadata.uid == run.metadata.uid);
        is_there && context.leader.is_leader() && super::is_newest(context, run)
    };
    for (target, tags) in tagged {
        let Target { repository, client, .. } = target;
        let told = |tag: &Tag, step: Step<'_>| tagging.told(repository, tag, step, &index.digest, Timestamp::now());
        let published = async {
            let published = kiln_registry::publish(client, repository, &index, tags, still_newest, told).await;
            published.map_err(Fault::from)
        };
        let outcome = outage::ask(inputs.registry.server(repository), published).await?;
        if outcome == PublishOutcome::Superseded {
            return Ok(Published::Superseded);
        }
    }
    let texts = |tags: &[Tag]| tags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let copies = tagged
        .iter()
        .skip(1)
        .map(|(target, tags)| PushedCopy { repository: target.repository.to_string(), tags: texts(tags) });
    Ok(Published::Image(Box::new(BuiltImage {
        reference: format!("{}@{}", main.repository, index.digest),
        repository: main.repository.to_string(),
        tags: tagged.first().map(|(_, tags)| texts(tags)).unwrap_or_default(),
        digest: index.digest.to_string(),
        pushed_at: Time(seconds(Timestamp::now())),
        platforms: platforms(status),
        copies: copies.collect(),
    })))
}

/// The write of another run that is waited for before the first tag is moved. A tag is looked at only where there is one.
async fn wait(
    context: &Context,
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    tagged: &[(&Target, Vec<Tag>)],
    tagging: &Tagging,
) -> Result<Option<Late>, Error> {
    let Some(began) = status.publishing_at.as_ref().map(|at| at.0) else { return Ok(None) };
    let others = context.stores.runs.state_filter(|other| late::matters(run, other));
    let moved = |other: &ImageBuildRun| context.moved.get(&other.uid().unwrap_or_default()).0;
    let late = late::of_others(run, &status.tags, began, &others, moved, Timestamp::now());
    let mut found = BTreeMap::new();
    for (Target { repository, client, .. }, tags) in tagged {
        for tag in tags {
            let of = TagStatus { repository: repository.to_string(), tag: tag.to_string(), ..TagStatus::default() };
            let place = Place::of(&of);
            if late.iter().any(|late| late.place == place) {
                let there = client.head_manifest(repository, &tag.clone().into()).await?;
                found.insert(place, there.map(|there| there.digest().to_string()));
            }
        }
    }
    let waits = late::wait(&late, |place| found.get(place).cloned().flatten(), Timestamp::now()).cloned();
    tagging.expect(late);
    Ok(waits)
}

fn platforms(status: &ImageBuildRunStatus) -> Vec<PlatformImage> {
    let platforms = status.platforms.iter().map(|platform| PlatformImage {
        name: platform.name.clone(),
        digest: platform.digest.clone().unwrap_or_default(),
        origin: platform.origin.clone(),
        content: platform.content.clone(),
    });
    platforms.collect()
}

/// Copies what the first repository has into another one.
async fn distribute(main: &Target, other: &Target, content: &[Digest]) -> Result<(), Error> {
    for digest in content {
        copy_image(&main.client, &main.repository, &other.client, &other.repository, digest).await?;
    }
    Ok(())
}

/// Copies the images that were built elsewhere into the first repository.
async fn take_over(
    status: &ImageBuildRunStatus,
    run: &ImageBuildRun,
    inputs: &Inputs,
    main: &Target,
) -> Result<(), Fault> {
    for platform in &status.platforms {
        let is_image = spec_of(run, &platform.name).is_some_and(|spec| spec.image.is_some());
        let Some(origin) = platform.origin.as_ref().filter(|_| is_image) else { continue };
        let origin: Reference = origin.parse().map_err(|_| broken(&platform.name))?;
        let source = inputs.registry.reader(&origin.repository);
        let digest = digest(platform)?;
        copy_image(&source, &origin.repository, &main.client, &main.repository, &digest).await?;
    }
    Ok(())
}

enum CopyError {
    /// It is to be built instead.
    Impossible(String),
    Fault(Fault),
}

/// Copies the last good image into the first repository.
async fn copy(image: &BuiltImage, inputs: &Inputs, main: &Target) -> Result<IndexBytes, CopyError> {
    let impossible = |why: String| CopyError::Impossible(format!("{} cannot be copied: {why}", image.reference));
    let from: Repository = image.repository.parse().map_err(|error| impossible(format!("{error}")))?;
    let digest: Digest = image.digest.parse().map_err(|_| impossible("its digest is none".to_owned()))?;
    let source = inputs.registry.reader(&from);
    let to = &main.repository;
    let fetched = async {
        copy_image(&source, &from, &main.client, to, &digest).await?;
        main.client.get_manifest(to, &digest.clone().into()).await
    };
    fetched.await.map(IndexBytes::from).map_err(|error| {
        // What may be read from the old registry is of no matter where the image can be built.
        let of_source = error.registry() == from.registry && from.registry != to.registry;
        if is_to_be_built(error.kind(), error.class(), of_source) {
            impossible(error.to_string())
        } else {
            CopyError::Fault(error.into())
        }
    })
}

/// Whether an image that could not be copied is built instead, and not tried again.
fn is_to_be_built(kind: ErrorKind, class: FailureClass, of_source: bool) -> bool {
    match class {
        FailureClass::User => true,
        FailureClass::Credential => of_source,
        // A layer of it has been removed.
        FailureClass::Infrastructure => kind == ErrorKind::BlobUnknown,
    }
}

/// The image in a tarball, or in one a platform.
fn archived(
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    annotations: &BTreeMap<String, String>,
    path: &str,
) -> Result<BuiltImage, Fault> {
    let path = template::path(path, Values::of(run))?;
    let parts = status.platforms.iter().map(part).collect::<Result<Vec<_>, Fault>>()?;
    let index = kiln_registry::assemble(&parts, annotations, media_type(run));
    Ok(BuiltImage {
        reference: format!("archive:{path}"),
        repository: String::new(),
        tags: Vec::new(),
        digest: index.digest.to_string(),
        pushed_at: Time(seconds(Timestamp::now())),
        platforms: platforms(status),
        copies: Vec::new(),
    })
}

fn media_type(run: &ImageBuildRun) -> &'static str {
    match run.spec.build.image.as_ref().and_then(|image| image.media_types) {
        Some(MediaTypes::Docker) => MANIFEST_LIST_MEDIA_TYPE,
        Some(MediaTypes::OCI) | None => INDEX_MEDIA_TYPE,
    }
}

/// What the index says of each platform, in the spec's order. Of images that may need more of their operating system than
/// a platform's name tells, the configuration is read.
async fn parts(
    run: &ImageBuildRun,
    status: &ImageBuildRunStatus,
    main: Option<&Target>,
) -> Result<Vec<kiln_registry::PlatformImage>, Fault> {
    let mut parts = Vec::new();
    for platform in &status.platforms {
        let mut part = part(platform)?;
        let elsewhere = spec_of(run, &platform.name).is_some_and(|spec| spec.image.is_some() || spec.archive.is_some());
        if let Some(main) = main.filter(|_| elsewhere || part.platform.os != "linux") {
            let by_digest = part.digest.clone().into();
            let image = inspect(&main.client, &main.repository, &by_digest, &part.platform).await?;
            part.platform.os_version =
                image.platform.and_then(|platform| platform.os_version).or(part.platform.os_version);
            part.os_features = image.os_features;
        }
        parts.push(part);
    }
    Ok(parts)
}

fn part(platform: &PlatformStatus) -> Result<kiln_registry::PlatformImage, Fault> {
    let broken = || broken(&platform.name);
    Ok(kiln_registry::PlatformImage {
        platform: platform.name.parse::<Platform>().map_err(|_| broken())?,
        os_features: Vec::new(),
        media_type: platform.media_type.clone().unwrap_or_default(),
        digest: digest(platform)?,
        size: platform.size.and_then(|size| u64::try_from(size).ok()).ok_or_else(broken)?,
    })
}

fn digest(platform: &PlatformStatus) -> Result<Digest, Fault> {
    platform.digest.as_deref().unwrap_or_default().parse().map_err(|_| broken(&platform.name))
}

fn broken(platform: &str) -> Fault {
    let message = format!("the builder's answer for {platform} is no image: report this as a fault of Kiln");
    Fault::user(Reason::RegistryProtocol, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_copied_is_built() {
        use ErrorKind as Kind;
        use FailureClass as Class;
        for (kind, class, of_source, built) in [
            (Kind::NotFound, Class::User, false, true),
            (Kind::Unauthorized, Class::Credential, true, true),
            (Kind::Unauthorized, Class::Credential, false, false),
            (Kind::BlobUnknown, Class::Infrastructure, false, true),
            (Kind::BlobUnknown, Class::Infrastructure, true, true),
            (Kind::Unavailable, Class::Infrastructure, true, false),
        ] {
            assert_eq!(is_to_be_built(kind, class, of_source), built, "{kind:?} {of_source}");
        }
    }
}
