//! The job API over gRPC: what each call of `agent.proto` does.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use kiln_agent_proto::{
    CancelRequest, CancelResponse, DescribeRequest, DescribeResponse, DrainRequest, DrainResponse, Event,
    ForgetRequest, ForgetResponse, StartRequest, StartResponse, WatchRequest, agent_server::Agent,
};

use tonic::{Request, Response, Status};

use crate::{
    events::is_outcome,
    jobs::{Job, Registry, StartError},
};

/// How many events a Watch takes from a job at a time.
const BATCH: usize = 256;

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
        let started = self.registry.start(job).map_err(|error| match error {
            StartError::Draining => Status::failed_precondition(error.to_string()),
            StartError::Full(_) => Status::resource_exhausted(error.to_string()),
            StartError::Id => Status::invalid_argument(error.to_string()),
        })?;
        Ok(Response::new(StartResponse { started }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { job_id, after } = request.into_inner();
        Ok(Response::new(Box::pin(watch(self.job(&job_id)?, after))))
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

/// The job's events above `after`: those that happened, then those that happen, to the outcome.
fn watch(job: Arc<Job>, after: u64) -> impl Stream<Item = Result<Event, Status>> + Send {
    let changes = job.changes();
    stream::unfold(Some((job, changes, after)), |state| async move {
        let (job, mut changes, after) = state?;
        loop {
            // Seen before reading, so that a change in between wakes the next wait.
            changes.borrow_and_update();
            let events = job.after(after, BATCH);
            if let Some(last) = events.last() {
                let (ended, reached) = (is_outcome(last), last.sequence);
                return Some((stream::iter(events), (!ended).then_some((job, changes, reached))));
            }
            if job.outcome().is_some() || changes.changed().await.is_err() {
                return None;
            }
        }
    })
    .flat_map(|events| events)
    .map(Ok)
}
