//! The program: its threads, the Lease that it waits for, and what comes of losing it.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::api_server::{self, Purpose, Reach};
use crate::builder::Authority;
use crate::config::Settings;
use crate::leader::Elector;
use crate::metrics::Metrics;
use crate::operator::control;
use crate::server::{Health, Rounds, serve};
use crate::trace::Traces;

/// Why the operator stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server's address or credential cannot be found or used.
    #[error("finding the API server: {0}")]
    Client(String),
    /// The log filter is none.
    #[error("reading the log filter: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// The collector of traces cannot be reached so.
    #[error("reading OTEL_EXPORTER_OTLP_ENDPOINT, which should be such as http://otel-collector.monitoring:4317: {0}")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    /// /livez could not be served.
    #[error("serving /livez, /readyz and /metrics: {0}")]
    Server(#[from] std::io::Error),
    /// Another replica leads, or may soon: this one must not go on, and could not begin anew.
    #[error("the Lease was lost, and the operator could not begin anew: {0}")]
    LeaseLost(std::io::Error),
    /// No threads, or not what they need.
    #[error("starting the operator's threads: {0}")]
    Threads(std::io::Error),
    /// The controllers broke off.
    #[error("the controllers broke off")]
    Broken(#[from] tokio::task::JoinError),
}

/// The program: reads its settings, then runs until it is told to stop; its exit code.
///
/// It stands in the library, so that the whole is compiled once and the binary only calls it. Unit tests do without.
///
/// # Panics
/// Where no thread can be started.
#[must_use]
pub fn main() -> ExitCode {
    let settings = Settings::from_args();
    if let Err(problem) = crate::telemetry::start(&settings.log, settings.log_format) {
        eprintln!("kiln-operator: reading the log filter {:?}: {problem}", settings.log);
        return ExitCode::from(2);
    }
    match start(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(error = %problem, "the operator ends");
            ExitCode::FAILURE
        }
    }
}

/// How much the threads that work yield to this one, which keeps the Lease and answers probes: of two that want the processor,
/// the other gets a third.
const NICENESS: i32 = 5;

fn start(settings: Settings) -> Result<(), Error> {
    // What it does waits for others; each further thread would keep a heap of its own.
    let mut work = tokio::runtime::Builder::new_multi_thread();
    work.worker_threads(2).enable_all().on_thread_start(|| {
        // Linux takes the thread for the process that is named by none. Where it may not, all are alike.
        let _ = rustix::process::setpriority_process(None, NICENESS);
    });
    let work = work.build().map_err(Error::Threads)?;
    // However much there is to do, and however long a thread is busy: the Lease is renewed on one that does nothing else.
    let vital = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Threads)?;
    let ended = vital.block_on(Box::pin(run(settings, crate::shutdown::signal(), work.handle())));
    work.shutdown_background();
    ended
}

/// Runs until `shutdown`. Controllers run on `work`; where they must not go on, the process is replaced by a new one of the
/// same program, which starts as a candidate.
async fn run(
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
    work: &tokio::runtime::Handle,
) -> Result<(), Error> {
    let (reach, rounds) = (Reach::default(), Rounds::default());
    let for_lease =
        api_server::client(Purpose::Lease, settings.api_deadline, reach.clone()).await.map_err(Error::Client)?;
    let traces = settings.otlp_endpoint.as_deref().map(Traces::new).transpose()?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry, reach.clone());
    let health = Health::new(registry, rounds.clone(), reach.clone());
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(settings.listen, health.clone(), stop.clone().cancelled_owned()));
    {
        let stop = stop.clone();
        tokio::spawn(async move {
            shutdown.await;
            info!("stopping");
            stop.cancel();
        });
    }
    tokio::select! {
        () = kinds_there(&for_lease) => health.ready(),
        () = stop.cancelled() => return Ok(()),
    }
    let elector = Elector::new(for_lease, &settings.namespace, "kiln-operator", &settings.identity, rounds.clone());
    let Some(leadership) = elector.acquire(stop.cancelled()).await else { return Ok(()) };
    metrics.leads(true);
    info!(identity = settings.identity, "leading");
    let (token, stopped) = (leadership.token(), stop.clone());
    let controllers = work.spawn(async move {
        let client = api_server::client(Purpose::Work, settings.api_deadline, reach).await.map_err(Error::Client)?;
        let controllers = async {
            let authority = authority(&client, &settings).await;
            Box::pin(control(client.clone(), settings, Arc::new(authority), metrics, traces, token, stopped)).await;
        };
        let alive = async {
            loop {
                rounds.came("the controllers");
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        tokio::select! {
            () = controllers => {}
            () = alive => {}
        }
        Ok::<_, Error>(())
    });
    tokio::select! {
        ended = controllers => ended??,
        // Nothing may act for the leader any more: what is on its way goes with the threads. A kubelet counts no restart.
        // Who was told to stop does not: the signal would not come again.
        () = leadership.lost() => {
            return if stop.is_cancelled() { Ok(()) } else { Err(Error::LeaseLost(begin_anew())) };
        }
    }
    stop.cancel();
    leadership.release().await;
    match server.await {
        Ok(result) => result?,
        Err(error) => warn!(%error, "the server for /livez ended"),
    }
    Ok(())
}

/// The certificates of builders, once they can be read.
async fn authority(client: &Client, settings: &Settings) -> Authority {
    let mut failed = 0;
    loop {
        match Authority::load(client, &settings.namespace, settings.certificate_lifetime).await {
            Ok(authority) => return authority,
            Err(error) => warn!(%error, "reading the certificate authority of builders; trying on"),
        }
        failed += 1;
        tokio::time::sleep(crate::context::backoff(failed)).await;
    }
}

/// Replaces the process by a new one of the same program. Comes back only where that fails.
fn begin_anew() -> std::io::Error {
    use std::os::unix::process::CommandExt as _;

    warn!("beginning anew as a candidate");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    std::process::Command::new("/proc/self/exe").arg0(name).args(arguments).exec()
}

/// Waits until the API server answers and knows Kiln's kinds.
async fn kinds_there(client: &Client) {
    let mut said = false;
    loop {
        let params = kube::api::ListParams::default().limit(1);
        let image_builds = Api::<ImageBuild>::all(client.clone());
        let runs = Api::<ImageBuildRun>::all(client.clone());
        let pools = Api::<BuilderPool>::all(client.clone());
        match futures::try_join!(
            image_builds.list_metadata(&params),
            runs.list_metadata(&params),
            pools.list_metadata(&params)
        ) {
            Ok(_) => return,
            Err(error) if !said => {
                warn!(%error, "waiting for the API server and Kiln's CustomResourceDefinitions");
                said = true;
            }
            Err(error) => debug!(%error, "still waiting"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
