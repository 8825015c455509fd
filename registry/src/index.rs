//! The index of the platforms' images, as bytes that depend on nothing but its parts: an OCI index
//! (<https://github.com/opencontainers/image-spec/blob/main/image-index.md>), or Docker's manifest list
//! (<https://github.com/distribution/distribution/blob/main/docs/content/spec/manifest-v2-2.md#manifest-list>).

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_crds::Platform;
use oci_spec::image::Digest;
use serde::Serialize;

use super::client::Manifest;
use super::sha256_digest;

/// The media type of an OCI index.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of Docker's manifest list.
pub const MANIFEST_LIST_MEDIA_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// One platform's image, as it stands in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformImage {
    /// What it runs on.
    pub platform: Platform,
    /// What it needs of its operating system, such as `win32k`.
    pub os_features: Vec<String>,
    /// The media type of its manifest.
    pub media_type: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The size of its manifest in bytes.
    pub size: u64,
}

/// An index, ready to be pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexBytes {
    /// The JSON text.
    pub bytes: Bytes,
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl From<Manifest> for IndexBytes {
    /// An index that a registry has, to be pushed as it is.
    fn from(manifest: Manifest) -> Self {
        let Manifest { descriptor, bytes } = manifest;
        Self {
            media_type: descriptor.media_type().to_string(),
            digest: descriptor.digest().clone(),
            size: descriptor.size(),
            bytes,
        }
    }
}

// Fields in alphabetical order: serde writes them as they stand, so the keys are sorted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    manifests: Vec<Entry<'a>>,
    media_type: &'a str,
    schema_version: u8,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    digest: &'a str,
    media_type: &'a str,
    platform: PlatformEntry<'a>,
    size: u64,
}

#[derive(Serialize)]
struct PlatformEntry<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(rename = "os.features", skip_serializing_if = "<[String]>::is_empty")]
    os_features: &'a [String],
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    os_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

/// Writes the index of `parts`, in their order. `media_type` is [`INDEX_MEDIA_TYPE`] or [`MANIFEST_LIST_MEDIA_TYPE`]. The
/// same parts and annotations always give the same bytes.
#[must_use]
pub fn assemble(parts: &[PlatformImage], annotations: &BTreeMap<String, String>, media_type: &str) -> IndexBytes {
    let manifests = parts
        .iter()
        .map(|part| Entry {
            digest: part.digest.as_ref(),
            media_type: &part.media_type,
            platform: PlatformEntry {
                architecture: &part.platform.architecture,
                os: &part.platform.os,
                os_features: &part.os_features,
                os_version: part.platform.os_version.as_deref(),
                variant: part.platform.variant.as_deref(),
            },
            size: part.size,
        })
        .collect();
    let index = Index { annotations, manifests, media_type, schema_version: 2 };
    // Strings, numbers and maps with string keys always serialise; there is no error to pass on.
    let bytes = serde_json::to_vec(&index).unwrap_or_default();
    IndexBytes {
        digest: sha256_digest(&bytes),
        size: bytes.len() as u64,
        bytes: bytes.into(),
        media_type: media_type.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(platform: &str, byte: u8) -> PlatformImage {
        PlatformImage {
            platform: platform.parse().unwrap(),
            os_features: Vec::new(),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: sha256_digest(&[byte]),
            size: 500 + u64::from(byte),
        }
    }

    #[test]
    fn snapshot() {
        let parts = [
            part("linux/amd64", 1),
            part("linux/arm64", 2),
            part("linux/arm/v7", 3),
            part("windows(10.0.20348)/amd64", 4),
        ];
        let annotations = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let index = assemble(&parts, &annotations, INDEX_MEDIA_TYPE);
        insta::assert_snapshot!(std::str::from_utf8(&index.bytes).unwrap().replace("},{", "},\n{"), @r#"
        {"annotations":{"a":"1","b":"2"},"manifests":[{"digest":"sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a","mediaType":"application/vnd.oci.image.manifest.v1+json","platform":{"architecture":"amd64","os":"linux"},"size":501},
        {"digest":"sha256:dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986","mediaType":"application/vnd.oci.image.manifest.v1+json","platform":{"architecture":"arm64","os":"linux"},"size":502},
        {"digest":"sha256:084fed08b978af4d7d196a7446a86b58009e636b611db16211b65a9aadff29c5","mediaType":"application/vnd.oci.image.manifest.v1+json","platform":{"architecture":"arm","os":"linux","variant":"v7"},"size":503},
        {"digest":"sha256:e52d9c508c502347344d8c07ad91cbd6068afc75ff6292f062a09ca381c89e71","mediaType":"application/vnd.oci.image.manifest.v1+json","platform":{"architecture":"amd64","os":"windows","os.version":"10.0.20348"},"size":504}],"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2}
        "#);
        assert_eq!(index.size, index.bytes.len() as u64);
        let read = oci_spec::image::ImageIndex::from_reader(index.bytes.as_ref()).unwrap();
        assert_eq!(read.manifests().len(), 4);
    }

    #[test]
    fn no_annotations_no_key() {
        let index = assemble(&[part("linux/amd64", 1)], &BTreeMap::new(), INDEX_MEDIA_TYPE);
        assert!(!index.bytes.windows(11).any(|w| w == b"annotations"));
    }

    #[test]
    fn a_manifest_list_of_docker_with_features() {
        let mut windows = part("windows(10.0.20348)/amd64", 4);
        windows.media_type = "application/vnd.docker.distribution.manifest.v2+json".into();
        windows.os_features = vec!["win32k".into()];
        let list = assemble(&[windows], &BTreeMap::new(), MANIFEST_LIST_MEDIA_TYPE);
        insta::assert_snapshot!(std::str::from_utf8(&list.bytes).unwrap(), @r#"{"manifests":[{"digest":"sha256:e52d9c508c502347344d8c07ad91cbd6068afc75ff6292f062a09ca381c89e71","mediaType":"application/vnd.docker.distribution.manifest.v2+json","platform":{"architecture":"amd64","os":"windows","os.features":["win32k"],"os.version":"10.0.20348"},"size":504}],"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","schemaVersion":2}"#);
        assert_eq!(list.media_type, MANIFEST_LIST_MEDIA_TYPE);
    }

    fn parts() -> impl Strategy<Value = Vec<PlatformImage>> {
        let features = proptest::collection::vec("[a-z]{1,4}", 0..3);
        let one = ("[a-z]{1,6}(\\([0-9.]{1,5}\\))?/[a-z0-9]{1,6}(/v[0-9])?", any::<u8>(), features)
            .prop_map(|(p, b, os_features)| PlatformImage { os_features, ..part(&p, b) });
        proptest::collection::vec(one, 0..6)
    }

    proptest! {
        #[test]
        fn same_parts_same_bytes(parts in parts(), annotations in proptest::collection::vec((".*", ".*"), 0..6)) {
            let forward: BTreeMap<_, _> = annotations.iter().cloned().collect();
            // Inserted the other way round; of equal keys the one that won above.
            let mut backward = BTreeMap::new();
            for (key, _) in annotations.iter().rev() {
                backward.insert(key.clone(), forward[key].clone());
            }
            let assembled = |annotations| assemble(&parts, annotations, INDEX_MEDIA_TYPE);
            prop_assert_eq!(assembled(&forward), assembled(&backward));
        }

        #[test]
        fn keys_are_sorted_and_order_of_parts_is_kept(parts in parts()) {
            let index = assemble(&parts, &BTreeMap::from([("k".to_owned(), "v".to_owned())]), INDEX_MEDIA_TYPE);
            // serde_json's own map is sorted: writing it again must give the same text.
            let value: serde_json::Value = serde_json::from_slice(&index.bytes).unwrap();
            let digests: Vec<_> = value["manifests"].as_array().unwrap().iter().map(|m| m["digest"].as_str().unwrap().to_owned()).collect();
            prop_assert_eq!(digests, parts.iter().map(|p| p.digest.to_string()).collect::<Vec<_>>());
            prop_assert_eq!(serde_json::to_vec(&value).unwrap(), index.bytes.to_vec());
        }
    }
}
