//! `cache.maxAge`: an image is built afresh by itself, and a fresh build that fails is not made again at once.

use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::RunPhase;
use kiln_e2e::registry::Registry;
use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt as _;
use serde_json::json;

kiln_e2e::tests![a_fresh_build_that_fails_is_made_again_only_after_the_same_time];

fn failed(run: &ImageBuildRun) -> bool {
    run.status.as_ref().is_some_and(|status| status.phase == RunPhase::Failed)
}

async fn a_fresh_build_that_fails_is_made_again_only_after_the_same_time() {
    Tenant::run("max-age", async |tenant| {
        // A base image that is there for the first build only.
        let registry = Registry::new(&tenant.cluster);
        let base = format!("e2e/{}/base", tenant.namespace);
        registry.push_image(&base, "1", "linux/amd64", &[("base", "base")]).await;
        let digest = registry.digest(&base, "1").await.unwrap();
        let dockerfile = format!("FROM {}/{base}:1\n", tenant.cluster.registry);
        let build = Build::inline(tenant, "app", &[("Dockerfile", &dockerfile)]).amd64();
        let build = build.with(|spec| spec.cache = serde_json::from_value(json!({"maxAge": "10s"})).ok());
        let first = tenant.build(&build).await;
        let since = first.status.as_ref().unwrap().cache_since.clone().expect("the first run used no cache");
        registry.delete_manifest(&base, &digest).await;

        // A run that had found it may still come in between.
        let two_failed = |runs: &wait::Objects<ImageBuildRun>| Ok(runs.values().filter(|run| failed(run)).count() >= 2);
        let select = kube::runtime::watcher::Config::default();
        let runs = tenant.wait(tenant.runs(), select, "two fresh builds fail", wait::BUILD, two_failed).await;
        let mut runs: Vec<&ImageBuildRun> = runs.values().filter(|run| run.spec.number > 1).collect();
        runs.sort_by_key(|run| run.spec.number);
        let mut former = since.0;
        for run in &runs {
            assert!(run.spec.fresh, "{run:#?}");
            let made = run.creation_timestamp().unwrap().0;
            assert!(made.duration_since(former).as_secs() >= 10, "{made} is too soon after {former}");
            former = made;
        }

        // Nothing more while it is suspended, and the last good image stays.
        tenant.edit("app", |build| build.spec.suspend = true).await;
        let image = tenant.builds().get("app").await.unwrap().status.unwrap().image;
        assert!(image.is_some());
    })
    .await;
}
