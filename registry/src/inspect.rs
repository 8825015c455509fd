//! What an image is: its platform, its size, and which instruction made which layer
//! (<https://github.com/opencontainers/image-spec/blob/main/config.md>).

use kiln_crds::Platform;
use oci_spec::image::Descriptor;
use serde::Deserialize;

use super::client::Client;
use super::error::{Attempt, Error, ErrorKind};
use super::reference::{Identifier, Repository};

/// The largest configuration that is read.
const CONFIG_LIMIT: usize = 4 * 1024 * 1024;
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

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    os: String,
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
    history: Option<Vec<History>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct History {
    created_by: Option<String>,
    empty_layer: bool,
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
        let found = client.get_manifest(repository, &identifier).await?;
        let manifest: Manifest =
            serde_json::from_slice(&found.bytes).map_err(|_| attempt.protocol("it is not an OCI manifest or index"))?;
        if manifest.manifests.is_empty() {
            let config = match &manifest.config {
                Some(config) => client.get_blob(repository, config.digest(), CONFIG_LIMIT).await?,
                None => return Err(attempt.protocol("it is not an image: it has no configuration")),
            };
            // That of an artifact may be anything.
            let config_of: Config = serde_json::from_slice(&config).unwrap_or_default();
            return Ok(image(found.descriptor, config.len() as u64, &manifest.layers, config_of));
        }
        identifier = choose(&attempt, &manifest.manifests, platform)?.digest().clone().into();
    }
    Err(attempt.protocol("its indexes are nested too deep"))
}

/// The entry of an index for `platform`; where that has no version of its operating system, the first of any.
fn choose<'a>(attempt: &Attempt, entries: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, Error> {
    let of = |entry: &Descriptor| {
        let of = entry.platform().as_ref()?;
        parsed(
            &of.os().to_string(),
            of.os_version().as_deref(),
            &of.architecture().to_string(),
            of.variant().as_deref(),
        )
    };
    let wanted = |entry: &&Descriptor| {
        of(entry).is_some_and(|of| {
            let os_version = platform.os_version.as_ref().and(of.os_version.clone());
            Platform { os_version, ..of } == *platform
        })
    };
    entries.iter().find(wanted).ok_or_else(|| {
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

fn image(manifest: Descriptor, config_bytes: u64, layers: &[Descriptor], config: Config) -> Image {
    let Config { os, architecture, variant, os_version, os_features, history } = config;
    let os_version = os_version.filter(|version| !version.is_empty());
    let mut made = history.unwrap_or_default().into_iter().filter(|entry| !entry.empty_layer);
    Image {
        manifest,
        platform: parsed(&os, os_version.as_deref(), &architecture, variant.as_deref()),
        os_features: os_features.unwrap_or_default(),
        config_bytes,
        layers: layers
            .iter()
            .map(|layer| Layer { bytes: layer.size(), created_by: made.next().and_then(|entry| entry.created_by) })
            .collect(),
    }
}
