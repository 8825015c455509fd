//! Output without end, in lines and in one line.

use kiln_crds::SecurityProfile;
use kiln_e2e::build::file;
use kiln_e2e::{Build, Tenant};
use kube::ResourceExt as _;

use crate::hostile::report::Report;

kiln_e2e::tests![is_bounded_under_user_namespace, is_bounded_under_rootless];

/// The most that the agent keeps of one job's output on the volume.
const MOST: u64 = 17 << 20;

async fn is_bounded_under_user_namespace() {
    print_on("hostile-output-userns", SecurityProfile::UserNamespace).await;
}

async fn is_bounded_under_rootless() {
    print_on("hostile-output-rootless", SecurityProfile::Rootless).await;
}

async fn print_on(name: &str, profile: SecurityProfile) {
    Tenant::fresh(name, async |tenant| {
        let pool = tenant.pool("pool", |spec| spec.security_profile = Some(profile)).await;
        let dockerfile = "FROM busybox\nRUN yes 'endless output' | head -c 1000000; tr '\\0' x < /dev/zero | head -c 50000000; cat /dev/zero | head -c 50000000; yes 'endless output'\n";
        let build = Build::inline(tenant, "app", &[("Dockerfile", dockerfile)])
            .amd64()
            .pool(&pool)
            .with(|spec| spec.timeout = Some(serde_json::from_value("12s".into()).unwrap()));
        tenant.create_build(&build).await;
        let failed = tenant.not_ready("app", "BuildTimeout").await;
        let status = serde_json::to_string(&failed.status).unwrap().len();

        let pod = tenant.builders().await.first().expect("its builder is there").name_any();
        let logged: u64 = tenant.in_agent(&pod, "cat /var/lib/kiln/agent/logs/*.log | wc -c").await.trim().parse().unwrap();
        // The same builder goes on with the next.
        tenant.edit("app", |build| "FROM busybox\n".clone_into(file(&mut build.spec, "Dockerfile"))).await;
        tenant.built("app").await;
        let restarts = tenant.builders().await.iter().filter_map(|pod| pod.status.clone()).flat_map(|status| {
            status.container_statuses.unwrap_or_default().into_iter().chain(status.init_container_statuses.unwrap_or_default())
        }).map(|container| container.restart_count).sum::<i32>();

        let got = format!("BuildTimeout; a log of {} KiB, a status of {} KiB, {restarts} restarts", logged >> 10, status >> 10);
        let mut report = Report::new(profile);
        report.add(
            "endless output",
            "BuildTimeout; a log of at most 16 MiB, a status of at most 32 KiB, the builder goes on",
            &got,
            logged < MOST && status < 32 << 10 && restarts == 0,
        );
        report.end();
    })
    .await;
}
