//! Tests that need the cluster for themselves: no write at rest, and a restart of the operator.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::audit::{Audit, is_lease, is_write, shown};
use kiln_e2e::build::git;
use kiln_e2e::cluster::{builders_namespace, operator_namespace, variable};
use kiln_e2e::tenant::{GIT_SECRET, LABEL};
use kiln_e2e::{Build, Repository, Tenant, wait};
use kube::api::{DeleteParams, ListParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};

kiln_e2e::tests![alone no_write_in_two_idle_minutes, alone a_restarted_operator_finishes_the_same_run];

const IDLE: Duration = Duration::from_mins(2);

/// At rest Kiln writes nothing but its own Lease, told by the API server's audit log.
async fn no_write_in_two_idle_minutes() {
    let _log = variable("KILN_AUDIT_LOG");
    Tenant::fresh("quiet", async |tenant| {
        others_are_gone(tenant).await;

        // What may be there at rest: one that is built and looks at its ref again, one that failed, one that waits for
        // its credential to be mended, one that is suspended, and warm builders.
        let repository = Repository::private(tenant, "app");
        repository.write(&[("Dockerfile", "FROM busybox\n")]);
        let interval = "10s".parse().unwrap();
        tenant
            .build(&Build::private_git(tenant, "built", &repository).with(|spec| git(spec).interval = Some(interval)))
            .await;
        tenant
            .create_build(&Build::inline(tenant, "failed", &[("Dockerfile", "FROM busybox\nRUN exit 1\n")]).amd64())
            .await;
        tenant.not_ready("failed", "StepFailed").await;
        tenant.secret("wrong", "Opaque", &[("username", "nobody"), ("password", "wrong")]).await;
        let refused = Build::private_git(tenant, "refused", &repository)
            .with(|spec| "wrong".clone_into(&mut git(spec).secret_ref.as_mut().unwrap().name));
        tenant.create_build(&refused).await;
        tenant.not_ready("refused", "GitUnauthorized").await;
        tenant.create_build(&Build::git(tenant, "suspended", &repository).with(|spec| spec.suspend = true)).await;
        tenant
            .secret(
                GIT_SECRET,
                "Opaque",
                &[("username", &tenant.cluster.git_user), ("password", &tenant.cluster.git_password)],
            )
            .await;

        // What follows the last event, such as the trimming of a history, is done soon.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut audit = Audit::from_now();
        tokio::time::sleep(IDLE).await;
        let entries = audit.of_kiln();
        assert!(entries.iter().any(is_lease), "the log shows what Kiln does: it renews its Lease");
        let writes: Vec<_> = entries.iter().filter(|entry| is_write(entry) && !is_lease(entry)).map(shown).collect();
        assert!(writes.is_empty(), "Kiln wrote while nothing changed:\n{}", writes.join("\n"));
    })
    .await;
}

/// Losing the operator loses nothing: the next one reads on where it was.
async fn a_restarted_operator_finishes_the_same_run() {
    Tenant::fresh("restart", async |tenant| {
        let build = Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nRUN sleep 8\n")]).amd64();
        tenant.create_build(&build).await;
        let started = |run: &ImageBuildRun| {
            run.status
                .iter()
                .flat_map(|status| &status.platforms)
                .any(|platform| platform.phase == PlatformPhase::Building)
        };
        let before = tenant.wait_run("app-1", "builds", wait::BUILD, |run| Ok(started(run))).await;

        let pods: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &operator_namespace());
        let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
        pods.delete_collection(&DeleteParams::default(), &operators).await.expect("the operator's pod can be deleted");

        let finished = tenant.built("app").await;
        let after = tenant.run_of(&finished).await;
        assert_eq!(after.name_any(), "app-1", "no other run");
        let attempt = |run: &ImageBuildRun| {
            let platform = &run.status.as_ref().unwrap().platforms[0];
            (platform.attempt, platform.builder.clone(), platform.started_at.clone())
        };
        assert_eq!(attempt(&after), attempt(&before), "the same job on the same builder");
        assert_eq!(tenant.builders().await.len(), 1);
    })
    .await;
}

/// How long it may take until a former program's tests are gone: one that was broken off may leave ten thousand objects.
const FORMER: Duration = Duration::from_mins(20);

/// Waits until the namespaces of former tests are gone, and their builders: none may hang, and none may disturb.
async fn others_are_gone(tenant: &Tenant) {
    let namespaces: Api<Namespace> = Api::all(tenant.cluster.client.clone());
    let select = watcher::Config::default().labels(LABEL);
    tenant
        .wait(namespaces, select, "the namespaces of former tests are gone", FORMER, |namespaces| {
            Ok(namespaces.len() <= 1)
        })
        .await;
    let pods: Api<Pod> = Api::namespaced(tenant.cluster.client.clone(), &builders_namespace());
    tenant
        .wait(pods, watcher::Config::default(), "the builders of former tests are gone", FORMER, |pods| {
            Ok(!pods.values().any(|pod| pod.labels().values().any(|value| value.starts_with("e2e-"))))
        })
        .await;
}
