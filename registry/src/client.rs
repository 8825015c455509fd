//! The client of one registry with one credential: push check, manifests, blobs' existence.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use oci_spec::image::{Descriptor, Digest, MediaType};
use reqwest::Url;

use super::auth::{Auth, Scope};
use super::challenge::{self, Challenge};
use super::error::{Attempt, Error, ErrorKind};
use super::login::Login;
use super::reference::{Identifier, Repository};
use super::request::Request;
use super::sha256_digest;
use super::transfer;
use crate::http_client::{HttpClient, TransportFailure, read_bounded};

/// The largest manifest that registries must accept is 4 MiB.
const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;
/// Every kind of manifest that Kiln can tell apart.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const CONTENT_DIGEST: &str = "docker-content-digest";

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// With TLS.
    Https,
    /// Without, where the BuilderPool says so.
    Http,
}

/// A registry's client. Cheap to clone; clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) http: HttpClient,
    pub(super) scheme: Scheme,
    login: Option<Login>,
    pub(super) auth: Auth,
}

/// A manifest as the registry holds it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its media type, digest and size.
    pub descriptor: Descriptor,
    /// Its bytes, which have that digest.
    pub bytes: Bytes,
}

/// What a request for an upload led to.
pub(super) enum Upload {
    /// The blob was taken from another repository.
    Mounted,
    /// Bytes can be sent there.
    Session(Url),
    /// The registry agreed, but said not where to, or named a place without https, as it is written.
    Nowhere(String),
}

impl Client {
    /// A client that shows `login` to that login's registry, and to no other.
    #[must_use]
    pub fn new(http: HttpClient, scheme: Scheme, login: Option<Login>) -> Self {
        Self { inner: Arc::new(Inner { http, scheme, login, auth: Auth::default() }) }
    }

    /// Whether [`Self::new`] with these would make the same client.
    pub(super) fn is_of(&self, http: &HttpClient, scheme: Scheme, login: Option<&Login>) -> bool {
        self.inner.http.is_same(http) && self.inner.scheme == scheme && self.inner.login.as_ref() == login
    }

    pub(super) fn login_for(&self, registry: &str) -> Option<&Login> {
        self.inner.login.as_ref().filter(|login| login.registry == registry)
    }

    pub(super) fn attempt(&self, repository: &Repository, action: &str) -> Attempt {
        Attempt {
            registry: repository.registry.clone(),
            action: format!("{action} {}", repository.path),
            writes_tag: false,
            has_login: self.login_for(&repository.registry).is_some(),
        }
    }

    pub(super) fn url(&self, attempt: &Attempt, repository: &Repository, rest: &str) -> Result<Url, Error> {
        let scheme = match self.inner.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        format!("{scheme}://{}/v2/{}/{rest}", repository.api_host(), repository.path)
            .parse()
            .map_err(|_| attempt.protocol("its name makes no URL"))
    }

    /// Whether the registry wants user and password with each request (Basic), so that one login is shown for all that it
    /// has. Nothing is shown to learn it.
    pub async fn is_basic(&self, repository: &Repository) -> Result<bool, Error> {
        if let Some(known) = self.inner.auth.is_basic(&repository.registry) {
            return Ok(known);
        }
        let attempt = self.attempt(repository, "ask how to log in for");
        let url =
            self.url(&attempt, repository, "")?.join("/v2/").map_err(|_| attempt.protocol("its name makes no URL"))?;
        let request = self.inner.http.request(Method::GET, url).map_err(|e| attempt.transport(&e))?;
        let response = request.send().await.map_err(|e| attempt.transport(&TransportFailure::from_reqwest(&e)))?;
        let offered = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        Ok(challenge::choose(offered.filter_map(|v| v.to_str().ok())) == Some(Challenge::Basic))
    }

    /// Whether the credential may push to `repository`: starts an upload, and cancels it.
    pub async fn check_push(&self, repository: &Repository) -> Result<(), Error> {
        let attempt = self.attempt(repository, "start a push to");
        match self.begin_upload(&attempt, repository, None).await? {
            Upload::Mounted => Ok(()),
            Upload::Session(url) if self.url(&attempt, repository, "")?.origin() == url.origin() => {
                self.cancel_upload(&attempt, repository, url).await;
                Ok(())
            }
            // BuildKit takes its credential nowhere else.
            Upload::Session(url) => Err(led_elsewhere(&attempt, url.origin().ascii_serialization())),
            Upload::Nowhere(named) => Err(led_elsewhere(&attempt, named)),
        }
    }

    /// Starts an upload (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-blobs>), or
    /// mounts a blob from another repository of the same registry.
    pub(super) async fn begin_upload(
        &self,
        attempt: &Attempt,
        repository: &Repository,
        mount: Option<(&Repository, &Digest)>,
    ) -> Result<Upload, Error> {
        let mut url = self.url(attempt, repository, "blobs/uploads/")?;
        let mut scopes = vec![Scope::push(repository)];
        if let Some((from, digest)) = mount {
            url.query_pairs_mut().append_pair("mount", digest.as_ref()).append_pair("from", &from.path);
            scopes.push(Scope::pull(from));
        }
        let response = self.send(attempt, &scopes, Request::new(Method::POST, url.clone())).await?;
        match response.status() {
            StatusCode::CREATED if mount.is_some() => Ok(Upload::Mounted),
            StatusCode::ACCEPTED | StatusCode::CREATED => {
                Ok(self.location(attempt, &url, response.headers()).map_or_else(
                    |_| {
                        let named = response.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
                        Upload::Nowhere(crate::text::plain_text(named.unwrap_or("nowhere"), 200))
                    },
                    Upload::Session,
                ))
            }
            // A login page, say: whoever says yes to everything stores nothing.
            status if status.is_success() => Err(attempt.protocol(format!(
                "no registry answers so (HTTP {} where 202 is due): check the host in image.repository",
                status.as_u16()
            ))),
            _ => Err(self.refused(attempt, response).await),
        }
    }

    /// Cancels an upload. A registry that cannot forgets it by itself in time, so nothing is made of a refusal.
    pub(super) async fn cancel_upload(&self, attempt: &Attempt, repository: &Repository, url: Url) {
        // Another host than the registry's own must not see the credential.
        if self.url(attempt, repository, "").is_ok_and(|own| own.origin() != url.origin()) {
            return;
        }
        let outcome = self.send(attempt, &[Scope::push(repository)], Request::new(Method::DELETE, url)).await;
        match outcome.map(|response| response.status()) {
            Ok(status) if status.is_success() => {}
            outcome => tracing::debug!(%repository, ?outcome, "the registry does not cancel uploads"),
        }
    }

    /// What `identifier` points at, if it exists.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        identifier: &Identifier,
    ) -> Result<Option<Descriptor>, Error> {
        let attempt = self.attempt(repository, &format!("look up {identifier} of"));
        let url = self.url(&attempt, repository, &format!("manifests/{identifier}"))?;
        let request = Request::new(Method::HEAD, url).header(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let response = self.send(&attempt, &[Scope::pull(repository)], request).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => match described(response.headers()) {
                Some(descriptor) => {
                    matches_identifier(&attempt, identifier, descriptor.digest())?;
                    Ok(Some(descriptor))
                }
                // The digest header is optional: the content tells it as well.
                None => Ok(Some(self.get_manifest(repository, identifier).await?.descriptor)),
            },
            _ => Err(self.refused(&attempt, response).await),
        }
    }

    /// Fetches a manifest of at most 4 MiB, and checks its digest.
    pub async fn get_manifest(&self, repository: &Repository, identifier: &Identifier) -> Result<Manifest, Error> {
        let attempt = self.attempt(repository, &format!("fetch {identifier} of"));
        let url = self.url(&attempt, repository, &format!("manifests/{identifier}"))?;
        let request = Request::new(Method::GET, url).header(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        // The wait is not the request's, which has a time limit.
        let place = transfer::begin_answer().await;
        let response = self.send(&attempt, &[Scope::pull(repository)], request).await?;
        if !response.status().is_success() {
            return Err(self.refused(&attempt, response).await);
        }
        let media_type = media_type(response.headers());
        let bytes = read_bounded(response, MANIFEST_LIMIT).await.map_err(|e| attempt.body(&e))?;
        let digest = match identifier {
            Identifier::Digest(digest) => digest_like(digest, &bytes),
            Identifier::Tag(_) => Some(sha256_digest(&bytes)),
        };
        let digest = digest.ok_or_else(|| attempt.protocol("its digest is of a kind that Kiln cannot check"))?;
        matches_identifier(&attempt, identifier, &digest)?;
        let media_type = media_type
            .ok_or_else(|| attempt.protocol("the registry's answer has no Content-Type that names a manifest"))?;
        drop(place);
        Ok(Manifest { descriptor: Descriptor::new(media_type, bytes.len() as u64, digest), bytes: bytes.into() })
    }

    /// Pushes a manifest or index under a tag or its digest, and returns its digest.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        identifier: &Identifier,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, Error> {
        let writes_tag = matches!(identifier, Identifier::Tag(_));
        let attempt = Attempt { writes_tag, ..self.attempt(repository, &format!("push {identifier} to")) };
        let digest = match identifier {
            Identifier::Digest(digest) => digest.clone(),
            Identifier::Tag(_) => sha256_digest(&bytes),
        };
        let url = self.url(&attempt, repository, &format!("manifests/{identifier}"))?;
        let content_type =
            HeaderValue::from_str(media_type).map_err(|_| attempt.protocol("its media type is not valid"))?;
        let request =
            Request { body: bytes, ..Request::new(Method::PUT, url).header(header::CONTENT_TYPE, content_type) };
        let response = self.send(&attempt, &[Scope::push(repository)], request).await?;
        if !response.status().is_success() {
            return Err(self.refused(&attempt, response).await);
        }
        match response.headers().get(CONTENT_DIGEST).map(|v| v.to_str().unwrap_or_default()) {
            // A registry may name it by another algorithm; only the same one can be compared.
            Some(stored)
                if stored != digest.as_ref() && stored.split(':').next() == digest.as_ref().split(':').next() =>
            {
                Err(attempt.protocol(format!(
                    "the registry stored something else than what was sent: {:?}",
                    crate::text::plain_text(stored, 100)
                )))
            }
            _ => Ok(digest),
        }
    }

    /// The size of a blob in bytes, if it exists (0 where the registry does not say).
    pub async fn head_blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        let attempt = self.attempt(repository, &format!("look up the blob {digest} of"));
        let url = self.url(&attempt, repository, &format!("blobs/{digest}"))?;
        let response = self.send(&attempt, &[Scope::pull(repository)], Request::new(Method::HEAD, url)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(length(response.headers()).unwrap_or(0))),
            _ => Err(self.refused(&attempt, response).await),
        }
    }
}

fn led_elsewhere(attempt: &Attempt, named: impl std::fmt::Display) -> Error {
    let cause = format!(
        "the registry has uploads sent to {named}, where builds show no credential: let it, and a proxy before it, name itself by the host and scheme that it is asked by (X-Forwarded-Host and X-Forwarded-Proto, Harbor's external_url, REGISTRY_HTTP_HOST)"
    );
    attempt.fail(ErrorKind::Elsewhere, cause)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let text = text.split(';').next().unwrap_or_default().trim();
    // A login page or a proxy's error with status 200 is not a manifest.
    text.starts_with("application/vnd.").then(|| MediaType::from(text))
}

/// A manifest as the headers of an answer describe it.
fn described(headers: &HeaderMap) -> Option<Descriptor> {
    let digest: Digest = headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()?;
    Some(Descriptor::new(media_type(headers)?, length(headers)?, digest))
}

/// The digest of `bytes` by the algorithm of `digest`.
pub(super) fn digest_like(digest: &Digest, bytes: &[u8]) -> Option<Digest> {
    use sha2::Digest as _;
    match digest.algorithm().as_ref() {
        "sha256" => Some(sha256_digest(bytes)),
        "sha512" => format!("sha512:{:x}", sha2::Sha512::digest(bytes)).parse().ok(),
        _ => None,
    }
}

fn matches_identifier(attempt: &Attempt, identifier: &Identifier, digest: &Digest) -> Result<(), Error> {
    match identifier {
        Identifier::Digest(asked) if asked != digest => {
            Err(attempt.protocol(format!("the registry answered with other content, {digest}")))
        }
        _ => Ok(()),
    }
}
