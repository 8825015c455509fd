//! References to Secrets and CA bundles.

use kube_derive::KubeSchema;
use serde::{Deserialize, Serialize};

/// A Secret, recognised by its keys, not by its type: `username` and `password`, or `.dockerconfigjson`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of a Secret in the same namespace (of a BuilderPool: in the builders namespace).
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a Secret.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of a Secret in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in that Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A PEM bundle of CA certificates, trusted beside the system's.
#[derive(Clone, Debug, Deserialize, Eq, Hash, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// `ConfigMap` (when omitted) or `Secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<CaRefKind>,
    /// Name of the object in the same namespace (of a BuilderPool: in the builders namespace).
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key that holds the bundle. Omitted: `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

impl CaRef {
    /// The key to read: the one named, or `ca.crt`.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or("ca.crt")
    }

    /// The kind to read: the one named, or ConfigMap.
    #[must_use]
    pub fn kind(&self) -> CaRefKind {
        self.kind.unwrap_or(CaRefKind::ConfigMap)
    }
}

/// Where a CA bundle is kept.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, schemars::JsonSchema)]
pub enum CaRefKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}
