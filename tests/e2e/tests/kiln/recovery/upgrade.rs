//! An upgrade of the chart builds nothing: not what is built, and not what builds.

use std::path::Path;
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::cluster::operator_namespace;
use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::recovery::host;
use crate::recovery::operator::Operator;
use crate::recovery::stage::{PLATFORMS, platforms};

kiln_e2e::tests![alone an_upgrade_starts_no_build];

const RELEASE: &str = "kiln";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/kiln");
const FINISHED: usize = 50;

/// The installed chart's values; put back with the value.
struct Chart {
    values: Value,
}

impl Chart {
    fn installed() -> Self {
        let text = host::run("helm", &["-n", &operator_namespace(), "get", "values", RELEASE, "-o", "json"]);
        Self { values: serde_json::from_str(&text).expect("helm prints JSON") }
    }

    fn upgrade(&self, change: impl FnOnce(&mut Value)) -> bool {
        let mut values = self.values.clone();
        change(&mut values);
        let path = std::env::temp_dir().join(format!("kiln-e2e-values-{}.json", std::process::id()));
        std::fs::write(&path, values.to_string()).expect("the values can be written");
        let path = path.to_string_lossy().into_owned();
        let namespace = operator_namespace();
        let arguments = ["-n", &namespace, "upgrade", RELEASE, CHART, "--values", &path, "--wait", "--timeout", "120s"];
        assert!(Path::new(CHART).is_dir(), "{CHART} is the chart");
        let output = Command::new("helm").args(arguments).output().expect("helm can be started");
        let _ = std::fs::remove_file(&path);
        if !output.status.success() {
            eprintln!("helm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        output.status.success()
    }
}

impl Drop for Chart {
    fn drop(&mut self) {
        if !self.upgrade(|_| ()) {
            eprintln!("Kiln stays upgraded; make install puts it back");
        }
    }
}

async fn an_upgrade_starts_no_build() {
    Tenant::fresh("upgrade", async |tenant| {
        let chart = Chart::installed();
        let finished: Vec<_> = (0..FINISHED).map(|number| format!("finished-{number}")).collect();
        for name in &finished {
            let dockerfile = format!("FROM busybox\nLABEL name={name}\n");
            tenant.create_build(&Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64()).await;
        }
        futures::future::join_all(finished.iter().map(|name| tenant.built(name))).await;
        let dockerfile = "FROM busybox\nRUN sleep 15\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)]).platforms(&PLATFORMS);
        tenant.create_build(&build).await;
        let before = tenant
            .wait_run("app-1", "both platforms build", wait::BUILD, |run| {
                Ok(platforms(run).iter().filter(|platform| platform.phase == PlatformPhase::Building).count() == 2)
            })
            .await;
        let runs = run_names(tenant).await;
        assert_eq!(runs.len(), FINISHED + 1);
        let operator = Operator::of(tenant);
        let former = operator.leader().await.name_any();

        // Another operator pod, of another service account, with another idea of what builders are made from. From now on
        // nobody but Kiln writes statuses: who that is changes with the upgrade.
        let upgraded = tokio::task::block_in_place(|| {
            chart.upgrade(|values| {
                values["podAnnotations"] = json!({"kiln.build/e2e": "upgraded"});
                values["serviceAccount"] = json!({"name": "kiln-next"});
                values["policies"] = json!({"status": true});
                values["builderPool"]["spec"]["template"]["resources"]["requests"]["memory"] = json!("129Mi");
            })
        });
        assert!(upgraded, "the chart can be upgraded");
        let leader = operator.leader_but(&former).await;
        reconciled(tenant, &leader, FINISHED + 1).await;

        let after = tenant.run_of(&tenant.built("app").await).await;
        let jobs = |run| {
            platforms(run).iter().map(|platform| (platform.attempt, platform.builder.clone())).collect::<Vec<_>>()
        };
        assert_eq!(jobs(&after), jobs(&before), "the same jobs on the same builders: they worked, and so they stayed");
        assert_eq!(run_names(tenant).await, runs, "no other run, of this or of what was built");

        // What is asked for now gets a builder of the new kind.
        let asked = tenant.rebuild("app", "after the upgrade").await;
        let replaced = tenant.run_of(&asked).await;
        for (new, old) in platforms(&replaced).iter().zip(platforms(&after)) {
            assert_ne!(
                new.builder.as_ref().map(|builder| &builder.uid),
                old.builder.as_ref().map(|builder| &builder.uid),
                "the builder for {} was idle, and is replaced",
                new.name
            );
        }
        assert_eq!(run_names(tenant).await.len(), FINISHED + 2);
    })
    .await;
}

async fn run_names(tenant: &Tenant) -> Vec<String> {
    let runs = tenant.runs().list(&ListParams::default()).await.expect("runs can be listed");
    runs.items.iter().map(kube::ResourceExt::name_any).collect()
}

/// Waits until this operator has reconciled so many ImageBuilds, told by its metrics.
async fn reconciled(tenant: &Tenant, operator: &Pod, builds: usize) {
    let path = format!("/api/v1/namespaces/{}/pods/{}:8080/proxy/metrics", operator_namespace(), operator.name_any());
    let mut text = String::new();
    for _ in 0..120 {
        let request = http::Request::get(&path).body(Vec::new()).expect("a path is enough");
        text = tenant.cluster.client.request_text(request).await.unwrap_or_else(|error| error.to_string());
        let count = text.lines().find_map(|line| {
            line.strip_prefix("kiln_reconcile_seconds_count{controller=\"imagebuild\"} ")?.parse::<usize>().ok()
        });
        if count.is_some_and(|count| count >= builds) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
    panic!("the operator has reconciled {builds} ImageBuilds:\n{text}");
}
