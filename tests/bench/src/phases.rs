//! Where a build's time goes, from the times in its run's status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::PlatformStatus;
use serde::Serialize;

/// A part of the time from `kubectl apply` to the digest in the ImageBuild's status.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// From the request until Kiln has seen the run: ref, credentials, push check, the run's creation.
    Resolve,
    /// Until the job was given to a builder, which may have to come first.
    Queue,
    /// Until the builder's agent had it.
    Start,
    /// Until the source was there.
    Fetch,
    /// Until the first layer was pushed.
    Build,
    /// Until the platform's image was in the registry.
    Push,
    /// Index and tags.
    Publish,
    /// Until the ImageBuild's status was seen.
    Report,
}

impl Phase {
    /// All, in the order in which they come.
    pub const ALL: [Self; 8] =
        [Self::Resolve, Self::Queue, Self::Start, Self::Fetch, Self::Build, Self::Push, Self::Publish, Self::Report];

    /// What it is, in words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Resolve => "the ref's commit, credentials, push check, the run's creation",
            Self::Queue => "until the job is given to a builder; where none is warm, its pod's start",
            Self::Start => "until the builder's agent has the job",
            Self::Fetch => "the source",
            Self::Build => "the Dockerfile",
            Self::Push => "layers and manifest",
            Self::Publish => "index and tags",
            Self::Report => "until the ImageBuild's status has the digest",
        }
    }

    /// As it is printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Queue => "queue",
            Self::Start => "start",
            Self::Fetch => "fetch",
            Self::Build => "build",
            Self::Push => "push",
            Self::Publish => "publish",
            Self::Report => "report",
        }
    }
}

/// Seconds of each phase that is known of.
pub type Phases = Vec<(Phase, f64)>;

/// The phases of a build that was asked for at `begin` and whose image was seen at `seen`. Of several platforms, the one
/// that ended last tells. A phase whose beginning is not known belongs to the one before it.
#[must_use]
pub fn of_run(begin: Timestamp, run: &ImageBuildRun, seen: Timestamp) -> Phases {
    let Some(status) = &run.status else { return Phases::default() };
    let Some(last) = status.platforms.iter().max_by_key(|platform| time(platform.finished_at.as_ref())) else {
        return Phases::default();
    };
    let publishing = status.publishing_at.as_ref().or(last.finished_at.as_ref());
    let begins = [
        (Phase::Resolve, Some(begin)),
        (Phase::Queue, time(status.queued_at.as_ref())),
        (Phase::Start, time(last.started_at.as_ref())),
        (Phase::Fetch, time(last.fetching_at.as_ref())),
        (Phase::Build, time(last.building_at.as_ref())),
        (Phase::Push, time(last.pushing_at.as_ref())),
        (Phase::Publish, time(publishing)),
        (Phase::Report, time(status.finished_at.as_ref())),
    ];
    let known: Vec<(Phase, Timestamp)> =
        begins.into_iter().filter_map(|(phase, begin)| Some((phase, begin?))).collect();
    let ends = known.iter().skip(1).map(|(_, begin)| *begin).chain([seen]);
    known.iter().zip(ends).map(|((phase, begin), end)| (*phase, between(*begin, end))).collect()
}

/// How long the slowest platform took from its start on a builder to its image in the registry.
#[must_use]
pub fn slowest_platform(run: &ImageBuildRun) -> f64 {
    let took = |platform: &PlatformStatus| {
        Some(between(time(platform.started_at.as_ref())?, time(platform.finished_at.as_ref())?))
    };
    run.status.iter().flat_map(|status| &status.platforms).filter_map(took).fold(0.0, f64::max)
}

/// The time of a status field.
#[must_use]
pub fn time(field: Option<&MicroTime>) -> Option<Timestamp> {
    field.map(|time| time.0)
}

/// Seconds from `begin` to `end`; never less than none, though two clocks may tell them.
#[must_use]
pub fn between(begin: Timestamp, end: Timestamp) -> f64 {
    end.duration_since(begin).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(status: &serde_json::Value) -> ImageBuildRun {
        let mut run: ImageBuildRun = serde_json::from_value(json!({
            "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuildRun", "metadata": {"name": "app-1"},
            "spec": {
                "imageBuild": {"name": "app", "uid": "1"}, "number": 1, "inputHash": "x",
                "build": {"source": {"inline": {"files": {}}}, "image": {"repository": "registry.example/app"}},
            },
        }))
        .unwrap();
        run.status = Some(serde_json::from_value(status.clone()).unwrap());
        run
    }

    fn at(second: &str) -> Timestamp {
        format!("2026-01-01T00:00:{second}Z").parse().unwrap()
    }

    #[test]
    fn each_phase_ends_where_the_next_begins() {
        let field = |second: &str| format!("2026-01-01T00:00:{second}0000Z");
        let run = run(&json!({
            "queuedAt": field("01.00"), "publishingAt": field("08.00"), "finishedAt": field("08.25"),
            "platforms": [
                {"name": "linux/arm64", "startedAt": field("02.00"), "finishedAt": field("03.00")},
                {"name": "linux/amd64", "startedAt": field("02.00"), "fetchingAt": field("02.50"),
                 "buildingAt": field("03.00"), "finishedAt": field("07.75")},
            ],
        }));
        let phases = of_run(at("00.500000"), &run, at("08.500000"));
        let expected = [
            (Phase::Resolve, 0.5),
            (Phase::Queue, 1.0),
            (Phase::Start, 0.5),
            (Phase::Fetch, 0.5),
            (Phase::Build, 5.0),
            (Phase::Publish, 0.25),
            (Phase::Report, 0.25),
        ];
        assert_eq!(phases, expected);
        assert!((slowest_platform(&run) - 5.75).abs() < 1e-9);
    }
}
