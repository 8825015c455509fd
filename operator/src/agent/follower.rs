//! Follows one job on its agent: has it started where the agent does not know it, reads its events, and reaches the agent
//! again where the way to it breaks. How long it may be silent is its [`Pulse`]'s matter.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use kiln_agent_proto as proto;
use kiln_agent_proto::agent_client::AgentClient;
use kiln_crds::ImageBuildRun;
use kiln_registry::room::Place;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::connection::{Agent, is_untrusted};
use super::jobs::{Jobs, Observation, Whole, timely, unusable};
use super::pulse::Pulse;
use crate::image_build_run::steps::{Change, Progress};

/// The longest delay before an agent is reached again, jitter aside.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// How long a stream stands until the next one that breaks is taken up at once again.
const STANDS: Duration = Duration::from_secs(1);
/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(250);
/// How much time there is at least between two changes that are told.
const BETWEEN: Duration = Duration::from_secs(1);
/// How long a step runs before its output is told, and how often it is then.
const OUTPUT: Duration = Duration::from_secs(10);
/// The longest time for which the events of a job that had begun before are read without telling: what happened long ago
/// comes first, and a status must not go back.
const CATCH_UP: Duration = Duration::from_secs(5);

/// When changes are told; pure but for the clock that is handed in.
pub(super) struct News {
    /// Since when something is untold.
    untold: Option<Instant>,
    /// When something was told last.
    told: Option<Instant>,
    /// When a step's output is to be told, if it still runs then.
    output: Option<Instant>,
    /// Until when events may be those of long ago.
    catching_up: Option<Instant>,
}

impl News {
    pub(super) fn new(began_before: bool, now: Instant) -> Self {
        Self { untold: None, told: None, output: None, catching_up: began_before.then(|| now + CATCH_UP) }
    }

    /// Something changed.
    fn changed(&mut self, now: Instant) {
        if self.untold.is_none() || self.catching_up.is_some() {
            self.untold = Some(now);
        }
    }

    /// A step wrote something, which has run for so long.
    fn output(&mut self, ran: Duration, now: Instant) {
        let next = self.told.map_or(now, |told| told + OUTPUT);
        self.output.get_or_insert(next.max(now + OUTPUT.saturating_sub(ran)).max(now + GATHER));
    }

    /// When it is to be told. `None`: there is nothing to tell.
    fn due(&self) -> Option<Instant> {
        let Some(untold) = self.untold else { return self.output };
        let due = untold + GATHER;
        let due = self.catching_up.map_or(due, |end| due.min(end));
        Some(self.told.map_or(due, |told| due.max(told + BETWEEN)))
    }

    /// Whether more is to be told than a step's output.
    fn is_urgent(&self) -> bool {
        self.untold.is_some()
    }

    fn told(&mut self, now: Instant) {
        *self = Self { untold: None, told: Some(now), output: None, catching_up: None };
    }
}

/// Follows one job to its end.
pub(super) struct Follower {
    pub jobs: Jobs,
    pub id: String,
    pub run: ObjectRef<ImageBuildRun>,
    pub agent: Agent,
    pub job: Option<Box<dyn Whole>>,
    pub progress: Progress,
    pub news: News,
    pub pulse: Arc<Pulse>,
    /// The sequence number of the last event that was read.
    pub seen: u64,
    /// Whether its stream was read in the last attempt.
    pub is_heard: bool,
    /// What came of that attempt.
    pub trouble: String,
}

/// Why an attempt has ended.
enum Interrupted {
    /// The agent, or the way to it.
    Agent(tonic::Status),
    /// The API server, which has the run.
    Operator(kube::Error),
}

impl From<tonic::Status> for Interrupted {
    fn from(status: tonic::Status) -> Self {
        Self::Agent(status)
    }
}

impl Follower {
    pub(super) async fn run(mut self) {
        let pulse = self.pulse.clone();
        let ended = tokio::select! {
            biased;
            ended = self.follow() => Some(ended),
            () = pulse.lost() => None,
        };
        let ended = ended.unwrap_or_else(|| {
            warn!(trouble = self.trouble, silent = ?pulse.silence(), "a builder is lost");
            Observation::Unreachable(std::mem::take(&mut self.trouble))
        });
        self.observe(ended);
    }

    /// Takes the stream up again until the job has ended.
    async fn follow(&mut self) -> Observation {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(20))
            .with_factor(1.5)
            .with_max_delay(LONGEST_DELAY)
            .with_jitter()
            .without_max_times();
        let mut delays = backoff.build();
        let pulse = self.pulse.clone();
        loop {
            let (before, begun) = (self.seen, Instant::now());
            match self.attempt().await {
                Ok(outcome) => return outcome,
                Err(Interrupted::Agent(status)) => {
                    debug!(%status, "reaching the agent again");
                    pulse.missed(is_untrusted(&status));
                    status.message().clone_into(&mut self.trouble);
                    if self.seen > before || self.is_heard && begun.elapsed() >= STANDS {
                        delays = backoff.build();
                    }
                    tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)).await;
                }
                Err(Interrupted::Operator(error)) => {
                    debug!(%error, "the job cannot be made");
                    let _pause = pulse.pause();
                    tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)).await;
                }
            }
        }
    }

    fn observe(&self, observation: Observation) {
        self.jobs.observe(&self.id, &self.run, observation, &self.progress);
    }

    /// Starts the job, if that is still to be done, and reads its events. `Err`: try again.
    async fn attempt(&mut self) -> Result<Observation, Interrupted> {
        self.is_heard = false;
        let mut client = self.jobs.connections.client(&self.agent).map_err(|error| unusable(&error))?;
        let request = proto::WatchRequest { job_id: self.id.clone(), after: self.seen };
        // Asked first: an agent that cannot be reached keeps no place in memory from others.
        let mut watched = timely(client.watch(request.clone())).await;
        if let (Some(job), Err(status)) = (&self.job, &watched)
            && status.code() == Code::NotFound
        {
            self.pulse.heard();
            let whole = {
                let _pause = self.pulse.pause();
                job.job().await.map_err(Interrupted::Operator)?
            };
            let Some(whole) = whole else { return Ok(Observation::Unknown) };
            if let Some(ended) = Box::pin(start(&mut client, whole)).await? {
                return Ok(ended);
            }
            watched = timely(client.watch(request)).await;
        }
        let mut events = match watched {
            Ok(events) => events.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(Observation::Unknown),
            Err(status) => return Err(status.into()),
        };
        // Its credentials are not needed again.
        self.job = None;
        self.hear();
        // Agents of an earlier version send no heartbeats: the pings of a connection that stands tell of them.
        let mut beats = false;
        let mute = self.pulse.patience.mute;
        let mut heard = Instant::now();
        loop {
            let due = self.news.due();
            let event = tokio::select! {
                event = events.message() => match event {
                    Ok(event) => event,
                    Err(status) => return unreadable(&status).ok_or_else(|| status.into()),
                },
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    self.tell();
                    continue;
                }
                () = tokio::time::sleep_until(heard + mute) => {
                    if beats {
                        return Err(tonic::Status::deadline_exceeded("no heartbeat").into());
                    }
                    self.hear();
                    heard = Instant::now();
                    continue;
                }
            };
            let Some(event) = event else {
                return Err(tonic::Status::unavailable("the stream ended before the job did").into());
            };
            self.hear();
            heard = Instant::now();
            if matches!(event.kind, Some(proto::event::Kind::Heartbeat(_))) {
                beats = true;
                continue;
            }
            if event.sequence <= self.seen {
                continue;
            }
            self.seen = event.sequence;
            match self.progress.take(&event) {
                Change::Nothing => {}
                Change::Status => self.news.changed(Instant::now()),
                Change::Output(ran) => self.news.output(ran, Instant::now()),
            }
            if let Some(outcome) = event.kind.and_then(outcome) {
                return Ok(outcome);
            }
        }
    }

    fn hear(&mut self) {
        self.is_heard = true;
        self.pulse.heard();
    }

    fn tell(&mut self) {
        // The step may have ended meanwhile.
        let is_worth_it = self.news.is_urgent() || self.progress.has_output();
        self.news.told(Instant::now());
        if !is_worth_it {
            return;
        }
        self.observe(self.progress.current().map_or(Observation::Connecting, Observation::Running));
    }
}

/// What comes of a job whose agent says more of it than is taken: it would say so again, and is no agent that is lost.
fn unreadable(status: &tonic::Status) -> Option<Observation> {
    (status.code() == Code::OutOfRange).then(|| {
        Observation::Failed(proto::Failure {
            class: proto::failure::Class::Infrastructure.into(),
            reason: "AgentFailed".to_owned(),
            message: "the builder told more of the job than Kiln takes".to_owned(),
            ..proto::Failure::default()
        })
    })
}

/// Has the agent start a job. `Some`: it does not.
async fn start(
    client: &mut AgentClient<Channel>,
    (job, _place): (proto::Job, Place),
) -> Result<Option<Observation>, tonic::Status> {
    match timely(client.start(proto::StartRequest { job: Some(job) })).await {
        Ok(_) => Ok(None),
        Err(status) if matches!(status.code(), Code::ResourceExhausted | Code::FailedPrecondition) => {
            info!(why = status.message(), "the builder takes no job");
            Ok(Some(Observation::Refused))
        }
        // Out of range: it is larger than the agent takes.
        Err(status) if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) => {
            Ok(Some(Observation::Failed(proto::Failure {
                class: proto::failure::Class::User.into(),
                reason: "InvalidJob".to_owned(),
                message: status.message().to_owned(),
                ..proto::Failure::default()
            })))
        }
        Err(status) => Err(status),
    }
}

fn outcome(event: proto::event::Kind) -> Option<Observation> {
    match event {
        proto::event::Kind::Result(result) => Some(Observation::Succeeded(Box::new(result))),
        proto::event::Kind::Failure(failure) => Some(Observation::Failed(failure)),
        proto::event::Kind::Phase(_)
        | proto::event::Kind::Step(_)
        | proto::event::Kind::Log(_)
        | proto::event::Kind::Heartbeat(_) => None,
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
    fn output_is_told_of_steps_that_take_long_and_not_often() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let due = |news: &News| news.due().map(|due| due.duration_since(start).as_secs());
        let mut news = News::new(false, start);
        news.output(Duration::from_secs(3), at(3));
        news.output(Duration::from_secs(4), at(4));
        assert_eq!(
            (due(&news), news.is_urgent()),
            (Some(10), false),
            "once the step has run for ten seconds, hung or not"
        );
        news.told(at(10));
        news.output(Duration::from_secs(11), at(11));
        assert_eq!(due(&news), Some(20), "ten seconds after the last");
        news.changed(at(12));
        assert_eq!((due(&news), news.is_urgent()), (Some(12), true), "with what is told before");
        news.told(at(12));
        assert_eq!(due(&news), None);
    }

    #[test]
    fn an_agent_that_says_too_much_is_not_lost() {
        let failed = |status| matches!(unreadable(&status), Some(Observation::Failed(_)));
        assert!(failed(tonic::Status::out_of_range("decoded message length too large")));
        assert!(!failed(tonic::Status::unavailable("the connection broke")));
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
