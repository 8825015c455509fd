//! Mutual TLS: only a client whose certificate is signed by the builder's CA and holds the operator's name is served.
//! The material is read again whenever its files change, so rotation needs no restart.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// How long a client may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the TLS material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there or cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not PEM of the right kind.
    #[error("{path} does not hold {what} as PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// Key and certificate do not belong together, or a CA is not one.
    #[error("the certificates in {path} cannot be used")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The client's name is not a DNS name.
    #[error("the client name {0:?} is not a DNS name")]
    ClientName(String),
}

/// The files' bytes: key material, so without `Debug`.
#[derive(PartialEq, Eq)]
struct Material {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
}

impl Material {
    fn read(directory: &Path) -> Result<Self, TlsError> {
        let read = |name| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        };
        Ok(Self { certificate: read("tls.crt")?, key: read("tls.key")?, authorities: read("ca.crt")? })
    }
}

/// The server's side of TLS, current with its directory.
pub struct Tls {
    directory: PathBuf,
    client_name: ServerName<'static>,
    current: Mutex<(Material, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads `tls.crt`, `tls.key` and `ca.crt` from `directory`; clients must be called `client_name`.
    pub fn load(directory: &Path, client_name: &str) -> Result<Self, TlsError> {
        let client_name =
            ServerName::try_from(client_name.to_owned()).map_err(|_| TlsError::ClientName(client_name.to_owned()))?;
        let material = Material::read(directory)?;
        let config = server_config(directory, &material, &client_name)?;
        Ok(Self { directory: directory.to_owned(), client_name, current: Mutex::new((material, config)) })
    }

    /// The configuration for the next connection. Material that cannot be used, such as a half-written one, leaves
    /// the former in place.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match Material::read(&self.directory) {
            Ok(material) if material == current.0 => {}
            Ok(material) => match server_config(&self.directory, &material, &self.client_name) {
                Ok(config) => {
                    tracing::info!("new TLS certificates are in use");
                    *current = (material, config);
                }
                Err(error) => {
                    tracing::warn!(
                        error = crate::chain(&error),
                        "new TLS certificates cannot be used; the former stay"
                    );
                }
            },
            Err(error) => {
                tracing::warn!(error = crate::chain(&error), "TLS certificates cannot be read; the former stay");
            }
        }
        Arc::clone(&current.1)
    }

    /// Accepts connections and hands out those whose client has proved its name. A failed or slow handshake holds up
    /// no other.
    #[must_use]
    pub fn incoming(self: Arc<Self>, listener: TcpListener) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
        let (ready, incoming) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let (stream, peer) = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            // Out of file descriptors, mostly: others close some in a moment.
                            tracing::warn!(%error, "cannot accept a connection");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    },
                    () = ready.closed() => return,
                };
                let (tls, ready) = (Arc::clone(&self), ready.clone());
                tokio::spawn(async move {
                    if let Some(stream) = tls.handshake(stream, peer).await {
                        let _ = ready.send(Ok(stream)).await;
                    }
                });
            }
        });
        ReceiverStream::new(incoming)
    }

    async fn handshake(&self, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let _ = stream.set_nodelay(true);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(self.config()).accept(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            // Port scans and probes: no bytes at all.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::debug!(%peer, %error, "no TLS handshake");
            }
            Ok(Err(error)) => tracing::warn!(%peer, %error, "a client was refused"),
            Err(_) => tracing::warn!(%peer, "a client was too slow for its TLS handshake"),
        }
        None
    }
}

fn server_config(
    directory: &Path,
    material: &Material,
    client_name: &ServerName<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |file: &str, what| {
        let path = directory.join(file);
        move |source| TlsError::Pem { path: path.clone(), what, source }
    };
    let unusable = |source| TlsError::Unusable { path: directory.to_owned(), source };
    let chain = CertificateDer::pem_slice_iter(&material.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem("tls.crt", "certificates"))?;
    let key = PrivateKeyDer::from_pem_slice(&material.key).map_err(pem("tls.key", "a private key"))?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&material.authorities) {
        roots.add(authority.map_err(pem("ca.crt", "certificates"))?).map_err(unusable)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chained = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unusable(rustls::Error::General(error.to_string())))?;
    let verifier = Arc::new(NamedClientVerifier { chained, name: client_name.clone() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Wants a certificate that chains to a CA and holds a DNS name.
#[derive(Debug)]
struct NamedClientVerifier {
    chained: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for NamedClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chained.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chained.verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chained.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chained.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chained.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ClientConfig;
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::TlsConnector;
    use tokio_stream::StreamExt as _;

    use super::*;

    struct Authority(Issuer<'static, KeyPair>, String);

    fn authority() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority(Issuer::new(params, key), pem)
    }

    impl Authority {
        /// Certificate and key for `name`, as PEM.
        fn issue(&self, name: &str) -> (String, String) {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
            (certificate.pem(), key.serialize_pem())
        }

        fn write(&self, directory: &Path, trusted: &str) {
            let (certificate, key) = self.issue("builder-0");
            for (name, pem) in [("tls.crt", certificate.as_str()), ("tls.key", &key), ("ca.crt", trusted)] {
                fs::write(directory.join(name), pem).unwrap();
            }
        }

        /// Whether the server at `address` serves a client called `name`.
        async fn is_served(&self, address: SocketAddr, name: &str) -> bool {
            let (certificate, key) = self.issue(name);
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.1.as_bytes()).unwrap()).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let Ok(mut stream) =
                TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("builder-0").unwrap(), stream).await
            else {
                return false;
            };
            // With TLS 1.3 a client learns only then that it was refused. A served one is hung up on by the test's end.
            matches!(stream.read(&mut [0]).await, Ok(0))
        }
    }

    #[tokio::test]
    async fn serves_the_operator_alone_and_follows_new_authorities() {
        let (old, new) = (authority(), authority());
        let directory = tempfile::tempdir().unwrap();
        old.write(directory.path(), &old.1);
        let tls = Arc::new(Tls::load(directory.path(), "kiln-operator").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = tls.incoming(listener);
        tokio::spawn(async move {
            while let Some(Ok(mut stream)) = incoming.next().await {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
            }
        });

        assert!(old.is_served(address, "kiln-operator").await);
        assert!(!old.is_served(address, "kiln-builder").await);
        assert!(!new.is_served(address, "kiln-operator").await);

        new.write(directory.path(), &format!("{}{}", old.1, new.1));
        assert!(new.is_served(address, "kiln-operator").await);
        assert!(!new.is_served(address, "kiln-builder").await);

        // Half-written files change nothing.
        fs::write(directory.path().join("tls.crt"), "-----BEGIN CERT").unwrap();
        assert!(new.is_served(address, "kiln-operator").await);
    }
}
