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
