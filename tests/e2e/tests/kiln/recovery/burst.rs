//! Hundreds of ImageBuilds are applied at once while both cores are busy with something else: the operator keeps its Lease and
//! its memory, all end, and a neighbour's build is made meanwhile. Each takes its image from a registry, so that what is
//! measured is the operator and the API server, and no builder. `make test-all` has thousands.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kiln_crds::ImageBuild;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::tenant::condition;
use kiln_e2e::{Build, Tenant};
use kube::Api;
use kube::runtime::watcher;
use serde_json::json;

use crate::recovery::host::is_local;
use crate::recovery::operator::Operator;

kiln_e2e::tests![alone two_hundred_at_once, alone ignored two_thousand_at_once];

/// How many requests are sent at once.
const AT_ONCE: usize = 32;
/// One for each core of the machine that CI has.
const BUSY: usize = 2;

async fn two_hundred_at_once() {
    burst("two-hundred", 200, Duration::from_mins(5)).await;
}

async fn two_thousand_at_once() {
    burst("two-thousand", 2_000, Duration::from_mins(30)).await;
}

async fn burst(name: &str, all: usize, limit: Duration) {
    if !is_local(name) {
        return;
    }
    Tenant::fresh(name, async |tenant| {
        let operator = Operator::of(tenant);
        let before = operator.leader().await;
        let lease = transitions(tenant).await;
        let busybox = format!("{}/docker.io/library/busybox", tenant.cluster.registry);
        let make = |number: usize| {
            Build::inline(tenant, &format!("app-{number}"), &[]).with(|spec| {
                spec.source = None;
                spec.platforms = serde_json::from_value(json!([{"name": "linux/amd64", "image": busybox}]))
                    .expect("it is a platform");
            })
        };
        let _busy = Busy::begin();
        let begun = Instant::now();
        futures::stream::iter(0..all)
            .map(async |number| drop(tenant.create_build(&make(number)).await))
            .buffer_unordered(AT_ONCE)
            .collect::<()>()
            .await;
        let applied = begun.elapsed();
        let mut neighbours = None;
        Tenant::fresh(&format!("{name}-neighbour"), async |neighbour| {
            let since = Instant::now();
            neighbour.build(&Build::inline(neighbour, "app", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
            neighbours = Some(since.elapsed());
        })
        .await;
        let is_ready = |build: &ImageBuild| condition(build, "Ready").is_some_and(|ready| ready.reason == "Succeeded");
        tenant
            .wait(tenant.builds(), watcher::Config::default(), "all of them are ready", limit, |builds| {
                Ok(builds.len() == all && builds.values().all(is_ready))
            })
            .await;
        let neighbours = neighbours.unwrap_or_default();
        eprintln!(
            "{all} applied in {applied:.1?}, all done after {:.1?}, a neighbour's in {neighbours:.1?}",
            begun.elapsed()
        );

        let after = operator.leader().await;
        assert_eq!(after.metadata.uid, before.metadata.uid, "the same replica leads");
        assert_eq!(transitions(tenant).await, lease, "the Lease was never another's, nor taken anew");
        let mut containers = after.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        assert!(containers.all(|container| container.restart_count == 0), "the operator was not restarted");
    })
    .await;
}

/// How often the Lease has changed hands, and since when it is held.
async fn transitions(tenant: &Tenant) -> String {
    let leases: Api<Lease> = Api::namespaced(tenant.cluster.client.clone(), &operator_namespace());
    let lease = leases.get("kiln-operator").await.expect("the Lease is there").spec.unwrap_or_default();
    format!("{:?} {:?}", lease.lease_transitions, lease.acquire_time)
}

/// Processes that take all the time that they get.
struct Busy(Vec<Child>);

impl Busy {
    fn begin() -> Self {
        let begin = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            command.spawn().expect("a shell can be started")
        };
        Self((0..BUSY).map(begin).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
