//! The job of one platform, from a run and what was read for it; pure.

use std::collections::{BTreeMap, HashMap};

use kiln_agent_proto as proto;
use kiln_crds::image_build::{
    CacheMode, GitSource, MediaTypes, Network, PlatformSpec, PullPolicy, Resolved, Source, Ulimit,
};
use kiln_crds::image_build_run::{Execution, PlatformStatus};
use kiln_crds::{BuilderPool, ImageBuildRun};
use kube::ResourceExt;

use super::dereference::Inputs;
use super::labels::default_labels;
use crate::builder::pod::bytes;
use crate::git::GitCredential;
use crate::references::{GitAccess, join};
use crate::tags::template::{of_platform, with_platform};
use kiln_registry::{Identifier, Login, LoginSecret, Reference};

impl Inputs {
    /// The job of one platform, whose attempt is in `status`.
    #[must_use]
    pub fn job(
        &self,
        run: &ImageBuildRun,
        pool: &BuilderPool,
        id: &str,
        platform: &PlatformSpec,
        status: &PlatformStatus,
        traceparent: String,
    ) -> proto::Job {
        let build = &run.spec.build;
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        let allow = pool.spec.allow.as_ref();
        let several = build.platforms.as_ref().is_some_and(|platforms| platforms.len() > 1);
        let archive = self.archive.as_deref().map(|path| of_platform(path, &platform.name, several));
        proto::Job {
            id: id.to_owned(),
            run: format!("{}/{}", run.namespace().unwrap_or_default(), run.name_any()),
            platform: platform.name.clone(),
            attempt: status.attempt,
            source: Some(proto::Source { kind: Some(self.source(run, platform)) }),
            dockerfile: text(platform.dockerfile.as_ref().or(build.dockerfile.as_ref())),
            target: text(platform.target.as_ref().or(build.target.as_ref())),
            build_args: arguments([&pool.spec.default_args, &build.args, &platform.args]),
            labels: into_map(&build.labels),
            annotations: into_map(&build.annotations),
            no_cache: build.no_cache || run.spec.fresh,
            secrets: self.secrets.clone(),
            logins: self.logins(run),
            repository: self.registry.targets.first().map(|target| target.repository.to_string()).unwrap_or_default(),
            timeout_seconds: seconds(super::plan::Bounds::of(build).timeout),
            allow_frontends: allow.and_then(|allow| allow.frontends).unwrap_or(false),
            allow_private_addresses: allow.and_then(|allow| allow.private_addresses).unwrap_or(true),
            require_sandbox: !allow.and_then(|allow| allow.unsandboxed_sources).unwrap_or(true),
            traceparent,
            // One that a platform names is meant for it.
            dockerfile_inline: text(build.dockerfile_inline.as_ref().filter(|_| platform.dockerfile.is_none())),
            contexts: self.contexts(run),
            default_labels: default_labels(build, run.spec.commit.as_deref(), run.spec.reference.as_deref()),
            ssh: self.ssh.clone(),
            no_cache_stages: build.no_cache_stages.clone(),
            pull: match build.pull {
                Some(PullPolicy::IfNotPresent) => proto::PullPolicy::PullIfNotPresent,
                Some(PullPolicy::Always) | None => proto::PullPolicy::PullAlways,
            }
            .into(),
            ulimits: build.ulimits.iter().map(ulimit).collect(),
            shm_bytes: build.shm_size.as_ref().and_then(bytes).unwrap_or_default(),
            hosts: build
                .host_aliases
                .iter()
                .map(|alias| proto::Host { ip: alias.ip.clone(), names: alias.hostnames.clone() })
                .collect(),
            no_network: build.network == Some(Network::None),
            fail_on_warnings: build.fail_on_warnings,
            silence_seconds: build.silence_timeout.map(|silence| seconds(silence.into())).unwrap_or_default(),
            execution: execution(status.execution).into(),
            output: Some(output(run)),
            foreign_programs: build.foreign_programs().map(str::to_owned).collect(),
            cache: Some(self.cache(run, &platform.name)),
            archive_path: archive.unwrap_or_default(),
            registry_mirrors: mirrors(&self.registry.mirrors),
            plain_http_registries: self.registry.plain_http.clone(),
            cluster_ranges: self.cluster.ranges.iter().map(ToString::to_string).collect(),
            cluster_hosts: self
                .cluster
                .hosts
                .iter()
                .map(|known| proto::ClusterHost { host: known.host.clone(), port: known.port.into() })
                .collect(),
        }
    }

    fn logins(&self, run: &ImageBuildRun) -> Vec<proto::Login> {
        // A login that serves an image which is taken as it is serves no job.
        let taken = run.spec.build.platforms.iter().flatten().filter_map(|platform| platform.image.as_ref());
        let taken = taken.filter_map(|image| Some(image.parse::<Reference>().ok()?.repository));
        let used: Vec<&Login> = taken.filter_map(|of| Login::find(&self.registry.logins, &of)).collect();
        let named_by = |login: &Login| {
            let (secret, _) = self.registry.pulls.iter().find(|(_, of)| of.contains(login))?;
            let namespace = run.namespace().unwrap_or_default();
            let is_used = used.iter().any(|used| used.is_same_account(login));
            (!is_used).then(|| format!("the Secret {namespace}/{secret}, which pullSecretRefs names"))
        };
        let logins = self.registry.logins.iter().map(|login| {
            let (password, identity_token) = match &login.secret {
                LoginSecret::Password(secret) => (secret.expose(), ""),
                LoginSecret::IdentityToken(secret) => ("", secret.expose()),
            };
            proto::Login {
                registry: login.registry.clone(),
                path: login.path.clone(),
                named_by: named_by(login).unwrap_or_default(),
                username: login.username.clone(),
                password: password.to_owned(),
                identity_token: identity_token.to_owned(),
            }
        });
        logins.collect()
    }

    fn source(&self, run: &ImageBuildRun, platform: &PlatformSpec) -> proto::source::Kind {
        use proto::source::Kind;
        if let Some(archive) = &platform.archive {
            return Kind::Archive(proto::ArchiveSource { path: archive.clone() });
        }
        let Some(Source { git, inline, http, image }) = &run.spec.build.source else {
            return Kind::Inline(proto::InlineSource::default());
        };
        if let (Some(git), Some(access)) = (git, &self.git) {
            Kind::Git(git_source(
                git,
                access,
                &self.pool_bundles,
                run.spec.commit.as_ref(),
                run.spec.reference.as_ref(),
            ))
        } else if let Some(http) = http {
            let access = self.http.as_ref();
            let auth = access.and_then(|access| access.auth.as_ref());
            Kind::Http(proto::HttpSource {
                url: http.url.clone(),
                checksum: http.checksum.clone(),
                path: http.path.clone().unwrap_or_default(),
                username: auth.map(|auth| auth.username.clone()).unwrap_or_default(),
                password: auth.map(|auth| auth.password.expose().to_owned()).unwrap_or_default(),
                ca_pem: join(&self.pool_bundles, access.and_then(|access| access.ca.as_deref())),
            })
        } else if let Some(image) = image {
            let resolved = resolved(run, "source").and_then(|resolved| resolved.image.clone());
            Kind::Image(proto::ImageSource {
                reference: resolved.unwrap_or_else(|| image.reference.clone()),
                path: image.path.clone().unwrap_or_default(),
            })
        } else {
            let files = inline.as_ref().map(|inline| into_map(&inline.files)).unwrap_or_default();
            Kind::Inline(proto::InlineSource { files })
        }
    }

    fn contexts(&self, run: &ImageBuildRun) -> Vec<proto::Context> {
        use proto::context::Kind;
        let contexts = run.spec.build.contexts.iter().map(|of| {
            let resolved = resolved(run, &format!("contexts/{}", of.name));
            let image = resolved.and_then(|resolved| resolved.image.as_ref());
            let kind = match (&of.git, self.contexts.get(&of.name)) {
                (Some(git), Some(access)) => {
                    let commit = resolved.and_then(|resolved| resolved.commit.as_ref());
                    let reference = resolved.and_then(|resolved| resolved.reference.as_ref());
                    Some(Kind::Git(git_source(git, access, &self.pool_bundles, commit, reference).into()))
                }
                _ => image.or(of.image.as_ref()).cloned().map(Kind::Image),
            };
            proto::Context { name: of.name.clone(), kind }
        });
        contexts.collect()
    }

    fn cache(&self, run: &ImageBuildRun, platform: &str) -> proto::Cache {
        let Some(cache) = &run.spec.build.cache else { return proto::Cache::default() };
        let to = self.cache.as_ref().map(|reference| cache_of(reference, platform).to_string());
        let last_good = self.last_good.as_ref().filter(|_| cache.inline).and_then(|image| {
            let of = image.platforms.iter().find(|of| of.name == platform)?;
            // A status that somebody else wrote may hold anything.
            format!("{}@{}", image.repository, of.digest).parse::<Reference>().ok()
        });
        proto::Cache {
            from: to.iter().cloned().chain(last_good.iter().chain(&self.cache_from).map(ToString::to_string)).collect(),
            to: to.unwrap_or_default(),
            max: cache.registry.as_ref().is_some_and(|registry| registry.mode != Some(CacheMode::Min)),
            inline: cache.inline,
        }
    }
}

fn git_source(
    git: &GitSource,
    access: &GitAccess,
    pool_bundles: &[String],
    commit: Option<&String>,
    reference: Option<&String>,
) -> proto::GitSource {
    let (mut username, mut password, mut ssh_private_key, mut known_hosts) = Default::default();
    match &access.auth {
        Some(GitCredential::Basic(auth)) => {
            (username, password) = (auth.username.clone(), auth.password.expose().to_owned());
        }
        Some(GitCredential::Ssh(key)) => {
            (ssh_private_key, known_hosts) = (key.private_key.expose().as_bytes().to_vec(), key.known_hosts.clone());
        }
        None => {}
    }
    proto::GitSource {
        url: access.url.as_str().to_owned(),
        commit: commit.cloned().unwrap_or_default(),
        r#ref: reference.cloned().unwrap_or_default(),
        path: git.path.clone().unwrap_or_default(),
        submodules: git.submodules,
        username,
        password,
        ca_pem: join(pool_bundles, access.ca.as_deref()),
        ssh_private_key,
        known_hosts,
        lfs: git.lfs,
        keep_git_dir: git.keep_git_dir,
        full_history: git.full_history,
        credential_uid: access.uid.clone(),
    }
}

/// What a field of the run's build was resolved to.
pub(super) fn resolved<'a>(run: &'a ImageBuildRun, field: &str) -> Option<&'a Resolved> {
    run.spec.resolved.iter().find(|resolved| resolved.field == field)
}

/// The arguments of several, of which the later go before the earlier.
fn arguments(layers: [&BTreeMap<String, String>; 3]) -> HashMap<String, String> {
    layers.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Such as `nofile=1024:2048`.
fn ulimit(limit: &Ulimit) -> String {
    format!("{}={}:{}", limit.name, limit.soft, limit.hard.unwrap_or(limit.soft))
}

fn execution(execution: Option<Execution>) -> proto::Execution {
    match execution {
        Some(Execution::Native) | None => proto::Execution::Native,
        Some(Execution::Emulated) => proto::Execution::Emulated,
        Some(Execution::Cross) => proto::Execution::Cross,
        Some(Execution::CopyOnly) => proto::Execution::CopyOnly,
    }
}

fn output(run: &ImageBuildRun) -> proto::Output {
    let Some(image) = &run.spec.build.image else { return proto::Output::default() };
    let compression = image.compression.as_ref();
    proto::Output {
        docker_media_types: image.media_types == Some(MediaTypes::Docker),
        compression: compression.map(|compression| compression.kind.as_str().to_owned()).unwrap_or_default(),
        compression_level: compression.and_then(|compression| compression.level),
        force_compression: compression.is_some_and(|compression| compression.force),
        rewrite_timestamp: image.rewrite_timestamp,
    }
}

/// The cache of one platform: its name is added to the tag.
fn cache_of(reference: &Reference, platform: &str) -> Reference {
    let tag = match &reference.identifier {
        Identifier::Tag(tag) => with_platform(tag, platform),
        Identifier::Digest(_) => return reference.clone(),
    };
    Reference { repository: reference.repository.clone(), identifier: tag.into() }
}

fn seconds(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn into_map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn mirrors(mirrors: &BTreeMap<String, Vec<String>>) -> Vec<proto::RegistryMirrors> {
    let of_each = mirrors
        .iter()
        .map(|(registry, mirrors)| proto::RegistryMirrors { registry: registry.clone(), mirrors: mirrors.clone() });
    of_each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_arguments_go_before_earlier_ones() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let pool = map(&[("PROXY", "pool"), ("A", "pool"), ("B", "pool")]);
        let build = map(&[("A", "build"), ("B", "build")]);
        let all = arguments([&pool, &build, &map(&[("B", "platform")])]);
        let mut all: Vec<_> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.sort();
        assert_eq!(all, ["A=build", "B=platform", "PROXY=pool"]);
    }

    #[test]
    fn limits_and_caches_are_written_as_buildkit_reads_them() {
        for (soft, hard, expected) in
            [(1024, Some(2048), "nofile=1024:2048"), (64, None, "nofile=64:64"), (-1, Some(-1), "nofile=-1:-1")]
        {
            assert_eq!(ulimit(&Ulimit { name: "nofile".into(), soft, hard }), expected);
        }
        for (reference, expected) in [
            ("reg.example:5000/app:cache", "reg.example:5000/app:cache-linux-arm64"),
            ("reg.example/app", "reg.example/app:latest-linux-arm64"),
        ] {
            assert_eq!(cache_of(&reference.parse().unwrap(), "linux/arm64").to_string(), expected);
        }
    }
}
