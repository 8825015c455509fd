//! Layers and cache mounts live on the builder's volume: a second build finds them, also when the pod is another one.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::ImageBuild;
use kiln_crds::builder_pool::PoolCache;
use kiln_e2e::build::file;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant};
use kube::ResourceExt;

kiln_e2e::tests![
    layers_and_cache_mounts_outlive_builds_and_builders,
    no_cache_runs_every_step_afresh,
    a_cache_is_kept_within_its_limit,
];

/// The first step's content is random, so it is the same in two images only where its layer was kept; the last one
/// runs at each new content of `input`, and adds a line to a file in a cache mount.
const DOCKERFILE: &str = "FROM busybox
RUN cat /proc/sys/kernel/random/uuid > /kept
COPY input /input
RUN --mount=type=cache,target=/cache echo line >> /cache/lines && cp /cache/lines /lines
";

async fn layers_and_cache_mounts_outlive_builds_and_builders() {
    Tenant::fresh("cache", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[("Dockerfile", DOCKERFILE), ("input", "1")]);
        let first = tenant.build(&Build::git(tenant, "app", &repository)).await;
        let builders = uids(tenant).await;

        repository.write(&[("input", "2")]);
        let second = tenant.rebuild("app", "2").await;
        assert_eq!(uids(tenant).await, builders, "the same warm builders");

        let volumes = volumes(tenant).await;
        tenant.delete_builders().await;
        repository.write(&[("input", "3")]);
        let third = tenant.rebuild("app", "3").await;
        let later = uids(tenant).await;
        assert!(
            later.len() == builders.len() && later.iter().all(|uid| !builders.contains(uid)),
            "other builders: {later:?}"
        );
        assert_eq!(self::volumes(tenant).await, volumes, "the same volumes");

        let [first, second, third] =
            [contents(tenant, &first).await, contents(tenant, &second).await, contents(tenant, &third).await];
        assert_eq!(first.len(), 2, "both platforms");
        for (number, ((one, two), three)) in first.iter().zip(&second).zip(&third).enumerate() {
            assert_eq!(
                (&one.kept, &one.kept),
                (&two.kept, &three.kept),
                "the first step's layer was kept on platform {number}"
            );
            assert_eq!(
                [one.lines, two.lines, three.lines],
                [1, 2, 3],
                "the cache mount kept its content on platform {number}"
            );
        }
    })
    .await;
}

async fn no_cache_runs_every_step_afresh() {
    Tenant::fresh("no-cache", async |tenant| {
        let files = [("Dockerfile", DOCKERFILE), ("input", "same")];
        let first = tenant.build(&Build::inline(tenant, "app", &files).amd64()).await;
        tenant.edit("app", |build| build.spec.no_cache = true).await;
        let second = tenant.built_after("app", &run_of(&first)).await;
        let [first, second] = [contents(tenant, &first).await, contents(tenant, &second).await];
        assert_ne!(first[0].kept, second[0].kept);
        assert_eq!([first[0].lines, second[0].lines], [1, 1], "cache mounts begin empty too, as under docker build");
    })
    .await;
}

async fn a_cache_is_kept_within_its_limit() {
    Tenant::fresh("cache-limit", async |tenant| {
        let pool = tenant
            .pool("small", |spec| {
                // Nothing drops below a tenth or has to before four fifths: 51 of 64.
                spec.cache = Some(PoolCache { size: Some(Quantity("64Mi".to_owned())), ..PoolCache::default() });
            })
            .await;
        let large = "FROM busybox\nRUN dd if=/dev/urandom of=/one bs=1M count=30\nRUN dd if=/dev/urandom of=/two bs=1M count=30\n";
        let mut built = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", large)]).amd64().pool(&pool)).await;
        let image = built.status.as_ref().and_then(|status| status.image.as_ref()).unwrap();
        let content = image.platforms[0].content.as_ref().unwrap();
        assert!(content.unpacked_bytes.unwrap() > 60 << 20, "it is above the limit: {content:?}");
        for number in 0..10 {
            // It is collected when nothing has been built for a second.
            tokio::time::sleep(Duration::from_secs(2)).await;
            tenant
                .edit("app", |build| format!("{large}LABEL n={number}\n").clone_into(file(&mut build.spec, "Dockerfile")))
                .await;
            built = tenant.built_after("app", &run_of(&built)).await;
            let run = tenant.run_of(&built).await;
            let steps = &run.status.as_ref().unwrap().platforms[0].steps;
            if steps.iter().any(|step| step.name.contains("urandom") && !step.cached) {
                return;
            }
        }
        panic!("nothing was dropped of a cache above its limit");
    })
    .await;
}

struct Contents {
    kept: String,
    lines: usize,
}

async fn contents(tenant: &Tenant, built: &ImageBuild) -> Vec<Contents> {
    let image = image_of(built);
    let images = Registry::new(&tenant.cluster).images(&image.repository, &image.digest).await;
    images
        .iter()
        .map(|image| Contents { kept: image.text("kept"), lines: image.text("lines").lines().count() })
        .collect()
}

async fn uids(tenant: &Tenant) -> Vec<String> {
    let mut uids: Vec<_> = tenant.builders().await.iter().filter_map(ResourceExt::uid).collect();
    uids.sort();
    uids
}

async fn volumes(tenant: &Tenant) -> Vec<String> {
    let mut uids: Vec<_> = tenant.volumes().await.iter().filter_map(ResourceExt::uid).collect();
    uids.sort();
    uids
}
