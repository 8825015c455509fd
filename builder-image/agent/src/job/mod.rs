//! One job from its start to its outcome: source, credentials, build, and what is told of it on the way.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use kiln_agent_proto::{
    Failure, Job as Spec, Log, Phase, Result as JobResult, Step, event::Kind, source::Kind as SourceKind,
};
use kiln_registry::text::plain_text;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::{
    buildkit::BuildkitError,
    jobs::{Job, Registry},
    process::ProcessError,
    reasons::{JobFailure, Reason},
};
use mask::{Masker, shorten, without_own_paths};
pub use source::Source;

pub mod addresses;
pub mod archive;
pub mod artifact;
pub mod build;
pub mod checkout;
pub mod content;
pub mod credentials;
pub mod dockerfile;
pub mod download;
pub mod ending;
pub mod excerpt;
pub mod failure;
pub mod git;
pub mod git_dir;
pub mod git_problem;
pub mod inline;
pub mod lfs;
pub mod line_ends;
pub mod mask;
pub mod mtime;
mod one_login;
pub mod pins;
pub mod programs;
pub mod progress;
pub mod registries;
pub mod remote;
pub mod repositories;
pub mod request;
pub mod scripts;
pub mod source;
pub mod stages;
pub mod tarball;
pub mod unpack;
pub mod unpacking;
mod unused_logins;

/// The most that is written to a job's log on the volume, in bytes.
const LONGEST_LOG: u64 = 16 << 20;
/// The longest message of a failure, in bytes: it goes into an object's status.
const LONGEST_MESSAGE: usize = 2048;
/// The longest text of a warning, in characters.
const LONGEST_WARNING: usize = 1024;
/// The largest result, in bytes: an event that the operator does not take would never be answered.
const LARGEST_RESULT: usize = 1 << 20;
/// How late a line may be in the log on the volume.
const FLUSH: Duration = Duration::from_secs(1);

/// Tells what happens in a job: as events, and in its log on the volume, secret values masked in both.
pub struct Recorder {
    job: Arc<Job>,
    masker: Masker,
    log: Mutex<Option<LogFile>>,
    /// Begins each line of the log.
    prefix: String,
}

/// The log on the volume, of bounded length.
struct LogFile {
    file: BufWriter<File>,
    left: u64,
}

impl LogFile {
    /// The log is a convenience: a full volume shows in the build itself, so errors are not told.
    fn line(&mut self, line: &str) {
        if self.left == 0 {
            return;
        }
        let length = line.len() as u64 + 1;
        if length <= self.left {
            let _ = writeln!(self.file, "{line}");
            self.left -= length;
        } else {
            let _ = writeln!(self.file, "(the job wrote more than {} MiB: the rest is not kept)", LONGEST_LOG >> 20);
            self.left = 0;
        }
    }

    fn flush(&mut self) {
        let _ = self.file.flush();
    }

    /// The last line, whatever came before it.
    fn end(&mut self, line: &str) {
        let _ = writeln!(self.file, "{line}");
        self.flush();
    }
}

impl Recorder {
    /// For the job that `spec` describes, with a log at `log`.
    #[must_use]
    pub fn open(job: Arc<Job>, spec: &Spec, log: &Path) -> Self {
        let file = File::create(log)
            .inspect_err(|error| tracing::warn!(%error, path = %log.display(), "the job has no log"))
            .ok();
        Self {
            job,
            masker: Masker::new(credentials::secret_values(spec).iter().map(Vec::as_slice)),
            log: Mutex::new(file.map(|file| LogFile { file: BufWriter::new(file), left: LONGEST_LOG })),
            prefix: format!("{} {}", spec.run, spec.platform),
        }
    }

    /// What masks the job's secret values.
    #[must_use]
    pub fn masker(&self) -> &Masker {
        &self.masker
    }

    /// The job began `phase`.
    pub fn phase(&self, phase: Phase) {
        let name = match phase {
            Phase::Unspecified => "unspecified",
            Phase::Fetching => "fetching",
            Phase::Building => "building",
            Phase::Pushing => "pushing",
        };
        tracing::info!(phase = name, "job goes on");
        self.log(name);
        self.job.push(Kind::Phase(phase.into()));
    }

    /// A step changed.
    pub fn step(&self, step: Step) {
        let state = match &step {
            step if !step.error.is_empty() => "failed",
            step if step.cached => "cached",
            step if step.completed.is_some() => "done",
            _ => "started",
        };
        self.log(&format!("{} {state}", step.name));
        self.job.push(Kind::Step(step));
    }

    /// A line of a step's output, masked already.
    pub fn line(&self, step_id: String, line: String) {
        tracing::debug!(line, "output");
        self.log(&line);
        self.job.push(Kind::Log(Log { step_id, line }));
    }

    /// The job's last event, written to the logs; the caller publishes it.
    #[must_use]
    pub fn outcome(&self, outcome: Result<JobResult, JobFailure>) -> Kind {
        let (kind, line) = match outcome {
            Ok(mut result) => {
                for layer in &mut result.layers {
                    layer.created_by = self.masker.line(&layer.created_by);
                }
                for warning in &mut result.warnings {
                    warning.message = plain_text(&self.masker.line(&warning.message), LONGEST_WARNING);
                    warning.dockerfile = plain_text(&self.masker.line(&warning.dockerfile), LONGEST_WARNING);
                }
                fit(&mut result);
                tracing::info!(digest = result.digest, "job succeeded");
                let line = format!("succeeded {}", result.digest);
                (Kind::Result(result), line)
            }
            Err(failure) => {
                let failure = self.failure(failure);
                tracing::info!(reason = failure.reason, why = failure.message, "job failed");
                let line = format!("failed {}: {}", failure.reason, failure.message);
                (Kind::Failure(failure), line)
            }
        };
        self.with_log(|log| log.end(&self.stamped(&line)));
        kind
    }

    fn failure(&self, failure: JobFailure) -> Failure {
        let JobFailure { reason, message, step, dockerfile, line, exit_code, log_tail, excerpt, warnings, alone } =
            failure;
        // One line, whatever an error brought along.
        let message = self.masker.text(&without_own_paths(&message)).split_whitespace().collect::<Vec<_>>().join(" ");
        Failure {
            class: reason.class().into(),
            reason: reason.name().to_owned(),
            message: shorten(message, LONGEST_MESSAGE),
            step: self.masker.line(&without_own_paths(&step)),
            dockerfile: self.masker.line(&dockerfile),
            line,
            exit_code,
            log_tail: log_tail.iter().map(|line| self.masker.line(&without_own_paths(line))).collect(),
            excerpt: excerpt.render(|text| self.masker.line(text)),
            warnings,
            alone,
        }
    }

    fn log(&self, text: &str) {
        self.with_log(|log| log.line(&self.stamped(text)));
    }

    fn stamped(&self, text: &str) -> String {
        format!("{} {} {text}", prost_types::Timestamp::from(SystemTime::now()), self.prefix)
    }

    fn with_log(&self, write: impl FnOnce(&mut LogFile)) {
        if let Some(log) = self.log.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            write(log);
        }
    }
}

/// Carries out the job: its source goes to `work` on the volume, its credentials to `memory`. Its log can be read meanwhile.
pub async fn run(
    registry: &Registry,
    spec: &Spec,
    recorder: &Recorder,
    stop: &CancellationToken,
    work: &Path,
    memory: &Path,
) -> Result<JobResult, JobFailure> {
    // No job's registry holds up another job.
    let job = kiln_registry::transfer::of_tenant(&spec.id, carry_out(registry, spec, recorder, stop, work, memory));
    let mut job = std::pin::pin!(job);
    let mut due = tokio::time::interval(FLUSH);
    loop {
        tokio::select! {
            outcome = &mut job => return outcome,
            _ = due.tick() => recorder.with_log(LogFile::flush),
        }
    }
}

async fn carry_out(
    registry: &Registry,
    spec: &Spec,
    recorder: &Recorder,
    stop: &CancellationToken,
    work: &Path,
    memory: &Path,
) -> Result<JobResult, JobFailure> {
    check_sandbox(spec, registry.sandbox().problem())?;
    credentials::write(memory, spec).map_err(|error| JobFailure::agent("write the job's credentials", &error))?;

    recorder.phase(Phase::Fetching);
    if let Some(SourceKind::Archive(source)) = spec.source.as_ref().and_then(|source| source.kind.as_ref()) {
        let archives = registry.config().archives_dir.as_deref();
        return archive::push(source, spec, archives, registry.registries(), || recorder.phase(Phase::Pushing), stop)
            .await;
    }
    let _building = registry.buildkit().begin();
    let (repositories, registries) = (registry.repositories(), registry.registries());
    let sandbox = registry.sandbox();
    let source = source::Fetch { repositories, registries, sandbox, spec, stop, work, memory }.fetch().await?;

    registry.buildkit().wait(stop).await.map_err(buildkit_failure)?;
    recorder.phase(Phase::Building);
    let oom = registry.buildkit().oom().watch().await;
    build::Build { registry, spec, source: &source, work, memory, oom }.run(recorder, stop).await
}

/// Leaves out what is told beside the image, where a base has so many layers that the result would be too large.
fn fit(result: &mut JobResult) {
    if result.encoded_len() > LARGEST_RESULT {
        result.layers.clear();
    }
    if result.encoded_len() > LARGEST_RESULT {
        result.warnings.clear();
    }
}

/// Refuses the job where its pool wants a sandbox, and there is none for this reason.
fn check_sandbox(spec: &Spec, problem: Option<&str>) -> Result<(), JobFailure> {
    let Some(problem) = problem.filter(|_| spec.require_sandbox) else { return Ok(()) };
    let message = format!(
        "the pool wants what a source holds to be handled in a sandbox (allow.unsandboxedSources is false), and this builder's node has none: {problem}; let its owner choose nodes with Linux 6.2 or newer and Landlock switched on"
    );
    Err(JobFailure::new(Reason::SourceSandboxMissing, message))
}

fn buildkit_failure(error: BuildkitError) -> JobFailure {
    match error {
        BuildkitError::Process(error) => process_failure(error),
        error => JobFailure::new(Reason::BuildkitUnavailable, crate::chain(&error)),
    }
}

/// A program that did not run to its end. Where it was stopped, the caller knows better why.
fn process_failure(error: ProcessError) -> JobFailure {
    match error {
        ProcessError::Stopped => JobFailure::new(Reason::Cancelled, "the build was stopped"),
        // Only Git's answers depend on what somebody put into a repository.
        error @ ProcessError::TooMuch { .. } => JobFailure::new(
            Reason::GitRepositoryTooLarge,
            format!("{error}: the commit has more files than a builder takes; build from a smaller repository"),
        ),
        error => JobFailure::agent("run a program", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_no_larger_than_the_operator_takes() {
        let layer = || kiln_agent_proto::Layer { bytes: 1, created_by: "x".repeat(100) };
        let mut result = JobResult { layers: vec![layer(); 30_000], ..JobResult::default() };
        fit(&mut result);
        assert!(result.layers.is_empty());
        result.layers = vec![layer(); 100];
        fit(&mut result);
        assert_eq!(result.layers.len(), 100);
    }

    #[test]
    fn a_pool_may_want_a_sandbox() {
        for (wanted, problem, refused) in
            [(true, Some("no Landlock"), true), (true, None, false), (false, Some("no Landlock"), false)]
        {
            let spec = Spec { require_sandbox: wanted, ..Spec::default() };
            let checked = check_sandbox(&spec, problem).map_err(|failure| failure.reason);
            assert_eq!(checked, if refused { Err(Reason::SourceSandboxMissing) } else { Ok(()) });
        }
    }
}
