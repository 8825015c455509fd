//! Reads what an ImageBuild names, looks up what that is now, and checks the right to push: all that can go wrong before a
//! run exists.

use std::sync::Arc;

use futures::future::join_all;
use kiln_crds::image_build::{GitSource, Resolved};
use kiln_crds::{BuilderPool, ImageBuild};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::OnceCell;

use super::plan::interval;
use super::resolve::{self, Kind, Name};
use crate::context::Context;
use crate::git;
use crate::image_build_run::dereference::{cache_from, for_steps, http_access};
use crate::outage::{self, Server};
use crate::reason::Reason;
use crate::references::{self, Error, Fault, RegistryAccess, git_access, registry_access};

/// What the names in a spec are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The commit of the source. `None`: it is no Git repository.
    pub source: Option<git::Resolved>,
    /// What everything else is, in the order of [`resolve::names`].
    pub names: Vec<Resolved>,
}

/// What a look has read, and need not be read again to check the build.
#[derive(Default)]
pub struct Read {
    /// The pool's CA bundles, in PEM.
    bundles: Option<Vec<String>>,
    registry: Option<RegistryAccess>,
    /// Whether the Git servers' credentials were read.
    git: bool,
}

/// Looks up what the names in the spec are now. A Git repository whose interval is 0 stays what it was in `former`.
pub async fn look(
    context: &Context,
    build: &ImageBuild,
    pool: &BuilderPool,
    former: Option<&Found>,
) -> Result<(Found, Read), Error> {
    references::bounded(look_up(context, build, pool, former)).await
}

async fn look_up(
    context: &Context,
    build: &ImageBuild,
    pool: &BuilderPool,
    former: Option<&Found>,
) -> Result<(Found, Read), Error> {
    let namespace = build.namespace().unwrap_or_default();
    let spec = &build.spec;
    let names = resolve::names(spec);
    if spec.git().is_none() && names.is_empty() {
        return Ok((Found::default(), Read { git: true, ..Read::default() }));
    }
    let bundles = references::pool_bundles(context, pool).await?;
    let registry = OnceCell::new();
    let access = || registry.get_or_try_init(|| registry_access(context, &namespace, spec, pool, &bundles));
    let commit = |git: GitSource, place: String| {
        let (namespace, bundles) = (&namespace, &bundles);
        async move {
            let access = git_access(context, namespace, &git, &place, pool, bundles).await?;
            let reference = git.reference.as_deref();
            let resolved = async {
                let resolved = git::resolve(&access.http, &access.url, reference, access.auth.as_ref()).await;
                resolved.map_err(Fault::from)
            };
            outage::ask(Server::git(&access.url), resolved).await.map_err(Error::from)
        }
    };
    let source = async {
        let Some(git) = spec.git() else { return Ok(None) };
        match former.and_then(|former| former.source.clone()).filter(|_| interval(git).is_none()) {
            Some(kept) => Ok(Some(kept)),
            None => commit(git.clone(), "source".to_owned()).await.map(Some),
        }
    };
    let others = join_all(names.into_iter().map(|Name { field, kind }| async {
        let kept = former.and_then(|former| former.names.iter().find(|known| known.field == field));
        let mut resolved = Resolved { field, ..Resolved::default() };
        match kind {
            Kind::Git(git) => {
                if let Some(kept) = kept.filter(|_| interval(git).is_none()) {
                    resolved = kept.clone();
                } else {
                    let found = commit(git.clone(), resolved.field.clone()).await;
                    let found = found.map_err(|error| at(error, &resolved.field))?;
                    (resolved.commit, resolved.reference) = (Some(found.commit), found.ref_name);
                }
            }
            Kind::Image(text) => {
                resolved.image = Some(resolve::image(access().await?, &resolved.field, text).await?);
            }
            Kind::PlatformImage(text, platform) => {
                let found = resolve::platform_image(access().await?, &resolved.field, text, &platform).await?;
                resolved.image = Some(found);
            }
            // Not asked for, but read from the copy, at each reconcile.
            Kind::ImageBuild(_) => match kept {
                Some(kept) => resolved = kept.clone(),
                None => return Ok(None),
            },
        }
        Ok::<_, Error>(Some(resolved))
    }));
    let (source, others) = futures::join!(source, others);
    // The first of several faults, whichever answer came first: what is told must not change from one try to the next.
    let source = source?;
    let names = others.into_iter().filter_map(Result::transpose).collect::<Result<Vec<_>, Error>>()?;
    let registry = registry.into_inner();
    Ok((Found { source, names }, Read { bundles: Some(bundles), registry, git: true }))
}

/// A fault that says which Git repository it is about.
fn at(error: Error, field: &str) -> Error {
    match error {
        Error::Fault(fault) => {
            let message = format!("{field}: {}", fault.message);
            Fault { message, about: Some(field.to_owned()), ..fault }.into()
        }
        other @ Error::Api { .. } => other,
    }
}

/// The same with the last good images of the ImageBuilds that it names, where `refresh` those that they have now.
pub fn with_image_builds(
    context: &Context,
    build: &ImageBuild,
    found: &[Resolved],
    refresh: bool,
) -> Result<Vec<Resolved>, Fault> {
    let named = resolve::image_build_contexts(build);
    if named.is_empty() {
        return Ok(found.to_vec());
    }
    let namespace = build.namespace().unwrap_or_default();
    if refresh {
        let builds = context.stores.image_builds.state_filter(|of| of.metadata.namespace.as_ref() == Some(&namespace));
        let all = resolve::by_name(builds.iter().map(Arc::as_ref));
        if let Some(way) = resolve::cycle(&build.name_any(), &all) {
            let message = format!(
                "contexts: ImageBuilds are contexts of each other ({}): remove one of these contexts",
                way.join(" needs ")
            );
            return Err(Fault::user(Reason::ContextCycle, message));
        }
    }
    let find = |name: &str| context.stores.image_builds.get(&ObjectRef::new(name).within(&namespace));
    let names = resolve::names(&build.spec).into_iter().filter_map(|Name { field, kind }| {
        let former = found.iter().find(|known| known.field == field).cloned();
        match kind {
            Kind::ImageBuild(name) if refresh || former.is_none() => {
                let image = resolve::image_build(&field, name, find);
                // An image that was there is still good where its ImageBuild is gone.
                let now = image.map(|image| Resolved { field, image: Some(image), ..Resolved::default() });
                Some(now.or_else(|fault| former.ok_or(fault)))
            }
            _ => former.map(Ok),
        }
    });
    names.collect()
}

/// Checks that every Secret and CA that the build names is there, and that it may push.
pub async fn check(context: &Context, build: &ImageBuild, pool: &BuilderPool, read: Read) -> Result<(), Error> {
    references::bounded(try_all(context, build, pool, read)).await
}

async fn try_all(context: &Context, build: &ImageBuild, pool: &BuilderPool, read: Read) -> Result<(), Error> {
    let namespace = build.namespace().unwrap_or_default();
    let spec = &build.spec;
    let bundles = match read.bundles {
        Some(read) => read,
        None => references::pool_bundles(context, pool).await?,
    };
    let registry = async {
        match read.registry {
            Some(read) => Ok(read),
            None => registry_access(context, &namespace, spec, pool, &bundles).await,
        }
    };
    let repositories = references::repositories(spec).filter(|_| !read.git);
    let git = join_all(repositories.map(|(place, git)| {
        let (namespace, bundles) = (&namespace, &bundles);
        async move {
            let read = git_access(context, namespace, git, &place, pool, bundles).await;
            read.map(drop).map_err(|error| if place == "source" { error } else { at(error, &place) })
        }
    }));
    // Read as a run reads it, and not kept.
    let http = async { http_access(context, &namespace, spec).await.map(drop) };
    let secrets = async { for_steps(context, &namespace, spec).await.map(drop) };
    let (registry, git, secrets, http) = futures::join!(registry, git, secrets, http);
    let registry = registry?;
    git.into_iter().chain([secrets, http]).collect::<Result<(), Error>>()?;
    cache_from(spec)?;
    let pushes = registry.targets.iter().map(|target| async {
        let push = async { target.client.check_push(&target.repository).await.map_err(Fault::from) };
        outage::ask(registry.server(&target.repository), push).await
    });
    join_all(pushes).await.into_iter().collect::<Result<(), _>>()?;
    Ok(())
}
