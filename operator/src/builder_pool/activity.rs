//! What the runs tell of builders, in one pass over them; pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kiln_crds::ImageBuildRun;
use kube::ResourceExt;

use crate::image_build_run::memory::wants_all;
use crate::image_build_run::plan::job_id;
use crate::watches::is_queued;

/// Who works, who has worked, who waits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Activity {
    /// How many jobs each builder holds, by its name.
    pub jobs: HashMap<String, usize>,
    /// The builders that one job has for itself, by their names.
    pub taken: HashSet<String>,
    /// When the last job of each builder ended, by its pod's UID.
    pub ended: HashMap<String, Timestamp>,
    /// The namespaces in which somebody waits for a builder.
    pub waiting: HashSet<String>,
}

impl Activity {
    /// From the runs' statuses, and from the jobs that are about to be written there, each with its builder.
    #[must_use]
    pub fn of(runs: &[Arc<ImageBuildRun>], places: Vec<(String, String)>) -> Self {
        let mut activity = Self::default();
        let mut held: HashSet<(String, String)> = places.into_iter().collect();
        for run in runs {
            if is_queued(run)
                && let Some(namespace) = run.namespace()
            {
                activity.waiting.insert(namespace);
            }
            for platform in run.status.iter().flat_map(|status| &status.platforms) {
                let job = |attempt| job_id(run.metadata.uid.as_deref().unwrap_or_default(), &platform.name, attempt);
                if wants_all(platform) && !platform.phase.is_assigned() {
                    // The status that gives it its builder is about to be written.
                    let next = job(platform.attempt + 1);
                    let given = held.iter().find(|(held, _)| *held == next);
                    activity.taken.extend(given.map(|(_, builder)| builder.clone()));
                }
                let Some(builder) = &platform.builder else { continue };
                if platform.phase.is_assigned() {
                    if wants_all(platform) {
                        activity.taken.insert(builder.pod.clone());
                    }
                    let job = job(platform.attempt);
                    held.insert((job, builder.pod.clone()));
                }
                let Some(finished) = platform.finished_at.as_ref().map(|time| time.0) else { continue };
                match activity.ended.get_mut(&builder.uid) {
                    Some(known) => *known = finished.max(*known),
                    None => drop(activity.ended.insert(builder.uid.clone(), finished)),
                }
            }
        }
        for (_, builder) in held {
            *activity.jobs.entry(builder).or_default() += 1;
        }
        activity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use kiln_crds::image_build::BuildFailure;
    use kiln_crds::image_build_run::{BuilderRef, ImageBuildRunStatus, PlatformPhase, PlatformStatus};

    fn run(namespace: &str, platforms: &[(PlatformPhase, Option<&str>, i64)]) -> Arc<ImageBuildRun> {
        let spec = serde_json::json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "v1:x",
            "build": {"source": {"inline": {"files": {"Dockerfile": ""}}}, "image": {"repository": "r.example/app"}},
        });
        let mut run = ImageBuildRun::new("app-1", serde_json::from_value(spec).unwrap());
        run.metadata.namespace = Some(namespace.to_owned());
        run.metadata.uid = Some(namespace.to_owned());
        let platforms = platforms.iter().enumerate().map(|(index, (phase, pod, finished))| PlatformStatus {
            name: format!("linux/{index}"),
            phase: *phase,
            attempt: 1,
            builder: pod.map(|pod| BuilderRef { pod: pod.into(), uid: format!("{pod}-uid"), node: "n".into() }),
            finished_at: (*finished > 0).then(|| MicroTime(Timestamp::from_second(*finished).unwrap())),
            ..PlatformStatus::default()
        });
        run.status = Some(ImageBuildRunStatus { platforms: platforms.collect(), ..ImageBuildRunStatus::default() });
        Arc::new(run)
    }

    #[test]
    fn one_pass_tells_who_works_has_worked_and_waits() {
        use PlatformPhase::{Building, Queued, Succeeded};
        let runs = [
            run("one", &[(Building, Some("a"), 0), (Succeeded, Some("b"), 7)]),
            run("two", &[(Queued, None, 9), (Succeeded, Some("b"), 5)]),
        ];
        // The first is in a status already, the second is about to be.
        let places = vec![("one-linux-0-1".to_owned(), "a".to_owned()), ("two-linux-0-1".to_owned(), "a".to_owned())];
        let activity = Activity::of(&runs, places);
        assert_eq!(activity.jobs, HashMap::from([("a".to_owned(), 2)]));
        assert_eq!(activity.ended, HashMap::from([("b-uid".to_owned(), Timestamp::from_second(7).unwrap())]));
        assert_eq!(activity.waiting, HashSet::from(["two".to_owned()]));
        assert_eq!(activity.taken, HashSet::new());
    }

    #[test]
    fn a_builder_is_taken_by_a_job_that_is_to_be_alone() {
        use PlatformPhase::{Building, Queued, Succeeded};
        let taken = |phase, pod: Option<&str>, place: &str| {
            let mut run = Arc::unwrap_or_clone(run("one", &[(phase, pod, 0)]));
            for platform in &mut run.status.as_mut().unwrap().platforms {
                let reason = "BuilderOutOfMemory".to_owned();
                platform.failure = Some(Box::new(BuildFailure { reason, ..BuildFailure::default() }));
            }
            let places = vec![(place.to_owned(), "b".to_owned())];
            Activity::of(&[Arc::new(run)], places).taken.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(taken(Building, Some("a"), "other"), "a");
        assert_eq!(taken(Queued, None, "one-linux-0-2"), "b", "its status is about to say so");
        assert_eq!(taken(Queued, None, "one-linux-0-1"), "");
        assert_eq!(taken(Succeeded, Some("a"), "other"), "");
    }
}
