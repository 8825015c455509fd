//! What a user reads: `kubectl get`, `describe` and `explain`.

use kiln_e2e::build::file;
use kiln_e2e::shell::kubectl;
use kiln_e2e::tenant::image_of;
use kiln_e2e::{Build, Repository, Tenant};

kiln_e2e::tests![kubectl_get_and_describe, kubectl_describe_of_a_failed_one, kubectl_explain];

/// Heads and first row of a table, by head.
fn row(table: &str) -> Vec<(String, String)> {
    let mut lines = table.lines();
    let heads = lines.next().expect("a table has heads");
    let row = lines.next().expect("a table has a row");
    // Columns are parted by three spaces, and a value may hold single ones.
    let starts: Vec<_> = heads
        .match_indices(|c: char| c != ' ')
        .map(|(at, _)| at)
        .filter(|at| *at == 0 || heads[..*at].ends_with("   "))
        .collect();
    let cell = |line: &str, number: usize| {
        let end = starts.get(number + 1).copied().unwrap_or(usize::MAX).min(line.len());
        line.get(starts[number]..end).unwrap_or_default().trim().to_owned()
    };
    (0..starts.len()).map(|number| (cell(heads, number), cell(row, number))).collect()
}

async fn kubectl_get_and_describe() {
    Tenant::fresh("words", async |tenant| {
        let repository = Repository::public(tenant, "app");
        let commit = repository.write(&[("Dockerfile", "FROM busybox\n")]);
        let built = tenant.build(&Build::git(tenant, "app", &repository)).await;
        let digest = image_of(&built).digest;

        let columns = row(&kubectl(tenant, &["get", "imagebuilds"]));
        let heads: Vec<_> = columns.iter().map(|(head, _)| head.as_str()).collect();
        assert_eq!(heads, ["NAME", "READY", "REASON", "IMAGE", "COMMIT", "PLATFORMS", "DURATION", "AGE"]);
        let values: Vec<_> = columns.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values[..3], ["app", "True", "Succeeded"]);
        assert!(
            values[3].len() >= "sha256:".len() + 12 && digest.starts_with(values[3].trim_end_matches('…')),
            "a short digest: {:?} of {digest}",
            values[3]
        );
        assert!(values[4].len() >= 7 && commit.starts_with(values[4]), "a short commit: {:?} of {commit}", values[4]);
        assert_eq!(values[5].replace(' ', ""), "linux/amd64,linux/arm64");
        assert!(values[6].ends_with('s'), "a duration: {:?}", values[6]);

        let columns = row(&kubectl(tenant, &["get", "ibr", "app-1", "-o", "wide"]));
        let heads: Vec<_> = columns.iter().map(|(head, _)| head.as_str()).collect();
        assert_eq!(heads, ["NAME", "PHASE", "REASON", "IMAGE", "COMMIT", "BUILDERS", "DURATION", "AGE"]);
        assert_eq!(columns[1].1, "Succeeded");
        let columns = row(&kubectl(tenant, &["get", "bp"]));
        let heads: Vec<_> = columns.iter().map(|(head, _)| head.as_str()).collect();
        assert_eq!(heads, ["NAME", "READY", "DEFAULT", "PROFILE", "BUILDERS", "JOBS", "CACHE", "PLATFORMS", "AGE"]);
        let all = kubectl(tenant, &["get", "kiln", "-o", "name"]);
        for kind in ["imagebuild.kiln.build/app", "imagebuildrun.kiln.build/app-1"] {
            assert!(all.lines().any(|line| line == kind), "the category kiln holds {kind}: {all}");
        }
        let description = kubectl(tenant, &["describe", "imagebuild", "app"]);
        assert!(description.contains(&digest) && description.contains("Succeeded"), "{description}");
    })
    .await;
}

async fn kubectl_describe_of_a_failed_one() {
    Tenant::run("words-failed", async |tenant| {
        let build =
            Build::inline(tenant, "app", &[("Dockerfile", "FROM busybox\nRUN echo almost there; exit 4\n")]).amd64();
        tenant.create_build(&build).await;
        tenant.not_ready("app", "StepFailed").await;
        tenant.event("app", "StepFailed").await;
        let description = kubectl(tenant, &["describe", "imagebuild", "app"]);
        for words in
            ["StepFailed", "linux/amd64", "RUN echo almost there; exit 4", "almost there", "Events:", "Warning"]
        {
            assert!(description.contains(words), "{words:?} is in:\n{description}");
        }
        let events = description.split("Events:").nth(1).unwrap();
        assert!(events.contains("StepFailed"), "the Event is shown:\n{events}");
        let failed = row(&kubectl(tenant, &["get", "ib"]));
        assert_eq!((failed[1].1.as_str(), failed[2].1.as_str()), ("False", "StepFailed"));

        tenant.edit("app", |build| "FROM busybox\n".clone_into(file(&mut build.spec, "Dockerfile"))).await;
        tenant.built("app").await;
        // What scripts do.
        kubectl(tenant, &["wait", "imagebuild/app", "--for=condition=Ready", "--timeout=10s"]);
    })
    .await;
}

async fn kubectl_explain() {
    Tenant::run("explain", async |tenant| {
        for (path, words) in [
            (
                "imagebuild.spec",
                &[
                    "What to build.",
                    "The platforms to build. Omitted: the operator's default list.",
                    "Where the image goes.",
                ][..],
            ),
            ("imagebuild.spec.source.git", &["A branch, a tag, a full ref such as", "caRef", "interval"]),
            ("imagebuild.status", &["The last good image. A failure never takes it away."]),
            ("imagebuildrun.spec", &["Set it to true to stop the run."]),
            ("builderpool.spec", &["How long a builder stays warm without a job."]),
        ] {
            let explained = kubectl(tenant, &["explain", path]);
            let flowing = explained.split_whitespace().collect::<Vec<_>>().join(" ");
            for words in words {
                assert!(flowing.contains(words), "kubectl explain {path}: {words:?} is in\n{explained}");
            }
        }
    })
    .await;
}
