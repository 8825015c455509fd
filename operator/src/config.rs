//! The operator's settings: flags, each with an environment variable, which the chart sets.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use kiln_crds::Platform;

/// Kiln's operator: builds the ImageBuilds of a cluster.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Settings {
    /// The operator's own namespace: its Lease and its certificate authority are kept there.
    #[arg(long, env = "KILN_NAMESPACE", default_value = "kiln-system")]
    pub namespace: String,
    /// The namespace of the builder pods.
    #[arg(long, env = "KILN_BUILDERS_NAMESPACE", default_value = "kiln-builders")]
    pub builders_namespace: String,
    /// The image of the builder pods.
    #[arg(long, env = "KILN_BUILDER_IMAGE")]
    pub builder_image: String,
    /// Pull secrets for that image, in the builders namespace.
    #[arg(long, env = "KILN_BUILDER_PULL_SECRETS", value_delimiter = ',')]
    pub builder_pull_secrets: Vec<String>,
    /// The platforms of an ImageBuild that names none.
    #[arg(long, env = "KILN_DEFAULT_PLATFORMS", value_delimiter = ',', default_value = "linux/amd64,linux/arm64")]
    pub default_platforms: Vec<Platform>,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "KILN_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// How the log is written.
    #[arg(long, env = "KILN_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// What is logged, as a filter of the tracing library, such as `info,kiln_operator=debug`.
    #[arg(long, env = "KILN_LOG", default_value = "info")]
    pub log: String,
    /// The name of this replica in the Lease; the pod's name.
    #[arg(long, env = "KILN_POD_NAME", default_value = "kiln-operator")]
    pub identity: String,
}

impl Settings {
    /// The settings, empty list entries removed: an unset chart value arrives as an empty string.
    #[must_use]
    pub fn from_args() -> Self {
        let mut settings = Self::parse();
        settings.builder_pull_secrets.retain(|name| !name.is_empty());
        settings
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Human,
}
