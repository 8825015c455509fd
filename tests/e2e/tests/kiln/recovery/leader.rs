//! Two replicas: one takes over from the other in the middle of a build, and never do both lead.

use std::time::{Duration, Instant};

use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::{Repository, Tenant, wait};
use kube::ResourceExt as _;
use kube::api::DeleteParams;

use crate::recovery::host::{self, is_local};
use crate::recovery::operator::{Operator, address};
use crate::recovery::stage::{Stage, platforms};

kiln_e2e::tests![alone a_leader_that_is_told_to_stop_hands_over, alone a_leader_that_is_cut_off_stops_before_another_leads];

/// How long a silent leader's Lease is respected.
const LEASE: Duration = Duration::from_secs(15);

/// Creates a build whose step takes so long, and waits until both platforms are at it.
async fn building(stage: &Stage<'_>, seconds: u64) -> Repository {
    let (build, repository) = stage.build("app", &format!("FROM busybox\nRUN sleep {seconds}\n"));
    stage.tenant.create_build(&build).await;
    stage
        .tenant
        .wait_run("app-1", "both platforms build", wait::BUILD, |run| {
            Ok(platforms(run).iter().filter(|platform| platform.phase == PlatformPhase::Building).count() == 2)
        })
        .await;
    repository
}

async fn a_leader_that_is_told_to_stop_hands_over() {
    if !is_local("a_leader_that_is_told_to_stop_hands_over") {
        return;
    }
    Tenant::fresh("hand-over", async |tenant| {
        let stage = Stage::new(tenant).await;
        let mut operator = Operator::of(tenant);
        operator.start(2, None).await;
        let _repository = building(&stage, 20).await;
        let former = operator.leader().await.name_any();
        let begun = Instant::now();
        operator.api().delete(&former, &DeleteParams::default()).await.expect("the leader's pod can be deleted");
        operator.leader_but(&former).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "the Lease is given back, not waited for: {took:?}");
        stage.made_once("app").await;
    })
    .await;
}

/// A leader whose API server does not answer any more cannot know whether it still leads, so it ends in time: its process
/// begins anew as a candidate, which is no restart that a kubelet would delay.
async fn a_leader_that_is_cut_off_stops_before_another_leads() {
    if !is_local("a_leader_that_is_cut_off_stops_before_another_leads") {
        return;
    }
    Tenant::fresh("cut-off", async |tenant| {
        let stage = Stage::new(tenant).await;
        let api = host::before_api_server(&tenant.cluster).await;
        let mut operator = Operator::of(tenant);
        operator.start(2, Some(api.address)).await;
        let _repository = building(&stage, 18).await;
        let former = operator.leader().await;
        let threads = Operator::threads(&former);
        assert!(threads.len() > 1, "the leader works on threads of its own: {threads:?}");

        let begun = Instant::now();
        api.cut(address(&former));
        let ended = async {
            while !Operator::threads(&former).is_disjoint(&threads) {
                assert!(begun.elapsed() < wait::SOON, "a leader that is cut off ends");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            begun.elapsed()
        };
        let name = former.name_any();
        let led = async {
            operator.leader_but(&name).await;
            begun.elapsed()
        };
        let (ended, led) = tokio::join!(ended, led);
        assert!(ended < led, "it ended after {ended:?}, and another led after {led:?}");
        assert!(led < LEASE + Duration::from_secs(10), "another leads soon after the Lease has expired: {led:?}");
        stage.made_once("app").await;
        api.mend();
        let former = operator.api().get(&name).await.expect("the former leader is there");
        let mut containers = former.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        assert!(containers.all(|container| container.restart_count == 0), "it was not restarted");
    })
    .await;
}
