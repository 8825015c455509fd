//! What is counted and measured, in Prometheus conventions: <https://prometheus.io/docs/practices/naming/>.
//!
//! Labels name pools, architectures, reasons and the like, never an object of a tenant: their number is bounded.
//! Gauges are read from the copies of the cluster's objects at each scrape, so they are right after a restart, and gone
//! with what they tell of; a replica that does not lead has none.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kiln_crds::image_build_run::ImageBuildRunStatus;
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub mod gauges;

use self::gauges::gauges;
use crate::api_server::Reach;
use crate::image_build_run::times;

/// How a run ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Ended {
    outcome: &'static str,
    reason: String,
}

/// The reasons that agents have given: theirs to choose, if they were taken over, so not all of them become labels.
#[derive(Clone, Default)]
struct Reasons(Arc<Mutex<BTreeSet<String>>>);

impl Reasons {
    /// More than all agents have together.
    const MOST: usize = 100;
    /// The longest, in bytes.
    const LONGEST: usize = 40;

    /// The reason, or what stands for all that are none.
    fn label(&self, reason: &str) -> String {
        let is_reason = (1..=Self::LONGEST).contains(&reason.len())
            && reason.starts_with(|first: char| first.is_ascii_uppercase())
            && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(reason) || is_reason && known.len() < Self::MOST && known.insert(reason.to_owned()) {
            reason.to_owned()
        } else {
            "Other".to_owned()
        }
    }
}

/// How a run ended, without the reason.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Outcome {
    outcome: &'static str,
}

/// A part of a run.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Phase {
    phase: &'static str,
}

/// Which controller.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Controller {
    controller: &'static str,
}

/// The operator's counts. A clone counts into the same.
#[derive(Clone)]
pub struct Metrics {
    ended: Family<Ended, Counter>,
    reasons: Reasons,
    durations: Family<Outcome, Histogram>,
    phases: Family<Phase, Histogram>,
    reconciles: Family<Controller, Histogram>,
    errors: Family<Controller, Counter>,
    leader: Gauge,
    objects: Objects,
}

impl Metrics {
    /// Counts that are read from `registry`. `reach`: whether the API server answers.
    #[must_use]
    pub fn new(registry: &mut Registry, reach: Reach) -> Self {
        // 50 ms to a little under two hours.
        let of_builds = || Histogram::new(exponential_buckets(0.05, 2.0, 18));
        let metrics = Self {
            ended: Family::default(),
            reasons: Reasons::default(),
            durations: Family::new_with_constructor(of_builds),
            phases: Family::new_with_constructor(of_builds),
            reconciles: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8))),
            errors: Family::default(),
            leader: Gauge::default(),
            objects: Objects::default(),
        };
        // The library adds _total to counters and _info to what is one.
        registry.register("kiln_runs_ended", "ImageBuildRuns that ended, by outcome and reason", metrics.ended.clone());
        registry.register(
            "kiln_run_duration_seconds",
            "Time from the first sight of an ImageBuildRun to its end",
            metrics.durations.clone(),
        );
        registry.register(
            "kiln_run_phase_seconds",
            "Time that a platform of an ImageBuildRun spent in a phase: queue, start, fetch, build, push; publish is the run's own",
            metrics.phases.clone(),
        );
        registry.register("kiln_reconcile_seconds", "Time of one reconcile", metrics.reconciles.clone());
        registry.register("kiln_reconcile_errors", "Reconciles that failed", metrics.errors.clone());
        registry.register("kiln_leader", "1 while this replica leads", metrics.leader.clone());
        let version = env!("CARGO_PKG_VERSION");
        registry.register("kiln_build", "The operator's version", Info::new([("version", version)]));
        registry.register_collector(Box::new(metrics.objects.clone()));
        registry.register_collector(Box::new(reach));
        metrics
    }

    /// A run ended, as its status tells it.
    pub fn ended(&self, outcome: &'static str, reason: &str, status: &ImageBuildRunStatus) {
        self.ended.get_or_create(&Ended { outcome, reason: self.reasons.label(reason) }).inc();
        let seconds = |time: &Option<MicroTime>| time.as_ref().map(|time| time.0);
        if let (Some(begin), Some(end)) = (seconds(&status.queued_at), seconds(&status.finished_at)) {
            let taken = end.duration_since(begin).as_secs_f64().max(0.0);
            self.durations.get_or_create(&Outcome { outcome }).observe(taken);
        }
        for span in times::of_run(status) {
            self.phases.get_or_create(&Phase { phase: span.phase.as_str() }).observe(span.seconds());
        }
    }

    /// A reconcile took so long, and failed or not.
    pub fn reconciled(&self, controller: &'static str, seconds: f64, failed: bool) {
        self.reconciles.get_or_create(&Controller { controller }).observe(seconds);
        // Made at its first reconcile, so that a rate over it is 0 and not absent.
        let errors = self.errors.get_or_create(&Controller { controller });
        if failed {
            errors.inc();
        }
    }

    /// Whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// From now on gauges are read from these copies.
    pub fn observe(&self, pools: Store<BuilderPool>, image_builds: Store<ImageBuild>, runs: Store<ImageBuildRun>) {
        // Set once: a replica leads once.
        let _ = self.objects.copies.set(Copies { pools, image_builds, runs });
    }
}

struct Copies {
    pools: Store<BuilderPool>,
    image_builds: Store<ImageBuild>,
    runs: Store<ImageBuildRun>,
}

/// Reads the gauges at each scrape.
#[derive(Clone, Default)]
struct Objects {
    copies: Arc<OnceLock<Copies>>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(copies) = self.copies.get() else { return Ok(()) };
        let (pools, image_builds, runs) = (copies.pools.state(), copies.image_builds.state(), copies.runs.state());
        for family in gauges(&pools, &image_builds, &runs) {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, MetricType::Gauge)?;
            for (labels, value) in &family.values {
                metric.encode_family(labels)?.encode_gauge(value)?;
            }
        }
        Ok(())
    }
}

impl Collector for Reach {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Time since which the API server has answered no request; 0 while it does";
        let metric = encoder.encode_descriptor("kiln_api_server_lost_seconds", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.lost_for().as_secs_f64()).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use kiln_crds::image_build_run::PlatformStatus;

    #[test]
    fn free_texts_are_no_labels() {
        let reasons = Reasons::default();
        for (reason, label) in [("StepFailed", "StepFailed"), ("a text", "Other"), ("", "Other"), ("lower", "Other")] {
            assert_eq!(reasons.label(reason), label);
        }
        assert_eq!(reasons.label(&"A".repeat(41)), "Other");
        let many: BTreeSet<_> = (0..1000).map(|number| reasons.label(&format!("Reason{number}"))).collect();
        assert_eq!(many.len(), Reasons::MOST, "with StepFailed, and Other for the rest");
        assert_eq!(reasons.label("StepFailed"), "StepFailed");
    }

    #[test]
    fn names_and_labels_are_what_dashboards_use() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry, Reach::default());
        let at = |second| Timestamp::from_second(second).ok().map(MicroTime);
        let status = ImageBuildRunStatus {
            queued_at: at(0),
            started_at: at(1),
            publishing_at: at(10),
            finished_at: at(12),
            platforms: vec![PlatformStatus {
                started_at: at(1),
                fetching_at: at(2),
                building_at: at(4),
                pushing_at: at(8),
                finished_at: at(9),
                ..PlatformStatus::default()
            }],
            ..ImageBuildRunStatus::default()
        };
        metrics.ended("Succeeded", "Succeeded", &status);
        metrics.reconciled("builderpool", 0.002, false);
        metrics.leads(true);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        // Of a histogram its sum and count: the buckets are many.
        let mut shown: Vec<&str> =
            text.lines().filter(|line| !line.contains("_bucket{") && !line.starts_with('#')).collect();
        shown.sort_unstable();
        insta::assert_snapshot!(shown.join("\n"));
    }
}
