//! Sends each finished run as one OpenTelemetry trace to a collector, where one is named.
//!
//! The spans are made from the run's status, so an operator that was started again sends the same ones. BuildKit's own
//! go below the platform's build span: its id is known before the build begins, and travels with the job.

pub mod id;
pub mod spans;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_crds::ImageBuildRun;
use kube::ResourceExt;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tonic::transport::ClientTlsConfig;
use tracing::{info, warn};

pub use self::id::traceparent;

/// How long a collector may take. A run that has ended waits for it before it is let go of.
const PATIENCE: Duration = Duration::from_secs(3);
/// Of how many runs it is remembered that their traces were sent.
const REMEMBERED: usize = 1024;

/// The way to the collector.
#[derive(Debug)]
pub struct Traces {
    endpoint: String,
    exporter: SpanExporter,
    /// Whether the last trace was lost, which has been logged.
    failing: AtomicBool,
    /// The UIDs of the last runs whose traces were sent: the copy of the runs may not show yet that one was let go of.
    sent: Mutex<VecDeque<String>>,
}

impl Traces {
    /// To the collector at this endpoint, over gRPC: <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc>. Headers, such
    /// as a token, come from the environment variable `OTEL_EXPORTER_OTLP_HEADERS`.
    ///
    /// # Errors
    /// Where the endpoint is no URL. Whether somebody listens there shows with the first trace.
    pub fn new(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE);
        let builder = if endpoint.starts_with("https://") {
            builder.with_tls_config(ClientTlsConfig::new().with_native_roots())
        } else {
            builder
        };
        let mut exporter = builder.build()?;
        let resource = Resource::builder_empty()
            .with_service_name("kiln-operator")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        exporter.set_resource(&resource);
        Ok(Self { endpoint: endpoint.to_owned(), exporter, failing: AtomicBool::new(false), sent: Mutex::default() })
    }

    /// Sends the trace of a run that has ended. A failure is logged, once until it works again: a trace is news, not state.
    pub async fn export(&self, run: &ImageBuildRun) {
        let spans = spans::spans(run);
        if spans.is_empty() || !self.is_first(run.uid().unwrap_or_default()) {
            return;
        }
        let result = match tokio::time::timeout(PATIENCE, self.exporter.export(spans)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {}s", PATIENCE.as_secs())),
        };
        let failing = result.is_err();
        match (self.failing.swap(failing, Ordering::Relaxed), result) {
            (false, Err(error)) => {
                let endpoint = &self.endpoint;
                warn!(endpoint, error, "sending a trace: traces are lost until the collector answers");
            }
            (true, Ok(())) => info!(endpoint = self.endpoint, "the collector takes traces again"),
            _ => {}
        }
    }

    fn is_first(&self, uid: String) -> bool {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.contains(&uid) {
            return false;
        }
        sent.truncate(REMEMBERED - 1);
        sent.push_front(uid);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_is_sent_once() {
        let traces = Traces::new("http://collector.invalid:4317").unwrap();
        assert!(traces.is_first("a".to_owned()));
        assert!(!traces.is_first("a".to_owned()));
        for number in 0..2 * REMEMBERED {
            assert!(traces.is_first(number.to_string()));
        }
        assert_eq!(traces.sent.lock().unwrap().len(), REMEMBERED);
    }

    #[tokio::test]
    async fn an_endpoint_is_a_url() {
        assert!(Traces::new("https://collector.invalid:4317").is_ok());
        assert!(Traces::new("no url").is_err());
    }
}
