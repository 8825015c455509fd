//! The lines for pipelines in `docs/imagebuild.md`, as they stand there, by an account with the `ClusterRole` that they need.

use kiln_crds::SecretRef;
use kiln_crds::image_build_run::PlatformPhase;
use kiln_e2e::build::image;
use kiln_e2e::shell::{Ran, Shell};
use kiln_e2e::tenant::{image_of, run_of};
use kiln_e2e::{Build, Repository, Tenant, page, wait};
use kube::api::{Patch, PatchParams};
use serde_json::json;

kiln_e2e::tests![
    a_pipeline_gets_the_digest_of_its_commit_or_why_there_is_none,
    a_pipeline_hears_that_its_run_was_cancelled_or_superseded,
    a_pipeline_hears_why_no_run_is_made
];

/// How long the lines wait for a run to be made.
const PATIENCE: &str = "--timeout=1m";

fn lines() -> String {
    let mut commands = page::commands_below("imagebuild.md", "## In a pipeline");
    let lines = commands.pop().expect("the page has lines for pipelines");
    assert_eq!((commands.len(), lines.lines().count()), (0, 8), "one block of eight lines:\n{lines}");
    assert!(lines.contains(PATIENCE), "they wait with {PATIENCE}:\n{lines}");
    lines
}

/// A pipeline of the repository's head.
fn pipeline(tenant: &Tenant, repository: &Repository) -> Shell {
    Shell::of_account(tenant, "pipeline", Some("edit")).with("GIT_DIR", repository.directory.to_str().unwrap())
}

/// Fails unless the lines ended with 1, printed nothing, and said all this.
fn assert_failed(ran: &Ran, words: &[&str]) {
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "{word:?} is in:\n{}", ran.stderr);
    }
}

/// Waits until a run's step runs.
async fn building(tenant: &Tenant, run: &str) {
    tenant
        .wait_run(run, "its step runs", wait::BUILD, |run| {
            Ok(run.status.iter().flat_map(|status| &status.platforms).any(|on| on.phase == PlatformPhase::Building))
        })
        .await;
}

async fn a_pipeline_gets_the_digest_of_its_commit_or_why_there_is_none() {
    Tenant::fresh("pipeline", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let shell = pipeline(tenant, &repository);
        repository.write(&[("Dockerfile", "FROM busybox\nRUN echo 1 > /number\n")]);
        tenant.create_build(&Build::git(tenant, "app", &repository).amd64()).await;

        // The first one, which may be on its way already, and one that follows it.
        let first = shell.run(&lines()).await.printed();
        let commit = repository.write(&[("Dockerfile", "FROM busybox\nRUN echo 2 > /number\n")]);
        let second = shell.run(&lines()).await.printed();
        assert_ne!(first, second);
        // The run has ended; its ImageBuild says so a moment later.
        let built = tenant.wait_build("app", "this commit is pushed", wait::BUILD, |build| {
            let source = build.status.as_ref().and_then(|status| status.source.as_ref());
            Ok(source.and_then(|source| source.commit.as_ref()) == Some(&commit))
        });
        let built = built.await;
        assert_eq!(second, format!("{}\n", image_of(&built).reference));

        // One that fails, and once more: what is said is of the run that was asked for.
        let commit = repository.write(&[("Dockerfile", "FROM busybox\nRUN echo no luck; exit 3\n")]);
        let mut former = run_of(&built);
        for _ in 0..2 {
            let failed = shell.run(&lines()).await;
            let run = run_of(&tenant.builds().get("app").await.unwrap());
            assert_ne!(run, former);
            assert_failed(&failed, &[&format!("{run} of {commit}: StepFailed "), "exit 3"]);
            former = run;
        }
    })
    .await;
}

async fn a_pipeline_hears_that_its_run_was_cancelled_or_superseded() {
    Tenant::fresh("pipeline-end", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let shell = pipeline(tenant, &repository);
        repository.write(&[("Dockerfile", "FROM busybox\n")]);
        tenant.build(&Build::git(tenant, "app", &repository).amd64()).await;
        let commit = repository.write(&[("Dockerfile", "FROM busybox\nRUN sleep 7321\n")]);
        let lines = lines();
        let cancel = async {
            building(tenant, "app-2").await;
            let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
            tenant.runs().patch("app-2", &PatchParams::default(), &cancel).await.unwrap();
        };
        let (cancelled, ()) = tokio::join!(shell.run(&lines), cancel);
        assert_failed(&cancelled, &[&format!("app-2 of {commit}: Cancelled ")]);

        // Another commit is pushed and asked for while this one builds.
        let supersede = async {
            building(tenant, "app-3").await;
            let other = repository.write(&[("Dockerfile", "FROM busybox\nRUN true\n")]);
            tenant.annotate("app", "another pipeline").await;
            other
        };
        let (superseded, other) = tokio::join!(shell.run(&lines), supersede);
        assert_failed(&superseded, &[&format!("app-4 of {other}: Succeeded ")]);
    })
    .await;
}

async fn a_pipeline_hears_why_no_run_is_made() {
    Tenant::fresh("pipeline-none", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let shell = pipeline(tenant, &repository);
        repository.write(&[("Dockerfile", "FROM busybox\n")]);
        let login = SecretRef { name: "registry-login".to_owned() };
        let build = Build::git(tenant, "app", &repository).amd64().with(|spec| image(spec).secret_ref = Some(login));
        tenant.create_build(&build).await;
        // Nothing will come: no need to wait for long.
        let none = shell.run(&lines().replace(PATIENCE, "--timeout=10s")).await;
        assert_failed(&none, &["SecretNotFound ", "registry-login"]);
    })
    .await;
}
