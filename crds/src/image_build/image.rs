//! Where an image goes, what it looks like there, and where its cache is.

use kube_core::Duration;
use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::reference::{CaRef, SecretRef};
use crate::{bounds, rules};

/// Where the image goes.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageTarget {
    /// Registry and path, such as `ghcr.io/acme/app`, without tag or digest.
    #[schemars(length(min = 1, max = 512), transform = rules::repository)]
    pub repository: String,
    /// Tags that are moved to each new image. They may hold `{{branch}}`, `{{commit}}`, `{{shortCommit}}`,
    /// `{{timestamp}}` and `{{run}}`. Omitted: `latest`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)), transform = rules::tags)]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tags: Vec<String>,
    /// A Secret of type `kubernetes.io/dockerconfigjson`, or one with the keys `username` and `password`. Omitted: the
    /// `imagePullSecrets` of the namespace's default service account, where one is for this registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// The CA that signed the registry's certificate, where the system does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
    /// Other repositories that get the same image, each with tags and a credential of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["repository".into()]))]
    pub copies: Vec<ImageCopy>,
    /// Media types of manifests, index and layers. Omitted: `OCI`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_types: Option<MediaTypes>,
    /// How layers are compressed. Omitted: gzip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Sets the time of all files in layers to `SOURCE_DATE_EPOCH`, which is the commit's time unless `args` has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rewrite_timestamp: bool,
    /// By how many per cent a platform's image may grow against the last good one without a warning. Omitted: none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub growth_warning_percent: Option<u32>,
    /// Programs that the image starts though they are for another platform, such as `/usr/bin/qemu-x86_64-static`: their
    /// absolute paths, as ENTRYPOINT, CMD or a script name them. Every other one fails the build (`WrongArchitecture`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)), transform = rules::programs)]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow_foreign_programs: Vec<String>,
}

impl ImageTarget {
    /// Every repository that gets the image, as it is written, with its tags; no tags mean `latest`.
    pub fn repositories(&self) -> impl Iterator<Item = (&str, &[String])> {
        let copies = self.copies.iter().map(|copy| {
            let tags = if copy.tags.is_empty() { &self.tags } else { &copy.tags };
            (copy.repository.as_str(), tags.as_slice())
        });
        std::iter::once((self.repository.as_str(), self.tags.as_slice())).chain(copies)
    }
}

/// Another repository for the same image.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageCopy {
    /// Registry and path, such as `ghcr.io/acme/app`, without tag or digest.
    #[schemars(length(min = 1, max = 512), transform = rules::repository)]
    pub repository: String,
    /// Tags, as `image.tags`. Omitted: those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)), transform = rules::tags)]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tags: Vec<String>,
    /// A Secret of type `kubernetes.io/dockerconfigjson`, or one with the keys `username` and `password`. Omitted: that of
    /// another repository of this ImageBuild or of the default service account, where one is for this registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// The CA that signed the registry's certificate, where the system does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
}

/// Media types of manifests, index and layers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum MediaTypes {
    /// Those of the OCI image specification.
    OCI,
    /// Those of Docker's image manifest version 2, schema 2, for registries and tools that know no others.
    Docker,
}

/// How layers are compressed.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::telling(
    "!has(self.level) || self.type == 'zstd' && self.level <= 22 || self.type != 'zstd' && self.level <= 9 && self.type != 'uncompressed'",
    "self.type == 'uncompressed' ? 'compression.level: uncompressed has no level: leave it out' : 'compression.level is 0 to 9 for ' + self.type + '; zstd has levels to 22'",
))]
pub struct Compression {
    /// `gzip`, `zstd`, `estargz` or `uncompressed`.
    #[serde(rename = "type")]
    pub kind: CompressionKind,
    /// The level. Omitted: that kind's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 22))]
    pub level: Option<u32>,
    /// Compresses the base image's layers anew too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A compression of layers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CompressionKind {
    /// Understood everywhere.
    Gzip,
    /// Smaller and faster; containerd 1.5, Docker 23 and later understand it. Needs the OCI media types.
    Zstd,
    /// gzip with an index, for lazy pulling.
    Estargz,
    /// None.
    Uncompressed,
}

impl CompressionKind {
    /// As BuildKit names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Estargz => "estargz",
            Self::Uncompressed => "uncompressed",
        }
    }
}

/// A tarball with an OCI layout on the pool's archive volume, below a directory of the namespace's own.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveTarget {
    /// Path of the tarball, such as `app.tar`; it may hold what a tag may. With several platforms each gets one of its own:
    /// `app.tar` becomes `app-linux-arm64.tar`.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.endsWith('.tar') && !self.startsWith('/') && !self.split('/').exists(s, s == '..' || s == '.' || s == '')").message("archive.path is a relative path that ends in .tar, such as app.tar, without .."), validation = rules::variables())]
    pub path: String,
    /// Programs that the image starts though they are for another platform, such as `/usr/bin/qemu-x86_64-static`: their
    /// absolute paths, as ENTRYPOINT, CMD or a script name them. Every other one fails the build (`WrongArchitecture`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)), transform = rules::programs)]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow_foreign_programs: Vec<String>,
}

/// Who shares the cache, how old it may grow, and whether a registry keeps it too.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// `Namespace`: with every ImageBuild of the namespace. `ImageBuild`: with nobody. Omitted: Namespace where the
    /// builders run in user namespaces, else ImageBuild, because a rootless builder hides nothing from its RUN steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<CacheScope>,
    /// How old the cache of base images and RUN steps may grow, such as `168h`: after that the image is built afresh, without
    /// any cache, also where nothing has changed. Where that fails it is tried again with the next change, or when as much
    /// time has passed again. Omitted: it never grows too old.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')").message("cache.maxAge is at least 10s, such as 168h"))]
    pub max_age: Option<Duration>,
    /// A cache in a registry, read and written: for clusters without volumes and for new nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryCache>,
    /// Writes the cache's description into the image itself, and reads it from the last good image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
    /// Images whose cache is read beside it, as `docker buildx build --cache-from type=registry,ref=…`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 640), regex(pattern = "^[A-Za-z0-9._/:@-]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub from: Vec<String>,
}

/// A cache in a registry, as `docker buildx build --cache-to type=registry`. A failed export never fails a build.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryCache {
    /// Registry, path and tag, such as `ghcr.io/acme/app:cache`; each platform's name is added to the tag.
    #[serde(rename = "ref")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[A-Za-z0-9._/:-]+$"))]
    pub reference: String,
    /// `Min`: the layers of the image. `Max`: those of every stage. Omitted: `Max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CacheMode>,
}

/// What a cache in a registry holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum CacheMode {
    /// The layers of the image.
    Min,
    /// The layers of every stage.
    Max,
}

/// Who shares builders and cache.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum CacheScope {
    /// All ImageBuilds of the namespace.
    Namespace,
    /// This ImageBuild alone.
    ImageBuild,
}
