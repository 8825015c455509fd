//! What the image looks like in its registry.

use kiln_e2e::tenant::image_of;
use serde_json::Value;

use super::Example;

/// The index and the manifest of linux/amd64, as they are.
async fn manifests(example: &Example<'_>, name: &str) -> (Value, Value) {
    let image = image_of(&example.tenant.built(name).await);
    let index: Value = example.registry.json(&image.repository, &format!("manifests/{}", image.digest)).await;
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = example.registry.json(&image.repository, &format!("manifests/{digest}")).await;
    (index, manifest)
}

fn layers(manifest: &Value) -> Vec<&str> {
    manifest["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect()
}

pub async fn image_form(example: &mut Example<'_>) {
    let repository = example.git("app");
    repository.write(&[("Dockerfile", "FROM busybox:1.36\nRUN seq 10000 > /numbers\n")]);
    example.apply().await;

    let (index, manifest) = manifests(example, "image-zstd").await;
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(layers(&manifest), ["application/vnd.oci.image.layer.v1.tar+zstd"; 2]);

    let (_, manifest) = manifests(example, "image-estargz").await;
    assert_eq!(layers(&manifest), ["application/vnd.oci.image.layer.v1.tar+gzip"; 2]);
    for layer in manifest["layers"].as_array().unwrap() {
        assert!(layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"].is_string(), "{layer}");
    }

    let (index, manifest) = manifests(example, "image-docker").await;
    assert_eq!(index["mediaType"], "application/vnd.docker.distribution.manifest.list.v2+json");
    assert_eq!(index["manifests"][0]["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    assert_eq!(layers(&manifest), ["application/vnd.docker.image.rootfs.diff.tar.gzip"; 2]);
}

pub async fn reproducible(example: &mut Example<'_>) {
    let repository = example.git("app");
    repository.write(&[
        ("Dockerfile", "FROM busybox:1.36\nRUN date > /etc/motd && rm /etc/motd && seq 9 > /numbers\nCOPY a /a\n"),
        ("a", "a"),
    ]);
    example.apply().await;
    let first = example.tenant.built("reproducible").await;
    // A fresh builder, and no cache.
    example.tenant.delete_builders().await;
    let second = example.edited(&first, |build| build.spec.no_cache = true).await;
    assert_eq!(image_of(&first).digest, image_of(&second).digest, "the same commit gives the same digest");
}
