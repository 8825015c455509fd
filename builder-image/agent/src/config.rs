//! What the agent is told at its start, by flag or by environment variable.

use std::{net::SocketAddr, path::PathBuf};

use tracing_subscriber::EnvFilter;

use crate::buildkit::Limits;

/// The agent of a Kiln builder pod.
#[derive(Debug, Clone, clap::Parser)]
#[command(version, about)]
pub struct Config {
    /// Where the job API listens.
    #[arg(long, env = "KILN_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Directory with `tls.crt`, `tls.key` and `ca.crt`, read again whenever they change.
    #[arg(long, env = "KILN_TLS_DIR", default_value = "/etc/kiln/tls")]
    pub tls_dir: PathBuf,
    /// The DNS name that a client's certificate must hold.
    #[arg(long, env = "KILN_CLIENT_NAME", default_value = "kiln-operator")]
    pub client_name: String,
    /// The pod's stable name; for the log.
    #[arg(long, env = "KILN_BUILDER", default_value = "")]
    pub builder: String,
    /// How many jobs may run at once.
    #[arg(long, env = "KILN_MAX_JOBS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_jobs: u32,
    /// Directory on the cache volume: bare repositories, source trees, job logs.
    #[arg(long, env = "KILN_STATE_DIR", default_value = "/var/lib/kiln/agent")]
    pub state_dir: PathBuf,
    /// Directory in memory: each job's credentials, gone with the job.
    #[arg(long, env = "KILN_CREDENTIALS_DIR", default_value = "/run/kiln")]
    pub credentials_dir: PathBuf,
    /// The socket of buildkitd, as `unix://PATH`.
    #[arg(long, env = "KILN_BUILDKIT_ADDR", default_value = "unix:///run/buildkit/buildkitd.sock")]
    pub buildkit_addr: String,
    /// Directory with further CA certificates (PEM), trusted for every registry and its token server. May be absent.
    #[arg(long, env = "KILN_TRUST_DIR", default_value = "/etc/kiln/buildkitd/trust")]
    pub trust_dir: PathBuf,
    /// Directory with CA certificates (PEM) that are trusted for one registry and its token server, each in a file that is
    /// called `REGISTRY.crt`. May be absent.
    #[arg(long, env = "KILN_REGISTRY_TRUST_DIR", default_value = "/etc/kiln/buildkitd/registries")]
    pub registry_trust_dir: PathBuf,
    /// The bytes that the cache may hold whatever else is on its volume.
    #[arg(long, env = "KILN_CACHE_RESERVED", default_value_t = 0)]
    pub cache_reserved: u64,
    /// The most bytes that the cache may hold. 0: no limit.
    #[arg(long, env = "KILN_CACHE_SIZE", default_value_t = 0)]
    pub cache_size: u64,
    /// The bytes that are to stay free on the cache's volume.
    #[arg(long, env = "KILN_CACHE_FREE", default_value_t = 0)]
    pub cache_free: u64,
    /// The most bytes of memory that the agent's container may use. 0: no limit.
    #[arg(long, env = "KILN_MEMORY_LIMIT", default_value_t = 0)]
    pub memory_limit: u64,
    /// Directory for images as tarballs. Absent: builds cannot write or read any.
    #[arg(long, env = "KILN_ARCHIVES_DIR")]
    pub archives_dir: Option<PathBuf>,
    /// How the log is written.
    #[arg(long, env = "KILN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Plain text.
    Human,
}

impl Config {
    /// The limits of the cache.
    #[must_use]
    pub fn cache_limits(&self) -> Limits {
        Limits { reserved: self.cache_reserved, most: self.cache_size, free: self.cache_free }
    }

    /// Starts the log on standard error; `RUST_LOG` filters it, `info` unless set.
    pub fn start_logging(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Json => log.json().flatten_event(true).with_span_list(false).init(),
            LogFormat::Human => log.init(),
        }
    }
}
