//! Follows the jobs that agents run.
//!
//! What is kept here is a copy: the truth is with the agents and in the runs' statuses, and a new operator reads on from
//! there. An outcome wakes the run's reconcile at once; what changes on the way is gathered for a moment first, so that a
//! build that finds everything in the cache is not held up by statuses of which each is out of date when it is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use kiln_agent_proto as proto;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_crds::{BuilderPool, ImageBuildRun};
use kiln_registry::room::Place;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Code;
use tracing::{Instrument, debug, info_span};

use super::connection::{Agent, Connections};
use super::follower::{Follower, News};
use super::pulse::{Patience, Pulse, Trust};
use crate::image_build_run::steps::Progress;

/// How long a single question to an agent may take.
const CALL: Duration = Duration::from_secs(10);

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
    /// The agent has been silent for too long.
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
    follower: Option<(AbortHandle, Arc<Pulse>)>,
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
    pub(super) connections: Connections,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    wake: UnboundedSender<ObjectRef<ImageBuildRun>>,
    wake_pools: UnboundedSender<ObjectRef<BuilderPool>>,
    patience: Patience,
    /// What is known of each builder's silence, by its name, until it is gone: it outlives the job by which it was found out.
    pulses: Arc<Mutex<HashMap<String, Arc<Pulse>>>>,
}

impl Jobs {
    /// Follows nothing yet. `wake` is sent each run whose jobs changed, `wake_pools` each pool of which a builder has fallen
    /// silent or is heard again.
    #[must_use]
    pub fn new(
        connections: Connections,
        wake: UnboundedSender<ObjectRef<ImageBuildRun>>,
        wake_pools: UnboundedSender<ObjectRef<BuilderPool>>,
    ) -> Self {
        let patience = Patience::default();
        Self { connections, entries: Arc::default(), wake, wake_pools, patience, pulses: Arc::default() }
    }

    /// The same, with another patience.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Keeps a place on a builder for a job whose status is about to be written. `false`: it has one there already.
    #[must_use]
    pub fn reserve(&self, job: &str, builder: &str) -> bool {
        let (is_new, former) = self.with(|entries| match entries.get(job) {
            Some(entry) if entry.builder == builder => (false, None),
            // It was given to one that goes.
            _ => (true, entries.insert(job.to_owned(), Entry::new(builder))),
        });
        if let Some((follower, _)) = former.and_then(|entry| entry.follower) {
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

    /// Since when a builder has been silent for so long that it gets no new job. `None`: it is trusted, or nobody listens.
    #[must_use]
    pub fn suspect_since(&self, builder: &str) -> Option<Timestamp> {
        self.with(|entries| {
            let of_builder = entries.values().filter(|entry| entry.builder == builder);
            of_builder.filter_map(|entry| entry.follower.as_ref()).find_map(|(_, pulse)| pulse.suspect_since())
        })
    }

    /// For how long nothing was heard of a job's agent. `None`: nobody listens.
    #[must_use]
    pub fn silence(&self, job: &str) -> Option<Duration> {
        self.with(|entries| Some(entries.get(job)?.follower.as_ref()?.1.silence()))
    }

    /// Begins to follow a job of this pool; does nothing where it is followed already. With a `job`, an agent that does not
    /// know it is asked to start it.
    pub fn follow(
        &self,
        id: &str,
        run: &ObjectRef<ImageBuildRun>,
        pool: &str,
        agent: Agent,
        job: Option<Box<dyn Whole>>,
    ) {
        self.with(|entries| {
            if entries.get(id).is_some_and(|entry| entry.follower.is_some()) {
                return;
            }
            // Whoever hears of it hears for all.
            let mut pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
            let known = pulses.get(&agent.builder);
            let known = known.filter(|pulse| pulse.agent == agent && pulse.trust() != Trust::Lost).cloned();
            let start = || Pulse::start(agent.clone(), self.patience, ObjectRef::new(pool), self.wake_pools.clone());
            let pulse = known.unwrap_or_else(start);
            pulses.insert(agent.builder.clone(), pulse.clone());
            let span = info_span!("job", id, builder = agent.builder);
            let entry = entries.entry(id.to_owned()).or_insert_with(|| Entry::new(&agent.builder));
            let follower = Follower {
                jobs: self.clone(),
                id: id.to_owned(),
                run: run.clone(),
                agent,
                news: News::new(job.is_none(), Instant::now()),
                job,
                progress: Progress::default(),
                pulse: pulse.clone(),
                seen: 0,
                is_heard: false,
                trouble: String::new(),
            };
            entry.follower = Some((tokio::spawn(follower.run().instrument(span)).abort_handle(), pulse));
        });
    }

    /// Stops to follow a job, and gives its place back.
    pub fn release(&self, job: &str) {
        let entry = self.with(|entries| entries.remove(job));
        if let Some((follower, _)) = entry.and_then(|entry| entry.follower) {
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
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner).remove(builder);
    }

    pub(super) fn observe(
        &self,
        id: &str,
        run: &ObjectRef<ImageBuildRun>,
        observation: Observation,
        progress: &Progress,
    ) {
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
pub(super) async fn timely<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
    tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer")))
}

pub(super) fn unusable(error: &tonic::transport::Error) -> tonic::Status {
    tonic::Status::internal(format!("the operator's certificates cannot be used: {error}"))
}
