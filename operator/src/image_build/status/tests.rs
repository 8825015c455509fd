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
        // Its retries are used up.
        ("Failed", "BuilderLost", "Failed", ANOTHER_RUN),
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
