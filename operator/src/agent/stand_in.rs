//! Jobs on a stand-in of an agent, over mutual TLS, and a way to it that breaks and goes mute.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use kiln_agent_proto as proto;
use kiln_agent_proto::agent_server::{Agent as Api, AgentServer};
use kiln_agent_proto::event::Kind;
use kiln_crds::{BuilderPool, ImageBuildRun};
use kiln_registry::room::{Place, Room};
use kube::runtime::reflector::ObjectRef;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::connection::{Agent, Connections, is_untrusted};
use super::jobs::{Jobs, Observation, Whole, timely};
use super::pulse::Patience;
use crate::builder::Authority;

const MILLI: Duration = Duration::from_millis(1);
/// A tenth of a second stands for the half-minute after which a builder is suspect.
const PATIENCE: Patience = Patience {
    tick: Duration::from_millis(5),
    mute: Duration::from_millis(50),
    suspect: Duration::from_millis(100),
    lost: Duration::from_millis(400),
    untrusted: Duration::from_millis(800),
};
const BUILDER: &str = "default-amd64-0123456789-0";
const JOB: &str = "job-1";

/// What the agent knows of its one job.
#[derive(Default)]
struct Known {
    starts: usize,
    /// From which event on each Watch was asked for.
    watched: Vec<u64>,
}

#[derive(Clone)]
struct StandIn {
    known: Arc<Mutex<Known>>,
    /// The last event so far; the outcome is that with the number of [`LAST`].
    told: watch::Receiver<u64>,
    beats: bool,
}

/// The number of the job's last event.
const LAST: u64 = 4;

fn event(sequence: u64) -> proto::Event {
    let step = |name: &str| {
        let (name, started) = (format!("[{name}] RUN make"), Some(prost_types::Timestamp::default()));
        Kind::Step(proto::Step { id: name.clone(), name, started, ..proto::Step::default() })
    };
    let kind = match sequence {
        1 => Kind::Phase(proto::Phase::Building.into()),
        2 => step("1/2"),
        3 => step("2/2"),
        _ => Kind::Result(proto::Result { digest: "sha256:1".to_owned(), ..proto::Result::default() }),
    };
    proto::Event { sequence, kind: Some(kind), ..proto::Event::default() }
}

#[tonic::async_trait]
impl Api for StandIn {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

    async fn describe(&self, _: Request<proto::DescribeRequest>) -> Result<Response<proto::DescribeResponse>, Status> {
        Ok(Response::new(proto::DescribeResponse::default()))
    }

    async fn start(&self, _: Request<proto::StartRequest>) -> Result<Response<proto::StartResponse>, Status> {
        self.known.lock().unwrap().starts += 1;
        Ok(Response::new(proto::StartResponse { started: true }))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut after = request.into_inner().after;
        {
            let mut known = self.known.lock().unwrap();
            if known.starts == 0 {
                return Err(Status::not_found("no such job"));
            }
            known.watched.push(after);
        }
        let told = WatchStream::new(self.told.clone()).flat_map(move |last| {
            let events: Vec<_> = (after + 1..=last).map(event).collect();
            after = last.max(after);
            stream::iter(events)
        });
        let beat = |()| proto::Event { kind: Some(Kind::Heartbeat(proto::Heartbeat {})), ..proto::Event::default() };
        let beats = stream::unfold((), |()| async {
            tokio::time::sleep(MILLI * 10).await;
            Some(((), ()))
        });
        let beats = if self.beats { beats.map(beat).boxed() } else { stream::pending().boxed() };
        Ok(Response::new(Box::pin(stream::select(told, beats).map(Ok))))
    }

    async fn cancel(&self, _: Request<proto::CancelRequest>) -> Result<Response<proto::CancelResponse>, Status> {
        Ok(Response::new(proto::CancelResponse {}))
    }

    async fn forget(&self, _: Request<proto::ForgetRequest>) -> Result<Response<proto::ForgetResponse>, Status> {
        Ok(Response::new(proto::ForgetResponse {}))
    }

    async fn drain(&self, _: Request<proto::DrainRequest>) -> Result<Response<proto::DrainResponse>, Status> {
        Ok(Response::new(proto::DrainResponse {}))
    }
}

/// What becomes of the connections to the agent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Way {
    /// How often those that stood have been broken off.
    cuts: usize,
    /// Whether nothing comes through, though all are taken: as where a process is stopped.
    is_mute: bool,
}

/// Goes between all who come and `to`.
async fn carry(listener: TcpListener, to: SocketAddr, way: watch::Receiver<Way>) {
    while let Ok((mut here, _)) = listener.accept().await {
        let mut way = way.clone();
        let cuts = way.borrow().cuts;
        tokio::spawn(async move {
            let mut there = TcpStream::connect(to).await.unwrap();
            loop {
                let now = *way.borrow_and_update();
                if now.cuts > cuts {
                    return;
                }
                let copied = async {
                    if now.is_mute {
                        std::future::pending::<()>().await;
                    }
                    let _ = copy_bidirectional(&mut here, &mut there).await;
                };
                tokio::select! {
                    () = copied => return,
                    changed = way.changed() => if changed.is_err() { return },
                }
            }
        });
    }
}

struct Stage {
    jobs: Jobs,
    agent: Agent,
    known: Arc<Mutex<Known>>,
    told: watch::Sender<u64>,
    way: watch::Sender<Way>,
    pools: mpsc::UnboundedReceiver<ObjectRef<BuilderPool>>,
    runs: mpsc::UnboundedReceiver<ObjectRef<ImageBuildRun>>,
}

struct Empty;

impl Whole for Empty {
    fn job(&self) -> BoxFuture<'_, Result<Option<(proto::Job, Place)>, kube::Error>> {
        async { Ok(Some((proto::Job::default(), Arc::new(Room::new(1, 1)).enter("a").await))) }.boxed()
    }
}

impl Stage {
    async fn new(beats: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::unsaved();
        let (told, way) = (watch::Sender::new(0), watch::Sender::new(Way::default()));
        let stand_in = StandIn { known: Arc::default(), told: told.subscribe(), beats };
        let known = stand_in.known.clone();
        let served = serve(&authority, stand_in).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(carry(listener, served, way.subscribe()));
        let (wake_pools, pools) = mpsc::unbounded_channel();
        let (wake_runs, runs) = mpsc::unbounded_channel();
        let connections = Connections::new(Arc::new(authority)).with_port(port);
        let jobs = Jobs::new(connections, wake_runs, wake_pools).with_patience(PATIENCE);
        let agent = Agent { builder: BUILDER.to_owned(), address: Ipv4Addr::LOCALHOST.into() };
        let run = ObjectRef::new("app-1").within("team");
        jobs.follow(JOB, &run, "default", agent.clone(), Some(Box::new(Empty)));
        Self { jobs, agent, known, told, way, pools, runs }
    }

    /// Waits until the operator has told of what this says yes to.
    async fn until(&mut self, seen: impl Fn(&Self) -> bool) {
        while !seen(self) {
            let woken = tokio::time::timeout(Duration::from_secs(20), self.runs.recv()).await;
            woken.unwrap_or_else(|_| panic!("still {:?}", self.jobs.seen(JOB)));
        }
    }

    /// Waits until its pool is to tell that a builder is suspect, or no more.
    async fn told_of_builder(&mut self) {
        let told = tokio::time::timeout(Duration::from_secs(20), self.pools.recv()).await;
        assert_eq!(told.unwrap(), Some(ObjectRef::new("default")));
    }

    async fn until_steps(&mut self, steps: usize) {
        self.until(|stage| stage.steps() == steps).await;
    }

    fn steps(&self) -> usize {
        let (_, progress) = self.jobs.seen(JOB).unwrap();
        progress.in_status(kiln_crds::image_build_run::PlatformStatus::default()).steps.len()
    }

    async fn succeeds(mut self) -> Known {
        self.told.send_replace(LAST);
        self.until(|stage| matches!(stage.jobs.observation(JOB), Some(Observation::Succeeded(_)))).await;
        assert_eq!(self.steps(), 2, "each step once");
        std::mem::take(&mut *self.known.lock().unwrap())
    }
}

async fn serve(authority: &Authority, stand_in: StandIn) -> SocketAddr {
    let certificates = authority.current();
    let own = certificates.server(BUILDER, k8s_openapi::jiff::Timestamp::now()).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&own.certificate, &own.key))
        .client_ca_root(Certificate::from_pem(certificates.trust()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().tls_config(tls).unwrap().add_service(AgentServer::new(stand_in));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

#[tokio::test]
async fn a_stream_that_breaks_is_taken_up_where_it_broke() {
    let mut stage = Stage::new(true).await;
    for (cut, event) in [(1, 2), (2, 3)] {
        stage.told.send_replace(event);
        stage.until_steps(usize::try_from(event).unwrap() - 1).await;
        stage.way.send_modify(|way| way.cuts = cut);
    }
    let known = stage.succeeds().await;
    assert_eq!((known.starts, known.watched), (1, vec![0, 2, 3]));
}

#[tokio::test]
async fn a_step_that_prints_nothing_is_no_silence() {
    // Without heartbeats too, as agents of an earlier version are.
    for beats in [true, false] {
        let mut stage = Stage::new(beats).await;
        stage.told.send_replace(2);
        stage.until_steps(1).await;
        // No condition tells of what does not happen.
        tokio::time::sleep(PATIENCE.lost * 2).await;
        assert_eq!(stage.jobs.suspect_since(BUILDER), None, "beats: {beats}");
        assert!(stage.pools.try_recv().is_err());
        let known = stage.succeeds().await;
        assert_eq!((known.starts, known.watched), (1, vec![0]), "beats: {beats}");
    }
}

#[tokio::test]
async fn an_agent_that_is_silent_is_suspect_and_trusted_when_it_speaks_again() {
    let mut stage = Stage::new(true).await;
    stage.told.send_replace(2);
    stage.until_steps(1).await;
    stage.way.send_modify(|way| way.is_mute = true);
    stage.told_of_builder().await;
    assert!(stage.jobs.suspect_since(BUILDER).is_some());
    assert_eq!(stage.jobs.suspect_since("another"), None);
    stage.way.send_modify(|way| way.is_mute = false);
    stage.told_of_builder().await;
    assert_eq!(stage.jobs.suspect_since(BUILDER), None);
    assert_eq!(stage.succeeds().await.starts, 1);
}

#[tokio::test]
async fn an_agent_that_stays_silent_is_lost_with_all_its_jobs() {
    let mut stage = Stage::new(true).await;
    stage.told.send_replace(2);
    stage.until_steps(1).await;
    stage.way.send_modify(|way| way.is_mute = true);
    // One that is given to it meanwhile waits no longer than the first.
    stage.told_of_builder().await;
    let run = ObjectRef::new("other-1").within("team");
    stage.jobs.follow("job-2", &run, "default", stage.agent.clone(), Some(Box::new(Empty)));
    let lost = |stage: &Stage, job| matches!(stage.jobs.observation(job), Some(Observation::Unreachable(_)));
    stage.until(|stage| lost(stage, JOB) && lost(stage, "job-2")).await;
    assert!(stage.jobs.silence(JOB).unwrap() < PATIENCE.lost * 2);
    assert!(stage.jobs.suspect_since(BUILDER).is_some(), "until its pod is gone");
}

/// What is known of a builder outlives the job by which it was found out: runs that are cancelled, each before a minute and a
/// half has gone by, do not keep a builder that has hung.
#[tokio::test]
async fn a_silence_outlives_the_job_by_which_it_was_found_out() {
    let mut stage = Stage::new(true).await;
    stage.told.send_replace(2);
    stage.until_steps(1).await;
    stage.way.send_modify(|way| way.is_mute = true);
    stage.told_of_builder().await;
    assert!(stage.jobs.suspect_since(BUILDER).is_some());
    // As where the run is cancelled: the agent does not answer that either.
    stage.jobs.release(JOB);
    let run = ObjectRef::new("app-2").within("team");
    stage.jobs.follow("job-2", &run, "default", stage.agent.clone(), Some(Box::new(Empty)));
    assert!(stage.jobs.silence("job-2").unwrap() >= PATIENCE.suspect, "{:?}", stage.jobs.silence("job-2"));
}

#[tokio::test]
async fn a_handshake_has_a_deadline_and_a_stranger_s_certificate_is_told_from_silence() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stand_in = StandIn { known: Arc::default(), told: watch::Sender::new(0).subscribe(), beats: true };
    let served = serve(&Authority::unsaved(), stand_in).await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (port, untrusted) in [(served.port(), true), (mute.local_addr().unwrap().port(), false)] {
        let connections = Connections::new(Arc::new(Authority::unsaved())).with_port(port);
        let agent = Agent { builder: BUILDER.to_owned(), address: Ipv4Addr::LOCALHOST.into() };
        let mut client = connections.client(&agent).unwrap();
        let status = timely(client.describe(proto::DescribeRequest {})).await.unwrap_err();
        assert_eq!(is_untrusted(&status), untrusted, "{status:?}");
        assert_ne!(status.code(), tonic::Code::DeadlineExceeded, "the handshake's own comes first");
    }
}
