//! An https server of a test's own that does what no registry and no Git server should. It listens where both the
//! operator and builders reach it, with a certificate of a CA that nobody trusts unless told to, and keeps who asked for
//! what, with which credential.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use futures::{StreamExt as _, stream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Cluster;

/// The largest body that a server reads before it answers.
const LARGEST_BODY: usize = 64 << 20;

/// One CA for all servers of this program: each CA that a build names is another configuration of its builder.
static ISSUER: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Kiln tests");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key can be made")).expect("a CA can be made")
});

/// The CA of all these servers, in PEM.
#[must_use]
pub fn ca() -> String {
    ISSUER.pem()
}

/// What somebody asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// All headers.
    pub headers: HeaderMap,
    /// The body of a PUT, POST or PATCH.
    pub body: Bytes,
}

impl Asked {
    /// A header's value; empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether a credential came with it.
    #[must_use]
    pub fn has_credential(&self) -> bool {
        self.headers.contains_key("authorization") || self.headers.contains_key("cookie")
    }

    /// Whether the operator asks, rather than a builder.
    #[must_use]
    pub fn by_operator(&self) -> bool {
        self.header("user-agent").starts_with("kiln/")
    }
}

/// A server. It ends with the value.
pub struct HostileServer {
    /// `address:port`.
    pub host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl HostileServer {
    /// Starts a server that gives these answers; where there is none, the connection is kept and nothing is ever sent.
    pub async fn start(cluster: &Cluster, answer: impl Fn(&Asked) -> Option<Response> + Send + Sync + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (noted, answer) = (Arc::clone(&asked), Arc::new(answer));
        let router = Router::new().fallback(move |request: Request| {
            let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
                let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers, body };
                let reply = answer(&asked);
                noted.lock().expect("no test panics while it holds this").push(asked);
                match reply {
                    Some(reply) => reply,
                    None => std::future::pending().await,
                }
            }
        });
        let mut server = Self::serve(cluster, router).await;
        server.asked = asked;
        server
    }

    /// Starts a server of these routes; what is asked for is not kept.
    pub async fn serve(cluster: &Cluster, router: Router) -> Self {
        let (listener, address) = listen(cluster).await;
        let acceptor = TlsAcceptor::from(Arc::new(tls(&address)));
        let (ready, connections) = mpsc::channel(64);
        let accepting = tokio::spawn(async move {
            // A client that never ends its handshake does not keep others waiting.
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, ready) = (acceptor.clone(), ready.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = ready.send(stream).await;
                    }
                });
            }
        });
        let serving = tokio::spawn(async move {
            let served = axum::serve(Handshaken(connections), router).await;
            served.expect("a server goes on until it is stopped");
        });
        Self { host: address, asked: Arc::default(), tasks: vec![accepting, serving] }
    }

    /// Starts a server that takes connections and says nothing, not even TLS.
    pub async fn silent(cluster: &Cluster) -> Self {
        let (listener, host) = listen(cluster).await;
        let accepting = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                kept.push(stream);
            }
        });
        Self { host, asked: Arc::default(), tasks: vec![accepting] }
    }

    /// What was asked for until now.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics while it holds this").clone()
    }
}

impl Drop for HostileServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// An answer.
#[must_use]
pub fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in headers {
        let name = name.parse::<axum::http::HeaderName>().expect("a header's name");
        response.headers_mut().append(name, value.parse().expect("a header's value"));
    }
    response
}

/// A body that sends this again and again, as fast as it is taken.
pub fn endless(chunk: impl Into<Bytes>) -> Body {
    let chunk = chunk.into();
    Body::from_stream(stream::repeat_with(move || Ok::<_, std::convert::Infallible>(chunk.clone())))
}

/// A body that begins with this, and then sends one byte a second.
pub fn trickle(begin: impl Into<Bytes>) -> Body {
    let begin = stream::once(std::future::ready(begin.into()));
    let rest = stream::repeat(()).then(async |()| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Bytes::from_static(b" ")
    });
    Body::from_stream(begin.chain(rest).map(Ok::<_, std::convert::Infallible>))
}

/// Listens where operator and builders reach it; `address:port`.
pub(crate) async fn listen(cluster: &Cluster) -> (TcpListener, String) {
    let address = std::env::var("KILN_TEST_ADDRESS").unwrap_or_else(|_| cluster.registry_host().to_owned());
    let listener = TcpListener::bind((address.as_str(), 0)).await.unwrap_or_else(|error| {
        panic!(
            "cannot listen at {address}: {error}; on a cluster of your own, set KILN_TEST_ADDRESS to an address of this machine that Pods reach"
        )
    });
    let address = listener.local_addr().expect("a listener has an address").to_string();
    (listener, address)
}

fn tls(address: &str) -> rustls::ServerConfig {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let key = KeyPair::generate().expect("a key can be made");
    let params = CertificateParams::new([host.to_owned()]).expect("an address is a subject");
    let certificate = params.signed_by(&key, &ISSUER).expect("a certificate can be made");
    let key = key.serialize_der().try_into().expect("the key is one");
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the default versions are supported")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("key and certificate fit")
}

/// Connections whose handshake is done.
struct Handshaken(mpsc::Receiver<TlsStream<TcpStream>>);

impl axum::serve::Listener for Handshaken {
    type Io = TlsStream<TcpStream>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(())
    }
}
