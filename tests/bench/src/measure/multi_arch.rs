//! Two architectures at once, against the slower of them.

use kiln_e2e::{Build, Tenant};

use crate::builds::Builds;
use crate::figures::{Figure, Target, Unit};
use crate::measure::warm::repository;
use crate::phases::slowest_platform;
use crate::project::{CHANGED, files};

const GROUP: &str = "two architectures, one file changed";

/// Builds for both architectures, `runs` times.
pub async fn measure(runs: usize) -> Vec<Figure> {
    let mut timed = Vec::new();
    Tenant::fresh("bench-multi", async |tenant| {
        let repository = repository(tenant, &files());
        let mut builds = Builds::of(tenant).await;
        builds.create(&Build::git(tenant, "app", &repository).platforms(&["linux/amd64", "linux/arm64"])).await;
        for round in 0..=runs {
            repository.write(&[(CHANGED, &format!("round {round}\n"))]);
            timed.push(builds.rebuild("app", &format!("multi-{round}")).await);
        }
    })
    .await;
    timed.remove(0);
    let over = timed.iter().map(|timed| timed.seconds - slowest_platform(&timed.run)).collect();
    let slowest = timed.iter().map(|timed| slowest_platform(&timed.run)).collect();
    let whole = timed.into_iter().map(|timed| (timed.seconds, timed.phases)).collect();
    let mut figure = Figure::timed(GROUP, "apply → digest of the index", whole);
    if std::env::var_os("KILN_LOCAL_CLUSTER").is_some() {
        figure = figure.note("the arm64 node's RUN steps are emulated, and both nodes share this machine");
    }
    vec![
        figure,
        Figure::new(GROUP, "the slowest platform, on its builder", Unit::Seconds, slowest),
        Figure::new(GROUP, "over the slowest platform", Unit::Seconds, over).target(Target::AtMost(0.3)),
    ]
}
