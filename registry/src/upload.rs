//! Sending blobs: in one request, or in parts where the registry or a proxy before it takes no request so large
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-blobs>).

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use oci_spec::image::Descriptor;
use reqwest::Url;

use super::auth::{Asking, Scope};
use super::client::{Client, Scheme, Upload};
use super::error::{Attempt, Error};
use super::reference::Repository;
use super::request::Request;
use super::transfer;
use crate::http_client::TransportFailure;

/// How long one transfer of a blob may take, all its parts together.
pub(super) const BLOB_TIMEOUT: Duration = Duration::from_hours(1);
/// Bytes of one part, which is held in memory: whatever a registry asks for.
const PART: usize = 4 << 20;
/// Bytes that are handed to the connection at once.
const SLICE: usize = 64 << 10;

/// A blob's bytes, from its beginning.
pub type BlobStream = BoxStream<'static, io::Result<Bytes>>;
/// Gives a blob's bytes, each time that it is called.
pub type OpenBlob<'a> = &'a (dyn Fn() -> BoxFuture<'a, Result<BlobStream, Error>> + Sync);

impl Client {
    /// Pushes a blob whose digest and size `blob` names, unless the registry has it. `open` gives its bytes; it is called
    /// again where they have to be sent in another way. The registry checks the digest.
    pub async fn push_blob(&self, repository: &Repository, blob: &Descriptor, open: OpenBlob<'_>) -> Result<(), Error> {
        if self.head_blob(repository, blob.digest()).await?.is_some() {
            return Ok(());
        }
        let attempt = self.attempt(repository, &format!("push the blob {} to", blob.digest()));
        let _transfer = transfer::begin().await;
        match self.begin_upload(&attempt, repository, None).await? {
            Upload::Session(url) => self.upload(&attempt, repository, url, blob, open).await,
            Upload::Mounted => Ok(()),
            Upload::Nowhere(_) => Err(nowhere(&attempt)),
        }
    }

    /// Sends a blob to an upload session: whole, and where that is refused as too large, in parts to a new session.
    pub(super) async fn upload(
        &self,
        attempt: &Attempt,
        repository: &Repository,
        session: Url,
        blob: &Descriptor,
        open: OpenBlob<'_>,
    ) -> Result<(), Error> {
        let sending = async {
            let body = open().await?;
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(blob.size()));
            let mut url = session.clone();
            url.query_pairs_mut().append_pair("digest", blob.digest().as_ref());
            let response = self.send_once(attempt, repository, Method::PUT, url, headers, body, blob.size()).await?;
            match response.status() {
                status if status.is_success() => Ok(()),
                StatusCode::PAYLOAD_TOO_LARGE | StatusCode::LENGTH_REQUIRED | StatusCode::NOT_IMPLEMENTED => {
                    tracing::debug!(%repository, status = %response.status(), "the blob is sent in parts");
                    self.cancel_upload(attempt, repository, session).await;
                    let Upload::Session(url) = self.begin_upload(attempt, repository, None).await? else {
                        return Err(nowhere(attempt));
                    };
                    self.upload_in_parts(attempt, repository, url, blob, open().await?).await
                }
                _ => Err(self.refused(attempt, response).await),
            }
        };
        match tokio::time::timeout(BLOB_TIMEOUT, sending).await {
            Ok(sent) => sent,
            Err(_) => Err(attempt.transport(&TransportFailure::Timeout)),
        }
    }

    async fn upload_in_parts(
        &self,
        attempt: &Attempt,
        repository: &Repository,
        mut url: Url,
        blob: &Descriptor,
        mut bytes: BlobStream,
    ) -> Result<(), Error> {
        let (mut part, mut sent) = (BytesMut::new(), 0_u64);
        loop {
            let chunk = bytes.next().await.transpose().map_err(|error| attempt.protocol(error.to_string()))?;
            let ended = chunk.is_none();
            part.extend_from_slice(&chunk.unwrap_or_default());
            while part.len() >= PART || ended && !part.is_empty() {
                let body = part.split_to(PART.min(part.len())).freeze();
                let (length, last) = (body.len() as u64, sent + body.len() as u64 - 1);
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                let range = HeaderValue::from_str(&format!("{sent}-{last}"));
                headers.insert(header::CONTENT_RANGE, range.map_err(|_| attempt.protocol("its range is not valid"))?);
                let slices = (0..body.len()).step_by(SLICE);
                let slices = slices.map(move |at| Ok(body.slice(at..body.len().min(at + SLICE))));
                let body = futures::stream::iter(slices).boxed();
                let sending = self.send_once(attempt, repository, Method::PATCH, url.clone(), headers, body, length);
                let response = sending.await?;
                if !response.status().is_success() {
                    return Err(self.refused(attempt, response).await);
                }
                url = self.location(attempt, &url, response.headers())?;
                sent = last + 1;
            }
            if ended {
                break;
            }
        }
        url.query_pairs_mut().append_pair("digest", blob.digest().as_ref());
        let mut request = Request::new(Method::PUT, url);
        request.timeout = Some(transfer::answer(blob.size()));
        let response = self.send(attempt, &[Scope::push(repository)], request).await?;
        if response.status().is_success() { Ok(()) } else { Err(self.refused(attempt, response).await) }
    }

    /// Sends what cannot be sent twice, so the authorisation has to be right at once; the session's start made it known.
    #[allow(clippy::too_many_arguments, reason = "what a request is made of")]
    async fn send_once(
        &self,
        attempt: &Attempt,
        repository: &Repository,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: BlobStream,
        length: u64,
    ) -> Result<reqwest::Response, Error> {
        let (body, progress) = transfer::watched(body, length);
        let mut request = self
            .inner
            .http
            .request(method, url.clone())
            .map_err(|e| attempt.transport(&e))?
            .timeout(BLOB_TIMEOUT)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .headers(headers)
            .body(reqwest::Body::wrap_stream(body));
        if self.url(attempt, repository, "")?.origin() == url.origin() {
            let asking = Asking {
                http: &self.inner.http,
                login: self.login_for(&repository.registry),
                attempt,
                scopes: &[Scope::push(repository)],
                plain_http: self.inner.scheme == Scheme::Http,
            };
            if let Some(authorization) = self.inner.auth.known(&asking).await? {
                request = request.header(header::AUTHORIZATION, authorization);
            }
        }
        match progress.until(request.send()).await {
            Some(sent) => sent.map_err(|e| attempt.transport(&TransportFailure::from_reqwest(&e))),
            None => Err(attempt.transport(&TransportFailure::Timeout)),
        }
    }
}

pub(super) fn nowhere(attempt: &Attempt) -> Error {
    attempt.protocol("the registry does not say where to send the blob")
}
