//! Builds that want more memory than their builder has, told from those that something else ends; and the loss of all of a
//! builder's processes at once, as of a kubelet with cgroup v2.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus};
use kiln_crds::{BuilderPoolSpec, ImageBuildRun};
use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt as _;

use crate::recovery::host::{self, is_local};

kiln_e2e::tests![
    a_step_that_wants_memory_is_told_from_one_that_was_killed,
    alone a_builder_that_is_killed_with_all_its_builds
];

/// So much memory a builder has, far less than [`GREEDY`] wants.
fn small(spec: &mut BuilderPoolSpec) {
    let resources = spec.template.get_or_insert_default().resources.get_or_insert_default();
    let memory = |quantity: &str| ("memory".to_owned(), Quantity(quantity.to_owned()));
    resources.limits.get_or_insert_default().extend([memory("384Mi")]);
    resources.requests.get_or_insert_default().extend([memory("64Mi")]);
    let limits = spec.limits.get_or_insert_default();
    limits.builders_per_namespace = Some(1);
}

const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=1200M count=1";

async fn a_step_that_wants_memory_is_told_from_one_that_was_killed() {
    Tenant::fresh("memory", async |tenant| {
        let pool = tenant.pool("small", small).await;
        // One after the other, on one builder: each looks at what was killed while it ran.
        for (name, step, reason, words) in [
            ("direct", GREEDY.to_owned(), "OutOfMemory", "(exit code 137) for want of memory"),
            ("killed", "timeout -s KILL 1 sleep 30; exit $?".to_owned(), "StepFailed", "memory was not wanting"),
            (
                "child",
                format!("{GREEDY} || {{ echo make: target failed; exit 2; }}"),
                "OutOfMemory",
                "exit code 2: a process of it was killed for want of memory",
            ),
            ("fails", "exit 2".to_owned(), "StepFailed", "failed with exit code 2"),
        ] {
            let dockerfile = format!("FROM busybox\nRUN {step}\n");
            let build = Build::inline(tenant, name, &[("Dockerfile", &dockerfile)]).amd64().pool(&pool);
            tenant.create_build(&build).await;
            let failed = tenant.not_ready(name, reason).await;
            let failure: BuildFailure =
                *failed.status.clone().unwrap().failure.expect("a failed run is in status.failure");
            assert!(failure.message.contains(words), "{name}: says {words:?}: {}", failure.message);
            assert_eq!(failure.line, Some(2), "{name}: {failure:?}");
            assert_eq!(only(&tenant.run_of(&failed).await).attempt, 1, "{name}");
        }
        assert_eq!(tenant.builders().await.len(), 1, "one builder for all of them");
    })
    .await;
}

/// The kernel of a node with cgroup v1 kills one process. What follows is what a kubelet with cgroup v2 makes of it: the rest
/// of the container is killed too, and the container runtime, which was told of the first, says `OOMKilled`.
async fn a_builder_that_is_killed_with_all_its_builds() {
    if !is_local("a_builder_that_is_killed_with_all_its_builds") {
        return;
    }
    Tenant::fresh("oomgroup", async |tenant| {
        let pool = tenant.pool("small", small).await;
        // The cache mount, on the builder's volume, tells its attempts apart.
        let innocent = "FROM busybox\n\
            RUN --mount=type=cache,target=/seen,sharing=locked if mkdir /seen/first; then sleep 7401; fi\n";
        let greedy = format!("FROM busybox\nRUN {GREEDY} || sleep 7402\n");
        let create = async |name: &str, dockerfile: &str| {
            let build = Build::inline(tenant, name, &[("Dockerfile", dockerfile)]).amd64().pool(&pool);
            tenant.create_build(&build.with(|spec| spec.retries = Some(2))).await;
        };
        create("innocent", innocent).await;
        let pod = runs(tenant, "innocent-1", 1, "sleep 7401").await;
        create("greedy", &greedy).await;
        assert_eq!(runs(tenant, "greedy-1", 1, "sleep 7402").await.uid(), pod.uid(), "they share a builder");
        host::knows_of_want_of_memory(&pod.uid().unwrap(), "buildkitd").await;
        host::kill_container(&pod.uid().unwrap(), "buildkitd");

        // Nobody knows which of them it was, so each gets the builder for itself, whichever comes first.
        let pod = runs(tenant, "greedy-1", 2, "sleep 7402").await;
        let again = only(&tenant.runs().get("greedy-1").await.unwrap()).clone();
        let failure = again.failure.unwrap_or_default();
        assert_eq!(failure.reason, "BuilderOutOfMemory", "{failure:?}");
        let other = only(&tenant.runs().get("innocent-1").await.unwrap()).clone();
        assert!(
            matches!(other.phase, PlatformPhase::Queued | PlatformPhase::Succeeded),
            "it is alone there: {other:?}"
        );
        host::knows_of_want_of_memory(&pod.uid().unwrap(), "buildkitd").await;
        host::kill_container(&pod.uid().unwrap(), "buildkitd");

        let failed = tenant.not_ready("greedy", "OutOfMemory").await;
        let failure = failed.status.clone().unwrap().failure.expect("a failed run is in status.failure");
        assert!(failure.message.contains("nothing else was built there"), "{failure:?}");
        assert!(failure.step.as_ref().is_some_and(|step| step.contains("sleep 7402")), "{failure:?}");
        assert_eq!(only(&tenant.run_of(&failed).await).attempt, 2, "it is final");
        // The cache is what it was, though buildkitd ended twice right after its start.
        let built = tenant.built("innocent").await;
        assert_eq!(only(&tenant.run_of(&built).await).attempt, 2);
        let [volume] = &tenant.volumes().await[..] else { panic!("one builder has one volume") };
        let cache = std::fs::read_dir(tenant.directory_of(volume).await.join("buildkit")).unwrap();
        let names: Vec<_> = cache.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        assert!(!names.iter().any(|name| name.starts_with("damaged")), "{names:?}");
    })
    .await;
}

/// Waits until a run's attempt is in the step that sleeps; its builder.
async fn runs(tenant: &Tenant, run: &str, attempt: u32, step: &str) -> Pod {
    let what = format!("builds, for the {attempt}. time");
    let building = tenant
        .wait_run(run, &what, wait::BUILD, |run| {
            let platform = only(run);
            if platform.phase.is_final() || platform.attempt > attempt {
                return Err(format!("it is further: {platform:?}"));
            }
            Ok(platform.attempt == attempt && platform.phase == PlatformPhase::Building)
        })
        .await;
    let builder = only(&building).builder.clone().expect("a platform that builds names its builder");
    // No object tells of it.
    for _ in 0..150 {
        if tenant.processes(&builder.pod).await.contains(step) {
            return tenant.builder_pods().get(&builder.pod).await.expect("the builder is there");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("no step of {run} is in {step:?}:\n{}", tenant.processes(&builder.pod).await);
}

fn only(run: &ImageBuildRun) -> &PlatformStatus {
    static NONE: std::sync::LazyLock<PlatformStatus> = std::sync::LazyLock::new(PlatformStatus::default);
    run.status.as_ref().and_then(|status| status.platforms.first()).unwrap_or(&NONE)
}
