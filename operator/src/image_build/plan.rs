//! What should happen to an ImageBuild, from what was observed; pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build::{BuiltImage, GitSource, HistorySpec, PlatformSpec};
use kiln_crds::image_build_run::{RunPhase, SecretVersion};
use kiln_crds::platform::ARCHITECTURES;
use kiln_crds::{BuilderPool, ImageBuild, ImageBuildRun, Platform};
use kube::ResourceExt;

use crate::delay::successor;
use crate::reason::{Reason, is_credential, is_infrastructure};
use crate::references::Fault;
use crate::tags::late;

/// How often a ref is looked at unless its ImageBuild says it.
const INTERVAL: Duration = Duration::from_mins(5);

/// How many runs in a row are counted, as the schema bounds it.
pub const MOST_FAILED: u32 = 1_000_000;
/// The largest number of a run that is believed.
const LARGEST_NUMBER: u64 = 1_000_000_000;

/// The platforms to build, their names normalised.
pub fn platforms(named: Option<&[PlatformSpec]>, default: &[Platform]) -> Result<Vec<PlatformSpec>, Fault> {
    let invalid = |message: String| Fault::user(Reason::PlatformInvalid, message);
    let Some(named) = named else {
        return Ok(default.iter().map(|platform| PlatformSpec::named(platform.to_string())).collect());
    };
    let mut seen = BTreeSet::new();
    let mut platforms = Vec::new();
    for spec in named {
        let platform: Platform = spec.name.parse().map_err(|error| invalid(format!("platforms: {error}")))?;
        let taken = spec.image.is_some() || spec.archive.is_some();
        if !taken && !matches!(platform.os.as_str(), "linux" | "windows") {
            let message = format!(
                "platforms: {} cannot be built: Kiln builds linux images, and windows images that run nothing; name one \
                 that was built elsewhere in platforms[].image",
                spec.name
            );
            return Err(invalid(message));
        }
        if !taken && !platform.is_known() {
            return Err(invalid(format!("platforms: {}: {}", spec.name, unknown(&platform))));
        }
        let name = platform.to_string();
        if !seen.insert(name.clone()) {
            let message = format!("platforms: {} is {name}, which is in the list already: remove one", spec.name);
            return Err(invalid(message));
        }
        let build_on = match &spec.build_on {
            Some(on) => {
                let on: Platform = on.parse().map_err(|error| invalid(format!("platforms: buildOn: {error}")))?;
                if !on.is_known() {
                    return Err(invalid(format!("platforms: buildOn: {on}: {}", unknown(&on))));
                }
                Some(on.to_string())
            }
            None => None,
        };
        platforms.push(PlatformSpec { name, build_on, ..spec.clone() });
    }
    Ok(platforms)
}

/// Why nothing can be built for a platform.
fn unknown(platform: &Platform) -> String {
    if ARCHITECTURES.contains(&platform.architecture.as_str()) {
        format!("{} has no such variant", platform.architecture)
    } else {
        format!("there is no such architecture; images are for {}", ARCHITECTURES.join(", "))
    }
}

/// How often a Git repository is looked at. `None`: never again.
#[must_use]
pub fn interval(git: &GitSource) -> Option<Duration> {
    Some(git.interval.map_or(INTERVAL, Duration::from)).filter(|interval| !interval.is_zero())
}

/// When refs, and with them tags, are looked at again: at the shortest interval of a Git repository. `None`: never.
#[must_use]
pub fn next_look(build: &ImageBuild, looked_at: Timestamp) -> Option<Timestamp> {
    let contexts = build.spec.contexts.iter().filter_map(|context| context.git.as_ref());
    let interval = build.spec.git().into_iter().chain(contexts).filter_map(interval).min()?;
    looked_at.checked_add(interval).ok()
}

/// The last good image, where it has the content that is wanted: it is copied instead of being built again.
#[must_use]
pub fn copy_of(
    build: &ImageBuild,
    runs: &[Arc<ImageBuildRun>],
    platforms: &[PlatformSpec],
    content_hash: &str,
) -> Option<BuiltImage> {
    build.spec.image.as_ref()?;
    let image = build.status.as_ref()?.image.as_ref()?;
    let made = |run: &&Arc<ImageBuildRun>| {
        run.status.as_ref().is_some_and(|status| status.phase == RunPhase::Succeeded && status.image.is_some())
    };
    let newest = runs.iter().filter(made).max_by_key(|run| run.spec.number)?;
    let is_its = newest.status.as_ref()?.image.as_ref()?.digest == image.digest;
    let same = newest.spec.build.platforms.as_deref() == Some(platforms)
        && newest.spec.content_hash.as_deref() == Some(content_hash);
    (is_its && same).then(|| image.clone())
}

/// Whether the newest run should get a successor though nothing of the input has changed: it failed on a credential, and
/// one of the Secrets is another by now.
#[must_use]
pub fn credential_changed(newest: &ImageBuildRun, now: &[SecretVersion]) -> bool {
    newest.status.as_ref().is_some_and(|status| status.secrets != now)
}

/// What may make a run succeed that failed, though nothing of the input changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cure {
    /// Another credential.
    Credential,
    /// The ImageBuild that has a tag gives it up.
    Tag,
    /// What it needs, such as a registry, is there again: time alone tells.
    Time,
}

/// That of a run that failed.
#[must_use]
pub fn cure(run: &ImageBuildRun) -> Option<Cure> {
    let status = run.status.as_ref().filter(|status| status.phase == RunPhase::Failed)?;
    let reason = status.failure.as_ref()?.reason.as_str();
    if is_credential(reason) {
        return Some(Cure::Credential);
    }
    if is_infrastructure(reason) {
        return Some(Cure::Time);
    }
    // Where a tag has moved, it was not another ImageBuild that kept the run from it.
    let has_moved = status.tags.iter().any(|tag| tag.digest.is_some());
    (reason == Reason::TagConflict.as_str() && !has_moved).then_some(Cure::Tag)
}

/// How many runs in a row the infrastructure has ended, this one with them. They are counted by the runs themselves: history
/// may have dropped those before, and an operator that was started again goes on where the former one was.
#[must_use]
pub fn failed_in_a_row(newest: &ImageBuildRun) -> Option<u32> {
    (cure(newest) == Some(Cure::Time))
        .then(|| newest.spec.failed_before.unwrap_or(0).saturating_add(1).min(MOST_FAILED))
}

/// When a run that the infrastructure has ended is followed by another of the same input. `None`: something else ended it.
#[must_use]
pub fn successor_at(newest: &ImageBuildRun) -> Option<Timestamp> {
    let failed = failed_in_a_row(newest)?;
    let ended = newest.status.as_ref()?.finished_at.as_ref()?.0;
    let at = ended.checked_add(successor(failed, (newest.metadata.uid.as_deref(), newest.spec.number))).ok()?;
    // People read it, and nothing is done before it.
    Timestamp::from_second(at.as_second() + 1).ok()
}

/// The finished runs that history has no room for. The newest run always stays, and for a time one that wrote a tag without an
/// answer: it alone says so.
#[must_use]
pub fn to_trim(runs: &[Arc<ImageBuildRun>], history: Option<&HistorySpec>, now: Timestamp) -> Vec<Arc<ImageBuildRun>> {
    let is_unknown = |run: &ImageBuildRun| {
        let mut writes = run.status.iter().flat_map(|status| &status.tags).filter_map(|tag| tag.unknown.as_ref());
        writes.any(|write| late::is_reckoned(write, now))
    };
    let mut runs = runs.to_vec();
    runs.sort_by_key(|run| std::cmp::Reverse(run.spec.number));
    let keep = |limit: Option<u32>| limit.unwrap_or(3) as usize;
    let mut good = keep(history.and_then(|history| history.successful));
    let mut bad = keep(history.and_then(|history| history.failed));
    let mut surplus = Vec::new();
    for (position, run) in runs.iter().enumerate() {
        let room = match run.status.as_ref().map(|status| status.phase) {
            Some(RunPhase::Succeeded) => &mut good,
            Some(RunPhase::Failed | RunPhase::Cancelled) => &mut bad,
            _ => continue,
        };
        if *room > 0 {
            *room -= 1;
        } else if position > 0 && !is_unknown(run) {
            surplus.push(run.clone());
        }
    }
    surplus
}

/// The number of the next run: one more than the last recorded.
#[must_use]
pub fn next_number(name: &str, recorded: Option<&str>, runs: &[Arc<ImageBuildRun>]) -> u64 {
    runs.iter().map(|run| run.spec.number).chain(recorded_number(name, recorded)).max().unwrap_or(0) + 1
}

/// The number of the run that the status names.
#[must_use]
pub fn recorded_number(name: &str, recorded: Option<&str>) -> Option<u64> {
    let number = recorded.and_then(|run| run.strip_prefix(name)?.strip_prefix('-')?.parse().ok());
    // Kiln counts from one: what is as large as the schema lets pass, somebody else has written.
    number.filter(|number| *number <= LARGEST_NUMBER)
}

/// Whether the pool has builders of the architectures that `buildOn` names. Whether a platform without it can be built is
/// found out by a builder: one whose stages only copy files needs no node of its own.
pub fn served(platforms: &[PlatformSpec], pool: &BuilderPool) -> Result<(), Fault> {
    let Some(architectures) = &pool.spec.architectures else { return Ok(()) };
    for on in platforms.iter().filter_map(|spec| spec.build_on.as_ref()) {
        let architecture = on.parse::<Platform>().map(|platform| platform.architecture).unwrap_or_default();
        if !architectures.contains(&architecture) {
            let message = format!(
                "platforms: buildOn names {on}, and the BuilderPool {} builds on {}: name one of these, or another pool",
                pool.name_any(),
                architectures.join(", ")
            );
            return Err(Fault::user(Reason::PlatformInvalid, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::input::spec_text;
    use super::*;
    use kiln_crds::ImageBuildSpec;
    use kiln_crds::image_build_run::ImageBuildRunStatus;

    fn build(name: &str, second: i64, repository: &str, tags: &[&str]) -> Arc<ImageBuild> {
        let spec = serde_json::json!({
            "source": {"git": {"url": "https://git.example/app.git"}},
            "image": {"repository": repository, "tags": tags},
        });
        let mut build = ImageBuild::new(name, serde_json::from_value(spec).unwrap());
        build.metadata.uid = Some(name.to_owned());
        build.metadata.namespace = Some("ns".to_owned());
        let created = Timestamp::from_second(second).unwrap();
        build.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        Arc::new(build)
    }

    fn run(number: u64, phase: RunPhase) -> Arc<ImageBuildRun> {
        let spec = serde_json::json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": number, "inputHash": "v1:x",
            "build": build("app", 0, "r.example/app", &[]).spec,
        });
        let mut run = ImageBuildRun::new(&format!("app-{number}"), serde_json::from_value(spec).unwrap());
        run.status = Some(ImageBuildRunStatus { phase, ..ImageBuildRunStatus::default() });
        Arc::new(run)
    }

    #[test]
    fn platforms_are_normalised_and_told_apart() {
        let names = |names: &[&str]| {
            let specs: Vec<PlatformSpec> =
                names.iter().map(|name| serde_json::from_value(serde_json::json!({"name": name})).unwrap()).collect();
            platforms(Some(&specs), &[])
                .map(|platforms| platforms.into_iter().map(|platform| platform.name).collect::<Vec<_>>().join(" "))
                .map_err(|fault| fault.reason)
        };
        assert_eq!(names(&["linux/x86_64", "linux/aarch64"]).as_deref(), Ok("linux/amd64 linux/arm64"));
        assert_eq!(names(&["linux/amd64", "linux/x86_64"]), Err(Reason::PlatformInvalid));
        assert_eq!(names(&["windows(10.0.20348)/x86_64"]).as_deref(), Ok("windows(10.0.20348)/amd64"));
        assert_eq!(names(&["darwin/arm64"]), Err(Reason::PlatformInvalid));
        assert_eq!(names(&["linux/amd46"]), Err(Reason::PlatformInvalid));
        assert_eq!(names(&["linux/arm/v9"]), Err(Reason::PlatformInvalid));
        let one = |json: serde_json::Value| platforms(Some(&[serde_json::from_value(json).unwrap()]), &[]);
        let taken = one(serde_json::json!({"name": "darwin/arm64", "image": "r.example/app:mac"})).unwrap();
        assert_eq!(taken[0].name, "darwin/arm64", "what is not built may be for anything");
        let cross = one(serde_json::json!({"name": "linux/arm64", "buildOn": "linux/x86_64"})).unwrap();
        assert_eq!(cross[0].build_on.as_deref(), Some("linux/amd64"));
        let mut pool: BuilderPool = BuilderPool::new("p", serde_json::from_value(serde_json::json!({})).unwrap());
        assert_eq!(served(&cross, &pool), Ok(()));
        pool.spec.architectures = Some(vec!["amd64".into()]);
        assert_eq!(served(&cross, &pool), Ok(()));
        pool.spec.architectures = Some(vec!["arm64".into()]);
        assert_eq!(served(&cross, &pool).map_err(|fault| fault.reason), Err(Reason::PlatformInvalid));
        let default = platforms(None, &["linux/arm64".parse().unwrap()]).unwrap();
        assert_eq!(default[0].name, "linux/arm64");
    }

    #[test]
    fn another_tag_copies_and_another_content_builds() {
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let image = |n: u8| -> BuiltImage {
            serde_json::from_value(serde_json::json!({
                "ref": format!("r.example/app@{}", digest(n)), "repository": "r.example/app", "digest": digest(n),
                "pushedAt": "2026-01-01T00:00:00Z",
            }))
            .unwrap()
        };
        let platforms = platforms(None, &["linux/amd64".parse().unwrap()]).unwrap();
        let made = |number: u64, build: &ImageBuild, phase: RunPhase, n: u8, rebuild: Option<&str>| {
            let mut made = (*run(number, phase)).clone();
            made.spec.build = ImageBuildSpec { platforms: Some(platforms.clone()), ..build.spec.clone() };
            made.spec.content_hash = Some(spec_text(&build.spec, rebuild, false));
            made.status.as_mut().unwrap().image = (phase == RunPhase::Succeeded).then(|| image(n));
            Arc::new(made)
        };
        let former = build("app", 0, "r.example/app", &["a"]);
        let mut now = (*build("app", 0, "r.example/other", &["b"])).clone();
        now.status = serde_json::from_value(serde_json::json!({"image": image(1)})).unwrap();
        let copied = |now: &ImageBuild, runs: &[Arc<ImageBuildRun>], rebuild: Option<&str>| {
            let content = spec_text(&now.spec, rebuild, false);
            copy_of(now, runs, &platforms, &content).is_some()
        };
        let good = made(1, &former, RunPhase::Succeeded, 1, None);
        assert!(copied(&now, std::slice::from_ref(&good), None));
        assert!(!copied(&now, std::slice::from_ref(&good), Some("again")), "a rebuild builds");
        let failed = made(2, &former, RunPhase::Failed, 0, None);
        assert!(copied(&now, &[good.clone(), failed], None), "what failed has no image");
        let rebuilt = made(1, &former, RunPhase::Succeeded, 1, Some("again"));
        assert!(copied(&now, &[rebuilt], Some("again")));
        let other = made(2, &former, RunPhase::Succeeded, 2, None);
        assert!(!copied(&now, &[good.clone(), other], None), "the last good image is not of the newest run");
        let mut more = now.clone();
        more.spec.args = [("A".to_owned(), "1".to_owned())].into();
        assert!(!copied(&more, std::slice::from_ref(&good), None));
        let mut check = now.clone();
        check.spec.image = None;
        assert!(!copied(&check, &[good], None), "nothing is pushed");
    }

    #[test]
    fn what_failed_for_what_stands_elsewhere_is_tried_again() {
        use kiln_crds::image_build::{BuildFailure, TagStatus};
        let failed = |reason: &str, moved: bool| {
            let mut failed = (*run(1, RunPhase::Failed)).clone();
            let status = failed.status.as_mut().unwrap();
            status.failure = Some(Box::new(BuildFailure { reason: reason.into(), ..BuildFailure::default() }));
            let digest = moved.then(|| "sha256:1".into());
            status.tags = vec![TagStatus {
                repository: "r.example/app".into(),
                tag: "v1".into(),
                digest,
                ..TagStatus::default()
            }];
            failed
        };
        assert_eq!(cure(&failed("PushDenied", false)), Some(Cure::Credential));
        assert_eq!(cure(&failed("TagConflict", false)), Some(Cure::Tag));
        assert_eq!(cure(&failed("TagConflict", true)), None, "something outside of Kiln keeps moving it");
        assert_eq!(cure(&failed("StepFailed", false)), None);
        assert_eq!(cure(&failed("RegistryUnavailable", true)), Some(Cure::Time));
        assert_eq!(cure(&run(1, RunPhase::Succeeded)), None);
    }

    /// A run that failed at second 1000 for this reason, after so many others.
    fn failed_after(reason: &str, before: Option<u32>, number: u64) -> Arc<ImageBuildRun> {
        let mut failed = (*run(number, RunPhase::Failed)).clone();
        failed.spec.failed_before = before;
        failed.metadata.uid = Some(format!("uid-{number}"));
        let status = failed.status.as_mut().unwrap();
        let failure = kiln_crds::image_build::BuildFailure { reason: reason.into(), ..Default::default() };
        status.failure = Some(Box::new(failure));
        let at = Timestamp::from_second(1000).unwrap();
        status.finished_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at));
        Arc::new(failed)
    }

    #[test]
    fn what_the_infrastructure_ended_is_followed_later_and_later() {
        for (reason, before, in_a_row, seconds) in [
            ("RegistryUnavailable", None, Some(1), 20..=40),
            ("BuilderLost", Some(1), Some(2), 40..=80),
            ("GitUnavailable", Some(2), Some(3), 80..=160),
            ("DownloadFailed", Some(6), Some(7), 900..=1800),
            ("AgentFailed", Some(1000), Some(1001), 900..=1800),
            ("AgentFailed", Some(MOST_FAILED), Some(MOST_FAILED), 900..=1800),
        ] {
            let failed = failed_after(reason, before, 7);
            assert_eq!(failed_in_a_row(&failed), in_a_row, "{reason}");
            let after = successor_at(&failed).unwrap().as_second() - 1000;
            assert!((*seconds.start()..=seconds.end() + 1).contains(&after), "{reason} {before:?}: {after} s");
        }
        for reason in ["StepFailed", "BuildTimeout", "NoSpaceLeft", "PushDenied", "TagConflict"] {
            assert_eq!(successor_at(&failed_after(reason, Some(3), 7)), None, "{reason}");
        }
        assert_eq!(successor_at(&run(7, RunPhase::Succeeded)), None);
        assert_eq!(successor_at(&run(7, RunPhase::Building)), None);
    }

    /// Each is made a run at a time, the operator forgets all between, and history is trimmed as it is by default.
    #[test]
    fn runs_that_fail_for_a_day_do_not_pile_up() {
        let mut runs = vec![run(1, RunPhase::Succeeded), failed_after("RegistryUnavailable", None, 2)];
        let mut waited = 0;
        let mut made = 0;
        while waited < 24 * 3600 {
            let newest = runs.iter().max_by_key(|run| run.spec.number).unwrap();
            waited += successor_at(newest).unwrap().as_second() - 1000;
            let next = failed_after("RegistryUnavailable", failed_in_a_row(newest), newest.spec.number + 1);
            runs.push(next);
            made += 1;
            for surplus in to_trim(&runs, None, Timestamp::UNIX_EPOCH) {
                runs.retain(|run| run.spec.number != surplus.spec.number);
            }
            assert!(runs.len() <= 4, "{}", runs.len());
        }
        assert!((48..110).contains(&made), "{made} in a day");
        assert!(runs.iter().any(|run| run.spec.number == 1), "what succeeded is kept");
    }

    #[test]
    fn history_keeps_the_newest_and_its_limits() {
        use RunPhase::{Building, Failed, Succeeded};
        let runs = [(1, Succeeded), (2, Failed), (3, Succeeded), (4, Failed), (5, Succeeded), (6, Building)]
            .map(|(n, p)| run(n, p));
        let trimmed = |successful, failed| {
            let history = HistorySpec { successful: Some(successful), failed: Some(failed) };
            to_trim(&runs, Some(&history), Timestamp::UNIX_EPOCH).iter().map(|run| run.spec.number).collect::<Vec<_>>()
        };
        assert_eq!(trimmed(1, 1), [3, 2, 1]);
        assert_eq!(trimmed(9, 0), [4, 2]);
        let newest = [run(1, Failed), run(2, Failed)];
        let none = HistorySpec { successful: Some(0), failed: Some(0) };
        let now = Timestamp::from_second(1_000_000).unwrap();
        assert_eq!(to_trim(&newest, Some(&none), now).len(), 1);
        assert_eq!(to_trim(&newest, None, now).len(), 0);
        // Nobody else knows of its write.
        for (second, trimmed) in [(now.as_second() - 3000, 0), (now.as_second() - 4000, 1)] {
            let mut older = (*run(1, Failed)).clone();
            let unknown = serde_json::json!({"sentAt": Timestamp::from_second(second).unwrap().to_string().replace('Z', ".000000Z")});
            let tag = serde_json::json!([{"repository": "r.example/app", "tag": "v1", "unknown": unknown}]);
            older.status.as_mut().unwrap().tags = serde_json::from_value(tag).unwrap();
            assert_eq!(to_trim(&[Arc::new(older), run(2, Failed)], Some(&none), now).len(), trimmed);
        }
    }

    #[test]
    fn numbers_go_on_from_the_last_recorded() {
        assert_eq!(next_number("app", None, &[]), 1);
        assert_eq!(next_number("app", Some("app-7"), &[run(3, RunPhase::Failed)]), 8);
        assert_eq!(next_number("app", Some("app-7"), &[run(9, RunPhase::Failed)]), 10);
        assert_eq!(next_number("app", Some("app-x-1"), &[]), 1);
    }

    #[test]
    fn zero_means_never_look_again() {
        let mut build = (*build("app", 0, "r.example/app", &[])).clone();
        let at = Timestamp::from_second(1000).unwrap();
        assert_eq!(next_look(&build, at).map(Timestamp::as_second), Some(1300));
        if let Some(git) = build.spec.source.as_mut().and_then(|source| source.git.as_mut()) {
            git.interval = serde_json::from_str("\"0s\"").ok();
        }
        assert_eq!(next_look(&build, at), None);
        let contexts = serde_json::json!([
            {"name": "a", "git": {"url": "https://git.example/a.git", "interval": "90s"}},
            {"name": "b", "git": {"url": "https://git.example/b.git"}},
        ]);
        build.spec.contexts = serde_json::from_value(contexts).unwrap();
        assert_eq!(next_look(&build, at).map(Timestamp::as_second), Some(1090), "the shortest of all");
    }
}
