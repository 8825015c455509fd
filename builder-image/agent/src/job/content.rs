//! How large an image is and what its layers are, from its manifest and configuration.
//!
//! A registry that does not answer in time costs the figures and nothing else.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use kiln_agent_proto::{Job as Spec, Layer, Result as JobResult};
use kiln_registry::{Client, Descriptor, Digest, Identifier, Repository, text::plain_text};
use serde::Deserialize;

use super::{
    mask::{plain, shorten},
    registries::Registries,
};

/// How much of its operating system's version and of each feature an image tells, in characters, and of how many features.
const LONGEST_WORD: usize = 128;
const MOST_FEATURES: usize = 16;
/// How long the registry may take for everything.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest configuration that is read.
const LARGEST_CONFIG: usize = 4 << 20;
/// How many layers are asked for at once.
const AT_ONCE: usize = 8;
/// What 4 GiB of programs are compressed to at least, in bytes.
const LEAST_OF_4_GIB: u64 = 512 << 20;
/// A layer that is larger, in bytes, is none.
const LARGEST_LAYER: u64 = 1 << 40;
/// The longest text of a layer, in characters.
const LONGEST_CREATED_BY: usize = 128;
/// How many images and layers are remembered.
const REMEMBERED: usize = 4096;
/// Where eStargz and BuildKit write how long a layer is unpacked.
const UNPACKED: [&str; 2] = ["io.containers.estargz.uncompressed-size", "containerd.io/uncompressed-size"];

/// What an image holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Its configuration.
    pub config: Config,
    /// Its layers from the base up, and the instruction that made each.
    pub layers: Vec<(Descriptor, String)>,
    /// Bytes of layers and configuration, as a pull transfers them.
    pub compressed: u64,
    /// Bytes of all layers unpacked, where the compression tells.
    pub unpacked: Option<u64>,
}

/// The parts of an image's configuration that matter here:
/// <https://github.com/opencontainers/image-spec/blob/main/config.md>.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// Such as `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `v7`.
    #[serde(default)]
    pub variant: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Of Windows, such as `10.0.20348.1`.
    #[serde(rename = "os.version", default)]
    pub os_version: String,
    /// Of Windows, such as `win32k`.
    #[serde(rename = "os.features", default)]
    pub os_features: Option<Vec<String>>,
    /// How it is run.
    #[serde(default)]
    pub config: Option<Execution>,
    #[serde(default)]
    history: Option<Vec<History>>,
}

/// How an image is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    /// ENTRYPOINT.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// CMD.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// ENV, as `NAME=VALUE`.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// WORKDIR.
    #[serde(default)]
    pub working_dir: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct History {
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
}

/// The parts of a manifest that matter here.
#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Content {
    /// Reads manifest and configuration. None: they are none.
    #[must_use]
    pub fn of(manifest: &[u8], config: &[u8]) -> Option<Self> {
        let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
        let config: Config = serde_json::from_slice(config).ok()?;
        let history: Vec<_> = config.history.iter().flatten().filter(|entry| !entry.empty_layer).collect();
        // A base without history has layers that nothing tells of: they are the lowest.
        let untold = manifest.layers.len().saturating_sub(history.len());
        let told = history.iter().map(|entry| instruction(&entry.created_by));
        let mut created_by = std::iter::repeat_n(String::new(), untold).chain(told);
        let compressed =
            manifest.layers.iter().fold(manifest.config.size(), |sum, layer| sum.saturating_add(layer.size()));
        let layers: Vec<_> =
            manifest.layers.into_iter().map(|layer| (layer, created_by.next().unwrap_or_default())).collect();
        Some(Self { config, layers, compressed, unpacked: None })
    }

    /// Writes it into a job's result.
    pub fn put_into(self, result: &mut JobResult) {
        result.compressed_bytes = self.compressed;
        result.unpacked_bytes = self.unpacked.unwrap_or(0);
        // A base image's author wrote them.
        result.os_version = plain_text(&self.config.os_version, LONGEST_WORD);
        let features = self.config.os_features.iter().flatten().take(MOST_FEATURES);
        result.os_features = features.map(|feature| plain_text(feature, LONGEST_WORD)).collect();
        result.layers =
            self.layers.into_iter().map(|(layer, created_by)| Layer { bytes: layer.size(), created_by }).collect();
    }
}

/// A history entry as its Dockerfile has it: without the shell's name and BuildKit's comment, cut.
fn instruction(created_by: &str) -> String {
    let text = plain(created_by);
    let text = text.trim().trim_end_matches("# buildkit").trim_end();
    let text = text.strip_prefix("/bin/sh -c #(nop)").unwrap_or(text).trim_start();
    // Behind `|2 A=1 B=2` stand the build arguments' values.
    let is_run = text.starts_with("/bin/sh -c ") || text.starts_with("RUN /bin/sh -c ") || text.starts_with("RUN |");
    let text = match text.split_once("/bin/sh -c ") {
        Some((_, command)) if is_run => format!("RUN {command}"),
        _ => text.to_owned(),
    };
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Characters are counted where it is shown; bytes are never fewer.
    shorten(words, LONGEST_CREATED_BY)
}

/// How long a layer is unpacked, as far as its description and its last four bytes tell. None: they do not.
///
/// gzip ends with the length modulo 2³² (RFC 1952 §2.3.1); what is shorter than its compressed form has gone round.
#[must_use]
pub fn unpacked(layer: &Descriptor, end: Option<[u8; 4]>) -> Option<u64> {
    let annotation = |key: &&str| layer.annotations().as_ref()?.get(*key)?.parse().ok();
    if let Some(told) = UNPACKED.iter().find_map(annotation) {
        return Some(told);
    }
    match compression(layer) {
        Compression::None => Some(layer.size()),
        Compression::Gzip => {
            let mut length = u64::from(u32::from_le_bytes(end?));
            // A gzip file is at most a little longer than what it holds.
            let is_too_short = |length: u64| length.saturating_add(length / 100 + 1024) < layer.size();
            // Several gzip files in a row, of which only the last one's length stands at the end.
            if is_too_short(length) && layer.size() < LEAST_OF_4_GIB {
                return None;
            }
            // No layer is larger: whoever says so has the loop go round for ever.
            if layer.size() > LARGEST_LAYER {
                return None;
            }
            while is_too_short(length) {
                length += 1 << 32;
            }
            Some(length)
        }
        Compression::Other => None,
    }
}

#[derive(PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Other,
}

fn compression(layer: &Descriptor) -> Compression {
    let media_type = layer.media_type().to_string();
    if media_type.ends_with("gzip") {
        Compression::Gzip
    } else if media_type.strip_suffix(".tar").is_some() {
        Compression::None
    } else {
        Compression::Other
    }
}

/// Whether the last bytes of a layer say how long it is.
#[must_use]
pub fn has_length_at_its_end(layer: &Descriptor) -> bool {
    compression(layer) == Compression::Gzip && unpacked(layer, None).is_none()
}

/// What images and layers hold, by digest.
#[derive(Debug, Default)]
pub struct Contents {
    images: Mutex<HashMap<String, Arc<Content>>>,
    layers: Mutex<HashMap<Digest, u64>>,
}

/// What the image `digest` in the job's repository holds; `config` is its configuration's digest, where it is known.
pub async fn read(registries: &Registries, spec: &Spec, digest: &str, config: Option<&str>) -> Option<Content> {
    if spec.repository.is_empty() {
        return None;
    }
    if let Some(content) = lock(&registries.contents.images).get(digest) {
        return Some(Content::clone(content));
    }
    match tokio::time::timeout(PATIENCE, ask(registries, spec, digest, config)).await {
        Ok(Ok(content)) => content,
        Ok(Err(error)) => {
            tracing::warn!(error = crate::chain(error.as_ref()), "the image's size cannot be told");
            None
        }
        Err(_) => {
            tracing::warn!("the registry takes long to tell the image's size");
            None
        }
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn ask(
    registries: &Registries,
    spec: &Spec,
    digest: &str,
    config: Option<&str>,
) -> Result<Option<Content>, AnyError> {
    let repository: Repository = spec.repository.parse()?;
    let client = registries.client(spec, &repository)?;
    let identifier = Identifier::from(digest.parse::<Digest>()?);
    let config = async {
        let Some(config) = config else { return Ok(None) };
        client.get_blob(&repository, &config.parse()?, LARGEST_CONFIG).await.map(Some).map_err(AnyError::from)
    };
    let manifest = async { client.get_manifest(&repository, &identifier).await.map_err(AnyError::from) };
    let (manifest, config) = tokio::try_join!(manifest, config)?;
    let config = if let Some(config) = config {
        config
    } else {
        let named: Manifest = serde_json::from_slice(&manifest.bytes)?;
        client.get_blob(&repository, named.config.digest(), LARGEST_CONFIG).await?
    };
    let Some(mut content) = Content::of(&manifest.bytes, &config) else { return Ok(None) };
    let asking: Vec<_> =
        content.layers.iter().map(|(layer, _)| length(&registries.contents, &client, &repository, layer)).collect();
    let lengths: Vec<Option<u64>> = futures::stream::iter(asking).buffered(AT_ONCE).collect().await;
    content.unpacked = lengths.into_iter().try_fold(0, |sum: u64, length| Some(sum.saturating_add(length?)));
    remember(&registries.contents.images, digest.to_owned(), Arc::new(content.clone()));
    Ok(Some(content))
}

async fn length(contents: &Contents, client: &Client, repository: &Repository, layer: &Descriptor) -> Option<u64> {
    if !has_length_at_its_end(layer) {
        return unpacked(layer, None);
    }
    let known = lock(&contents.layers).get(layer.digest()).copied();
    if known.is_some() {
        return known;
    }
    let end = client.get_blob_end(repository, layer.digest(), layer.size(), 4).await;
    let end = end.inspect_err(|error| tracing::debug!(%error, "the layer's length cannot be told")).ok()??;
    let length = unpacked(layer, end.as_ref().try_into().ok())?;
    remember(&contents.layers, layer.digest().clone(), length);
    Some(length)
}

fn remember<K: Eq + Hash, V>(map: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut map = lock(map);
    if map.len() >= REMEMBERED {
        map.clear();
    }
    map.insert(key, value);
}

/// A panic elsewhere leaves these data whole: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000001","size":100},"layers":[
        {"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000002","size":1000},
        {"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000003","size":20}]}"#;

    #[test]
    fn layers_are_told_with_what_made_them() {
        let config = r#"{"os":"windows","os.version":"10.0.20348.1","os.features":["win32k"],"architecture":"amd64","config":{"Cmd":["sh"]},"history":[
            {"created_by":"/bin/sh -c #(nop) ADD file:1 in / "},{"created_by":"ENV A=1","empty_layer":true},{"created_by":"RUN /bin/sh -c make \u0007  all # buildkit"}]}"#;
        let content = Content::of(MANIFEST.as_bytes(), config.as_bytes()).unwrap();
        let mut result = JobResult::default();
        content.put_into(&mut result);
        insta::assert_debug_snapshot!(result);
    }

    #[test]
    fn history_may_be_missing() {
        let content = Content::of(MANIFEST.as_bytes(), b"{}").unwrap();
        assert_eq!((content.layers.len(), content.layers[0].1.as_str(), content.compressed), (2, "", 1120));
        assert_eq!(Content::of(b"{}", b"{}"), None);
        let of_last = br#"{"history":[{"created_by":"COPY a /a"}]}"#;
        let content = Content::of(MANIFEST.as_bytes(), of_last).unwrap();
        let told: Vec<_> = content.layers.iter().map(|(_, created_by)| created_by.as_str()).collect();
        assert_eq!(told, ["", "COPY a /a"], "the base's layer has none");
    }

    #[test]
    fn how_long_a_layer_is() {
        let layer = |kind: &str, size: u64, annotation: Option<&str>| -> Descriptor {
            let digest = format!("sha256:{}", "0".repeat(64));
            let mut json = serde_json::json!({"mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"), "digest": digest, "size": size});
            if let Some(annotation) = annotation {
                json["annotations"] = serde_json::json!({UNPACKED[0]: annotation});
            }
            serde_json::from_value(json).unwrap()
        };
        let four = |length: u32| Some(length.to_le_bytes());
        for (layer, end, expected) in [
            (layer("tar+gzip", 1000, None), four(5000), Some(5000)),
            (layer("tar+gzip", 1000, None), None, None),
            // More than 4 GiB.
            (layer("tar+gzip", 3_000_000_000, None), four(5000), Some(5000 + (1 << 32))),
            // Several gzip files in a row.
            (layer("tar+gzip", 50_000, None), four(5000), None),
            // Incompressible.
            (layer("tar+gzip", 1024, None), four(1000), Some(1000)),
            (layer("tar+gzip", 1000, Some("7000")), None, Some(7000)),
            (layer("tar", 1000, None), None, Some(1000)),
            (layer("tar+zstd", 1000, None), four(1), None),
            (layer("tar+gzip", u64::MAX, None), four(1), None),
            (layer("tar+gzip", i64::MAX.unsigned_abs(), None), four(1), None),
        ] {
            assert_eq!(unpacked(&layer, end), expected, "{layer:?} {end:?}");
        }
    }

    #[test]
    fn a_layers_instruction_is_short() {
        assert!(instruction(&"ä".repeat(500)).len() <= LONGEST_CREATED_BY);
        assert_eq!(instruction("/bin/sh -c apt-get update"), "RUN apt-get update");
        assert_eq!(instruction("RUN |1 TOKEN=x /bin/sh -c make # buildkit"), "RUN make");
        assert_eq!(instruction("/bin/sh -c #(nop)  CMD [\"sh\"]"), "CMD [\"sh\"]");
    }
}
