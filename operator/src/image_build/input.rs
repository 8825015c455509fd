//! The input hash: what must change for a new run to be made; pure.
//!
//! It covers the fields that matter to the image as the user set them, without defaults, so that a new operator with other
//! defaults rebuilds nothing; it carries a version, so that a later operator can still tell what an older one hashed.

use kiln_crds::ImageBuildSpec;
use kiln_crds::image_build::{GitSource, ImageTarget, Source};
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
    files: Option<&'a std::collections::BTreeMap<String, String>>,
    dockerfile: &'a Option<String>,
    target: &'a Option<String>,
    args: &'a std::collections::BTreeMap<String, String>,
    labels: &'a std::collections::BTreeMap<String, String>,
    annotations: &'a std::collections::BTreeMap<String, String>,
    secrets: Vec<&'a str>,
    no_cache: bool,
    platforms: &'a Option<Vec<kiln_crds::image_build::PlatformSpec>>,
    repository: &'a str,
    tags: &'a [String],
    rebuild: Option<&'a str>,
}

#[derive(Serialize)]
struct Git<'a> {
    url: &'a str,
    path: &'a Option<String>,
    submodules: bool,
}

/// The hash of what a user wrote, without the commit.
#[must_use]
pub fn spec_hash(spec: &ImageBuildSpec, rebuild: Option<&str>) -> String {
    // Every field is named, so that a new one is decided on here. What is left out says how to build, not what.
    let ImageBuildSpec {
        source: Source { git, inline },
        dockerfile,
        target,
        args,
        labels,
        annotations,
        secrets,
        no_cache,
        platforms,
        image: ImageTarget { repository, tags, secret_ref: _, ca_ref: _ },
        pull_secret_refs: _,
        cache: _,
        timeout: _,
        retries: _,
        suspend: _,
        history: _,
        pool: _,
    } = spec;
    let git = git.as_ref().map(|git| {
        // The ref matters only through its commit.
        let GitSource { url, reference: _, path, interval: _, secret_ref: _, ca_ref: _, submodules } = git;
        Git { url, path, submodules: *submodules }
    });
    let input = Input {
        git,
        files: inline.as_ref().map(|inline| &inline.files),
        dockerfile,
        target,
        args,
        labels,
        annotations,
        secrets: secrets.iter().map(|secret| secret.id.as_str()).collect(),
        no_cache: *no_cache,
        platforms,
        repository,
        tags,
        rebuild,
    };
    let text = serde_json::to_vec(&input).unwrap_or_default();
    hex(&Sha256::digest(text))
}

/// The hash of the whole input.
#[must_use]
pub fn input_hash(spec_hash: &str, commit: Option<&str>) -> String {
    let mut hash = Sha256::new();
    hash.update(spec_hash);
    hash.update("\n");
    hash.update(commit.unwrap_or_default());
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
        let hash = input_hash(&spec_hash(&spec("{}"), None), Some("0123"));
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
            r#"{"source": {"inline": {"files": {"Dockerfile": "FROM scratch"}}}}"#,
        ] {
            assert_ne!(spec_hash(&spec(other), None), plain, "{other}");
        }
        assert_ne!(spec_hash(&spec("{}"), Some("1")), plain);
        assert_ne!(input_hash(&plain, Some("a")), input_hash(&plain, Some("b")));
    }
}
