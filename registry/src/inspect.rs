//! What an image is: its platform, its size, and which instruction made which layer
//! (<https://github.com/opencontainers/image-spec/blob/main/config.md>).

use kiln_crds::Platform;
use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;

use super::client::{Client, Manifest};
use super::error::{Attempt, Error, ErrorKind};
use super::manifest::{Link, Links, some};
use super::reference::{Identifier, Repository};

/// The largest configuration that is read.
const CONFIG_LIMIT: usize = 4 * 1024 * 1024;
/// The longest text of an instruction that is kept, in characters.
const LONGEST_CREATED_BY: usize = 1024;
/// An index of indexes of indexes is deeper than anybody's.
const DEPTH: usize = 4;

/// One platform's image in a registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Its manifest.
    pub manifest: Descriptor,
    /// The platform, as its configuration says. `None`: it has none, as an artifact.
    pub platform: Option<Platform>,
    /// What it needs of its operating system.
    pub os_features: Vec<String>,
    /// The size of its configuration in bytes.
    pub config_bytes: u64,
    /// From the base up.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its size in bytes, compressed.
    pub bytes: u64,
    /// The instruction that made it.
    pub created_by: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    os: String,
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features", deserialize_with = "some")]
    os_features: Vec<String>,
    #[serde(deserialize_with = "some")]
    history: Vec<History>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct History {
    created_by: Option<String>,
    empty_layer: bool,
}

/// Reads a manifest, an index or a configuration from bytes, as [`inspect`] does with those of a registry.
pub(super) fn read(bytes: &[u8]) {
    if let Some(manifest) = Links::read(bytes) {
        let attempt = Attempt { registry: String::new(), action: String::new(), writes_tag: false, has_login: false };
        for platform in ["linux/arm64", "windows(10.0.20348)/amd64"].iter().filter_map(|name| name.parse().ok()) {
            if let Ok(digest) = choose(&attempt, &manifest.manifests, &platform) {
                assert!(manifest.manifests.iter().any(|entry| entry.digest == *digest));
            }
        }
    }
    if let Ok(config) = serde_json::from_slice::<Config>(bytes) {
        let descriptor = Descriptor::new(oci_spec::image::MediaType::ImageManifest, 0, super::sha256_digest(bytes));
        assert_eq!(image(descriptor, 0, &[0], config).layers.len(), 1);
    }
}

/// Reads the image that `identifier` names; of an index, that of `platform`.
pub async fn inspect(
    client: &Client,
    repository: &Repository,
    identifier: &Identifier,
    platform: &Platform,
) -> Result<Image, Error> {
    let attempt = client.attempt(repository, &format!("read the image {identifier} of"));
    let mut identifier = identifier.clone();
    for _ in 0..DEPTH {
        let Manifest { descriptor, bytes } = client.get_manifest(repository, &identifier).await?;
        let Links { manifests, config, layers } =
            Links::read(&bytes).ok_or_else(|| attempt.protocol("it is not an OCI manifest or index"))?;
        // Whoever answers slowly holds nothing but what is needed.
        drop(bytes);
        if manifests.is_empty() {
            let layers: Vec<u64> = layers.into_iter().map(|layer| layer.size).collect();
            let config = match &config {
                Some(config) => client.get_blob(repository, &config.digest, CONFIG_LIMIT).await?,
                None => return Err(attempt.protocol("it is not an image: it has no configuration")),
            };
            // That of an artifact may be anything.
            let config_of: Config = serde_json::from_slice(&config).unwrap_or_default();
            return Ok(image(descriptor, config.len() as u64, &layers, config_of));
        }
        identifier = choose(&attempt, &manifests, platform)?.clone().into();
    }
    Err(attempt.protocol("its indexes are nested too deep"))
}

/// The digest of an index's entry for `platform`. A version of the operating system such as `10.0.20348` has every one that
/// goes on from there, such as `10.0.20348.2227`; without one the first of any is taken.
fn choose<'a>(attempt: &Attempt, entries: &'a [Link], platform: &Platform) -> Result<&'a Digest, Error> {
    let of = |entry: &Link| {
        let of = entry.platform.as_ref()?;
        let os_version = of.os_version.as_deref().filter(|version| !version.is_empty());
        parsed(&of.os, os_version, &of.architecture, of.variant.as_deref())
    };
    let wanted = |entry: &&Link| {
        of(entry).is_some_and(|of| {
            let version = match (&platform.os_version, &of.os_version) {
                (None, _) => true,
                (Some(wanted), Some(has)) => has == wanted || has.starts_with(&format!("{wanted}.")),
                (Some(_), None) => false,
            };
            version && Platform { os_version: platform.os_version.clone(), ..of } == *platform
        })
    };
    entries.iter().find(wanted).map(|entry| &entry.digest).ok_or_else(|| {
        let there: Vec<String> =
            entries.iter().filter_map(of).filter(|of| of.os != "unknown").map(|of| of.to_string()).collect();
        let cause = format!("the index has no image for {platform}, only for {}", there.join(", "));
        attempt.fail(ErrorKind::NotFound, cause)
    })
}

fn parsed(os: &str, os_version: Option<&str>, architecture: &str, variant: Option<&str>) -> Option<Platform> {
    let os_version = os_version.map(|version| format!("({version})")).unwrap_or_default();
    let variant =
        variant.filter(|variant| !variant.is_empty()).map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{os}{os_version}/{architecture}{variant}").parse().ok()
}

fn image(manifest: Descriptor, config_bytes: u64, layers: &[u64], config: Config) -> Image {
    let Config { os, architecture, variant, os_version, os_features, history } = config;
    let os_version = os_version.filter(|version| !version.is_empty());
    let made: Vec<_> = history.into_iter().filter(|entry| !entry.empty_layer).map(|entry| entry.created_by).collect();
    // A base without history has layers that nothing tells of: they are the lowest.
    let untold = layers.len().saturating_sub(made.len());
    let mut made = std::iter::repeat_n(None, untold).chain(made);
    Image {
        manifest,
        platform: parsed(&os, os_version.as_deref(), &architecture, variant.as_deref()),
        os_features,
        config_bytes,
        layers: layers
            .iter()
            .map(|bytes| {
                let made = made.next().flatten();
                Layer { bytes: *bytes, created_by: made.map(|text| text.chars().take(LONGEST_CREATED_BY).collect()) }
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256_digest;

    #[test]
    fn layers_of_a_base_without_history_are_told_of_by_nothing() {
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "history": [
            {"created_by": "COPY a /a"}, {"created_by": "ENV A=1", "empty_layer": true}, {"created_by": "RUN b"},
        ]});
        let manifest = Descriptor::new(oci_spec::image::MediaType::ImageManifest, 0, sha256_digest(b""));
        let image = image(manifest, 1, &[7, 8, 9], serde_json::from_value(config).unwrap());
        let told: Vec<_> = image.layers.iter().map(|layer| (layer.bytes, layer.created_by.as_deref())).collect();
        assert_eq!(told, [(7, None), (8, Some("COPY a /a")), (9, Some("RUN b"))]);
    }

    #[test]
    fn an_entry_by_platform_and_version() {
        let attempt =
            Attempt { registry: "registry.example".into(), action: "read".into(), writes_tag: false, has_login: false };
        let platforms = [
            serde_json::json!({"os": "linux", "architecture": "amd64", "os.version": ""}),
            serde_json::json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.2227"}),
            serde_json::json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.26100.1"}),
            serde_json::json!({"os": "unknown", "architecture": "unknown"}),
        ];
        let entries: Vec<Link> = (0u8..)
            .zip(&platforms)
            .map(|(number, platform)| {
                let digest = sha256_digest(&[number]);
                serde_json::from_value(
                    serde_json::json!({"digest": digest.to_string(), "size": 1, "platform": platform}),
                )
                .unwrap()
            })
            .collect();
        for (wanted, expected) in [
            ("linux/amd64", Some(0)),
            ("windows/amd64", Some(1)),
            ("windows(10.0.20348)/amd64", Some(1)),
            ("windows(10.0.26100)/amd64", Some(2)),
            ("windows(10.0.2)/amd64", None),
            ("linux(6)/amd64", None),
            ("linux/arm64", None),
        ] {
            let found = choose(&attempt, &entries, &wanted.parse().unwrap()).ok().cloned();
            assert_eq!(found, expected.map(|number| sha256_digest(&[number])), "{wanted}");
        }
    }
}
