//! Reads what specs name: Secrets, CA bundles and pools. Each by a GET of its own, for Kiln lists and watches no Secrets.

mod named;
mod registry;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kiln_crds::image_build::GitSource;
use kiln_crds::image_build_run::SecretVersion;
use kiln_crds::{BuilderPool, CaRef, CaRefKind, GitUrl, ImageBuildSpec};
use kube::{Api, Client, ResourceExt};

use crate::context::Context;
use crate::git::{self, GitCredential};
use crate::outage::Outage;
use crate::reason::{Reason, is_credential};
use kiln_registry::http_client::{AddressPolicy, FailureClass, HttpClient};
use kiln_registry::room::Room;

pub use self::named::told;
pub use self::registry::{RegistryAccess, Target, registry_access};

/// How many Secrets and `ConfigMap`s are read at once, a megabyte or more each, and how many of them for one namespace.
static READING: LazyLock<Room> = LazyLock::new(|| Room::new(8, 2));
/// The same of what pools name: it is read for everybody.
static OF_POOLS: LazyLock<Room> = LazyLock::new(|| Room::new(4, 4));
/// The most bytes of the CA bundles that a spec names together: what all the world's CAs take is a quarter of that.
const MOST_BUNDLES: usize = 1 << 20;

tokio::task_local! {
    /// The CA bundles that were read for a spec.
    static BUNDLES: Bundles;
}

/// What is remembered of CA bundles while a spec is read.
#[derive(Default)]
struct Bundles {
    /// Those of its own.
    bytes: AtomicUsize,
    /// The objects that they were in, the pool's too.
    versions: Mutex<Vec<SecretVersion>>,
}

/// Reads what a spec names, with a bound on its CA bundles together.
pub async fn bounded<T>(reading: impl Future<Output = T>) -> T {
    BUNDLES.scope(Bundles::default(), reading).await
}

fn remember(version: SecretVersion) {
    // Elsewhere nobody asks for them.
    let _ = BUNDLES.try_with(|read| read.versions.lock().unwrap_or_else(PoisonError::into_inner).push(version));
}

/// The objects in which the CA bundles were that have been read within [`bounded`].
#[must_use]
pub fn bundle_versions() -> Vec<SecretVersion> {
    let versions = BUNDLES.try_with(|read| read.versions.lock().unwrap_or_else(PoisonError::into_inner).clone());
    versions.unwrap_or_default()
}

/// What keeps a build from going on, told to the user in a condition.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Fault {
    /// A stable reason.
    pub reason: Reason,
    /// What was attempted, on what, and what to mend.
    pub message: String,
    /// Who can mend it.
    pub class: FailureClass,
    /// The registry, or the field of the Git repository (`source`, `contexts/NAME`), that it is about.
    pub about: Option<String>,
    /// Where a server gave no answer, or failed.
    pub outage: Option<Box<Outage>>,
}

impl Fault {
    /// A fault that the user can mend.
    #[must_use]
    pub fn user(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class: FailureClass::User, about: None, outage: None }
    }

    /// A fault that another credential can mend.
    #[must_use]
    pub fn credential(reason: Reason, message: impl Into<String>) -> Self {
        Self { class: FailureClass::Credential, ..Self::user(reason, message) }
    }
}

/// Why something named could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user can mend it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The API server failed; trying again may help.
    #[error("reading {what}: {}", crate::refusal::words(source))]
    Api {
        /// What was read.
        what: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
}

impl From<kiln_registry::Error> for Fault {
    fn from(error: kiln_registry::Error) -> Self {
        use kiln_registry::ErrorKind as Kind;
        let reason = match error.kind() {
            Kind::Unauthorized => Reason::RegistryUnauthorized,
            Kind::Denied => Reason::PushDenied,
            Kind::NotFound | Kind::NameUnknown | Kind::NameInvalid => Reason::RepositoryInvalid,
            Kind::TagImmutable => Reason::TagImmutable,
            Kind::Quota => Reason::QuotaExceeded,
            Kind::Unsupported => Reason::MediaTypesUnsupported,
            Kind::TagContended => Reason::TagConflict,
            Kind::RateLimited | Kind::Unavailable | Kind::BlobUnknown => Reason::RegistryUnavailable,
            Kind::CertificateUntrusted | Kind::CertificateNameMismatch => Reason::RegistryCertificateUntrusted,
            Kind::AddressForbidden => Reason::AddressForbidden,
            Kind::Protocol | Kind::NotTls | Kind::Elsewhere => Reason::RegistryProtocol,
        };
        let about = Some(error.registry().to_owned());
        let is_outage = matches!(error.kind(), Kind::RateLimited | Kind::Unavailable);
        let outage = is_outage.then(|| Outage::met(error.retry_after(), error.kind() == Kind::RateLimited));
        Self { class: class(reason, error.class()), reason, message: error.to_string(), about, outage }
    }
}

impl From<git::Error> for Fault {
    fn from(error: git::Error) -> Self {
        use git::ErrorKind as Kind;
        let reason = match error.kind() {
            Kind::Unauthorized => Reason::GitUnauthorized,
            Kind::NotFound => Reason::GitNotFound,
            Kind::RefInvalid | Kind::RefNotFound => Reason::GitRefNotFound,
            Kind::RateLimited | Kind::Unavailable | Kind::Protocol | Kind::NotTls => Reason::GitUnavailable,
            Kind::CertificateUntrusted | Kind::CertificateNameMismatch => Reason::GitCertificateUntrusted,
            Kind::HostKeyUnknown => Reason::GitHostKeyUnknown,
            Kind::AddressForbidden => Reason::AddressForbidden,
        };
        // That of a context is told by whoever knows it.
        let class = class(reason, error.class());
        let is_outage = matches!(error.kind(), Kind::RateLimited | Kind::Unavailable);
        let outage = is_outage.then(|| Outage::met(error.retry_after(), error.kind() == Kind::RateLimited));
        Self { reason, message: error.to_string(), class, about: Some("source".to_owned()), outage }
    }
}

/// Who can mend what a server answered: an object that is named here may be why, such as a CA, though it is no credential.
fn class(reason: Reason, of_answer: FailureClass) -> FailureClass {
    if is_credential(reason.as_str()) { FailureClass::Credential } else { of_answer }
}

/// The data of a Secret, and the version that was read.
pub struct SecretData {
    /// The Secret's UID, which stays when its values change.
    pub uid: String,
    /// Values by key.
    pub data: BTreeMap<String, ByteString>,
    /// Which one it was.
    pub version: SecretVersion,
}

/// Reads a Secret. `field` says where it is named, for the message.
pub async fn secret(client: &Client, namespace: &str, name: &str, field: &str) -> Result<SecretData, Error> {
    secret_in(&READING, client, namespace, name, field).await
}

async fn secret_in(
    room: &Room,
    client: &Client,
    namespace: &str,
    name: &str,
    field: &str,
) -> Result<SecretData, Error> {
    find_secret_in(room, client, namespace, name).await?.ok_or_else(|| {
        let message = format!("the Secret {name}, which {field} names, is not in the namespace {namespace}: create it");
        Fault::credential(Reason::SecretNotFound, message).into()
    })
}

/// Reads a Secret, if it is there.
async fn find_secret(client: &Client, namespace: &str, name: &str) -> Result<Option<SecretData>, Error> {
    find_secret_in(&READING, client, namespace, name).await
}

async fn find_secret_in(
    room: &Room,
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<SecretData>, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = || format!("the Secret {namespace}/{name}");
    let _place = room.enter(namespace).await;
    let found = api.get_opt(name).await.map_err(|source| Error::Api { what: what(), source: Box::new(source) })?;
    Ok(found.map(|secret| SecretData {
        uid: secret.uid().unwrap_or_default(),
        version: SecretVersion {
            name: name.to_owned(),
            resource_version: secret.resource_version().unwrap_or_default(),
        },
        data: secret.data.unwrap_or_default(),
    }))
}

/// Reads one key of a Secret.
pub async fn secret_value(
    client: &Client,
    namespace: &str,
    name: &str,
    key: &str,
    field: &str,
) -> Result<(Vec<u8>, SecretVersion), Error> {
    let SecretData { data, version, .. } = secret(client, namespace, name, field).await?;
    Ok((key_of(data, namespace, name, key, field)?, version))
}

fn key_of(
    mut data: BTreeMap<String, ByteString>,
    namespace: &str,
    name: &str,
    key: &str,
    field: &str,
) -> Result<Vec<u8>, Fault> {
    let Some(value) = data.remove(key) else {
        let message = format!("the Secret {namespace}/{name} has no key {key}, which {field} names: add it");
        return Err(Fault::credential(Reason::SecretInvalid, message));
    };
    Ok(value.0)
}

/// Reads a CA bundle, in PEM.
pub async fn ca_bundle(client: &Client, namespace: &str, reference: &CaRef, field: &str) -> Result<String, Error> {
    let (text, version) = ca_bundle_in(&READING, client, namespace, reference, field).await?;
    remember(version);
    let before = BUNDLES.try_with(|read| read.bytes.fetch_add(text.len(), Ordering::Relaxed)).unwrap_or_default();
    if before + text.len() > MOST_BUNDLES {
        let message = format!(
            "with {field} the CA bundles that are named take more than {MOST_BUNDLES} bytes together: leave the CAs in \
             {namespace}/{} that are needed",
            reference.name
        );
        return Err(Fault::credential(Reason::CaInvalid, message).into());
    }
    Ok(text)
}

/// A bundle, and the version of what it is in.
async fn ca_bundle_in(
    room: &Room,
    client: &Client,
    namespace: &str,
    reference: &CaRef,
    field: &str,
) -> Result<(String, SecretVersion), Error> {
    let (name, key) = (&reference.name, reference.key());
    let (kind, text, version) = match reference.kind() {
        CaRefKind::Secret => {
            let SecretData { data, version, .. } = secret_in(room, client, namespace, name, field).await?;
            let value = key_of(data, namespace, name, key, field)?;
            ("Secret", Some(String::from_utf8_lossy(&value).into_owned()), version.resource_version)
        }
        CaRefKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let what = format!("the ConfigMap {namespace}/{name}");
            let _place = room.enter(namespace).await;
            let found = api.get_opt(name).await.map_err(|source| Error::Api { what, source: Box::new(source) })?;
            let Some(found) = found else {
                let message = format!(
                    "the ConfigMap {name}, which {field} names, is not in the namespace {namespace}: create it"
                );
                return Err(Fault::credential(Reason::CaNotFound, message).into());
            };
            let version = found.resource_version().unwrap_or_default();
            ("ConfigMap", found.data.unwrap_or_default().remove(key), version)
        }
    };
    match text {
        Some(text) if text.contains("-----BEGIN CERTIFICATE-----") => {
            Ok((text, SecretVersion { name: name_of_ca(reference), resource_version: version }))
        }
        Some(_) => {
            let message = format!(
                "the key {key} of the {kind} {namespace}/{name}, which {field} names, holds no PEM certificate: \
                 put the CA's certificate there, from -----BEGIN CERTIFICATE----- on"
            );
            Err(Fault::credential(Reason::CaInvalid, message).into())
        }
        None => {
            let message = format!("the {kind} {namespace}/{name}, which {field} names, has no key {key}: add it");
            Err(Fault::credential(Reason::CaInvalid, message).into())
        }
    }
}

/// The CA bundles that a pool names, each once.
fn named_by_pool(pool: &BuilderPool) -> Vec<&CaRef> {
    let of_registries = pool.spec.registries.iter().filter_map(|registry| registry.ca_ref.as_ref());
    let mut references: Vec<&CaRef> = pool.spec.ca_refs.iter().chain(of_registries).collect();
    references.sort();
    references.dedup();
    references
}

/// The CA bundles of a pool, in PEM.
pub async fn pool_bundles(context: &Context, pool: &BuilderPool) -> Result<Vec<String>, Error> {
    let namespace = &context.settings.builders_namespace;
    let references = named_by_pool(pool);
    let field = format!("the BuilderPool {}", pool.name_any());
    let read =
        references.into_iter().map(|reference| ca_bundle_in(&OF_POOLS, &context.client, namespace, reference, &field));
    let read = futures::future::try_join_all(read).await?.into_iter().map(|(text, version)| {
        remember(registry::in_namespace(namespace, version));
        text
    });
    Ok(read.collect())
}

/// How a Git server is reached with what an ImageBuild names.
pub struct GitAccess {
    /// The parsed URL.
    pub url: GitUrl,
    /// A client that trusts the server's CA.
    pub http: HttpClient,
    /// The credential.
    pub auth: Option<GitCredential>,
    /// The CA bundle of its own, in PEM.
    pub ca: Option<String>,
    /// The Secret that was read.
    pub version: Option<SecretVersion>,
    /// That Secret's UID; empty where there is none.
    pub uid: String,
}

/// Reads what a Git repository names. `place` is where it stands: `source`, `contexts/NAME`.
pub async fn git_access(
    context: &Context,
    namespace: &str,
    git: &GitSource,
    place: &str,
    pool: &BuilderPool,
    pool_bundles: &[String],
) -> Result<GitAccess, Error> {
    let field = named::git(place);
    let url =
        GitUrl::parse(&git.url).map_err(|error| Fault::user(Reason::GitUrlInvalid, format!("{field}.url: {error}")))?;
    let mut auth = None;
    let mut version = None;
    let mut uid = String::new();
    if let Some(reference) = &git.secret_ref {
        let read = secret(&context.client, namespace, &reference.name, &format!("{field}.secretRef")).await?;
        auth = Some(GitCredential::from_secret(&url, &read.data).map_err(|error| {
            let message = format!("the Secret {namespace}/{}, which {field}.secretRef names: {error}", reference.name);
            Fault::credential(Reason::SecretInvalid, message)
        })?);
        version = Some(read.version);
        uid = read.uid;
    }
    let (mut own, mut whose) = (None, String::new());
    if let Some(reference) = &git.ca_ref {
        let field = format!("{field}.caRef");
        own = Some(ca_bundle(&context.client, namespace, reference, &field).await?);
        whose = named::ca(reference, namespace, &field);
    }
    let http = http_client(context, pool, pool_bundles, own.as_deref(), &whose)?;
    Ok(GitAccess { url, http, auth, ca: own, version, uid })
}

/// A client that trusts these CAs. `whose` says where `own` is from.
fn http_client(
    context: &Context,
    pool: &BuilderPool,
    pool_bundles: &[String],
    own: Option<&str>,
    whose: &str,
) -> Result<HttpClient, Fault> {
    let allow_private = pool.spec.allow.as_ref().and_then(|allow| allow.private_addresses).unwrap_or(true);
    let bundle = join(pool_bundles, own);
    let bundle = (!bundle.is_empty()).then_some(bundle.as_bytes());
    context.http.get(bundle, AddressPolicy::new(allow_private).with_cluster(context.cluster.network(pool))).map_err(
        |error| {
            let whose = if own.is_some() { format!("{whose}, or ") } else { String::new() };
            let message = format!("{whose}a CA that the BuilderPool {} names: {error}", pool.name_any());
            Fault::credential(Reason::CaInvalid, message)
        },
    )
}

/// Several CA bundles as one.
pub fn join(bundles: &[String], own: Option<&str>) -> String {
    let mut text = String::new();
    for pem in bundles.iter().map(String::as_str).chain(own) {
        text.push_str(pem.trim());
        text.push('\n');
    }
    text
}

/// The Secrets that a build reads, and what its CAs are in, as they are now; one that is missing has no version.
pub async fn secret_versions(
    context: &Context,
    namespace: &str,
    spec: &ImageBuildSpec,
) -> Result<Vec<SecretVersion>, Error> {
    let (mut names, mut versions, of_cas) = futures::try_join!(
        registry::account_secrets(context, namespace),
        registry::pool_versions(context, namespace, spec),
        futures::future::try_join_all(named_cas(spec).map(|ca| ca_version(&READING, context, namespace, ca))),
    )?;
    versions.extend(of_cas);
    names.extend(named_secrets(spec).map(str::to_owned));
    names.sort();
    names.dedup();
    let read = names.iter().map(|name| async {
        let found = find_secret(&context.client, namespace, name).await?;
        Ok::<_, Error>(found.map_or_else(|| registry::missing(name), |found| found.version))
    });
    versions.extend(futures::future::try_join_all(read).await?);
    Ok(in_status(versions))
}

/// What a CA is in is called as no Secret can be, unless it is one.
fn name_of_ca(ca: &CaRef) -> String {
    match ca.kind() {
        CaRefKind::Secret => ca.name.clone(),
        CaRefKind::ConfigMap => format!("ConfigMap/{}", ca.name).chars().take(253).collect(),
    }
}

/// The version of the object that a CA is in, as it is now.
async fn ca_version(room: &Room, context: &Context, namespace: &str, ca: &CaRef) -> Result<SecretVersion, Error> {
    let resource_version = match ca.kind() {
        CaRefKind::Secret => {
            let found = find_secret_in(room, &context.client, namespace, &ca.name).await?;
            found.map(|found| found.version.resource_version)
        }
        CaRefKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
            let what = || format!("the ConfigMap {namespace}/{}", ca.name);
            let _place = room.enter(namespace).await;
            let found = api.get_metadata_opt(&ca.name).await;
            let found = found.map_err(|source| Error::Api { what: what(), source: Box::new(source) })?;
            found.and_then(|found| found.metadata.resource_version)
        }
    };
    Ok(SecretVersion { name: name_of_ca(ca), resource_version: resource_version.unwrap_or_default() })
}

/// The Git repositories that a spec names, each with its place: `source`, `contexts/NAME`.
pub fn repositories(spec: &ImageBuildSpec) -> impl Iterator<Item = (String, &GitSource)> {
    let source = spec.git().map(|git| ("source".to_owned(), git));
    let contexts = spec.contexts.iter().filter_map(|of| Some((format!("contexts/{}", of.name), of.git.as_ref()?)));
    source.into_iter().chain(contexts)
}

/// The CAs that a spec names.
fn named_cas(spec: &ImageBuildSpec) -> impl Iterator<Item = &CaRef> {
    let git = repositories(spec).filter_map(|(_, git)| git.ca_ref.as_ref());
    let http = spec.source.iter().filter_map(|source| source.http.as_ref()?.ca_ref.as_ref());
    let image = spec.image.iter().filter_map(|image| image.ca_ref.as_ref());
    let copies = spec.image.iter().flat_map(|image| &image.copies).filter_map(|copy| copy.ca_ref.as_ref());
    git.chain(http).chain(image).chain(copies)
}

/// The versions as a status has them: each once, in the order of their names, and no more than it has room for.
#[must_use]
pub fn in_status(mut versions: Vec<SecretVersion>) -> Vec<SecretVersion> {
    versions.sort_by(|a, b| a.name.cmp(&b.name));
    versions.dedup();
    versions.truncate(64);
    versions
}

/// The names of the Secrets that a spec names.
fn named_secrets(spec: &ImageBuildSpec) -> impl Iterator<Item = &str> {
    let git = repositories(spec).filter_map(|(_, git)| git.secret_ref.as_ref());
    let http = spec.source.iter().filter_map(|source| source.http.as_ref()?.secret_ref.as_ref());
    let image = spec.image.iter().filter_map(|image| image.secret_ref.as_ref());
    let copies = spec.image.iter().flat_map(|image| &image.copies).filter_map(|copy| copy.secret_ref.as_ref());
    let ssh = spec.ssh.iter().map(|ssh| &ssh.secret_ref);
    let whole = git.chain(http).chain(image).chain(copies).chain(&spec.pull_secret_refs).chain(ssh);
    whole.map(|reference| reference.name.as_str()).chain(spec.secrets.iter().map(|of| of.secret_ref.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_whose_change_may_mend_a_build() {
        let spec = serde_json::json!({
            "source": {"git": {"url": "https://g/a", "secretRef": {"name": "1"}, "caRef": {"name": "a"}}},
            "contexts": [{"name": "x", "git": {"url": "https://h/a", "secretRef": {"name": "2"}, "caRef": {"name": "b"}}}],
            "image": {
                "repository": "r/app", "secretRef": {"name": "3"}, "caRef": {"kind": "Secret", "name": "c"},
                "copies": [{"repository": "s/app", "secretRef": {"name": "4"}, "caRef": {"name": "d"}}],
            },
            "pullSecretRefs": [{"name": "5"}],
            "ssh": [{"id": "default", "secretRef": {"name": "6"}}],
            "secrets": [{"id": "t", "secretRef": {"name": "7", "key": "t"}}],
        });
        let web = serde_json::json!({
            "source": {"http": {"url": "https://w/a", "checksum": "", "secretRef": {"name": "8"}, "caRef": {"name": "e"}}},
        });
        for (spec, secrets, cas) in
            [(spec, "1 2 3 4 5 6 7", "ConfigMap/a ConfigMap/b c ConfigMap/d"), (web, "8", "ConfigMap/e")]
        {
            let spec: ImageBuildSpec = serde_json::from_value(spec).unwrap();
            let mut named: Vec<&str> = named_secrets(&spec).collect();
            named.sort_unstable();
            assert_eq!(named.join(" "), secrets);
            assert_eq!(named_cas(&spec).map(name_of_ca).collect::<Vec<_>>().join(" "), cas);
        }
    }

    #[test]
    fn a_certificate_that_is_not_trusted_waits_for_its_ca() {
        assert_eq!(class(Reason::RegistryCertificateUntrusted, FailureClass::User), FailureClass::Credential);
        assert_eq!(class(Reason::GitNotFound, FailureClass::User), FailureClass::Credential);
        assert_eq!(class(Reason::RegistryProtocol, FailureClass::User), FailureClass::User);
        assert_eq!(class(Reason::GitUnavailable, FailureClass::Infrastructure), FailureClass::Infrastructure);
    }
}
