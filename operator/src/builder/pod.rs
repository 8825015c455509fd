//! The builder pod and its volume, from what the pool says; pure. Design of the two security profiles: docs/architecture.md.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, KeyToPath,
    LocalObjectReference, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Pod,
    PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Toleration,
    Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kiln_crds::BuilderPoolSpec;
use sha2::{Digest, Sha256};

use super::config::{Bundle, Bundles, DIRECTORY, files, of_registries, registry_key, registry_path};
use super::identity::{BuilderId, hex};
use super::profile::Profile;

/// The annotation with the hash of what the pod was made from, but for its CA bundles.
pub const TEMPLATE_HASH: &str = "kiln.build/template-hash";
/// The annotation with the CA bundles that the builder trusts, as [`Bundle::hash`] names them, joined by commas.
pub const BUNDLES: &str = "kiln.build/ca-bundles";
/// The annotation of a volume with the time at which it was last known to be in use.
pub const LAST_USED: &str = "kiln.build/last-used";
/// The container in which RUN steps run.
pub const BUILDKITD_CONTAINER: &str = "buildkitd";
/// The container with the agent.
pub const AGENT_CONTAINER: &str = "agent";
/// Where the agent listens.
pub const AGENT_PORT: u16 = 8443;
/// Which files builders find where in their ConfigMap: an older one is replaced once it is idle.
const LAYOUT: u32 = 2;
/// The size of a cache volume unless the pool names one.
const CACHE_SIZE: &str = "20Gi";
/// Where the agent finds its namespace's directory of the pool's archive volume.
const ARCHIVES: &str = "/var/lib/kiln/archives";
/// The uid and gid of everything in a builder pod.
const USER: i64 = 1000;

/// What a builder is made from.
#[derive(Clone, Copy, Debug)]
pub struct Template<'a> {
    /// The pool's spec.
    pub pool: &'a BuilderPoolSpec,
    /// The builder image.
    pub image: &'a str,
    /// Its pull secrets, in the builders namespace.
    pub pull_secrets: &'a [String],
    /// The namespace of builder pods.
    pub namespace: &'a str,
    /// Where BuildKit sends its traces, if anywhere.
    pub otlp_endpoint: Option<&'a str>,
}

impl Template<'_> {
    /// Whether builders keep their cache on a volume of their own.
    #[must_use]
    pub fn has_volume(&self) -> bool {
        let size = self.pool.cache.as_ref().and_then(|cache| cache.size.as_ref());
        size.is_none_or(|size| bytes(size) != Some(0))
    }

    /// What a builder's volume asks for, in bytes; 0 where it has none.
    #[must_use]
    pub fn volume_size(&self) -> u64 {
        if self.has_volume() { bytes(&self.cache_size()).unwrap_or(0) } else { 0 }
    }

    fn cache_size(&self) -> Quantity {
        let size = self.pool.cache.as_ref().and_then(|cache| cache.size.clone());
        size.unwrap_or_else(|| Quantity(CACHE_SIZE.to_owned()))
    }

    /// Stands for everything that a pod is made from, but for its CA bundles and who it is for: a pod with another hash
    /// is replaced once it is idle.
    #[must_use]
    pub fn hash(&self, profile: Profile) -> String {
        let id = BuilderId {
            pool: String::new(),
            domain: super::TrustDomain {
                namespace: String::new(),
                namespace_uid: String::new(),
                image_build_uid: None,
                image_build: None,
            },
            architecture: String::new(),
            slot: 0,
        };
        let mut pod = self.pod(&id, profile, &Bundles::new(), &owner("", ""));
        pod.metadata = ObjectMeta::default();
        let files = files(self.pool, profile, &Bundles::new());
        let text = serde_json::to_string(&(LAYOUT, pod, files)).unwrap_or_default();
        hex(&Sha256::digest(text)[..8])
    }

    /// What the agent keeps the cache within. Absolute figures: BuildKit's own defaults look at the node's whole disk, and
    /// drop large cache mounts after 48 h.
    fn cache_limits(&self) -> [EnvVar; 3] {
        let volume = match self.volume_size() {
            // Unknown, as with an emptyDir.
            0 => 20 << 30,
            volume => volume,
        };
        let variable = |name, bytes: u64| variable(name, &bytes.to_string());
        [
            variable("KILN_CACHE_RESERVED", volume / 10),
            variable("KILN_CACHE_SIZE", volume / 10 * 8),
            variable("KILN_CACHE_FREE", volume / 10),
        ]
    }

    /// The content of the builder's ConfigMap.
    #[must_use]
    pub fn files(&self, profile: Profile, bundles: &Bundles) -> BTreeMap<String, String> {
        files(self.pool, profile, bundles)
    }

    /// The cache volume's claim. It outlives the pod.
    #[must_use]
    pub fn claim(&self, id: &BuilderId, owner: &OwnerReference) -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: self.metadata(id, id.name(), owner),
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                storage_class_name: self.pool.cache.as_ref().and_then(|cache| cache.storage_class_name.clone()),
                resources: Some(VolumeResourceRequirements {
                    requests: Some([("storage".to_owned(), self.cache_size())].into()),
                    ..VolumeResourceRequirements::default()
                }),
                ..PersistentVolumeClaimSpec::default()
            }),
            ..PersistentVolumeClaim::default()
        }
    }

    /// Name, labels and owner of one of the builder's objects.
    #[must_use]
    pub fn metadata(&self, id: &BuilderId, name: String, owner: &OwnerReference) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(id.labels()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        }
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self, id: &BuilderId, profile: Profile, bundles: &Bundles, owner: &OwnerReference) -> Pod {
        let template = self.pool.template.clone().unwrap_or_default();
        let mut metadata = self.metadata(id, id.name(), owner);
        metadata.annotations = Some(
            [
                (BUNDLES.to_owned(), bundles.iter().map(Bundle::hash).collect::<Vec<_>>().join(",")),
                ("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "false".to_owned()),
            ]
            .into(),
        );
        let mut node_selector = template.node_selector;
        node_selector.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
        node_selector.insert("kubernetes.io/arch".to_owned(), id.architecture.clone());
        let mut tolerations = template.tolerations;
        // The taint that clouds put on nodes that are not amd64.
        tolerations.push(Toleration {
            key: Some("kubernetes.io/arch".to_owned()),
            operator: Some("Equal".to_owned()),
            value: Some(id.architecture.clone()),
            ..Toleration::default()
        });
        Pod {
            metadata,
            spec: Some(PodSpec {
                automount_service_account_token: Some(false),
                enable_service_links: Some(false),
                host_users: (profile == Profile::UserNamespace).then_some(false),
                // One for all builders: RUN steps that record it give the same layer everywhere.
                hostname: Some("builder".to_owned()),
                image_pull_secrets: (!self.pull_secrets.is_empty()).then(|| {
                    self.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect()
                }),
                init_containers: Some(vec![self.buildkitd(profile, template.resources)]),
                containers: vec![self.agent(id)],
                node_selector: Some(node_selector),
                tolerations: Some(tolerations),
                affinity: template.affinity,
                priority_class_name: template.priority_class_name,
                // On an eviction, builds that run may finish.
                termination_grace_period_seconds: Some(300),
                security_context: Some(PodSecurityContext {
                    run_as_user: Some(USER),
                    run_as_group: Some(USER),
                    run_as_non_root: Some(true),
                    // A fresh volume's root is often root:root 0755.
                    fs_group: Some(USER),
                    fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                    ..PodSecurityContext::default()
                }),
                volumes: Some(self.volumes(id, profile, bundles)),
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    /// buildkitd, a native sidecar: it starts first and stops last. No startup probe: the kubelet looks at it in whole
    /// seconds, so the agent waits for the socket itself.
    fn buildkitd(&self, profile: Profile, resources: Option<ResourceRequirements>) -> Container {
        let unconfined = || Some(SeccompProfile { type_: "Unconfined".to_owned(), ..SeccompProfile::default() });
        let app_armor =
            Some(k8s_openapi::api::core::v1::AppArmorProfile { type_: "Unconfined".to_owned(), ..Default::default() });
        let security_context = SecurityContext {
            read_only_root_filesystem: Some(true),
            proc_mount: (profile == Profile::UserNamespace).then(|| "Unmasked".to_owned()),
            // What newuidmap and newgidmap need, whose file capabilities go no further than the bounding set.
            capabilities: Some(Capabilities {
                add: Some(vec!["SETUID".to_owned(), "SETGID".to_owned()]),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            seccomp_profile: unconfined(),
            app_armor_profile: app_armor,
            ..SecurityContext::default()
        };
        let mut mounts = vec![
            mount("socket", "/run/buildkit"),
            VolumeMount { sub_path: Some("buildkit".to_owned()), ..mount("cache", "/var/lib/kiln/buildkit") },
            VolumeMount { read_only: Some(true), ..mount("config", DIRECTORY) },
            mount("tmp", "/tmp"),
        ];
        if profile == Profile::UserNamespace {
            for file in ["subuid", "subgid"] {
                mounts.push(VolumeMount {
                    sub_path: Some(file.to_owned()),
                    read_only: Some(true),
                    ..mount("ids", &format!("/etc/{file}"))
                });
            }
        }
        let mut env = vec![variable("KILN_SECURITY_PROFILE", profile.as_str())];
        // https://opentelemetry.io/docs/specs/otel/protocol/exporter/: BuildKit reads it, and exports its own spans.
        env.extend(self.otlp_endpoint.map(|endpoint| variable("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)));
        Container {
            name: BUILDKITD_CONTAINER.to_owned(),
            image: Some(self.image.to_owned()),
            command: Some(vec!["/usr/local/bin/kiln-buildkitd".to_owned()]),
            env: Some(env),
            restart_policy: Some("Always".to_owned()),
            resources: Some(self.with_ephemeral(resources.unwrap_or_else(|| resources_of(BUILDKITD)), BUILDKITD)),
            security_context: Some(security_context),
            volume_mounts: Some(mounts),
            ..Container::default()
        }
    }

    /// Requests and limits of ephemeral storage, where there are none yet. Without a volume the cache is ephemeral
    /// storage itself, and as large as the node lets it be.
    fn with_ephemeral(&self, resources: ResourceRequirements, of: Resources) -> ResourceRequirements {
        let name = "ephemeral-storage";
        let mut resources = resources;
        let named = resources.limits.as_ref().is_some_and(|limits| limits.contains_key(name))
            || resources.requests.as_ref().is_some_and(|requests| requests.contains_key(name));
        if !named {
            let [request, limit] = of.ephemeral_storage.map(|quantity| Quantity(quantity.to_owned()));
            resources.requests.get_or_insert_default().insert(name.to_owned(), request);
            if self.has_volume() {
                resources.limits.get_or_insert_default().insert(name.to_owned(), limit);
            }
        }
        resources
    }

    /// The agent: restricted, and the only one to see the certificate and the credentials.
    fn agent(&self, id: &BuilderId) -> Container {
        let limit = self.pool.max_jobs_per_builder.unwrap_or(super::ensure::JOBS_PER_BUILDER);
        let mut env = vec![variable("KILN_BUILDER", &id.name()), variable("KILN_MAX_JOBS", &limit.to_string())];
        let memory = bytes(&Quantity(AGENT.memory[1].to_owned())).unwrap_or_default();
        env.push(variable("KILN_MEMORY_LIMIT", &memory.to_string()));
        env.extend(self.cache_limits());
        let mut mounts = vec![
            mount("socket", "/run/buildkit"),
            VolumeMount { sub_path: Some("agent".to_owned()), ..mount("cache", "/var/lib/kiln/agent") },
            mount("credentials", "/run/kiln"),
            VolumeMount { read_only: Some(true), ..mount("tls", "/etc/kiln/tls") },
            // For its CA bundles: where a registry wants tokens, it is kiln-build that asks for them.
            VolumeMount { read_only: Some(true), ..mount("config", DIRECTORY) },
            mount("agent-tmp", "/tmp"),
        ];
        if self.pool.archives.is_some() {
            env.push(variable("KILN_ARCHIVES_DIR", ARCHIVES));
            // The namespace's own directory and nothing above it: a namespace made again under the same name begins empty.
            let directory = format!("{}-{}", id.domain.namespace, id.domain.namespace_uid);
            mounts.push(VolumeMount { sub_path: Some(directory), ..mount("archives", ARCHIVES) });
        }
        Container {
            name: AGENT_CONTAINER.to_owned(),
            image: Some(self.image.to_owned()),
            command: Some(vec!["/usr/local/bin/kiln-agent".to_owned()]),
            env: Some(env),
            ports: Some(vec![ContainerPort {
                name: Some("agent".to_owned()),
                container_port: i32::from(AGENT_PORT),
                ..ContainerPort::default()
            }]),
            resources: Some(self.with_ephemeral(resources_of(AGENT), AGENT)),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                run_as_non_root: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(mounts),
            ..Container::default()
        }
    }

    fn volumes(&self, id: &BuilderId, profile: Profile, bundles: &Bundles) -> Vec<Volume> {
        let directory = |name: &str, source: EmptyDirVolumeSource| Volume {
            name: name.to_owned(),
            empty_dir: Some(source),
            ..Volume::default()
        };
        let mut cache = directory("cache", EmptyDirVolumeSource::default());
        if self.has_volume() {
            cache.empty_dir = None;
            cache.persistent_volume_claim =
                Some(PersistentVolumeClaimVolumeSource { claim_name: id.name(), read_only: None });
        }
        let memory =
            EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(Quantity("16Mi".to_owned())) };
        let tls = Volume {
            name: "tls".to_owned(),
            secret: Some(SecretVolumeSource { secret_name: Some(tls_name(id)), ..SecretVolumeSource::default() }),
            ..Volume::default()
        };
        let item = |key: &str, path: String| KeyToPath { key: key.to_owned(), path, ..KeyToPath::default() };
        let config = |name: &str, items: Vec<KeyToPath>| Volume {
            name: name.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config_name(id),
                items: Some(items),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        };
        let ids = ["subuid", "subgid"];
        let files = self.files(profile, bundles);
        let of_registries: Vec<KeyToPath> = of_registries(bundles)
            .iter()
            .map(|(registry, text)| item(&registry_key(text), registry_path(registry)))
            .collect();
        let is_own = |key: &str| !ids.contains(&key) && !of_registries.iter().any(|of| of.key == key);
        // The CA bundles of the pool get a folder of their own: every file in it is trusted for everything.
        let settings = files.keys().filter(|key| is_own(key)).map(|key| {
            let is_bundle = std::path::Path::new(key).extension().is_some_and(|extension| extension == "crt");
            item(key, if is_bundle { format!("trust/{key}") } else { key.clone() })
        });
        let mut volumes = vec![
            cache,
            directory("socket", EmptyDirVolumeSource::default()),
            directory("credentials", memory),
            directory("tmp", EmptyDirVolumeSource::default()),
            directory("agent-tmp", EmptyDirVolumeSource::default()),
            tls,
            config("config", settings.chain(of_registries.iter().cloned()).collect()),
        ];
        if let Some(archives) = &self.pool.archives {
            let claim_name = archives.claim_name.clone();
            volumes.push(Volume {
                name: "archives".to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
                ..Volume::default()
            });
        }
        if profile == Profile::UserNamespace {
            volumes.push(config("ids", ids.map(|key| item(key, key.to_owned())).to_vec()));
        }
        volumes
    }
}

/// The name of the builder's certificate Secret.
#[must_use]
pub fn tls_name(id: &BuilderId) -> String {
    format!("{}-tls", id.name())
}

/// The name of the builder's ConfigMap.
#[must_use]
pub fn config_name(id: &BuilderId) -> String {
    format!("{}-config", id.name())
}

/// The pool as owner: what belongs to a builder goes when its pool does.
#[must_use]
pub fn owner(pool: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "kiln.build/v1alpha1".to_owned(),
        kind: "BuilderPool".to_owned(),
        name: pool.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() }
}

/// What a container asks for, and what it may have at most.
#[derive(Clone, Copy)]
struct Resources {
    cpu: &'static str,
    memory: [&'static str; 2],
    ephemeral_storage: [&'static str; 2],
}

/// Unless the pool says it. Memory is limited so that one builder cannot take a node down; a step that is killed for it
/// fails with a reason that names the limit.
const BUILDKITD: Resources = Resources { cpu: "250m", memory: ["512Mi", "8Gi"], ephemeral_storage: ["256Mi", "4Gi"] };

/// Its own, so that what RUN steps take is not taken from it. Memory is for git, which unpacks what it fetches.
const AGENT: Resources = Resources { cpu: "20m", memory: ["64Mi", "2Gi"], ephemeral_storage: ["64Mi", "1Gi"] };

fn resources_of(of: Resources) -> ResourceRequirements {
    let quantity = |value: &str| Quantity(value.to_owned());
    ResourceRequirements {
        requests: Some([("cpu".to_owned(), quantity(of.cpu)), ("memory".to_owned(), quantity(of.memory[0]))].into()),
        limits: Some([("memory".to_owned(), quantity(of.memory[1]))].into()),
        ..ResourceRequirements::default()
    }
}

/// A quantity in whole bytes. `None`: it is none.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
#[must_use]
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let factor: u64 = match unit {
        "" => 1,
        // Thousandths of a byte, as some clients write what they have added up.
        "m" => return Some(whole.parse::<u64>().ok()?.div_ceil(1000)),
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "P" => 1000_u64.pow(5),
        "E" => 1000_u64.pow(6),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            10_u64.checked_pow(exponent.trim_start_matches('+').parse().ok()?)?
        }
    };
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? }.checked_mul(factor)?;
    let digits = fraction.get(..fraction.len().min(3))?;
    let thousandths = if digits.is_empty() { 0 } else { format!("{digits:0<3}").parse::<u64>().ok()? };
    whole.checked_add(factor / 1000 * thousandths)
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
