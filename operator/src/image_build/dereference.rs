//! Reads what an ImageBuild names, resolves its ref to a commit, and checks the right to push: all that can go wrong before
//! a run exists.

use kiln_crds::{BuilderPool, ImageBuild, ImageBuildSpec};
use kube::ResourceExt;

use crate::context::Context;
use crate::git::{self, Resolved};
use crate::references::{Error, Fault, GitAccess, git_access, pool_bundles, registry_access, secret_value};

/// What is needed both to resolve the ref and to check the build: read once.
pub struct Named {
    /// The pool's CA bundles, in PEM.
    pool_bundles: Vec<String>,
    /// How the Git server is reached. `None`: the source is inline.
    git: Option<GitAccess>,
}

/// Reads it.
pub async fn dereference(context: &Context, build: &ImageBuild, pool: &BuilderPool) -> Result<Named, Error> {
    let namespace = build.namespace().unwrap_or_default();
    let pool_bundles = pool_bundles(context, pool).await?;
    let git = match build.spec.git() {
        Some(git) => Some(git_access(context, &namespace, git, pool, &pool_bundles).await?),
        None => None,
    };
    Ok(Named { pool_bundles, git })
}

/// The commit that the ref names now. `None`: the source is inline.
pub async fn resolve(build: &ImageBuild, named: &Named) -> Result<Option<Resolved>, Fault> {
    let (Some(source), Some(access)) = (build.spec.git(), &named.git) else { return Ok(None) };
    let reference = source.reference.as_deref();
    Ok(Some(git::resolve(&access.http, &access.url, reference, access.auth.as_ref()).await?))
}

/// Checks that every other Secret and CA that the build names is there, and that it may push.
pub async fn check(context: &Context, build: &ImageBuild, pool: &BuilderPool, named: &Named) -> Result<(), Error> {
    let namespace = build.namespace().unwrap_or_default();
    let ImageBuildSpec { image, pull_secret_refs, secrets, .. } = &build.spec;
    let access =
        registry_access(context, &namespace, image.as_ref(), pull_secret_refs, pool, &named.pool_bundles).await?;
    for secret in secrets {
        let reference = &secret.secret_ref;
        let field = format!("secrets[{}].secretRef", secret.id);
        secret_value(&context.client, &namespace, &reference.name, &reference.key, &field).await?;
    }
    for target in &access.targets {
        target.client.check_push(&target.repository).await.map_err(Fault::from)?;
    }
    Ok(())
}
