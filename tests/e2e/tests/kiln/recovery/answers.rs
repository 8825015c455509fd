//! Answers of the API server get lost: of each kind of request that the operator makes, the first one. Its connection stays, and
//! nothing comes. A build goes on all the same. `make test-all` alone has an API server that is away for ten minutes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Method;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::{Build, Tenant, wait};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

use crate::recovery::host::{self, is_local};
use crate::recovery::operator::{Operator, address};
use crate::recovery::proxy::{Held, Seen, When};
use crate::recovery::stage::Stage;

kiln_e2e::tests![alone one_lost_answer_of_each_kind_stops_no_build, alone ignored the_api_server_is_away_for_ten_minutes];

/// More than there are kinds of requests.
const MOST: usize = 60;

async fn one_lost_answer_of_each_kind_stops_no_build() {
    if !is_local("one_lost_answer_of_each_kind_stops_no_build") {
        return;
    }
    Tenant::fresh("lost-answers", async |tenant| {
        let stage = Stage::new(tenant).await;
        let api = host::before_api_server(&tenant.cluster).await;
        let lost: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let lose = || {
            let lost = lost.clone();
            api.hold("the first of its kind", When::After, move |seen| lost.lock().unwrap().insert(kind(seen)))
        };
        let held: Vec<Held> = (0..MOST).map(|_| lose()).collect();
        let mut operator = Operator::of(tenant);
        operator.start_with_deadline("2s", api.address).await;
        // Its builders and their volumes go soon.
        let pool = tenant
            .pool("short", |spec| {
                spec.idle_timeout = Some(Duration::from_secs(1).into());
                spec.cache.get_or_insert_default().retention = Some(Duration::from_secs(1).into());
            })
            .await;
        let (build, _repository) = stage.build("app", "FROM busybox\nRUN true\n");
        tenant.create_build(&build.pool(&pool)).await;
        tenant.built("app").await;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(tenant.cluster.client.clone(), &builders_namespace());
        let select = watcher::Config::default().labels(&format!("kiln.build/namespace={}", tenant.namespace));
        tenant.wait(claims, select, "its volumes are gone", wait::BUILD, |left| Ok(left.is_empty())).await;
        drop(held);

        let lost = lost.lock().unwrap().clone();
        eprintln!("answers that were lost: {lost:#?}");
        for kind in [
            "GET leases/NAME",
            "PUT leases/NAME",
            "GET imagebuilds",
            "WATCH imagebuilds",
            "WATCH imagebuildruns",
            "WATCH builderpools",
            "WATCH pods",
            "WATCH persistentvolumeclaims",
            "WATCH nodes",
            "WATCH namespaces",
            "GET secrets/NAME",
            "GET configmaps/NAME",
            "POST imagebuildruns",
            "PATCH imagebuildruns/NAME",
            "PATCH imagebuildruns/NAME/status",
            "PATCH imagebuilds/NAME/status",
            "PATCH builderpools/NAME/status",
            "POST pods",
            "POST events",
            "DELETE secrets/NAME",
            "DELETE configmaps/NAME",
            "DELETE pods/NAME",
            "DELETE persistentvolumeclaims/NAME",
        ] {
            assert!(lost.contains(kind), "no {kind} was made: {lost:#?}");
        }
        for seen in api.answered().iter().filter(|seen| seen.method == Method::DELETE) {
            let preconditions = &seen.json()["preconditions"];
            assert!(preconditions["uid"].is_string(), "another of the name might go: {} {}", seen.path, seen.json());
            let is_volume = seen.target().contains("/persistentvolumeclaims/");
            assert_eq!(preconditions["resourceVersion"].is_string(), is_volume, "{} {}", seen.path, seen.json());
        }
        not_restarted(&operator).await;
    })
    .await;
}

/// Long enough for whatever grows with each attempt. No packet gets through, and no connection ends.
async fn the_api_server_is_away_for_ten_minutes() {
    if !is_local("the_api_server_is_away_for_ten_minutes") {
        return;
    }
    Tenant::fresh("away", async |tenant| {
        let api = host::before_api_server(&tenant.cluster).await;
        let mut operator = Operator::of(tenant);
        operator.start(1, Some(api.address)).await;
        let app = |name: &str| Build::inline(tenant, name, &[("Dockerfile", "FROM busybox\n")]).amd64();
        tenant.build(&app("before")).await;
        api.cut(address(&operator.leader().await));
        tokio::time::sleep(Duration::from_mins(5)).await;
        tenant.create_build(&app("during")).await;
        tokio::time::sleep(Duration::from_mins(5)).await;
        let back = Instant::now();
        api.mend();
        tenant.built("during").await;
        let took = back.elapsed();
        eprintln!("built {took:.1?} after the API server was back");
        assert!(took < Duration::from_secs(15), "it goes on soon: {took:?}");
        not_restarted(&operator).await;
    })
    .await;
}

async fn not_restarted(operator: &Operator<'_>) {
    let leader = operator.leader().await;
    let mut containers = leader.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    assert!(containers.all(|container| container.restart_count == 0), "{} was not restarted", leader.name_any());
}

/// The verb, and the path without what names an object.
fn kind(seen: &Seen) -> String {
    let is_watch = seen.path.contains("watch=true");
    let mut parts: Vec<&str> = seen.target().trim_matches('/').split('/').collect();
    // "api/v1" or "apis/GROUP/VERSION".
    parts.drain(..if parts[0] == "api" { 2 } else { 3 }.min(parts.len()));
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    if let Some(name) = parts.get_mut(1) {
        *name = "NAME";
    }
    format!("{} {}", if is_watch { "WATCH" } else { seen.method.as_str() }, parts.join("/"))
}
