//! Reads what specs name: Secrets, CA bundles and pools. Each by a GET of its own, for Kiln lists and watches no Secrets.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kiln_crds::image_build::{GitSource, ImageTarget};
use kiln_crds::image_build_run::SecretVersion;
use kiln_crds::{BuilderPool, CaRef, CaRefKind, ImageBuildSpec, SecretRef};
use kube::{Api, Client, ResourceExt};

use crate::context::Context;
use crate::git::{self, BasicAuth, GitUrl};
use crate::reason::Reason;
use kiln_registry::http_client::{AddressPolicy, FailureClass, HttpClient};
use kiln_registry::{self as registry, Credentials, Login, Repository, Scheme};

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
}

impl Fault {
    /// A fault that the user can mend.
    #[must_use]
    pub fn user(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class: FailureClass::User }
    }

    /// A fault that another credential can mend.
    #[must_use]
    pub fn credential(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class: FailureClass::Credential }
    }
}

/// Why something named could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user can mend it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The API server failed; trying again may help.
    #[error("reading {what}: {source}")]
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
            Kind::TagContended => Reason::TagConflict,
            Kind::RateLimited | Kind::Unavailable => Reason::RegistryUnavailable,
            Kind::CertificateUntrusted | Kind::CertificateNameMismatch => Reason::RegistryCertificateUntrusted,
            Kind::AddressForbidden => Reason::AddressForbidden,
            Kind::Protocol => Reason::RegistryProtocol,
        };
        Self { reason, message: error.to_string(), class: error.class() }
    }
}

impl From<git::Error> for Fault {
    fn from(error: git::Error) -> Self {
        use git::ErrorKind as Kind;
        let reason = match error.kind() {
            Kind::Unauthorized => Reason::GitUnauthorized,
            Kind::NotFound => Reason::GitNotFound,
            Kind::RefInvalid | Kind::RefNotFound => Reason::GitRefNotFound,
            Kind::RateLimited | Kind::Unavailable | Kind::Protocol => Reason::GitUnavailable,
            Kind::CertificateUntrusted | Kind::CertificateNameMismatch => Reason::GitCertificateUntrusted,
            Kind::AddressForbidden => Reason::AddressForbidden,
        };
        Self { reason, message: error.to_string(), class: error.class() }
    }
}

/// The data of a Secret, and the version that was read.
pub struct SecretData {
    /// Values by key.
    pub data: BTreeMap<String, ByteString>,
    /// Which one it was.
    pub version: SecretVersion,
}

/// Reads a Secret. `field` says where it is named, for the message.
pub async fn secret(client: &Client, namespace: &str, name: &str, field: &str) -> Result<SecretData, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = || format!("the Secret {namespace}/{name}");
    let secret = api.get_opt(name).await.map_err(|source| Error::Api { what: what(), source: Box::new(source) })?;
    let Some(secret) = secret else {
        let message = format!("the Secret {name}, which {field} names, is not in the namespace {namespace}: create it");
        return Err(Fault::credential(Reason::SecretNotFound, message).into());
    };
    let version =
        SecretVersion { name: name.to_owned(), resource_version: secret.resource_version().unwrap_or_default() };
    Ok(SecretData { data: secret.data.unwrap_or_default(), version })
}

/// Reads one key of a Secret.
pub async fn secret_value(
    client: &Client,
    namespace: &str,
    name: &str,
    key: &str,
    field: &str,
) -> Result<(Vec<u8>, SecretVersion), Error> {
    let SecretData { mut data, version } = secret(client, namespace, name, field).await?;
    let Some(value) = data.remove(key) else {
        let message = format!("the Secret {namespace}/{name} has no key {key}, which {field} names: add it");
        return Err(Fault::credential(Reason::SecretInvalid, message).into());
    };
    Ok((value.0, version))
}

/// Reads a CA bundle, in PEM.
pub async fn ca_bundle(client: &Client, namespace: &str, reference: &CaRef, field: &str) -> Result<String, Error> {
    let (name, key) = (&reference.name, reference.key());
    let (kind, text) = match reference.kind() {
        CaRefKind::Secret => {
            let (value, _) = secret_value(client, namespace, name, key, field).await?;
            ("Secret", Some(String::from_utf8_lossy(&value).into_owned()))
        }
        CaRefKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let what = format!("the ConfigMap {namespace}/{name}");
            let found = api.get_opt(name).await.map_err(|source| Error::Api { what, source: Box::new(source) })?;
            let Some(found) = found else {
                let message = format!(
                    "the ConfigMap {name}, which {field} names, is not in the namespace {namespace}: create it"
                );
                return Err(Fault::credential(Reason::CaNotFound, message).into());
            };
            ("ConfigMap", found.data.unwrap_or_default().remove(key))
        }
    };
    match text {
        Some(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(text),
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

/// The CA bundles of a pool, in PEM.
pub async fn pool_bundles(context: &Context, pool: &BuilderPool) -> Result<Vec<String>, Error> {
    let namespace = &context.settings.builders_namespace;
    let named =
        pool.spec.ca_refs.iter().chain(pool.spec.registries.iter().filter_map(|registry| registry.ca_ref.as_ref()));
    let mut references: Vec<&CaRef> = named.collect();
    references.sort();
    references.dedup();
    let field = format!("the BuilderPool {}", pool.name_any());
    let read = references.into_iter().map(|reference| ca_bundle(&context.client, namespace, reference, &field));
    futures::future::try_join_all(read).await
}

/// How registries are reached with what an ImageBuild names.
pub struct RegistryAccess {
    /// Where the image goes: `image.repository`, then `image.copies`. Empty: nowhere.
    pub targets: Vec<Target>,
    /// Every credential that builds may use, one a registry, for base images too.
    pub logins: Vec<Login>,
    /// The CA bundle that `image.caRef` names, in PEM.
    pub ca: Option<String>,
    /// The Secrets that were read.
    pub versions: Vec<SecretVersion>,
    /// Hosts that are spoken to without TLS.
    pub plain_http: Vec<String>,
    http: HttpClient,
    clients: kiln_registry::RegistryClients,
}

/// One repository that gets the image.
pub struct Target {
    /// The parsed repository.
    pub repository: Repository,
    /// Its tags, as the ImageBuild has them.
    pub tags: Vec<String>,
    /// A client with the credential for it.
    pub client: kiln_registry::Client,
}

impl RegistryAccess {
    /// A client that reads from `repository`, with the credential for its registry if there is one.
    #[must_use]
    pub fn reader(&self, repository: &Repository) -> kiln_registry::Client {
        let login = self.logins.iter().find(|login| login.registry == repository.registry);
        self.clients.get(&self.http, scheme(&self.plain_http, repository), login)
    }
}

fn scheme(plain_http: &[String], repository: &Repository) -> Scheme {
    if plain_http.contains(&repository.registry) { Scheme::Http } else { Scheme::Https }
}

/// A repository that an ImageBuild names, and what it says of it.
struct Named<'a> {
    field: &'static str,
    repository: &'a str,
    tags: &'a [String],
    secret_ref: Option<&'a SecretRef>,
    ca_ref: Option<&'a CaRef>,
}

fn named(image: &ImageTarget) -> Vec<Named<'_>> {
    let main = Named {
        field: "image",
        repository: &image.repository,
        tags: &image.tags,
        secret_ref: image.secret_ref.as_ref(),
        ca_ref: image.ca_ref.as_ref(),
    };
    let copies = image.copies.iter().map(|copy| Named {
        field: "image.copies",
        repository: &copy.repository,
        tags: if copy.tags.is_empty() { &image.tags } else { &copy.tags },
        secret_ref: copy.secret_ref.as_ref(),
        ca_ref: copy.ca_ref.as_ref(),
    });
    std::iter::once(main).chain(copies).collect()
}

/// Reads what `image` and `pullSecretRefs` name.
pub async fn registry_access(
    context: &Context,
    namespace: &str,
    image: Option<&ImageTarget>,
    pull_secrets: &[SecretRef],
    pool: &BuilderPool,
    pool_bundles: &[String],
) -> Result<RegistryAccess, Error> {
    let named = image.map(named).unwrap_or_default();
    let (own, pull) = futures::try_join!(
        futures::future::try_join_all(named.iter().map(|named| async {
            let repository: Repository = named.repository.parse().map_err(|error| {
                Fault::user(Reason::RepositoryInvalid, format!("{}.repository: {error}", named.field))
            })?;
            let login = match named.secret_ref {
                Some(reference) => {
                    let field = format!("{}.secretRef", named.field);
                    Some(credentials(context, namespace, &reference.name, &field).await?)
                }
                None => None,
            };
            let field = format!("{}.caRef", named.field);
            let ca = match named.ca_ref {
                Some(reference) => Some(ca_bundle(&context.client, namespace, reference, &field).await?),
                None => None,
            };
            Ok::<_, Error>((repository, login, ca))
        })),
        futures::future::try_join_all(pull_secrets.iter().map(|reference| credentials(
            context,
            namespace,
            &reference.name,
            "pullSecretRefs"
        ))),
    )?;
    let plain_http: Vec<String> = pool
        .spec
        .registries
        .iter()
        .filter(|registry| registry.plain_http)
        .map(|registry| registry.host.clone())
        .collect();
    let mut logins: Vec<Login> = Vec::new();
    let mut versions = Vec::new();
    let mut targets = Vec::new();
    let mut trusted = Vec::new();
    let mut main_ca = None;
    for (position, (repository, credentials, ca)) in own.into_iter().enumerate() {
        let Named { field, tags, .. } = named[position];
        let mut login = None;
        if let Some((credentials, version)) = credentials {
            login = credentials.for_registry(&repository);
            if login.is_none() {
                let message = format!(
                    "the Secret {namespace}/{}, which {field}.secretRef names, holds no credential for {}: add one",
                    version.name, repository.registry
                );
                return Err(Fault::credential(Reason::SecretInvalid, message).into());
            }
            add_logins(&mut logins, credentials.logins(Some(&repository)));
            versions.push(version);
        }
        let http = http_client(context, pool, pool_bundles, ca.as_deref(), &format!("{field}.caRef"))?;
        let client = context.registries.get(&http, scheme(&plain_http, &repository), login.as_ref());
        targets.push(Target { repository, tags: tags.to_vec(), client });
        trusted.extend(ca.clone());
        if position == 0 {
            main_ca = ca;
        }
    }
    for (credentials, version) in pull {
        add_logins(&mut logins, credentials.logins(None));
        versions.push(version);
    }
    let http = http_client(context, pool, pool_bundles, Some(&trusted.join("\n")), "image.caRef")?;
    Ok(RegistryAccess { targets, logins, ca: main_ca, versions, plain_http, http, clients: context.registries.clone() })
}

/// Adds those for registries that have none yet.
fn add_logins(logins: &mut Vec<Login>, more: Vec<Login>) {
    for login in more {
        if !logins.iter().any(|known| known.registry == login.registry) {
            logins.push(login);
        }
    }
}

async fn credentials(
    context: &Context,
    namespace: &str,
    name: &str,
    field: &str,
) -> Result<(Credentials, SecretVersion), Error> {
    let SecretData { data, version } = secret(&context.client, namespace, name, field).await?;
    let credentials = Credentials::from_secret(&data).map_err(|error| {
        let message = format!("the Secret {namespace}/{name}, which {field} names: {error}");
        Fault::credential(Reason::SecretInvalid, message)
    })?;
    Ok((credentials, version))
}

/// How a Git server is reached with what an ImageBuild names.
pub struct GitAccess {
    /// The parsed URL.
    pub url: GitUrl,
    /// A client that trusts the server's CA.
    pub http: HttpClient,
    /// The credential.
    pub auth: Option<BasicAuth>,
    /// The CA bundles to trust beside the system's, in PEM; empty where there are none.
    pub ca: String,
    /// The Secret that was read.
    pub version: Option<SecretVersion>,
}

/// Reads what `source.git` names.
pub async fn git_access(
    context: &Context,
    namespace: &str,
    git: &GitSource,
    pool: &BuilderPool,
    pool_bundles: &[String],
) -> Result<GitAccess, Error> {
    let url = GitUrl::parse(&git.url)
        .map_err(|error| Fault::user(Reason::GitUrlInvalid, format!("source.git.url: {error}")))?;
    let mut auth = None;
    let mut version = None;
    if let Some(reference) = &git.secret_ref {
        let field = "source.git.secretRef";
        let read = secret(&context.client, namespace, &reference.name, field).await?;
        auth = Some(BasicAuth::from_secret(&read.data).map_err(|error| {
            let message = format!("the Secret {namespace}/{}, which {field} names: {error}", reference.name);
            Fault::credential(Reason::SecretInvalid, message)
        })?);
        version = Some(read.version);
    }
    let own = match &git.ca_ref {
        Some(reference) => Some(ca_bundle(&context.client, namespace, reference, "source.git.caRef").await?),
        None => None,
    };
    let http = http_client(context, pool, pool_bundles, own.as_deref(), "source.git.caRef")?;
    Ok(GitAccess { url, http, auth, ca: join(pool_bundles, own.as_deref()), version })
}

fn http_client(
    context: &Context,
    pool: &BuilderPool,
    pool_bundles: &[String],
    own: Option<&str>,
    field: &str,
) -> Result<HttpClient, Fault> {
    let allow_private = pool.spec.allow.as_ref().and_then(|allow| allow.private_addresses).unwrap_or(true);
    let bundle = join(pool_bundles, own);
    let bundle = (!bundle.is_empty()).then_some(bundle.as_bytes());
    context
        .http
        .get(bundle, AddressPolicy::new(allow_private))
        .map_err(|error| Fault::credential(Reason::CaInvalid, format!("{field}, or a CA of the BuilderPool: {error}")))
}

fn join(bundles: &[String], own: Option<&str>) -> String {
    let mut text = String::new();
    for pem in bundles.iter().map(String::as_str).chain(own) {
        text.push_str(pem.trim());
        text.push('\n');
    }
    text
}

/// The Secrets that a build names as they are now; one that is missing has no version.
pub async fn secret_versions(
    context: &Context,
    namespace: &str,
    spec: &ImageBuildSpec,
) -> Result<Vec<SecretVersion>, Error> {
    let git = spec.git().into_iter().filter_map(|git| git.secret_ref.as_ref()).map(|reference| &reference.name);
    let targets = spec.image.iter().flat_map(|image| {
        image.secret_ref.iter().chain(image.copies.iter().filter_map(|copy| copy.secret_ref.as_ref()))
    });
    let image = targets.chain(&spec.pull_secret_refs).map(|reference| &reference.name);
    let build = spec.secrets.iter().map(|secret| &secret.secret_ref.name);
    let mut names: Vec<&String> = git.chain(image).chain(build).collect();
    names.sort();
    names.dedup();
    let mut versions = Vec::new();
    for name in names {
        versions.push(match secret(&context.client, namespace, name, "").await {
            Ok(data) => data.version,
            Err(Error::Fault(_)) => SecretVersion { name: name.clone(), resource_version: String::new() },
            Err(error) => return Err(error),
        });
    }
    Ok(versions)
}
