//! A registry that is away for longer than a run is tried again: the ImageBuild becomes Ready by itself once it is back.

use kiln_crds::image_build_run::{PlatformPhase, RunPhase};
use kiln_e2e::tenant::condition;
use kiln_e2e::{Tenant, wait};
use kube::ResourceExt as _;

use crate::recovery::host::is_local;
use crate::recovery::stage::{Stage, platforms};

kiln_e2e::tests![a_registry_that_was_away_costs_a_run_and_no_hand];

async fn a_registry_that_was_away_costs_a_run_and_no_hand() {
    if !is_local("a_registry_that_was_away_costs_a_run_and_no_hand") {
        return;
    }
    Tenant::fresh("outage", async |tenant| {
        let stage = Stage::new(tenant).await;
        let (build, _source) = stage.build("app", "FROM busybox\nRUN sleep 3\n");
        tenant.create_build(&build.amd64().with(|spec| spec.retries = Some(0))).await;
        tenant
            .wait_run("app-1", "it builds", wait::BUILD, |run| {
                Ok(platforms(run).iter().any(|platform| platform.phase == PlatformPhase::Building))
            })
            .await;
        stage.registry.fail(true);
        let failed = tenant
            .wait_build("app", "its run has failed", wait::BUILD, |build| {
                Ok(build.status.as_ref().is_some_and(|status| status.failure.is_some()))
            })
            .await;
        let ready = condition(&failed, "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "RegistryUnavailable"), "{ready:?}");
        assert!(ready.message.contains("it is tried again at "), "{}", ready.message);
        let is = |kind: &str| condition(&failed, kind).is_some_and(|condition| condition.status == "True");
        assert!(is("Reconciling") && !is("Stalled"), "nobody has to do anything: {:#?}", failed.status);

        stage.registry.fail(false);
        let built = tenant.built("app").await;
        assert_eq!(built.metadata.generation, failed.metadata.generation, "nobody did");
        let second = tenant.run_of(&built).await;
        assert_eq!((second.name_any().as_str(), second.spec.failed_before), ("app-2", Some(1)));
        assert_eq!(second.status.map(|status| status.phase), Some(RunPhase::Succeeded));
    })
    .await;
}
