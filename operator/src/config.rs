//! The operator's settings: flags, each with an environment variable, which the chart sets.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use kiln_crds::Platform;

use crate::network_policy::Egress;

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
    /// What builders may reach, as JSON: the operator keeps a NetworkPolicy that says so. Omitted: none is kept.
    #[arg(long, env = "KILN_BUILDERS_EGRESS", value_parser = builders_egress)]
    pub builders_egress: Option<Egress>,
    /// Ranges of the cluster's own addresses, such as `10.244.0.0/16`, beside those that nodes and the API server name.
    #[arg(long, env = "KILN_CLUSTER_RANGES", value_delimiter = ',')]
    pub cluster_ranges: Vec<IpNet>,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "KILN_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// How long the API server may take for an answer, such as `15s`; that of the Lease has a deadline of its own.
    #[arg(long, env = "KILN_API_DEADLINE", default_value = "15s", value_parser = api_deadline)]
    pub api_deadline: Duration,
    /// How the log is written.
    #[arg(long, env = "KILN_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// What is logged, as a filter of the tracing library, such as `info,kiln_operator=debug`.
    #[arg(long, env = "KILN_LOG", default_value = "info")]
    pub log: String,
    /// How long a certificate between operator and builders is valid, such as `2160h`. Their CA lives four times as long,
    /// and everything is renewed at two thirds of its life. At least a minute; not less than ten where kubelets look for
    /// changed Secrets as seldom as they do unless told otherwise.
    #[arg(long, env = "KILN_CERTIFICATE_LIFETIME", default_value = "2160h", value_parser = certificate_lifetime)]
    pub certificate_lifetime: Duration,
    /// Where traces of finished runs, and of BuildKit, are sent: an OpenTelemetry collector that takes OTLP over gRPC, such
    /// as `http://otel-collector.monitoring:4317`. Empty: nowhere.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
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
        settings.otlp_endpoint = settings.otlp_endpoint.filter(|endpoint| !endpoint.is_empty());
        settings
    }
}

fn builders_egress(text: &str) -> Result<Egress, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn certificate_lifetime(text: &str) -> Result<Duration, String> {
    duration(text, "2160h or 10m", Duration::from_mins(1))
}

/// Loops are late after a minute, and a request takes less.
fn api_deadline(text: &str) -> Result<Duration, String> {
    let deadline = duration(text, "15s", Duration::from_secs(1))?;
    if deadline > Duration::from_secs(30) {
        return Err("it must be at most 30s".to_owned());
    }
    Ok(deadline)
}

/// A duration as Kubernetes writes it.
fn duration(text: &str, example: &str, least: Duration) -> Result<Duration, String> {
    let example = format!("a duration such as {example} is needed");
    let parsed: kube::core::Duration = text.parse().map_err(|error| format!("{error}; {example}"))?;
    if parsed.is_negative() || Duration::from(parsed) < least {
        return Err(format!("it must be at least {least:?}; {example}"));
    }
    Ok(parsed.into())
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Human,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("2160h", Some(2160 * 3600)),
            ("1m", Some(60)),
            ("90s", Some(90)),
            ("59s", None),
            ("-2h", None),
            ("soon", None),
        ] {
            assert_eq!(certificate_lifetime(text).ok().map(|life| life.as_secs()), expected, "{text}");
        }
        assert!(api_deadline("30s").is_ok() && api_deadline("31s").is_err());
    }
}
