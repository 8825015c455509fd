//! Reads what an ImageBuild names, resolves its ref to a commit, and checks the right to push: all that can go wrong before
//! a run exists.

use kiln_crds::{BuilderPool, ImageBuild, ImageBuildSpec};
use kube::ResourceExt;

use crate::context::Context;
use crate::git::{self, Resolved};
use crate::references::{Error, Fault, git_access, pool_bundles, registry_access, secret_value};

/// The commit that the ref names now. `None`: the source is inline.
pub async fn resolve(context: &Context, build: &ImageBuild, pool: &BuilderPool) -> Result<Option<Resolved>, Error> {
    let Some(source) = &build.spec.source.git else { return Ok(None) };
    let namespace = build.namespace().unwrap_or_default();
    let bundles = pool_bundles(context, pool).await?;
    let access = git_access(context, &namespace, source, pool, &bundles).await?;
    let resolved = git::resolve(&access.http, &access.url, source.reference.as_deref(), access.auth.as_ref()).await;
    Ok(Some(resolved.map_err(Fault::from)?))
}

/// Checks that every Secret and CA that the build names is there, and that it may push.
pub async fn check(context: &Context, build: &ImageBuild, pool: &BuilderPool) -> Result<(), Error> {
    let namespace = build.namespace().unwrap_or_default();
    let ImageBuildSpec { source, image, pull_secret_refs, secrets, .. } = &build.spec;
    let bundles = pool_bundles(context, pool).await?;
    if let Some(git) = &source.git {
        git_access(context, &namespace, git, pool, &bundles).await?;
    }
    let access = registry_access(context, &namespace, image, pull_secret_refs, pool, &bundles).await?;
    for named in secrets {
        let reference = &named.secret_ref;
        let field = format!("secrets[{}].secretRef", named.id);
        secret_value(&context.client, &namespace, &reference.name, &reference.key, &field).await?;
    }
    access.client.check_push(&access.repository).await.map_err(Fault::from)?;
    Ok(())
}
