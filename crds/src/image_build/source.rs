//! What is built: a Git repository, files, a tarball, an image; and what is built beside it.
#![allow(clippy::struct_excessive_bools, reason = "each is a switch of its own; the derived schema repeats them")]

use std::collections::BTreeMap;

use kube_core::Duration;
use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::reference::{CaRef, SecretRef};
use crate::{bounds, rules};

/// What to build: exactly one of the fields.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::telling(
    "[has(self.git), has(self.inline), has(self.http), has(self.image)].filter(x, x).size() == 1",
    format!("'source needs exactly one of git, inline, http and image: it has' + {}", rules::which(&["git", "inline", "http", "image"])),
))]
pub struct Source {
    /// A Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// Files written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
    /// A tarball on a web server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Box<HttpSource>>,
    /// An image or an OCI artifact, whose files are the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
}

/// A Git repository. Its `.dockerignore` holds as it does for `docker build`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::of_url("self.url.startsWith('https://') || self.url.startsWith('ssh://') || self.url.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9.-]+:[^/].*$')", "git.url must begin with https:// or ssh://, or be of the form git@host:path"),
    validation = rules::of_url("!self.url.startsWith('https://') || !self.url.substring(8).split('/')[0].contains('@')", "git.url must not hold a user or password: put them into a Secret with the keys username and password, and name it in git.secretRef"),
    validation = rules::of_url("!self.url.startsWith('ssh://') || self.url.matches('^ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9.-]+(:[0-9]+)?/.+$')", "an ssh URL is ssh://user@host[:port]/path, without a password: its key goes into the Secret that git.secretRef names"),
    validation = rules::of_url("!self.url.matches('[\\\\s\\\\x00-\\\\x1f#?]')", "git.url must not hold spaces, control characters, ? or #: the branch or tag goes into git.ref, a directory into git.path"),
    validation = Rule::new("!(has(self.fullHistory) && self.fullHistory) || (has(self.keepGitDir) && self.keepGitDir)").message("git.fullHistory needs git.keepGitDir: true, for the history is in .git"),
)]
pub struct GitSource {
    /// An https URL without user and password, or an ssh one such as `ssh://git@host/path.git` or `git@host:path.git`.
    /// Credentials go into a Secret that `secretRef` names.
    #[schemars(length(min = 9, max = 2048))]
    pub url: String,

    /// A branch, a tag, a full ref such as `refs/heads/main`, or a full commit id. Omitted: the default branch.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("!self.startsWith('-') && !self.matches('[\\\\s\\\\x00-\\\\x1f~^:?*\\\\[\\\\\\\\]') && !self.contains('..')").message("git.ref is a branch, a tag, a full ref or a full commit id: it has no spaces, does not begin with -, and holds none of ~ ^ : ? * [ \\ and .."))]
    pub reference: Option<String>,

    /// The build context's directory in the repository. Omitted: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..')").message("git.path is a directory in the repository: write it without a leading / and without .."))]
    pub path: Option<String>,

    /// How often the ref is looked at for a new commit, such as `5m`. `0s`: never again. Omitted: `5m`. At the same times, of
    /// several repositories at the shortest interval, the tags of images are looked at that source, contexts and platforms
    /// name; where there is no Git repository, only when the spec or the annotation `kiln.build/rebuild` changes, or
    /// `cache.maxAge` has passed.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    #[x_kube(validation = Rule::new("duration(self) == duration('0s') || duration(self) >= duration('5s')").message("git.interval is 0s (never look again) or at least 5s"))]
    pub interval: Option<Duration>,

    /// For https a Secret with the keys `username` and `password` (a token goes into `password`). For ssh one with the keys
    /// `ssh-privatekey` and `known_hosts` (as printed by `ssh-keyscan HOST`). Used for the URL's host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,

    /// The CA that signed the server's certificate, where the system does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,

    /// Fetches submodules too. The credential is used for those on the same host only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub submodules: bool,

    /// Fetches files that Git LFS keeps, in place of their pointers, from the URL's own host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lfs: bool,

    /// Leaves `.git` in the context, as `BUILDKIT_CONTEXT_KEEP_GIT_DIR` does, with the one commit; see `fullHistory`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_git_dir: bool,

    /// Fetches all commits and tags, for `git describe` and its like. Needs `keepGitDir`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full_history: bool,
}

/// Files written into the ImageBuild itself.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InlineSource {
    /// Content by path, such as `Dockerfile` or `src/app.sh`; together at most 1000000 characters.
    #[schemars(schema_with = "bounds::files", transform = rules::files)]
    pub files: BTreeMap<String, String>,
}

/// A tarball, plain or compressed with gzip, zstd, xz or bzip2.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::of_url("self.url.startsWith('https://')", "http.url must begin with https://"),
    validation = rules::of_url("!self.url.startsWith('https://') || !self.url.substring(8).split('/')[0].contains('@')", "http.url must not hold a user or password: put them into a Secret with the keys username and password, and name it in http.secretRef"),
    validation = rules::of_url("!self.url.matches('[\\\\s\\\\x00-\\\\x1f#]')", "http.url must not hold spaces, control characters or #"),
)]
pub struct HttpSource {
    /// An https URL, without user and password.
    #[schemars(length(min = 9, max = 2048))]
    pub url: String,

    /// The SHA-256 of what the URL gives, as `sha256:` and 64 hexadecimal digits: `sha256sum FILE` prints it.
    #[schemars(length(min = 71, max = 71), regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    pub checksum: String,

    /// The build context's directory in the tarball. Omitted: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..')").message("http.path is a directory in the tarball: write it without a leading / and without .."))]
    pub path: Option<String>,

    /// A Secret with the keys `username` and `password`. Sent to the URL's host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,

    /// The CA that signed the server's certificate, where the system does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
}

/// An image, whose files are the source, or an OCI artifact with files or a tarball in its layers, as `flux push artifact`
/// and `oras push` make them. Its credential is that of `image.secretRef` or `pullSecretRefs`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Registry, path, and a tag or digest, such as `ghcr.io/acme/source:1.2`.
    #[schemars(length(min = 1, max = 640))]
    #[x_kube(validation = Rule::new("!self.contains('://') && !self.matches('[\\\\s\\\\x00-\\\\x1f]')").message("source.image.ref is registry/path:tag or registry/path@digest, without a scheme"))]
    #[serde(rename = "ref")]
    pub reference: String,

    /// The build context's directory in it. Omitted: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..')").message("source.image.path is a directory in the image: write it without a leading / and without .."))]
    pub path: Option<String>,
}

/// A build context beside the source, as `docker buildx build --build-context NAME=…`: `COPY --from=NAME` and `FROM NAME`
/// mean it. Exactly one of `image`, `git` and `imageBuild`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::telling(
    "[has(self.image), has(self.git), has(self.imageBuild)].filter(x, x).size() == 1",
    format!("'a context needs exactly one of image, git and imageBuild: ' + self.name + ' has' + {}", rules::which(&["image", "git", "imageBuild"])),
))]
pub struct BuildContext {
    /// The name that the Dockerfile uses. That of an image, such as `docker.io/library/alpine:3.20`, is replaced too.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._/:@-]*$') && self != 'context' && self != 'dockerfile'").message("a context's name is made of letters, digits and . _ / : @ -, and is neither context nor dockerfile"))]
    pub name: String,
    /// An image, such as `ghcr.io/acme/base@sha256:…`; a tag is resolved once for each run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 640))]
    #[x_kube(validation = Rule::new("!self.contains('://') && !self.matches('[\\\\s\\\\x00-\\\\x1f]')").message("a context's image is registry/path:tag or registry/path@digest, without a scheme"))]
    pub image: Option<String>,
    /// A Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// The last good image of another ImageBuild of the namespace. A new one of it makes a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_build: Option<ImageBuildName>,
}

/// An ImageBuild of the same namespace, by name.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildName {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
