//! What a builder reads at its start: buildkitd's configuration and the CA bundles that it trusts; pure.
//!
//! BuildKit reads registry CAs at start only, so a job that needs another one needs another builder.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use kiln_crds::BuilderPoolSpec;
use kiln_crds::builder_pool::PoolRegistry;
use kiln_registry::{DOCKER_HUB, DOCKER_HUB_NAMES};
use sha2::{Digest, Sha256};

use super::identity::hex;
use super::profile::Profile;

/// Where the builder's ConfigMap is mounted, in both containers.
pub const DIRECTORY: &str = "/etc/kiln/buildkitd";

/// The longest name of a registry whose CA a builder can be given: that of a file, less `.crt`.
pub const LONGEST_REGISTRY: usize = 250;

/// The CA bundles of a builder. A set, so that order and repetition do not matter.
pub type Bundles = BTreeSet<Bundle>;

/// A CA bundle, and what it counts for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Bundle {
    /// The registry that it counts for alone, with the token service and the servers of blobs that this one sends to. `None`:
    /// for everything, for it is the pool's.
    pub registry: Option<String>,
    /// The certificates, in PEM.
    pub pem: String,
}

impl Bundle {
    /// One of the pool's.
    #[must_use]
    pub fn of_pool(pem: &str) -> Self {
        Self { registry: None, pem: pem.to_owned() }
    }

    /// Stands for it in annotations and file names.
    #[must_use]
    pub fn hash(&self) -> String {
        let registry = self.registry.as_ref().map(|registry| format!("{registry}\n")).unwrap_or_default();
        hex(&Sha256::digest(format!("{registry}{}", self.pem.trim()))[..8])
    }
}

/// The bundles that count for one registry alone, as one text each, by registry.
#[must_use]
pub fn of_registries(bundles: &Bundles) -> BTreeMap<&str, String> {
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for bundle in bundles {
        if let Some(registry) = &bundle.registry {
            let text = texts.entry(registry).or_default();
            text.push_str(bundle.pem.trim());
            text.push('\n');
        }
    }
    texts
}

/// The key in the ConfigMap of a bundle that counts for registries alone: one for all that have the same.
#[must_use]
pub fn registry_key(text: &str) -> String {
    format!("registry-{}", hex(&Sha256::digest(text)[..8]))
}

/// Where a registry's bundle is, below [`DIRECTORY`].
#[must_use]
pub fn registry_path(registry: &str) -> String {
    format!("registries/{registry}.crt")
}

/// The content of the builder's ConfigMap, by file name.
#[must_use]
pub fn files(pool: &BuilderPoolSpec, profile: Profile, bundles: &Bundles) -> BTreeMap<String, String> {
    let mut files = BTreeMap::from([("buildkitd.toml".to_owned(), buildkitd(pool, bundles))]);
    for bundle in bundles.iter().filter(|bundle| bundle.registry.is_none()) {
        files.insert(format!("{}.crt", bundle.hash()), bundle.pem.clone());
    }
    for text in of_registries(bundles).into_values() {
        files.insert(registry_key(&text), text);
    }
    if profile == Profile::UserNamespace {
        // Whatever the pod has but its root: kiln-buildkitd finds out how many that are, and the kernel lets no other pass.
        let ids = "user:1:4294967294\n";
        files.insert("subuid".to_owned(), ids.to_owned());
        files.insert("subgid".to_owned(), ids.to_owned());
    }
    files
}

/// buildkitd's configuration: <https://github.com/moby/buildkit/blob/master/docs/buildkitd.toml.md>.
fn buildkitd(pool: &BuilderPoolSpec, bundles: &Bundles) -> String {
    let mut text = String::from("# Written by Kiln's operator from the BuilderPool.\n[worker.oci]\n  enabled = true\n");
    // It would collect beside builds, and cost them their cache mounts: the agent collects.
    text.push_str("  gc = false\n");
    text.push_str("[worker.containerd]\n  enabled = false\n");
    // Its history would keep what steps print on the volume, secrets and all.
    text.push_str("[history]\n  maxEntries = 0\n");
    for (host, Reached { mirrors, plain_http, ca }) in registries(&pool.registries, bundles) {
        let _ = writeln!(text, "[registry.{}]", quoted(&host));
        if !mirrors.is_empty() {
            let mirrors: Vec<String> = mirrors.iter().map(|mirror| quoted(mirror)).collect();
            let _ = writeln!(text, "  mirrors = [{}]", mirrors.join(", "));
        }
        if plain_http {
            text.push_str("  http = true\n");
        }
        if let Some(ca) = ca {
            let _ = writeln!(text, "  ca = [{}]", quoted(&ca));
        }
    }
    text
}

/// How one registry is reached.
#[derive(Default)]
struct Reached {
    mirrors: Vec<String>,
    plain_http: bool,
    ca: Option<String>,
}

/// The registries by the name that BuildKit looks them up by. Several of the pool's entries may mean one registry, and a
/// second table of one name would keep buildkitd from starting.
fn registries(named: &[PoolRegistry], bundles: &Bundles) -> BTreeMap<String, Reached> {
    let mut registries: BTreeMap<String, Reached> = BTreeMap::new();
    for registry in named {
        // What image references call docker.io goes by older names too.
        let host = match registry.host.to_ascii_lowercase() {
            host if DOCKER_HUB_NAMES.contains(&&*host) => DOCKER_HUB.to_owned(),
            host => host,
        };
        let reached = registries.entry(host).or_default();
        reached.mirrors.extend(registry.mirrors.iter().map(|mirror| {
            let (host, path) = mirror.split_at(mirror.find('/').unwrap_or(mirror.len()));
            host.to_ascii_lowercase() + path
        }));
        reached.plain_http |= registry.plain_http;
    }
    for registry in bundles.iter().filter_map(|bundle| bundle.registry.as_deref()) {
        registries.entry(registry.to_owned()).or_default().ca =
            Some(format!("{DIRECTORY}/{}", registry_path(registry)));
    }
    registries
}

/// A basic string of TOML. The schema allows no character that would need more care than this.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_mirrors_and_cas() {
        let pool = BuilderPoolSpec {
            registries: vec![
                PoolRegistry {
                    host: "docker.io".into(),
                    mirrors: vec!["mirror.example:5000/docker.io".into()],
                    ..PoolRegistry::default()
                },
                PoolRegistry { host: "plain.example:80".into(), plain_http: true, ..PoolRegistry::default() },
                PoolRegistry {
                    host: "index.docker.io".into(),
                    mirrors: vec!["plain.example:80".into()],
                    ..PoolRegistry::default()
                },
            ],
            ..BuilderPoolSpec::default()
        };
        let own = |registry: &str, pem: &str| Bundle { registry: Some(registry.into()), pem: pem.into() };
        let bundles =
            [Bundle::of_pool("p"), own("own.example:5000", "a"), own("own.example:5000", "b"), own("docker.io", "c")];
        insta::assert_snapshot!(buildkitd(&pool, &bundles.into()));
    }

    /// As images have them: BuildKit looks a registry up by its name as it is written, and Kiln writes it so.
    #[test]
    fn hosts_are_written_in_small_letters() {
        let registry = |host: &str, mirrors: &[&str]| PoolRegistry {
            host: host.into(),
            mirrors: mirrors.iter().map(|mirror| (*mirror).to_owned()).collect(),
            plain_http: true,
            ..PoolRegistry::default()
        };
        let registries = vec![
            registry("Docker.io", &["Mirror.Example:5000/hub"]),
            registry("GHCR.io", &[]),
            registry("ghcr.io", &[]),
        ];
        let written = buildkitd(&BuilderPoolSpec { registries, ..BuilderPoolSpec::default() }, &Bundles::new());
        for (text, count) in [
            ("[registry.\"docker.io\"]", 1),
            ("\"mirror.example:5000/hub\"", 1),
            ("[registry.\"ghcr.io\"]", 1),
            ("GHCR", 0),
        ] {
            assert_eq!(written.matches(text).count(), count, "{text}\n{written}");
        }
    }

    #[test]
    fn only_a_user_namespace_needs_its_own_ids() {
        let bundles = Bundles::from([Bundle::of_pool("-----BEGIN CERTIFICATE-----\n")]);
        let names = |profile| files(&BuilderPoolSpec::default(), profile, &bundles).into_keys().collect::<Vec<_>>();
        assert_eq!(names(Profile::UserNamespace).len(), 4);
        assert_eq!(names(Profile::Rootless).len(), 2);
    }

    #[test]
    fn a_bundle_is_known_by_what_it_counts_for_too() {
        let of =
            |registry: Option<&str>, pem: &str| Bundle { registry: registry.map(str::to_owned), pem: pem.to_owned() };
        let (pool, one, other) = (of(None, "a\n"), of(Some("a.example"), "a"), of(Some("b.example"), "a"));
        assert_eq!(pool.hash(), of(None, "a").hash());
        assert!(pool.hash() != one.hash() && one.hash() != other.hash());
        let both = Bundles::from([one, of(Some("a.example"), "b"), other, pool]);
        assert_eq!(of_registries(&both), [("a.example", "a\nb\n".to_owned()), ("b.example", "a\n".to_owned())].into());
    }
}
