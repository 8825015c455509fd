//! The certificate authority between operator and agents.
//!
//! Its key is in one Secret of the operator's namespace, made once. Each builder has a server certificate for the pod's
//! stable name, never for its address; an agent lets in only the client name of the operator.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// The Secret with the authority's certificate and key.
const SECRET: &str = "kiln-ca";
/// The name in the operator's client certificate: the only one that agents let in.
const CLIENT: &str = "kiln-operator";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Secret could not be read or made.
    #[error("reading or making the Secret {namespace}/{SECRET}: {source}")]
    Api {
        /// The operator's namespace.
        namespace: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// The Secret does not hold what it should.
    #[error(
        "the Secret {namespace}/{SECRET} does not hold a CA certificate and its key: delete it and restart the operator, which makes a new one ({detail})"
    )]
    Content {
        /// The operator's namespace.
        namespace: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A certificate could not be made.
    #[error("making a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Signs the certificates of builders and of the operator.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    client: Identity,
}

impl Authority {
    /// Reads the authority from its Secret, or makes both.
    pub async fn load(client: &Client, namespace: &str) -> Result<Self, Error> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let failed = |source| Error::Api { namespace: namespace.to_owned(), source };
        let secret = match api.get_opt(SECRET).await.map_err(failed)? {
            Some(secret) => secret,
            None => match api.create(&PostParams::default(), &make_secret()?).await {
                Ok(secret) => secret,
                // Another replica was faster.
                Err(kube::Error::Api(status)) if status.is_already_exists() => api.get(SECRET).await.map_err(failed)?,
                Err(error) => return Err(failed(error)),
            },
        };
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).unwrap_or_default()
        };
        let content =
            |error: rcgen::Error| Error::Content { namespace: namespace.to_owned(), detail: error.to_string() };
        Self::new(text("tls.crt"), &text("tls.key")).map_err(content)
    }

    fn new(certificate: String, key: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(key)?)?;
        let client = sign(&issuer, CLIENT, ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(Self { certificate, issuer, client })
    }

    /// The authority's own certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What the operator shows to agents.
    #[must_use]
    pub fn client(&self) -> &Identity {
        &self.client
    }

    /// A new server certificate for a builder.
    pub fn server(&self, builder: &str) -> Result<Identity, Error> {
        Ok(sign(&self.issuer, builder, ExtendedKeyUsagePurpose::ServerAuth)?)
    }
}

fn make_secret() -> Result<Secret, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = name("Kiln builders");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, Duration::days(3650));
    let certificate = params.self_signed(&key)?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "kiln".to_owned())].into()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            [
                ("tls.crt".to_owned(), ByteString(certificate.pem().into_bytes())),
                ("tls.key".to_owned(), ByteString(key.serialize_pem().into_bytes())),
            ]
            .into(),
        ),
        ..Secret::default()
    })
}

fn sign(
    issuer: &Issuer<'static, KeyPair>,
    host: &str,
    usage: ExtendedKeyUsagePurpose,
) -> Result<Identity, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = name(host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, Duration::days(365));
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // A common name has at most 64 characters; what counts is the alternative name.
    name.push(DnType::CommonName, text.chars().take(64).collect::<String>());
    name
}

fn valid(params: &mut CertificateParams, how_long: Duration) {
    let now = OffsetDateTime::now_utc();
    // An hour back: the clocks of two nodes are never the same.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + how_long;
}
