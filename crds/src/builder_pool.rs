//! BuilderPool: where and how builders run, and who may use them.
#![allow(clippy::struct_field_names, reason = "the limits' names say whose they are; the derived schema repeats them")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube_core::Duration;
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::reference::{CaRef, SecretRef};
use crate::{bounds, rules};

/// Where and how builders run, and which namespaces they serve.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "kiln.build",
    version = "v1alpha1",
    kind = "BuilderPool",
    status = "BuilderPoolStatus",
    derive = "PartialEq",
    doc = "Where and how builder pods run, what they trust, and which namespaces they serve.",
    shortname = "bp",
    category = "kiln",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default"),
    printcolumn(name = "Profile", type_ = "string", json_path = ".status.securityProfile"),
    printcolumn(name = "Builders", type_ = "integer", json_path = ".status.builderCount"),
    printcolumn(name = "Jobs", type_ = "integer", json_path = ".status.jobCount"),
    printcolumn(name = "Cache", type_ = "string", json_path = ".status.summary.cache"),
    printcolumn(name = "Platforms", type_ = "string", json_path = ".status.summary.platforms"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.summary.nodes", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name is too long: use at most 40 characters, for the names of its builders are longer"),
)]
#[serde(rename_all = "camelCase")]
pub struct BuilderPoolSpec {
    /// Architectures that this pool builds on, as in the node label `kubernetes.io/arch`. Omitted: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub architectures: Option<Vec<String>>,

    /// The namespaces that may use this pool. Omitted: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,

    /// Whether ImageBuilds that name no pool may use this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,

    /// How builders are kept apart from their node. Omitted: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_profile: Option<SecurityProfile>,

    /// Builders that are kept up for each namespace with ImageBuilds of this pool and each architecture that they build on,
    /// from the moment in which the first ImageBuild is there. Omitted: 0, builders start with the first build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16))]
    pub min_builders: Option<u32>,

    /// How many builders this pool may run at once. Omitted: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_builders: Option<u32>,

    /// How many platform builds one builder runs at once; more wait. Omitted: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_jobs_per_builder: Option<u32>,

    /// How long a builder stays warm without a job. Its cache volume outlives it. Omitted: `30m`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    pub idle_timeout: Option<Duration>,

    /// How long a build waits for a node that can take its builder, before it fails. Omitted: `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    pub scheduling_timeout: Option<Duration>,

    /// What one namespace may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PoolLimits>,

    /// The cache volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PoolCache>,

    /// Where builder pods are put, and what they may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<BuilderTemplate>,

    /// Build arguments of every build, such as `HTTPS_PROXY`; those of an ImageBuild go before them. A change makes no new
    /// runs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map", transform = rules::arguments)]
    pub default_args: BTreeMap<String, String>,

    /// The volume that `spec.archive` of ImageBuilds writes to and `platforms[].archive` reads from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archives: Option<PoolArchives>,

    /// How registries are reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["host".into()]))]
    pub registries: Vec<PoolRegistry>,

    /// CA bundles that builders trust beside the system's. They are read from the builders namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ca_refs: Vec<CaRef>,

    /// What builds may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<PoolAllow>,
}

/// How a builder pod is kept apart from its node.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum SecurityProfile {
    /// `UserNamespace` where nodes support it, else `Rootless`.
    #[default]
    Auto,
    /// A user namespace for the pod: RUN steps cannot see their builder. Never falls back.
    UserNamespace,
    /// Without a user namespace for the pod: RUN steps can read what their builder holds.
    Rootless,
}

/// What one namespace may take of a pool.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolLimits {
    /// Builders that one namespace may have at once for each architecture. Omitted: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub builders_per_namespace: Option<u32>,
    /// Cache volumes that one namespace may have in all. Omitted: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub volumes_per_namespace: Option<u32>,
    /// What the cache volumes of one namespace may ask for together, such as `200Gi`. Omitted: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))").message("limits.storagePerNamespace is a quantity such as 200Gi, more than 0"))]
    pub storage_per_namespace: Option<Quantity>,
}

/// The cache volumes of a pool.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolCache {
    /// The StorageClass of the volumes. Omitted: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// The size of each volume. `0`: no volume, the cache goes with the builder. Omitted: `20Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 0 : isQuantity(self) && !quantity(self).isLessThan(quantity('0'))").message("cache.size is a quantity such as 20Gi, or 0 for no volume"))]
    pub size: Option<Quantity>,
    /// How long a volume is kept after its last builder has gone. Omitted: `168h`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "bounds::seconds")]
    #[schemars(schema_with = "bounds::duration")]
    pub retention: Option<Duration>,
}

/// The volume for tarballs of images. Each namespace has a directory of its own there.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolArchives {
    /// A `PersistentVolumeClaim` of the builders namespace, which every node with builders can mount at the same time.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// Where builder pods are put.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuilderTemplate {
    /// Node labels that are wanted beside `kubernetes.io/os` and `kubernetes.io/arch`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "bounds::string_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations, beside that of the taint `kubernetes.io/arch`, which is always tolerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of builder pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Requests and limits of the buildkitd container, in which the RUN steps run. Omitted: requests of 250m and `512Mi`,
    /// and a limit of `8Gi` of memory; a step that needs more fails with the reason `OutOfMemory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Priority class of builder pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolRegistry {
    /// The registry's host and port, such as `docker.io` or `registry.corp.example:5000`.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[A-Za-z0-9.-]+(:[0-9]+)?$"))]
    pub host: String,
    /// Hosts that are asked first, each with a path where it needs one, such as `mirror.corp.example/docker.io`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 512), regex(pattern = "^[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._/-]+)?$"))
    )]
    pub mirrors: Vec<String>,
    /// A credential for this registry as a mirror, in the builders namespace: used by every build of the pool that has none
    /// of its own for this host, to pull.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Whether this registry is spoken to without TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
    /// The CA that signed the certificate of this registry, in the builders namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
}

/// What builds of a pool may do.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolAllow {
    /// Whether a `# syntax=` line may name a frontend image. Omitted: no, BuildKit's own Dockerfile frontend is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontends: Option<bool>,
    /// Whether a platform that no node runs natively is built by emulation, many times slower. Its nodes need handlers, which
    /// the chart's `emulation` installs. Omitted: no, such a platform waits for a node, unless its stages only copy files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulation: Option<bool>,
    /// Whether Git servers, web servers and registries may have private addresses. Omitted: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_addresses: Option<bool>,
    /// Services of the cluster that sources, images and base images may come from and go to. They are named
    /// `SERVICE.NAMESPACE.svc`, alone or with `.cluster.local` behind it. All other addresses of the cluster (its API server,
    /// Services, Pods and nodes) are refused with the reason `AddressForbidden`. Omitted: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".into(), "service".into()]))]
    pub cluster: Vec<ClusterService>,
    /// Whether sources are built on nodes whose kernel cannot keep what handles them in a sandbox of its own: Linux older than
    /// 6.2, or without Landlock. Omitted: yes. With `false`, builds there fail with the reason `SourceSandboxMissing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsandboxed_sources: Option<bool>,
}

/// A Service of the cluster, and its ports that builds may reach.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterService {
    /// The Service's namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub namespace: String,
    /// The Service's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub service: String,
    /// The ports, as the Service has them.
    #[schemars(length(min = 1, max = 16), inner(range(min = 1, max = 65535)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ports: Vec<u16>,
}

/// How a builder keeps apart what handles other people's files.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, schemars::JsonSchema)]
pub enum SourceSandbox {
    /// By Landlock, a filter of system calls, and limits.
    Landlock,
    /// By no sandbox.
    None,
}

/// What runs in a pool.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuilderPoolStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: builds can use this pool. `SourcesSandboxed`: its builders keep apart what handles other people's files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The security profile in use; under `Auto` the one that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_profile: Option<SecurityProfile>,
    /// How many builders there are.
    #[serde(default)]
    pub builder_count: u32,
    /// How many builds they run.
    #[serde(default)]
    pub job_count: u32,
    /// The builders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub builders: Vec<BuilderStatus>,
    /// What `kubectl get` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<PoolSummary>,
}

/// What `kubectl get builderpools` prints.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSummary {
    /// The platforms that this pool's nodes run natively, such as `linux/amd64,linux/arm64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub platforms: Option<String>,
    /// How much of the caches is used, such as `1.2Gi of 40Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub cache: Option<String>,
    /// The nodes with builders, and how many each has, such as `node-a: 2, node-b: 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub nodes: Option<String>,
}

/// One builder pod.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuilderStatus {
    /// The pod's name in the builders namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The namespace that it builds for.
    #[schemars(length(max = 253))]
    pub namespace: String,
    /// Its architecture.
    #[schemars(length(max = 32))]
    pub architecture: String,
    /// Its node. Empty while it is not placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Whether it runs in a user namespace, or rootless without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_profile: Option<SecurityProfile>,
    /// How many builds it runs.
    pub jobs: u32,
    /// Since when it is silent, once that has lasted for half a minute: it gets no new build. After a minute and a half another
    /// takes its place, and its builds are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect_since: Option<Time>,
    /// How it keeps apart what handles other people's files. Empty until it has answered for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SourceSandbox>,
    /// Why it has no sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub sandbox_message: Option<String>,
    /// The version of its BuildKit, such as `v0.33.1`. Empty, like what follows, until it has answered for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub buildkit: Option<String>,
    /// The platforms that its node runs by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub platforms: Vec<String>,
    /// The platforms that its node runs by emulation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub emulated_platforms: Vec<String>,
    /// How much its cache held when its last build had ended, without cache mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_used: Option<Quantity>,
    /// How much its cache may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_limit: Option<Quantity>,
    /// The largest id of a user or group that files of an image may belong to. It follows from how many ids the node's
    /// kubelet gives a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_id: Option<u32>,
    /// When its last build ended, or it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<Time>,
}
