//! Runs `buildctl build` for a job and reads its result.

use std::{fs, path::Path};

use kiln_agent_proto::{Job as Spec, Phase, Result as JobResult};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    Recorder, Source, credentials,
    excerpt::{Excerpt, read_dockerfile},
    failure::{Circumstances, explain},
    process_failure,
    progress::{Progress, Update},
};
use crate::{
    buildkit::{Buildkit, SAMPLER},
    process,
    reasons::{JobFailure, Reason},
};

/// What a build needs.
pub struct Build<'a> {
    /// The job.
    pub spec: &'a Spec,
    /// Its context.
    pub source: &'a Source,
    /// The Dockerfile, relative to the source's `dockerfile_dir`.
    pub dockerfile: &'a Path,
    /// The job's directory in memory.
    pub memory: &'a Path,
}

impl Build<'_> {
    /// Builds and pushes, tells of it on the way, and gives the manifest.
    pub async fn run(
        &self,
        buildkit: &Buildkit,
        recorder: &Recorder,
        stop: &CancellationToken,
    ) -> Result<JobResult, JobFailure> {
        let metadata = self.memory.join("metadata.json");
        let mut command = buildkit.buildctl();
        command
            .args(self.arguments(&metadata)?)
            .env("DOCKER_CONFIG", self.memory.join("docker"))
            .env("HOME", self.memory.join("home"))
            .current_dir(self.memory);
        if is_traceparent(&self.spec.traceparent) {
            // buildctl hands its spans to buildkitd, which sends them on with its own, all below this one.
            command.env_remove(SAMPLER).env("TRACEPARENT", &self.spec.traceparent);
        }
        let mut progress = Progress::new(recorder.masker());
        let ended = process::run(&mut command, None, stop, |line| {
            for update in progress.line(line) {
                match update {
                    Update::Step(changed) => recorder.step(changed),
                    Update::Line { step_id, line } => recorder.line(step_id, line),
                    Update::Pushing => recorder.phase(Phase::Pushing),
                }
            }
        })
        .await;
        let finished = ended.map_err(|error| {
            // Where the build was stopped, the step that ran tells where the time went.
            let (running, log_tail) = progress.running_step().unwrap_or_default();
            JobFailure { step: running, log_tail, ..process_failure(error) }
        })?;
        if !finished.status.success() {
            let dockerfile = self.dockerfile.to_string_lossy();
            let content = read_dockerfile(&self.source.dockerfile_dir, self.dockerfile);
            let build = Circumstances {
                dockerfile: &dockerfile,
                platform: &self.spec.platform,
                repository: &self.spec.repository,
                volume_full: is_full(&self.source.context),
                content: content.as_deref(),
            };
            return Err(explain(progress.text(), progress.failed_step().as_ref(), build));
        }
        // BuildKit puts the build's platform on the image whatever the base was: the wrong programs under the right
        // name. Its linter notices.
        let wrong_base = progress
            .warnings()
            .iter()
            .find_map(|warning| Some((warning.text.strip_prefix("InvalidBaseImagePlatform: ")?, warning.line)));
        if let Some((warning, line)) = wrong_base {
            let message = format!(
                "{warning}: its registry gave the base image of another platform; choose a base image that has {}",
                self.spec.platform
            );
            let dockerfile = self.dockerfile.to_string_lossy().into_owned();
            let content = read_dockerfile(&self.source.dockerfile_dir, self.dockerfile).unwrap_or_default();
            let excerpt = Box::new(Excerpt::of_line(&dockerfile, line, &content));
            return Err(JobFailure {
                dockerfile,
                line,
                excerpt,
                ..JobFailure::new(Reason::BaseImagePlatform, message)
            });
        }
        let metadata =
            fs::read(&metadata).map_err(|error| JobFailure::agent("read what buildctl says of the image", &error))?;
        result(&metadata).map_err(|error| JobFailure::agent("read what buildctl says of the image", &error))
    }

    /// The arguments of `buildctl` that make this build.
    fn arguments(&self, metadata: &Path) -> Result<Vec<String>, JobFailure> {
        let spec = self.spec;
        let mut arguments: Vec<String> =
            ["build", "--progress=rawjson", "--frontend=dockerfile.v0"].map(str::to_owned).to_vec();
        arguments.push(format!("--metadata-file={}", metadata.display()));
        arguments.push(format!("--local=context={}", self.source.context.display()));
        arguments.push(format!("--local=dockerfile={}", self.source.dockerfile_dir.display()));
        arguments.extend(self.source.context_arguments());
        let mut option = |name: &str, value: &str| arguments.push(format!("--opt={name}={value}"));
        if !spec.allow_frontends {
            // buildkitd's own frontend, whatever a `# syntax=` line says.
            option("cmdline", "dockerfile.v0");
        }
        option("filename", &self.dockerfile.display().to_string());
        if !spec.platform.is_empty() {
            option("platform", &spec.platform);
        }
        if !spec.target.is_empty() {
            option("target", &spec.target);
        }
        for (kind, values) in [("build-arg", &spec.build_args), ("label", &spec.labels)] {
            for (key, value) in sorted(values) {
                check_key(kind, key)?;
                option(&format!("{kind}:{key}"), value);
            }
        }
        if spec.no_cache {
            arguments.push("--no-cache".to_owned());
        }
        for (id, file) in credentials::secret_files(self.memory, spec) {
            arguments.push(format!(
                "--secret={}",
                csv(&[("id".to_owned(), id.to_owned()), ("src".to_owned(), file.display().to_string())])
            ));
        }
        arguments.push(format!("--output={}", self.output()?));
        arguments.iter().try_for_each(|argument| check_argument(argument))?;
        Ok(arguments)
    }

    fn output(&self) -> Result<String, JobFailure> {
        let mut fields = vec![("type", "image".to_owned()), ("oci-mediatypes", "true".to_owned())];
        if !self.spec.repository.is_empty() {
            let push = [
                ("name", self.spec.repository.as_str()),
                ("push", "true"),
                ("push-by-digest", "true"),
                ("name-canonical", "true"),
            ];
            fields.extend(push.map(|(key, value)| (key, value.to_owned())));
        }
        let mut fields: Vec<(String, String)> =
            fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        for (key, value) in sorted(&self.spec.annotations) {
            check_key("annotation", key)?;
            // buildctl makes the keys of this option lower-case.
            if key.chars().any(char::is_uppercase) {
                return Err(JobFailure::new(
                    Reason::InvalidJob,
                    format!("the annotation's key {key:?} has upper-case letters, which BuildKit cannot write"),
                ));
            }
            fields.push((format!("annotation.{key}"), value.to_owned()));
        }
        Ok(csv(&fields))
    }
}

fn sorted(values: &std::collections::HashMap<String, String>) -> Vec<(&str, &str)> {
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
fn csv(fields: &[(String, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(key, value)| {
            let field = format!("{key}={value}");
            if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
        })
        .collect();
    fields.join(",")
}

/// Reads the manifest's descriptor from `buildctl`'s metadata.
fn result(metadata: &[u8]) -> Result<JobResult, serde_json::Error> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "containerimage.descriptor")]
        descriptor: Descriptor,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Descriptor {
        media_type: String,
        digest: String,
        size: u64,
    }
    let Descriptor { media_type, digest, size } = serde_json::from_slice::<Metadata>(metadata)?.descriptor;
    Ok(JobResult { digest, size, media_type, ..JobResult::default() })
}

/// Whether `text` is a traceparent: version, trace, parent and flags in lower-case hexadecimal digits.
/// <https://www.w3.org/TR/trace-context/#traceparent-header>
fn is_traceparent(text: &str) -> bool {
    let lengths = [2, 32, 16, 2];
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    text.split('-').map(str::len).eq(lengths) && text.split('-').all(is_hex)
}

/// Whether the file system that holds `path` has less than a hundredth of its room left.
fn is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|volume| volume.f_bavail < volume.f_blocks / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(spec: &Spec) -> String {
        let source = Source::new("/work/job/source/app".into(), String::new());
        let build = Build {
            spec,
            source: &source,
            dockerfile: Path::new("docker/Dockerfile.prod"),
            memory: Path::new("/memory/job"),
        };
        build.arguments(Path::new("/memory/job/metadata.json")).unwrap().join("\n")
    }

    fn map(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_rich_build() {
        insta::assert_snapshot!(arguments(&Spec {
            platform: "linux/arm64".to_owned(),
            target: "run".to_owned(),
            build_args: map(&[("VERSION", "1,2 \"x\""), ("A", "b=c")]),
            labels: map(&[("org.example", "x")]),
            annotations: map(&[("org.opencontainers.image.title", "a, \"b\"")]),
            no_cache: true,
            secrets: [("tok,en".to_owned(), b"hunter22".to_vec())].into(),
            repository: "registry.example:5000/team/app".to_owned(),
            ..Spec::default()
        }));
    }

    #[test]
    fn a_build_without_push() {
        insta::assert_snapshot!(arguments(&Spec {
            platform: "linux/amd64".to_owned(),
            allow_frontends: true,
            ..Spec::default()
        }));
    }

    #[test]
    fn traceparents() {
        assert!(is_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        for bad in ["", "00", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "x=y\0"] {
            assert!(!is_traceparent(bad), "{bad:?}");
        }
    }

    #[test]
    fn refuses_what_no_program_can_be_given() {
        let source = Source::new("/work/job/source".into(), String::new());
        let long = "x".repeat(8192);
        let names: Vec<String> = (0..32).map(|number| format!("k{number}")).collect();
        let annotations: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
        for spec in [
            Spec { build_args: map(&[("A", "a\0b")]), ..Spec::default() },
            Spec { target: "\0".to_owned(), ..Spec::default() },
            Spec { annotations: map(&annotations), ..Spec::default() },
        ] {
            let build =
                Build { spec: &spec, source: &source, dockerfile: Path::new("Dockerfile"), memory: Path::new("/m") };
            assert_eq!(build.arguments(Path::new("/m/metadata.json")).unwrap_err().reason, Reason::InvalidJob);
        }
    }

    #[test]
    fn reads_the_result() {
        let result = result(include_bytes!("testdata/metadata.json")).unwrap();
        assert!(result.digest.starts_with("sha256:") && result.size > 0);
        assert_eq!(result.media_type, "application/vnd.oci.image.manifest.v1+json");
    }
}
