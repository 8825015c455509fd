//! The platforms of an image, and what differs for each.

use std::collections::BTreeMap;

use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{bounds, rules};

/// A platform to build, and what differs for it.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.image) && has(self.archive))").message("a platform is taken from image or from archive, not from both"),
    validation = rules::telling(
        "!(has(self.image) || has(self.archive)) || !(has(self.dockerfile) || has(self.target) || has(self.args) || has(self.buildOn))",
        format!("'a platform with image or archive is not built: leave out its dockerfile, target, args and buildOn; it has' + {}", rules::which(&["dockerfile", "target", "args", "buildOn"])),
    ),
)]
pub struct PlatformSpec {
    /// An OCI platform, such as `linux/amd64` or `linux/arm/v7`. Aliases such as `linux/aarch64` are understood.
    #[schemars(length(min = 3, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.-]+(\\\\([A-Za-z0-9_.-]+\\\\))?/[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$')").message("a platform is os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7"))]
    pub name: String,
    /// The Dockerfile for this platform, in place of `spec.dockerfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.matches('(^|/)[^/]*[^/.][^/]*/(.*/)?[.][.](/|$)') && !self.endsWith('/..') && self != '..'").message("dockerfile is a path relative to the context's directory, without a leading /; .. may only stand at its beginning, for a Dockerfile outside of the context"))]
    pub dockerfile: Option<String>,
    /// The stage for this platform, in place of `spec.target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub target: Option<String>,
    /// Build arguments for this platform, beside those of `spec.args` and before them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map", transform = rules::arguments)]
    pub args: BTreeMap<String, String>,
    /// The platform whose builders build this one, such as `linux/amd64`, for a Dockerfile that compiles for another
    /// architecture (`FROM --platform=$BUILDPLATFORM`). Omitted: one that runs it, natively if there is such a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^linux/[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$')").message("buildOn is a linux platform, such as linux/amd64"))]
    pub build_on: Option<String>,
    /// An image that was built elsewhere, such as `registry.example/app@sha256:…`: it is taken into the index and not built.
    /// A tag is resolved once for each run; of an index the image of this platform is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 640))]
    #[x_kube(validation = Rule::new("!self.contains('://') && !self.matches('[\\\\s\\\\x00-\\\\x1f]')").message("a platform's image is registry/path:tag or registry/path@digest, without a scheme"))]
    pub image: Option<String>,
    /// The path of a tarball with an OCI layout on the pool's archive volume, as `spec.archive` writes it: its image is
    /// pushed as it is, and not built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(s, s == '..' || s == '.' || s == '')").message("a platform's archive is a relative path, such as app.tar, without .."))]
    pub archive: Option<String>,
}

impl PlatformSpec {
    /// A platform without anything of its own.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            dockerfile: None,
            target: None,
            args: BTreeMap::new(),
            build_on: None,
            image: None,
            archive: None,
        }
    }
}
