//! What `kiln-build` is asked for a job: options of the Dockerfile frontend, caches, secrets, the output; pure.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use kiln_agent_proto::Job as Spec;
use kiln_registry::Login;
use serde::Serialize;
use serde_json::Value;

use super::{
    Source, credentials,
    dockerfile::Dockerfile,
    registries,
    source::{ContextContent, NamedContext},
};
use crate::reasons::{JobFailure, Reason};

/// The build argument that dates what a build makes: <https://reproducible-builds.org/specs/source-date-epoch/>.
const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// The build argument that BuildKit's lint is configured by.
const CHECK: &str = "BUILDKIT_DOCKERFILE_CHECK";
/// The label that holds when the image was made.
const CREATED: &str = "org.opencontainers.image.created";

/// A build, as `kiln-build` reads it (`builder-image/build`).
#[derive(Debug, Default, Serialize)]
pub struct Request {
    /// Options of the frontend.
    options: BTreeMap<String, String>,
    /// What the frontend may read, by name.
    directories: BTreeMap<String, PathBuf>,
    /// Files, by the id that steps mount them with.
    secrets: BTreeMap<String, PathBuf>,
    ssh: BTreeMap<String, PathBuf>,
    /// Says which registries are asked, and which images are taken for names.
    policy: Value,
    /// Caches elsewhere.
    imports: Vec<Entry>,
    exports: Vec<Entry>,
    output: Output,
    /// Whether the agent is shown the image before that.
    look: bool,
    /// Where buildkitd is.
    pub address: String,
    /// Files with the CAs of token realms, by registry.
    pub authorities: BTreeMap<String, PathBuf>,
    /// The login for registries that are shown one, by registry.
    pub hosts: BTreeMap<String, String>,
    /// What `kiln-build` calls the job's logins, in their order.
    logins: Vec<String>,
    /// Hosts that stand for other registries.
    mirrors: Vec<String>,
    /// Hosts that are spoken to without TLS.
    plain: Vec<String>,
}

/// A cache.
#[derive(Debug, Default, Serialize)]
struct Entry {
    r#type: &'static str,
    attributes: BTreeMap<String, String>,
}

/// What becomes of the image.
#[derive(Debug, Default, Serialize)]
struct Output {
    #[serde(flatten)]
    entry: Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

impl Entry {
    fn new(r#type: &'static str, attributes: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let attributes = attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { r#type, attributes }
    }
}

/// What a request follows from.
pub struct Wanted<'a> {
    /// The job.
    pub spec: &'a Spec,
    /// Its source.
    pub source: &'a Source,
    /// The Dockerfile as it was read.
    pub dockerfile: &'a Dockerfile<'a>,
    /// The job's directory in memory.
    pub memory: &'a Path,
    /// The source policy, which says which registries are asked, and which images are taken for names.
    pub policy: &'a Value,
    /// The tarball that is written in place of a push.
    pub archive: Option<&'a Path>,
}

impl Wanted<'_> {
    /// The request that makes this build.
    pub fn request(&self) -> Result<Request, JobFailure> {
        let Self { spec, source, .. } = *self;
        let mut options = self.options()?;
        let mut directories: BTreeMap<String, PathBuf> =
            [("context".to_owned(), source.context.clone()), ("dockerfile".to_owned(), source.dockerfile_dir.clone())]
                .into();
        for (number, NamedContext { name, content }) in source.contexts.iter().enumerate() {
            let place = match content {
                ContextContent::Image(reference) => format!("docker-image://{reference}"),
                ContextContent::Directory(directory) => {
                    // A number, for a name may hold what the name of a directory may not.
                    let beside = format!("beside-{number}");
                    directories.insert(beside.clone(), directory.clone());
                    format!("local:{beside}")
                }
            };
            options.insert(format!("context:{name}"), place);
        }
        let files = |files: Vec<(&str, PathBuf)>| files.into_iter().map(|(id, file)| (id.to_owned(), file)).collect();
        let (imports, exports) = self.caches();
        let request = Request {
            options,
            directories,
            secrets: files(credentials::secret_files(self.memory, spec).collect()),
            ssh: files(credentials::ssh_files(self.memory, spec).collect()),
            policy: self.policy.clone(),
            imports,
            exports,
            output: self.output(),
            logins: registries::logins(spec).iter().map(Login::key).collect(),
            mirrors: spec.registry_mirrors.iter().flat_map(|of| &of.mirrors).map(|mirror| host_of(mirror)).collect(),
            plain: spec.plain_http_registries.iter().map(|host| host.to_ascii_lowercase()).collect(),
            // A check gives nothing away.
            look: self.archive.is_some() || !spec.repository.is_empty(),
            ..Request::default()
        };
        request.check()?;
        Ok(request)
    }

    /// Options of the frontend:
    /// <https://github.com/moby/buildkit/blob/v0.33.1/frontend/dockerui/config.go>.
    fn options(&self) -> Result<BTreeMap<String, String>, JobFailure> {
        let Self { spec, source, .. } = *self;
        let mut options = BTreeMap::new();
        let mut option = |name: &str, value: &str| drop(options.insert(name.to_owned(), value.to_owned()));
        if !spec.allow_frontends {
            // buildkitd's own frontend, whatever a `# syntax=` line says.
            option("cmdline", "dockerfile.v0");
        }
        option("filename", &source.dockerfile.display().to_string());
        for (name, value) in [("platform", &spec.platform), ("target", &spec.target)] {
            if !value.is_empty() {
                option(name, value);
            }
        }
        let build_args = self.build_args();
        let labels = self.labels();
        for (kind, values) in [("build-arg", &build_args), ("label", &labels)] {
            for (key, value) in values {
                check_key(kind, key)?;
                option(&format!("{kind}:{key}"), value);
            }
        }
        if spec.no_cache {
            // Of all stages.
            option("no-cache", "");
        } else if !spec.no_cache_stages.is_empty() {
            option("no-cache", &spec.no_cache_stages.join(","));
        }
        if !spec.ulimits.is_empty() {
            option("ulimit", &spec.ulimits.join(","));
        }
        if spec.shm_bytes > 0 {
            option("shm-size", &spec.shm_bytes.to_string());
        }
        let hosts: Vec<String> =
            spec.hosts.iter().flat_map(|host| host.names.iter().map(|name| format!("{name}={}", host.ip))).collect();
        if !hosts.is_empty() {
            option("add-hosts", &hosts.join(","));
        }
        if spec.no_network {
            option("force-network-mode", "none");
        }
        Ok(options)
    }

    fn build_args(&self) -> HashMap<String, String> {
        let mut values = self.spec.build_args.clone();
        // An empty one means that there is none.
        if values.get(EPOCH).is_some_and(String::is_empty) {
            values.remove(EPOCH);
        } else if let (false, Some(time), true) =
            (values.contains_key(EPOCH), self.source.commit_time, self.dockerfile.mentions(EPOCH))
        {
            // Only where it is used: as an argument it is part of what BuildKit knows a WORKDIR by, so each commit would
            // build everything behind one anew. The output is dated by its own option.
            values.insert(EPOCH.to_owned(), time.to_string());
        }
        if self.spec.fail_on_warnings {
            values
                .entry(CHECK.to_owned())
                .and_modify(|check| check.push_str(";error=true"))
                .or_insert_with(|| "error=true".to_owned());
        }
        values
    }

    /// The second that the image is dated by, in seconds since 1970.
    fn epoch(&self) -> Option<String> {
        match self.spec.build_args.get(EPOCH) {
            Some(given) => Some(given.clone()).filter(|given| !given.is_empty()),
            None => self.source.commit_time.map(|time| time.to_string()),
        }
    }

    fn labels(&self) -> HashMap<String, String> {
        let mut labels = self.spec.labels.clone();
        for (key, value) in &self.spec.default_labels {
            if labels.contains_key(key) || self.dockerfile.mentions(key) {
                continue;
            }
            let value = if key == CREATED && value.is_empty() {
                self.source.commit_time.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }.to_string())
            } else {
                Some(value.clone())
            };
            labels.extend(value.map(|value| (key.clone(), value)));
        }
        labels
    }

    /// Registry caches that are read and written. BuildKit goes on without one that it cannot read.
    fn caches(&self) -> (Vec<Entry>, Vec<Entry>) {
        let Some(cache) = &self.spec.cache else { return Default::default() };
        let imports = cache.from.iter().map(|from| Entry::new("registry", [("ref", from.clone())])).collect();
        let mut exports = Vec::new();
        if !cache.to.is_empty() {
            let of = |value: &str| value.to_owned();
            exports.push(Entry::new(
                "registry",
                [
                    ("ref", cache.to.clone()),
                    ("mode", of(if cache.max { "max" } else { "min" })),
                    // As an ordinary image, for registries that take no other index.
                    ("image-manifest", of("true")),
                    ("oci-mediatypes", of("true")),
                    ("ignore-error", of("true")),
                ],
            ));
        }
        if cache.inline {
            exports.push(Entry::new("inline", []));
        }
        (imports, exports)
    }

    fn output(&self) -> Output {
        let spec = self.spec;
        let mut output = spec.output.clone().unwrap_or_default();
        if output.docker_media_types {
            // BuildKit takes a layer as the cache has it, which may be zstd for another image: Docker's types know gzip alone.
            output.force_compression = true;
            if output.compression.is_empty() {
                "gzip".clone_into(&mut output.compression);
            }
        }
        let mut attributes = BTreeMap::new();
        let mut set = |key: &str, value: &str| drop(attributes.insert(key.to_owned(), value.to_owned()));
        set("oci-mediatypes", if output.docker_media_types { "false" } else { "true" });
        if self.archive.is_none() && !spec.repository.is_empty() {
            set("name", &spec.repository);
            for key in ["push", "push-by-digest", "name-canonical"] {
                set(key, "true");
            }
        }
        if !output.compression.is_empty() {
            set("compression", &output.compression);
        }
        if let Some(level) = output.compression_level {
            set("compression-level", &level.to_string());
        }
        if output.force_compression {
            set("force-compression", "true");
        }
        if let Some(epoch) = self.epoch() {
            set("source-date-epoch", &epoch);
        }
        if output.rewrite_timestamp {
            set("rewrite-timestamp", "true");
        }
        for (key, value) in &spec.annotations {
            set(&format!("annotation.{key}"), value);
        }
        let r#type = if self.archive.is_some() { "oci" } else { "image" };
        Output { entry: Entry { r#type, attributes }, file: self.archive.map(Path::to_owned) }
    }
}

impl Request {
    /// Refuses what no program can be given: a NUL in a value.
    fn check(&self) -> Result<(), JobFailure> {
        let values = self.options.iter().chain(&self.output.entry.attributes);
        match values.into_iter().find(|(key, value)| key.contains('\0') || value.contains('\0')) {
            Some((key, _)) => Err(JobFailure::new(
                Reason::InvalidJob,
                format!("a value for {} holds a NUL character", key.replace('\0', "")),
            )),
            None => Ok(()),
        }
    }
}

/// The host of a mirror, which may have a path.
fn host_of(mirror: &str) -> String {
    mirror.split('/').next().unwrap_or(mirror).to_ascii_lowercase()
}

fn check_key(kind: &str, key: &str) -> Result<(), JobFailure> {
    if key.is_empty() || key.chars().any(|char| char == '=' || char.is_whitespace() || char.is_control()) {
        return Err(JobFailure::new(Reason::InvalidJob, format!("{key:?} cannot be the name of a {kind}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
