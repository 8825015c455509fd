//! What Kiln found and made: the last good image, and why a later build failed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

/// What Kiln found and made.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the image of the current input is pushed. `Reconciling`: work goes on. `Stalled`: it cannot go on until
    /// something is mended. `TagMoved`: something else had moved one of its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The last good image. A failure never takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<BuiltImage>,
    /// The run that pushed that image. Absent where it is the newest, which `run` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub image_run: Option<String>,
    /// The tags that belong to this ImageBuild, the newest first: it has moved each of them last, and its spec can still give
    /// it. Those that the spec names without a `{{…}}` all stay, of the others the newest 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 320))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["repository".into(), "tag".into()]))]
    pub tags: Vec<TagStatus>,
    /// What that image was built from; of a check that pushes nothing, what was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// Digest of the newest run's input: a new one makes a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub input_hash: Option<String>,
    /// The newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub run: Option<String>,
    /// What the newest finished run was warned of: BuildKit's lint of the Dockerfile, and an image that grew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub warnings: Vec<BuildWarning>,
    /// Since when the cache grows old: when the newest run began that used none. Counts for `cache.maxAge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_since: Option<Time>,
    /// Why the newest run failed. Absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<BuildFailure>>,
    /// What `kubectl get` prints, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// A tag that Kiln moves.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TagStatus {
    /// Registry and path.
    #[schemars(length(max = 512))]
    pub repository: String,
    /// The tag.
    #[schemars(length(max = 128))]
    pub tag: String,
    /// Digest of the OCI index that it was moved to. Absent while it is only claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 160))]
    pub digest: Option<String>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_at: Option<MicroTime>,
    /// Of a run: its write of the tag that the registry has not answered. Whether it was done, or will be, is unknown: a newer
    /// run waits for it, and looks again after it has moved the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<UnknownWrite>,
}

/// A write of a tag without an answer.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnknownWrite {
    /// Digest of the OCI index that it moves the tag to. Absent where the operator ended before it could say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 160))]
    pub digest: Option<String>,
    /// When it was sent, at the latest.
    pub sent_at: MicroTime,
}

/// An image in a registry.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltImage {
    /// Repository and digest, to be used as a container's `image`.
    #[schemars(length(max = 640))]
    #[serde(rename = "ref")]
    pub reference: String,
    /// Registry and path.
    #[schemars(length(max = 512))]
    pub repository: String,
    /// The tags that were set to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 128)))]
    pub tags: Vec<String>,
    /// Digest of the OCI index, such as `sha256:…`.
    #[schemars(length(max = 160))]
    pub digest: String,
    /// When the registry had answered for the index and every tag.
    pub pushed_at: Time,
    /// The images in the index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub platforms: Vec<PlatformImage>,
    /// The other repositories that have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["repository".into()]))]
    pub copies: Vec<PushedCopy>,
}

/// Another repository that has the image.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PushedCopy {
    /// Registry and path.
    #[schemars(length(max = 512))]
    pub repository: String,
    /// The tags that were set to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 128)))]
    pub tags: Vec<String>,
}

/// One platform's image in the index.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformImage {
    /// The platform, such as `linux/arm64`.
    #[schemars(length(max = 64))]
    pub name: String,
    /// Digest of the platform's manifest.
    #[schemars(length(max = 160))]
    pub digest: String,
    /// Where it was taken from, by digest, or its file on the archive volume. Absent where it was built and pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 640))]
    pub origin: Option<String>,
    /// Its size and layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ImageContent>,
}

/// The size and the layers of one platform's image.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageContent {
    /// Bytes that a pull transfers: all layers, compressed, and the configuration.
    pub compressed_bytes: i64,
    /// Bytes of the unpacked layers. Absent where the compression does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_bytes: Option<i64>,
    /// The layers from the base up; those of an image with more than 64 are cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub layers: Vec<ImageLayer>,
}

/// One layer.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLayer {
    /// Its size in bytes, compressed.
    pub bytes: i64,
    /// The instruction that made it, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub created_by: Option<String>,
}

/// Something that is worth a look and did not fail the build.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildWarning {
    /// BuildKit's rule, such as `JSONArgsRecommended` (<https://docs.docker.com/reference/build-checks/>), or `ImageGrew`.
    #[schemars(length(max = 64))]
    pub rule: String,
    /// What is wrong.
    #[schemars(length(max = 512))]
    pub message: String,
    /// The platform, where not all have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub platform: Option<String>,
    /// The Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub dockerfile: Option<String>,
    /// Its line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// What an image was built from.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The Git repository, the tarball, or the image by digest. Absent for inline files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// The commit. Absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// What the tags, refs and ImageBuilds were resolved to that contexts and platforms name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 33))]
    pub resolved: Vec<Resolved>,
}

/// Why a build failed, and where.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildFailure {
    /// The ImageBuildRun. Absent in the run's own status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub run: Option<String>,
    /// The commit that was built. Absent in the run's own status, whose spec names it, and where the source is no Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// The platform. Absent where the failure is not one platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub platform: Option<String>,
    /// A stable reason in CamelCase, such as `StepFailed`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What was attempted, what went wrong, and what to mend.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The step that failed, such as `[build 2/4] RUN make`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub step: Option<String>,
    /// The Dockerfile that holds the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub dockerfile: Option<String>,
    /// The line of the Dockerfile, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// That line of the Dockerfile and two before and after it, each with its number; `>` marks those of the step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    pub excerpt: Vec<String>,
    /// The exit code of the step's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last lines that the step printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub log_tail: Vec<String>,
}

/// What `kubectl get imagebuilds` prints.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The last good image's digest, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub image: Option<String>,
    /// Its commit, shortened. Where there is none yet, that of the newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// Its platforms. Where there is none yet, those of the newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub platforms: Option<String>,
    /// How long the newest run took, once it has finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub duration: Option<String>,
}

/// What a name was resolved to.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Where it stands: `contexts/NAME`, `platforms/NAME` or `source`.
    #[schemars(length(max = 300))]
    pub field: String,
    /// An image by digest. Absent for a Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 640))]
    pub image: Option<String>,
    /// A Git commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// The full ref that the commit was resolved from.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reference: Option<String>,
}
