//! What `buildctl build` is told for a job: options of the Dockerfile frontend, caches, secrets, outputs.

use std::{collections::HashMap, path::Path};

use kiln_agent_proto::{Execution, Job as Spec};

use super::{Source, credentials, dockerfile::Dockerfile};
use crate::reasons::{JobFailure, Reason};

/// The build argument that dates what a build makes: <https://reproducible-builds.org/specs/source-date-epoch/>.
const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// The build argument that BuildKit's lint is configured by.
const CHECK: &str = "BUILDKIT_DOCKERFILE_CHECK";
/// The label that holds when the image was made.
const CREATED: &str = "org.opencontainers.image.created";

/// What the arguments follow from.
pub struct Arguments<'a> {
    /// The job.
    pub spec: &'a Spec,
    /// Its source.
    pub source: &'a Source,
    /// The Dockerfile as it was read.
    pub dockerfile: &'a Dockerfile<'a>,
    /// The job's directory in memory.
    pub memory: &'a Path,
    /// The file that buildctl describes the image in.
    pub metadata: &'a Path,
    /// The source policy, which says which registries are asked, and which images are taken for names.
    pub policy: &'a Path,
    /// The tarball that is written in place of a push.
    pub archive: Option<&'a Path>,
}

impl Arguments<'_> {
    /// The arguments of `buildctl` that make this build.
    pub fn list(&self) -> Result<Vec<String>, JobFailure> {
        let Self { spec, source, .. } = *self;
        let mut list: Vec<String> =
            ["build", "--progress=rawjson", "--frontend=dockerfile.v0"].map(str::to_owned).to_vec();
        list.push(format!("--metadata-file={}", self.metadata.display()));
        list.push(format!("--local=context={}", source.context.display()));
        list.push(format!("--local=dockerfile={}", source.dockerfile_dir.display()));
        list.extend(source.context_arguments());
        list.push(format!("--source-policy-file={}", self.policy.display()));
        list.extend(self.options()?.into_iter().map(|(name, value)| format!("--opt={name}={value}")));
        if spec.no_cache {
            list.push("--no-cache".to_owned());
        }
        for (id, file) in credentials::secret_files(self.memory, spec) {
            list.push(format!("--secret={}", csv(&[("id", id), ("src", &file.display().to_string())])));
        }
        for (id, file) in credentials::ssh_files(self.memory, spec) {
            // Not CSV: buildctl splits it at the first `=` and at commas.
            check_key("key in spec.ssh", id)?;
            list.push(format!("--ssh={id}={}", file.display()));
        }
        list.extend(self.caches());
        list.push(format!("--output={}", self.output()?));
        list.iter().try_for_each(|argument| check_argument(argument))?;
        Ok(list)
    }

    /// Options of the frontend:
    /// <https://github.com/moby/buildkit/blob/v0.33.1/frontend/dockerui/config.go>.
    fn options(&self) -> Result<Vec<(String, String)>, JobFailure> {
        let Self { spec, source, .. } = *self;
        let mut options = Vec::new();
        let mut option = |name: &str, value: &str| options.push((name.to_owned(), value.to_owned()));
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
            for (key, value) in sorted(values) {
                check_key(kind, key)?;
                option(&format!("{kind}:{key}"), value);
            }
        }
        if !spec.no_cache && !spec.no_cache_stages.is_empty() {
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

    /// Registry caches. BuildKit goes on without one that it cannot read.
    fn caches(&self) -> Vec<String> {
        let Some(cache) = &self.spec.cache else { return Vec::new() };
        let mut list: Vec<String> = cache
            .from
            .iter()
            .map(|reference| format!("--import-cache={}", csv(&[("type", "registry"), ("ref", reference)])))
            .collect();
        if !cache.to.is_empty() {
            let mode = if cache.max { "max" } else { "min" };
            list.push(format!(
                "--export-cache={}",
                csv(&[
                    ("type", "registry"),
                    ("ref", &cache.to),
                    ("mode", mode),
                    // As an ordinary image, for registries that take no other index.
                    ("image-manifest", "true"),
                    ("oci-mediatypes", "true"),
                    ("ignore-error", "true"),
                ])
            ));
        }
        if cache.inline {
            list.push("--export-cache=type=inline".to_owned());
        }
        list
    }

    fn output(&self) -> Result<String, JobFailure> {
        let spec = self.spec;
        let mut output = spec.output.clone().unwrap_or_default();
        if output.docker_media_types {
            // BuildKit takes a layer as the cache has it, which may be zstd for another image: Docker's types know gzip alone.
            output.force_compression = true;
            if output.compression.is_empty() {
                "gzip".clone_into(&mut output.compression);
            }
        }
        let bool = |value: bool| if value { "true" } else { "false" }.to_owned();
        let mut fields = vec![
            ("type".to_owned(), if self.archive.is_some() { "oci" } else { "image" }.to_owned()),
            ("oci-mediatypes".to_owned(), bool(!output.docker_media_types)),
        ];
        let mut field = |key: &str, value: String| fields.push((key.to_owned(), value));
        if let Some(archive) = self.archive {
            field("dest", archive.display().to_string());
        } else if !spec.repository.is_empty() {
            field("name", spec.repository.clone());
            field("push", bool(true));
            field("push-by-digest", bool(true));
            field("name-canonical", bool(true));
        }
        if !output.compression.is_empty() {
            field("compression", output.compression.clone());
        }
        if let Some(level) = output.compression_level {
            field("compression-level", level.to_string());
        }
        if output.force_compression {
            field("force-compression", bool(true));
        }
        if let Some(epoch) = self.epoch() {
            field("source-date-epoch", epoch);
        }
        if output.rewrite_timestamp {
            field("rewrite-timestamp", bool(true));
        }
        for (key, value) in sorted(&spec.annotations) {
            check_key("annotation", key)?;
            // buildctl makes the keys of this option lower-case.
            if key.chars().any(char::is_uppercase) {
                return Err(JobFailure::new(
                    Reason::InvalidJob,
                    format!("the annotation's key {key:?} has upper-case letters, which BuildKit cannot write"),
                ));
            }
            field(&format!("annotation.{key}"), value.to_owned());
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        Ok(csv(&fields))
    }
}

/// Whether the builder's own programs may be found in an image for another platform.
#[must_use]
pub fn may_hold_foreign_programs(spec: &Spec) -> bool {
    spec.execution() != Execution::Native
}

fn sorted(values: &HashMap<String, String>) -> Vec<(&str, &str)> {
    let mut values: Vec<(&str, &str)> = values.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    values.sort_unstable();
    values
}

fn check_key(kind: &str, key: &str) -> Result<(), JobFailure> {
    if key.is_empty() || key.chars().any(|char| char == '=' || char.is_whitespace() || char.is_control()) {
        return Err(JobFailure::new(Reason::InvalidJob, format!("{key:?} cannot be the name of a {kind}")));
    }
    Ok(())
}

/// Refuses what execve(2) does: an argument with a NUL in it, or one of 128 KiB and more.
fn check_argument(argument: &str) -> Result<(), JobFailure> {
    const LONGEST: usize = 128 << 10;
    let begin = || argument.split(['=', ',']).take(2).collect::<Vec<_>>().join("=");
    if argument.contains('\0') {
        return Err(JobFailure::new(Reason::InvalidJob, format!("a value for {} holds a NUL character", begin())));
    }
    if argument.len() >= LONGEST {
        let message = format!(
            "what is to be written for {} is longer than {LONGEST} bytes; annotations may not be longer together",
            begin()
        );
        return Err(JobFailure::new(Reason::InvalidJob, message));
    }
    Ok(())
}

/// `key=value` fields as one line of CSV (RFC 4180), which `buildctl` expects.
fn csv(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(key, value)| {
            let field = format!("{key}={value}");
            if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
        })
        .collect();
    fields.join(",")
}

/// The arguments of `buildctl` that carry out a Dockerfile whose context `image` is one, and write what it makes to
/// `directory`.
#[must_use]
pub fn extraction(image: &str, platform: &str, dockerfile_dir: &Path, directory: &Path) -> Vec<String> {
    let dockerfile_dir = dockerfile_dir.display();
    vec![
        "build".to_owned(),
        "--progress=rawjson".to_owned(),
        "--frontend=dockerfile.v0".to_owned(),
        "--opt=cmdline=dockerfile.v0".to_owned(),
        format!("--opt=platform={platform}"),
        format!("--opt=context:image=docker-image://{image}"),
        format!("--local=context={dockerfile_dir}"),
        format!("--local=dockerfile={dockerfile_dir}"),
        format!("--output={}", csv(&[("type", "local"), ("dest", &directory.display().to_string())])),
    ]
}

#[cfg(test)]
mod tests;
