//! Platforms whose images were built elsewhere: read from their registry, and taken as they are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuildFailure, BuiltImage, PlatformSpec};
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, PlatformStatus};
use kiln_crds::{ImageBuildRun, Platform};

use super::dereference::Inputs;
use super::end::failure_of;
use super::job::resolved;
use super::outcome::sized;
use crate::image_build::resolve::unreadable;
use crate::outage;
use crate::reason::Reason;
use crate::references::Fault;
use crate::tags::template;
use kiln_registry::{Image, Reference, inspect};

/// The last good image that a run copies instead of building. `None`: it builds, or the copy has failed.
#[must_use]
pub fn copied<'a>(run: &'a ImageBuildRun, status: &ImageBuildRunStatus) -> Option<&'a BuiltImage> {
    run.spec.copy_of.as_ref().filter(|_| status.copy_failure.is_none())
}

/// How the platforms of a run stand at its beginning: those of an image that is copied are there.
#[must_use]
pub fn platforms(run: &ImageBuildRun, status: &ImageBuildRunStatus, now: Timestamp) -> Vec<PlatformStatus> {
    let copied = copied(run, status);
    let named = run.spec.build.platforms.iter().flatten().map(|platform| {
        let name = platform.name.clone();
        let Some(copied) = copied else { return PlatformStatus { name, ..PlatformStatus::default() } };
        let there = copied.platforms.iter().find(|there| there.name == name);
        PlatformStatus {
            phase: PlatformPhase::Succeeded,
            finished_at: Some(MicroTime(now)),
            digest: there.map(|there| there.digest.clone()),
            origin: there.and_then(|there| there.origin.clone()),
            content: there.and_then(|there| there.content.clone()),
            name,
            ..PlatformStatus::default()
        }
    });
    named.collect()
}

/// The file on the archive volume that a platform's image was taken from, or that it was written to.
#[must_use]
pub fn archive(run: &ImageBuildRun, platform: &str) -> Option<String> {
    let build = &run.spec.build;
    let platforms = build.platforms.as_deref().unwrap_or_default();
    let from = platforms.iter().find(|spec| spec.name == platform).and_then(|spec| spec.archive.clone());
    from.or_else(|| {
        let path = template::path(&build.archive.as_ref()?.path, template::Values::of(run)).ok()?;
        Some(template::of_platform(&path, platform, platforms.len() > 1))
    })
}

/// What the build says of a platform.
#[must_use]
pub fn spec_of<'a>(run: &'a ImageBuildRun, platform: &str) -> Option<&'a PlatformSpec> {
    run.spec.build.platforms.iter().flatten().find(|spec| spec.name == platform)
}

/// The platforms that wait to be taken from elsewhere.
pub fn waiting<'a>(
    run: &'a ImageBuildRun,
    platforms: &'a mut [PlatformStatus],
) -> impl Iterator<Item = (&'a str, &'a mut PlatformStatus)> {
    platforms.iter_mut().filter(|platform| platform.phase == PlatformPhase::Queued).filter_map(|platform| {
        let image = spec_of(run, &platform.name)?.image.as_deref()?;
        Some((image, platform))
    })
}

/// Reads the images that were built elsewhere. A failure names its platform.
pub async fn take(
    run: &ImageBuildRun,
    inputs: &Inputs,
    platforms: &mut [PlatformStatus],
    now: Timestamp,
) -> Result<(), (String, Fault)> {
    for (image, platform) in waiting(run, platforms) {
        let field = format!("platforms/{}", platform.name);
        let image = resolved(run, &field).and_then(|resolved| resolved.image.as_deref()).unwrap_or(image);
        *platform = read(inputs, image, platform, now).await.map_err(|fault| (platform.name.clone(), fault))?;
    }
    Ok(())
}

async fn read(
    inputs: &Inputs,
    image: &str,
    platform: &PlatformStatus,
    now: Timestamp,
) -> Result<PlatformStatus, Fault> {
    let name = &platform.name;
    let invalid = |what: String| Fault::user(Reason::RepositoryInvalid, format!("platforms[{name}].image: {what}"));
    let reference: Reference = image.parse().map_err(|error| invalid(format!("{error}")))?;
    let wanted: Platform = name.parse().map_err(|error| invalid(format!("{error}")))?;
    let client = inputs.registry.reader(&reference.repository);
    let found = async {
        let found = inspect(&client, &reference.repository, &reference.identifier, &wanted).await;
        found.map_err(|error| unreadable(&format!("platforms[{name}].image"), &error))
    };
    let found = outage::ask(inputs.registry.server(&reference.repository), found).await?;
    check(&found, &wanted).map_err(|message| {
        Fault::user(Reason::PlatformNotInIndex, format!("platforms[{name}].image: {image} {message}"))
    })?;
    Ok(PlatformStatus { finished_at: Some(MicroTime(now)), ..taken(&found, &reference, platform) })
}

/// Whether an image is of the platform that it is to stand for.
fn check(image: &Image, wanted: &Platform) -> Result<(), String> {
    match &image.platform {
        Some(of) if of.os != wanted.os || of.architecture != wanted.architecture => {
            Err(format!("is an image for {of}, not for {wanted}: name another, or correct the platform"))
        }
        _ => Ok(()),
    }
}

fn taken(image: &Image, reference: &Reference, platform: &PlatformStatus) -> PlatformStatus {
    let digest = image.manifest.digest().to_string();
    let layers = image.layers.iter().map(|layer| (layer.bytes, layer.created_by.as_deref()));
    let bytes = image.layers.iter().fold(image.config_bytes, |sum, layer| sum.saturating_add(layer.bytes));
    PlatformStatus {
        name: platform.name.clone(),
        phase: PlatformPhase::Succeeded,
        origin: Some(format!("{}@{digest}", reference.repository)),
        digest: Some(digest),
        size: i64::try_from(image.manifest.size()).ok(),
        media_type: Some(image.manifest.media_type().to_string()),
        content: Some(sized(bytes, layers)),
        ..PlatformStatus::default()
    }
}

/// Why a run cannot take a platform's image.
#[must_use]
pub fn failure(platform: String, fault: Fault, run: &ImageBuildRun) -> BuildFailure {
    BuildFailure { platform: Some(platform), ..failure_of(fault, run) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_registry::{Descriptor, Layer};
    use serde_json::json;

    fn run(spec: &serde_json::Value) -> ImageBuildRun {
        let copy_of = json!({
            "ref": "registry.example/app@sha256:1", "repository": "registry.example/app", "digest": "sha256:1",
            "pushedAt": "2024-01-01T00:00:00Z",
            "platforms": [{"name": "linux/amd64", "digest": "sha256:2", "content": {"compressedBytes": 7}}],
        });
        let spec = json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": 2, "inputHash": "h", "copyOf": copy_of, "build": spec,
        });
        ImageBuildRun::new("app-2", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_copied_image_has_its_platforms_until_copying_has_failed() {
        let run = run(&json!({"platforms": [{"name": "linux/amd64"}]}));
        let mut status = ImageBuildRunStatus::default();
        let there = platforms(&run, &status, Timestamp::UNIX_EPOCH);
        assert_eq!((there[0].phase, there[0].digest.as_deref()), (PlatformPhase::Succeeded, Some("sha256:2")));
        assert_eq!(there[0].content.as_ref().map(|content| content.compressed_bytes), Some(7));
        status.copy_failure = Some("gone".into());
        let queued = PlatformStatus { name: "linux/amd64".into(), ..PlatformStatus::default() };
        assert_eq!(platforms(&run, &status, Timestamp::UNIX_EPOCH), [queued]);
    }

    #[test]
    fn archives_have_a_file_a_platform() {
        let (amd64, arm64) = (json!({"name": "linux/amd64"}), json!({"name": "linux/arm64"}));
        let from = json!({"name": "linux/amd64", "archive": "old.tar"});
        for (build, expected) in [
            (json!({"platforms": [amd64]}), None),
            (json!({"platforms": [from, arm64]}), Some("old.tar")),
            (json!({"platforms": [amd64], "archive": {"path": "app-{{run}}.tar"}}), Some("app-2.tar")),
            (json!({"platforms": [amd64, arm64], "archive": {"path": "app.tar"}}), Some("app-linux-amd64.tar")),
        ] {
            assert_eq!(archive(&run(&build), "linux/amd64").as_deref(), expected, "{build}");
        }
    }

    #[test]
    fn only_an_image_of_the_platform_is_taken() {
        let digest = kiln_registry::sha256_digest(b"m");
        let image = |platform: Option<&str>| Image {
            manifest: Descriptor::new("m".into(), 5, digest.clone()),
            platform: platform.map(|platform| platform.parse().unwrap()),
            os_features: Vec::new(),
            config_bytes: 3,
            layers: vec![Layer { bytes: 4, created_by: Some("COPY a".into()) }],
        };
        let wanted: Platform = "windows/amd64".parse().unwrap();
        for (of, expected) in [
            (Some("windows(10.0.20348)/amd64"), true),
            (Some("windows/amd64"), true),
            (None, true),
            (Some("linux/amd64"), false),
            (Some("windows/arm64"), false),
        ] {
            assert_eq!(check(&image(of), &wanted).is_ok(), expected, "{of:?}");
        }
        let reference: Reference = "registry.example/app:v1".parse().unwrap();
        let platform = PlatformStatus { name: "windows/amd64".into(), ..PlatformStatus::default() };
        let status = taken(&image(None), &reference, &platform);
        assert_eq!(status.origin, Some(format!("registry.example/app@{digest}")));
        assert_eq!((status.size, status.content.map(|content| content.compressed_bytes)), (Some(5), Some(7)));
    }
}
