//! One exchange with a registry: authentication when it is asked for, and redirects of reads.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};

use super::auth::{Asking, Scope, mask};
use super::challenge;
use super::client::{Client, Scheme};
use super::error::{Attempt, Error, ErrorKind};
use super::reference::Repository;
use crate::http_client::{TransportFailure, read_prefix, retry_after};

const REDIRECTS: usize = 5;
/// How often a request is sent again that the registry says came too soon.
const RETRIES: u32 = 4;
/// The longest wait before that; whoever is to wait longer comes again by itself.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How much of an error's body is looked at.
const ERROR_BODY: usize = 16 * 1024;

/// A request that can be sent more than once.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Instead of the usual one; for transfers of blobs.
    pub(super) timeout: Option<Duration>,
}

impl Request {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new(), timeout: None }
    }

    pub(super) fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }
}

/// How long to wait before a request is sent again, after so many times. `None`: too long, or often enough.
fn wait(headers: &HeaderMap, retries: u32) -> Option<Duration> {
    let wait = retry_after(headers, jiff::Timestamp::now()).unwrap_or(Duration::from_secs(1 << retries.min(2)));
    (retries < RETRIES && wait <= LONGEST_WAIT).then_some(wait)
}

impl Client {
    /// Sends `request` to the registry, answering its challenge if there is one.
    ///
    /// Redirects of GET and HEAD are followed, others returned; the credential stays with the registry's own host.
    /// Where the registry limits requests (429), the request is sent again after the few seconds that it asks for.
    /// Any status is returned, except a 401 to a fresh token.
    pub(super) async fn send(&self, attempt: &Attempt, scopes: &[Scope], request: Request) -> Result<Response, Error> {
        let asking = Asking {
            http: &self.inner.http,
            login: self.login_for(&attempt.registry),
            attempt,
            scopes,
            plain_http: self.inner.scheme == Scheme::Http,
        };
        // The registry's own, wherever this request goes: an upload may be sent elsewhere.
        let registry = Repository { registry: attempt.registry.clone(), path: String::new() };
        let origin = self.url(attempt, &registry, "")?.origin();
        let mut url = request.url.clone();
        let mut authorization = self.inner.auth.known(&asking).await?;
        let mut answered = false;
        let mut redirects = 0;
        let mut retries = 0;
        loop {
            let at_home = url.origin() == origin;
            let mut builder = self
                .inner
                .http
                .request(request.method.clone(), url.clone())
                .map_err(|e| attempt.transport(&e))?
                .headers(request.headers.clone());
            if !matches!(request.method, Method::GET | Method::HEAD) {
                builder = builder.body(request.body.clone());
            }
            if let Some(timeout) = request.timeout {
                builder = builder.timeout(timeout);
            }
            if let Some(authorization) = authorization.as_ref().filter(|_| at_home) {
                builder = builder.header(header::AUTHORIZATION, authorization);
            }
            let response = builder.send().await.map_err(|e| attempt.transport(&TransportFailure::from_reqwest(&e)))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && at_home {
                if answered {
                    return Err(self.refused_token(attempt, response).await);
                }
                let offered = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
                if let Some(challenge) = challenge::choose(offered.filter_map(|v| v.to_str().ok())) {
                    let is_bearer = challenge != challenge::Challenge::Basic;
                    let sent = authorization.take();
                    authorization = self.inner.auth.answer(&asking, challenge).await?;
                    // Sending the same refused password again would only count as another failed login.
                    if authorization.is_some() && (is_bearer || authorization != sent) {
                        answered = true;
                        continue;
                    }
                }
            } else if status.is_redirection() && matches!(request.method, Method::GET | Method::HEAD) {
                redirects += 1;
                if redirects > REDIRECTS {
                    return Err(attempt.protocol("the registry redirects in circles"));
                }
                url = self.location(attempt, &url, response.headers())?;
                continue;
            }
            if status == StatusCode::TOO_MANY_REQUESTS
                && let Some(wait) = wait(response.headers(), retries)
            {
                tracing::debug!(registry = attempt.registry, ?wait, "the registry limits requests");
                retries += 1;
                tokio::time::sleep(wait).await;
                continue;
            }
            return Ok(response);
        }
    }

    /// The `Location` of an answer, made absolute. It never leaves TLS.
    pub(super) fn location(&self, attempt: &Attempt, base: &Url, headers: &HeaderMap) -> Result<Url, Error> {
        let location = headers
            .get(header::LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| base.join(location).ok())
            .ok_or_else(|| attempt.protocol("the registry's answer has no usable Location"))?;
        let secure = location.scheme() == "https" || (self.inner.scheme == Scheme::Http && location.scheme() == "http");
        if !secure || !location.username().is_empty() {
            return Err(attempt.protocol("the registry redirects away from https"));
        }
        Ok(location)
    }

    /// The error that a refusing answer means.
    pub(super) async fn refused(&self, attempt: &Attempt, response: Response) -> Error {
        let status = response.status();
        let headers = response.headers().clone();
        let body = mask(&read_prefix(response, ERROR_BODY).await, self.login_for(&attempt.registry));
        attempt.refused(status, &headers, &body, jiff::Timestamp::now())
    }

    /// A 401 although the challenge was answered: the token or login is good for too little, or for nothing.
    async fn refused_token(&self, attempt: &Attempt, response: Response) -> Error {
        let by_token = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.len() >= 6 && v.as_bytes()[..6].eq_ignore_ascii_case(b"bearer"));
        let error = self.refused(attempt, response).await;
        if by_token && attempt.has_login {
            let cause = format!(
                "the credential is valid but does not have the right to: give its account access to the repository (HTTP {})",
                error.status.unwrap_or_default()
            );
            return Error { kind: ErrorKind::Denied, cause, ..error };
        }
        error
    }
}
