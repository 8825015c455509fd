//! The life of builder pods: warm, shared up to a limit, gone when idle, waited for where no node can take them.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kiln_crds::builder_pool::{PoolCache, PoolLimits};
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus};
use kiln_crds::{ImageBuild, ImageBuildRun};
use kiln_e2e::builder::ARCHITECTURE;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{condition, image_of, run_of};
use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt;

kiln_e2e::tests![
    an_idle_builder_goes_and_its_volume_stays,
    a_pool_without_volumes_keeps_its_cache_while_warm,
    builds_above_the_limit_of_a_builder_wait,
    several_builds_share_a_warm_builder,
    without_a_node_of_the_architecture_a_build_waits_and_then_fails,
    a_lost_builder_is_another_attempt,
    a_builder_that_is_told_to_stop_finishes_its_job
];

const SMALL: &str = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /which\n";

fn kubernetes_duration(seconds: u64) -> kube::core::Duration {
    Duration::from_secs(seconds).into()
}

async fn an_idle_builder_goes_and_its_volume_stays() {
    Tenant::fresh("idle", async |tenant| {
        let pool = tenant.pool("idle", |spec| spec.idle_timeout = Some(kubernetes_duration(3))).await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", SMALL)]).amd64().pool(&pool);
        let first = tenant.build(&build).await;
        let volumes = claims(&tenant.volumes().await);
        assert_eq!(volumes.len(), 1);
        tenant
            .wait_builders("none after the idle time", Duration::from_secs(30), std::collections::BTreeMap::is_empty)
            .await;
        assert_eq!(claims(&tenant.volumes().await), volumes, "the volume outlives its builder");

        // A new builder finds the cache.
        let second = tenant.rebuild("app", "again").await;
        assert_eq!(which(tenant, &first).await, which(tenant, &second).await);
        assert_eq!(claims(&tenant.volumes().await), volumes);
    })
    .await;
}

async fn a_pool_without_volumes_keeps_its_cache_while_warm() {
    Tenant::fresh("no-volume", async |tenant| {
        let cache = PoolCache {
            size: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity("0".to_owned())),
            ..PoolCache::default()
        };
        let pool = tenant.pool("no-volume", |spec| spec.cache = Some(cache)).await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", SMALL)]).amd64().pool(&pool);
        let first = tenant.build(&build).await;
        let second = tenant.rebuild("app", "warm").await;
        assert_eq!(which(tenant, &first).await, which(tenant, &second).await);
        assert_eq!(claims(&tenant.volumes().await), [] as [String; 0]);
    })
    .await;
}

async fn builds_above_the_limit_of_a_builder_wait() {
    Tenant::fresh("queue", async |tenant| {
        let pool = tenant
            .pool("queue", |spec| {
                spec.max_jobs_per_builder = Some(1);
                spec.limits = Some(PoolLimits { builders_per_namespace: Some(1), ..PoolLimits::default() });
            })
            .await;
        for name in ["one", "two"] {
            let dockerfile = format!("FROM busybox\nRUN sleep 2; echo {name}\n");
            tenant.create_build(&Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64().pool(&pool)).await;
        }
        let mut platforms = [only_platform(tenant, "one").await, only_platform(tenant, "two").await];
        platforms.sort_by_key(|platform| platform.started_at.clone().map(|time| time.0));
        let [first, second] = &platforms;
        assert_eq!(first.builder, second.builder, "there is one builder only");
        assert!(
            first.finished_at.as_ref().unwrap().0 <= second.started_at.as_ref().unwrap().0,
            "one after the other: {platforms:#?}"
        );
        assert_eq!(tenant.builders().await.len(), 1);
    })
    .await;
}

async fn several_builds_share_a_warm_builder() {
    Tenant::fresh("share", async |tenant| {
        tenant.build(&Build::inline(tenant, "first", &[("Dockerfile", SMALL)]).amd64()).await;
        let builder = tenant.builders().await.remove(0);
        for name in ["one", "two"] {
            let dockerfile = format!("FROM busybox\nRUN sleep 3; echo {name}\n");
            tenant.create_build(&Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64()).await;
        }
        let platforms = [only_platform(tenant, "one").await, only_platform(tenant, "two").await];
        for platform in &platforms {
            assert_eq!(platform.builder.as_ref().map(|builder| builder.uid.clone()), builder.uid(), "the warm one");
            assert_eq!(platform.attempt, 1);
        }
        let [one, two] = &platforms;
        let overlap = one.started_at < two.finished_at && two.started_at < one.finished_at;
        assert!(overlap, "at the same time: {platforms:#?}");
    })
    .await;
}

async fn without_a_node_of_the_architecture_a_build_waits_and_then_fails() {
    Tenant::fresh("no-node", async |tenant| {
        let pool = tenant.pool("no-node", |spec| spec.scheduling_timeout = Some(kubernetes_duration(5))).await;
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nRUN true\n")])
            .platforms(&["linux/amd64", "linux/riscv64"])
            .pool(&pool);
        tenant.create_build(&build).await;
        let waiting = tenant
            .wait_run("app-1", "waits for a node", wait::SOON, |run| {
                // The other platform's pod waits for a moment too, where the scheduler sees it before its volume.
                let of_this = |message: &str| message.contains("riscv64");
                Ok(succeeded(run).is_some_and(|(reason, message)| reason == "WaitingForNode" && of_this(&message)))
            })
            .await;
        let (_, message) = succeeded(&waiting).unwrap();
        for word in ["amd64", "arm64"] {
            assert!(message.contains(word), "names what is wanted and what is there: {message}");
        }
        let failed = tenant.not_ready("app", "BuilderUnschedulable").await;
        let failure = failed.status.as_ref().unwrap().failure.clone().unwrap();
        assert_eq!(
            (failure.reason.as_str(), failure.platform.as_deref()),
            ("BuilderUnschedulable", Some("linux/riscv64"))
        );
        assert!(condition(&failed, "Ready").unwrap().message.contains("riscv64"));
        tenant.event("app", "BuilderUnschedulable").await;
        tenant
            .wait_builders("none is left for that architecture", wait::SOON, |pods| {
                pods.values().all(|pod| pod.labels().get(ARCHITECTURE).is_none_or(|arch| arch != "riscv64"))
            })
            .await;

        tenant.edit("app", |build| build.spec.platforms.as_mut().unwrap().truncate(1)).await;
        tenant.built("app").await;
    })
    .await;
}

/// Creates an ImageBuild whose step takes a while, and waits until that step runs.
async fn busy(tenant: &Tenant) {
    let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nRUN sleep 6\n")]).amd64();
    tenant.create_build(&build).await;
    tenant
        .wait_run("app-1", "builds", wait::BUILD, |run| {
            let mut platforms = run.status.iter().flat_map(|status| &status.platforms);
            Ok(platforms.any(|platform| platform.phase == PlatformPhase::Building))
        })
        .await;
}

async fn a_lost_builder_is_another_attempt() {
    Tenant::fresh("lost", async |tenant| {
        busy(tenant).await;
        tenant.lose_builders().await;
        assert!(only_platform(tenant, "app").await.attempt > 1, "another attempt of the same run");
        assert_eq!(run_of(&tenant.builds().get("app").await.unwrap()), "app-1");
    })
    .await;
}

async fn a_builder_that_is_told_to_stop_finishes_its_job() {
    Tenant::fresh("drain", async |tenant| {
        busy(tenant).await;
        tenant.delete_builders().await;
        assert_eq!(only_platform(tenant, "app").await.attempt, 1, "the first attempt went on to its end");
    })
    .await;
}

fn claims(volumes: &[PersistentVolumeClaim]) -> Vec<String> {
    volumes.iter().filter_map(ResourceExt::uid).collect()
}

fn succeeded(run: &ImageBuildRun) -> Option<(String, String)> {
    let condition = run.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == "Succeeded")?;
    Some((condition.reason.clone(), condition.message.clone()))
}

/// The one platform of the run of an ImageBuild that is built.
async fn only_platform(tenant: &Tenant, name: &str) -> PlatformStatus {
    let built = tenant.built(name).await;
    tenant.run_of(&built).await.status.unwrap().platforms.remove(0)
}

/// The random content that the step of [`SMALL`] made.
async fn which(tenant: &Tenant, built: &ImageBuild) -> String {
    let image = image_of(built);
    Registry::new(&tenant.cluster).image_for(&image.repository, &image.digest, "linux/amd64").await.text("which")
}
