//! The agent of a builder pod: takes jobs from the operator over mutual TLS, fetches their source, drives buildkitd
//! with `kiln-build`, and tells what happens. One job is one platform of one ImageBuildRun.

use std::{error::Error, io, sync::Arc, time::Duration};

use kiln_agent_proto::agent_server::AgentServer;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

pub mod answer;
pub mod buildkit;
pub mod collect;
pub mod config;
pub mod events;
pub mod files;
pub mod job;
pub mod jobs;
pub mod oom;
pub mod parsers;
pub mod paths;
pub mod process;
pub mod reasons;
pub mod sandbox;
pub mod service;
pub mod tls;
pub mod trust;
pub mod watchdog;

/// The largest request: inline files and secrets are each bounded by what a Kubernetes object holds.
const LARGEST_REQUEST: usize = 16 << 20;
/// How long clients have, once the last job has ended, to read its outcome and go.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The TLS material is unusable.
    #[error("cannot set up TLS")]
    Tls(#[from] tls::TlsError),
    /// A directory cannot be made, or emptied of what an earlier agent left.
    #[error("cannot prepare the agent's directories")]
    State(#[from] jobs::StateError),
    /// The port is taken, or signals cannot be received.
    #[error("cannot listen on {0}")]
    Listen(std::net::SocketAddr, #[source] io::Error),
    /// No thread can be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The agent cannot start itself as its own child, or hide its memory from them.
    #[error("cannot make the sandbox of what handles other people's files")]
    Sandbox(#[source] io::Error),
    /// The server failed.
    #[error("the server failed")]
    Serve(#[from] tonic::transport::Error),
}

/// The program: the agent itself, or one of its children that handle what others sent; its exit code.
///
/// It stands in the library, so that the whole is compiled once and the binary only calls it. Unit tests do without.
#[cfg(not(test))]
#[must_use]
pub fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("sandbox") => sandbox::enforce::main(arguments),
        Some("unpack") => job::unpacking::main(arguments),
        _ => agent(),
    }
}

/// Reads its configuration, then serves jobs until it is told to stop.
#[cfg(not(test))]
#[tokio::main]
async fn agent() -> std::process::ExitCode {
    use clap::Parser as _;

    let config = config::Config::parse();
    config.start_logging();
    match serve(config).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "the agent cannot go on");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Serves jobs until SIGTERM or SIGINT, then refuses new ones and ends with the last that runs.
pub async fn serve(config: config::Config) -> Result<(), AgentError> {
    // What the agent writes for a build has the modes that Git and the user expect.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let listen = |error| AgentError::Listen(config.listen, error);
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate()).map_err(listen)?, signal(SignalKind::interrupt()).map_err(listen)?);
    let tls = Arc::new(tls::Tls::load(&config.tls_dir, &config.client_name)?);
    watchdog::guard().map_err(AgentError::Thread)?;
    // No child that is taken over reads the agent's memory.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| AgentError::Sandbox(error.into()))?;
    let sandbox = std::env::current_exe().and_then(|own| sandbox::Sandbox::detect(own, config.memory_limit));
    let sandbox = sandbox.map_err(AgentError::Sandbox)?;
    if let Some(problem) = sandbox.problem() {
        tracing::warn!(problem, "what handles other people's files is not kept apart");
    }
    let registry = jobs::Registry::open(&config, sandbox)?;
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    tracing::info!(builder = config.builder, listen = %config.listen, max_jobs = config.max_jobs, "the agent is ready");

    tokio::spawn(collect::run(Arc::clone(&registry)));
    tokio::spawn(answer::guard(Arc::clone(&registry)));
    let over = CancellationToken::new();
    let drain = {
        let (registry, over) = (Arc::clone(&registry), over.clone());
        async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("told to stop: running jobs finish, new ones are refused");
            registry.drain();
            registry.idle().await;
            over.cancel();
        }
    };
    tokio::spawn(drain);
    let service = AgentServer::new(service::Service::new(registry)).max_decoding_message_size(LARGEST_REQUEST);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(service)
        .serve_with_incoming_shutdown(tls.incoming(listener), over.clone().cancelled_owned());
    tokio::select! {
        ended = server => ended?,
        () = async { over.cancelled().await; tokio::time::sleep(FAREWELL).await } => {}
    }
    tracing::info!("the agent has ended");
    Ok(())
}

/// An error and all its causes on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
