//! Runs `buildctl build` for a job and reads its result.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Mutex,
    time::Duration,
};

use kiln_agent_proto::{Execution, Job as Spec, Phase, Result as JobResult};
use kiln_registry::{Repository, text::plain_text};
use serde::Deserialize;
use tokio::{process::Command, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Recorder, Source,
    addresses::{Image, Learned, MOST_REGISTRIES, Permitted, Refused},
    archive,
    arguments::{self, Arguments},
    content,
    dockerfile::{Dockerfile, Instruction},
    excerpt::{Excerpt, read_dockerfile},
    failure::{Circumstances, explain, refused_image},
    pins, process_failure, programs,
    progress::{Progress, Update},
    source::ContextContent,
    stages,
};
use crate::{
    buildkit::SAMPLER,
    files,
    jobs::Registry,
    process,
    reasons::{JobFailure, Reason},
    sandbox::LARGEST_FILE,
};

/// What a build needs.
pub struct Build<'a> {
    /// What all jobs share.
    pub registry: &'a Registry,
    /// The job.
    pub spec: &'a Spec,
    /// Its source.
    pub source: &'a Source,
    /// The job's directory on the volume.
    pub work: &'a Path,
    /// The job's directory in memory.
    pub memory: &'a Path,
}

/// Where a build writes to.
struct Outputs<'a> {
    /// The directory that `metadata` is in.
    directory: PathBuf,
    /// What describes the image.
    metadata: &'a Path,
    /// The tarball in place of a push.
    archive: Option<&'a archive::Target>,
}

/// The longest description of an image that is read.
const LONGEST_METADATA: u64 = 16 << 20;

/// The builder's own platform.
pub const BUILDER: &str = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" => "linux/amd64",
    b"aarch64" => "linux/arm64",
    _ => "linux",
};

impl Build<'_> {
    /// Builds and pushes, tells of it on the way, and gives the manifest.
    pub async fn run(&self, recorder: &Recorder, stop: &CancellationToken) -> Result<JobResult, JobFailure> {
        let spec = self.spec;
        let text = read_dockerfile(&self.source.dockerfile_dir, &self.source.dockerfile).unwrap_or_default();
        let dockerfile = Dockerfile::read(&text);
        let contexts: Vec<&str> = self.source.contexts.iter().map(|context| context.name.as_str()).collect();
        let stages = stages::Build {
            target: &spec.target,
            platform: &spec.platform,
            builder: BUILDER,
            arguments: &spec.build_args,
            contexts: &contexts,
        };
        let copied_only = self.only_copies(&dockerfile, stages)?;
        let permitted = self.check_registries(&dockerfile, stages).await?;
        // On the volume: what is in memory is for all jobs.
        let output = self.work.join("output");
        fs::create_dir_all(&output).map_err(|error| JobFailure::agent("make the output's directory", &error))?;
        let metadata = output.join("metadata.json");
        let archives = self.registry.config().archives_dir.as_deref();
        let archive = archive::Target::of(spec, archives)?;
        let to = Outputs { directory: output, metadata: &metadata, archive: archive.as_ref() };
        let progress = self.build(&dockerfile, permitted, to, recorder, stop).await?;
        // BuildKit puts the build's platform on the image whatever the base was: the wrong programs under the right
        // name. Its linter notices.
        if let Some(warning) = progress.warnings().iter().find(|warning| warning.rule == "InvalidBaseImagePlatform") {
            let message = format!(
                "{}: its registry gave the base image of another platform; choose a base image that has {}",
                warning.message, spec.platform
            );
            let failure = self.failure_at(warning.line, &text, Reason::BaseImagePlatform, message);
            return Err(JobFailure { warnings: progress.warnings().to_vec(), ..failure });
        }
        pins::record(&self.registry.config().state_dir, spec, progress.base_images(), self.registry.registries(), stop)
            .await;
        let metadata = files::read(&metadata, LONGEST_METADATA)
            .map_err(|error| JobFailure::agent("read what buildctl says of the image", &error))?;
        let (mut result, config) =
            result(&metadata).map_err(|error| JobFailure::agent("read what buildctl says of the image", &error))?;
        if let Some(archive) = archive {
            archive.finish()?;
        }
        let content = content::read(self.registry.registries(), spec, &result.digest, config.as_deref()).await;
        if arguments::may_hold_foreign_programs(spec)
            && let Some(content) = &content
        {
            self.check_program(&result.digest, content, stop).await?;
        }
        if let Some(content) = content {
            content.put_into(&mut result);
        }
        result.copied_only = copied_only;
        result.warnings = progress.warnings().to_vec();
        Ok(result)
    }

    /// Has buildctl build. Where BuildKit was refused an image whose registry may be asked, once more: neither a look at the
    /// Dockerfile nor its own names all that a base image holds back.
    async fn build<'r>(
        &self,
        dockerfile: &Dockerfile<'_>,
        mut permitted: Permitted<'_>,
        to: Outputs<'_>,
        recorder: &'r Recorder,
        stop: &CancellationToken,
    ) -> Result<Progress<'r>, JobFailure> {
        let state = &self.registry.config().state_dir;
        let pins = pins::of(self.spec, state);
        let archive = to.archive.map(archive::Target::temporary);
        // An image may be as large as the volume for archives lets it be.
        let file_bytes = if archive.is_some() { None } else { Some(LARGEST_FILE) };
        let writes: Vec<PathBuf> = [to.directory].into_iter().chain(archive.map(Path::to_owned)).collect();
        loop {
            let policy = pins::write_policy(&pins, permitted.registries(), self.memory)
                .map_err(|error| JobFailure::agent("write BuildKit's source policy", &error))?;
            let arguments = Arguments {
                spec: self.spec,
                source: self.source,
                dockerfile,
                memory: self.memory,
                metadata: to.metadata,
                policy: &policy,
                archive,
            };
            let mut progress = Progress::new(recorder.masker());
            let command = self.command(arguments.list()?, writes.clone(), file_bytes);
            let ended = self.buildctl(command, &mut progress, recorder, stop).await?;
            if ended.success() {
                return Ok(progress);
            }
            let failure = self.failure(ended, &progress, dockerfile.text);
            if let Some(reference) = refused_image(progress.text()) {
                let of = format!("the registry of {reference} is not asked");
                let message = match permitted.learn(Image { reference, line: None }).await {
                    Ok(Learned::Permitted) => continue,
                    Ok(Learned::Nothing) => of,
                    Ok(Learned::Unreadable) => {
                        format!("{of}: Kiln cannot read this name; write it as registry, path, and tag or digest")
                    }
                    Ok(Learned::TooMany) => format!(
                        "{of}: the build uses images of more than {MOST_REGISTRIES} registries; let it use fewer"
                    ),
                    Err(refused) => refused.to_string(),
                };
                let JobFailure { dockerfile, line, .. } = &failure;
                let at = if *line > 0 { format!(" (line {line} of {dockerfile})") } else { String::new() };
                let message = format!("{message}{at}");
                return Err(JobFailure { message, ..failure });
            }
            if !pins.is_empty() {
                // A digest may be gone from its registry: the next attempt asks for the names again.
                pins::forget(state);
            }
            return Err(failure);
        }
    }

    /// Why a build failed.
    fn failure(&self, ended: ExitStatus, progress: &Progress<'_>, text: &str) -> JobFailure {
        if has_crashed(ended, progress.text()) {
            let why = plain_text(progress.text().lines().next().unwrap_or_default(), 200);
            let message = format!("buildctl broke down ({why}); the builder's pod may have too many processes");
            return JobFailure::new(Reason::AgentFailed, message);
        }
        let dockerfile = self.source.dockerfile.to_string_lossy();
        let build = Circumstances {
            dockerfile: &dockerfile,
            platform: &self.spec.platform,
            repository: &self.spec.repository,
            arguments: Some(&self.spec.build_args),
            no_network: self.spec.no_network,
            volume_full: is_full(&self.source.context),
            content: Some(text),
        };
        let failure = explain(progress.text(), progress.failed_step().as_ref(), build);
        let failure = JobFailure { warnings: progress.warnings().to_vec(), ..failure };
        if failure.reason == Reason::LintFailed { self.lint_failure(failure, text) } else { failure }
    }

    /// Whether nothing runs for the platform. Fails where something has to, and nothing can.
    fn only_copies(&self, dockerfile: &Dockerfile<'_>, build: stages::Build<'_>) -> Result<bool, JobFailure> {
        let spec = self.spec;
        let Some(Instruction { rest, line, .. }) = stages::first_run(dockerfile, build) else { return Ok(true) };
        let platform = &spec.platform;
        let refuse = |reason, message: String| Err(self.failure_at(*line, dockerfile.text, reason, message));
        if platform.starts_with("windows") {
            return refuse(
                Reason::WindowsStep,
                format!(
                    "the Dockerfile runs something for {platform} (RUN {rest}), which no builder can; only copy files into a Windows image, made in a stage FROM --platform=$BUILDPLATFORM, or build it elsewhere and name it in spec.platforms[].image"
                ),
            );
        }
        if spec.execution() == Execution::CopyOnly {
            return refuse(
                Reason::NodeNeeded,
                format!("the Dockerfile runs something for {platform} (RUN {rest}), so a node that can is needed"),
            );
        }
        Ok(false)
    }

    /// The registries that BuildKit may ask, as far as the Dockerfile tells them. Fails where one is none that the job may reach.
    async fn check_registries(
        &self,
        dockerfile: &Dockerfile<'_>,
        build: stages::Build<'_>,
    ) -> Result<Permitted<'_>, JobFailure> {
        let contexts = self.source.contexts.iter().filter_map(|context| match &context.content {
            ContextContent::Image(reference) => Some(reference),
            ContextContent::Directory(_) => None,
        });
        let cache = self.spec.cache.iter().flat_map(|cache| cache.from.iter().chain([&cache.to]));
        let named = contexts.chain([&self.spec.repository]).chain(cache).filter(|name| !name.is_empty()).cloned();
        let refused = match Permitted::of(self.spec, named.collect(), stages::images(dockerfile, build)).await {
            Ok(permitted) => return Ok(permitted),
            Err(refused) => refused,
        };
        let message = refused.to_string();
        Err(match refused {
            Refused::Forbidden { image: Image { line: Some(line), .. }, .. } => {
                let message = format!("{message} (line {line} of {})", self.source.dockerfile.display());
                self.failure_at(line, dockerfile.text, Reason::AddressForbidden, message)
            }
            Refused::Forbidden { .. } => JobFailure::new(Reason::AddressForbidden, message),
            Refused::Unreadable(_) => JobFailure::new(Reason::InvalidJob, message),
        })
    }

    /// Runs `buildctl`, and stops it where it tells nothing for too long.
    async fn buildctl(
        &self,
        mut command: Command,
        progress: &mut Progress<'_>,
        recorder: &Recorder,
        stop: &CancellationToken,
    ) -> Result<ExitStatus, JobFailure> {
        if is_traceparent(&self.spec.traceparent) {
            // buildctl hands its spans to buildkitd, which sends them on with its own, all below this one.
            command.env_remove(SAMPLER).env("TRACEPARENT", &self.spec.traceparent);
        }
        let silence = Duration::from_secs(self.spec.silence_seconds.into());
        let (stop_silent, heard) = (stop.child_token(), Mutex::new(Instant::now()));
        let running = process::run(&mut command, None, &stop_silent, |line| {
            if let Ok(mut heard) = heard.lock() {
                *heard = Instant::now();
            }
            for update in progress.line(line) {
                match update {
                    Update::Step(changed) => recorder.step(changed),
                    Update::Line { step_id, line } => recorder.line(step_id, line),
                    Update::Pushing => recorder.phase(Phase::Pushing),
                }
            }
        });
        let silent = async {
            if silence.is_zero() {
                return std::future::pending().await;
            }
            loop {
                let due = heard.lock().map_or_else(|_| Instant::now(), |heard| *heard) + silence;
                if due <= Instant::now() {
                    break;
                }
                tokio::time::sleep_until(due).await;
            }
        };
        let mut was_silent = false;
        let ended = {
            tokio::pin!(running);
            tokio::select! {
                ended = &mut running => ended,
                () = silent => {
                    was_silent = true;
                    stop_silent.cancel();
                    running.await
                }
            }
        };
        match ended {
            Ok(finished) if !was_silent => Ok(finished.status),
            ended => {
                // Where the build was stopped, the step that ran tells where the time went.
                let (step, log_tail) = progress.running_step().unwrap_or_default();
                let failure = match ended {
                    _ if was_silent && !stop.is_cancelled() => JobFailure::new(
                        Reason::NoOutput,
                        format!(
                            "{} printed nothing for {} s and was stopped; let it tell what it does, or raise spec.silenceTimeout",
                            if step.is_empty() { "the build" } else { &step },
                            silence.as_secs()
                        ),
                    ),
                    Err(error) => process_failure(error),
                    Ok(_) => JobFailure::new(Reason::Cancelled, "the build was stopped"),
                };
                Err(JobFailure { step, log_tail, warnings: progress.warnings().to_vec(), ..failure })
            }
        }
    }

    /// Checks that what the image starts is a program for its platform: nobody else would notice before it runs.
    async fn check_program(
        &self,
        digest: &str,
        content: &content::Content,
        stop: &CancellationToken,
    ) -> Result<(), JobFailure> {
        let Some(program) = programs::Program::of(&content.config) else { return Ok(()) };
        let image = format!("{}@{digest}", self.spec.repository);
        let taking = program.paths().iter().enumerate().map(|(number, path)| {
            let directory = self.work.join(format!("program-{number}"));
            self.take_file(&image, path, directory, stop)
        });
        let taken = futures::future::join_all(taking.collect::<Vec<_>>()).await;
        let files = taken.into_iter().collect::<Result<Vec<_>, _>>()?;
        match program.check(&files, &self.spec.platform) {
            Some(message) => Err(JobFailure::new(Reason::WrongArchitecture, message)),
            None => Ok(()),
        }
    }

    /// Takes a file out of an image, and gives the path where it is, if the image has it.
    async fn take_file(
        &self,
        image: &str,
        path: &str,
        directory: PathBuf,
        stop: &CancellationToken,
    ) -> Result<PathBuf, JobFailure> {
        let (dockerfile_dir, files) = (directory.join("dockerfile"), directory.join("files"));
        fs::create_dir_all(&dockerfile_dir)
            .and_then(|()| fs::write(dockerfile_dir.join("Dockerfile"), programs::dockerfile(path)))
            .map_err(|error| JobFailure::agent("write what takes a program out of the image", &error))?;
        let arguments = arguments::extraction(image, &self.spec.platform, &dockerfile_dir, &files);
        let mut command = self.command(arguments, vec![directory], Some(LARGEST_FILE));
        // A failure means most often that there is no such file.
        process::run(&mut command, None, stop, |line| tracing::trace!(line = %String::from_utf8_lossy(line)))
            .await
            .map_err(process_failure)?;
        Ok(files.join("program"))
    }

    /// The registry that the image goes to.
    fn own_registry(&self) -> Option<String> {
        self.spec.repository.parse::<Repository>().ok().map(|repository| repository.registry)
    }

    /// `buildctl` with the job's credentials, and what it writes to.
    fn command(&self, arguments: Vec<String>, write: Vec<PathBuf>, file_bytes: Option<u64>) -> Command {
        let own = |names: &[&str]| names.iter().map(|name| self.memory.join(name)).collect::<Vec<_>>();
        let read = [vec![self.work.to_owned()], own(&["docker", "secrets", "ssh", pins::POLICY])].concat();
        let mut command = self.registry.buildkit().buildctl(read, write, file_bytes);
        command
            .args(arguments)
            .args(self.own_registry().and_then(|registry| self.registry.buildkit().tls_of(&registry)))
            .env("DOCKER_CONFIG", self.memory.join("docker"))
            .env("HOME", self.memory.join("home"))
            .current_dir(self.memory);
        command
    }

    /// With the first warning's place.
    fn lint_failure(&self, failure: JobFailure, text: &str) -> JobFailure {
        let Some(first) = failure.warnings.first().cloned() else { return failure };
        let message = format!(
            "{} (line {} of {}): {}; mend it, or leave out spec.failOnWarnings",
            first.rule, first.line, first.dockerfile, first.message
        );
        JobFailure { warnings: failure.warnings, ..self.failure_at(first.line, text, Reason::LintFailed, message) }
    }

    fn failure_at(&self, line: u32, text: &str, reason: Reason, message: String) -> JobFailure {
        let dockerfile = self.source.dockerfile.to_string_lossy().into_owned();
        let excerpt = Box::new(Excerpt::of_line(&dockerfile, line, text));
        JobFailure { dockerfile, line, excerpt, ..JobFailure::new(reason, message) }
    }
}

/// Whether Go's runtime ended `buildctl`, as where its pod has too many processes, and not `buildctl` itself: that ends with
/// another code.
fn has_crashed(status: ExitStatus, text: &str) -> bool {
    status.code() == Some(2) && ["runtime: ", "fatal error: "].iter().any(|begin| text.starts_with(begin))
}

/// Reads the manifest's descriptor and the configuration's digest from `buildctl`'s metadata.
fn result(metadata: &[u8]) -> Result<(JobResult, Option<String>), serde_json::Error> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "containerimage.descriptor")]
        descriptor: Descriptor,
        #[serde(rename = "containerimage.config.digest")]
        config: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Descriptor {
        media_type: String,
        digest: String,
        size: u64,
        #[serde(default)]
        platform: Platform,
    }
    #[derive(Default, Deserialize)]
    struct Platform {
        #[serde(rename = "os.version", default)]
        os_version: String,
        #[serde(rename = "os.features", default)]
        os_features: Vec<String>,
    }
    let Metadata { descriptor, config } = serde_json::from_slice(metadata)?;
    let Descriptor { media_type, digest, size, platform: Platform { os_version, os_features } } = descriptor;
    Ok((JobResult { digest, size, media_type, os_version, os_features, ..JobResult::default() }, config))
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

    #[test]
    fn crashes() {
        use std::os::unix::process::ExitStatusExt as _;
        let ended = |code: i32| ExitStatus::from_raw(code << 8);
        assert!(has_crashed(ended(2), "runtime: failed to create new OS thread (have 8 already; errno=11)\n"));
        assert!(!has_crashed(ended(1), "runtime: a stage of this name\n"));
        assert!(!has_crashed(ended(2), "error: failed to solve\n"));
    }

    #[test]
    fn traceparents() {
        assert!(is_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        for bad in ["", "00", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "x=y\0"] {
            assert!(!is_traceparent(bad), "{bad:?}");
        }
    }

    #[test]
    fn reads_the_result() {
        let (result, _) = result(include_bytes!("testdata/metadata.json")).unwrap();
        assert!(result.digest.starts_with("sha256:") && result.size > 0);
        assert_eq!(result.media_type, "application/vnd.oci.image.manifest.v1+json");
    }
}
