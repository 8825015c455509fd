//! Has `kiln-build` build for a job, and reads its result.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Mutex,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kiln_agent_proto::{Execution, Job as Spec, Phase, Result as JobResult, Warning};
use kiln_registry::{Reference, Repository, text::plain_text};
use serde::Deserialize;
use tokio::{process::Command, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Recorder, Source,
    addresses::{Image, Learned, MOST_REGISTRIES},
    archive, content,
    dockerfile::Dockerfile,
    ending::{Ending, Failed, Running},
    excerpt::{Excerpt, read_dockerfile},
    failure::{Circumstances, explain, not_started, refused_image},
    line_ends, pins, process_failure,
    programs::{
        Foreign, Verdict, origin,
        viewer::{Seen, Viewer},
    },
    progress::{Progress, Update},
    request::{Request, Wanted},
    scripts, stages, unused_logins,
};
use crate::{
    answer::{self, Answer},
    buildkit::SAMPLER,
    jobs::Registry,
    oom::{self, Shortage},
    process,
    reasons::{JobFailure, Reason},
    sandbox::LARGEST_FILE,
};

use self::asked::Asked;

mod asked;

/// BuildKit's rule that a base image is for another platform than it was asked for.
const FOREIGN_BASE: &str = "InvalidBaseImagePlatform";

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
    /// What tells of want of memory.
    pub oom: oom::Watch<'a>,
}

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
        let asked = self.asked(&dockerfile, stages).await?;
        let repositories = asked.repositories.clone();
        let archives = self.registry.config().archives_dir.as_deref();
        let archive = archive::Target::of(spec, archives)?;
        let built = self.build(&dockerfile, asked, archive.as_ref(), recorder, stop).await;
        let (progress, seen, built) = built.map_err(|failure| self.with_unused_logins(failure, &repositories))?;
        let images = seen.definition.as_ref().map_or(&[][..], |definition| &definition.images);
        pins::record(&self.registry.config().state_dir, spec, images, self.registry.registries(), stop).await;
        let (mut result, config) =
            result(&built).map_err(|error| JobFailure::agent("read what BuildKit says of the image", &*error))?;
        let content = match archive {
            Some(archive) => {
                let content = archive.content(&spec.platform).await;
                archive.finish()?;
                content
            }
            None => content::read(self.registry.registries(), spec, &result.digest, config.as_deref()).await,
        };
        if let Some(content) = content {
            content.put_into(&mut result);
        }
        result.copied_only = seen.runs_for(&spec.platform).is_none();
        result.warnings = progress.warnings().to_vec();
        let fetched = images.iter().filter_map(|name| Some(name.parse::<Reference>().ok()?.repository));
        let fetched = self.with_mirrors(fetched);
        result.warnings.extend(unused_logins::warnings(spec, &repositories.into_iter().chain(fetched).collect()));
        Ok(result)
    }

    /// Has it built, and gives what is said of the image. Where BuildKit was refused an image whose registry may be asked, once
    /// more: neither a look at the Dockerfile nor its own names all that a base image holds back.
    async fn build<'r>(
        &self,
        dockerfile: &Dockerfile<'_>,
        Asked { mut permitted, hosts, .. }: Asked<'_>,
        archive: Option<&archive::Target>,
        recorder: &'r Recorder,
        stop: &CancellationToken,
    ) -> Result<(Progress<'r>, Seen, BTreeMap<String, String>), JobFailure> {
        let state = &self.registry.config().state_dir;
        let pins = pins::of(self.spec, state);
        let archive = archive.map(archive::Target::temporary);
        // An image may be as large as the volume for archives lets it be.
        let file_bytes = if archive.is_some() { None } else { Some(LARGEST_FILE) };
        let writes: Vec<PathBuf> = archive.map(Path::to_owned).into_iter().collect();
        loop {
            let policy = pins::policy(&pins, permitted.registries());
            let wanted = Wanted {
                spec: self.spec,
                source: self.source,
                dockerfile,
                memory: self.memory,
                policy: &policy,
                archive,
            };
            let mut progress = Progress::new(recorder.masker());
            let mut request = wanted.request()?;
            request.hosts.clone_from(&hosts);
            let request = self.request(request)?;
            let command = self.command(writes.clone(), file_bytes);
            let mut viewer = Viewer::new(&self.spec.platform, self.may_run(), &self.spec.foreign_programs);
            let ended = self.kiln_build(command, &request, (&mut progress, &mut viewer), recorder, stop).await?;
            let mut seen = viewer.seen();
            self.only_copies(&seen, dockerfile)?;
            let warning = self.judged(seen.verdict.take(), dockerfile, progress.warnings())?;
            let failed = match progress.ending() {
                Some(Ending::Built(built)) if ended.success() => {
                    let built = built.clone();
                    progress.warn(warning);
                    return Ok((progress, seen, built));
                }
                Some(Ending::Failed(failed)) => failed,
                _ => return Err(broken_down(ended, &progress)),
            };
            let looks = failed.exit_code.is_some() || failed.is_lost();
            let shortage = if looks { self.oom.look().await } else { Shortage::default() };
            let failure = self.failure(failed, &progress, shortage, dockerfile.text);
            if failure.reason == Reason::OutOfMemory {
                self.oom.explained();
            }
            if let Some(reference) = refused_image(failed) {
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
                // The next attempt asks for these names again.
                let source = failed.operation.as_ref().map_or("", |operation| &operation.identifier);
                pins::forget(state, &format!("{} {source}", failed.message));
            }
            return Err(failure);
        }
    }

    /// Why a build failed.
    fn failure(&self, failed: &Failed, progress: &Progress<'_>, shortage: Shortage, text: &str) -> JobFailure {
        let dockerfile = self.source.dockerfile.to_string_lossy();
        let step = progress.failed_step(failed);
        let windows = step.as_ref().and_then(|step| line_ends::guilty(failed, step, &self.source.context, text));
        let program = step.as_ref().and_then(not_started);
        let interpreter = program.and_then(|program| scripts::interpreter(&self.source.context, program));
        let build = Circumstances {
            dockerfile: &dockerfile,
            platform: &self.spec.platform,
            repository: &self.spec.repository,
            arguments: Some(&self.spec.build_args),
            no_network: self.spec.no_network,
            volume_full: is_full(&self.source.context),
            shortage,
            largest_id: self.registry.buildkit().largest_id(),
            content: Some(text),
            windows_lines: windows.as_deref(),
            interpreter: interpreter.as_deref(),
            contexts: &self.source.contexts,
            logins: &self.spec.logins,
        };
        let failure = explain(failed, step.as_ref(), build);
        let failure = JobFailure { warnings: progress.warnings().to_vec(), ..failure };
        if failure.reason == Reason::LintFailed { self.lint_failure(failure, text) } else { failure }
    }

    /// Whether anything may run for the platform.
    fn may_run(&self) -> bool {
        self.spec.execution() != Execution::CopyOnly && !self.is_windows()
    }

    fn is_windows(&self) -> bool {
        self.spec.platform.starts_with("windows")
    }

    /// Fails where something has to run for the platform, and nothing may.
    fn only_copies(&self, seen: &Seen, dockerfile: &Dockerfile<'_>) -> Result<(), JobFailure> {
        let platform = &self.spec.platform;
        let Some(Running { name, line }) = seen.runs_for(platform).filter(|_| !self.may_run()) else { return Ok(()) };
        let what = what_runs(name, platform);
        let (reason, message) = if self.is_windows() {
            let message = format!(
                "{what}, which no builder can; only copy files into a Windows image, made in a stage FROM --platform=$BUILDPLATFORM, or build it elsewhere and name it in spec.platforms[].image"
            );
            (Reason::WindowsStep, message)
        } else {
            (Reason::NodeNeeded, format!("{what}, so a node that can is needed"))
        };
        Err(match line {
            0 => JobFailure::new(reason, message),
            line => self.failure_at(*line, dockerfile.text, reason, message),
        })
    }

    /// Runs `kiln-build`, and stops it where it tells nothing for too long.
    async fn kiln_build(
        &self,
        mut command: Command,
        request: &[u8],
        (progress, viewer): (&mut Progress<'_>, &mut Viewer<'_>),
        recorder: &Recorder,
        stop: &CancellationToken,
    ) -> Result<ExitStatus, JobFailure> {
        if is_traceparent(&self.spec.traceparent) {
            // It hands its spans to buildkitd, which sends them on with its own, all below this one.
            command.env_remove(SAMPLER).env("TRACEPARENT", &self.spec.traceparent);
        }
        let silence = Duration::from_secs(self.spec.silence_seconds.into());
        let (stop_silent, heard) = (stop.child_token(), Mutex::new(Instant::now()));
        let running = process::converse(&mut command, request, &stop_silent, |line| {
            if let Ok(mut heard) = heard.lock() {
                *heard = Instant::now();
            }
            let mut answer = None;
            for update in progress.line(line) {
                match update {
                    Update::Step(changed) => recorder.step(changed),
                    Update::Line { step_id, line } => recorder.line(step_id, line),
                    Update::Pushing => recorder.phase(Phase::Pushing),
                    Update::Shown(shown) => answer = Some(viewer.answer(shown)),
                }
            }
            answer
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
                let (step, log_tail) = progress.running_step().map(|step| (step.name, step.tail)).unwrap_or_default();
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
                let failure = JobFailure { step, log_tail, warnings: progress.warnings().to_vec(), ..failure };
                // The silence was not the build's.
                let is_hung =
                    failure.reason == Reason::NoOutput && self.registry.buildkit().ask().await == Answer::Silent;
                Err(if is_hung { answer::hung(answer::PATIENCE, failure) } else { failure })
            }
        }
    }

    /// What is said of an image that was looked at: of one whose base or program is for another platform, why it was not
    /// exported.
    fn judged(
        &self,
        verdict: Option<Verdict>,
        dockerfile: &Dockerfile<'_>,
        warnings: &[Warning],
    ) -> Result<Option<Warning>, JobFailure> {
        let Some(Verdict { foreign, missing, windows_lines }) = verdict else { return Ok(None) };
        let (platform, text) = (&self.spec.platform, dockerfile.text);
        if let Some(Foreign { path, found }) = foreign {
            let base = origin::base(dockerfile, &self.spec.target);
            let of_base = |warning: &&Warning| warning.rule == FOREIGN_BASE && base == Some(warning.line);
            let failure = if let Some(warning) = warnings.iter().find(of_base) {
                let message = format!(
                    "{}: its registry gave the base image of another platform; choose a base image that has {platform}",
                    warning.message
                );
                self.failure_at(warning.line, text, Reason::BaseImagePlatform, message)
            } else {
                let origin = origin::of(dockerfile, &self.spec.target, &path);
                let cure = origin.as_ref().map_or(origin::ANY, |origin| &origin.cure);
                let message = format!(
                    "{path}, which the image starts, is a program for {found}, but the image is for {platform}; {cure}; where that is meant, list the path in allowForeignPrograms"
                );
                match origin {
                    Some(origin) => self.failure_at(origin.line, text, Reason::WrongArchitecture, message),
                    None => JobFailure::new(Reason::WrongArchitecture, message),
                }
            };
            return Err(JobFailure { warnings: warnings.to_vec(), ..failure });
        }
        let missing = missing.map(|(interpreter, path)| {
            format!("{path}, which the image starts, is loaded by {interpreter}, which the image has not")
        });
        let windows = windows_lines.map(|path| {
            format!(
                "{path}, which the image starts, has line ends as on Windows (CR LF), so its interpreter is not found; {}",
                line_ends::CURE
            )
        });
        Ok(windows.or(missing).map(|message| Warning {
            rule: Reason::MissingInterpreter.name().to_owned(),
            message,
            dockerfile: String::new(),
            line: 0,
        }))
    }

    /// The registry that the image goes to.
    fn own_registry(&self) -> Option<String> {
        self.spec.repository.parse::<Repository>().ok().map(|repository| repository.registry)
    }

    /// The request as `kiln-build` reads it.
    fn request(&self, mut request: Request) -> Result<Vec<u8>, JobFailure> {
        let buildkit = self.registry.buildkit();
        buildkit.address().clone_into(&mut request.address);
        request.authorities.extend(self.own_registry().and_then(|registry| buildkit.authority_of(&registry)));
        serde_json::to_vec(&request).map_err(|error| JobFailure::agent("write what is to be built", &error))
    }

    /// `kiln-build` with the job's credentials, and what it writes to.
    fn command(&self, write: Vec<PathBuf>, file_bytes: Option<u64>) -> Command {
        let own = |names: &[&str]| names.iter().map(|name| self.memory.join(name)).collect::<Vec<_>>();
        let read = [vec![self.work.to_owned()], own(&["docker", "secrets", "ssh"])].concat();
        let mut command = self.registry.buildkit().client("kiln-build", read, write, file_bytes);
        command
            .env("DOCKER_CONFIG", self.memory.join("docker"))
            .env("HOME", self.memory.join("home"))
            .current_dir(self.memory);
        command
    }

    /// With the first warning's place.
    fn lint_failure(&self, failure: JobFailure, text: &str) -> JobFailure {
        let Some(first) = failure.warnings.first().cloned() else { return failure };
        let cure = if self.spec.fail_on_warnings { "spec.failOnWarnings" } else { "error=true of its check directive" };
        let message = format!(
            "{} (line {} of {}): {}; mend it, or leave out {cure}",
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

/// What has a step run for a platform, such as `[2/2] RUN make`.
fn what_runs(step: &str, platform: &str) -> String {
    let name = step.split_once("] ").map_or(step, |(_, name)| name);
    if name.starts_with("ONBUILD ") {
        format!("what the Dockerfile begins FROM has it run something for {platform} ({name})")
    } else {
        format!("the Dockerfile runs something for {platform} ({name})")
    }
}

/// `kiln-build` ended without a word of its own, as where its pod has too many processes.
fn broken_down(ended: ExitStatus, progress: &Progress<'_>) -> JobFailure {
    let why = plain_text(progress.text().lines().next().unwrap_or_default(), 200);
    let why = if why.is_empty() { ended.to_string() } else { why };
    let message = format!("what builds broke down ({why}); the builder's pod may have too many processes");
    JobFailure::new(Reason::AgentFailed, message)
}

/// Reads the manifest's descriptor and the configuration's digest from what the exporter says:
/// <https://github.com/moby/buildkit/blob/v0.33.1/exporter/containerimage/exptypes/types.go>.
fn result(built: &BTreeMap<String, String>) -> Result<(JobResult, Option<String>), Box<dyn std::error::Error>> {
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
    let descriptor = built.get("containerimage.descriptor").ok_or("it has no descriptor")?;
    let config = built.get("containerimage.config.digest").cloned();
    let descriptor: Descriptor = serde_json::from_slice(&STANDARD.decode(descriptor)?)?;
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
    fn what_breaks_down_is_the_builders() {
        use crate::job::mask::Masker;
        use std::os::unix::process::ExitStatusExt as _;
        let masker = Masker::default();
        let mut progress = Progress::new(&masker);
        assert!(broken_down(ExitStatus::from_raw(9), &progress).message.contains("signal: 9"));
        progress.line(b"runtime: failed to create new OS thread (have 8 already; errno=11)");
        let failure = broken_down(ExitStatus::from_raw(2 << 8), &progress);
        assert_eq!(failure.reason, Reason::AgentFailed);
        assert!(failure.message.contains("failed to create new OS thread"), "{}", failure.message);
    }

    #[test]
    fn what_runs_for_a_platform() {
        for (step, words) in [
            ("[build 2/2] RUN make", "the Dockerfile runs something for linux/s390x (RUN make)"),
            ("[2/3] ONBUILD RUN make", "FROM has it run something for linux/s390x (ONBUILD RUN make)"),
        ] {
            let told = what_runs(step, "linux/s390x");
            assert!(told.ends_with(words), "{told}");
        }
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
        let descriptor = serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:1", "size": 7,
            "annotations": {"config.digest": "sha256:2"}, "platform": {"architecture": "amd64", "os": "linux"},
        });
        let built = [
            ("containerimage.config.digest".to_owned(), "sha256:2".to_owned()),
            ("containerimage.descriptor".to_owned(), STANDARD.encode(descriptor.to_string())),
        ];
        let (found, config) = result(&built.into()).unwrap();
        assert_eq!((found.digest.as_str(), found.size, config.as_deref()), ("sha256:1", 7, Some("sha256:2")));
        assert_eq!(found.media_type, "application/vnd.oci.image.manifest.v1+json");
        assert!(result(&BTreeMap::new()).is_err());
    }
}
