//! A small client of OCI registries: references, credentials, the push check, manifests, copies, and publishing an
//! index with its tags (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md>). Beneath it the HTTP
//! client that operator and agent share, with the rules of whom it trusts and which addresses it reaches.

pub mod http_client;

mod auth;
mod blob;
mod challenge;
mod client;
mod clients;
mod copy;
mod credentials;
mod error;
mod index;
mod inspect;
mod login;
mod manifest;
pub mod parsers;
mod publish;
mod reference;
mod request;
pub mod room;
pub mod text;
pub mod transfer;
mod upload;
#[cfg(test)]
mod wire_tests;

pub use client::{Client, Manifest, Scheme};
pub use clients::RegistryClients;
pub use copy::copy_image;
pub use credentials::{Credentials, CredentialsError};
pub use error::{Error, ErrorKind};
pub use index::{INDEX_MEDIA_TYPE, IndexBytes, MANIFEST_LIST_MEDIA_TYPE, PlatformImage, assemble};
pub use inspect::{Image, Layer, inspect};
pub use login::{Login, LoginSecret};
use oci_spec::image::Sha256Digest;
pub use oci_spec::image::{Descriptor, Digest};
pub use publish::{PublishOutcome, Step, TAG_DEADLINE, publish, write_tag};
pub use reference::{DOCKER_HUB, DOCKER_HUB_NAMES, Identifier, Reference, ReferenceError, Repository, Tag};
pub use upload::{BlobStream, OpenBlob};

/// The SHA-256 digest of `bytes`, as registries name content.
#[must_use]
pub fn sha256_digest(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    // 64 hexadecimal digits are always a digest, so the conversion cannot fail.
    let sum = format!("{:x}", sha2::Sha256::digest(bytes));
    sum.parse::<Sha256Digest>().map_or_else(|_| unreachable!("{sum} is a digest"), Into::into)
}
