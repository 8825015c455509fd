//! ImageBuild: what a user wants built, and the last good image of it.

mod image;
mod platform;
mod source;
mod status;
mod step;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube_core::Duration;
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use self::image::{
    ArchiveTarget, CacheMode, CacheScope, CacheSpec, Compression, CompressionKind, ImageCopy, ImageTarget, MediaTypes,
    RegistryCache,
};
pub use self::platform::PlatformSpec;
pub use self::source::{BuildContext, GitSource, HttpSource, ImageBuildName, ImageSource, InlineSource, Source};
pub use self::status::{
    BuildFailure, BuildWarning, BuiltImage, ImageBuildStatus, ImageContent, ImageLayer, PlatformImage, PushedCopy,
    Resolved, SourceStatus, Summary, TagStatus, UnknownWrite,
};
pub use self::step::{BuildSecret, BuildSsh, HostAlias, Network, PullPolicy, Ulimit};
use crate::reference::SecretRef;
use crate::{bounds, rules};

/// An image to build from a source, for one or more platforms, and where to push it.
///
/// Kiln builds every platform on a node of its architecture, pushes one OCI index, and writes its digest to
/// `status.image`, which keeps the last good image when a later build fails.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "kiln.build",
    version = "v1alpha1",
    kind = "ImageBuild",
    namespaced,
    status = "ImageBuildStatus",
    derive = "PartialEq",
    doc = "An image that Kiln builds from a source for one or more platforms, pushes as one OCI index, and names by digest in its status.",
    shortname = "ib",
    category = "kiln",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.summary.image"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.summary.commit"),
    printcolumn(name = "Platforms", type_ = "string", json_path = ".status.summary.platforms"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.summary.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name is too long: use at most 52 characters, for the names of its runs are longer"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.source) || (has(self.platforms) && self.platforms.all(p, has(p.image) || has(p.archive)))").message("source is missing: name a Git repository, files, a tarball or an image to build from, or give every platform an image of its own"),
    validation = rules::telling(
        "!has(self.source) || !has(self.source.inline) || has(self.dockerfileInline) || (has(self.platforms) && self.platforms.exists(p, has(p.dockerfile))) || (has(self.dockerfile) ? (self.dockerfile.startsWith('./') ? self.dockerfile.substring(2) : self.dockerfile) : 'Dockerfile') in self.source.inline.files",
        "'source.inline.files does not hold the Dockerfile, ' + (has(self.dockerfile) ? self.dockerfile : 'Dockerfile') + ': add it, or name another in dockerfile'",
    ),
    validation = Rule::new("!(has(self.dockerfile) && has(self.dockerfileInline))").message("dockerfile names a file of the source, dockerfileInline is one: write only one of them"),
    validation = Rule::new("!(has(self.image) && has(self.archive))").message("an image goes to a registry (image) or to a volume (archive), not to both: make another ImageBuild for the other, whose build is in the cache"),
    validation = Rule::new("has(self.image) || !has(self.platforms) || !self.platforms.exists(p, has(p.image) || has(p.archive))").message("platforms with an image or archive are taken into an index: name its repository in image"),
    validation = Rule::new("!has(self.image) || !has(self.image.mediaTypes) || self.image.mediaTypes != 'Docker' || !has(self.image.compression) || self.image.compression.type != 'zstd'").message("zstd layers need the OCI media types: leave out image.mediaTypes, or choose gzip"),
    validation = Rule::new("!has(self.image) || !has(self.image.mediaTypes) || self.image.mediaTypes != 'Docker' || !has(self.annotations) || self.annotations.size() == 0").message("Docker's media types have no annotations: leave out image.mediaTypes, or annotations"),
)]
pub struct ImageBuildSpec {
    /// What to build. Omitted where every platform has an image of its own: then only their index is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,

    /// Path of the Dockerfile, relative to the context's directory, such as `docker/Dockerfile` or, outside of it,
    /// `../Dockerfile`. Omitted: `Dockerfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.matches('(^|/)[^/]*[^/.][^/]*/(.*/)?[.][.](/|$)') && !self.endsWith('/..') && self != '..'").message("dockerfile is a path relative to the context's directory, without a leading /; .. may only stand at its beginning, for a Dockerfile outside of the context"))]
    pub dockerfile: Option<String>,

    /// The Dockerfile's text, in place of one in the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 262_144))]
    pub dockerfile_inline: Option<String>,

    /// Build contexts beside the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub contexts: Vec<BuildContext>,

    /// The stage to build, as `docker build --target`. Omitted: the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub target: Option<String>,

    /// Build arguments, as `docker build --build-arg`. They can be read from the image; use `secrets` for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map", transform = rules::arguments)]
    pub args: BTreeMap<String, String>,

    /// Labels of the image's configuration, as `docker build --label`. For a Git source `org.opencontainers.image.source`,
    /// `.revision`, `.created` and, for a tag, `.version` are added unless they or the Dockerfile set them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    pub labels: BTreeMap<String, String>,

    /// OCI annotations of the index and of each platform's manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    pub annotations: BTreeMap<String, String>,

    /// Values for `RUN --mount=type=secret`, and tokens for what ADD downloads. They are in no layer, log or status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub secrets: Vec<BuildSecret>,

    /// Keys for `RUN --mount=type=ssh`: an agent in the builder signs with them, and RUN steps never see them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub ssh: Vec<BuildSsh>,

    /// Builds every step afresh, as `docker build --no-cache`: layers are not reused, and cache mounts begin empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,

    /// Builds the steps of these stages afresh, as `docker buildx build --no-cache-filter`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.-]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub no_cache_stages: Vec<String>,

    /// When base images are looked up in their registry. Omitted: `Always`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,

    /// Limits of RUN steps, as `docker build --ulimit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub ulimits: Vec<Ulimit>,

    /// The size of `/dev/shm` in RUN steps, as `docker build --shm-size`, such as `256Mi`. Omitted: `64Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))").message("shmSize is a quantity such as 256Mi, more than 0"))]
    pub shm_size: Option<Quantity>,

    /// Lines of `/etc/hosts` in RUN steps, as a Pod's `hostAliases` and `docker build --add-host`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["ip".into()]))]
    pub host_aliases: Vec<HostAlias>,

    /// The network of RUN steps, as `docker build --network`. Omitted: `Default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,

    /// Whether a warning of BuildKit's lint fails the build.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_on_warnings: bool,

    /// The platforms to build. Omitted: the operator's default list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub platforms: Option<Vec<PlatformSpec>>,

    /// Where the image goes. Omitted, with `archive` omitted too: the build is a check, and nothing is pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageTarget>,

    /// Writes the image to a volume instead. The pool must have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveTarget>,

    /// Credentials for base images, as a Pod's `imagePullSecrets`. That of `image.secretRef` is used too, and, for registries
    /// that neither names, the `imagePullSecrets` of the namespace's default service account. A Secret's keys name its registries: one
    /// with `username` and `password` is of no use here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pull_secret_refs: Vec<SecretRef>,

    /// Who shares the cache, how old it may grow, and whether a registry keeps it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,

    /// How long a run may take from its first job's start, such as `30m`. Omitted: `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("timeout is at least 1s, such as 30m"))]
    pub timeout: Option<Duration>,

    /// How long a build may print nothing, such as `10m`, before it counts as stuck and fails. Omitted: a build may
    /// be silent until `timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("silenceTimeout is at least 1s, such as 10m"))]
    pub silence_timeout: Option<Duration>,

    /// How often a platform's build is tried again within a run when the infrastructure failed (a lost node, an unreachable
    /// registry); a run that fails so all the same is followed by another one. A failure that the Dockerfile causes is never
    /// tried again. What follows the builds, the push of index and tags, is tried again for an hour, whatever stands here.
    /// Omitted: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: Option<u32>,

    /// While true, nothing new is built; a build that runs goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,

    /// How many finished runs are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistorySpec>,

    /// The BuilderPool that builds. It must serve this namespace. Omitted: the default pool that does, the first by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pool: Option<String>,
}

/// How many finished runs are kept.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HistorySpec {
    /// Runs that succeeded. Omitted: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub successful: Option<u32>,
    /// Runs that failed or were cancelled. Omitted: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub failed: Option<u32>,
}

impl ImageBuildSpec {
    /// The Git repository that is built.
    #[must_use]
    pub fn git(&self) -> Option<&GitSource> {
        self.source.as_ref()?.git.as_ref()
    }

    /// The files that are built.
    #[must_use]
    pub fn inline(&self) -> Option<&InlineSource> {
        self.source.as_ref()?.inline.as_ref()
    }

    /// Paths of programs that may be for another platform, though the image starts them.
    pub fn foreign_programs(&self) -> impl Iterator<Item = &str> {
        let of_image = self.image.iter().flat_map(|image| &image.allow_foreign_programs);
        let of_archive = self.archive.iter().flat_map(|archive| &archive.allow_foreign_programs);
        of_image.chain(of_archive).map(String::as_str)
    }
}
