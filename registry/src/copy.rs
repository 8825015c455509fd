//! Copying an image to another repository without building it again: blobs are mounted where both are of one
//! registry, else streamed from one to the other.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use http::Method;
use oci_spec::image::{Descriptor, Digest};

use super::auth::Scope;
use super::client::{Client, Upload};
use super::error::{Error, ErrorKind};
use super::manifest::{Link, Links};
use super::reference::{Identifier, Repository};
use super::request::Request;
use super::transfer;
use super::upload::{BLOB_TIMEOUT, BlobStream, nowhere};
use crate::http_client::TransportFailure;

/// An index of indexes of indexes is deeper than anybody's.
const DEPTH: usize = 4;
const BLOBS_AT_ONCE: usize = 4;
/// How long the source may send nothing.
pub(super) const STALL: Duration = Duration::from_secs(30);

/// Both ends of a copy.
#[derive(Clone, Copy)]
struct Ends<'a> {
    source: &'a Client,
    from: &'a Repository,
    target: &'a Client,
    to: &'a Repository,
}

/// Copies a manifest, or an index with everything below it, and returns its descriptor. What is there already is
/// not sent again. Nothing is tagged.
pub async fn copy_image(
    source: &Client,
    from: &Repository,
    target: &Client,
    to: &Repository,
    digest: &Digest,
) -> Result<Descriptor, Error> {
    copy_manifest(Ends { source, from, target, to }, digest.clone(), DEPTH).await
}

fn copy_manifest(ends: Ends<'_>, digest: Digest, depth: usize) -> BoxFuture<'_, Result<Descriptor, Error>> {
    Box::pin(async move {
        let Ends { source, from, target, to } = ends;
        let attempt = source.attempt(from, &format!("copy {digest} of"));
        let identifier = Identifier::from(digest);
        // Registries accept a manifest only once all it refers to is there, so one that is there is complete.
        if let Some(there) = target.head_manifest(to, &identifier).await? {
            return Ok(there);
        }
        let mut manifest = source.get_manifest(from, &identifier).await?;
        let links =
            Links::read(&manifest.bytes).ok_or_else(|| attempt.protocol("it is not an OCI manifest or index"))?;
        if !links.manifests.is_empty() {
            let depth = depth.checked_sub(1).ok_or_else(|| attempt.protocol("its indexes are nested too deep"))?;
            // Several of them, one in another, are not in memory while their images are copied.
            manifest.bytes = Bytes::new();
            for child in links.manifests {
                copy_manifest(ends, child.digest, depth).await?;
            }
            manifest = source.get_manifest(from, &identifier).await?;
        }
        // Layers with URLs are fetched from there by whoever pulls.
        let layers = links.layers.into_iter().filter(|layer| !layer.is_elsewhere);
        let blobs: Vec<Descriptor> = links.config.into_iter().chain(layers).map(Link::blob).collect();
        futures::stream::iter(blobs.into_iter().map(|blob| copy_blob(ends, blob)))
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let media_type = manifest.descriptor.media_type().to_string();
        target.put_manifest(to, &identifier, &media_type, manifest.bytes).await?;
        Ok(manifest.descriptor)
    })
}

async fn copy_blob(ends: Ends<'_>, blob: Descriptor) -> Result<(), Error> {
    let Ends { source, from, target, to } = ends;
    let digest = blob.digest();
    if target.head_blob(to, digest).await?.is_some() {
        return Ok(());
    }
    let attempt = target.attempt(to, &format!("copy the blob {digest} to"));
    if from.registry == to.registry {
        match target.begin_upload(&attempt, to, Some((from, digest))).await {
            Ok(Upload::Mounted) => return Ok(()),
            // It would be too old once there is room for the transfer.
            Ok(Upload::Session(url)) => target.cancel_upload(&attempt, to, url).await,
            Ok(Upload::Nowhere(_)) => return Err(nowhere(&attempt)),
            // The login for the one repository need not be good for the other.
            Err(error) if matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Denied) => {}
            Err(error) => return Err(error),
        }
    }
    let _transfer = transfer::begin().await;
    let upload = match target.begin_upload(&attempt, to, None).await? {
        Upload::Mounted => return Ok(()),
        Upload::Session(url) => url,
        Upload::Nowhere(_) => return Err(nowhere(&attempt)),
    };
    let open = || -> BoxFuture<'_, Result<BlobStream, Error>> { Box::pin(fetch_blob(source, from, digest)) };
    target.upload(&attempt, to, upload, &blob, &open).await
}

async fn fetch_blob(source: &Client, from: &Repository, digest: &Digest) -> Result<BlobStream, Error> {
    let attempt = source.attempt(from, &format!("fetch the blob {digest} of"));
    let url = source.url(&attempt, from, &format!("blobs/{digest}"))?;
    let request = Request { timeout: Some(BLOB_TIMEOUT), ..Request::new(Method::GET, url) };
    let scopes = [Scope::pull(from)];
    let answer = tokio::time::timeout(STALL, source.send(&attempt, &scopes, request)).await;
    let response = answer.map_err(|_| attempt.transport(&TransportFailure::Timeout))??;
    if !response.status().is_success() {
        return Err(source.refused(&attempt, response).await);
    }
    let chunks = tokio_stream::StreamExt::timeout(response.bytes_stream(), STALL).map(|chunk| match chunk {
        Ok(chunk) => chunk.map_err(std::io::Error::other),
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the source registry stopped sending")),
    });
    Ok(chunks.boxed())
}
