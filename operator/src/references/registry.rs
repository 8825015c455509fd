//! How registries are reached: credentials of the ImageBuild, of its namespace's default service account and of the pool,
//! CA bundles, mirrors.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServiceAccount;
use kiln_crds::image_build::ImageTarget;
use kiln_crds::image_build_run::SecretVersion;
use kiln_crds::{BuilderPool, CaRef, ImageBuildSpec, SecretRef};
use kube::{Api, ResourceExt};

use super::{Error, Fault, OF_POOLS, SecretData, ca_bundle, find_secret, find_secret_in, http_client, named, secret};
use crate::builder::config::{self, Bundle, Bundles};
use crate::builder_pool::select;
use crate::context::Context;
use crate::outage::Server;
use crate::reason::Reason;
use kiln_registry::http_client::HttpClient;
use kiln_registry::{Credentials, Login, Reference, Repository, Scheme};

/// The service account whose `imagePullSecrets` are used where the ImageBuild names no credential.
const ACCOUNT: &str = "default";

/// How registries are reached with what an ImageBuild names.
pub struct RegistryAccess {
    /// Where the image goes: `image.repository`, then `image.copies`. Empty: nowhere.
    pub targets: Vec<Target>,
    /// Every credential that builds may use, for base images too: for each repository that which [`Login::choose`] finds.
    pub logins: Vec<Login>,
    /// Those of `pullSecretRefs`, with the Secret's name.
    pub pulls: Vec<(String, Vec<Login>)>,
    /// The CA bundle that `image.caRef` names, for the registry of `image.repository`.
    pub ca: Option<Bundle>,
    /// The Secrets that were read. A pool's has the builders' namespace before its name.
    pub versions: Vec<SecretVersion>,
    /// Hosts that are spoken to without TLS.
    pub plain_http: Vec<String>,
    /// Mirrors by the registry that they stand for.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Trusts the pool's CAs.
    http: HttpClient,
    /// Those that trust a CA of the ImageBuild's besides, by registry.
    of_registries: BTreeMap<String, HttpClient>,
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
        let login = Login::choose(&self.logins, repository);
        let http = self.of_registries.get(&repository.registry).unwrap_or(&self.http);
        self.clients.get(http, scheme(&self.plain_http, repository), login.as_ref())
    }

    /// The registry of `repository`.
    #[must_use]
    pub fn server(&self, repository: &Repository) -> Server {
        Server::registry(scheme(&self.plain_http, repository), repository)
    }

    /// Where the images of `repository` can be read: the pool's mirrors in their order, then itself.
    #[must_use]
    pub fn readers(&self, repository: &Repository) -> Vec<(kiln_registry::Client, Repository)> {
        let mirrors = self.mirrors.get(&repository.registry).into_iter().flatten();
        let places = mirrors.map(|mirror| repository.at_mirror(mirror)).chain([repository.clone()]);
        places.map(|place| (self.reader(&place), place)).collect()
    }
}

fn scheme(plain_http: &[String], repository: &Repository) -> Scheme {
    if plain_http.contains(&repository.registry) { Scheme::Http } else { Scheme::Https }
}

/// A repository that an ImageBuild names, and what it says of it.
pub(super) struct Named<'a> {
    pub(super) field: String,
    pub(super) repository: &'a str,
    tags: &'a [String],
    pub(super) secret_ref: Option<&'a SecretRef>,
    pub(super) ca_ref: Option<&'a CaRef>,
}

pub(super) fn repositories(image: &ImageTarget) -> Vec<Named<'_>> {
    let main = ("image".to_owned(), image.secret_ref.as_ref(), image.ca_ref.as_ref());
    let copies = image
        .copies
        .iter()
        .map(|copy| (format!("image.copies[{}]", copy.repository), copy.secret_ref.as_ref(), copy.ca_ref.as_ref()));
    let reached = std::iter::once(main).chain(copies);
    let named = image.repositories().zip(reached).map(|((repository, tags), (field, secret_ref, ca_ref))| Named {
        field,
        repository,
        tags,
        secret_ref,
        ca_ref,
    });
    named.collect()
}

/// Reads what `image` and `pullSecretRefs` name, and the credentials of the namespace and of the pool.
pub async fn registry_access(
    context: &Context,
    namespace: &str,
    build: &ImageBuildSpec,
    pool: &BuilderPool,
    pool_bundles: &[String],
) -> Result<RegistryAccess, Error> {
    let named = build.image.as_ref().map(repositories).unwrap_or_default();
    let (own, pull, account, of_pool) = futures::join!(
        futures::future::join_all(named.iter().map(|named| read_target(context, namespace, named))),
        futures::future::join_all(build.pull_secret_refs.iter().map(|of| credentials(
            context,
            namespace,
            &of.name,
            "pullSecretRefs"
        ))),
        account_credentials(context, namespace),
        pool_logins(context, pool),
    );
    // The first of several faults, whichever answer came first: what is told must not change from one try to the next.
    let own = own.into_iter().collect::<Result<Vec<_>, Error>>()?;
    let pull = pull.into_iter().collect::<Result<Vec<_>, Error>>()?;
    if let Some((_, version)) = pull.iter().find(|(credentials, _)| credentials.logins(None).is_empty()) {
        let message = format!(
            "the Secret {namespace}/{}, which pullSecretRefs names, has a user and a password, and not for which registry: make \
             it with kubectl create secret docker-registry, whose .dockerconfigjson says so",
            version.name
        );
        return Err(Fault::credential(Reason::SecretInvalid, message).into());
    }
    let (account, of_pool) = (account?, of_pool?);
    let mut versions: Vec<SecretVersion> = own.iter().filter_map(|read| read.version.clone()).collect();
    versions.extend(pull.iter().map(|(_, version)| version.clone()));
    versions.extend(account.iter().map(|(_, version)| version.clone()));
    versions.extend(of_pool.iter().map(|(_, version)| version.clone()));
    let targets: Vec<(&Repository, Option<&Credentials>)> =
        own.iter().map(|read| (&read.repository, read.credentials.as_ref())).collect();
    let cache = build.cache.as_ref().and_then(|cache| cache.registry.as_ref());
    let cache = cache.and_then(|cache| cache.reference.parse::<Reference>().ok());
    let Chosen { targets: target_logins, logins } = choose(
        &targets,
        &pull.iter().map(|(credentials, _)| credentials.clone()).collect::<Vec<_>>(),
        &account.into_iter().filter_map(|(credentials, _)| credentials).collect::<Vec<_>>(),
        of_pool.into_iter().flat_map(|(logins, _)| logins).collect(),
        cache.as_ref().map(|cache| &cache.repository),
    );
    let pulls = pull.into_iter().map(|(credentials, version)| (version.name, credentials.logins(None))).collect();
    let registries = &pool.spec.registries;
    let plain_http: Vec<String> =
        registries.iter().filter(|registry| registry.plain_http).map(|registry| canonical(&registry.host)).collect();
    let mut targets = Vec::new();
    let mut trusted = Bundles::new();
    let mut main_ca = None;
    for (position, (read, login)) in own.into_iter().zip(target_logins).enumerate() {
        let Named { field, tags, ca_ref, .. } = &named[position];
        let ReadTarget { repository, ca, .. } = read;
        let whose = ca_ref.map(|ca| named::ca(ca, namespace, &format!("{field}.caRef"))).unwrap_or_default();
        let http = http_client(context, pool, pool_bundles, ca.as_deref(), &whose)?;
        let client = context.registries.get(&http, scheme(&plain_http, &repository), login.as_ref());
        let ca = ca.map(|pem| Bundle { registry: Some(repository.registry.clone()), pem });
        targets.push(Target { repository, tags: tags.to_vec(), client });
        trusted.extend(ca.clone());
        if position == 0 {
            main_ca = ca;
        }
    }
    let http = http_client(context, pool, pool_bundles, None, "")?;
    let of_registries = config::of_registries(&trusted).into_iter().map(|(registry, pem)| {
        Ok((registry.to_owned(), http_client(context, pool, pool_bundles, Some(&pem), "a CA of this registry")?))
    });
    let of_registries = of_registries.collect::<Result<_, Fault>>()?;
    let mirrors = registries.iter().filter(|registry| !registry.mirrors.is_empty());
    let mirrors = mirrors.map(|registry| (canonical(&registry.host), registry.mirrors.clone())).collect();
    let clients = context.registries.clone();
    Ok(RegistryAccess {
        targets,
        logins,
        pulls,
        ca: main_ca,
        versions,
        plain_http,
        mirrors,
        http,
        of_registries,
        clients,
    })
}

/// A repository and what was read for it.
struct ReadTarget {
    repository: Repository,
    credentials: Option<Credentials>,
    version: Option<SecretVersion>,
    ca: Option<String>,
}

async fn read_target(context: &Context, namespace: &str, named: &Named<'_>) -> Result<ReadTarget, Error> {
    let Named { field, secret_ref, ca_ref, .. } = named;
    let repository: Repository = named
        .repository
        .parse()
        .map_err(|error| Fault::user(Reason::RepositoryInvalid, format!("{field}.repository: {error}")))?;
    let (mut own, mut version) = (None, None);
    if let Some(reference) = secret_ref {
        let (read, of) = credentials(context, namespace, &reference.name, &format!("{field}.secretRef")).await?;
        if read.for_repository(&repository).is_none() {
            let message = format!(
                "the Secret {namespace}/{}, which {field}.secretRef names, holds no credential for {repository}: add one",
                reference.name
            );
            return Err(Fault::credential(Reason::SecretInvalid, message).into());
        }
        (own, version) = (Some(read), Some(of));
    }
    let ca = match ca_ref {
        Some(_) if repository.registry.len() > config::LONGEST_REGISTRY => {
            let message = format!("{field}.caRef: no registry with a CA of its own has so long a name");
            return Err(Fault::user(Reason::RepositoryInvalid, message).into());
        }
        Some(reference) => Some(ca_bundle(&context.client, namespace, reference, &format!("{field}.caRef")).await?),
        None => None,
    };
    Ok(ReadTarget { repository, credentials: own, version, ca })
}

/// Which credential is used where.
struct Chosen {
    /// For each target that of its push.
    targets: Vec<Option<Login>>,
    /// For builds.
    logins: Vec<Login>,
}

/// What the ImageBuild names comes first, then the namespace's service account's, then the pool's; of these the pool's are
/// there to pull: a registry that is pushed to (`cache` too) gets none of them. Of what the ImageBuild names, a repository
/// that is pushed to gets its own; the others rather that which is there to pull.
fn choose(
    targets: &[(&Repository, Option<&Credentials>)],
    pull: &[Credentials],
    account: &[Credentials],
    of_pool: Vec<Login>,
    cache: Option<&Repository>,
) -> Chosen {
    let of_targets: Vec<Login> = targets
        .iter()
        .flat_map(|(repository, credentials)| credentials.iter().flat_map(|of| of.logins(Some(repository))))
        .collect();
    let all = |credentials: &[Credentials]| credentials.iter().flat_map(|of| of.logins(None)).collect::<Vec<_>>();
    let (of_pull, of_account) = (all(pull), all(account));
    let covered = |repository: &Repository| Login::choose(of_targets.iter().chain(&of_pull), repository);
    let from_account = |repository: &Repository| Login::choose(&of_account, repository);
    let chosen = targets.iter().map(|(repository, own)| {
        own.and_then(|own| own.for_repository(repository))
            .or_else(|| Login::choose(&of_targets, repository))
            .or_else(|| from_account(repository).filter(|_| covered(repository).is_none()))
    });
    let chosen: Vec<Option<Login>> = chosen.collect();
    let for_cache =
        cache.and_then(|repository| Some((repository, covered(repository).or_else(|| from_account(repository))?)));
    let pushed = targets.iter().zip(&chosen).filter_map(|((repository, _), login)| Some((*repository, login.clone()?)));
    let pushed = pushed.chain(for_cache).map(|(repository, login)| Login { path: repository.path.clone(), ..login });
    let pushed_to = |registry: &str| {
        let mut repositories = targets.iter().map(|(repository, _)| *repository).chain(cache);
        repositories.any(|repository| repository.registry == registry)
    };
    let mut logins = Vec::new();
    add(&mut logins, pushed.chain(of_pull.iter().cloned()).chain(of_targets.iter().cloned()).collect());
    add(&mut logins, of_account);
    add(&mut logins, of_pool.into_iter().filter(|login| !pushed_to(&login.registry)).collect());
    Chosen { targets: chosen, logins }
}

/// Adds what no login covers that is there already: who names a login for a registry wants no other for a part of it.
fn add(logins: &mut Vec<Login>, mut more: Vec<Login>) {
    more.retain(|login| !logins.iter().any(|known| known.covers(login)));
    logins.append(&mut more);
}

async fn credentials(
    context: &Context,
    namespace: &str,
    name: &str,
    field: &str,
) -> Result<(Credentials, SecretVersion), Error> {
    let SecretData { data, version, .. } = secret(&context.client, namespace, name, field).await?;
    let credentials = Credentials::from_secret(&data).map_err(|error| {
        let message = format!("the Secret {namespace}/{name}, which {field} names: {error}");
        Fault::credential(Reason::SecretInvalid, message)
    })?;
    Ok((credentials, version))
}

/// The version of a Secret that is not there.
pub(super) fn missing(name: &str) -> SecretVersion {
    SecretVersion { name: name.to_owned(), resource_version: String::new() }
}

/// The `imagePullSecrets` of the namespace's default service account.
pub(super) async fn account_secrets(context: &Context, namespace: &str) -> Result<Vec<String>, Error> {
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    let what = || format!("the ServiceAccount {namespace}/{ACCOUNT}");
    let found = api.get_opt(ACCOUNT).await.map_err(|source| Error::Api { what: what(), source: Box::new(source) })?;
    let secrets = found.and_then(|account| account.image_pull_secrets).unwrap_or_default();
    Ok(secrets.into_iter().map(|secret| secret.name).filter(|name| !name.is_empty()).collect())
}

/// What those hold. As the kubelet does, whatever is missing or no Docker configuration is passed over.
async fn account_credentials(
    context: &Context,
    namespace: &str,
) -> Result<Vec<(Option<Credentials>, SecretVersion)>, Error> {
    let names = account_secrets(context, namespace).await?;
    let read = names.iter().map(|name| async {
        let Some(found) = find_secret(&context.client, namespace, name).await? else {
            return Ok((None, missing(name)));
        };
        // One with the keys username and password names no registry.
        let credentials = Credentials::from_secret(&found.data).ok().filter(|of| !of.logins(None).is_empty());
        Ok((credentials, found.version))
    });
    futures::future::join_all(read).await.into_iter().collect()
}

/// The credentials that the pool's `registries` name, each for its own host and paths there.
async fn pool_logins(context: &Context, pool: &BuilderPool) -> Result<Vec<(Vec<Login>, SecretVersion)>, Error> {
    let namespace = &context.settings.builders_namespace;
    let read = pool.spec.registries.iter().filter_map(|registry| {
        let reference = registry.secret_ref.as_ref()?;
        Some(async {
            let field = format!("registries[{}].secretRef of the BuilderPool {}", registry.host, pool.name_any());
            let (credentials, version) = credentials(context, namespace, &reference.name, &field).await?;
            let registry = canonical(&registry.host);
            let any = Repository { registry: registry.clone(), path: String::new() };
            let logins = credentials.for_registry(&any);
            if logins.is_empty() {
                let message = format!(
                    "the Secret {namespace}/{}, which {field} names, holds no credential for {registry}: add one",
                    reference.name
                );
                return Err(Fault::credential(Reason::SecretInvalid, message).into());
            }
            Ok((logins, in_namespace(namespace, version)))
        })
    });
    futures::future::join_all(read).await.into_iter().collect()
}

/// The versions of the pool's Secrets, and of what its CAs are in, as they are now.
pub(super) async fn pool_versions(
    context: &Context,
    namespace: &str,
    spec: &ImageBuildSpec,
) -> Result<Vec<SecretVersion>, Error> {
    let Ok(pool) = select::pool(context, namespace, spec.pool.as_deref()) else { return Ok(Vec::new()) };
    let builders = &context.settings.builders_namespace;
    let named = pool.spec.registries.iter().filter_map(|registry| registry.secret_ref.as_ref());
    let secrets = named.map(|reference| async {
        let found = find_secret_in(&OF_POOLS, &context.client, builders, &reference.name).await?;
        Ok(found.map_or_else(|| missing(&reference.name), |found| found.version))
    });
    let cas = super::named_by_pool(&pool);
    let cas = cas.into_iter().map(|ca| super::ca_version(&OF_POOLS, context, builders, ca));
    let all = futures::try_join!(futures::future::try_join_all(secrets), futures::future::try_join_all(cas))?;
    Ok(all.0.into_iter().chain(all.1).map(|version| in_namespace(builders, version)).collect())
}

/// A name with its namespace, which no Secret of the ImageBuild's own namespace can have.
pub(super) fn in_namespace(namespace: &str, version: SecretVersion) -> SecretVersion {
    let name = format!("{namespace}/{}", version.name).chars().take(253).collect();
    SecretVersion { name, ..version }
}

/// The registry's name as images have it. A host without a dot is no name of Docker Hub, though an image's would be.
fn canonical(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match Repository::parse(&format!("{host}/any")) {
        Ok(repository) if host.contains('.') => repository.registry,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(pairs: &[(&str, &str)]) -> Credentials {
        let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString((*value).into())));
        Credentials::from_secret(&data.collect()).unwrap()
    }

    /// A Docker configuration whose user is called `user` everywhere.
    fn config(user: &str, hosts: &[&str]) -> Credentials {
        let auths =
            hosts.iter().map(|host| ((*host).to_owned(), serde_json::json!({"username": user, "password": "p"})));
        let auths: serde_json::Map<String, serde_json::Value> = auths.collect();
        secret(&[(".dockerconfigjson", &serde_json::json!({"auths": auths}).to_string())])
    }

    fn told(login: &Login) -> String {
        format!("{}={}", login.key(), login.username)
    }

    #[test]
    fn credentials_by_who_names_them() {
        let repository = |text: &str| Repository::parse(text).unwrap();
        let (main, copy, third) =
            (repository("a.example/app"), repository("b.example/app"), repository("c.example/app"));
        let plain = secret(&[("username", "own"), ("password", "p")]);
        let of_pool = |hosts: &[&str]| config("pool", hosts).logins(None);
        let show = |chosen: Chosen| {
            let targets: Vec<String> =
                chosen.targets.iter().map(|login| login.as_ref().map_or("-".into(), told)).collect();
            let logins: Vec<String> = chosen.logins.iter().map(told).collect();
            format!("{} | {}", targets.join(" "), logins.join(" "))
        };
        // The ImageBuild's own, then the service account's, and the pool's only where nothing is pushed.
        let targets = [(&main, Some(&plain)), (&copy, None)];
        let account = vec![config("account", &["a.example", "b.example", "base.example"])];
        let pool = of_pool(&["a.example", "base.example", "cache.example", "mirror.example"]);
        let chosen = choose(&targets, &[], &account, pool.clone(), Some(&repository("cache.example/x")));
        insta::assert_snapshot!(show(chosen), @"a.example=own b.example=account | a.example/app=own b.example/app=account a.example=own b.example=account base.example=account mirror.example=pool");
        // A registry that pullSecretRefs cover gets nothing of the service account.
        let chosen = choose(&[(&copy, None)], &[config("pull", &["b.example"])], &account, vec![], None);
        insta::assert_snapshot!(show(chosen), @"- | b.example=pull a.example=account base.example=account");
        // One configuration for several targets; a user name and password is for the one that it is named for.
        let both = config("both", &["a.example", "b.example"]);
        let targets = [(&main, Some(&both)), (&copy, None), (&third, None)];
        insta::assert_snapshot!(show(choose(&targets, &[], &[], pool, None)), @"a.example=both b.example=both - | a.example/app=both b.example/app=both a.example=both b.example=both base.example=pool cache.example=pool mirror.example=pool");
        let targets = [(&main, Some(&plain)), (&copy, None)];
        insta::assert_snapshot!(show(choose(&targets, &[], &[], vec![], None)), @"a.example=own - | a.example/app=own a.example=own");

        // Two robots of one registry: each reads and pushes what it is for, whether one Secret has both or each its own.
        let (team, base) = (repository("a.example/team-b/app"), "a.example/team-a");
        let robots = config("a", &[base]);
        let targets = [(&team, Some(&plain))];
        insta::assert_snapshot!(show(choose(&targets, &[config("pull", &["a.example"])], &account, vec![], Some(&repository("a.example/cache")))), @"a.example=own | a.example/team-b/app=own a.example/cache=own a.example=pull a.example=own b.example=account base.example=account");
        let both = config("b", &["a.example/team-b"]);
        insta::assert_snapshot!(show(choose(&[(&team, Some(&both))], &[robots], &account, vec![], None)), @"a.example/team-b=b | a.example/team-b/app=b a.example/team-a=a a.example/team-b=b a.example=account b.example=account base.example=account");
    }

    #[test]
    fn mirrors_have_a_path_of_their_own() {
        let debian = Repository::parse("debian").unwrap();
        for (mirror, expected) in [
            ("mirror.example", "mirror.example/library/debian"),
            ("mirror.example:5000/docker.io", "mirror.example:5000/docker.io/library/debian"),
            ("Mirror.example/a/b/", "mirror.example/a/b/library/debian"),
            ("registry/hub", "registry/hub/library/debian"),
        ] {
            assert_eq!(debian.at_mirror(mirror).to_string(), expected);
        }
        for (host, expected) in [
            ("index.docker.io", "docker.io"),
            ("GHCR.io", "ghcr.io"),
            ("registry", "registry"),
            ("r.example:5000", "r.example:5000"),
        ] {
            assert_eq!(canonical(host), expected);
        }
    }
}
