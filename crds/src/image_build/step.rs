//! What RUN steps get: secrets, keys, limits, names of hosts, a network.

use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::reference::{SecretKeyRef, SecretRef};
use crate::rules;

/// A value for `RUN --mount=type=secret,id=…`, or for what ADD downloads.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildSecret {
    /// The id that the Dockerfile names. For ADD of a private file it is `HTTP_AUTH_TOKEN_HOST`, of a private repository
    /// `GIT_AUTH_TOKEN.HOST`, such as `GIT_AUTH_TOKEN.github.com`; a port belongs to the host.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.:-]+$"))]
    pub id: String,
    /// The Secret and the key that hold the value.
    pub secret_ref: SecretKeyRef,
}

/// A key for `RUN --mount=type=ssh`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildSsh {
    /// The id that the Dockerfile names; `default` for a mount that names none.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub id: String,
    /// A Secret with the key `ssh-privatekey`, as of type `kubernetes.io/ssh-auth`. The key must have no passphrase.
    pub secret_ref: SecretRef,
}

/// A limit of every RUN step, as `docker build --ulimit`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::telling(
    "!has(self.hard) || self.hard == -1 || (self.soft != -1 && self.soft <= self.hard)",
    "'ulimits: soft is at most hard: lower soft of ' + self.name + ', or leave out its hard'",
))]
pub struct Ulimit {
    /// Such as `nofile`, `nproc` or `stack`.
    #[schemars(
        length(min = 1, max = 16),
        regex(
            pattern = "^(core|cpu|data|fsize|locks|memlock|msgqueue|nice|nofile|nproc|rss|rtprio|rttime|sigpending|stack)$"
        )
    )]
    pub name: String,
    /// The soft limit; -1: none.
    #[schemars(range(min = -1))]
    pub soft: i64,
    /// The hard limit; -1: none. Omitted: the soft one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub hard: Option<i64>,
}

/// A line of `/etc/hosts` of every RUN step, as a Pod's `hostAliases` and `docker build --add-host`.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostAlias {
    /// The address.
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("hostAliases: ip is an IP address, such as 10.0.0.7"))]
    pub ip: String,
    /// Its names.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"))
    )]
    pub hostnames: Vec<String>,
}

/// The network of RUN steps.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum Network {
    /// The builder's, as its `NetworkPolicy` allows.
    Default,
    /// None but loopback.
    None,
}

/// When base images are looked up in their registry.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum PullPolicy {
    /// At each build, also where the builder has the image.
    Always,
    /// Only where the builder does not have it yet: a tag that has moved is not noticed.
    IfNotPresent,
}
