//! Reads what a run's build names, afresh for each attempt and again before index and tags.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use kiln_crds::image_build::BuiltImage;
use kiln_crds::image_build_run::SecretVersion;
use kiln_crds::{BuilderPool, ImageBuildRun, ImageBuildSpec};
use kube::ResourceExt;

use crate::context::Context;
use crate::git::BasicAuth;
use crate::reason::Reason;
use crate::references::{self, Error, Fault, GitAccess, RegistryAccess, git_access, pool_bundles, registry_access};
use crate::tags::template;
use kiln_registry::Reference;
use kiln_registry::http_client::ClusterNetwork;

/// The most bytes that the values of `secrets` and `ssh` take together: as much as one Secret may hold.
const MOST_SECRET: usize = 1 << 20;
/// The key of a Secret with a private key for ssh, as Kubernetes names it.
const SSH_KEY: &str = "ssh-privatekey";

/// Everything that a run's jobs and its publishing need.
pub struct Inputs {
    /// The registry, with the credential for the push.
    pub registry: RegistryAccess,
    /// The CA bundles of the pool, in PEM.
    pub pool_bundles: Vec<String>,
    /// The Secrets that were read.
    pub versions: Vec<SecretVersion>,
    /// The ImageBuild's last good image, for its inline cache and to tell whether the next one grew.
    pub last_good: Option<BuiltImage>,
    pub(super) git: Option<GitAccess>,
    pub(super) http: Option<HttpAccess>,
    /// How the Git repositories of contexts are reached, by context.
    pub(super) contexts: BTreeMap<String, GitAccess>,
    pub(super) secrets: HashMap<String, Vec<u8>>,
    pub(super) ssh: HashMap<String, Vec<u8>>,
    /// The cache in a registry.
    pub(super) cache: Option<Reference>,
    /// Other caches that are read.
    pub(super) cache_from: Vec<Reference>,
    /// The tarball that is written, in the namespace's directory of the archive volume.
    pub(super) archive: Option<String>,
    /// What of the cluster's network may be reached.
    pub(super) cluster: ClusterNetwork,
}

impl Inputs {
    /// What publishing needs: without what steps are given, and how sources are reached.
    #[must_use]
    pub fn for_publishing(self) -> Self {
        let (secrets, ssh, contexts) = Default::default();
        Self { secrets, ssh, contexts, git: None, http: None, ..self }
    }
}

/// How a web server is reached with what an ImageBuild names.
pub(crate) struct HttpAccess {
    pub(super) auth: Option<BasicAuth>,
    /// The CA bundles to trust beside the system's, in PEM; empty where there are none.
    pub(super) ca: Option<String>,
}

/// Reads them.
pub async fn dereference(context: &Context, run: &ImageBuildRun, pool: &Arc<BuilderPool>) -> Result<Inputs, Error> {
    references::bounded(Box::pin(read(context, run, pool))).await
}

async fn read(context: &Context, run: &ImageBuildRun, pool: &Arc<BuilderPool>) -> Result<Inputs, Error> {
    let namespace = run.namespace().unwrap_or_default();
    let build = &run.spec.build;
    let archive = match &build.archive {
        Some(archive) => Some(template::path(&archive.path, template::Values::of(run))?),
        None => None,
    };
    let cache = match build.cache.as_ref().and_then(|cache| cache.registry.as_ref()) {
        Some(cache) => Some(
            cache
                .reference
                .parse()
                .map_err(|error| Fault::user(Reason::RepositoryInvalid, format!("cache.registry.ref: {error}")))?,
        ),
        None => None,
    };
    let cache_from = cache_from(build)?;
    let pool_bundles = pool_bundles(context, pool).await?;
    let (registry, git, http, contexts, (secrets, ssh)) = futures::try_join!(
        registry_access(context, &namespace, build, pool, &pool_bundles),
        async {
            match build.git() {
                Some(git) => git_access(context, &namespace, git, "source", pool, &pool_bundles).await.map(Some),
                None => Ok(None),
            }
        },
        http_access(context, &namespace, build),
        futures::future::try_join_all(build.contexts.iter().filter_map(|of| {
            let git = of.git.as_ref()?;
            let place = format!("contexts/{}", of.name);
            let (namespace, pool_bundles) = (&namespace, &pool_bundles);
            Some(async move {
                let access = git_access(context, namespace, git, &place, pool, pool_bundles).await?;
                Ok::<_, Error>((of.name.clone(), access))
            })
        })),
        for_steps(context, &namespace, build),
    )?;
    let (http, http_version) = http.unzip();
    let mut versions = registry.versions.clone();
    versions.extend(git.iter().chain(contexts.iter().map(|(_, git)| git)).filter_map(|git| git.version.clone()));
    versions.extend(http_version.flatten());
    versions.extend(secrets.iter().chain(&ssh).map(|(_, _, version)| version.clone()));
    versions.extend(references::bundle_versions());
    let by_id = |values: Vec<(String, Vec<u8>, _)>| values.into_iter().map(|(id, value, _)| (id, value)).collect();
    Ok(Inputs {
        registry,
        pool_bundles,
        versions: references::in_status(versions),
        last_good: last_good(context, run),
        git,
        http,
        contexts: contexts.into_iter().collect(),
        secrets: by_id(secrets),
        ssh: by_id(ssh),
        cache,
        cache_from,
        archive,
        cluster: context.cluster.network(pool),
    })
}

/// The other caches that a build reads. The names that the agent looks up have to be those that BuildKit asks for.
pub(crate) fn cache_from(build: &ImageBuildSpec) -> Result<Vec<Reference>, Fault> {
    let named = build.cache.iter().flat_map(|cache| &cache.from).enumerate();
    let read = named.map(|(number, from)| {
        from.parse().map_err(|error| Fault::user(Reason::RepositoryInvalid, format!("cache.from[{number}]: {error}")))
    });
    read.collect()
}

/// An id, what steps find under it, and the Secret that it was in.
type Value = (String, Vec<u8>, SecretVersion);

/// Reads what `secrets` and `ssh` name.
pub(crate) async fn for_steps(
    context: &Context,
    namespace: &str,
    build: &ImageBuildSpec,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let secrets = build.secrets.iter().map(|secret| {
        let reference = &secret.secret_ref;
        let field = format!("secrets[{}].secretRef", secret.id);
        value(context, namespace, &secret.id, &reference.name, &reference.key, field).boxed()
    });
    let ssh = build.ssh.iter().map(|ssh| {
        let field = format!("ssh[{}].secretRef", ssh.id);
        value(context, namespace, &ssh.id, &ssh.secret_ref.name, SSH_KEY, field).boxed()
    });
    let mut secrets = values(secrets.chain(ssh).collect()).await?;
    let ssh = secrets.split_off(build.secrets.len());
    Ok((secrets, ssh))
}

/// Reads values, as long as they do not take too much together.
async fn values(reading: Vec<BoxFuture<'_, Result<Value, Error>>>) -> Result<Vec<Value>, Error> {
    let mut reading = futures::stream::iter(reading).buffered(2);
    let (mut values, mut bytes) = (Vec::new(), 0);
    while let Some(value) = reading.next().await {
        let value = value?;
        bytes += value.1.len();
        if bytes > MOST_SECRET {
            let message = format!(
                "what secrets and ssh name takes more than {MOST_SECRET} bytes together: give a build its files by its source, \
                 and secrets that are small"
            );
            return Err(Fault::user(Reason::SecretInvalid, message).into());
        }
        values.push(value);
    }
    Ok(values)
}

async fn value(
    context: &Context,
    namespace: &str,
    id: &str,
    name: &str,
    key: &str,
    field: String,
) -> Result<Value, Error> {
    let (value, version) = references::secret_value(&context.client, namespace, name, key, &field).await?;
    Ok((id.to_owned(), value, version))
}

/// Reads what `source.http` names.
pub(crate) async fn http_access(
    context: &Context,
    namespace: &str,
    build: &ImageBuildSpec,
) -> Result<Option<(HttpAccess, Option<SecretVersion>)>, Error> {
    let Some(http) = build.source.as_ref().and_then(|source| source.http.as_ref()) else { return Ok(None) };
    let (mut auth, mut version) = (None, None);
    if let Some(reference) = &http.secret_ref {
        let field = "source.http.secretRef";
        let read = references::secret(&context.client, namespace, &reference.name, field).await?;
        auth = Some(BasicAuth::from_secret(&read.data).map_err(|error| {
            let message = format!("the Secret {namespace}/{}, which {field} names: {error}", reference.name);
            Fault::credential(Reason::SecretInvalid, message)
        })?);
        version = Some(read.version);
    }
    let own = match &http.ca_ref {
        Some(reference) => {
            Some(references::ca_bundle(&context.client, namespace, reference, "source.http.caRef").await?)
        }
        None => None,
    };
    Ok(Some((HttpAccess { auth, ca: own }, version)))
}

fn last_good(context: &Context, run: &ImageBuildRun) -> Option<BuiltImage> {
    super::image_build(context, run)?.status.as_ref()?.image.clone()
}
