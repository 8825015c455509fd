//! Runs that fail: reason, platform, step, Dockerfile, line, exit code and the last lines of the log are in the status;
//! the last good image and its tag stay, and the next good input builds.

use std::time::Duration;

use kiln_crds::ImageBuild;
use kiln_crds::image_build::BuildFailure;
use kiln_e2e::build::file;
use kiln_e2e::registry::Registry;
use kiln_e2e::tenant::{condition, image_of, is_current, run_of};
use kiln_e2e::{Build, Repository, Tenant, wait};

kiln_e2e::tests![
    a_failing_step_of_one_platform,
    a_missing_dockerfile,
    dockerfiles_that_cannot_be_built,
    a_build_that_takes_too_long
];

/// Waits for the failure of a later run than that of `former`, and checks what holds at each.
async fn fails(tenant: &Tenant, name: &str, former: &ImageBuild, reason: &str) -> BuildFailure {
    let failed = tenant
        .wait_build(name, &format!("a later run failed ({reason})"), wait::BUILD, |build| {
            let ended = is_current(build)
                && run_of(build) != run_of(former)
                && condition(build, "Stalled").is_some_and(|stalled| stalled.status == "True");
            let ready = condition(build, "Ready").map(|ready| (ready.status.as_str(), ready.reason.as_str()));
            match ready {
                Some(("True", _)) if is_current(build) && run_of(build) != run_of(former) => {
                    Err("it was built".to_owned())
                }
                Some(("False", other)) if ended && other != reason => Err(format!("it failed otherwise: {other}")),
                _ => Ok(ended),
            }
        })
        .await;
    let ready = condition(&failed, "Ready").unwrap();
    let failure = failed.status.as_ref().unwrap().failure.clone().expect("a failed run is in status.failure");
    assert_eq!((failure.reason.as_str(), failure.run.as_deref()), (reason, Some(run_of(&failed).as_str())));
    assert!(
        ready.message.contains(&failure.message) || failure.message.contains(&ready.message),
        "{} / {}",
        ready.message,
        failure.message
    );
    assert_eq!(image_of(&failed), image_of(former), "{reason}: the last good image stays");
    let tag = Registry::new(&tenant.cluster).digest(&image_of(former).repository, "latest").await;
    assert_eq!(tag.as_ref(), Some(&image_of(former).digest), "{reason}: the tag stays");
    tenant.event(name, reason).await;
    *failure
}

async fn a_failing_step_of_one_platform() {
    Tenant::run("step", async |tenant| {
        let good = "FROM busybox\n\nRUN uname -m > /machine\n";
        let former = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", good)])).await;
        let bad = "FROM busybox AS first\nRUN true\nFROM first AS second\n\nRUN if [ $(uname -m) = aarch64 ]; then \\\n  echo a line before; printf 'the \\033[31mreason\\033[0m\\n'; exit 7; fi\n";
        tenant.edit("app", |build| bad.clone_into(file(&mut build.spec, "Dockerfile"))).await;
        let failure = fails(tenant, "app", &former, "StepFailed").await;
        assert_eq!(failure.platform.as_deref(), Some("linux/arm64"));
        assert_eq!((failure.dockerfile.as_deref(), failure.line, failure.exit_code), (Some("Dockerfile"), Some(5), Some(7)));
        let step = failure.step.as_deref().unwrap_or_default();
        assert!(step.contains("second") && step.contains("RUN if"), "step: {step:?}");
        assert!(failure.log_tail.iter().any(|line| line == "a line before"), "{:?}", failure.log_tail);
        assert!(failure.log_tail.iter().any(|line| line == "the reason"), "without control characters: {:?}", failure.log_tail);

        tenant.edit("app", |build| good.clone_into(file(&mut build.spec, "Dockerfile"))).await;
        let mended = tenant.built("app").await;
        assert_eq!(mended.status.unwrap().failure, None);
    })
    .await;
}

async fn a_missing_dockerfile() {
    Tenant::run("dockerfile", async |tenant| {
        let repository = Repository::public(tenant, "app");
        repository.write(&[("Dockerfile", "FROM busybox\n")]);
        let former = tenant.build(&Build::git(tenant, "app", &repository).amd64()).await;
        tenant.edit("app", |build| build.spec.dockerfile = Some("deploy/Containerfile".to_owned())).await;
        let failure = fails(tenant, "app", &former, "DockerfileNotFound").await;
        assert!(failure.message.contains("deploy/Containerfile"), "{}", failure.message);
        assert_eq!(failure.platform.as_deref(), Some("linux/amd64"));

        repository.write(&[("deploy/Containerfile", "FROM busybox\n")]);
        let mended = tenant.rebuild("app", "there now").await;
        assert_eq!(mended.status.unwrap().failure, None);
    })
    .await;
}

/// Reason, Dockerfile, the line at fault, and what the message or the step must name.
const DOCKERFILES: &[(&str, &str, Option<u32>, &str)] = &[
    ("StepFailed", "FROM busybox\nRUN exit 3\n", Some(2), "exit 3"),
    ("DockerfileInvalid", "FROM busybox\nRUNN true\n", Some(2), "RUNN"),
    ("FileNotFound", "FROM busybox\nCOPY nowhere /there\n", Some(2), "nowhere"),
    ("BaseImageNotFound", "FROM busybox:no-such-tag\n", Some(1), "busybox:no-such-tag"),
    ("SecretIdNotFound", "FROM busybox\nRUN --mount=type=secret,id=token,required=true true\n", Some(2), "token"),
];

async fn dockerfiles_that_cannot_be_built() {
    Tenant::run("dockerfiles", async |tenant| {
        let good = "FROM busybox\n";
        let mut former = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", good)]).amd64()).await;
        for (reason, dockerfile, line, word) in DOCKERFILES {
            tenant.edit("app", |build| (*dockerfile).clone_into(file(&mut build.spec, "Dockerfile"))).await;
            let failure = fails(tenant, "app", &former, reason).await;
            assert_eq!(failure.line, *line, "{reason}: {failure:?}");
            assert!(
                failure.message.contains(word) || failure.step.iter().any(|step| step.contains(word)),
                "{reason}: names {word:?}: {failure:?}"
            );
            // Each failure is a run later than the one before.
            let now = tenant.builds().get("app").await.unwrap();
            former.status.as_mut().unwrap().run.clone_from(&now.status.unwrap().run);
        }
        tenant.edit("app", |build| build.spec.target = Some("nowhere".to_owned())).await;
        tenant.edit("app", |build| good.clone_into(file(&mut build.spec, "Dockerfile"))).await;
        let failure = fails(tenant, "app", &former, "TargetNotFound").await;
        assert!(failure.message.contains("nowhere"), "{}", failure.message);

        tenant.edit("app", |build| build.spec.target = None).await;
        tenant.built("app").await;
    })
    .await;
}

async fn a_build_that_takes_too_long() {
    Tenant::run("timeout", async |tenant| {
        let files = [("Dockerfile", "FROM busybox\nARG SECONDS=0\nRUN sleep $SECONDS\n")];
        let former = tenant.build(&Build::inline(tenant, "app", &files).amd64()).await;
        tenant
            .edit("app", |build| {
                build.spec.args.insert("SECONDS".to_owned(), "7200".to_owned());
                build.spec.timeout = Some(Duration::from_secs(3).into());
            })
            .await;
        let failure = fails(tenant, "app", &former, "BuildTimeout").await;
        assert!(failure.message.contains("3s") || failure.message.contains("3 s"), "{}", failure.message);
    })
    .await;
}
