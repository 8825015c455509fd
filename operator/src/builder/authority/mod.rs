//! The certificate authority between operator and agents.
//!
//! It is in one Secret of the operator's namespace: the CA that signs, and while CAs change its successor or its
//! predecessor too, so that a restarted operator and another replica go on from there. Each builder has a server
//! certificate for the pod's stable name, never for its address; an agent lets in only the client name of the operator.

pub mod certificate;
pub mod renewal;
pub mod rotation;
mod state;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::ExtendedKeyUsagePurpose;

pub use self::certificate::Identity;
use self::certificate::{Facts, sign};
use self::rotation::{Dates, Step};
use self::state::Content;

/// The Secret with the authority's certificates and keys.
const SECRET: &str = "kiln-ca";
/// The name in the operator's client certificate: the only one that agents let in.
const CLIENT: &str = "kiln-operator";

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Secret could not be read or written.
    #[error("{verb} the Secret {namespace}/{SECRET}: {source}")]
    Api {
        /// What was attempted.
        verb: &'static str,
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
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    /// A builder's certificate could not be read or written.
    #[error("{verb} the Secret {secret} of a builder: {source}")]
    Builder {
        /// What was attempted.
        verb: &'static str,
        /// The Secret's name.
        secret: String,
        /// What the API server said.
        source: kube::Error,
    },
}

/// What is known of the certificate in a builder's Secret.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Issued {
    /// Its dates and who signed it.
    certificate: Facts,
    /// The CAs that the builder trusts, in PEM.
    trust: String,
}

/// The certificates as they are now.
pub struct Certificates {
    content: Content,
    signing: Facts,
    next: Option<Facts>,
    former: Option<Facts>,
    version: String,
    lifetime: Duration,
    client: Identity,
    client_dates: Dates,
}

impl Certificates {
    fn new(content: Content, version: String, lifetime: Duration, now: Timestamp) -> Result<Self, certificate::Error> {
        let signing = certificate::read(&content.signing.certificate)?;
        let next = content.next.as_ref().map(|next| certificate::read(&next.certificate)).transpose()?;
        let former = content.former.as_deref().map(certificate::read).transpose()?;
        let client_dates = Dates::of_certificate(now, lifetime, signing.dates);
        let client = sign(&content.signing, CLIENT, ExtendedKeyUsagePurpose::ClientAuth, client_dates)?;
        Ok(Self { content, signing, next, former, version, lifetime, client, client_dates })
    }

    /// Every CA to be trusted, in PEM.
    #[must_use]
    pub fn trust(&self) -> String {
        self.content.trust()
    }

    /// What the operator shows to agents.
    #[must_use]
    pub fn client(&self) -> &Identity {
        &self.client
    }

    /// A new server certificate for a builder.
    pub fn server(&self, builder: &str, now: Timestamp) -> Result<Identity, Error> {
        let dates = Dates::of_certificate(now, self.lifetime, self.signing.dates);
        Ok(sign(&self.content.signing, builder, ExtendedKeyUsagePurpose::ServerAuth, dates)?)
    }

    fn authorities(&self) -> rotation::Authorities {
        rotation::Authorities {
            signing: self.signing.dates,
            next: self.next.as_ref().map(|facts| facts.dates),
            former: self.former.as_ref().map(|facts| facts.dates),
            distributed_at: self.content.distributed_at,
        }
    }

    /// When what a builder has is to be replaced. `None`: never by time alone.
    fn replaced_at(&self, issued: &Issued, now: Timestamp) -> Option<Timestamp> {
        if issued.trust != self.trust() || issued.certificate.signed_by != self.signing.key {
            return Some(now);
        }
        issued.certificate.dates.renewed_at(self.lifetime, self.signing.dates)
    }
}

/// Signs the certificates of builders and of the operator.
pub struct Authority {
    api: Api<Secret>,
    namespace: String,
    lifetime: Duration,
    current: RwLock<Arc<Certificates>>,
    issued: Mutex<HashMap<String, Issued>>,
}

impl Authority {
    /// Reads the authority from its Secret, or makes both. `lifetime`: how long a certificate is valid.
    pub async fn load(client: &Client, namespace: &str, lifetime: Duration) -> Result<Self, Error> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let failed = |verb| move |source| Error::Api { verb, namespace: namespace.to_owned(), source };
        let now = Timestamp::now();
        let secret = match api.get_opt(SECRET).await.map_err(failed("reading"))? {
            Some(secret) => secret,
            None => match api.create(&PostParams::default(), &state::secret(now, lifetime)?).await {
                Ok(secret) => secret,
                // Another replica was faster.
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    api.get(SECRET).await.map_err(failed("reading"))?
                }
                Err(error) => return Err(failed("making")(error)),
            },
        };
        let current = certificates(&secret, namespace, lifetime, now)?;
        Ok(Self {
            api,
            namespace: namespace.to_owned(),
            lifetime,
            current: RwLock::new(Arc::new(current)),
            issued: Mutex::default(),
        })
    }

    /// One that is in no Secret.
    #[cfg(test)]
    pub(crate) fn unsaved() -> Self {
        let (now, lifetime) = (Timestamp::now(), Duration::from_hours(1));
        let secret = state::secret(now, lifetime).unwrap();
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let current = certificates(&secret, "test", lifetime, now).unwrap();
        Self {
            api: Api::namespaced(client, "test"),
            namespace: "test".to_owned(),
            lifetime,
            current: RwLock::new(Arc::new(current)),
            issued: Mutex::default(),
        }
    }

    /// The certificates as they are now.
    #[must_use]
    pub fn current(&self) -> Arc<Certificates> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A builder's Secret has been written, or is gone: what is known of it no longer counts.
    pub fn forget(&self, builder: &str) {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).remove(builder);
    }

    /// Whether the certificate of this builder is known, and so looked after.
    #[must_use]
    pub fn knows(&self, builder: &str) -> bool {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).contains_key(builder)
    }

    /// Takes a step, in the Secret first. Where somebody else has changed the Secret, what is there now counts.
    async fn step(&self, step: Step, now: Timestamp) -> Result<(), Error> {
        let current = self.current();
        let content = current.content.after(step, now, self.lifetime)?;
        let patch = Patch::Merge(content.patch(&current.version));
        let failed = |verb| move |source| Error::Api { verb, namespace: self.namespace.clone(), source };
        let secret = match self.api.patch(SECRET, &PatchParams::default(), &patch).await {
            Ok(secret) => secret,
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                self.api.get(SECRET).await.map_err(failed("reading"))?
            }
            Err(error) => return Err(failed("writing")(error)),
        };
        self.replace(certificates(&secret, &self.namespace, self.lifetime, now)?);
        Ok(())
    }

    /// Makes the operator's own certificate anew if its time has come, and says when that is the next time.
    fn renew_client(&self, now: Timestamp) -> Result<Option<Timestamp>, Error> {
        let renewed_at = |of: &Certificates| of.client_dates.renewed_at(self.lifetime, of.signing.dates);
        let current = self.current();
        if renewed_at(&current).is_some_and(|due| due <= now) {
            self.replace(Certificates::new(current.content.clone(), current.version.clone(), self.lifetime, now)?);
        }
        Ok(renewed_at(&self.current()))
    }

    fn replace(&self, certificates: Certificates) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificates);
    }
}

fn certificates(secret: &Secret, namespace: &str, lifetime: Duration, now: Timestamp) -> Result<Certificates, Error> {
    let wrong = |detail: String| Error::Content { namespace: namespace.to_owned(), detail };
    let version = secret.metadata.resource_version.clone().unwrap_or_default();
    let content = Content::read(secret).map_err(wrong)?;
    Certificates::new(content, version, lifetime, now).map_err(|error| wrong(error.to_string()))
}
