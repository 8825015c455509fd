//! The first build of a new namespace from a large base image: no builder, no volume, nothing in a cache.

use flate2::Compression;
use flate2::write::GzEncoder;
use kiln_e2e::registry::Registry;
use kiln_e2e::{Build, Cluster, Tenant};
use oci_spec::image::{ImageIndex, ImageManifest};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;

use crate::builds::Builds;
use crate::figures::Figure;
use crate::project::Random;

/// The large image, in the registry.
const REPOSITORY: &str = "bench/base-300mb";
/// Its layers beside busybox's own, and each one's size.
const LAYERS: u64 = 3;
const LAYER_BYTES: u64 = 100_000_000;

/// Builds in a new namespace, `runs` times.
pub async fn measure(runs: usize) -> Vec<Figure> {
    let cluster = Cluster::new().await;
    let base = push(&cluster).await;
    let dockerfile = format!("FROM {base}\nCOPY text /text\nRUN sha256sum /text > /sum\n");
    let mut samples = Vec::new();
    for _ in 0..runs {
        Tenant::fresh("bench-large", async |tenant| {
            let mut builds = Builds::of(tenant).await;
            let build = Build::inline(tenant, "app", &[("Dockerfile", &dockerfile), ("text", "text\n")]).amd64();
            let timed = builds.create(&build).await;
            samples.push((timed.seconds, timed.phases));
        })
        .await;
    }
    vec![
        Figure::timed("a new namespace, base image of 300 MB", "apply → digest", samples)
            .note("builder, volume and cache are new; the base's layers go along into the new repository"),
    ]
}

/// Puts the large image into the registry: busybox, and layers that no compression makes smaller. Its reference.
async fn push(cluster: &Cluster) -> String {
    let registry = Registry::new(cluster);
    let busybox = "docker.io/library/busybox";
    let index: ImageIndex = registry.json(busybox, "manifests/latest").await;
    let amd64 = index
        .manifests()
        .iter()
        .find(|entry| entry.platform().as_ref().is_some_and(|platform| platform.architecture().to_string() == "amd64"));
    let digest = amd64.expect("busybox is there for amd64").digest().to_string();
    let manifest: ImageManifest = registry.json(busybox, &format!("manifests/{digest}")).await;
    let mut config: Value = registry.json(busybox, &format!("blobs/{}", manifest.config().digest())).await;
    let mut layers = Vec::new();
    for layer in manifest.layers() {
        let blob = registry.bytes(busybox, &format!("blobs/{}", layer.digest())).await;
        registry.push_blob(REPOSITORY, layer.digest().as_ref(), blob).await;
        layers.push(serde_json::to_value(layer).expect("a descriptor is JSON"));
    }
    for number in 0..LAYERS {
        let (blob, diff) = layer(number);
        let digest = sha256(&blob);
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": blob.len(),
        }));
        registry.push_blob(REPOSITORY, &digest, blob).await;
        config["rootfs"]["diff_ids"].as_array_mut().expect("a config has its layers").push(json!(diff));
        config["history"].as_array_mut().expect("a config has a history").push(json!({"created_by": "bench"}));
    }
    let config = config.to_string().into_bytes();
    let digest = sha256(&config);
    let descriptor =
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()});
    registry.push_blob(REPOSITORY, &digest, config).await;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": descriptor, "layers": layers});
    registry.push_manifest(REPOSITORY, "latest", media_type, manifest.to_string()).await;
    format!("{}/{REPOSITORY}", cluster.registry)
}

/// A layer with one file of random bytes, compressed, and its digest before that.
fn layer(number: u64) -> (Vec<u8>, String) {
    let mut random = Random::new(number + 7);
    let bytes: Vec<u8> = (0..LAYER_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, format!("data/{number}"), bytes.as_slice())
        .expect("an archive can be made in memory");
    let archive = archive.into_inner().expect("an archive can be made in memory");
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    compressed.write_all(&archive).expect("memory can be written");
    (compressed.finish().expect("memory can be written"), sha256(&archive))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
