//! What the copies of the cluster's objects add up to; pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_crds::image_build_run::RunPhase;
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun};
use kube::ResourceExt;

use crate::builder::pod::bytes;
use crate::condition::find;

/// The names and values of one series' labels.
pub type Labels = Vec<(&'static str, String)>;

/// A gauge and its series.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// As in Prometheus.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// Its series, in the order of their labels.
    pub values: BTreeMap<Labels, f64>,
}

impl Family {
    fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, values: BTreeMap::new() }
    }

    fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        *self.values.entry(labels).or_default() += value;
    }
}

/// All gauges: the pools' from their statuses, which say what their builders are and do.
#[must_use]
pub fn gauges(
    pools: &[Arc<BuilderPool>],
    image_builds: &[Arc<ImageBuild>],
    runs: &[Arc<ImageBuildRun>],
) -> Vec<Family> {
    let mut builders = Family::new("kiln_builders", "Builders, by pool, architecture and state: pending, idle or busy");
    let mut jobs = Family::new("kiln_jobs", "Builds that a pool's builders run");
    let mut cache =
        Family::new("kiln_cache_bytes", "What the caches of builders held when their last builds had ended");
    let mut limit = Family::new("kiln_cache_limit_bytes", "What the caches of builders may hold");
    for pool in pools {
        let name = pool.name_any();
        let name = name.as_str();
        // A pool at rest is 0, and not absent.
        jobs.add(&[("pool", name)], 0.0);
        for builder in pool.status.iter().flat_map(|status| &status.builders) {
            let state = match (&builder.node, builder.jobs) {
                (None, _) => "pending",
                (_, 0) => "idle",
                _ => "busy",
            };
            let architecture = builder.architecture.as_str();
            builders.add(&[("pool", name), ("architecture", architecture), ("state", state)], 1.0);
            jobs.add(&[("pool", name)], f64::from(builder.jobs));
            let of_builder = [("pool", name), ("architecture", architecture)];
            for (family, quantity) in [(&mut cache, &builder.cache_used), (&mut limit, &builder.cache_limit)] {
                if let Some(quantity) = quantity.as_ref().and_then(bytes) {
                    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float, and 2^53 bytes are 8 PiB")]
                    family.add(&of_builder, quantity as f64);
                }
            }
        }
    }
    let mut active = Family::new("kiln_runs", "ImageBuildRuns that have not ended, by phase");
    for phase in ["Pending", "Building", "Publishing"] {
        active.add(&[("phase", phase)], 0.0);
    }
    for run in runs {
        let phase = run.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let phase = match phase {
            RunPhase::Pending => "Pending",
            RunPhase::Building => "Building",
            RunPhase::Publishing => "Publishing",
            RunPhase::Succeeded | RunPhase::Failed | RunPhase::Cancelled => continue,
        };
        active.add(&[("phase", phase)], 1.0);
    }
    let mut ready = Family::new("kiln_imagebuilds", "ImageBuilds, by the status of their condition Ready");
    for status in ["False", "True", "Unknown"] {
        ready.add(&[("ready", status)], 0.0);
    }
    for build in image_builds {
        let conditions = build.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let status = match find(conditions, "Ready").map(|ready| ready.status.as_str()) {
            Some("True") => "True",
            Some("False") => "False",
            _ => "Unknown",
        };
        ready.add(&[("ready", status)], 1.0);
    }
    vec![builders, jobs, cache, limit, active, ready]
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use kiln_crds::BuilderPoolSpec;
    use kiln_crds::builder_pool::{BuilderPoolStatus, BuilderStatus};

    fn builder(architecture: &str, node: Option<&str>, jobs: u32, used: Option<&str>) -> BuilderStatus {
        BuilderStatus {
            architecture: architecture.into(),
            node: node.map(str::to_owned),
            jobs,
            cache_used: used.map(|used| Quantity(used.into())),
            cache_limit: used.map(|_| Quantity("1Gi".into())),
            ..BuilderStatus::default()
        }
    }

    #[test]
    fn builders_add_up_by_pool_and_architecture() {
        let mut busy = BuilderPool::new("busy", BuilderPoolSpec::default());
        busy.status = Some(BuilderPoolStatus {
            builders: vec![
                builder("amd64", Some("a"), 2, Some("3Mi")),
                builder("amd64", Some("b"), 0, Some("5Mi")),
                builder("arm64", None, 0, None),
            ],
            ..BuilderPoolStatus::default()
        });
        let empty = BuilderPool::new("empty", BuilderPoolSpec::default());
        let shown: Vec<String> = gauges(&[Arc::new(busy), Arc::new(empty)], &[], &[])
            .iter()
            .flat_map(|family| {
                family.values.iter().map(|(labels, value)| {
                    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    format!("{}{{{}}} {value}", family.name, labels.join(","))
                })
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"));
    }
}
