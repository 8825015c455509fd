//! A TLS proxy in the test's own process, before a registry, a Git server or the API server. It stops a request at the
//! very point that a test asks for: before the server has seen it, or when the server has done it and nobody knows yet.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request as Incoming, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use futures::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The largest body that is kept before it is passed on: a layer of busybox has a megabyte.
const LARGEST_BODY: usize = 64 << 20;

/// One CA for all proxies: each CA that a build names is another configuration of its builder.
static ISSUER: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Kiln recovery tests");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key can be made")).expect("a CA can be made")
});

/// The CA of the proxies that make their certificate themselves, in PEM.
pub fn ca() -> String {
    ISSUER.pem()
}

/// What clients see.
pub enum Identity {
    /// A certificate for the proxy's address from [`ca`].
    Own,
    /// A certificate and its key, in PEM.
    Given(String, String),
}

/// Where requests go.
pub struct Upstream {
    /// `https://host:port`.
    pub url: String,
    /// The CA of its certificate, in PEM.
    pub ca: String,
}

/// A request that passes.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who asks.
    pub peer: IpAddr,
    pub method: Method,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The server's answer; `None` while there is none.
    pub status: Option<StatusCode>,
}

impl Seen {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The path without the query.
    pub fn target(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// On which side of the server's work a request is stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// The server has not seen it.
    Before,
    /// The server has done it; its answer is stopped.
    After,
    /// Whoever sent it loses the connection at once; the server sees it when it is let go.
    Late,
}

struct Rule {
    when: When,
    matches: Box<dyn Fn(&Seen) -> bool + Send>,
    caught: oneshot::Sender<Seen>,
    /// Ends without a word where the request is to be dropped.
    go: oneshot::Receiver<()>,
}

/// A request that is stopped, or will be. Dropped, it ends the request with its connection.
pub struct Held {
    what: String,
    caught: Option<oneshot::Receiver<Seen>>,
    go: oneshot::Sender<()>,
    /// Who sent it, once it is caught.
    pub peer: Option<IpAddr>,
}

impl Held {
    /// Waits until the request has come.
    pub async fn caught(&mut self) -> Seen {
        let caught = self.caught.take().expect("a request is waited for once");
        match tokio::time::timeout(kiln_e2e::wait::BUILD, caught).await {
            Ok(Ok(seen)) => {
                self.peer = Some(seen.peer);
                seen
            }
            _ => panic!("no request came by: {}", self.what),
        }
    }

    /// Lets it go on.
    pub fn release(self) {
        // Who sent it may be gone.
        let _ = self.go.send(());
    }
}

struct Shared {
    url: String,
    http: reqwest::Client,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    /// Those whose packets are lost.
    cut: watch::Sender<BTreeSet<IpAddr>>,
    /// Whether every request is answered with 503.
    fails: AtomicBool,
}

/// The proxy; it ends with the value.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Proxy {
    /// Listens on `address`; port 0 takes any that is free.
    pub async fn start(address: SocketAddr, identity: Identity, upstream: Upstream) -> Self {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|error| {
            panic!("listening on {address}: {error}. These tests run on the machine of the local cluster: make cluster")
        });
        let address = listener.local_addr().expect("a listener has an address");
        let roots = reqwest::Certificate::from_pem_bundle(upstream.ca.as_bytes()).expect("the CA is PEM");
        let http = reqwest::Client::builder()
            .tls_certs_only(roots)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client can be made");
        let shared = Arc::new(Shared {
            url: upstream.url,
            http,
            rules: Mutex::default(),
            seen: Mutex::default(),
            cut: watch::Sender::default(),
            fails: AtomicBool::new(false),
        });
        let (sender, connections) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(listener, acceptor(address.ip(), identity), shared.clone(), sender));
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let service = router.into_make_service_with_connect_info::<Peer>();
        let serving = tokio::spawn(async move {
            let _ = axum::serve(Connections { connections, address }, service).await;
        });
        Self { address, shared, tasks: vec![accepting.abort_handle(), serving.abort_handle()] }
    }

    /// Stops the next request that matches.
    pub fn hold(&self, what: &str, when: When, matches: impl Fn(&Seen) -> bool + Send + 'static) -> Held {
        let (caught, catching) = oneshot::channel();
        let (go, going) = oneshot::channel();
        let rule = Rule { when, matches: Box::new(matches), caught, go: going };
        self.shared.rules.lock().unwrap().push(rule);
        Held { what: what.to_owned(), caught: Some(catching), go, peer: None }
    }

    /// What has been answered so far.
    pub fn answered(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// From now on nothing passes to or from this address: no packet is answered, and no connection ends.
    pub fn cut(&self, peer: IpAddr) {
        self.shared.cut.send_modify(|cut| cut.extend([peer]));
    }

    /// From now on every request is answered with 503, or none any more.
    pub fn fail(&self, fails: bool) {
        self.shared.fails.store(fails, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub fn mend(&self) {
        self.shared.cut.send_modify(BTreeSet::clear);
    }
}

impl Shared {
    async fn reachable(&self, peer: IpAddr) {
        let mut cut = self.cut.subscribe();
        // The sender is this value's own.
        let _ = cut.wait_for(|cut| !cut.contains(&peer)).await;
    }

    fn rule(&self, seen: &Seen) -> Option<Rule> {
        let mut rules = self.rules.lock().unwrap();
        let position = rules.iter().position(|rule| (rule.matches)(seen))?;
        Some(rules.remove(position))
    }
}

async fn pass(
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    State(shared): State<Arc<Shared>>,
    request: Incoming,
) -> Response {
    shared.reachable(peer).await;
    if shared.fails.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST_BODY).await else { return broken() };
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let mut seen = Seen {
        peer,
        method: parts.method.clone(),
        path,
        headers: parts.headers.clone(),
        body: body.clone(),
        status: None,
    };
    let rule = shared.rule(&seen);
    let (mut before, mut after, mut late) = (None, None, None);
    match rule {
        Some(rule) if rule.when == When::Before => before = Some(rule),
        Some(rule) if rule.when == When::Late => late = Some(rule),
        other => after = other,
    }
    if let Some(rule) = before.take() {
        let _ = rule.caught.send(seen.clone());
        if rule.go.await.is_err() {
            return broken();
        }
    }
    let go = late.map(|rule| {
        let _ = rule.caught.send(seen.clone());
        rule.go
    });
    let is_late = go.is_some();
    // The Host header goes on as it came: a registry makes the addresses of its uploads from it.
    let sent =
        shared.http.request(parts.method, format!("{}{}", shared.url, seen.path)).headers(parts.headers).body(body);
    // Not ended by its client's end: once begun, it is done, and what was answered is noted.
    let answered = {
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Some(go) = go {
                go.await.ok()?;
            }
            let answer = sent.send().await.ok()?;
            seen.status = Some(answer.status());
            shared.seen.lock().unwrap().push(seen.clone());
            Some((answer, seen))
        })
    };
    if is_late {
        return broken();
    }
    let Ok(Some((answer, seen))) = answered.await else { return broken() };
    if let Some(rule) = after.take() {
        let _ = rule.caught.send(seen);
        if rule.go.await.is_err() {
            return broken();
        }
    }
    shared.reachable(peer).await;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = answer.headers().clone();
        headers.remove("transfer-encoding");
        headers.remove("connection");
    }
    let chunks = answer.bytes_stream().then(move |chunk| {
        let shared = shared.clone();
        async move {
            shared.reachable(peer).await;
            chunk
        }
    });
    response.body(Body::from_stream(chunks)).unwrap_or_else(|_| broken())
}

/// A body that fails at once, which ends the connection.
fn broken() -> Response {
    let body = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("dropped by the test")) });
    (StatusCode::BAD_GATEWAY, [("content-length", "1")], Body::from_stream(body)).into_response()
}

fn acceptor(address: IpAddr, identity: Identity) -> TlsAcceptor {
    let (certificate, key) = match identity {
        Identity::Own => {
            let params = CertificateParams::new([address.to_string()]).expect("an address is a subject");
            let key = KeyPair::generate().expect("a key can be made");
            (params.signed_by(&key, &ISSUER).expect("a certificate can be signed").pem(), key.serialize_pem())
        }
        Identity::Given(certificate, key) => (certificate, key),
    };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("the key is PEM");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.expect("the certificate is PEM"), key)
        .expect("certificate and key are a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// Accepts, with a task for each handshake: one that hangs keeps nobody waiting.
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    sender: mpsc::Sender<(TlsStream<TcpStream>, IpAddr)>,
) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, shared, sender) = (acceptor.clone(), shared.clone(), sender.clone());
        tokio::spawn(async move {
            shared.reachable(peer.ip()).await;
            let _ = stream.set_nodelay(true);
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ = sender.send((stream, peer.ip())).await;
            }
        });
    }
}

/// Connections after their handshake, as axum takes them.
struct Connections {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, IpAddr)>,
    address: SocketAddr,
}

impl axum::serve::Listener for Connections {
    type Io = TlsStream<TcpStream>;
    type Addr = IpAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // Nobody accepts any more: the proxy has ended.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.address.ip())
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer(IpAddr);

impl axum::extract::connect_info::Connected<IncomingStream<'_, Connections>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
        Self(*stream.remote_addr())
    }
}
