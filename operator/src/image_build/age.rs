//! How old an image's cache is, for `cache.maxAge`; pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build_run::RunPhase;
use kiln_crds::{ImageBuild, ImageBuildRun};
use kube::ResourceExt;

use crate::condition::seconds;

/// Since when the cache grows old: when the newest successful run began that used none. The first one of an ImageBuild
/// counts as such a run: what it found was others' and is not known.
#[must_use]
pub fn cache_since(former: Option<&Time>, runs: &[Arc<ImageBuildRun>]) -> Option<Time> {
    let began = |run: &Arc<ImageBuildRun>| {
        let status = run.status.as_ref().filter(|status| status.phase == RunPhase::Succeeded)?;
        // A copy builds nothing.
        status.started_at.as_ref().filter(|_| !is_copy(run)).map(|at| Time(seconds(at.0)))
    };
    let without = runs.iter().filter(|run| run.spec.fresh || run.spec.build.no_cache).filter_map(began);
    let newest = without.chain(former.cloned()).max_by_key(|at| at.0);
    newest.or_else(|| runs.iter().filter_map(began).min_by_key(|at| at.0))
}

fn is_copy(run: &ImageBuildRun) -> bool {
    run.spec.copy_of.is_some() && run.status.as_ref().is_none_or(|status| status.copy_failure.is_none())
}

/// Whether the cache is so old that a run that is made now uses none.
#[must_use]
pub fn too_old(build: &ImageBuild, since: Option<&Time>, now: Timestamp) -> bool {
    limit(build).zip(since).and_then(|(limit, since)| since.0.checked_add(limit).ok()).is_some_and(|end| end <= now)
}

/// When a run without cache is made though nothing else has changed. One that fails is made again only after the same time.
#[must_use]
pub fn fresh_at(build: &ImageBuild, since: Option<&Time>, runs: &[Arc<ImageBuildRun>]) -> Option<Timestamp> {
    let limit = limit(build)?;
    let tried = runs.iter().filter(|run| run.spec.fresh).filter_map(|run| run.creation_timestamp());
    let last = tried.chain(since.cloned()).max_by_key(|at| at.0).filter(|_| since.is_some())?;
    last.0.checked_add(limit).ok()
}

fn limit(build: &ImageBuild) -> Option<Duration> {
    build.spec.source.as_ref()?;
    build.spec.cache.as_ref()?.max_age.map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `at` seconds after the epoch: when it was made and began.
    fn run(number: u64, at: i64, phase: RunPhase, more: &serde_json::Value) -> Arc<ImageBuildRun> {
        let mut spec = serde_json::json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": number, "inputHash": "v1:x",
            "build": {"source": {"inline": {"files": {}}}},
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut run = ImageBuildRun::new(&format!("app-{number}"), serde_json::from_value(spec).unwrap());
        let at = Timestamp::from_second(at).unwrap();
        run.metadata.creation_timestamp = Some(Time(at));
        let status = serde_json::json!({"phase": phase, "startedAt": at.to_string()});
        run.status = Some(serde_json::from_value(status).unwrap());
        Arc::new(run)
    }

    fn build(max_age: Option<&str>) -> ImageBuild {
        let spec = serde_json::json!({"source": {"inline": {"files": {}}}, "cache": {"maxAge": max_age}});
        ImageBuild::new("app", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_cache_grows_old_from_the_newest_good_run_without_one() {
        use RunPhase::{Failed, Succeeded};
        let plain = || serde_json::json!({});
        let fresh = || serde_json::json!({"fresh": true});
        let copy = || {
            let image =
                serde_json::json!({"ref": "r", "repository": "r", "digest": "d", "pushedAt": "2026-01-01T00:00:00Z"});
            serde_json::json!({"fresh": true, "copyOf": image})
        };
        let no_cache = || serde_json::json!({"build": {"source": {"inline": {"files": {}}}, "noCache": true}});
        let since = |former: Option<i64>, runs: &[Arc<ImageBuildRun>]| {
            let former = former.map(|at| Time(Timestamp::from_second(at).unwrap()));
            cache_since(former.as_ref(), runs).map(|at| at.0.as_second())
        };
        assert_eq!(since(None, &[run(1, 10, Failed, &plain())]), None);
        let first = [run(1, 10, Failed, &plain()), run(2, 20, Succeeded, &plain()), run(3, 30, Succeeded, &plain())];
        assert_eq!(since(None, &first), Some(20), "the first good one");
        assert_eq!(since(Some(20), &first[2..]), Some(20), "when history has dropped it too");
        assert_eq!(since(Some(20), &[run(4, 40, Succeeded, &fresh())]), Some(40));
        assert_eq!(since(Some(20), &[run(4, 40, Succeeded, &no_cache())]), Some(40));
        assert_eq!(since(Some(20), &[run(4, 40, Failed, &fresh())]), Some(20));
        assert_eq!(since(Some(20), &[run(4, 40, Succeeded, &copy())]), Some(20));
        assert_eq!(since(Some(50), &[run(4, 40, Succeeded, &fresh())]), Some(50), "a time that history has dropped");
    }

    #[test]
    fn a_fresh_run_is_due_once_for_each_span() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let since = Time(at(100));
        let due = |build: &ImageBuild, since: Option<&Time>, runs: &[Arc<ImageBuildRun>]| {
            fresh_at(build, since, runs).map(Timestamp::as_second)
        };
        let aged = build(Some("60s"));
        assert_eq!(due(&build(None), Some(&since), &[]), None);
        assert_eq!(due(&aged, None, &[]), None, "nothing is in the cache yet");
        assert_eq!(due(&aged, Some(&since), &[]), Some(160));
        let failed = [run(7, 161, RunPhase::Failed, &serde_json::json!({"fresh": true}))];
        assert_eq!(due(&aged, Some(&since), &failed), Some(221), "after a failure the same time passes");
        assert!(!too_old(&aged, Some(&since), at(159)));
        assert!(too_old(&aged, Some(&since), at(160)), "a change after a failure is built afresh");
        assert!(!too_old(&build(None), Some(&since), at(1000)));
    }
}
