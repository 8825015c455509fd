//! Whom a client trusts: the system's CAs, the CAs of a bundle, and the bundle's certificates as servers' own.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

/// What is wrong with a CA bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not PEM.
    #[error("the CA bundle cannot be read as PEM: {0}; it must hold blocks of -----BEGIN CERTIFICATE-----")]
    Pem(String),
    /// PEM, but no certificate in it.
    #[error("the CA bundle holds no certificate; it must hold blocks of -----BEGIN CERTIFICATE-----")]
    Empty,
    /// A block is no certificate.
    #[error("certificate {number} of the CA bundle cannot be read: {cause}")]
    Certificate {
        /// Which one, from 1.
        number: usize,
        /// What the parser says.
        cause: String,
    },
    /// The client could not be made from it.
    #[error("no HTTPS client could be made: {0}")]
    Client(String),
}

/// The system's CAs, read once: it takes milliseconds and they change with the image only.
static SYSTEM_ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "some of the system's CA certificates could not be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    roots
});

pub(super) fn client_config(ca_pem: Option<&[u8]>) -> Result<ClientConfig, BundleError> {
    let mut roots = SYSTEM_ROOTS.clone();
    let mut pinned = HashSet::new();
    if let Some(pem) = ca_pem {
        for (i, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let certificate = certificate.map_err(|e| BundleError::Pem(e.to_string()))?;
            roots
                .add(certificate.clone())
                .map_err(|e| BundleError::Certificate { number: i + 1, cause: e.to_string() })?;
            pinned.insert(certificate);
        }
        if pinned.is_empty() {
            return Err(BundleError::Empty);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { roots, pinned, algorithms: provider.signature_verification_algorithms };
    config(provider, verifier).map_err(|e| BundleError::Client(e.to_string()))
}

fn config(provider: Arc<CryptoProvider>, verifier: Verifier) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// The usual verification (RFC 5280 paths, RFC 6125 names); in addition, a certificate that is itself in the bundle
/// is accepted as a server's own, for a self-signed one is often marked as a CA, which the usual way refuses.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    pinned: HashSet<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = match ParsedCertificate::try_from(end_entity) {
            Ok(certificate) => certificate,
            // Without any extension, as `openssl x509 -req` makes them, and so without subject alternative names.
            Err(_) if is_version_1(end_entity) => {
                let expected = server_name.to_owned();
                return Err(CertificateError::NotValidForNameContext { expected, presented: Vec::new() }.into());
            }
            Err(error) => return Err(error),
        };
        if self.pinned.contains(end_entity) {
            verify_validity(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                self.algorithms.all,
            )
            .map_err(|error| match error {
                // Made with `openssl req -x509`, it says that it is a CA, which none that a server shows may be.
                rustls::Error::InvalidCertificate(CertificateError::Other(_)) if is_self_signed(end_entity) => {
                    CertificateError::UnknownIssuer.into()
                }
                error => error,
            })?;
        }
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.version() == X509Version::V1)
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

fn verify_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    fn self_signed(ca: bool) -> rcgen::Certificate {
        let mut params = CertificateParams::new(vec!["registry.example".to_owned()]).unwrap();
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn verifier(bundle: &[&rcgen::Certificate]) -> Verifier {
        let mut roots = RootCertStore::empty();
        let mut pinned = HashSet::new();
        for certificate in bundle {
            roots.add(certificate.der().clone()).unwrap();
            pinned.insert(certificate.der().clone());
        }
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        Verifier { roots, pinned, algorithms }
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
    }

    fn verify(
        v: &Verifier,
        certificate: &rcgen::Certificate,
        name: &'static str,
        at: UnixTime,
    ) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(name).unwrap();
        v.verify_server_cert(certificate.der(), &[], &name, &[], at).map(|_| ())
    }

    #[test]
    fn accepts_a_pinned_certificate_marked_as_ca_or_not() {
        for ca in [true, false] {
            let certificate = self_signed(ca);
            let v = verifier(&[&certificate]);
            verify(&v, &certificate, "registry.example", now()).unwrap();
            let wrong_name = verify(&v, &certificate, "other.example", now()).unwrap_err();
            assert!(matches!(
                wrong_name,
                rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
            ));
            let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(1));
            assert_eq!(
                verify(&v, &certificate, "registry.example", long_ago),
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet))
            );
        }
    }

    /// Made with `openssl x509 -req` without extensions: version 1, and a common name only.
    #[test]
    fn a_certificate_of_version_1_has_no_names() {
        let pem = include_bytes!("testdata/version-1.crt");
        let certificate = CertificateDer::from_pem_slice(pem).unwrap();
        let roots = RootCertStore::empty();
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let v = Verifier { roots, pinned: HashSet::from([certificate.clone()]), algorithms };
        let name = ServerName::try_from("registry.example").unwrap();
        let refused = v.verify_server_cert(&certificate, &[], &name, &[], now()).unwrap_err();
        assert!(matches!(
            refused,
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })
                if presented.is_empty()
        ));
        assert!(client_config(Some(pem)).is_ok(), "as a CA it may be named");
    }

    #[test]
    fn refuses_what_is_not_in_the_bundle() {
        let v = verifier(&[&self_signed(true)]);
        // rcgen gives all certificates the same subject, so this one's issuer seems known.
        assert_eq!(
            verify(&v, &self_signed(false), "registry.example", now()),
            Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
        );
    }

    #[test]
    fn accepts_a_certificate_of_a_ca_in_the_bundle() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = CertificateParams::default();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca_params, ca_key);
        let leaf = CertificateParams::new(vec!["registry.example".to_owned()])
            .unwrap()
            .signed_by(&KeyPair::generate().unwrap(), &issuer)
            .unwrap();
        verify(&verifier(&[&ca]), &leaf, "registry.example", now()).unwrap();
    }

    #[test]
    fn says_what_is_wrong_with_a_bundle() {
        assert_eq!(client_config(Some(b"")).unwrap_err(), BundleError::Empty);
        assert_eq!(client_config(Some(b"hello")).unwrap_err(), BundleError::Empty);
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(client_config(Some(broken)), Err(BundleError::Certificate { number: 1, .. })));
        assert!(client_config(Some(self_signed(false).pem().as_bytes())).is_ok());
    }
}
