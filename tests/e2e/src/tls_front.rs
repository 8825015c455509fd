//! The registry or the Git server behind another certificate: a front that ends TLS with a certificate of the test's own
//! and passes everything on, so that what is trusted is all that differs.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Cluster;
use crate::hostile_server::listen;

/// A front. It ends with the value.
pub struct TlsFront {
    /// `address:port`.
    pub host: String,
    task: JoinHandle<()>,
}

impl TlsFront {
    /// Before the registry. `identity` makes certificate and key, in PEM, for the front's address without its port.
    pub async fn before_registry(cluster: &Cluster, identity: impl FnOnce(&str) -> (String, String)) -> Self {
        Self::start(cluster, &cluster.registry, &cluster.registry_ca, identity).await
    }

    /// Before the Git server.
    pub async fn before_git(cluster: &Cluster, identity: impl FnOnce(&str) -> (String, String)) -> Self {
        let host = cluster.git.trim_start_matches("https://").split('/').next().unwrap_or_default();
        Self::start(cluster, host, &cluster.git_ca, identity).await
    }

    async fn start(
        cluster: &Cluster,
        upstream: &str,
        upstream_ca: &str,
        identity: impl FnOnce(&str) -> (String, String),
    ) -> Self {
        let (listener, host) = listen(cluster).await;
        let (certificate, key) = identity(host.rsplit_once(':').map_or(&host, |(address, _)| address));
        let acceptor = TlsAcceptor::from(Arc::new(server(&certificate, &key)));
        let connector = TlsConnector::from(Arc::new(client(upstream_ca)));
        let task = tokio::spawn(serve(listener, acceptor, connector, upstream.to_owned()));
        Self { host, task }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, connector: TlsConnector, upstream: String) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, connector, upstream) = (acceptor.clone(), connector.clone(), upstream.clone());
        tokio::spawn(async move {
            // Who does not trust the certificate hangs up here.
            let mut from = acceptor.accept(stream).await?;
            let name = upstream.rsplit_once(':').map_or(upstream.as_str(), |(host, _)| host).to_owned();
            let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
            let mut to = connector.connect(name, TcpStream::connect(&upstream).await?).await?;
            tokio::io::copy_bidirectional(&mut from, &mut to).await
        });
    }
}

fn server(certificate: &str, key: &str) -> ServerConfig {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the default versions are supported")
        .with_no_client_auth()
        .with_single_cert(
            chain.expect("a certificate in PEM"),
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key in PEM"),
        )
        .expect("key and certificate fit")
}

fn client(ca: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.expect("a CA in PEM")).expect("a CA");
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the default versions are supported")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
