//! Reads images back from the registry, never through Kiln: what is there, not what a status says.

use std::io::Read as _;

use flate2::read::GzDecoder;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use reqwest::{Certificate, StatusCode};

use crate::Cluster;
use crate::registries::Login;

/// Manifests and indexes of both kinds.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A client of the test registry, of its one user.
pub struct Registry {
    http: reqwest::Client,
    /// Its `host:port`.
    pub host: String,
    user: String,
    password: String,
}

/// One platform's image, unpacked.
pub struct Image {
    /// `os/architecture[/variant]`, from the index.
    pub platform: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Everything in its layers, the lowest first, before whiteouts are applied.
    entries: Vec<Entry>,
}

/// A file, directory or link of an image.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path without a leading slash.
    pub path: String,
    /// Which layer holds it, from 0.
    pub layer: usize,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Whether it is a file.
    pub is_file: bool,
    /// A file's content; empty for all else.
    pub bytes: Vec<u8>,
}

impl Registry {
    /// A client of the cluster's registry.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self::of(cluster, Login::first())
    }

    /// A client of another one of its registries.
    #[must_use]
    pub fn of(cluster: &Cluster, login: Login) -> Self {
        let ca = Certificate::from_pem_bundle(cluster.registry_ca.as_bytes())
            .expect("KILN_REGISTRY_CA holds PEM certificates");
        Self {
            http: reqwest::Client::builder().tls_certs_only(ca).build().expect("a client can be made"),
            host: login.host,
            user: login.user,
            password: login.password,
        }
    }

    /// The digest that a tag points to; `None` where there is no such tag.
    pub async fn digest(&self, repository: &str, tag: &str) -> Option<String> {
        let response = self.request(reqwest::Method::HEAD, repository, &format!("manifests/{tag}")).await;
        if response.status() == StatusCode::NOT_FOUND {
            return None;
        }
        let response = response.error_for_status().expect("the registry answers for a tag");
        Some(response.headers()["docker-content-digest"].to_str().expect("a digest is ASCII").to_owned())
    }

    /// The OCI index at a tag or digest.
    pub async fn index(&self, repository: &str, reference: &str) -> ImageIndex {
        let index: ImageIndex = self.json(repository, &format!("manifests/{reference}")).await;
        assert_eq!(
            index.media_type().as_ref(),
            Some(&MediaType::ImageIndex),
            "{repository}@{reference} is an OCI index"
        );
        index
    }

    /// The images of the index at a tag or digest, in its order.
    pub async fn images(&self, repository: &str, reference: &str) -> Vec<Image> {
        let mut images = Vec::new();
        for descriptor in self.index(repository, reference).await.manifests() {
            images.push(self.image(repository, descriptor).await);
        }
        images
    }

    /// The image for one platform of the index at a tag or digest.
    pub async fn image_for(&self, repository: &str, reference: &str, platform: &str) -> Image {
        let index = self.index(repository, reference).await;
        let descriptor = index.manifests().iter().find(|descriptor| platform_of(descriptor) == platform);
        self.image(
            repository,
            descriptor.unwrap_or_else(|| panic!("{repository}@{reference} has an image for {platform}: {index:?}")),
        )
        .await
    }

    async fn image(&self, repository: &str, descriptor: &Descriptor) -> Image {
        let digest = descriptor.digest().to_string();
        let manifest: ImageManifest = self.json(repository, &format!("manifests/{digest}")).await;
        let config = self.json(repository, &format!("blobs/{}", manifest.config().digest())).await;
        let mut entries = Vec::new();
        for (number, layer) in manifest.layers().iter().enumerate() {
            let blob = self.bytes(repository, &format!("blobs/{}", layer.digest())).await;
            entries.extend(unpack(number, layer.media_type(), &blob));
        }
        Image { platform: platform_of(descriptor), digest, manifest, config, entries }
    }

    /// A manifest (`manifests/…`) or blob (`blobs/…`) of a repository, read as JSON.
    pub async fn json<T: serde::de::DeserializeOwned>(&self, repository: &str, path: &str) -> T {
        let bytes = self.bytes(repository, path).await;
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| panic!("{repository} {path}: {error}: {}", String::from_utf8_lossy(&bytes)))
    }

    /// A manifest (`manifests/…`) or blob (`blobs/…`) of a repository.
    pub async fn bytes(&self, repository: &str, path: &str) -> Vec<u8> {
        let mut response = self.request(reqwest::Method::GET, repository, path).await;
        // What Debian's registry answers for a manifest that somebody is just pushing once more.
        for _ in 0..20 {
            if response.status() != reqwest::StatusCode::INTERNAL_SERVER_ERROR {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            response = self.request(reqwest::Method::GET, repository, path).await;
        }
        let response = response.error_for_status().unwrap_or_else(|error| panic!("{repository} {path}: {error}"));
        response.bytes().await.expect("the registry's answer can be read").to_vec()
    }

    /// Puts a blob into a repository, unless it is there
    /// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-blobs>).
    pub async fn push_blob(&self, repository: &str, digest: &str, bytes: Vec<u8>) {
        let there = self.request(reqwest::Method::HEAD, repository, &format!("blobs/{digest}")).await;
        if there.status().is_success() {
            return;
        }
        let upload = self.request(reqwest::Method::POST, repository, "blobs/uploads/").await;
        let upload = upload.error_for_status().unwrap_or_else(|error| panic!("{repository}: {error}"));
        let place = upload.headers()["location"].to_str().expect("a location is ASCII");
        let mut place = upload.url().join(place).expect("a location is a URL");
        place.query_pairs_mut().append_pair("digest", digest);
        let request = self.http.put(place).body(bytes);
        let answer = self.send(request).await.error_for_status();
        answer.unwrap_or_else(|error| panic!("{repository} {digest}: {error:?}"));
    }

    /// Puts a manifest into a repository.
    pub async fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: String) {
        let url = format!("https://{}/v2/{repository}/manifests/{tag}", self.host);
        let request = self.http.put(url).header("content-type", media_type).body(manifest);
        let answer = self.send(request).await.error_for_status();
        answer.unwrap_or_else(|error| panic!("{repository}:{tag}: {error:?}"));
    }

    /// Takes a manifest out of a repository.
    pub async fn delete_manifest(&self, repository: &str, digest: &str) {
        let answer = self.request(reqwest::Method::DELETE, repository, &format!("manifests/{digest}")).await;
        answer.error_for_status().unwrap_or_else(|error| panic!("{repository}@{digest}: {error:?}"));
    }

    async fn request(&self, method: reqwest::Method, repository: &str, path: &str) -> reqwest::Response {
        let repository = repository.strip_prefix(&format!("{}/", self.host)).unwrap_or(repository);
        let request =
            self.http.request(method, format!("https://{}/v2/{repository}/{path}", self.host)).header("accept", ACCEPT);
        self.send(request).await
    }

    /// Sends a request with the credential, or with a token where the registry asks for one
    /// (<https://distribution.github.io/distribution/spec/auth/token/>).
    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let answer = |sent: reqwest::Result<reqwest::Response>| {
            sent.unwrap_or_else(|error| panic!("the registry {} does not answer: {error:?}", self.host))
        };
        let again = request.try_clone().expect("the body is in memory");
        let response = answer(request.basic_auth(&self.user, Some(&self.password)).send().await);
        let challenge = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        let Some(challenge) = challenge.and_then(|challenge| challenge.strip_prefix("Bearer ")) else {
            return response;
        };
        let parameters: Vec<_> = challenge
            .split("\",")
            .filter_map(|parameter| parameter.split_once('='))
            .map(|(name, value)| (name, value.trim_matches('"')))
            .collect();
        let (_, realm) = parameters.iter().find(|(name, _)| *name == "realm").expect("a challenge names its realm");
        let realm = reqwest::Url::parse_with_params(realm, &parameters).expect("a realm is a URL");
        let request = self.http.get(realm).basic_auth(&self.user, Some(&self.password));
        let token = answer(request.send().await).error_for_status().expect("the token server gives a token");
        let token: serde_json::Value = token.json().await.expect("a token comes as JSON");
        answer(again.bearer_auth(token["token"].as_str().expect("a token is a string")).send().await)
    }
}

impl Image {
    /// What the image holds at a path, whiteouts applied. Links are not followed.
    #[must_use]
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        let path = path.trim_start_matches('/');
        let (directory, name) = path.rsplit_once('/').map_or(("", path), |(directory, name)| (directory, name));
        let whiteout = if directory.is_empty() { format!(".wh.{name}") } else { format!("{directory}/.wh.{name}") };
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.path == path || entry.path == whiteout)
            .filter(|entry| entry.path == path)
    }

    /// A file's content as text, without white space at its end.
    ///
    /// # Panics
    /// Where there is no such file.
    #[must_use]
    pub fn text(&self, path: &str) -> String {
        let entry = self.entry(path).unwrap_or_else(|| {
            let there: Vec<_> =
                self.entries.iter().map(|entry| entry.path.as_str()).filter(|path| !path.starts_with("bin/")).collect();
            panic!("{path} is not in the image for {}; there are {there:?}", self.platform)
        });
        String::from_utf8_lossy(&entry.bytes).trim_end().to_owned()
    }

    /// Everything below a directory, and itself.
    pub fn below(&self, path: &str) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| {
            entry.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// Everything in the layers above those of the base image (its first layer).
    pub fn built(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.layer > 0)
    }

    /// Digests of the layers, the lowest first.
    #[must_use]
    pub fn layers(&self) -> Vec<String> {
        self.manifest.layers().iter().map(|layer| layer.digest().to_string()).collect()
    }
}

fn platform_of(descriptor: &Descriptor) -> String {
    let platform = descriptor.platform().as_ref().expect("each image of an index has a platform");
    let variant = platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

fn unpack(number: usize, media_type: &MediaType, blob: &[u8]) -> Vec<Entry> {
    let mut tar = Vec::new();
    match media_type {
        MediaType::ImageLayerGzip => {
            GzDecoder::new(blob).read_to_end(&mut tar).map(drop).expect("a layer of type gzip is gzip");
        }
        MediaType::ImageLayer => tar = blob.to_vec(),
        other => panic!("layer {number} is of the type {other}, which these tests do not read"),
    }
    let mut archive = tar::Archive::new(tar.as_slice());
    let entries = archive.entries().expect("a layer is a tar archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("a layer's entry can be read");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("a layer's file can be read");
            let header = entry.header();
            Entry {
                path: String::from_utf8_lossy(&entry.path_bytes())
                    .trim_start_matches("./")
                    .trim_matches('/')
                    .to_owned(),
                layer: number,
                mode: header.mode().expect("an entry has a mode") & 0o7777,
                uid: header.uid().expect("an entry has an owner"),
                gid: header.gid().expect("an entry has a group"),
                is_file: header.entry_type().is_file(),
                bytes,
            }
        })
        .collect()
}
