//! Many ImageBuilds at once: ten that build on warm builders, and a hundred of which each must get its run.

use futures::StreamExt as _;
use jiff::Timestamp;
use kiln_crds::{ImageBuild, ImageBuildRun};
use kiln_e2e::{Build, Tenant};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::builds::Builds;
use crate::figures::{Figure, Target, Unit};
use crate::observer::Observer;
use crate::phases::between;

/// How many requests are under way at once.
const PARALLEL: usize = 32;

/// Changes ten ImageBuilds of one namespace at once, `runs` times.
pub async fn ten(runs: usize) -> Vec<Figure> {
    const GROUP: &str = "ten ImageBuilds at once, warm builders";
    let (mut first, mut last) = (Vec::new(), Vec::new());
    Tenant::fresh("bench-ten", async |tenant| {
        let names: Vec<String> = (0..10).map(|number| format!("app-{number}")).collect();
        for name in &names {
            let files =
                [("Dockerfile", "FROM busybox\nCOPY text /text\nRUN sha256sum /text > /sum\n"), ("text", "first")];
            tenant.create_build(&Build::inline(tenant, name, &files).amd64()).await;
        }
        for name in &names {
            tenant.built(name).await;
        }
        let mut builds = Builds::of(tenant).await;
        for round in 0..=runs {
            let change =
                |name: &str| json!({"spec": {"source": {"inline": {"files": {"text": format!("{name} {round}")}}}}});
            let seconds = builds.change_all(&names, change).await;
            first.push(seconds.iter().copied().fold(f64::INFINITY, f64::min));
            last.push(seconds.iter().copied().fold(0.0, f64::max));
        }
    })
    .await;
    vec![
        Figure::new(GROUP, "apply → the first digest", Unit::Seconds, first[1..].to_vec()),
        Figure::new(GROUP, "apply → the last digest", Unit::Seconds, last[1..].to_vec()),
    ]
}

/// Creates a hundred ImageBuilds in two namespaces at once, `runs` times.
pub async fn hundred(runs: usize) -> Vec<Figure> {
    const GROUP: &str = "100 ImageBuilds created at once, in two namespaces";
    let (mut accepted, mut runs_there, mut unfair) = (Vec::new(), Vec::new(), Vec::new());
    Tenant::fresh("bench-many-a", async |a| {
        Tenant::fresh("bench-many-b", async |b| {
            for _ in 0..runs {
                let (created, dispatched, apart) = hundred_once(a, b).await;
                accepted.push(created);
                runs_there.push(dispatched);
                unfair.push(apart);
            }
        })
        .await;
    })
    .await;
    vec![
        Figure::new(GROUP, "until the API server has taken them", Unit::Seconds, accepted),
        Figure::new(GROUP, "until each has its run", Unit::Seconds, runs_there).target(Target::AtMost(1.0)),
        Figure::new(GROUP, "between the namespaces' medians", Unit::Seconds, unfair),
    ]
}

async fn hundred_once(a: &Tenant, b: &Tenant) -> (f64, f64, f64) {
    let client = a.cluster.client.clone();
    let all: Api<ImageBuildRun> = Api::all(client);
    let mut observer = Observer::new(all, watcher::Config::default()).await;
    let names: Vec<String> = (0..50).map(|number| format!("app-{number}")).collect();
    let builds: Vec<(&Tenant, ImageBuild)> = names
        .iter()
        .flat_map(|name| [a, b].map(|tenant| (tenant, name)))
        .map(|(tenant, name)| (tenant, Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\n")]).amd64().object))
        .collect();
    let begin = Timestamp::now();
    futures::stream::iter(&builds)
        .for_each_concurrent(PARALLEL, async |(tenant, build)| {
            let created = tenant.builds().create(&PostParams::default(), build).await;
            created.unwrap_or_else(|error| panic!("ImageBuild {}: {error}", build.name_any()));
        })
        .await;
    let accepted = between(begin, Timestamp::now());
    let of = |tenant: &Tenant| tenant.namespace.clone();
    let spaces = [of(a), of(b)];
    let objects = observer
        .wait("100 runs", |objects| {
            objects.keys().filter(|(namespace, _)| spaces.contains(namespace)).count() >= builds.len()
        })
        .await;
    let times = |namespace: &String| -> Vec<f64> {
        let own = objects.iter().filter(|((of, _), _)| of == namespace);
        own.map(|(_, seen)| between(begin, seen.first)).collect()
    };
    let [times_a, times_b] = [times(&spaces[0]), times(&spaces[1])];
    let last = times_a.iter().chain(&times_b).copied().fold(0.0, f64::max);
    let median = |samples| Figure::new("", "", Unit::Seconds, samples).median();
    let apart = (median(times_a) - median(times_b)).abs();
    // What is left is not of interest: it is cancelled, and the next round begins in peace.
    for tenant in [a, b] {
        let deleted = tenant.builds().delete_collection(&DeleteParams::default(), &ListParams::default()).await;
        deleted.expect("ImageBuilds can be deleted");
    }
    observer.wait("their runs are gone", |objects| !objects.keys().any(|(of, _)| spaces.contains(of))).await;
    (accepted, last, apart)
}
