//! Builders that are lost while they build: one new attempt, which the run's status and an Event tell of, and nothing is
//! left of the first.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus};
use kiln_crds::{BuilderPool, ImageBuildRun};
use kiln_e2e::build::file;
use kiln_e2e::cluster::builders_namespace;
use kiln_e2e::tenant::run_of;
use kiln_e2e::{Build, Tenant, wait};
use kube::api::{AttachParams, DeleteParams, ListParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::recovery::host::{self, is_local};
use crate::recovery::stage::platforms;

kiln_e2e::tests![
    the_agent_is_killed,
    the_agent_answers_nothing,
    buildkitd_is_killed,
    buildkitd_answers_nothing,
    the_pod_is_deleted,
    the_pod_is_evicted,
    the_pod_is_evicted_by_its_kubelet
];

/// The step of the first attempt takes longer than all else, that of the second is soon done: the cache mount, on the
/// builder's volume, tells them apart.
const DOCKERFILE: &str = "FROM busybox\n\
    RUN --mount=type=cache,target=/seen,sharing=locked if mkdir /seen/first; then sleep 7400; else sleep 5; fi\n";

/// What becomes of the builder's pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    /// It lives on: only a process of it ended.
    Stays,
    /// Another takes its place.
    Replaced,
}

/// Loses the builder of a build while its step runs, and checks what follows.
async fn lost(tenant: &Tenant, reason: &str, fate: Fate, lose: impl AsyncFnOnce(&Pod)) {
    lost_with(tenant, |build| build, reason, fate, lose).await;
}

async fn lost_with(
    tenant: &Tenant,
    change: impl FnOnce(Build) -> Build,
    reason: &str,
    fate: Fate,
    lose: impl AsyncFnOnce(&Pod),
) {
    tenant.create_build(&change(Build::inline(tenant, "app", &[("Dockerfile", DOCKERFILE)]).amd64())).await;
    let building =
        tenant.wait_run("app-1", "builds", wait::BUILD, |run| Ok(only(run).phase == PlatformPhase::Building)).await;
    let first = only(&building).builder.clone().expect("a platform that builds names its builder");
    let pod = tenant.builder_pods().get(&first.pod).await.expect("the builder is there");
    asleep(tenant, &first.pod).await;
    lose(&pod).await;

    let again = tenant
        .wait_run("app-1", &format!("another attempt, because of {reason}"), wait::BUILD, |run| {
            let platform = only(run);
            if platform.phase == PlatformPhase::Succeeded {
                return Err("it was built, and no lost attempt was to be seen".to_owned());
            }
            Ok(platform.attempt == 2 && platform.phase == PlatformPhase::Building)
        })
        .await;
    let failure =
        only(&again).failure.clone().expect("what became of the first attempt is shown while the second runs");
    assert_eq!(failure.reason, reason, "{failure:?}");
    let message = &again.status.as_ref().unwrap().conditions[0].message;
    assert!(message.contains("attempt 2") && message.contains(reason), "the condition tells of it: {message}");
    told(tenant, reason).await;

    tenant.built("app").await;
    let runs = tenant.runs().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(runs.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>(), ["app-1"], "no other run");
    let platform = only(&runs[0]);
    assert_eq!((platform.phase, platform.attempt), (PlatformPhase::Succeeded, 2));
    let second = platform.builder.clone().expect("a built platform names its builder");
    assert_eq!(second.uid == first.uid, fate == Fate::Stays, "{fate:?}: {first:?}, then {second:?}");
    let pods = tenant.builders().await;
    let left: Vec<_> = pods.iter().map(|pod| pod.uid().unwrap_or_default()).collect();
    assert_eq!(left, [second.uid], "one builder, the one that built");
    let processes = tenant.processes(&second.pod).await;
    assert!(!processes.contains("sleep 7400"), "no step of a lost attempt goes on:\n{processes}");
}

/// Waits until the first attempt's step sleeps. No object tells of it.
async fn asleep(tenant: &Tenant, pod: &str) {
    for _ in 0..150 {
        if tenant.processes(pod).await.contains("sleep 7400") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("no step sleeps in {pod}:\n{}", tenant.processes(pod).await);
}

fn only(run: &ImageBuildRun) -> &PlatformStatus {
    static NONE: std::sync::LazyLock<PlatformStatus> = std::sync::LazyLock::new(PlatformStatus::default);
    platforms(run).first().unwrap_or(&NONE)
}

/// Waits for the Event of the run that tells of the lost attempt.
async fn told(tenant: &Tenant, reason: &str) {
    let select = watcher::Config::default().fields(&format!("regarding.kind=ImageBuildRun,reason={reason}"));
    tenant
        .wait(tenant.api::<Event>(), select, &format!("an Event {reason} about the run"), wait::SOON, |events| {
            Ok(events.values().any(|event| event.note.as_ref().is_some_and(|note| note.contains("attempt 2"))))
        })
        .await;
}

async fn the_agent_is_killed() {
    if is_local("the_agent_is_killed") {
        Tenant::fresh("agent", async |tenant| {
            lost(tenant, "BuilderLost", Fate::Stays, async |pod| host::kill(&pod.uid().unwrap(), "kiln-agent")).await;
        })
        .await;
    }
}

async fn the_agent_answers_nothing() {
    if is_local("the_agent_answers_nothing") {
        Tenant::fresh("frozen", async |tenant| {
            // It is replaced after a minute and a half: none of that is the build's, whose own time is over by then.
            let short = |build: Build| build.with(|spec| spec.timeout = Some(Duration::from_mins(1).into()));
            let freeze = async |pod: &Pod| {
                host::freeze(&pod.uid().unwrap(), "kiln-agent");
                let name = pod.name_any();
                let pools = Api::<BuilderPool>::all(tenant.cluster.client.clone());
                let select =
                    watcher::Config::default().fields(&format!("metadata.name={}", pod.labels()["kiln.build/pool"]));
                tenant
                    .wait(pools, select, "its builder is suspect", wait::SOON, |pools| {
                        let status = pools.values().find_map(|pool| pool.status.as_ref());
                        let mut builders = status.iter().flat_map(|status| &status.builders);
                        Ok(builders.any(|builder| builder.name == name && builder.suspect_since.is_some()))
                    })
                    .await;
            };
            lost_with(tenant, short, "BuilderLost", Fate::Replaced, freeze).await;
        })
        .await;
    }
}

/// It is stopped: it takes connections and answers nothing. After a minute it is ended, and the kubelet starts it anew.
async fn buildkitd_answers_nothing() {
    if is_local("buildkitd_answers_nothing") {
        Tenant::fresh("hung", async |tenant| {
            let freeze = async |pod: &Pod| host::freeze(&pod.uid().unwrap(), "buildkitd");
            lost(tenant, "BuildkitUnavailable", Fate::Stays, freeze).await;
        })
        .await;
    }
}

async fn buildkitd_is_killed() {
    if is_local("buildkitd_is_killed") {
        Tenant::fresh("buildkitd", async |tenant| {
            lost(tenant, "BuildkitUnavailable", Fate::Stays, async |pod| host::kill(&pod.uid().unwrap(), "buildkitd"))
                .await;
            // With its metadata damaged it cannot start any more; after two times an empty cache begins.
            let [volume] = &tenant.volumes().await[..] else { panic!("one builder has one volume") };
            let cache = tenant.directory_of(volume).await.join("buildkit");
            let metadata = cache.join("root/runc-overlayfs/metadata_v2.db");
            std::fs::write(&metadata, vec![0; 65536]).unwrap_or_else(|error| panic!("{}: {error}", metadata.display()));
            let pod = &tenant.builders().await[0];
            host::kill(&pod.uid().unwrap(), "buildkitd");
            let edited = tenant
                .edit("app", |build| "FROM busybox\nRUN true\n".clone_into(file(&mut build.spec, "Dockerfile")))
                .await;
            tenant.built_after("app", &run_of(&edited)).await;
            assert_eq!(tenant.builders().await[0].uid(), pod.uid(), "the builder mends itself");
        })
        .await;
    }
}

async fn the_pod_is_deleted() {
    Tenant::fresh("deleted", async |tenant| {
        lost(tenant, "BuilderLost", Fate::Replaced, async |pod| {
            let at_once = DeleteParams::default().grace_period(0);
            tenant.builder_pods().delete(&pod.name_any(), &at_once).await.expect("a builder can be deleted");
        })
        .await;
    })
    .await;
}

/// Without its grace, as where a node is to be empty now; with it, the build ends first.
async fn the_pod_is_evicted() {
    Tenant::fresh("evicted", async |tenant| {
        lost(tenant, "BuilderLost", Fate::Replaced, async |pod| {
            let name = pod.name_any();
            // Not kube's own: it misspells the name of deleteOptions, and the API server ignores what it does not know.
            let eviction = json!({
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": name, "namespace": builders_namespace()},
                "deleteOptions": {"gracePeriodSeconds": 0},
            });
            let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", builders_namespace());
            let request = http::Request::post(path).header("content-type", "application/json");
            let request = request.body(eviction.to_string().into_bytes()).expect("the request is one");
            tenant.cluster.client.request_text(request).await.expect("a builder can be evicted");
        })
        .await;
    })
    .await;
}

/// As where a node runs out of memory or disk: the kubelet ends the pod at once, and leaves it there, Failed.
async fn the_pod_is_evicted_by_its_kubelet() {
    Tenant::fresh("pressure", async |tenant| {
        let pool = tenant
            .pool("small", |spec| {
                let template = spec.template.get_or_insert_default();
                let limits = template.resources.get_or_insert_default().limits.get_or_insert_default();
                limits.insert("ephemeral-storage".to_owned(), Quantity("32Mi".to_owned()));
            })
            .await;
        lost_with(
            tenant,
            |build| build.pool(&pool),
            "BuilderLost",
            Fate::Replaced,
            async |pod| {
                let name = pod.name_any();
                // More than both containers may have; allocated, not written.
                let fill = ["sh", "-c", "fallocate -l 1200MiB /tmp/fill && echo filled"];
                let parameters = AttachParams::default().container("buildkitd").stderr(false);
                let mut filling =
                    tenant.builder_pods().exec(&name, fill, &parameters).await.expect("exec in a builder");
                let mut said = String::new();
                let mut output = filling.stdout().expect("stdout is attached");
                output.read_to_string(&mut said).await.expect("the output of exec can be read");
                assert_eq!(said.trim(), "filled");
            },
        )
        .await;
    })
    .await;
}
