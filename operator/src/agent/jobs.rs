//! Follows the jobs that agents run.
//!
//! What is kept here is a copy: the truth is with the agents and in the runs' statuses, and a new operator reads on from
//! there. An outcome wakes the run's reconcile at once; what changes on the way is gathered for a moment first, so that a
//! build that finds everything in the cache is not held up by statuses of which each is out of date when it is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::BoxFuture;
use kiln_agent_proto as proto;
use kiln_agent_proto::agent_client::AgentClient;
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_registry::room::Place;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{Instrument, debug, info_span, warn};

use super::connection::{Agent, Connections};
use crate::image_build_run::steps::Progress;

/// How long an agent whose pod seems alive may be out of reach: a new certificate takes a while to arrive.
const UNREACHABLE: Duration = Duration::from_mins(2);
/// How long it may take connections and answer nothing. A connection that stood is known to be dead 20 s after its last
/// answer, so such a builder is given up after a minute and a half.
const SILENT: Duration = Duration::from_secs(70);
/// A stream that stands for so long shows that the agent lives, events or not.
const STANDS: Duration = Duration::from_secs(1);
/// How long a single question to an agent may take.
const CALL: Duration = Duration::from_secs(10);
/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(250);
/// How much time there is at least between two changes that are told.
const BETWEEN: Duration = Duration::from_secs(1);
/// The longest time for which the events of a job that had begun before are read without telling: what happened long ago
/// comes first, and a status must not go back.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What is known of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// A builder is kept for it, and its agent is being reached.
    Connecting,
    /// The agent works on it.
    Running(PlatformPhase),
    /// The platform's image is in the registry.
    Succeeded(Box<proto::Result>),
    /// It ended without an image.
    Failed(proto::Failure),
    /// The agent does not know the job: it has been lost.
    Unknown,
    /// The agent takes no more jobs now.
    Refused,
    /// The agent cannot be reached.
    Unreachable(String),
}

impl Observation {
    /// Whether the agent does not work on the job any more.
    fn is_final(&self) -> bool {
        matches!(self, Self::Succeeded(_) | Self::Failed(_) | Self::Unknown | Self::Refused)
    }
}

struct Entry {
    builder: String,
    observation: Observation,
    progress: Arc<Progress>,
    follower: Option<AbortHandle>,
}

impl Entry {
    fn new(builder: &str) -> Self {
        Self {
            builder: builder.to_owned(),
            observation: Observation::Connecting,
            progress: Arc::default(),
            follower: None,
        }
    }
}

/// A job that is still to be sent.
pub trait Whole: Send + Sync {
    /// The whole of it, and the place that it takes in memory. `None`: nobody wants it any more.
    fn job(&self) -> BoxFuture<'_, Result<Option<(proto::Job, Place)>, kube::Error>>;
}

/// The jobs that this operator follows.
#[derive(Clone)]
pub struct Jobs {
    connections: Connections,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    wake: UnboundedSender<ObjectRef<ImageBuildRun>>,
}

impl Jobs {
    /// Follows nothing yet. `wake` is sent each run whose jobs changed.
    #[must_use]
    pub fn new(connections: Connections, wake: UnboundedSender<ObjectRef<ImageBuildRun>>) -> Self {
        Self { connections, entries: Arc::default(), wake }
    }

    /// Keeps a place on a builder for a job whose status is about to be written. `false`: it has one there already.
    #[must_use]
    pub fn reserve(&self, job: &str, builder: &str) -> bool {
        let (is_new, former) = self.with(|entries| match entries.get(job) {
            Some(entry) if entry.builder == builder => (false, None),
            // It was given to one that goes.
            _ => (true, entries.insert(job.to_owned(), Entry::new(builder))),
        });
        if let Some(follower) = former.and_then(|entry| entry.follower) {
            follower.abort();
        }
        is_new
    }

    /// The builder that a job was given to.
    #[must_use]
    pub fn builder(&self, job: &str) -> Option<String> {
        self.with(|entries| entries.get(job).map(|entry| entry.builder.clone()))
    }

    /// The jobs that run or have a place kept, with their builders. One that has ended has given its place back.
    #[must_use]
    pub fn places(&self) -> Vec<(String, String)> {
        self.with(|entries| {
            let holding = entries.iter().filter(|(_, entry)| !entry.observation.is_final());
            holding.map(|(job, entry)| (job.clone(), entry.builder.clone())).collect()
        })
    }

    /// What is known of a job. `None`: it is not followed.
    #[must_use]
    pub fn observation(&self, job: &str) -> Option<Observation> {
        self.seen(job).map(|(observation, _)| observation)
    }

    /// The same, and how far the job has come.
    #[must_use]
    pub fn seen(&self, job: &str) -> Option<(Observation, Arc<Progress>)> {
        self.with(|entries| {
            let entry = entries.get(job)?;
            entry.follower.as_ref().map(|_| (entry.observation.clone(), entry.progress.clone()))
        })
    }

    /// Begins to follow a job; does nothing where it is followed already. With a `job`, an agent that does not know it is asked
    /// to start it.
    pub fn follow(&self, id: &str, run: &ObjectRef<ImageBuildRun>, agent: Agent, job: Option<Box<dyn Whole>>) {
        self.with(|entries| {
            let entry = entries.entry(id.to_owned()).or_insert_with(|| Entry::new(&agent.builder));
            if entry.follower.is_some() {
                return;
            }
            let span = info_span!("job", id, builder = agent.builder);
            let news = News::new(job.is_none(), Instant::now());
            let progress = Progress::default();
            let follower =
                Follower { jobs: self.clone(), id: id.to_owned(), run: run.clone(), agent, job, progress, news };
            entry.follower = Some(tokio::spawn(follower.run().instrument(span)).abort_handle());
        });
    }

    /// Stops to follow a job, and gives its place back.
    pub fn release(&self, job: &str) {
        let entry = self.with(|entries| entries.remove(job));
        if let Some(follower) = entry.and_then(|entry| entry.follower) {
            follower.abort();
        }
    }

    /// Has the agent stop a job. An agent that is gone, or does not know the job, has stopped it already.
    pub async fn cancel(&self, agent: &Agent, job: &str) -> Result<(), tonic::Status> {
        let mut client = self.connections.client(agent).map_err(|error| unusable(&error))?;
        let request = proto::CancelRequest { job_id: job.to_owned() };
        match timely(client.cancel(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    /// Has the agent drop a job whose outcome is in the run's status. Not waited for: an agent forgets by itself in the end.
    pub fn forget(&self, agent: Agent, job: String) {
        let connections = self.connections.clone();
        tokio::spawn(async move {
            if let Ok(mut client) = connections.client(&agent) {
                let request = proto::ForgetRequest { job_id: job.clone() };
                if let Err(status) = timely(client.forget(request)).await {
                    debug!(job, %status, "the agent did not forget the job");
                }
            }
        });
    }

    /// Drops the connection to a builder that is gone.
    pub fn builder_gone(&self, builder: &str) {
        self.connections.forget(builder);
    }

    fn observe(&self, id: &str, run: &ObjectRef<ImageBuildRun>, observation: Observation, progress: &Progress) {
        let changed = self.with(|entries| match entries.get_mut(id) {
            Some(entry) if entry.observation != observation || *entry.progress != *progress => {
                entry.observation = observation;
                entry.progress = Arc::new(progress.clone());
                true
            }
            _ => false,
        });
        if changed {
            // The receiver lives as long as the controllers do.
            let _ = self.wake.send(run.clone());
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Entry>) -> T) -> T {
        change(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The answer, if it comes in time: an agent may take connections and say nothing.
async fn timely<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
    tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer")))
}

fn unusable(error: &tonic::transport::Error) -> tonic::Status {
    tonic::Status::internal(format!("the operator's certificates cannot be used: {error}"))
}

/// When changes are told; pure but for the clock that is handed in.
struct News {
    /// Since when something is untold.
    untold: Option<Instant>,
    /// When something was told last.
    told: Option<Instant>,
    /// Until when events may be those of long ago.
    catching_up: Option<Instant>,
}

impl News {
    fn new(began_before: bool, now: Instant) -> Self {
        Self { untold: None, told: None, catching_up: began_before.then(|| now + CATCH_UP) }
    }

    /// Something changed.
    fn changed(&mut self, now: Instant) {
        if self.untold.is_none() || self.catching_up.is_some() {
            self.untold = Some(now);
        }
    }

    /// When it is to be told. `None`: there is nothing to tell.
    fn due(&self) -> Option<Instant> {
        let due = self.untold? + GATHER;
        let due = self.catching_up.map_or(due, |end| due.min(end));
        Some(self.told.map_or(due, |told| due.max(told + BETWEEN)))
    }

    fn told(&mut self, now: Instant) {
        *self = Self { untold: None, told: Some(now), catching_up: None };
    }
}

/// Follows one job to its end.
struct Follower {
    jobs: Jobs,
    id: String,
    run: ObjectRef<ImageBuildRun>,
    agent: Agent,
    job: Option<Box<dyn Whole>>,
    progress: Progress,
    news: News,
}

impl Follower {
    async fn run(mut self) {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(20))
            .with_factor(1.5)
            .with_max_delay(Duration::from_secs(2))
            .without_max_times();
        let mut delays = backoff.build();
        let mut seen = 0;
        let mut last_heard = Instant::now();
        loop {
            let (mut heard, before, begun) = (false, seen, Instant::now());
            let status = match self.attempt(&mut seen, &mut heard).await {
                Ok(outcome) => return self.observe(outcome),
                Err(status) => status,
            };
            if seen > before || heard && begun.elapsed() >= STANDS {
                last_heard = Instant::now();
                delays = backoff.build();
            }
            let patience = if status.code() == Code::DeadlineExceeded { SILENT } else { UNREACHABLE };
            if last_heard.elapsed() > patience {
                warn!(%status, "the agent cannot be reached");
                return self.observe(Observation::Unreachable(status.message().to_owned()));
            }
            debug!(%status, "reaching the agent again");
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(2))).await;
        }
    }

    fn observe(&self, observation: Observation) {
        self.jobs.observe(&self.id, &self.run, observation, &self.progress);
    }

    /// Starts the job, if that is still to be done, and reads its events; `heard` says whether they could be read. `Err`: try
    /// again.
    async fn attempt(&mut self, seen: &mut u64, heard: &mut bool) -> Result<Observation, tonic::Status> {
        let mut client = self.jobs.connections.client(&self.agent).map_err(|error| unusable(&error))?;
        let request = proto::WatchRequest { job_id: self.id.clone(), after: *seen };
        // Asked first: an agent that cannot be reached keeps no place in memory from others.
        let mut watched = timely(client.watch(request.clone())).await;
        if let (Some(job), Err(status)) = (&self.job, &watched)
            && status.code() == Code::NotFound
        {
            if let Some(ended) = Box::pin(start(&mut client, job.as_ref())).await? {
                return Ok(ended);
            }
            watched = timely(client.watch(request)).await;
        }
        let mut events = match watched {
            Ok(events) => events.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(Observation::Unknown),
            Err(status) => return Err(status),
        };
        // Its credentials are not needed again.
        self.job = None;
        *heard = true;
        loop {
            let due = self.news.due();
            let event = tokio::select! {
                event = events.message() => event?,
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    self.tell();
                    continue;
                }
            };
            let Some(event) = event else {
                return Err(tonic::Status::unavailable("the stream ended before the job did"));
            };
            *seen = event.sequence;
            if self.progress.take(&event) {
                self.news.changed(Instant::now());
            }
            if let Some(outcome) = event.kind.and_then(outcome) {
                return Ok(outcome);
            }
        }
    }

    fn tell(&mut self) {
        self.news.told(Instant::now());
        self.observe(self.progress.current().map_or(Observation::Connecting, Observation::Running));
    }
}

/// Has the agent start a job. `Some`: it does not.
async fn start(client: &mut AgentClient<Channel>, job: &dyn Whole) -> Result<Option<Observation>, tonic::Status> {
    let whole = job.job().await.map_err(|error| tonic::Status::unavailable(format!("reading the run: {error}")))?;
    let Some((job, _place)) = whole else { return Ok(Some(Observation::Unknown)) };
    match timely(client.start(proto::StartRequest { job: Some(job) })).await {
        Ok(_) => Ok(None),
        Err(status) if matches!(status.code(), Code::ResourceExhausted | Code::FailedPrecondition) => {
            Ok(Some(Observation::Refused))
        }
        Err(status) if status.code() == Code::InvalidArgument => Ok(Some(Observation::Failed(proto::Failure {
            class: proto::failure::Class::User.into(),
            reason: "JobInvalid".to_owned(),
            message: status.message().to_owned(),
            ..proto::Failure::default()
        }))),
        Err(status) => Err(status),
    }
}

fn outcome(event: proto::event::Kind) -> Option<Observation> {
    match event {
        proto::event::Kind::Result(result) => Some(Observation::Succeeded(Box::new(result))),
        proto::event::Kind::Failure(failure) => Some(Observation::Failed(failure)),
        proto::event::Kind::Phase(_) | proto::event::Kind::Step(_) | proto::event::Kind::Log(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_gathered_and_told_at_most_once_a_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let due = |news: &News| news.due().map(|due| due.duration_since(start).as_millis());
        let mut news = News::new(false, start);
        assert_eq!(due(&news), None);
        news.changed(at(10));
        news.changed(at(200));
        assert_eq!(due(&news), Some(260), "from the first change on");
        news.told(at(260));
        assert_eq!(due(&news), None);
        news.changed(at(300));
        assert_eq!(due(&news), Some(1260), "a second after the last");
        news.told(at(1260));
        news.changed(at(9000));
        assert_eq!(due(&news), Some(9250));
    }

    #[test]
    fn what_happened_long_ago_is_read_to_its_end_first() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let due = |news: &News| news.due().map(|due| due.duration_since(start).as_millis());
        let mut news = News::new(true, start);
        news.changed(at(10));
        news.changed(at(200));
        assert_eq!(due(&news), Some(450), "from the last change on");
        news.changed(at(4900));
        assert_eq!(due(&news), Some(5000), "but not for ever");
    }
}
