//! What one namespace may take of a pool, and what it is told when it has it all; and the labels that tell cost.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::builder_pool::{PoolCache, PoolLimits};
use kiln_crds::image_build::{CacheScope, CacheSpec};
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{Patch, PatchParams};

kiln_e2e::tests![
    a_namespace_has_no_more_volumes_than_its_limit,
    a_namespace_has_no_more_storage_than_its_limit,
    builders_tell_whose_they_are_and_what_they_may_use
];

/// An ImageBuild with a builder and a volume of its own.
fn alone(tenant: &Tenant, pool: &str, name: &str, dockerfile: &str) -> Build {
    Build::inline(tenant, name, &[("Dockerfile", dockerfile)])
        .amd64()
        .pool(pool)
        .with(|spec| spec.cache = Some(CacheSpec { scope: Some(CacheScope::ImageBuild), ..CacheSpec::default() }))
}

async fn limited_to_one_volume(tenant: &Tenant, limits: PoolLimits, field: &str) {
    let pool = tenant
        .pool("one", |spec| {
            spec.limits = Some(limits);
            spec.cache =
                Some(PoolCache { size: Some(Quantity("1Gi".to_owned())), ..spec.cache.clone().unwrap_or_default() });
        })
        .await;
    tenant.create_build(&alone(tenant, &pool, "first", "FROM busybox\nRUN sleep 600\n")).await;
    tenant
        .wait_run("first-1", "builds", wait::BUILD, |run| {
            Ok(run.status.iter().flat_map(|status| &status.platforms).any(|platform| platform.builder.is_some()))
        })
        .await;
    // Its volume is in use: the next one waits, and is told for what.
    tenant.create_build(&alone(tenant, &pool, "second", "FROM busybox\nRUN echo 2 > /file\n")).await;
    tenant
        .wait_run("second-1", "waits for the limit", wait::SOON, |run| {
            let conditions = run.status.iter().flat_map(|status| &status.conditions);
            let told = conditions
                .into_iter()
                .any(|condition| condition.reason == "WaitingForCapacity" && condition.message.contains(field));
            Ok(told)
        })
        .await;
    let first: Vec<_> = tenant.volumes().await.iter().map(kube::ResourceExt::name_any).collect();
    assert_eq!(first.len(), 1, "{first:?}");
    // Once it is not, it is given up for the other.
    let cancel = Patch::Merge(serde_json::json!({"spec": {"cancel": true}}));
    tenant.runs().patch("first-1", &PatchParams::default(), &cancel).await.expect("a run can be cancelled");
    tenant.built("second").await;
    let second: Vec<_> = tenant.volumes().await.iter().map(kube::ResourceExt::name_any).collect();
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(first, second);
}

async fn a_namespace_has_no_more_volumes_than_its_limit() {
    Tenant::fresh("volumes", async |tenant| {
        let limits = PoolLimits { volumes_per_namespace: Some(1), ..PoolLimits::default() };
        limited_to_one_volume(tenant, limits, "limits.volumesPerNamespace").await;
    })
    .await;
}

async fn a_namespace_has_no_more_storage_than_its_limit() {
    Tenant::fresh("storage", async |tenant| {
        let most = Some(Quantity("1536Mi".to_owned()));
        let limits = PoolLimits { storage_per_namespace: most, ..PoolLimits::default() };
        limited_to_one_volume(tenant, limits, "limits.storagePerNamespace").await;
    })
    .await;
}

/// Pods and volumes tell whose they are, and ask for what they use: cost can be told, and bounded.
async fn builders_tell_whose_they_are_and_what_they_may_use() {
    Tenant::fresh("cost", async |tenant| {
        let pool = tenant.pool("cost", |_| {}).await;
        tenant.build(&alone(tenant, &pool, "app", "FROM busybox\n")).await;
        let (pods, volumes) = (tenant.builders().await, tenant.volumes().await);
        let labels = pods.iter().map(kube::ResourceExt::labels).chain(volumes.iter().map(kube::ResourceExt::labels));
        let mut count = 0;
        for labels in labels {
            count += 1;
            for (label, value) in [
                ("kiln.build/namespace", tenant.namespace.as_str()),
                ("kiln.build/image-build", "app"),
                ("kiln.build/pool", &pool),
                ("kiln.build/architecture", "amd64"),
            ] {
                assert_eq!(labels.get(label).map(String::as_str), Some(value), "{label}");
            }
        }
        assert_eq!(count, 2, "a pod and a volume");
        let spec = pods[0].spec.as_ref().unwrap();
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let resources = container.resources.clone().unwrap_or_default();
            let of = |part: Option<std::collections::BTreeMap<String, Quantity>>| -> BTreeSet<String> {
                part.unwrap_or_default().into_keys().collect()
            };
            let (requests, limits) = (of(resources.requests), of(resources.limits));
            for name in ["cpu", "memory", "ephemeral-storage"] {
                assert!(requests.contains(name), "{}: {name}", container.name);
            }
            assert!(limits.contains("ephemeral-storage"), "{}", container.name);
        }
    })
    .await;
}
