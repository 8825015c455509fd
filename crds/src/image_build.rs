//! ImageBuild: what a user wants built, and the last good image of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::bounds;
use crate::reference::{CaRef, SecretKeyRef, SecretRef};

/// An image to build from a source, for one or more platforms, and where to push it.
///
/// Kiln builds every platform on a node of its architecture, pushes one OCI index, and writes its digest to
/// `status.image`, which keeps the last good image when a later build fails.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
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
    validation = Rule::new("!has(self.source.inline) || (has(self.platforms) && self.platforms.exists(p, has(p.dockerfile))) || (has(self.dockerfile) ? self.dockerfile : 'Dockerfile') in self.source.inline.files").message("source.inline.files does not hold the Dockerfile: add a file named Dockerfile, or name it in dockerfile"),
)]
pub struct ImageBuildSpec {
    /// What to build.
    pub source: Source,

    /// Path of the Dockerfile, relative to the context's directory. Omitted: `Dockerfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..')").message("dockerfile is a path below the context's directory: write it without a leading / and without .."))]
    pub dockerfile: Option<String>,

    /// The stage to build, as `docker build --target`. Omitted: the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub target: Option<String>,

    /// Build arguments, as `docker build --build-arg`. They can be read from the image; use `secrets` for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[A-Za-z_][A-Za-z0-9_]*$'))").message("the name of a build argument is made of letters, digits and _, and does not begin with a digit"))]
    pub args: BTreeMap<String, String>,

    /// Labels of the image's configuration, as `docker build --label`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    pub labels: BTreeMap<String, String>,

    /// OCI annotations of the index and of each platform's manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    pub annotations: BTreeMap<String, String>,

    /// Values for `RUN --mount=type=secret`. They are in no layer, log or status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub secrets: Vec<BuildSecret>,

    /// Builds every step afresh, as `docker build --no-cache`: layers are not reused, and cache mounts begin empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,

    /// The platforms to build. Omitted: the operator's default list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub platforms: Option<Vec<PlatformSpec>>,

    /// Where the image goes.
    pub image: ImageTarget,

    /// Credentials for base images, as a Pod's `imagePullSecrets`. That of `image.secretRef` is used too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pull_secret_refs: Vec<SecretRef>,

    /// How far the build cache is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,

    /// How long a run may take from its first job's start, such as `30m`. Omitted: `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bounds::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("timeout is at least 1s, such as 30m"))]
    pub timeout: Option<Duration>,

    /// How often a platform's build is tried again when the infrastructure failed (a lost node, an unreachable
    /// registry). A failure that the Dockerfile causes is never tried again. Omitted: 3.
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

/// What to build: exactly one of the fields.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.git) != has(self.inline)").message("source needs exactly one of git and inline"))]
pub struct Source {
    /// A Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// Files written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
}

/// A Git repository. Its `.dockerignore` holds as it does for `docker build`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// An https URL, without user and password; those go into a Secret that `secretRef` names.
    #[schemars(length(min = 9, max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('https://')").message("git.url must begin with https://"),
        validation = Rule::new("!self.startsWith('https://') || !self.substring(8).split('/')[0].contains('@')").message("git.url must not hold a user or password: put them into a Secret with the keys username and password, and name it in git.secretRef"),
        validation = Rule::new("!self.matches('[\\\\s\\\\x00-\\\\x1f#?]')").message("git.url must not hold spaces, control characters, ? or #: the branch or tag goes into git.ref, a directory into git.path"),
    )]
    pub url: String,

    /// A branch, a tag, a full ref such as `refs/heads/main`, or a full commit id. Omitted: the default branch.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("!self.startsWith('-') && !self.matches('[\\\\s\\\\x00-\\\\x1f~^:?*\\\\[\\\\\\\\]') && !self.contains('..')").message("git.ref is a branch, a tag, a full ref or a full commit id: it has no spaces, does not begin with -, and holds none of ~ ^ : ? * [ \\\\ and .."))]
    pub reference: Option<String>,

    /// The build context's directory in the repository. Omitted: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..')").message("git.path is a directory in the repository: write it without a leading / and without .."))]
    pub path: Option<String>,

    /// How often the ref is looked at for a new commit, such as `5m`. `0s`: never again. Omitted: `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bounds::duration")]
    #[x_kube(validation = Rule::new("duration(self) == duration('0s') || duration(self) >= duration('5s')").message("git.interval is 0s (never look again) or at least 5s"))]
    pub interval: Option<Duration>,

    /// A Secret with the keys `username` and `password` (a token goes into `password`). Sent to the URL's host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,

    /// The CA that signed the server's certificate, where the system does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,

    /// Fetches submodules too, by https. The credential is sent to those on the same host only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub submodules: bool,
}

/// Files written into the ImageBuild itself.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InlineSource {
    /// Content by path, such as `Dockerfile` or `src/app.sh`; together at most 1000000 characters.
    #[schemars(schema_with = "bounds::files")]
    #[x_kube(
        validation = Rule::new("self.all(k, k.size() <= 256 && k.matches('^[^/\\\\x00-\\\\x1f][^\\\\x00-\\\\x1f]*$') && !k.endsWith('/') && !k.split('/').exists(s, s == '..' || s == '.' || s == ''))").message("a path in inline.files is relative, such as Dockerfile or src/app.sh: write it without a leading /, without .. and with at most 256 characters"),
        validation = Rule::new("self.map(k, self[k].size()).sum() <= 1000000").message("inline.files hold more than 1000000 characters together: put them into a Git repository"),
    )]
    pub files: BTreeMap<String, String>,
}

/// A value for `RUN --mount=type=secret,id=…`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildSecret {
    /// The id that the Dockerfile names.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub id: String,
    /// The Secret and the key that hold the value.
    pub secret_ref: SecretKeyRef,
}

/// A platform to build, and what differs for it.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformSpec {
    /// An OCI platform, such as `linux/amd64` or `linux/arm/v7`. Aliases such as `linux/aarch64` are understood.
    #[schemars(length(min = 3, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.-]+(\\\\([A-Za-z0-9_.-]+\\\\))?/[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$')").message("a platform is os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7"))]
    pub name: String,
    /// The Dockerfile for this platform, in place of `spec.dockerfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..')").message("dockerfile is a path below the context's directory: write it without a leading / and without .."))]
    pub dockerfile: Option<String>,
    /// The stage for this platform, in place of `spec.target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub target: Option<String>,
    /// Build arguments for this platform, beside those of `spec.args` and before them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[A-Za-z_][A-Za-z0-9_]*$'))").message("the name of a build argument is made of letters, digits and _, and does not begin with a digit"))]
    pub args: BTreeMap<String, String>,
}

/// Where the image goes.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageTarget {
    /// Registry and path, such as `ghcr.io/acme/app`, without tag or digest.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.contains('://')").message("image.repository is written without a scheme, such as ghcr.io/acme/app"),
        validation = Rule::new("!self.contains('@') && !self.matches(':[^/]*$') || self.matches('^[^/]*:[0-9]+$')").message("image.repository is written without tag and digest: tags go into image.tags"),
        validation = Rule::new("self.contains('://') || self.matches('^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*([:@].*)?$')").message("image.repository is registry/path, the path in lower case letters, digits and . _ - /, such as ghcr.io/acme/app"),
    )]
    pub repository: String,
    /// Tags that are moved to each new image. They may hold `{{branch}}`, `{{commit}}`, `{{shortCommit}}`,
    /// `{{timestamp}}` and `{{run}}`. Omitted: `latest`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(t, t.matches('^([A-Za-z0-9_.-]|\\\\{\\\\{ *(branch|commit|shortCommit|timestamp|run) *\\\\}\\\\})+$') && !t.startsWith('.') && !t.startsWith('-'))").message("a tag is made of letters, digits and _ . -, begins with neither . nor -, and may hold {{branch}}, {{commit}}, {{shortCommit}}, {{timestamp}} and {{run}}"),
    )]
    pub tags: Vec<String>,
    /// A Secret of type `kubernetes.io/dockerconfigjson`, or one with the keys `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// The CA that signed the registry's certificate, where the system does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
}

/// How far the build cache is shared.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// `Namespace`: with every ImageBuild of the namespace. `ImageBuild`: with nobody. Omitted: Namespace where the
    /// builders run in user namespaces, else ImageBuild, because a rootless builder hides nothing from its RUN steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<CacheScope>,
}

/// Who shares builders and cache.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum CacheScope {
    /// All ImageBuilds of the namespace.
    Namespace,
    /// This ImageBuild alone.
    ImageBuild,
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

/// What Kiln found and made.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the image of the current input is pushed. `Reconciling`: work goes on. `Stalled`: it cannot go on until
    /// something is mended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The last good image. A failure never takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<BuiltImage>,
    /// What that image was built from.
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
    /// Why the newest run failed. Absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<BuildFailure>,
    /// What `kubectl get` prints, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
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
}

/// What an image was built from.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The Git URL. Absent for inline files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// The commit. Absent for inline files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
}

/// Why a build failed, and where.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildFailure {
    /// The ImageBuildRun. Absent in the run's own status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub run: Option<String>,
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
    /// Its commit, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// Its platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub platforms: Option<String>,
    /// How long the newest finished run took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub duration: Option<String>,
}
