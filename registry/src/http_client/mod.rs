//! HTTP clients for registries and Git servers: who is trusted (system and extra CAs), which addresses may be
//! reached, and what a failed request means.
//!
//! Clients are kept and shared, because a kept connection saves a TCP and a TLS handshake on every request.
//! Redirects are never followed by themselves: the caller follows by hand, so that a credential stays with its host.
//! Proxy variables of the environment are ignored: behind a proxy the resolved address could not be checked.

mod address;
mod cluster;
mod failure;
mod tls;

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use reqwest::{Method, RequestBuilder, Response, Url};
use sha2::{Digest as _, Sha256};

pub use address::{AddressForbidden, AddressPolicy};
pub use cluster::{ClusterNetwork, HostPort};
pub use failure::{FailureClass, TransportFailure};
pub use tls::BundleError;

/// Time to connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one exchange, body included; transfers of blobs set their own.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may send nothing, whatever time the whole exchange has.
const STALL: Duration = Duration::from_secs(30);
/// How long the body of a refusal is read: what it says is only told.
const REFUSAL: Duration = Duration::from_secs(10);
/// How many clients [`Clients`] keeps; each has its own connections.
const KEPT_CLIENTS: usize = 64;

/// An HTTP client that reaches permitted addresses only. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    inner: reqwest::Client,
    /// For the hosts in the cluster that the policy lists: a resolver is not told the port.
    listed: Option<reqwest::Client>,
    key: Key,
}

impl HttpClient {
    /// Starts a request. A URL whose host is a forbidden IP address is refused here, a name that resolves to one when
    /// connecting.
    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, TransportFailure> {
        let mut client = &self.inner;
        if let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) {
            let policy = self.key.1.of_host(&host, port).map_err(TransportFailure::AddressForbidden)?;
            if policy != self.key.1 {
                client = self.listed.as_ref().unwrap_or(client);
            }
        }
        Ok(client.request(method, url))
    }

    /// One that waits no longer than this for an exchange.
    #[cfg(test)]
    pub(crate) fn impatient(policy: AddressPolicy, timeout: Duration) -> Self {
        let key = (Default::default(), policy.clone());
        Self { inner: build(None, policy, timeout).unwrap(), listed: None, key }
    }

    /// Which addresses it reaches.
    #[must_use]
    pub fn addresses(&self) -> &AddressPolicy {
        &self.key.1
    }

    /// Whether both trust the same CAs and reach the same addresses.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// Hands out [`HttpClient`]s, one per CA bundle and address policy, and keeps the most recently used ones.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    kept: Arc<Mutex<Vec<(Key, HttpClient)>>>,
}

/// The hash of the CA bundle, and the policy.
type Key = ([u8; 32], AddressPolicy);

impl Clients {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The client that trusts the system's CAs and those in `ca_pem`, a bundle of PEM certificates.
    ///
    /// A certificate of the bundle is also accepted as a server's own, whether it is marked as a CA or not.
    pub fn get(&self, ca_pem: Option<&[u8]>, policy: AddressPolicy) -> Result<HttpClient, BundleError> {
        let pem = ca_pem.unwrap_or_default();
        let key = (Sha256::digest(pem).into(), policy.clone());
        if let Some(client) = self.touch(&key) {
            return Ok(client);
        }
        let everywhere = || build(ca_pem, policy.everywhere_in_the_cluster(), TIMEOUT);
        let listed = policy.lists_hosts().then(everywhere).transpose()?;
        let client = HttpClient { inner: build(ca_pem, policy, TIMEOUT)?, listed, key: key.clone() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_CLIENTS {
            kept.remove(0);
        }
        kept.push((key, client.clone()));
        Ok(client)
    }

    /// The kept client of `key`, which thereby becomes the most recently used one.
    fn touch(&self, key: &Key) -> Option<HttpClient> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(k, _)| k == key)?;
        let entry = kept.remove(at);
        let client = entry.1.clone();
        kept.push(entry);
        Some(client)
    }
}

fn build(ca_pem: Option<&[u8]>, policy: AddressPolicy, timeout: Duration) -> Result<reqwest::Client, BundleError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(ca_pem)?)
        .dns_resolver(address::Resolver(policy))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| BundleError::Client(e.to_string()))
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More than the limit.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The connection failed meanwhile.
    #[error(transparent)]
    Transport(#[from] TransportFailure),
}

/// Reads the whole body, at most `limit` bytes.
pub async fn read_bounded(response: Response, limit: usize) -> Result<Vec<u8>, BodyError> {
    let announced = response.content_length().and_then(|n| usize::try_from(n).ok());
    // What is announced is believed for little: it costs the sender nothing.
    let mut body = Vec::with_capacity(announced.unwrap_or(0).min(64 * 1024));
    read_chunks(response, limit, |chunk| {
        body.extend_from_slice(chunk);
        ControlFlow::Continue(())
    })
    .await?;
    Ok(body)
}

/// Hands a body of at most `limit` bytes over as it comes, until it ends or `each` breaks off.
pub async fn read_chunks(
    response: Response,
    limit: usize,
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), BodyError> {
    let announced = response.content_length().and_then(|n| usize::try_from(n).ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(BodyError::TooLarge(limit));
    }
    read_stream(response.bytes_stream(), limit, STALL, &mut each).await
}

async fn read_stream(
    chunks: impl Stream<Item = reqwest::Result<Bytes>>,
    limit: usize,
    stall: Duration,
    each: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), BodyError> {
    let mut read = 0;
    let mut chunks = pin!(chunks);
    while let Some(chunk) = tokio::time::timeout(stall, chunks.next()).await.map_err(|_| TransportFailure::Timeout)? {
        let chunk = chunk.map_err(|e| TransportFailure::from_reqwest(&e))?;
        read += chunk.len();
        if read > limit {
            return Err(BodyError::TooLarge(limit));
        }
        if each(&chunk).is_break() {
            break;
        }
        // A body that is always there already would leave no time to others.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Reads what there is of a body, cut at `limit` bytes: for error texts.
pub async fn read_prefix(response: Response, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    let deadline = tokio::time::Instant::now() + REFUSAL;
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout_at(deadline, chunks.next()).await {
        let room = limit - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == limit {
            break;
        }
    }
    body
}

/// The time a `Retry-After` header asks for (seconds or a date, RFC 9110 §10.2.3), at most an hour.
#[must_use]
pub fn retry_after(headers: &http::HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_hours(1);
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Duration::try_from(date.duration_since(now)).unwrap_or_default()
    };
    Some(wait.min(LONGEST))
}

/// A secret text: `Debug` prints `***`, and there is no `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SecretString(String);

impl SecretString {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the wire only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, IsCa};

    use super::*;

    #[test]
    fn clients_are_shared_and_bounded() {
        let clients = Clients::new();
        let policies = [AddressPolicy::new(true), AddressPolicy::new(false)];
        for _ in 0..3 {
            for policy in policies.clone() {
                clients.get(None, policy).unwrap();
            }
        }
        assert_eq!(clients.kept.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_given_up() {
        let mut read = 0;
        let chunks = futures::stream::iter([Ok(Bytes::from_static(b"abc"))]).chain(futures::stream::pending());
        let mut each = |chunk: &[u8]| {
            read += chunk.len();
            ControlFlow::Continue(())
        };
        let ended = read_stream(chunks, 9, Duration::from_millis(20), &mut each).await;
        assert!(matches!(ended, Err(BodyError::Transport(TransportFailure::Timeout))), "{ended:?}");
        assert_eq!(read, 3);
    }

    #[test]
    fn refuses_forbidden_literals() {
        let client = Clients::new().get(None, AddressPolicy::default()).unwrap();
        for url in [
            "http://127.0.0.1/",
            "https://169.254.169.254/latest",
            "http://[::1]:80/",
            "http://0x7f000001/",
            "http://2130706433/",
        ] {
            assert!(
                matches!(client.request(Method::GET, url.parse().unwrap()), Err(TransportFailure::AddressForbidden(_))),
                "{url}"
            );
        }
        assert!(client.request(Method::GET, "https://10.0.0.1/".parse().unwrap()).is_ok());
    }

    #[tokio::test]
    async fn refuses_names_that_resolve_to_forbidden_addresses() {
        let client = Clients::new().get(None, AddressPolicy::default()).unwrap();
        let error =
            client.request(Method::GET, "http://localhost:1/".parse().unwrap()).unwrap().send().await.unwrap_err();
        let failure = TransportFailure::from_reqwest(&error);
        assert!(matches!(failure, TransportFailure::AddressForbidden(_)), "{failure:?}");
    }

    /// An https server on loopback with a certificate of its own, and that certificate.
    fn tls_server(name: &str, is_ca: IsCa) -> (Url, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.is_ca = is_ca;
        let certificate = parameters.self_signed(&key).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
        std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                if stream.read(&mut [0; 4096]).is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
                    let _ = stream.flush();
                }
            }
        });
        (url, certificate.pem())
    }

    async fn get(ca: Option<&str>, url: &Url) -> Result<u16, TransportFailure> {
        let client = Clients::new().get(ca.map(str::as_bytes), AddressPolicy::default().with_loopback()).unwrap();
        let sent = client.request(Method::GET, url.clone())?.send().await;
        sent.map(|response| response.status().as_u16()).map_err(|e| TransportFailure::from_reqwest(&e))
    }

    #[tokio::test]
    async fn tells_why_a_certificate_is_refused() {
        for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            let (url, pem) = tls_server("127.0.0.1", is_ca);
            assert_eq!(get(Some(&pem), &url).await, Ok(204));
            assert_eq!(get(None, &url).await, Err(TransportFailure::CertificateUntrusted));
        }
        let (url, pem) = tls_server("registry.example", IsCa::NoCa);
        let failure = get(Some(&pem), &url).await.unwrap_err();
        insta::assert_snapshot!(failure, @"the server's certificate is not valid for 127.0.0.1 (it is for registry.example): ask for one that has it as a subject alternative name (the common name alone does not count), or make one: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -keyout tls.key -out tls.crt -subj '/CN=127.0.0.1' -addext 'subjectAltName=IP:127.0.0.1' (tls.crt, being self-signed, is then what caRef names)");
    }

    #[test]
    fn reads_retry_after() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("7", Some(7)),
            ("999999", Some(3600)),
            ("Thu, 01 Jan 2026 00:00:30 GMT", Some(30)),
            ("Wed, 31 Dec 2025 00:00:30 GMT", Some(0)),
            ("soon", None),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
