//! Images and artifacts that others have made: written into a registry without a builder.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::registry::Registry;
use crate::web::tar_gz;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Registry {
    /// Puts an image of one layer with these files under a tag; its descriptor. The platform may have a version:
    /// `windows(10.0.20348.2227)/amd64`.
    pub async fn push_image(&self, repository: &str, tag: &str, platform: &str, files: &[(&str, &str)]) -> Value {
        let (os, architecture) = platform.split_once('/').expect("a platform is os/architecture");
        let (os, version) = os.trim_end_matches(')').split_once('(').unwrap_or((os, ""));
        let mut platform = json!({"os": os, "architecture": architecture});
        if !version.is_empty() {
            platform["os.version"] = json!(version);
        }
        let mut config = platform.clone();
        let layer = tar_gz(files);
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(layer.as_slice()), &mut tar).expect("it is gzip");
        config["rootfs"] = json!({"type": "layers", "diff_ids": [digest(&tar)]});
        config["config"] = json!({});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.push_part(repository, CONFIG, config.to_string().into_bytes()).await,
            "layers": [self.push_part(repository, LAYER, layer).await],
        })
        .to_string();
        self.push_manifest(self.path(repository), tag, MANIFEST, manifest.clone()).await;
        let mut descriptor = descriptor(MANIFEST, manifest.as_bytes());
        descriptor["platform"] = platform;
        descriptor
    }

    /// Puts an index of these images under a tag.
    pub async fn push_index(&self, repository: &str, tag: &str, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string();
        self.push_manifest(self.path(repository), tag, INDEX, index).await;
    }

    /// Puts an artifact with a tarball of these files under a tag, as `flux push artifact` does.
    pub async fn push_artifact(&self, repository: &str, tag: &str, files: &[(&str, &str)]) {
        const FLUX: &str = "application/vnd.cncf.flux.config.v1+json";
        const CONTENT: &str = "application/vnd.cncf.flux.content.v1.tar+gzip";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.push_part(repository, FLUX, b"{}".to_vec()).await,
            "layers": [self.push_part(repository, CONTENT, tar_gz(files)).await],
        });
        self.push_manifest(self.path(repository), tag, MANIFEST, manifest.to_string()).await;
    }

    async fn push_part(&self, repository: &str, media_type: &str, bytes: Vec<u8>) -> Value {
        let descriptor = descriptor(media_type, &bytes);
        let digest = descriptor["digest"].as_str().expect("it has a digest").to_owned();
        self.push_blob(self.path(repository), &digest, bytes).await;
        descriptor
    }

    fn path<'a>(&self, repository: &'a str) -> &'a str {
        repository.strip_prefix(&format!("{}/", self.host)).unwrap_or(repository)
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}
