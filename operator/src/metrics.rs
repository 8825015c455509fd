//! What is counted, in Prometheus conventions: <https://prometheus.io/docs/practices/naming/>.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a run ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Outcome {
    outcome: &'static str,
    reason: String,
}

/// Which controller.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Controller {
    controller: &'static str,
}

/// The operator's counts. A clone counts into the same.
#[derive(Clone)]
pub struct Metrics {
    runs: Family<Outcome, Counter>,
    reconciles: Family<Controller, Histogram>,
    errors: Family<Controller, Counter>,
    leader: Gauge,
}

impl Metrics {
    /// Counts that are read from `registry`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            runs: Family::default(),
            reconciles: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8))),
            errors: Family::default(),
            leader: Gauge::default(),
        };
        registry.register("kiln_runs_ended", "ImageBuildRuns that ended, by outcome and reason", metrics.runs.clone());
        registry.register("kiln_reconcile_seconds", "Time of one reconcile, in seconds", metrics.reconciles.clone());
        registry.register("kiln_reconcile_errors", "Reconciles that failed", metrics.errors.clone());
        registry.register("kiln_leader", "1 while this replica leads", metrics.leader.clone());
        metrics
    }

    /// A run ended.
    pub fn ended(&self, outcome: &'static str, reason: &str) {
        self.runs.get_or_create(&Outcome { outcome, reason: reason.to_owned() }).inc();
    }

    /// A reconcile took so long, and failed or not.
    pub fn reconciled(&self, controller: &'static str, seconds: f64, failed: bool) {
        self.reconciles.get_or_create(&Controller { controller }).observe(seconds);
        if failed {
            self.errors.get_or_create(&Controller { controller }).inc();
        }
    }

    /// Whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}
