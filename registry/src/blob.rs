//! Reading blobs: small ones whole, large ones at their end.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use oci_spec::image::Digest;
use reqwest::Response;

use super::auth::Scope;
use super::client::{Client, digest_like};
use super::copy::STALL;
use super::error::Error;
use super::reference::Repository;
use super::request::Request;
use super::transfer;
use crate::http_client::{TransportFailure, read_bounded};

impl Client {
    /// Fetches a blob of at most `limit` bytes, and checks its digest.
    pub async fn get_blob(&self, repository: &Repository, digest: &Digest, limit: usize) -> Result<Bytes, Error> {
        let attempt = self.attempt(repository, &format!("fetch the blob {digest} of"));
        let url = self.url(&attempt, repository, &format!("blobs/{digest}"))?;
        let _place = transfer::begin_answer().await;
        let response = self.send(&attempt, &[Scope::pull(repository)], Request::new(Method::GET, url)).await?;
        if !response.status().is_success() {
            return Err(self.refused(&attempt, response).await);
        }
        let bytes = read_bounded(response, limit).await.map_err(|e| attempt.body(&e))?;
        if digest_like(digest, &bytes).is_none_or(|found| found != *digest) {
            return Err(attempt.protocol("the registry answered with other content"));
        }
        Ok(bytes.into())
    }

    /// Begins to fetch a blob of any size; whoever reads it checks its digest. It may take two hours.
    pub async fn open_blob(&self, repository: &Repository, digest: &Digest) -> Result<Response, Error> {
        const LONGEST: Duration = Duration::from_hours(2);
        let attempt = self.attempt(repository, &format!("fetch the blob {digest} of"));
        let url = self.url(&attempt, repository, &format!("blobs/{digest}"))?;
        let request = Request { timeout: Some(LONGEST), ..Request::new(Method::GET, url) };
        let scopes = [Scope::pull(repository)];
        let answer = tokio::time::timeout(STALL, self.send(&attempt, &scopes, request)).await;
        let response = answer.map_err(|_| attempt.transport(&TransportFailure::Timeout))??;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(&attempt, response).await) }
    }

    /// Fetches the last `count` bytes of a blob that is `size` bytes long. None: the registry has no such ranges.
    pub async fn get_blob_end(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        count: u64,
    ) -> Result<Option<Bytes>, Error> {
        let attempt = self.attempt(repository, &format!("fetch the end of the blob {digest} of"));
        let url = self.url(&attempt, repository, &format!("blobs/{digest}"))?;
        let (first, last) = (size.saturating_sub(count), size.saturating_sub(1));
        let range = HeaderValue::from_str(&format!("bytes={first}-{last}"));
        let range = range.map_err(|_| attempt.protocol("its range is not valid"))?;
        let request = Request::new(Method::GET, url).header(header::RANGE, range);
        let response = self.send(&attempt, &[Scope::pull(repository)], request).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let limit = usize::try_from(count).unwrap_or(usize::MAX);
                Ok(Some(read_bounded(response, limit).await.map_err(|e| attempt.body(&e))?.into()))
            }
            // The whole blob begins to come: it is not read.
            status if status.is_success() => Ok(None),
            _ => Err(self.refused(&attempt, response).await),
        }
    }
}
