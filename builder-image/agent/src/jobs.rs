//! The jobs that this agent knows: those that run, and those that have ended and are not forgotten yet.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use kiln_agent_proto::{Event, Job as Spec, event::Kind};
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    answer::{self, Answer},
    buildkit::Buildkit,
    collect,
    config::Config,
    events::{Events, is_outcome},
    job::{self, Recorder, registries::Registries, repositories::Repositories},
    reasons::{JobFailure, Reason},
    sandbox::Sandbox,
    trust::Trust,
};

/// How long logs and unfetched outcomes stay on the volume.
const RETENTION: Duration = Duration::from_hours(7 * 24);
/// The most logs that stay on the volume.
const MOST_LOGS: usize = 500;
/// The most bytes that the logs on the volume take together.
const MOST_LOG_BYTES: u64 = 512 << 20;
/// How long buildkitd may take to make room on a full volume.
const MAKING_ROOM: Duration = Duration::from_mins(1);
/// Bytes on the volume that the agent holds and gives away when it is full: whoever deletes a file must first write to
/// a database.
const BALLAST: u64 = 8 << 20;
/// The most ended jobs that wait to be fetched.
const MOST_ENDED: usize = 256;

/// Why the agent's directories cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct StateError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Why a job was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// This agent is to end.
    #[error("this builder drains: it takes no new jobs")]
    Draining,
    /// It runs as many jobs as it may.
    #[error("this builder runs {0} jobs, as many as it may")]
    Full(usize),
    /// The job's id cannot be a file's name.
    #[error("a job's id is made of lower-case letters, digits, '-' and '.', at most 240 of them")]
    Id,
}

/// Why a job is to stop before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Cancelled,
    TimedOut,
    /// buildkitd has not answered for a minute.
    BuildkitHung,
}

/// One job that this agent knows.
pub struct Job {
    events: Mutex<Events>,
    changed: watch::Sender<()>,
    token: CancellationToken,
    why: OnceLock<Stop>,
}

impl Job {
    fn new(events: Events) -> Arc<Self> {
        Arc::new(Self {
            events: Mutex::new(events),
            changed: watch::Sender::new(()),
            token: CancellationToken::new(),
            why: OnceLock::new(),
        })
    }

    /// One of which nothing has been told yet.
    #[cfg(test)]
    #[must_use]
    pub fn unfinished() -> Arc<Self> {
        Self::new(Events::default())
    }

    /// Adds an event and wakes those who wait for it.
    pub fn push(&self, kind: Kind) {
        lock(&self.events).push(SystemTime::now().into(), kind);
        self.changed.send_replace(());
    }

    /// Up to `most` events whose sequence number is above `after`.
    #[must_use]
    pub fn after(&self, after: u64, most: usize) -> Vec<Event> {
        lock(&self.events).after(after, most)
    }

    /// The outcome, once there is one.
    #[must_use]
    pub fn outcome(&self) -> Option<Event> {
        lock(&self.events).outcome().cloned()
    }

    /// Sees every change from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn stop(&self, why: Stop) {
        let _ = self.why.set(why);
        self.token.cancel();
    }
}

struct Known {
    jobs: BTreeMap<String, Arc<Job>>,
    draining: bool,
}

/// All jobs, and what they share.
pub struct Registry {
    config: Config,
    buildkit: Buildkit,
    repositories: Repositories,
    registries: Registries,
    sandbox: Sandbox,
    known: Mutex<Known>,
    /// How many jobs run.
    running: watch::Sender<usize>,
}

impl Registry {
    /// Prepares the directories, removes what interrupted jobs left, and reads the outcomes of ended ones.
    pub fn open(config: &Config, sandbox: Sandbox) -> Result<Arc<Self>, StateError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError { what, path, source }
        };
        for stale in [config.state_dir.join("work"), config.credentials_dir.join("jobs")] {
            match fs::remove_dir_all(&stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("empty", &stale)(error)),
                _ => {}
            }
        }
        for directory in [
            config.state_dir.join("work"),
            config.state_dir.join("git"),
            config.state_dir.join("logs"),
            config.credentials_dir.join("jobs"),
        ] {
            fs::create_dir_all(&directory).map_err(fail("make", &directory))?;
            // 0700 without the setgid bit that a volume's group puts on it: what is made below would inherit it, and
            // it would show in the images.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(&directory, mode).map_err(fail("set the mode of", &directory))?;
        }
        let logs = config.state_dir.join("logs");
        trim_logs(&logs).map_err(fail("trim", &logs))?;
        lay_ballast(&config.state_dir);
        let jobs = ended_jobs(&logs).map_err(fail("read", &logs))?;
        let trust = Trust::new(config.trust_dir.clone(), config.registry_trust_dir.clone());
        Ok(Arc::new(Self {
            buildkit: Buildkit::new(&config.buildkit_addr, trust.clone(), sandbox.clone()),
            repositories: Repositories::new(config.state_dir.join("git")),
            registries: Registries::new(trust),
            sandbox,
            config: config.clone(),
            known: Mutex::new(Known { jobs, draining: false }),
            running: watch::Sender::new(0),
        }))
    }

    /// What it was told at its start.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The way to buildkitd.
    #[must_use]
    pub fn buildkit(&self) -> &Buildkit {
        &self.buildkit
    }

    /// The repositories on the volume.
    #[must_use]
    pub fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// What keeps children apart.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The agent's own way to registries.
    #[must_use]
    pub fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Starts a job; false where its id is known already.
    pub fn start(self: &Arc<Self>, spec: Spec) -> Result<bool, StartError> {
        if !is_job_id(&spec.id) {
            return Err(StartError::Id);
        }
        let job = {
            let mut known = lock(&self.known);
            if known.jobs.contains_key(&spec.id) {
                return Ok(false);
            }
            if known.draining {
                return Err(StartError::Draining);
            }
            let running = *self.running.borrow();
            if running >= self.config.max_jobs as usize {
                return Err(StartError::Full(running));
            }
            let job = Job::new(Events::default());
            known.jobs.insert(spec.id.clone(), Arc::clone(&job));
            self.running.send_modify(|running| *running += 1);
            job
        };
        let span =
            tracing::info_span!("job", run = spec.run, platform = spec.platform, attempt = spec.attempt, job = spec.id);
        tokio::spawn(Arc::clone(self).carry_out(job, spec).instrument(span));
        Ok(true)
    }

    /// The job called `id`.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Job>> {
        lock(&self.known).jobs.get(id).cloned()
    }

    /// Tells a job to stop; false where the id is unknown.
    pub fn cancel(&self, id: &str) -> bool {
        let Some(job) = self.get(id) else { return false };
        job.stop(Stop::Cancelled);
        true
    }

    /// Stops all jobs, for buildkitd has hung: each is to be tried again elsewhere.
    pub fn give_up(&self) {
        for job in lock(&self.known).jobs.values().filter(|job| job.outcome().is_none()) {
            job.stop(Stop::BuildkitHung);
        }
    }

    /// Drops a job that has ended; false where it still runs.
    pub fn forget(&self, id: &str) -> bool {
        let mut known = lock(&self.known);
        let Some(job) = known.jobs.get(id) else { return true };
        if job.outcome().is_none() {
            return false;
        }
        known.jobs.remove(id);
        let _ = fs::remove_file(self.file(id, "outcome"));
        true
    }

    /// From now on refuses new jobs.
    pub fn drain(&self) {
        lock(&self.known).draining = true;
    }

    /// Whether new jobs are refused.
    #[must_use]
    pub fn draining(&self) -> bool {
        lock(&self.known).draining
    }

    /// Ends once no job runs.
    pub async fn idle(&self) {
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// The ids of the jobs that run.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        lock(&self.known).jobs.iter().filter(|(_, job)| job.outcome().is_none()).map(|(id, _)| id.clone()).collect()
    }

    async fn carry_out(self: Arc<Self>, job: Arc<Job>, spec: Spec) {
        let (work, credentials) = (
            self.config.state_dir.join("work").join(&spec.id),
            self.config.credentials_dir.join("jobs").join(&spec.id),
        );
        let (id, timeout) = (spec.id.clone(), Duration::from_secs(spec.timeout_seconds.into()));
        let recorder = Arc::new(Recorder::open(Arc::clone(&job), &spec, &self.file(&id, "log")));
        tracing::info!("job started");
        let building = {
            let (registry, recorder, token) = (Arc::clone(&self), Arc::clone(&recorder), job.token.clone());
            let (work, credentials) = (work.clone(), credentials.clone());
            let building =
                async move { Box::pin(job::run(&registry, &spec, &recorder, &token, &work, &credentials)).await };
            // A task of its own: a defect that makes it panic ends this job alone.
            tokio::spawn(building.in_current_span())
        };
        let limit = async {
            if !timeout.is_zero() {
                tokio::time::sleep(timeout).await;
                job.stop(Stop::TimedOut);
            }
            std::future::pending::<Infallible>().await
        };
        let outcome = tokio::select! {
            outcome = building => outcome,
            never = limit => match never {},
        };
        let why = job.why.get().copied();
        let outcome = match outcome {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(failure)) => {
                // Where buildkitd hangs, the time was not the build's.
                let is_hung = why == Some(Stop::TimedOut) && self.buildkit.ask().await == Answer::Silent;
                Err(stopped(failure, why, is_hung, timeout))
            }
            Err(panic) => Err(stopped(JobFailure::agent("carry out the job", &panic), why, false, timeout)),
        };
        // No credential outlives its job.
        let _ = tokio::fs::remove_dir_all(&credentials).await;
        if outcome.is_err() {
            self.buildkit.leave_garbage();
        }
        if outcome.as_ref().is_err_and(|failure| failure.reason == Reason::NoSpaceLeft) {
            self.make_room().await;
        }
        let kind = recorder.outcome(outcome);
        self.end(&id, &job, kind);
        let (logs, running) = (self.config.state_dir.join("logs"), self.running.clone());
        let _ = tokio::task::spawn_blocking(move || {
            let _ = fs::remove_dir_all(work);
            if let Err(error) = trim_logs(&logs) {
                tracing::warn!(%error, "cannot trim the jobs' logs");
            }
            running.send_modify(|running| *running -= 1);
        })
        .await;
    }

    /// Has room made on a full volume, before anybody hears that it is full and tries again.
    async fn make_room(&self) {
        let _ = fs::remove_file(self.config.state_dir.join("ballast"));
        match tokio::time::timeout(MAKING_ROOM, collect::make_room(self)).await {
            Ok(Ok(())) => tracing::info!("made room on the full volume"),
            Ok(Err(error)) => tracing::warn!(error = crate::chain(&error), "no room can be made on the full volume"),
            Err(_) => tracing::warn!("making room on the full volume takes long"),
        }
        lay_ballast(&self.config.state_dir);
    }

    /// Records a job's outcome: first on the volume, for a restarted agent, then for those who wait.
    fn end(&self, id: &str, job: &Job, kind: Kind) {
        let event = lock(&job.events).push(SystemTime::now().into(), kind).clone();
        if let Err(error) = fs::write(self.file(id, "outcome"), event.encode_to_vec()) {
            tracing::warn!(%error, "cannot keep the outcome on the volume");
        }
        job.changed.send_replace(());
        let mut known = lock(&self.known);
        let mut ended: Vec<(i64, String)> = known
            .jobs
            .iter()
            .filter_map(|(id, job)| Some((job.outcome()?.time.map_or(0, |time| time.seconds), id.clone())))
            .collect();
        ended.sort();
        for (_, id) in ended.iter().rev().skip(MOST_ENDED) {
            known.jobs.remove(id);
        }
    }

    fn file(&self, id: &str, extension: &str) -> PathBuf {
        self.config.state_dir.join("logs").join(format!("{id}.{extension}"))
    }
}

/// How a job failed that had been stopped for this reason, from what it says itself. `is_hung`: buildkitd does not answer.
fn stopped(failure: JobFailure, why: Option<Stop>, is_hung: bool, timeout: Duration) -> JobFailure {
    match why {
        None => failure,
        Some(Stop::Cancelled) => JobFailure::new(Reason::Cancelled, "the build was cancelled"),
        Some(Stop::BuildkitHung) => answer::hung(answer::LONGEST, failure),
        Some(Stop::TimedOut) if is_hung => answer::hung(answer::PATIENCE, failure),
        Some(Stop::TimedOut) => JobFailure {
            reason: Reason::BuildTimeout,
            message: format!(
                "the build took longer than its timeout of {} s; raise spec.timeout, or see which step took the time",
                timeout.as_secs()
            ),
            ..failure
        },
    }
}

/// Takes the room that [`Registry::make_room`] gives away, where there is that much.
fn lay_ballast(directory: &Path) {
    let path = directory.join("ballast");
    let laid = fs::File::create(&path)
        .and_then(|file| Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, BALLAST)?));
    if let Err(error) = laid {
        tracing::warn!(%error, "no ballast on the volume");
        let _ = fs::remove_file(path);
    }
}

/// Whether `id` may be a file's name.
fn is_job_id(id: &str) -> bool {
    (1..=240).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.')
}

/// The jobs that ended under an earlier agent and were not forgotten.
fn ended_jobs(logs: &Path) -> io::Result<BTreeMap<String, Arc<Job>>> {
    let mut jobs = BTreeMap::new();
    for entry in fs::read_dir(logs)? {
        let path = entry?.path();
        let (Some(id), Some("outcome")) =
            (path.file_stem().and_then(|stem| stem.to_str()), path.extension().and_then(|end| end.to_str()))
        else {
            continue;
        };
        // One that was cut off by a crash is none: its job is unknown, as if it had not ended.
        if let Some(outcome) = Event::decode(fs::read(&path)?.as_slice()).ok().filter(is_outcome) {
            jobs.insert(id.to_owned(), Job::new(Events::ended(outcome)));
        }
    }
    Ok(jobs)
}

/// Removes logs and outcomes that are too old, and the oldest of too many.
fn trim_logs(logs: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        let metadata = entry.metadata();
        let modified = metadata.as_ref().ok().and_then(|metadata| metadata.modified().ok());
        let length = metadata.map_or(0, |metadata| metadata.len());
        files.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.path(), length));
    }
    files.sort_by(|a, b| b.cmp(a));
    let mut bytes = 0_u64;
    for (number, (modified, path, length)) in files.iter().enumerate() {
        bytes = bytes.saturating_add(*length);
        // An outcome is small, and somebody may still fetch it.
        let too_many = number >= MOST_LOGS
            || bytes > MOST_LOG_BYTES && path.extension().is_some_and(|extension| extension == "log");
        if too_many || modified.elapsed().is_ok_and(|age| age > RETENTION) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// A panic elsewhere leaves these data whole: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
