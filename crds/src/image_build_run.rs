//! ImageBuildRun: one attempt at one resolved input of an ImageBuild.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::image_build::{BuildFailure, BuildWarning, BuiltImage, ImageBuildSpec, ImageContent, Resolved, TagStatus};

/// One attempt at one resolved input of an ImageBuild. Kiln makes it; a user may set `cancel`.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "kiln.build",
    version = "v1alpha1",
    kind = "ImageBuildRun",
    namespaced,
    status = "ImageBuildRunStatus",
    derive = "PartialEq",
    doc = "One attempt at one resolved input of an ImageBuild. Kiln makes it; set spec.cancel to stop it.",
    shortname = "ibr",
    category = "kiln",
    selectable = ".spec.imageBuild.name",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].reason"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.summary.image"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.summary.commit"),
    printcolumn(name = "Builders", type_ = "string", json_path = ".status.summary.builders", priority = 1),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.summary.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::duplicated_attributes, reason = "each column has a type")]
#[x_kube(
    validation = Rule::new("self.imageBuild == oldSelf.imageBuild && self.number == oldSelf.number && self.inputHash == oldSelf.inputHash && has(self.commit) == has(oldSelf.commit) && (!has(self.commit) || self.commit == oldSelf.commit) && has(self.ref) == has(oldSelf.ref) && (!has(self.ref) || self.ref == oldSelf.ref) && self.build == oldSelf.build && has(self.contentHash) == has(oldSelf.contentHash) && (!has(self.contentHash) || self.contentHash == oldSelf.contentHash) && (has(self.resolved) ? self.resolved : []) == (has(oldSelf.resolved) ? oldSelf.resolved : []) && (has(self.fresh) && self.fresh) == (has(oldSelf.fresh) && oldSelf.fresh) && has(self.copyOf) == has(oldSelf.copyOf) && (!has(self.copyOf) || self.copyOf == oldSelf.copyOf)").message("a run's spec cannot be changed, but for cancel: change the ImageBuild, which makes a new run"),
    validation = Rule::new("!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)").message("a cancelled run cannot be taken up again: annotate the ImageBuild with kiln.build/rebuild for a new one"),
)]
pub struct ImageBuildRunSpec {
    /// The ImageBuild that this run belongs to.
    pub image_build: ImageBuildRef,
    /// Counts the ImageBuild's runs, from 1. A larger number is a newer run.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub number: u64,
    /// The resolved Git commit. Absent for inline files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// The full ref that the commit was resolved from.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reference: Option<String>,
    /// Digest of what matters to the build.
    #[schemars(length(max = 128))]
    pub input_hash: String,
    /// Digest of what matters to the image's content: where it goes, and under which tags, is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub content_hash: Option<String>,
    /// What tags, refs and ImageBuilds were resolved to that the source, contexts and platforms name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 33))]
    pub resolved: Vec<Resolved>,
    /// Builds without any cache, because the cache has grown older than `cache.maxAge`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// How many runs of the same input, one after the other and up to this one, the infrastructure has ended: an unreachable
    /// registry, a lost builder. The more, the later the next one follows. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub failed_before: Option<u32>,
    /// The last good image, which is copied instead of being built again: only tags or repositories have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<BuiltImage>,
    /// The ImageBuild's spec as it was, with the operator's default platforms filled in.
    pub build: ImageBuildSpec,
    /// Set it to true to stop the run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
}

/// An ImageBuild of the same namespace.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// How far the run has come.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildRunStatus {
    /// Where the run stands.
    #[serde(default)]
    pub phase: RunPhase,
    /// When Kiln first saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<MicroTime>,
    /// When its first job was given to a builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When every platform was built, and the push of index and tags began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publishing_at: Option<MicroTime>,
    /// When it succeeded, failed or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// `Succeeded`: how the run ended, or what it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How each platform stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub platforms: Vec<PlatformStatus>,
    /// The image, once its index and tags are pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<BuiltImage>,
    /// The tags that it moves: claimed before the first is moved, with a digest once they are. Of a run that ended otherwise,
    /// those that it had moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 288))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["repository".into(), "tag".into()]))]
    pub tags: Vec<TagStatus>,
    /// Why the last good image could not be copied, so that it is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub copy_failure: Option<String>,
    /// BuildKit's lint of the Dockerfile, and images that grew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub warnings: Vec<BuildWarning>,
    /// Why the run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<BuildFailure>>,
    /// The Secrets that the run read last, and what its CAs were in, with their resource versions: a run that failed on one is
    /// followed by another once one of them has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub secrets: Vec<SecretVersion>,
    /// What `kubectl get` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<RunSummary>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum RunPhase {
    /// No builder has taken a job yet.
    #[default]
    Pending,
    /// Builders work.
    Building,
    /// Every platform is built; index and tags are being pushed.
    Publishing,
    /// The image is pushed.
    Succeeded,
    /// It ended without an image.
    Failed,
    /// A user, or a newer run, stopped it.
    Cancelled,
}

impl RunPhase {
    /// Whether the run has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How one platform stands.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformStatus {
    /// The platform, such as `linux/arm64`.
    #[schemars(length(max = 64))]
    pub name: String,
    /// Where it stands.
    #[serde(default)]
    pub phase: PlatformPhase,
    /// Counts the attempts, from 1; 0 while none has begun.
    #[serde(default)]
    #[schemars(range(max = 100_000))]
    pub attempt: u32,
    /// The builder of this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<BuilderRef>,
    /// While it waits for another attempt: the builder that failed the last one, or did not take it. Another is preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_on: Option<BuilderRef>,
    /// When this attempt was given to its builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When the builder began to fetch the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetching_at: Option<MicroTime>,
    /// When the builder began with the Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub building_at: Option<MicroTime>,
    /// When the builder began to push layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushing_at: Option<MicroTime>,
    /// When this attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Digest of the platform's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 160))]
    pub digest: Option<String>,
    /// Size of that manifest, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Media type of that manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub media_type: Option<String>,
    /// How its RUN steps are run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<Execution>,
    /// Set once a builder has found that this platform's steps run programs, which its node cannot: it needs a node of its own
    /// architecture.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_node: bool,
    /// Where it was taken from, by digest, or its file on the archive volume. Absent where it was built and pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 640))]
    pub origin: Option<String>,
    /// Its size and layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ImageContent>,
    /// What BuildKit's lint says of its Dockerfile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub warnings: Vec<BuildWarning>,
    /// The Dockerfile's steps in the order in which they began, and other work of the builder that took a second or more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub steps: Vec<StepStatus>,
    /// The first step of the Dockerfile that was not in the cache: those behind it were run for its sake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub first_cache_miss: Option<String>,
    /// What it waits for, or why the last attempt failed. Of the failure that ended the run, `logTail` and `excerpt` stand in
    /// the run's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<BuildFailure>>,
}

/// How the RUN steps of a platform are run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum Execution {
    /// By a node of the platform's architecture.
    Native,
    /// By an emulator on a node of another architecture, many times slower.
    Emulated,
    /// On the builder that `buildOn` names, for its own architecture.
    Cross,
    /// Not at all: the target's stages only copy files, which any builder can do.
    CopyOnly,
}

/// One step of a build.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Such as `[build 2/4] RUN make`.
    #[schemars(length(max = 256))]
    pub name: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// How long it took in seconds, such as `3.2` or `0.04`. Absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub seconds: Option<String>,
    /// Whether its result was in the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Whether it failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// The last lines that it has written, while it runs, so that a step that hangs can be told from one that is slow: brought up
    /// to date every ten seconds at most, and for steps that take longer than that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), inner(length(max = 200)))]
    pub output: Vec<String>,
}

/// Where one platform stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum PlatformPhase {
    /// It waits for a builder.
    #[default]
    Queued,
    /// A builder has been chosen and is coming up.
    Starting,
    /// The source is being fetched.
    Fetching,
    /// The Dockerfile's steps run.
    Building,
    /// Layers are being pushed.
    Pushing,
    /// Its image is in the registry.
    Succeeded,
    /// It ended without an image.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl PlatformPhase {
    /// Whether the platform has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether a builder holds it.
    #[must_use]
    pub fn is_assigned(self) -> bool {
        matches!(self, Self::Starting | Self::Fetching | Self::Building | Self::Pushing)
    }
}

/// A builder pod.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuilderRef {
    /// Its name in the builders namespace.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// The node that it runs on.
    #[schemars(length(max = 253))]
    pub node: String,
}

/// A Secret, or an object with a CA, that a run read.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretVersion {
    /// Its name, behind `ConfigMap/` where it is one; that of a pool is behind its namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its resource version, empty where it was missing.
    #[schemars(length(max = 64))]
    pub resource_version: String,
}

/// What `kubectl get imagebuildruns` prints.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// The image's digest, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub image: Option<String>,
    /// The commit, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// The nodes that built, by platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub builders: Option<String>,
    /// How long the run took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub duration: Option<String>,
}
