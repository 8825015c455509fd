//! A cold builder: no pod, its images on the node, its cache volume there.

use kiln_crds::image_build_run::PlatformStatus;
use kiln_e2e::{Build, Tenant};

use crate::builds::{Builds, Timed};
use crate::figures::{Figure, Target, Unit};
use crate::measure::warm::repository;
use crate::phases::{between, time};
use crate::project::files;

const GROUP: &str = "cold builder, images on the node";

/// Builds without a builder pod, `runs` times.
pub async fn measure(runs: usize) -> Vec<Figure> {
    let mut timed = Vec::new();
    Tenant::fresh("bench-cold", async |tenant| {
        let repository = repository(tenant, &files());
        let mut builds = Builds::of(tenant).await;
        builds.create(&Build::git(tenant, "app", &repository).amd64()).await;
        for round in 0..runs {
            tenant.delete_builders().await;
            timed.push(builds.rebuild("app", &format!("cold-{round}")).await);
        }
    })
    .await;
    let job = until(&timed, |platform| time(platform.fetching_at.as_ref().or(platform.finished_at.as_ref())));
    let build = until(&timed, |platform| time(platform.building_at.as_ref().or(platform.finished_at.as_ref())));
    let whole = timed.into_iter().map(|timed| (timed.seconds, timed.phases)).collect();
    vec![
        Figure::new(GROUP, "apply → job at its builder", Unit::Seconds, job),
        Figure::new(GROUP, "apply → build started", Unit::Seconds, build).target(Target::AtMost(1.2)),
        Figure::timed(GROUP, "apply → digest", whole),
    ]
}

fn until(timed: &[Timed], time: impl Fn(&PlatformStatus) -> Option<jiff::Timestamp>) -> Vec<f64> {
    let seconds = |timed: &Timed| {
        let platform = timed.run.status.as_ref()?.platforms.first()?;
        Some(between(timed.begin, time(platform)?))
    };
    timed.iter().filter_map(seconds).collect()
}
