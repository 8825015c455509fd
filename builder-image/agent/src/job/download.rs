//! Downloads over https: redirects followed by hand, so that a credential stays with its server, and never more than a
//! limit.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    ops::ControlFlow,
    path::Path,
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode, header};
use kiln_registry::http_client::{BodyError, HttpClient, TransportFailure, read_chunks};
use reqwest::Response;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use url::Url;

/// How often servers may send a download elsewhere.
const MOST_REDIRECTS: usize = 5;
/// How long one download may take; the job's own timeout may end it before.
const LONGEST: Duration = Duration::from_hours(2);

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server answered with a status that is no success.
    #[error("the server answers with HTTP {0}")]
    Status(StatusCode),
    /// No answer.
    #[error(transparent)]
    Transport(#[from] TransportFailure),
    /// More than is taken.
    #[error("it is larger than {} MiB", .0 >> 20)]
    TooLarge(usize),
    /// Redirects that are not followed.
    #[error("the server redirects {0}")]
    Redirect(&'static str),
    /// The file cannot be written.
    #[error("it cannot be written to the builder's volume")]
    Write(#[source] io::Error),
    /// The job was stopped.
    #[error("stopped")]
    Stopped,
}

/// Sends a request and follows redirects of a GET; `headers` go to the first URL's own server only.
pub async fn request(
    client: &HttpClient,
    method: Method,
    url: &Url,
    headers: &HeaderMap,
    body: Option<Vec<u8>>,
    stop: &CancellationToken,
) -> Result<Response, DownloadError> {
    let origin = url.origin();
    let mut url = url.clone();
    for _ in 0..=MOST_REDIRECTS {
        let mut request = client.request(method.clone(), url.clone())?.timeout(LONGEST);
        if url.origin() == origin {
            request = request.headers(headers.clone());
        }
        if let Some(body) = &body {
            request = request.body(body.clone());
        }
        let response = tokio::select! {
            response = request.send() => response.map_err(|error| TransportFailure::from_reqwest(&error))?,
            () = stop.cancelled() => return Err(DownloadError::Stopped),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if !status.is_redirection() || method != Method::GET {
            return Err(DownloadError::Status(status));
        }
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        url = location.and_then(|location| url.join(location).ok()).ok_or(DownloadError::Redirect("to nowhere"))?;
        // The same scheme as before: https, but for tests.
        if url.scheme() != origin_scheme(&origin) || !url.username().is_empty() || url.password().is_some() {
            return Err(DownloadError::Redirect("away from https"));
        }
    }
    Err(DownloadError::Redirect("in circles"))
}

fn origin_scheme(origin: &url::Origin) -> &str {
    match origin {
        url::Origin::Tuple(scheme, ..) => scheme,
        url::Origin::Opaque(_) => "https",
    }
}

/// Writes an answer's body to `path`, which must not be there, at most `limit` bytes, and gives its SHA-256 and its length.
pub async fn save(
    response: Response,
    path: &Path,
    limit: usize,
    stop: &CancellationToken,
) -> Result<([u8; 32], u64), DownloadError> {
    let mut file = BufWriter::new(File::create_new(path).map_err(DownloadError::Write)?);
    let (mut hash, mut length, mut failed) = (Sha256::new(), 0, None);
    let read = read_chunks(response, limit, |chunk| {
        hash.update(chunk);
        length += chunk.len() as u64;
        match file.write_all(chunk) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    let read = tokio::select! {
        read = read => read,
        () = stop.cancelled() => return Err(DownloadError::Stopped),
    };
    read.map_err(|error| match error {
        BodyError::TooLarge(limit) => DownloadError::TooLarge(limit),
        BodyError::Transport(failure) => failure.into(),
    })?;
    failed.map_or(Ok(()), Err).and_then(|()| file.flush()).map_err(DownloadError::Write)?;
    Ok((hash.finalize().into(), length))
}
