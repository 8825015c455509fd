//! Answers of the API server get lost: of each kind of request that the operator makes, the first one. Its connection stays, and
//! nothing comes. A build goes on all the same.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use kiln_e2e::Tenant;

use crate::recovery::host::{self, is_local};
use crate::recovery::operator::Operator;
use crate::recovery::proxy::{Held, Seen, When};
use crate::recovery::stage::Stage;

kiln_e2e::tests![alone one_lost_answer_of_each_kind_stops_no_build];

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
        let (build, _repository) = stage.build("app", "FROM busybox\nRUN true\n");
        tenant.create_build(&build).await;
        tenant.built("app").await;
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
        ] {
            assert!(lost.contains(kind), "no {kind} was made: {lost:#?}");
        }
        let leader = operator.leader().await;
        let mut containers = leader.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        assert!(containers.all(|container| container.restart_count == 0), "the operator was not restarted");
    })
    .await;
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
