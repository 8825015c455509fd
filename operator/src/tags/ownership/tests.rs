use super::*;
use kiln_crds::image_build_run::{ImageBuildRunStatus, RunPhase};
use serde_json::{Value, json};

const REPOSITORY: &str = "r.example/app";

pub(in crate::tags) fn tag(repository: &str, tag: &str) -> TagStatus {
    TagStatus { repository: repository.into(), tag: tag.into(), ..TagStatus::default() }
}

fn moved(repository: &str, name: &str, second: i64) -> TagStatus {
    let at = Timestamp::from_second(second).unwrap();
    TagStatus { digest: Some(format!("sha256:{second}")), moved_at: Some(MicroTime(at)), ..tag(repository, name) }
}

/// An ImageBuild whose name is its UID.
fn build(uid: &str, namespace: &str, image: impl Into<Value>, tags: Vec<TagStatus>) -> ImageBuild {
    let spec = json!({"source": {"git": {"url": "https://git.example/app.git"}}, "image": image.into()});
    let mut build = ImageBuild::new(uid, serde_json::from_value(spec).unwrap());
    build.metadata.uid = Some(uid.to_owned());
    build.metadata.namespace = Some(namespace.to_owned());
    build.status = Some(kiln_crds::ImageBuildStatus { tags, ..kiln_crds::ImageBuildStatus::default() });
    build
}

fn image(tags: &[&str]) -> Value {
    json!({"repository": REPOSITORY, "tags": tags})
}

/// A run that publishes these tags now.
pub(in crate::tags) fn moving(uid: &str, namespace: &str, tags: &[&str]) -> ImageBuildRun {
    let spec = json!({
        "imageBuild": {"name": uid, "uid": uid}, "number": 1, "inputHash": "v1:x",
        "build": build(uid, namespace, image(tags), Vec::new()).spec,
    });
    let mut run = ImageBuildRun::new(&format!("{uid}-1"), serde_json::from_value(spec).unwrap());
    run.metadata.uid = Some(format!("{uid}-1"));
    run.metadata.namespace = Some(namespace.to_owned());
    run.status = Some(ImageBuildRunStatus {
        phase: RunPhase::Publishing,
        tags: tags.iter().map(|name| tag(REPOSITORY, name)).collect(),
        ..ImageBuildRunStatus::default()
    });
    run
}

/// Who has the tag that `new` wants, as the message says it.
fn asked_in(namespace: &str, wanted: &TagStatus, builds: &[ImageBuild], runs: &[ImageBuildRun]) -> String {
    let builds: Vec<_> = builds.iter().cloned().map(Arc::new).collect();
    let runs: Vec<_> = runs.iter().cloned().map(Arc::new).collect();
    let asker = Asker { uid: "new", namespace, claimed_at: None };
    let found = owner(std::slice::from_ref(wanted), asker, &builds, &runs);
    found.map(|conflict| conflict.fault(asker).message).unwrap_or_default()
}

fn asked(wanted: &TagStatus, builds: &[ImageBuild]) -> String {
    asked_in("ns", wanted, builds, &[])
}

#[test]
fn a_tag_is_the_last_movers_while_its_spec_can_give_it() {
    let stable = tag(REPOSITORY, "stable");
    let had = || vec![moved(REPOSITORY, "stable", 5)];
    let other = |image: Value, tags: Vec<TagStatus>| build("old", "ns", image, tags);
    let copies = |tags: &[&str]| json!({"repository": "r.example/else", "tags": ["x"], "copies": [{"repository": REPOSITORY, "tags": tags}]});
    for (what, other, is_owner) in vec![
        ("literal", other(image(&["stable"]), had()), true),
        ("a template that can give it", other(image(&["{{branch}}"]), had()), true),
        ("a template that cannot", other(image(&["{{shortCommit}}"]), had()), false),
        ("an older spec that has never pushed", other(image(&["stable"]), Vec::new()), false),
        ("only claimed", other(image(&["stable"]), vec![stable.clone()]), false),
        ("another tag by now", other(image(&["next"]), had()), false),
        ("another repository by now", other(json!({"repository": "r.example/b", "tags": ["stable"]}), had()), false),
        ("no image any more", other(Value::Null, had()), false),
        ("among its copies", other(copies(&["stable"]), had()), true),
        ("a copy's template", other(copies(&["{{branch}}"]), had()), true),
        ("a copy with other tags", other(copies(&["y"]), had()), false),
    ] {
        let said = asked(&stable, &[other]);
        assert_eq!(!said.is_empty(), is_owner, "{what}: {said}");
    }
}

#[test]
fn neither_age_nor_namespace_nor_what_became_of_it_counts() {
    let stable = tag(REPOSITORY, "stable");
    let other = build("old", "elsewhere", image(&["stable"]), vec![moved(REPOSITORY, "stable", 5)]);
    let message =
        "an ImageBuild of another namespace has the tag stable of r.example/app: write another tag or repository";
    assert_eq!(asked(&stable, std::slice::from_ref(&other)), message);
    let same = "the ImageBuild old has the tag stable of r.example/app: write another tag or repository";
    assert_eq!(asked_in("elsewhere", &stable, std::slice::from_ref(&other), &[]), same);

    let mut suspended = other.clone();
    suspended.spec.suspend = true;
    assert!(!asked(&stable, &[suspended]).is_empty(), "suspended");
    let mut failed = moving("old", "elsewhere", &["stable"]);
    failed.status = Some(ImageBuildRunStatus { phase: RunPhase::Failed, ..ImageBuildRunStatus::default() });
    assert!(!asked_in("ns", &stable, std::slice::from_ref(&other), &[failed]).is_empty(), "its last run failed");
    let mut deleted = other.clone();
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    assert_eq!(asked(&stable, &[deleted]), "", "who deletes an ImageBuild gives its tags up");
    let again = ImageBuild { status: None, ..other.clone() };
    assert_eq!(asked(&stable, &[again]), "", "made again, it has moved nothing");
    let itself = build("new", "ns", image(&["stable"]), vec![moved(REPOSITORY, "stable", 5)]);
    assert_eq!(asked(&stable, &[itself]), "");
}

#[test]
fn of_two_that_can_give_it_the_last_to_move_it_has_it() {
    let stable = tag(REPOSITORY, "stable");
    let one = |uid: &str, second| build(uid, "ns", image(&["stable"]), vec![moved(REPOSITORY, "stable", second)]);
    assert_eq!(asked(&stable, &[one("new", 9), one("old", 5)]), "");
    assert_eq!(asked(&stable, &[one("old", 5), one("new", 9)]), "");
    assert!(asked(&stable, &[one("new", 5), one("old", 9)]).starts_with("the ImageBuild old has"));
    assert!(asked(&stable, &[one("old", 9), one("new", 5)]).starts_with("the ImageBuild old has"));
    assert_eq!(asked(&stable, &[one("old", 5), one("new", 5)]), "", "of the same time, the smaller UID");
}

#[test]
fn a_repository_has_many_names() {
    for (theirs, ours) in [
        ("app", "docker.io/library/app"),
        ("index.docker.io/library/app", "app"),
        ("docker.io:443/app", "app"),
        ("R.Example:443/app", "r.example/app"),
        ("r.example/app", "r.example:443/app"),
    ] {
        let other = build("old", "ns", json!({"repository": theirs, "tags": ["v1"]}), vec![moved(theirs, "v1", 5)]);
        assert!(!asked(&tag(ours, "v1"), &[other]).is_empty(), "{theirs} {ours}");
    }
    for odd in ["r.example:0443/app", "10.1/app", "012.0.0.1/app", "[0:0::1]:5000/app"] {
        assert!(odd.parse::<Repository>().is_err(), "{odd} would be another name of a place");
    }
    let other =
        build("old", "ns", json!({"repository": "r.example:444/app"}), vec![moved("r.example:444/app", "v1", 5)]);
    assert_eq!(asked(&tag("r.example/app", "v1"), &[other]), "");
}

#[test]
fn templates_that_never_meet_do_not_conflict() {
    let values = |branch| Values { reference: Some(branch), commit: None, created: Timestamp::UNIX_EPOCH, number: 1 };
    let main = build("new", "ns", image(&["{{branch}}"]), Vec::new());
    let wanted = wanted(&main.spec, values("refs/heads/main")).unwrap();
    let other = |moved_to| build("old", "ns", image(&["{{branch}}"]), vec![moved(REPOSITORY, moved_to, 5)]);
    assert_eq!(asked(&wanted[0], &[other("dev")]), "");
    assert!(!asked(&wanted[0], &[other("main")]).is_empty());
}

#[test]
fn tags_are_wanted_once_and_of_every_repository() {
    let spec = build(
        "new",
        "ns",
        json!({
            "repository": "r.example:443/app", "tags": ["v1", "r{{run}}"],
            "copies": [{"repository": "r.example/app", "tags": ["v1", "v2"]}, {"repository": "app"}],
        }),
        Vec::new(),
    );
    let values = Values { reference: None, commit: None, created: Timestamp::UNIX_EPOCH, number: 7 };
    let all: Vec<String> =
        wanted(&spec.spec, values).unwrap().into_iter().map(|tag| format!("{}:{}", tag.repository, tag.tag)).collect();
    assert_eq!(
        all,
        [
            "r.example:443/app:v1",
            "r.example:443/app:r7",
            "r.example/app:v2",
            "docker.io/library/app:v1",
            "docker.io/library/app:r7"
        ]
    );
}

#[test]
fn written_out_tags_stay_and_of_the_others_the_newest() {
    let many = |count: i64| (0..count).map(|n| moved(REPOSITORY, &format!("r{n}"), n + 10)).collect::<Vec<_>>();
    let mut tags = many(40);
    tags.push(moved(REPOSITORY, "stable", 1));
    let of = build("old", "ns", image(&["stable", "r{{run}}"]), tags);
    let held = held(&of, []);
    assert_eq!(held.len(), FILLED + 1);
    assert_eq!(
        (held[0].tag.as_str(), held[FILLED - 1].tag.as_str(), held[FILLED].tag.as_str()),
        ("r39", "r8", "stable")
    );
    assert_eq!(asked(&tag(REPOSITORY, "r7"), std::slice::from_ref(&of)), "", "too old");
    assert!(!asked(&tag(REPOSITORY, "r8"), std::slice::from_ref(&of)).is_empty());
}

#[test]
fn runs_tell_what_the_status_does_not_yet() {
    let stable = tag(REPOSITORY, "stable");
    let old = build("old", "ns", image(&["stable"]), Vec::new());
    let run = |phase, tags: Vec<TagStatus>| {
        let mut run = moving("old", "ns", &[]);
        run.status = Some(ImageBuildRunStatus { phase, tags, ..ImageBuildRunStatus::default() });
        run
    };
    let builds = std::slice::from_ref(&old);
    let succeeded = run(RunPhase::Succeeded, vec![moved(REPOSITORY, "stable", 5)]);
    assert!(!asked_in("ns", &stable, builds, std::slice::from_ref(&succeeded)).is_empty());
    let half = run(RunPhase::Failed, vec![moved(REPOSITORY, "stable", 5)]);
    assert!(!asked_in("ns", &stable, builds, &[half]).is_empty(), "it failed at another tag");
    assert_eq!(asked_in("ns", &stable, builds, &[run(RunPhase::Failed, vec![stable.clone()])]), "");
    let mut foreign = succeeded.clone();
    foreign.metadata.namespace = Some("elsewhere".into());
    assert_eq!(asked_in("ns", &stable, builds, &[foreign]), "", "a run of another namespace speaks for nobody here");
    assert_eq!(held(&old, [&succeeded]), [moved(REPOSITORY, "stable", 5)]);

    // From before tags were recorded.
    let mut before = old.clone();
    before.status = serde_json::from_value(json!({"image": {
        "ref": "r", "repository": REPOSITORY, "tags": ["stable"], "digest": "sha256:0", "pushedAt": "2026-01-01T00:00:00Z",
    }}))
    .unwrap();
    assert!(!asked(&stable, &[before]).is_empty());
}

#[test]
fn a_cache_has_no_tags_but_must_not_take_others() {
    let mut spec = build("new", "ns", image(&["v1"]), Vec::new()).spec;
    assert_eq!(of_cache(&spec, ["linux/amd64"]), []);
    spec.cache = serde_json::from_value(json!({"registry": {"ref": "r.example/app:v1"}})).unwrap();
    let cache = of_cache(&spec, ["linux/amd64", "linux/arm64"]);
    assert_eq!(cache, [tag(REPOSITORY, "v1-linux-amd64"), tag(REPOSITORY, "v1-linux-arm64")]);
}
