//! What a builder reads at its start: buildkitd's configuration and the CA bundles that it trusts; pure.
//!
//! BuildKit reads registry CAs at start only, so a job that needs another one needs another builder.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use kiln_crds::BuilderPoolSpec;
use kiln_crds::builder_pool::PoolRegistry;
use sha2::{Digest, Sha256};

use super::identity::hex;
use super::profile::Profile;

/// The CA bundles of a builder, in PEM. A set, so that order and repetition do not matter.
pub type Bundles = BTreeSet<String>;

/// Stands for one CA bundle in annotations and file names.
#[must_use]
pub fn bundle_hash(pem: &str) -> String {
    hex(&Sha256::digest(pem.trim())[..8])
}

/// How large the cache may grow: reserved, kept at most, and left free on the volume, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CacheSize {
    /// The volume's size. 0: unknown, as with an emptyDir.
    pub volume: u64,
}

/// The content of the builder's ConfigMap, by file name.
#[must_use]
pub fn files(
    pool: &BuilderPoolSpec,
    profile: Profile,
    bundles: &Bundles,
    cache: CacheSize,
) -> BTreeMap<String, String> {
    let mut files = BTreeMap::from([("buildkitd.toml".to_owned(), buildkitd(pool, cache))]);
    for pem in bundles {
        files.insert(format!("{}.crt", bundle_hash(pem)), pem.clone());
    }
    if profile == Profile::UserNamespace {
        // The pod has 65536 ids: rootlesskit maps all of them but the user's own.
        let ids = "user:1:999\nuser:1001:64535\n";
        files.insert("subuid".to_owned(), ids.to_owned());
        files.insert("subgid".to_owned(), ids.to_owned());
    }
    files
}

/// buildkitd's configuration: <https://github.com/moby/buildkit/blob/master/docs/buildkitd.toml.md>.
fn buildkitd(pool: &BuilderPoolSpec, cache: CacheSize) -> String {
    let mut text = String::from("# Written by Kiln's operator from the BuilderPool.\n[worker.oci]\n  enabled = true\n");
    // Absolute figures: BuildKit's own defaults look at the node's whole disk, and drop large cache mounts after 48 h.
    let volume = if cache.volume == 0 { 20 << 30 } else { cache.volume };
    let reserved = volume / 10;
    let most = volume / 10 * 8;
    let free = volume / 10;
    text.push_str("  gc = true\n");
    let _ = write!(
        text,
        "  [[worker.oci.gcpolicy]]\n    all = true\n    reservedSpace = {reserved}\n    maxUsedSpace = {most}\n    minFreeSpace = {free}\n"
    );
    text.push_str("[worker.containerd]\n  enabled = false\n");
    // Its history would keep what steps print on the volume, secrets and all.
    text.push_str("[history]\n  maxEntries = 0\n");
    for (host, Reached { mirrors, plain_http }) in registries(&pool.registries) {
        let _ = writeln!(text, "[registry.{}]", quoted(host));
        if !mirrors.is_empty() {
            let mirrors: Vec<String> = mirrors.into_iter().map(quoted).collect();
            let _ = writeln!(text, "  mirrors = [{}]", mirrors.join(", "));
        }
        if plain_http {
            text.push_str("  http = true\n");
        }
    }
    text
}

/// How one registry is reached.
#[derive(Default)]
struct Reached<'a> {
    mirrors: Vec<&'a str>,
    plain_http: bool,
}

/// The registries by the name that BuildKit looks them up by. Several of the pool's entries may mean one registry, and a
/// second table of one name would keep buildkitd from starting.
fn registries(named: &[PoolRegistry]) -> BTreeMap<&str, Reached<'_>> {
    let mut registries: BTreeMap<&str, Reached<'_>> = BTreeMap::new();
    for registry in named {
        // What image references call docker.io goes by older names too.
        let host = match registry.host.as_str() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            host => host,
        };
        let reached = registries.entry(host).or_default();
        reached.mirrors.extend(registry.mirrors.iter().map(String::as_str));
        reached.plain_http |= registry.plain_http;
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
    fn configuration_names_mirrors_and_absolute_cache_sizes() {
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
        insta::assert_snapshot!(buildkitd(&pool, CacheSize { volume: 10 << 30 }));
    }

    #[test]
    fn only_a_user_namespace_needs_its_own_ids() {
        let bundles = Bundles::from(["-----BEGIN CERTIFICATE-----\n".to_owned()]);
        let names = |profile| {
            files(&BuilderPoolSpec::default(), profile, &bundles, CacheSize { volume: 0 })
                .into_keys()
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Profile::UserNamespace).len(), 4);
        assert_eq!(names(Profile::Rootless).len(), 2);
    }
}
