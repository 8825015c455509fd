//! The job API over gRPC: what each call of `agent.proto` does.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt as _, stream};
use kiln_agent_proto::{
    CancelRequest, CancelResponse, DescribeRequest, DescribeResponse, DrainRequest, DrainResponse, Event,
    ForgetRequest, ForgetResponse, Heartbeat, StartRequest, StartResponse, WatchRequest, agent_server::Agent,
    event::Kind,
};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::{Request, Response, Status};

use crate::{
    answer::Answer,
    events::is_outcome,
    jobs::{Job, Registry, StartError},
};

/// How many events a Watch takes from a job at a time.
const BATCH: usize = 256;
/// How often a Watch tells that the agent lives, where nothing else is to be told.
const BEAT: Duration = Duration::from_secs(5);

/// Serves the job API.
pub struct Service {
    registry: Arc<Registry>,
}

impl Service {
    /// For the jobs of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    fn job(&self, id: &str) -> Result<Arc<Job>, Status> {
        self.registry.get(id).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("this builder does not know the job {id:?}"))
}

#[tonic::async_trait]
impl Agent for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let about =
            self.registry.buildkit().about().await.map_err(|error| Status::unavailable(crate::chain(&error)))?;
        let used = self.registry.buildkit().cache_used().await;
        Ok(Response::new(DescribeResponse {
            buildkit_version: about.version,
            platforms: about.platforms,
            running_jobs: self.registry.running(),
            draining: self.registry.draining(),
            cache_used_bytes: used.unwrap_or(0),
            sandbox_problem: self.registry.sandbox().problem().unwrap_or_default().to_owned(),
            cache_size_bytes: self.registry.config().cache_size,
            largest_id: self.registry.buildkit().largest_id().unwrap_or(0),
        }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let job = request.into_inner().job.ok_or_else(|| Status::invalid_argument("the request has no job"))?;
        if self.registry.get(&job.id).is_none() && self.registry.buildkit().ask().await == Answer::Silent {
            return Err(Status::failed_precondition(
                "buildkitd does not answer: this builder takes no jobs until it does",
            ));
        }
        let started = self.registry.start(job).map_err(|error| match error {
            StartError::Draining => Status::failed_precondition(error.to_string()),
            StartError::Full(_) => Status::resource_exhausted(error.to_string()),
            StartError::Id => Status::invalid_argument(error.to_string()),
        })?;
        Ok(Response::new(StartResponse { started }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { job_id, after } = request.into_inner();
        Ok(Response::new(Box::pin(watch(self.job(&job_id)?, after, BEAT))))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelResponse>, Status> {
        let id = request.into_inner().job_id;
        if self.registry.cancel(&id) { Ok(Response::new(CancelResponse {})) } else { Err(unknown(&id)) }
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        let id = request.into_inner().job_id;
        if self.registry.forget(&id) {
            Ok(Response::new(ForgetResponse {}))
        } else {
            Err(Status::failed_precondition(format!("the job {id:?} still runs")))
        }
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.registry.drain();
        Ok(Response::new(DrainResponse {}))
    }
}

/// What a Watch goes on from.
struct Watched {
    job: Arc<Job>,
    changes: tokio::sync::watch::Receiver<()>,
    after: u64,
    beats: Interval,
}

/// The job's events above `after`: those that happened, then those that happen, to the outcome; and heartbeats between them.
fn watch(job: Arc<Job>, after: u64, beat: Duration) -> impl Stream<Item = Result<Event, Status>> + Send {
    let mut beats = interval(beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let changes = job.changes();
    stream::unfold(Some(Watched { job, changes, after, beats }), |watched| async move {
        let mut watched = watched?;
        loop {
            // Seen before reading, so that a change in between wakes the next wait.
            watched.changes.borrow_and_update();
            let events = watched.job.after(watched.after, BATCH);
            if let Some(last) = events.last() {
                let ended = is_outcome(last);
                watched.after = last.sequence;
                return Some((stream::iter(events), (!ended).then_some(watched)));
            }
            if watched.job.outcome().is_some() {
                return None;
            }
            tokio::select! {
                changed = watched.changes.changed() => changed.ok()?,
                _ = watched.beats.tick() => {
                    let kind = Some(Kind::Heartbeat(Heartbeat {}));
                    let beat = Event { sequence: watched.after, time: Some(SystemTime::now().into()), kind };
                    return Some((stream::iter(vec![beat]), Some(watched)));
                }
            }
        }
    })
    .flat_map(|events| events)
    .map(Ok)
}

#[cfg(test)]
mod tests {
    use kiln_agent_proto::{Phase, Result as JobResult};

    use super::*;

    #[tokio::test]
    async fn a_job_that_tells_nothing_has_heartbeats_and_no_event_is_lost_or_told_twice() {
        let job = Job::unfinished();
        let told = |event: Option<Result<Event, Status>>| {
            let event = event.unwrap().unwrap();
            (event.sequence, matches!(event.kind, Some(Kind::Heartbeat(_))))
        };
        let mut events = Box::pin(watch(Arc::clone(&job), 0, Duration::from_millis(1)));
        assert_eq!([told(events.next().await), told(events.next().await)], [(0, true); 2]);
        job.push(Kind::Phase(Phase::Building.into()));
        let next = events.by_ref().filter(|event| {
            let is_beat = matches!(event, Ok(Event { kind: Some(Kind::Heartbeat(_)), .. }));
            std::future::ready(!is_beat)
        });
        assert_eq!(told(Box::pin(next).next().await), (1, false));
        // Another goes on where this one broke.
        drop(events);
        job.push(Kind::Phase(Phase::Pushing.into()));
        let mut events = Box::pin(watch(Arc::clone(&job), 1, Duration::from_hours(1)));
        assert_eq!(told(events.next().await), (2, false));
        assert_eq!(told(events.next().await), (2, true), "at once");
        job.push(Kind::Result(JobResult::default()));
        assert_eq!(told(events.next().await), (3, false));
        assert!(events.next().await.is_none(), "no heartbeat behind the outcome");
    }
}
