//! The input hash: what must change for a new run to be made; pure.
//!
//! It covers the fields that matter to the image as the user set them, without defaults, so that a new operator with other
//! defaults rebuilds nothing; it carries a version, so that a later operator can still tell what an older one hashed.

use std::collections::BTreeMap;

use kiln_crds::ImageBuildSpec;
use kiln_crds::image_build::{
    ArchiveTarget, BuildContext, Compression, GitSource, HostAlias, HttpSource, ImageCopy, ImageSource, ImageTarget,
    MediaTypes, Network, PlatformSpec, Resolved, Source, Ulimit,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::builder::identity::hex;

/// The fields that matter, in a fixed order. A field may be added only if it is skipped while unset.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Input<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<Git<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<&'a BTreeMap<String, String>>,
    dockerfile: &'a Option<String>,
    target: &'a Option<String>,
    args: &'a BTreeMap<String, String>,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
    secrets: Vec<&'a str>,
    no_cache: bool,
    platforms: &'a Option<Vec<PlatformSpec>>,
    repository: &'a str,
    tags: &'a [String],
    rebuild: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<Http<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a ImageSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dockerfile_inline: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    contexts: Vec<Context<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    no_cache_stages: &'a [String],
    #[serde(skip_serializing_if = "<[Ulimit]>::is_empty")]
    ulimits: &'a [Ulimit],
    #[serde(skip_serializing_if = "Option::is_none")]
    shm_size: Option<&'a str>,
    #[serde(skip_serializing_if = "<[HostAlias]>::is_empty")]
    host_aliases: &'a [HostAlias],
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    fail_on_warnings: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_types: Option<MediaTypes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<&'a Compression>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    rewrite_timestamp: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    copies: Vec<(&'a str, &'a [String])>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_foreign_programs: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools, reason = "as the API has them")]
struct Git<'a> {
    url: &'a str,
    path: &'a Option<String>,
    submodules: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lfs: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    keep_git_dir: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    full_history: bool,
}

#[derive(Serialize)]
struct Http<'a> {
    checksum: &'a str,
    path: &'a Option<String>,
}

/// A context by name; what an image or another ImageBuild is counts through what it was resolved to.
#[derive(Serialize)]
struct Context<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<Git<'a>>,
}

fn git(git: &GitSource) -> Git<'_> {
    // The ref matters only through its commit.
    let GitSource {
        url,
        reference: _,
        path,
        interval: _,
        secret_ref: _,
        ca_ref: _,
        submodules,
        lfs,
        keep_git_dir,
        full_history,
    } = git;
    Git { url, path, submodules: *submodules, lfs: *lfs, keep_git_dir: *keep_git_dir, full_history: *full_history }
}

/// What is said of an image's content and, where `destination` is set, of where it goes. Neither commit nor digests are in it.
#[must_use]
pub fn spec_text(spec: &ImageBuildSpec, rebuild: Option<&str>, destination: bool) -> String {
    // Every field is named, so that a new one is decided on here. What is left out says how to build, not what.
    let ImageBuildSpec {
        source,
        dockerfile,
        dockerfile_inline,
        contexts,
        target,
        args,
        labels,
        annotations,
        secrets,
        ssh,
        no_cache,
        no_cache_stages,
        pull: _,
        ulimits,
        shm_size,
        host_aliases,
        network,
        fail_on_warnings,
        platforms,
        image,
        archive,
        pull_secret_refs: _,
        cache: _,
        timeout: _,
        silence_timeout: _,
        retries: _,
        suspend: _,
        history: _,
        pool: _,
    } = spec;
    let source = source.as_ref().map(|Source { git, inline, http, image }| (git, inline, http, image));
    let target_image = image.as_ref().map(
        |ImageTarget {
             repository,
             tags,
             secret_ref: _,
             ca_ref: _,
             copies,
             media_types,
             compression,
             rewrite_timestamp,
             growth_warning_percent: _,
             allow_foreign_programs: _,
         }| (repository, tags, copies, *media_types, compression, *rewrite_timestamp),
    );
    let goes_to = target_image.filter(|_| destination);
    let input = Input {
        git: source.and_then(|(git, ..)| git.as_ref()).map(git),
        files: source.and_then(|(_, inline, ..)| inline.as_ref()).map(|inline| &inline.files),
        dockerfile,
        target,
        args,
        labels,
        annotations,
        secrets: secrets.iter().map(|secret| secret.id.as_str()).collect(),
        no_cache: *no_cache,
        platforms,
        repository: goes_to.map_or("", |(repository, ..)| repository),
        tags: goes_to.map_or(&[], |(_, tags, ..)| tags),
        rebuild,
        // The checksum says what the URL gives.
        http: source
            .and_then(|(_, _, http, _)| http.as_ref())
            .map(|http| &**http)
            .map(|HttpSource { url: _, checksum, path, secret_ref: _, ca_ref: _ }| Http { checksum, path }),
        image: source.and_then(|(.., image)| image.as_ref()),
        dockerfile_inline: dockerfile_inline.as_deref(),
        contexts: contexts
            .iter()
            .map(|BuildContext { name, image: _, git: of, image_build: _ }| Context { name, git: of.as_ref().map(git) })
            .collect(),
        ssh: ssh.iter().map(|key| key.id.as_str()).collect(),
        no_cache_stages,
        ulimits,
        shm_size: shm_size.as_ref().map(|size| size.0.as_str()),
        host_aliases,
        network: *network,
        fail_on_warnings: *fail_on_warnings,
        media_types: target_image.and_then(|(_, _, _, media_types, ..)| media_types),
        compression: target_image.and_then(|(_, _, _, _, compression, _)| compression.as_ref()),
        rewrite_timestamp: target_image.is_some_and(|(.., rewrite)| rewrite),
        copies: goes_to
            .map(|(_, _, copies, ..)| {
                copies
                    .iter()
                    .map(|ImageCopy { repository, tags, secret_ref: _, ca_ref: _ }| (repository.as_str(), &tags[..]))
                    .collect()
            })
            .unwrap_or_default(),
        archive: archive
            .as_ref()
            .filter(|_| destination)
            .map(|ArchiveTarget { path, allow_foreign_programs: _ }| &path[..]),
        allow_foreign_programs: spec.foreign_programs().collect(),
    };
    let text = serde_json::to_vec(&input).unwrap_or_default();
    hex(&Sha256::digest(text))
}

/// The hash of what a user wrote, without the commit.
#[must_use]
pub fn spec_hash(spec: &ImageBuildSpec, rebuild: Option<&str>) -> String {
    spec_text(spec, rebuild, true)
}

/// The hash of the whole input: what was written, the source's commit, and what everything else was resolved to.
#[must_use]
pub fn input_hash(spec_hash: &str, commit: Option<&str>, resolved: &[Resolved]) -> String {
    let mut hash = Sha256::new();
    hash.update(spec_hash);
    hash.update("\n");
    hash.update(commit.unwrap_or_default());
    // The ref counts through its commit.
    for Resolved { field, image, commit, reference: _ } in resolved {
        let names = [field.as_str(), image.as_deref().unwrap_or_default(), commit.as_deref().unwrap_or_default()];
        hash.update(format!("\n{}", names.join(" ")));
    }
    format!("v1:{}", hex(&hash.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> ImageBuildSpec {
        let base = serde_json::json!({
            "source": {"git": {"url": "https://git.example/app.git", "ref": "main"}},
            "image": {"repository": "registry.example/app", "tags": ["latest"]},
        });
        let mut base = base;
        if let (Some(base), serde_json::Value::Object(more)) =
            (base.as_object_mut(), serde_json::from_str::<serde_json::Value>(yaml).unwrap())
        {
            base.extend(more);
        }
        serde_json::from_value(base).unwrap()
    }

    #[test]
    fn the_hash_is_the_same_in_every_release() {
        // A change here rebuilds every image of every user at the next upgrade.
        let hash = input_hash(&spec_hash(&spec("{}"), None), Some("0123"), &[]);
        insta::assert_snapshot!(hash, @"v1:f5f0e455e961817b38feaa9e0bc56e58");
    }

    #[test]
    fn what_says_how_to_build_does_not_matter_and_what_says_what_does() {
        let plain = spec_hash(&spec("{}"), None);
        for same in [
            r#"{"suspend": true}"#,
            r#"{"timeout": "5m"}"#,
            r#"{"retries": 1}"#,
            r#"{"history": {"failed": 1}}"#,
            r#"{"pool": "big"}"#,
            r#"{"cache": {"scope": "ImageBuild"}}"#,
        ] {
            assert_eq!(spec_hash(&spec(same), None), plain, "{same}");
        }
        for other in [
            r#"{"args": {"A": "1"}}"#,
            r#"{"target": "build"}"#,
            r#"{"noCache": true}"#,
            r#"{"platforms": [{"name": "linux/amd64"}]}"#,
            r#"{"image": {"repository": "registry.example/other"}}"#,
            r#"{"dockerfileInline": "FROM scratch"}"#,
            r#"{"contexts": [{"name": "base", "image": "registry.example/base"}]}"#,
            r#"{"network": "None"}"#,
            r#"{"failOnWarnings": true}"#,
            r#"{"source": {"inline": {"files": {"Dockerfile": "FROM scratch"}}}}"#,
        ] {
            assert_ne!(spec_hash(&spec(other), None), plain, "{other}");
        }
        assert_ne!(spec_hash(&spec("{}"), Some("1")), plain);
        assert_ne!(input_hash(&plain, Some("a"), &[]), input_hash(&plain, Some("b"), &[]));
        let resolved =
            [Resolved { field: "contexts/base".into(), image: Some("r@sha256:1".into()), ..Resolved::default() }];
        assert_ne!(input_hash(&plain, Some("a"), &[]), input_hash(&plain, Some("a"), &resolved));
    }

    #[test]
    fn tags_and_repositories_do_not_matter_to_the_content() {
        let content = |yaml: &str| spec_text(&spec(yaml), None, false);
        let plain = content("{}");
        for same in [
            r#"{"image": {"repository": "registry.example/other", "tags": ["v2"]}}"#,
            r#"{"image": {"repository": "registry.example/app", "copies": [{"repository": "other.example/app"}]}}"#,
        ] {
            assert_eq!(content(same), plain, "{same}");
        }
        for other in [
            r#"{"image": {"repository": "registry.example/app", "mediaTypes": "Docker"}}"#,
            r#"{"image": {"repository": "registry.example/app", "compression": {"type": "zstd"}}}"#,
            r#"{"target": "build"}"#,
        ] {
            assert_ne!(content(other), plain, "{other}");
        }
    }
}
