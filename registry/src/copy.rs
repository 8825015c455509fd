//! Copying an image to another repository without building it again: blobs are mounted where both are of one
//! registry, else streamed from one to the other.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use http::Method;
use oci_spec::image::{Descriptor, Digest};

use super::auth::Scope;
use super::client::{Client, Upload};
use super::error::{Attempt, Error, ErrorKind};
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
    let fetched = Fetched::default();
    let open = || -> BoxFuture<'_, Result<BlobStream, Error>> { Box::pin(fetch_blob(source, from, &blob, &fetched)) };
    let uploaded = target.upload(&attempt, to, upload, &blob, &open).await;
    uploaded.map_err(|error| fetched.failure(&fetching(source, from, digest)).unwrap_or(error))
}

/// What became of a blob on its way from the source. Where that breaks off, the registry that it goes to is not to blame.
#[derive(Clone, Default)]
struct Fetched(Arc<OnceLock<Broken>>);

#[derive(Debug)]
enum Broken {
    /// It stopped, or the connection broke.
    Off(String),
    /// There was less of it than the manifest says.
    Short(u64),
}

impl Fetched {
    fn broke(&self, how: Broken) -> std::io::Error {
        let _ = self.0.set(how);
        std::io::Error::other("the source registry did not send all of it")
    }

    fn failure(&self, attempt: &Attempt) -> Option<Error> {
        Some(match self.0.get()? {
            Broken::Off(why) => attempt.transport(&TransportFailure::Connection(why.clone())),
            Broken::Short(bytes) => attempt.protocol(format!("it has {bytes} bytes, fewer than its manifest says")),
        })
    }
}

fn fetching(source: &Client, from: &Repository, digest: &Digest) -> Attempt {
    source.attempt(from, &format!("fetch the blob {digest} of"))
}

async fn fetch_blob(
    source: &Client,
    from: &Repository,
    blob: &Descriptor,
    fetched: &Fetched,
) -> Result<BlobStream, Error> {
    let digest = blob.digest();
    let attempt = fetching(source, from, digest);
    let url = source.url(&attempt, from, &format!("blobs/{digest}"))?;
    let request = Request { timeout: Some(BLOB_TIMEOUT), ..Request::new(Method::GET, url) };
    let scopes = [Scope::pull(from)];
    let answer = tokio::time::timeout(STALL, source.send(&attempt, &scopes, request)).await;
    let response = answer.map_err(|_| attempt.transport(&TransportFailure::Timeout))??;
    if !response.status().is_success() {
        return Err(source.refused(&attempt, response).await);
    }
    let chunks = tokio_stream::StreamExt::timeout(response.bytes_stream(), STALL);
    let size = blob.size();
    let chunks = futures::stream::unfold(Some((Box::pin(chunks), size, fetched.clone())), move |of| async move {
        let (mut chunks, left, fetched) = of?;
        let chunk = match futures::StreamExt::next(&mut chunks).await {
            Some(Ok(Ok(chunk))) => Ok(chunk),
            Some(Ok(Err(error))) => Err(fetched.broke(Broken::Off(TransportFailure::from_reqwest(&error).to_string()))),
            Some(Err(_)) => Err(fetched.broke(Broken::Off("it stopped sending".to_owned()))),
            None if left > 0 => Err(fetched.broke(Broken::Short(size - left))),
            None => return None,
        };
        let left = left.saturating_sub(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
        let goes_on = chunk.is_ok();
        Some((chunk, goes_on.then_some((chunks, left, fetched))))
    });
    Ok(chunks.boxed())
}
