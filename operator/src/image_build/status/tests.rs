use serde_json::json;

use super::*;

/// A run of this phase, which tells why in its condition.
fn run(phase: &str, reason: &str) -> Arc<ImageBuildRun> {
    let is = if phase == "Succeeded" { "True" } else { "False" };
    let condition = json!({"type": "Succeeded", "status": is, "reason": reason, "message": "why", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let failure = (phase == "Failed").then(|| json!({"reason": reason, "message": "why"}));
    let run = json!({
        "metadata": {"name": "app-1", "uid": "r"},
        "spec": {
            "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "x", "commit": "0123456789abcdef",
            "build": {"image": {"repository": "registry.example/app"}},
        },
        "status": {
            "phase": phase, "conditions": [condition], "failure": failure,
            "startedAt": "2026-01-01T00:00:00.000000Z", "finishedAt": "2026-01-01T00:00:42.000000Z",
            "platforms": [{"name": "linux/amd64", "phase": "Queued"}, {"name": "linux/arm64", "phase": "Queued"}],
        },
    });
    Arc::new(serde_json::from_value(run).unwrap())
}

fn build(suspend: bool) -> ImageBuild {
    let build = json!({
        "metadata": {"name": "app", "uid": "u", "generation": 2},
        "spec": {"image": {"repository": "registry.example/app"}, "suspend": suspend},
    });
    serde_json::from_value(build).unwrap()
}

/// What kstatus, and so Flux and `kubectl wait`, make of conditions:
/// <https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>.
fn kstatus(status: &ImageBuildStatus) -> &'static str {
    let is = |kind: &str| find(&status.conditions, kind).is_some_and(|condition| condition.status == "True");
    match (is("Reconciling"), is("Stalled"), is("Ready")) {
        (false, true, false) => "Failed",
        (false, false, true) => "Current",
        // Ready is not True, also where nothing says why: it is waited for.
        (_, false, false) => "InProgress",
        contradiction => panic!("{contradiction:?}: {:#?}", status.conditions),
    }
}

#[test]
fn ready_is_said_of_what_is_written_now_alone() {
    let runs = |phase: &str, reason: &str| vec![run(phase, reason)];
    for (runs, suspend, held_back, reason, expected) in [
        (vec![], false, false, "Pending", "InProgress"),
        (vec![], true, false, "Suspended", "InProgress"),
        (runs("Building", "Building"), false, false, "Building", "InProgress"),
        (runs("Building", "Building"), true, false, "Building", "InProgress"),
        // It goes on to its end, and then says so.
        (runs("Building", "Building"), true, true, "Building", "InProgress"),
        (runs("Succeeded", "Succeeded"), false, false, "Succeeded", "Current"),
        (runs("Succeeded", "Succeeded"), true, false, "Succeeded", "Current"),
        (runs("Succeeded", "Succeeded"), true, true, "Suspended", "InProgress"),
        (runs("Failed", "StepFailed"), false, false, "StepFailed", "Failed"),
        (runs("Failed", "StepFailed"), true, false, "StepFailed", "Failed"),
        (runs("Failed", "StepFailed"), true, true, "Suspended", "InProgress"),
        (runs("Failed", "RegistryUnavailable"), false, false, "RegistryUnavailable", "InProgress"),
        // Nothing is made while it is suspended.
        (runs("Failed", "RegistryUnavailable"), true, false, "RegistryUnavailable", "Failed"),
        (runs("Failed", "RegistryUnavailable"), true, true, "Suspended", "InProgress"),
        (runs("Cancelled", "Cancelled"), false, false, "Cancelled", "Failed"),
        (runs("Cancelled", "Cancelled"), true, true, "Suspended", "InProgress"),
        (runs("Cancelled", "Superseded"), false, false, "Pending", "InProgress"),
    ] {
        let build = build(suspend);
        let status = status(&Observed { build: &build, runs: &runs, fault: None, held_back }, Timestamp::UNIX_EPOCH);
        let ready = find(&status.conditions, "Ready").unwrap();
        let case = format!("{reason}, suspend {suspend}, held back {held_back}");
        assert_eq!((ready.reason.as_str(), kstatus(&status)), (reason, expected), "{case}");
        assert_eq!(status.observed_generation, Some(2), "{case}");
    }
}

/// What only somebody's change can mend is stalled, also where Kiln looks for that change: whoever waits is told at once. What
/// Kiln tries again without anybody's change is in progress. Why is told once, what comes next beside it.
#[test]
fn stalled_is_what_waits_for_somebody() {
    let build = build(false);
    let fault = |class, reason| Fault { class, ..Fault::user(reason, "why") };
    let of_fault = [
        (FailureClass::Infrastructure, Reason::RegistryUnavailable, "InProgress", "why"),
        (FailureClass::Infrastructure, Reason::ContextNotReady, "InProgress", "why"),
        (FailureClass::Credential, Reason::SecretNotFound, "Failed", AFTER_SECRET),
        (FailureClass::Credential, Reason::RegistryUnauthorized, "Failed", AFTER_SECRET),
        (FailureClass::User, Reason::GitRefNotFound, "Failed", AFTER_MENDING),
        (FailureClass::User, Reason::PoolNotAllowed, "Failed", AFTER_MENDING),
    ];
    let of_fault = of_fault.map(|(class, reason, is, next)| (vec![], Some(fault(class, reason)), is, next));
    let of_run = [
        ("Pending", "WaitingForNode", "InProgress", "why"),
        ("Building", "RegistryUnavailable", "InProgress", "why"),
        ("Failed", "StepFailed", "Failed", ANOTHER_RUN),
        // Its retries are used up, and another run follows.
        ("Failed", "BuilderLost", "InProgress", "why; it is tried again at 2026-01-01T00:0"),
        ("Failed", "BuilderOutOfMemory", "Failed", ANOTHER_RUN),
        ("Failed", "PushDenied", "Failed", ANOTHER_RUN_AFTER_SECRET),
        ("Failed", "SourceUnauthorized", "Failed", ANOTHER_RUN_AFTER_SECRET),
        ("Failed", "TagConflict", "Failed", ANOTHER_RUN_AFTER_TAG),
        ("Cancelled", "Cancelled", "Failed", ANOTHER_RUN),
    ];
    let of_run = of_run.map(|(phase, reason, is, next)| (vec![run(phase, reason)], None, is, next));
    for (runs, fault, expected, next) in of_fault.into_iter().chain(of_run) {
        let observed = Observed { build: &build, runs: &runs, fault: fault.as_ref(), held_back: false };
        let status = status(&observed, Timestamp::UNIX_EPOCH);
        let case = format!("{:#?}", status.conditions);
        assert_eq!(kstatus(&status), expected, "{case}");
        let message = |kind: &str| find(&status.conditions, kind).unwrap().message.clone();
        assert!(message("Ready").contains("why"), "{case}");
        if expected == "Failed" {
            assert_eq!(message("Stalled"), format!("see the message of Ready; {next}"), "{case}");
        } else {
            assert!(message("Reconciling").contains(next), "{case}");
        }
    }
}

#[test]
fn a_first_failure_names_its_commit_platforms_and_duration() {
    let (build, runs) = (build(false), [run("Failed", "StepFailed")]);
    let status = status(&Observed { build: &build, runs: &runs, fault: None, held_back: false }, Timestamp::UNIX_EPOCH);
    assert_eq!(status.failure.unwrap().commit.as_deref(), Some("0123456789abcdef"));
    assert_eq!(find(&status.conditions, "Ready").unwrap().message, "app-1 of commit 0123456: why");
    let shown = Summary {
        image: None,
        commit: Some("0123456".to_owned()),
        platforms: Some("linux/amd64,linux/arm64".to_owned()),
        duration: Some("42s".to_owned()),
    };
    assert_eq!(status.summary, Some(shown));
}

/// The image of the newest run that pushed one is shown, whatever the clocks say by which it was pushed, and in whatever order
/// the runs end.
#[test]
fn the_image_is_that_of_the_newest_run_that_pushed_one() {
    let image = |number: u64, pushed_at: u64| {
        let digest = format!("sha256:{number}");
        json!({
            "ref": format!("registry.example/app@{digest}"), "repository": "registry.example/app", "digest": digest,
            "pushedAt": format!("2026-01-01T00:00:0{pushed_at}Z"),
        })
    };
    let pushed = |(number, pushed_at): (u64, u64)| {
        let mut pushed = (*run(if pushed_at > 0 { "Succeeded" } else { "Failed" }, "why")).clone();
        pushed.metadata.name = Some(format!("app-{number}"));
        pushed.spec.number = number;
        pushed.spec.commit = Some(number.to_string());
        let image = (pushed_at > 0).then(|| serde_json::from_value(image(number, pushed_at)).unwrap());
        pushed.status.as_mut().unwrap().image = image;
        Arc::new(pushed)
    };
    // The runs with the second in which each was pushed (0: it failed), what is known (the run whose image is shown, its
    // second, the newest run, and the run that is named for it), and what is shown.
    for (runs, known, shown) in [
        (vec![(1, 5)], None, (1, None)),
        (vec![(1, 5), (2, 6)], None, (2, None)),
        // Its clock is late, or it was held up.
        (vec![(1, 5), (2, 3)], None, (2, None)),
        (vec![(1, 9), (2, 3)], Some((2, 3, "app-2", None)), (2, None)),
        (vec![(1, 9), (2, 3)], Some((1, 9, "app-1", None)), (2, None)),
        (vec![(1, 5), (2, 0)], None, (1, Some("app-1"))),
        (vec![(1, 5), (2, 0)], Some((1, 5, "app-2", Some("app-1"))), (1, Some("app-1"))),
        // History has dropped the run.
        (vec![(1, 9), (3, 0)], Some((2, 5, "app-2", None)), (2, Some("app-2"))),
        (vec![(1, 9), (3, 0)], Some((2, 5, "app-3", Some("app-2"))), (2, Some("app-2"))),
        (vec![(3, 0)], Some((2, 5, "app-3", Some("app-2"))), (2, Some("app-2"))),
        (vec![(3, 2)], Some((2, 5, "app-2", None)), (3, None)),
        // A former version did not say whose image it is.
        (vec![(1, 5), (2, 0)], Some((1, 5, "app-2", None)), (1, Some("app-1"))),
        (vec![(1, 5), (2, 0)], Some((9, 5, "app-2", None)), (9, None)),
    ] {
        let mut build = build(false);
        if let Some((number, second, newest, by)) = known {
            let status = json!({"image": image(number, second), "run": newest, "imageRun": by, "source": {"commit": number.to_string()}});
            build.status = serde_json::from_value(status).unwrap();
        }
        let case = format!("{runs:?} {known:?}");
        let runs: Vec<_> = runs.into_iter().map(pushed).collect();
        for runs in [runs.clone(), runs.into_iter().rev().collect()] {
            let observed = Observed { build: &build, runs: &runs, fault: None, held_back: false };
            let status = status(&observed, Timestamp::UNIX_EPOCH);
            let image = status.image.as_ref().unwrap();
            assert_eq!(
                (image.digest.clone(), status.image_run.as_deref()),
                (format!("sha256:{}", shown.0), shown.1),
                "{case}"
            );
            let newest = runs.iter().enumerate().filter(|(_, run)| run.status.as_ref().unwrap().image.is_some());
            if let Some((index, _)) = newest.max_by_key(|(_, run)| run.spec.number) {
                assert!(super::shown(&runs).contains(&index), "{case}");
            }
        }
    }
}
