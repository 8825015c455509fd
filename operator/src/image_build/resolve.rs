//! What an ImageBuild names beside its source's commit, and what that is now: tags to digests, refs to commits, other
//! ImageBuilds to their last good images.

use std::collections::BTreeMap;

use kiln_crds::image_build::{GitSource, ImageBuildStatus};
use kiln_crds::{ImageBuild, ImageBuildSpec, Platform};
use kube::ResourceExt;
use serde::Deserialize;

use crate::outage;
use crate::reason::Reason;
use crate::references::{Fault, RegistryAccess};
use kiln_registry::http_client::FailureClass;
use kiln_registry::{Digest, ErrorKind, Identifier, Reference, Repository};

/// Something that a spec names and that may be something else at another time.
#[derive(Clone, Debug, PartialEq)]
pub struct Name<'a> {
    /// Where it stands: `source`, `contexts/NAME` or `platforms/NAME`.
    pub field: String,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What is named.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind<'a> {
    /// A Git repository.
    Git(&'a GitSource),
    /// An image.
    Image(&'a str),
    /// The image of one platform.
    PlatformImage(&'a str, Platform),
    /// The last good image of another ImageBuild.
    ImageBuild(&'a str),
}

/// What a spec names beside its Git source, in the order in which it is recorded: the source, contexts and platforms as they
/// stand.
#[must_use]
pub fn names(spec: &ImageBuildSpec) -> Vec<Name<'_>> {
    let source = spec.source.as_ref().and_then(|source| source.image.as_ref());
    let source = source.map(|image| Name { field: "source".to_owned(), kind: Kind::Image(&image.reference) });
    let contexts = spec.contexts.iter().filter_map(|context| {
        let kind = match (&context.git, &context.image, &context.image_build) {
            (Some(git), ..) => Kind::Git(git),
            (_, Some(image), _) => Kind::Image(image),
            (.., Some(build)) => Kind::ImageBuild(&build.name),
            _ => return None,
        };
        Some(Name { field: format!("contexts/{}", context.name), kind })
    });
    let platforms = spec.platforms.iter().flatten().filter_map(|spec| {
        let platform: Platform = spec.name.parse().ok()?;
        let field = format!("platforms/{platform}");
        Some(Name { field, kind: Kind::PlatformImage(spec.image.as_deref()?, platform) })
    });
    source.into_iter().chain(contexts).chain(platforms).collect()
}

/// What is written of the source's ref and of each name: where it changes, all is looked up again.
#[must_use]
pub fn written(spec: &ImageBuildSpec) -> Vec<String> {
    let of_git = |git: &GitSource| format!("{} {}", git.url, git.reference.as_deref().unwrap_or_default());
    let source = spec.git().map(of_git);
    let names = names(spec).into_iter().map(|Name { field, kind }| match kind {
        Kind::Git(git) => format!("{field} {}", of_git(git)),
        Kind::Image(image) | Kind::PlatformImage(image, _) => format!("{field} {image}"),
        Kind::ImageBuild(name) => format!("{field} ImageBuild {name}"),
    });
    source.into_iter().chain(names).collect()
}

/// The digest of an image, as `registry/path@digest`. One that is named by digest is that.
pub async fn image(access: &RegistryAccess, field: &str, text: &str) -> Result<String, Fault> {
    let reference = parse(field, text)?;
    if matches!(reference.identifier, Identifier::Digest(_)) {
        return Ok(reference.to_string());
    }
    let mut outcome = Ok(None);
    for (client, repository) in access.readers(&reference.repository) {
        let found = async {
            let found = client.head_manifest(&repository, &reference.identifier).await;
            found.map_err(|error| unreadable(field, &error))
        };
        outcome = outage::ask(access.server(&repository), found).await;
        if let Ok(Some(found)) = &outcome {
            return Ok(by_digest(&reference.repository, found.digest()));
        }
    }
    match outcome {
        Err(fault) => Err(fault),
        Ok(_) => Err(not_found(field, &reference)),
    }
}

/// The digest of one platform's image: of an index that of its entry.
pub async fn platform_image(
    access: &RegistryAccess,
    field: &str,
    text: &str,
    platform: &Platform,
) -> Result<String, Fault> {
    let reference = parse(field, text)?;
    let mut outcome = Err(not_found(field, &reference));
    for (client, repository) in access.readers(&reference.repository) {
        let manifest = async {
            match client.get_manifest(&repository, &reference.identifier).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                found => found.map(Some).map_err(|error| unreadable(field, &error)),
            }
        };
        match outage::ask(access.server(&repository), manifest).await {
            Ok(Some(manifest)) => {
                let picked = pick(&manifest.bytes, platform).map_err(|there| {
                    let message = format!(
                        "{field}: {reference} has no image for {platform}: it has {}",
                        if there.is_empty() { "none that runs".to_owned() } else { there.join(", ") }
                    );
                    Fault::user(Reason::PlatformNotInIndex, message)
                })?;
                let digest = picked.unwrap_or_else(|| manifest.descriptor.digest().clone());
                return Ok(by_digest(&reference.repository, &digest));
            }
            Ok(None) => outcome = Err(not_found(field, &reference)),
            Err(fault) => outcome = Err(fault),
        }
    }
    outcome
}

fn parse(field: &str, text: &str) -> Result<Reference, Fault> {
    text.parse().map_err(|error| Fault::user(Reason::RepositoryInvalid, format!("{field}: {error}")))
}

fn by_digest(repository: &Repository, digest: &Digest) -> String {
    format!("{repository}@{digest}")
}

fn not_found(field: &str, reference: &Reference) -> Fault {
    let message =
        format!("{field}: there is no {} at {}: check repository and tag", reference, reference.repository.registry);
    Fault::user(Reason::ImageNotFound, message)
}

/// A failure to read, in the words of a pull.
#[must_use]
pub fn unreadable(field: &str, error: &kiln_registry::Error) -> Fault {
    let mut fault = Fault::from(error.clone());
    fault.message = format!("{field}: {}", fault.message);
    fault.reason = match error.kind() {
        ErrorKind::Denied => Reason::RegistryUnauthorized,
        ErrorKind::NotFound | ErrorKind::NameUnknown | ErrorKind::NameInvalid => Reason::ImageNotFound,
        _ => fault.reason,
    };
    fault
}

/// An image index, as far as its platforms go
/// (<https://github.com/opencontainers/image-spec/blob/main/image-index.md>).
#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    digest: Digest,
    platform: Option<EntryPlatform>,
}

#[derive(Deserialize)]
struct EntryPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
}

impl EntryPlatform {
    /// Normalised. `None`: an attestation's, which is `unknown/unknown`.
    fn normalised(self) -> Option<Platform> {
        let Self { os, architecture, variant, os_version } = self;
        if os == "unknown" {
            return None;
        }
        let variant = variant.filter(|variant| !variant.is_empty()).map(|v| format!("/{v}")).unwrap_or_default();
        let version = os_version.filter(|version| !version.is_empty()).map(|v| format!("({v})")).unwrap_or_default();
        format!("{os}{version}/{architecture}{variant}").parse().ok()
    }
}

/// The digest of the entry for a platform. `None`: it is no index but an image. `Err`: the platforms that it has.
///
/// An asked os.version such as `10.0.20348` has every one that goes on from there, such as `10.0.20348.2227`.
fn pick(manifest: &[u8], wanted: &Platform) -> Result<Option<Digest>, Vec<String>> {
    // What is no JSON is found out by whoever takes it.
    let Ok(Index { manifests: Some(entries) }) = serde_json::from_slice(manifest) else { return Ok(None) };
    let mut there = Vec::new();
    for Entry { digest, platform } in entries {
        let Some(platform) = platform.and_then(EntryPlatform::normalised) else { continue };
        let version = match (&wanted.os_version, &platform.os_version) {
            (None, _) => true,
            (Some(wanted), Some(has)) => has == wanted || has.starts_with(&format!("{wanted}.")),
            (Some(_), None) => false,
        };
        let same = |platform: &Platform| (platform.os.clone(), platform.architecture.clone(), platform.variant.clone());
        if version && same(&platform) == same(wanted) {
            return Ok(Some(digest));
        }
        there.push(platform.to_string());
    }
    Err(there)
}

/// The last good image of another ImageBuild of the namespace, by digest. `Err`: why there is none yet.
pub fn image_build(
    field: &str,
    name: &str,
    find: impl Fn(&str) -> Option<std::sync::Arc<ImageBuild>>,
) -> Result<String, Fault> {
    let waits = |message: String| Fault {
        class: FailureClass::Infrastructure,
        ..Fault::user(Reason::ContextNotReady, format!("{field}: {message}"))
    };
    let Some(build) = find(name) else {
        return Err(waits(format!("the ImageBuild {name} is not in this namespace: create it")));
    };
    let image = build.status.as_ref().and_then(|status: &ImageBuildStatus| status.image.as_ref());
    image.map(|image| image.reference.clone()).ok_or_else(|| {
        let nowhere = build.spec.image.is_none();
        waits(if nowhere {
            format!("the ImageBuild {name} pushes no image: give it an image.repository")
        } else {
            format!("waiting for the first image of the ImageBuild {name}")
        })
    })
}

/// The way by which an ImageBuild is a context of itself, such as `app, base, app`.
#[must_use]
pub fn cycle(start: &str, contexts: &BTreeMap<String, Vec<String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in way.last().and_then(|last| contexts.get(last)).into_iter().flatten() {
            let longer: Vec<String> = way.iter().chain([next]).cloned().collect();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push(longer);
            }
        }
    }
    None
}

/// The ImageBuilds that another one names as contexts.
#[must_use]
pub fn image_build_contexts(build: &ImageBuild) -> Vec<String> {
    build.spec.contexts.iter().filter_map(|context| Some(context.image_build.as_ref()?.name.clone())).collect()
}

/// The same for each ImageBuild of a namespace.
#[must_use]
pub fn by_name<'a>(builds: impl Iterator<Item = &'a ImageBuild>) -> BTreeMap<String, Vec<String>> {
    builds.map(|build| (build.name_any(), image_build_contexts(build))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn spec(json: serde_json::Value) -> ImageBuildSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn names_stand_in_a_fixed_order() {
        let spec = spec(serde_json::json!({
            "source": {"image": {"ref": "ghcr.io/acme/source:1"}},
            "contexts": [
                {"name": "lib", "git": {"url": "https://git.example/lib.git", "ref": "main"}},
                {"name": "base", "image": "alpine:3"},
                {"name": "tools", "imageBuild": {"name": "tools"}},
            ],
            "platforms": [{"name": "linux/amd64"}, {"name": "linux/aarch64", "image": "ghcr.io/acme/app:arm"}],
            "image": {"repository": "ghcr.io/acme/app"},
        }));
        insta::assert_snapshot!(written(&spec).join("\n"), @r"
        source ghcr.io/acme/source:1
        contexts/lib https://git.example/lib.git main
        contexts/base alpine:3
        contexts/tools ImageBuild tools
        platforms/linux/arm64 ghcr.io/acme/app:arm
        ");
    }

    #[test]
    fn of_an_index_the_image_of_the_platform_is_taken() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let entry = |n: u8, platform: serde_json::Value| serde_json::json!({"digest": digest(n), "platform": platform});
        let index = serde_json::json!({"manifests": [
            entry(1, serde_json::json!({"os": "linux", "architecture": "amd64"})),
            entry(2, serde_json::json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
            entry(3, serde_json::json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
            entry(4, serde_json::json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.5329"})),
            entry(5, serde_json::json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.2227"})),
            entry(6, serde_json::json!({"os": "unknown", "architecture": "unknown"})),
        ]})
        .to_string();
        let pick = |name: &str| pick(index.as_bytes(), &name.parse().unwrap()).map(|d| d.unwrap().to_string());
        for (name, expected) in [
            ("linux/amd64", Some(1)),
            ("linux/arm64", Some(2)),
            ("linux/arm", Some(3)),
            ("windows/amd64", Some(4)),
            ("windows(10.0.20348)/amd64", Some(5)),
            ("windows(10.0.20348.2227)/amd64", Some(5)),
            ("windows(10.0.2)/amd64", None),
            ("linux(5)/amd64", None),
            ("linux/amd64/v3", None),
            ("linux/arm/v6", None),
            ("linux/s390x", None),
        ] {
            assert_eq!(pick(name).ok(), expected.map(digest), "{name}");
        }
        insta::assert_snapshot!(pick("linux/s390x").unwrap_err().join(" "), @"linux/amd64 linux/arm64 linux/arm/v7 windows(10.0.17763.5329)/amd64 windows(10.0.20348.2227)/amd64");
        assert_eq!(super::pick(br#"{"layers": []}"#, &"linux/amd64".parse().unwrap()), Ok(None));
    }

    #[test]
    fn a_cycle_is_found_by_each_of_its_members() {
        let contexts = |pairs: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
            pairs.iter().map(|(name, of)| ((*name).to_owned(), of.iter().map(|o| (*o).to_owned()).collect())).collect()
        };
        let all = contexts(&[("a", &["x", "b"]), ("b", &["c"]), ("c", &["a"]), ("d", &["a"]), ("e", &["e"])]);
        let cycle = |name: &str| cycle(name, &all).map(|way| way.join(" "));
        assert_eq!(cycle("a").as_deref(), Some("a b c a"));
        assert_eq!(cycle("c").as_deref(), Some("c a b c"));
        assert_eq!(cycle("d"), None, "it only leads into one");
        assert_eq!(cycle("e").as_deref(), Some("e e"));
        assert_eq!(cycle("x"), None);
    }

    #[test]
    fn an_image_build_without_an_image_is_waited_for() {
        let build = |status: serde_json::Value| {
            let mut build = ImageBuild::new("base", spec(serde_json::json!({"image": {"repository": "r.example/b"}})));
            build.status = serde_json::from_value(status).unwrap();
            Some(Arc::new(build))
        };
        let image = |of: Option<Arc<ImageBuild>>| image_build("contexts/base", "base", |_| of.clone());
        for of in [None, build(serde_json::json!(null)), build(serde_json::json!({"run": "base-1"}))] {
            let fault = image(of).unwrap_err();
            assert_eq!((fault.reason, fault.class), (Reason::ContextNotReady, FailureClass::Infrastructure));
        }
        let there = serde_json::json!({"image": {
            "ref": "r.example/b@sha256:1", "repository": "r.example/b", "digest": "sha256:1", "pushedAt": "2026-01-01T00:00:00Z",
        }});
        assert_eq!(image(build(there)).as_deref(), Ok("r.example/b@sha256:1"));
    }
}
