//! Thousands of ImageBuilds at rest: what the operator holds and does. Minutes long, so only where it is asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::{Build, Tenant};
use kube::api::{ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::Value;

use crate::figures::{Figure, Target, Unit};
use crate::measure::operator::{restart, usage};

const GROUP: &str = "many ImageBuilds at rest";
/// How many requests are under way at once.
const PARALLEL: usize = 16;
/// How long writes are counted.
const WATCHED: Duration = Duration::from_secs(10);

/// Creates so many, and restarts the operator `runs` times.
pub async fn measure(builds: u32, runs: usize) -> Vec<Figure> {
    let (mut resident, mut rates, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    Tenant::fresh("bench-rest", async |tenant| {
        create(tenant, builds).await;
        for _ in 0..runs {
            let log = AuditLog::at_end();
            let pod = restart(&tenant.cluster.client).await;
            let count = looked_at_all(&tenant.cluster.client, &pod, builds).await;
            tokio::time::sleep(WATCHED).await;
            if let Some(usage) = usage(&pod) {
                resident.push(usage.resident);
                rates.push(count / usage.processor.max(0.01));
            }
            writes.extend(log.map(|mut log| log.writes_of_kiln()));
        }
    })
    .await;
    let mut figures = Vec::new();
    if !resident.is_empty() {
        figures.push(
            Figure::new(GROUP, "no-op reconciles a second of processor time", Unit::PerSecond, rates)
                .target(Target::AtLeast(200.0))
                .note(format!("{builds} ImageBuilds; all that the operator did since its start counts as their time")),
        );
        figures.push(Figure::new(GROUP, "memory (resident)", Unit::MiB, resident).target(Target::AtMost(100.0)));
    }
    if !writes.is_empty() {
        figures.push(
            Figure::new(GROUP, "writes after a restart, but for the Lease", Unit::Count, writes)
                .target(Target::AtMost(0.0)),
        );
    }
    figures
}

/// Creates suspended ImageBuilds and waits until each has its status.
async fn create(tenant: &Tenant, builds: u32) {
    let begin = Instant::now();
    futures::stream::iter(0..builds)
        .for_each_concurrent(PARALLEL, async |number| {
            let name = format!("app-{number}");
            let build =
                Build::inline(tenant, &name, &[("Dockerfile", "FROM busybox\n")]).with(|spec| spec.suspend = true);
            let created = tenant.builds().create(&PostParams::default(), &build.object).await;
            created.unwrap_or_else(|error| panic!("ImageBuild {name}: {error}"));
        })
        .await;
    println!("  {builds} ImageBuilds created in {:.0} s", begin.elapsed().as_secs_f64());
    loop {
        let list = tenant.builds().list(&ListParams::default()).await.expect("ImageBuilds can be listed");
        if list.iter().all(|build| build.status.is_some()) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_mins(10), "not every ImageBuild has a status");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("  each has its status after {:.0} s", begin.elapsed().as_secs_f64());
}

/// Waits until a new operator has looked at all ImageBuilds; how many looks that were.
async fn looked_at_all(client: &Client, pod: &Pod, builds: u32) -> f64 {
    let begin = Instant::now();
    loop {
        let count = reconciles(client, &pod.name_any()).await;
        if count >= f64::from(builds) {
            return count;
        }
        assert!(begin.elapsed() < Duration::from_mins(3), "not every ImageBuild is reconciled: {count}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many times an ImageBuild was reconciled, from the operator's metrics.
async fn reconciles(client: &Client, pod: &str) -> f64 {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:8080/proxy/metrics", operator_namespace());
    let request = http::Request::get(path).body(Vec::new()).expect("a path is a URI");
    // It may not answer yet.
    let text = client.request_text(request).await.unwrap_or_default();
    let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
    let counts: BTreeMap<&str, f64> = samples.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
    let own = counts.iter().filter(|(name, _)| {
        name.contains("reconcile") && name.contains("_count{") && name.contains("controller=\"imagebuild\"")
    });
    own.map(|(_, value)| *value).sum()
}

/// The API server's audit log from some point on.
struct AuditLog(BufReader<File>);

impl AuditLog {
    /// From now on. `None`: it is not to be read here.
    fn at_end() -> Option<Self> {
        let mut file = File::open(std::env::var("KILN_AUDIT_LOG").ok()?).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(BufReader::new(file)))
    }

    /// How often Kiln wrote anything but its Lease.
    fn writes_of_kiln(&mut self) -> f64 {
        let lines = self.0.by_ref().lines().map_while(Result::ok);
        let entries = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let writes = entries.filter(|entry| {
            let of_kiln = entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kiln"));
            let writes = entry["verb"].as_str().is_some_and(|verb| !matches!(verb, "get" | "list" | "watch"));
            of_kiln && writes && entry["objectRef"]["resource"] != "leases"
        });
        writes.count() as f64
    }
}
