//! What starts a run and what does not, what stops one, and what is left of it.

use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceQuota;
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::{PlatformPhase, RunPhase};
use kiln_e2e::build::file;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{condition, image_of, is_current, run_of};
use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::json;

kiln_e2e::tests![
    deleted_while_building,
    cancelled,
    a_newer_input_stops_the_older_run,
    what_makes_a_run_and_what_does_not,
    suspended,
    a_quota_that_is_used_up_is_told,
    history_is_trimmed
];

/// A step that nothing but being stopped ends, told from all other processes by its number.
fn sleeping(seconds: u32) -> String {
    format!("FROM busybox\nRUN sleep {seconds}\n")
}

/// Waits until a run's step sleeps; its builder pod.
async fn asleep(tenant: &Tenant, run: &str, seconds: u32) -> String {
    let run = tenant
        .wait_run(run, "its step runs", wait::BUILD, |run| Ok(phases(run).contains(&PlatformPhase::Building)))
        .await;
    let pod = run.status.unwrap().platforms[0].builder.clone().unwrap().pod;
    // The step starts a moment after the phase, and no object tells of it.
    for _ in 0..50 {
        if tenant.processes(&pod).await.contains(&format!("sleep {seconds}")) {
            return pod;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("no step sleeps in {pod}:\n{}", tenant.processes(&pod).await);
}

/// Fails where the step still runs a moment later.
async fn awake(tenant: &Tenant, pod: &str, seconds: u32) {
    let mut processes = String::new();
    for _ in 0..25 {
        processes = tenant.processes(pod).await;
        if !processes.contains(&format!("sleep {seconds}")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the step still runs in {pod}:\n{processes}");
}

fn phases(run: &ImageBuildRun) -> Vec<PlatformPhase> {
    run.status.iter().flat_map(|status| &status.platforms).map(|platform| platform.phase).collect()
}

fn phase(run: &ImageBuildRun) -> RunPhase {
    run.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

async fn deleted_while_building() {
    Tenant::fresh("delete", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", &sleeping(7301))]).amd64();
        tenant.create_build(&build).await;
        let pod = asleep(tenant, "app-1", 7301).await;

        tenant.builds().delete("app", &DeleteParams::default()).await.unwrap();
        tenant
            .wait(tenant.builds(), watcher::Config::default(), "the ImageBuild is gone", wait::SOON, |builds| {
                Ok(builds.is_empty())
            })
            .await;
        tenant
            .wait(tenant.runs(), watcher::Config::default(), "its run is gone", wait::SOON, |runs| Ok(runs.is_empty()))
            .await;
        awake(tenant, &pod, 7301).await;
        assert_eq!(
            Registry::new(&tenant.cluster)
                .digest(&build.object.spec.image.as_ref().unwrap().repository, "latest")
                .await,
            None
        );
    })
    .await;
}

async fn cancelled() {
    Tenant::fresh("cancel", async |tenant| {
        let files = [("Dockerfile", sleeping(7302))];
        tenant
            .create_build(
                &Build::inline(tenant, "app", &files.each_ref().map(|(path, text)| (*path, text.as_str()))).amd64(),
            )
            .await;
        let pod = asleep(tenant, "app-1", 7302).await;
        tenant
            .runs()
            .patch("app-1", &PatchParams::default(), &Patch::Merge(json!({"spec": {"cancel": true}})))
            .await
            .unwrap();
        let run = tenant
            .wait_run("app-1", "cancelled, without a finalizer", wait::SOON, |run| {
                Ok(phase(run) == RunPhase::Cancelled && run.finalizers().is_empty())
            })
            .await;
        assert_eq!(phases(&run), [PlatformPhase::Cancelled]);
        tenant.not_ready("app", "Cancelled").await;
        awake(tenant, &pod, 7302).await;

        // It stays so until it is asked for again.
        tenant.edit("app", |build| "FROM busybox\n".clone_into(file(&mut build.spec, "Dockerfile"))).await;
        let built = tenant.built("app").await;
        assert_eq!(run_of(&built), "app-2");
    })
    .await;
}

async fn a_newer_input_stops_the_older_run() {
    Tenant::fresh("newer", async |tenant| {
        tenant.create_build(&Build::inline(tenant, "app", &[("Dockerfile", &sleeping(7303))]).amd64()).await;
        let pod = asleep(tenant, "app-1", 7303).await;
        tenant
            .edit("app", |build| {
                "FROM busybox\nRUN echo newer > /which\n".clone_into(file(&mut build.spec, "Dockerfile"));
            })
            .await;
        let built = tenant.built("app").await;
        assert_eq!(run_of(&built), "app-2");
        let older = tenant.wait_run("app-1", "ended", wait::SOON, |run| Ok(phase(run).is_final())).await;
        assert_eq!(phase(&older), RunPhase::Cancelled);
        awake(tenant, &pod, 7303).await;
        let image = image_of(&built);
        assert_eq!(
            Registry::new(&tenant.cluster).image_for(&image.repository, "latest", "linux/amd64").await.text("which"),
            "newer"
        );
    })
    .await;
}

/// A step whose content differs at each run that is not the same.
const RANDOM: &str = "FROM busybox\nARG WHICH\nRUN cat /proc/sys/kernel/random/uuid > /which\n";

async fn what_makes_a_run_and_what_does_not() {
    Tenant::fresh("runs", async |tenant| {
        let first = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", RANDOM)]).amd64()).await;
        assert_eq!(run_of(&first), "app-1");

        // Fields that do not matter to the image make no run.
        let edited = tenant
            .edit("app", |build| {
                build.spec.timeout = Some(Duration::from_mins(20).into());
                build.spec.retries = Some(1);
                build.spec.history = serde_json::from_value(json!({"successful": 5})).unwrap();
                build.labels_mut().insert("team".to_owned(), "a".to_owned());
            })
            .await;
        let same = tenant.built("app").await;
        assert_eq!((run_of(&same).as_str(), same.metadata.generation), ("app-1", edited.metadata.generation));

        // A new value of the annotation makes one, the same value does not.
        let second = tenant.rebuild("app", "a").await;
        assert_eq!(run_of(&second), "app-2");
        tenant.annotate("app", "a").await;
        let third = tenant.rebuild("app", "b").await;
        assert_eq!(run_of(&third), "app-3");

        // A field that matters makes one.
        tenant.edit("app", |build| drop(build.spec.args.insert("WHICH".to_owned(), "other".to_owned()))).await;
        let fourth = tenant.built_after("app", "app-3").await;
        assert_eq!(run_of(&fourth), "app-4");
        assert_ne!(image_of(&third).digest, image_of(&fourth).digest);

        // So do other tags, and the image is the same.
        tenant
            .edit("app", |build| build.spec.image.as_mut().unwrap().tags = vec!["v1".to_owned(), "{{run}}".to_owned()])
            .await;
        let fifth = image_of(&tenant.built("app").await);
        assert_eq!(
            (&fifth.tags, &fifth.platforms),
            (&vec!["v1".to_owned(), "5".to_owned()], &image_of(&fourth).platforms)
        );
        let tag = Registry::new(&tenant.cluster).digest(&fifth.repository, "v1").await;
        assert_eq!(tag.as_ref(), Some(&fifth.digest));

        for run in tenant.runs().list(&kube::api::ListParams::default()).await.unwrap() {
            let owner = &run.owner_references()[0];
            assert_eq!((owner.name.as_str(), Some(owner.uid.as_str())), ("app", first.uid().as_deref()));
            assert_eq!(phase(&run), RunPhase::Succeeded);
        }
    })
    .await;
}

async fn suspended() {
    Tenant::fresh("suspend", async |tenant| {
        let never = Build::inline(tenant, "never", &[("Dockerfile", RANDOM)]).amd64().with(|spec| spec.suspend = true);
        tenant.create_build(&never).await;
        assert_eq!(run_of(&tenant.not_ready("never", "Suspended").await), "");

        let first = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", RANDOM)]).amd64()).await;
        tenant
            .edit("app", |build| {
                build.spec.suspend = true;
                build.spec.args.insert("WHICH".to_owned(), "other".to_owned());
            })
            .await;
        // The image that is there is not of what is written now, which whoever waits for Ready waits for.
        let held_back = tenant.not_ready("app", "Suspended").await;
        assert_eq!((run_of(&held_back), image_of(&held_back)), (run_of(&first), image_of(&first)));
        tenant.edit("app", |build| drop(build.spec.args.remove("WHICH"))).await;
        let suspended = tenant.built("app").await;
        assert_eq!(run_of(&suspended), run_of(&first));
        tenant
            .edit("app", |build| {
                build.spec.suspend = false;
                build.spec.args.insert("WHICH".to_owned(), "other".to_owned());
            })
            .await;
        tenant.built_after("app", &run_of(&first)).await;
    })
    .await;
}

/// A namespace that may have no more runs says so, and its ImageBuild goes on by itself once it may.
async fn a_quota_that_is_used_up_is_told() {
    Tenant::fresh("quota", async |tenant| {
        let quotas = tenant.api::<ResourceQuota>();
        let hard = json!({"metadata": {"name": "few"}, "spec": {"hard": {"count/imagebuildruns.kiln.build": "0"}}});
        quotas.create(&PostParams::default(), &serde_json::from_value(hard).unwrap()).await.unwrap();
        let counts = |quotas: &kiln_e2e::wait::Objects<ResourceQuota>| {
            Ok(quotas.values().any(|quota| quota.status.as_ref().is_some_and(|status| status.hard.is_some())))
        };
        tenant.wait(tenant.api(), watcher::Config::default(), "the quota counts", wait::SOON, counts).await;
        tenant.create_build(&Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\n")]).amd64()).await;
        let refused = tenant.not_ready("app", "NamespaceQuotaExceeded").await;
        let message = &condition(&refused, "Ready").unwrap().message;
        assert!(message.contains("(few, requested: count/imagebuildruns.kiln.build=1"), "{message}");
        assert!(condition(&refused, "Stalled").is_none(), "it is tried again by itself");
        quotas.delete("few", &DeleteParams::default()).await.unwrap();
        tenant.built("app").await;
    })
    .await;
}

async fn history_is_trimmed() {
    Tenant::fresh("history", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nARG CODE=0\nRUN exit $CODE\n")])
            .amd64()
            .with(|spec| spec.history = serde_json::from_value(json!({"successful": 2, "failed": 1})).unwrap());
        tenant.build(&build).await;
        for value in ["2", "3"] {
            tenant.rebuild("app", value).await;
        }
        for code in ["4", "5"] {
            tenant.edit("app", |build| drop(build.spec.args.insert("CODE".to_owned(), code.to_owned()))).await;
            tenant
                .wait_build("app", "failed", wait::BUILD, |build| {
                    let failure = build.status.as_ref().and_then(|status| status.failure.as_ref());
                    Ok(is_current(build)
                        && failure
                            .is_some_and(|failure| failure.exit_code.is_some_and(|exit| exit.to_string() == code)))
                })
                .await;
        }
        // Two that succeeded, one that failed: those are kept that are newest.
        tenant
            .wait(tenant.runs(), watcher::Config::default(), "only the newest runs are kept", wait::SOON, |runs| {
                Ok(runs.keys().map(String::as_str).eq(["app-2", "app-3", "app-5"]))
            })
            .await;
    })
    .await;
}
