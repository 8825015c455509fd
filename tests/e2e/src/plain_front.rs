//! The registry without TLS: a front that passes on what it is asked, and has the registry name it in its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Certificate;
use tokio::task::JoinHandle;

use crate::Cluster;
use crate::hostile_server::{listen, reply};

/// The largest body that is passed on.
pub(crate) const LARGEST_BODY: usize = 256 << 20;

/// A front. It ends with the value.
pub struct PlainFront {
    /// `address:port`.
    pub host: String,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl PlainFront {
    /// Before the cluster's registry, whose users it has.
    pub async fn before_registry(cluster: &Cluster) -> Self {
        Self::start(cluster, HeaderMap::new()).await
    }

    /// Before the cluster's registry, and open to everybody.
    pub async fn open_before_registry(cluster: &Cluster) -> Self {
        let login = STANDARD.encode(format!("{}:{}", cluster.registry_user, cluster.registry_password));
        let login = HeaderValue::from_str(&format!("Basic {login}")).expect("base64 is ASCII");
        Self::start(cluster, HeaderMap::from_iter([(header::AUTHORIZATION, login)])).await
    }

    /// With these headers in each request, in place of its own of the same name.
    async fn start(cluster: &Cluster, added: HeaderMap) -> Self {
        let (listener, host) = listen(cluster).await;
        let http = client(&cluster.registry_ca);
        let upstream = cluster.registry.clone();
        let router = Router::new().fallback(move |mut request: Request| {
            request.headers_mut().extend(added.clone());
            pass(http.clone(), upstream.clone(), request)
        });
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let listener = listener.tap_io(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("a server goes on until it is stopped");
        });
        Self { host, accepted, task }
    }

    /// How many connections were made to it, whatever came of them.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for PlainFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that trusts this bundle alone.
pub(crate) fn client(ca: &str) -> reqwest::Client {
    let ca = Certificate::from_pem_bundle(ca.as_bytes()).expect("the bundle holds PEM");
    reqwest::Client::builder().tls_certs_only(ca).build().expect("a client can be made")
}

/// Passes a request on, and the answer back.
pub(crate) async fn pass(http: reqwest::Client, upstream: String, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = parts.headers;
    // The length is the body's, and the client's own Host stays, for places to be uploaded to are built from both.
    for name in [header::TRANSFER_ENCODING, header::CONNECTION, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    let head = parts.method == Method::HEAD;
    let url = format!("https://{upstream}{path}");
    let answer = match http.request(parts.method, url).headers(headers).body(body).send().await {
        Ok(answer) => answer,
        Err(error) => return reply(502, &[], error.to_string()),
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    let body = answer.bytes().await.unwrap_or_default();
    let mut response = Response::new(if head { Body::empty() } else { Body::from(body) });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
