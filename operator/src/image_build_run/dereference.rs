//! Reads what a run's build names, afresh for each attempt and again before index and tags.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kiln_agent_proto as proto;
use kiln_crds::image_build::PlatformSpec;
use kiln_crds::image_build_run::SecretVersion;
use kiln_crds::{BuilderPool, ImageBuildRun};
use kube::ResourceExt;

use crate::context::Context;
use crate::references::{self, Error, GitAccess, RegistryAccess, git_access, pool_bundles, registry_access};
use kiln_registry::LoginSecret;

/// Everything that a run's jobs and its publishing need.
pub struct Inputs {
    /// The registry, with the credential for the push.
    pub registry: RegistryAccess,
    /// The CA bundles of the pool, in PEM.
    pub pool_bundles: Vec<String>,
    git: Option<GitAccess>,
    secrets: HashMap<String, Vec<u8>>,
    /// The Secrets that were read.
    pub versions: Vec<SecretVersion>,
}

/// Reads them.
pub async fn dereference(context: &Context, run: &ImageBuildRun, pool: &Arc<BuilderPool>) -> Result<Inputs, Error> {
    let namespace = run.namespace().unwrap_or_default();
    let build = &run.spec.build;
    let pool_bundles = pool_bundles(context, pool).await?;
    let (registry, git, secrets) = futures::try_join!(
        registry_access(context, &namespace, build.image.as_ref(), &build.pull_secret_refs, pool, &pool_bundles),
        async {
            match build.git() {
                Some(git) => git_access(context, &namespace, git, pool, &pool_bundles).await.map(Some),
                None => Ok(None),
            }
        },
        futures::future::try_join_all(build.secrets.iter().map(|secret| async {
            let reference = &secret.secret_ref;
            let field = format!("secrets[{}].secretRef", secret.id);
            let (value, version) =
                references::secret_value(&context.client, &namespace, &reference.name, &reference.key, &field).await?;
            Ok::<_, Error>((secret.id.clone(), value, version))
        }))
    )?;
    let mut versions = registry.versions.clone();
    versions.extend(git.as_ref().and_then(|git| git.version.clone()));
    versions.extend(secrets.iter().map(|(_, _, version)| version.clone()));
    versions.sort_by(|a, b| a.name.cmp(&b.name));
    versions.dedup();
    let secrets = secrets.into_iter().map(|(id, value, _)| (id, value)).collect();
    Ok(Inputs { registry, pool_bundles, git, secrets, versions })
}

impl Inputs {
    /// The job of one platform.
    #[must_use]
    pub fn job(
        &self,
        run: &ImageBuildRun,
        pool: &BuilderPool,
        id: &str,
        platform: &PlatformSpec,
        attempt: u32,
        traceparent: String,
    ) -> proto::Job {
        let build = &run.spec.build;
        let dockerfile = platform.dockerfile.as_ref().or(build.dockerfile.as_ref());
        let target = platform.target.as_ref().or(build.target.as_ref());
        let mut args = build.args.clone();
        args.extend(platform.args.clone());
        proto::Job {
            id: id.to_owned(),
            run: format!("{}/{}", run.namespace().unwrap_or_default(), run.name_any()),
            platform: platform.name.clone(),
            attempt,
            source: Some(self.source(run)),
            dockerfile: dockerfile.cloned().unwrap_or_default(),
            target: target.cloned().unwrap_or_default(),
            build_args: into_map(&args),
            labels: into_map(&build.labels),
            annotations: into_map(&build.annotations),
            no_cache: build.no_cache,
            secrets: self.secrets.clone(),
            logins: self
                .registry
                .logins
                .iter()
                .map(|login| {
                    let (password, identity_token) = match &login.secret {
                        LoginSecret::Password(secret) => (secret.expose(), ""),
                        LoginSecret::IdentityToken(secret) => ("", secret.expose()),
                    };
                    proto::Login {
                        registry: login.registry.clone(),
                        username: login.username.clone(),
                        password: password.to_owned(),
                        identity_token: identity_token.to_owned(),
                    }
                })
                .collect(),
            repository: self.registry.targets.first().map(|target| target.repository.to_string()).unwrap_or_default(),
            timeout_seconds: u32::try_from(super::plan::Bounds::of(build).timeout.as_secs()).unwrap_or(u32::MAX),
            allow_frontends: pool.spec.allow.as_ref().and_then(|allow| allow.frontends).unwrap_or(false),
            allow_private_addresses: pool.spec.allow.as_ref().and_then(|allow| allow.private_addresses).unwrap_or(true),
            traceparent,
            ..proto::Job::default()
        }
    }

    fn source(&self, run: &ImageBuildRun) -> proto::Source {
        let build = &run.spec.build;
        let kind = if let (Some(git), Some(access)) = (build.git(), &self.git) {
            proto::source::Kind::Git(proto::GitSource {
                url: access.url.as_str().to_owned(),
                commit: run.spec.commit.clone().unwrap_or_default(),
                r#ref: run.spec.reference.clone().unwrap_or_default(),
                path: git.path.clone().unwrap_or_default(),
                submodules: git.submodules,
                username: access.auth.as_ref().map(|auth| auth.username.clone()).unwrap_or_default(),
                password: access.auth.as_ref().map(|auth| auth.password.expose().to_owned()).unwrap_or_default(),
                ca_pem: access.ca.clone(),
                lfs: git.lfs,
                keep_git_dir: git.keep_git_dir,
                full_history: git.full_history,
                ..proto::GitSource::default()
            })
        } else {
            let files = build.inline().map(|inline| into_map(&inline.files)).unwrap_or_default();
            proto::source::Kind::Inline(proto::InlineSource { files })
        };
        proto::Source { kind: Some(kind) }
    }
}

fn into_map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
