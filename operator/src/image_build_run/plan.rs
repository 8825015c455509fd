//! What should happen to a run, from what was observed; pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_agent_proto::failure::Class;
use kiln_crds::image_build::{BuildFailure, ImageBuildSpec};
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, PlatformStatus, RunPhase};

use super::memory::{self, Cause};
use super::{outcome, tagging};
use crate::agent::Observation;
use crate::builder::observe::Ended;
use crate::delay::{retry, spread};
use crate::reason::Reason;

/// How long a run may take unless its ImageBuild says it.
const TIMEOUT: Duration = Duration::from_hours(1);
/// How often a platform is tried again unless its ImageBuild says it.
const RETRIES: u32 = 3;
/// How long a platform waits at most whose job was refused: its builder was full or going, as nobody knew yet.
const REFUSED: Duration = Duration::from_secs(4);
/// How long after its time a builder that lives takes at most to stop a job and to say why: whether the build took the time,
/// or a buildkitd that hangs.
const VERDICT: Duration = Duration::from_secs(20);

/// The agent's reason for a platform whose steps run programs, which its builder cannot.
const NODE_NEEDED: &str = "NodeNeeded";

/// The bounds of a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// How often a platform is tried again after a failure of the infrastructure.
    pub retries: u32,
    /// How long the run may take from its first job's start.
    pub timeout: Duration,
}

impl Bounds {
    /// The bounds that an ImageBuild sets, its silence filled in.
    #[must_use]
    pub fn of(spec: &ImageBuildSpec) -> Self {
        Self { retries: spec.retries.unwrap_or(RETRIES), timeout: spec.timeout.map_or(TIMEOUT, Duration::from) }
    }
}

/// The id of a job: it follows from run, platform and attempt, so that doing anything twice is harmless.
#[must_use]
pub fn job_id(run_uid: &str, platform: &str, attempt: u32) -> String {
    let platform: String = platform.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{run_uid}-{platform}-{attempt}")
}

/// The pod that holds a job.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Holder {
    /// Whether it is still there.
    pub alive: bool,
    /// How its buildkitd ended last.
    pub ended: Option<Ended>,
}

/// A platform as it stands after what was observed of its job on `builder`.
#[must_use]
pub fn advance(
    platform: &PlatformStatus,
    observed: Option<&Observation>,
    builder: Holder,
    retries: u32,
    now: Timestamp,
) -> PlatformStatus {
    if !platform.phase.is_assigned() {
        return platform.clone();
    }
    let ended = |phase| PlatformStatus { phase, finished_at: Some(MicroTime(now)), ..platform.clone() };
    let lost = |message: String| {
        let failure = BuildFailure {
            platform: Some(platform.name.clone()),
            reason: Reason::BuilderLost.to_string(),
            message,
            ..BuildFailure::default()
        };
        again_or_failed(platform, failure, retries, now)
    };
    let pod = platform.builder.as_ref().map_or("", |builder| builder.pod.as_str());
    match observed {
        Some(Observation::Succeeded(result)) => PlatformStatus {
            digest: Some(result.digest.clone()),
            size: i64::try_from(result.size).ok(),
            media_type: Some(result.media_type.clone()),
            content: Some(outcome::content(result)),
            warnings: outcome::warnings(&result.warnings),
            failure: None,
            ..ended(PlatformPhase::Succeeded)
        },
        // Any builder was good enough to try; this one tells that none is. Nothing was built.
        Some(Observation::Failed(failure)) if failure.reason == NODE_NEEDED && !platform.needs_node => {
            PlatformStatus { phase: PlatformPhase::Queued, builder: None, needs_node: true, ..platform.clone() }
        }
        Some(Observation::Failed(failure)) => match Class::try_from(failure.class) {
            Ok(Class::Cancelled) => ended(PlatformPhase::Cancelled),
            Ok(Class::Infrastructure | Class::Unspecified) => {
                let mut told = outcome::failure(failure, &platform.name);
                let cause =
                    if builder.alive { memory::cause(failure, platform, builder.ended, now) } else { Cause::Other };
                if let Cause::Own | Cause::Shared = cause {
                    let (reason, message) = memory::blame(cause == Cause::Own, told.step.as_deref());
                    (told.reason, told.message) = (reason.to_string(), message);
                }
                match cause {
                    // Its place is kept: whoever got it might be lost with it.
                    Cause::NotToldYet => {
                        let finished_at = platform.finished_at.clone().or(Some(MicroTime(now)));
                        PlatformStatus { finished_at, ..platform.clone() }
                    }
                    Cause::Own => PlatformStatus { failure: Some(Box::new(told)), ..ended(PlatformPhase::Failed) },
                    Cause::Shared | Cause::Other => again_or_failed(platform, told, retries, now),
                }
            }
            _ => PlatformStatus {
                failure: Some(Box::new(outcome::failure(failure, &platform.name))),
                warnings: outcome::warnings(&failure.warnings),
                ..ended(PlatformPhase::Failed)
            },
        },
        Some(Observation::Unknown) => lost(format!("the builder {pod} was started again and lost the build")),
        // Nothing has begun, so nothing has failed, and it was no attempt: its number is the next one's.
        Some(Observation::Refused) => PlatformStatus {
            phase: PlatformPhase::Queued,
            attempt: platform.attempt.saturating_sub(1),
            builder: None,
            started_at: None,
            failed_on: platform.builder.clone(),
            finished_at: Some(MicroTime(now)),
            ..platform.clone()
        },
        Some(Observation::Unreachable(_)) if !builder.alive => lost(format!(
            "the builder {pod} had not answered for a minute and a half, and another takes its place; if it repeats, check \
             its node: the build is not to blame"
        )),
        Some(Observation::Running(_) | Observation::Connecting) | None if !builder.alive => {
            lost(format!("the builder {pod} went away while it worked"))
        }
        Some(Observation::Running(phase)) => PlatformStatus { phase: *phase, ..platform.clone() },
        // It may still work: its pod is removed first, and only then does another attempt begin.
        Some(Observation::Connecting | Observation::Unreachable(_)) | None => platform.clone(),
    }
}

fn again_or_failed(platform: &PlatformStatus, failure: BuildFailure, retries: u32, now: Timestamp) -> PlatformStatus {
    let again = platform.attempt <= retries;
    PlatformStatus {
        phase: if again { PlatformPhase::Queued } else { PlatformPhase::Failed },
        builder: if again { None } else { platform.builder.clone() },
        failed_on: platform.builder.clone().filter(|_| again),
        finished_at: Some(MicroTime(now)),
        failure: Some(Box::new(failure)),
        ..platform.clone()
    }
}

/// When a queued platform of a run may be tried again.
#[must_use]
pub fn due(run_uid: &str, platform: &PlatformStatus) -> Option<Timestamp> {
    let failed_at = platform.finished_at.as_ref()?.0;
    let of = (run_uid, &platform.name, platform.attempt);
    // One that was refused has not begun.
    let delay = if platform.started_at.is_none() { spread(REFUSED, of) } else { retry(platform.attempt, of) };
    failed_at.checked_add(delay).ok()
}

/// What should be done with a run next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Stop its jobs, and end it so.
    End(RunPhase, Box<BuildFailure>),
    /// Push index and tags.
    Publish,
    /// Find builders for what is queued, follow what runs.
    Build,
}

/// What asks for a run's end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stop {
    /// `spec.cancel` is set, or the run is being deleted.
    pub cancelled: bool,
    /// The ImageBuild has a newer run.
    pub superseded: bool,
}

/// Decides from the platforms as [`advance`] left them. `silence`: for how long nothing was heard of a builder that holds one.
#[must_use]
pub fn next(status: &ImageBuildRunStatus, stop: Stop, timeout: Duration, silence: Duration, now: Timestamp) -> Next {
    let ended = |phase, reason: Reason, message: String| {
        Next::End(phase, Box::new(BuildFailure { reason: reason.to_string(), message, ..BuildFailure::default() }))
    };
    if stop.cancelled {
        let (reason, why) = if stop.superseded {
            (Reason::Superseded, "a newer run took its place")
        } else {
            (Reason::Cancelled, "the run was cancelled")
        };
        return ended(RunPhase::Cancelled, reason, format!("{why}{}", tagging::too_late(&status.tags)));
    }
    let phases = || status.platforms.iter().map(|platform| platform.phase);
    if let Some(failed) = status.platforms.iter().find(|platform| platform.phase == PlatformPhase::Failed) {
        return Next::End(RunPhase::Failed, failed.failure.clone().unwrap_or_default());
    }
    if phases().all(|phase| phase == PlatformPhase::Succeeded) {
        return Next::Publish;
    }
    if phases().any(|phase| phase == PlatformPhase::Cancelled) {
        return ended(RunPhase::Cancelled, Reason::Cancelled, "a platform's build was cancelled".to_owned());
    }
    // One that is silent is heard again in a moment, or lost: till then nobody knows whose the time was.
    if overdue(status, timeout).is_some_and(|overdue| overdue <= now) && silence <= VERDICT {
        // A job that no builder has taken has cost no time of the build's.
        let taken_by_none = |platform: &&PlatformStatus| {
            let refused = platform.phase == PlatformPhase::Queued && platform.failed_on.is_some();
            refused || platform.phase == PlatformPhase::Starting
        };
        let left = || status.platforms.iter().filter(|platform| platform.phase != PlatformPhase::Succeeded);
        if left().all(|platform| taken_by_none(&platform)) {
            let message =
                "no builder has taken the job, as where buildkitd does not answer; see the builder's pod".to_owned();
            return ended(RunPhase::Failed, Reason::BuildkitUnavailable, message);
        }
        let message = format!("the run took longer than {}s: set a longer spec.timeout", timeout.as_secs());
        return ended(RunPhase::Failed, Reason::BuildTimeout, message);
    }
    Next::Build
}

/// When the run has taken too long, and its builders have had time to say so themselves. `None`: it has not begun, or waits
/// for another attempt.
#[must_use]
pub fn overdue(status: &ImageBuildRunStatus, timeout: Duration) -> Option<Timestamp> {
    let waits = |platform: &PlatformStatus| platform.phase == PlatformPhase::Queued && platform.attempt > 0;
    if status.platforms.iter().any(waits) {
        return None;
    }
    // Time that the infrastructure has cost is not the build's: it begins anew with the attempt that follows.
    let again = status.platforms.iter().filter(|platform| platform.attempt > 1);
    let again = again.filter_map(|platform| Some(platform.started_at.as_ref()?.0));
    let started = again.chain([status.started_at.as_ref()?.0]).max()?;
    started.checked_add(timeout + VERDICT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_agent_proto::{Failure, Warning};
    use kiln_crds::image_build_run::BuilderRef;

    const ALIVE: Holder = Holder { alive: true, ended: None };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn platform(phase: PlatformPhase, attempt: u32) -> PlatformStatus {
        PlatformStatus {
            name: "linux/amd64".into(),
            phase,
            attempt,
            builder: Some(BuilderRef { pod: "b".into(), uid: "u".into(), node: "n".into() }),
            ..PlatformStatus::default()
        }
    }

    fn failed(class: Class) -> Observation {
        Observation::Failed(Failure { class: class.into(), reason: "Some".into(), ..Failure::default() })
    }

    fn done() -> Observation {
        let warnings = vec![Warning { rule: "R".into(), ..Warning::default() }];
        Observation::Succeeded(Box::new(kiln_agent_proto::Result {
            digest: "sha256:1".into(),
            compressed_bytes: 9,
            warnings,
            ..kiln_agent_proto::Result::default()
        }))
    }

    #[test]
    fn what_a_platform_becomes() {
        use PlatformPhase::{Building, Cancelled, Failed, Queued, Starting, Succeeded};
        for (phase, attempt, observed, alive, expected) in [
            (Starting, 1, None, true, Starting),
            (Starting, 1, None, false, Queued),
            (Starting, 1, Some(Observation::Running(Building)), true, Building),
            (Building, 1, Some(done()), true, Succeeded),
            // The outcome was heard before the builder went.
            (Building, 1, Some(done()), false, Succeeded),
            (Building, 1, Some(failed(Class::User)), true, Failed),
            (Building, 1, Some(failed(Class::Credential)), true, Failed),
            (Building, 1, Some(failed(Class::Timeout)), true, Failed),
            (Building, 1, Some(failed(Class::Cancelled)), true, Cancelled),
            (Building, 1, Some(failed(Class::Infrastructure)), true, Queued),
            (Building, 3, Some(failed(Class::Infrastructure)), true, Failed),
            (Building, 1, Some(Observation::Unknown), true, Queued),
            (Building, 1, Some(Observation::Unreachable("gone".into())), true, Building),
            (Building, 1, Some(Observation::Unreachable("gone".into())), false, Queued),
            (Starting, 9, Some(Observation::Refused), true, Queued),
            (Building, 1, Some(Observation::Running(Building)), false, Queued),
            (Building, 3, Some(Observation::Unknown), true, Failed),
            (Succeeded, 1, Some(Observation::Unknown), false, Succeeded),
            (Queued, 0, None, false, Queued),
        ] {
            let builder = Holder { alive, ended: None };
            let after = advance(&platform(phase, attempt), observed.as_ref(), builder, 2, at(5));
            assert_eq!(after.phase, expected, "{phase:?} {attempt} {observed:?} {alive}");
        }
    }

    /// Neither counts as an attempt: what a builder refuses has not begun.
    #[test]
    fn a_refused_job_costs_no_attempt() {
        let mut now = platform(PlatformPhase::Queued, 1);
        now.finished_at = Some(MicroTime(at(0)));
        for refusals in 0..50 {
            let starting = PlatformStatus {
                phase: PlatformPhase::Starting,
                attempt: now.attempt + 1,
                builder: platform(PlatformPhase::Starting, 2).builder,
                started_at: Some(MicroTime(at(5))),
                ..now.clone()
            };
            now = advance(&starting, Some(&Observation::Refused), ALIVE, 1, at(5));
            assert_eq!((now.phase, now.attempt), (PlatformPhase::Queued, 1), "{refusals}");
            let waits = due("uid", &now).unwrap().duration_since(at(5)).as_millis();
            assert!((2000..=4000).contains(&waits), "{waits}: soon, whatever was tried before");
        }
        let last = PlatformStatus { phase: PlatformPhase::Building, attempt: 2, ..now };
        let failed = advance(&last, Some(&failed(Class::Infrastructure)), ALIVE, 1, at(9));
        assert_eq!(failed.phase, PlatformPhase::Failed, "an attempt is one");
    }

    #[test]
    fn a_platform_waits_longer_after_each_attempt() {
        for (attempt, least, most) in [(1, 2, 4), (2, 10, 20), (3, 50, 100), (4, 150, 300), (10, 150, 300)] {
            let times = (0..100).map(|uid| {
                let mut began = platform(PlatformPhase::Building, attempt);
                began.started_at = Some(MicroTime(at(0)));
                let queued = advance(&began, Some(&failed(Class::Infrastructure)), ALIVE, 10, at(7));
                let due = due(&format!("uid-{uid}"), &queued).unwrap();
                assert_eq!(Some(due), super::due(&format!("uid-{uid}"), &queued), "whoever asks");
                due.duration_since(at(7)).as_millis()
            });
            let times: std::collections::BTreeSet<_> = times.collect();
            let (first, last) = (*times.first().unwrap(), *times.last().unwrap());
            assert!(least * 1000 <= first && last <= most * 1000, "{attempt}: {first} to {last}");
            assert!(times.len() > 80, "they differ: {times:?}");
        }
    }

    #[test]
    fn a_builder_that_was_killed_for_want_of_memory() {
        use PlatformPhase::{Building, Failed, Queued};
        let killed = |alone| {
            let class = Class::Infrastructure.into();
            let (reason, step) = ("BuildkitUnavailable".to_owned(), "[2/2] RUN make".to_owned());
            Observation::Failed(Failure { class, reason, step, alone, ..Failure::default() })
        };
        let ended = |for_memory| Some(Ended { at: at(4), for_memory });
        for (alone, alive, ended, now, expected) in [
            (Some(true), true, ended(true), 5, (Failed, "OutOfMemory")),
            (Some(false), true, ended(true), 5, (Queued, "BuilderOutOfMemory")),
            (Some(true), true, ended(false), 5, (Queued, "BuildkitUnavailable")),
            // The kubelet is waited for, while the pod is there.
            (Some(true), true, None, 5, (Building, "")),
            (Some(true), true, None, 64, (Building, "")),
            (Some(true), true, None, 65, (Queued, "BuildkitUnavailable")),
            (Some(true), false, ended(true), 5, (Queued, "BuildkitUnavailable")),
            (None, true, None, 5, (Queued, "BuildkitUnavailable")),
        ] {
            let holder = Holder { alive, ended };
            let began = PlatformStatus { started_at: Some(MicroTime(at(3))), ..platform(Building, 1) };
            let first = advance(&began, Some(&killed(alone)), holder, 2, at(5));
            let after = advance(&first, Some(&killed(alone)), holder, 2, at(now));
            let reason = after.failure.as_ref().map_or("", |failure| failure.reason.as_str());
            assert_eq!((after.phase, reason), expected, "{alone:?} {alive} {ended:?} {now}");
            assert_eq!(after.builder.is_some(), after.phase != Queued);
            assert_eq!(memory::wants_all(&after), reason == "BuilderOutOfMemory");
            assert_eq!(memory::look_again(&after), (after.phase == Building).then(|| at(65)));
            if let Some(failure) = after.failure.filter(|failure| failure.reason.ends_with("OutOfMemory")) {
                let words = "killed all of the builder for want of memory while [2/2] RUN make ran";
                assert!(failure.message.contains(words), "{failure:?}");
            }
        }
    }

    #[test]
    fn a_platform_that_needs_a_node_is_queued_for_one_at_once() {
        let observed = Observation::Failed(Failure {
            class: Class::User.into(),
            reason: NODE_NEEDED.into(),
            ..Failure::default()
        });
        let after = advance(&platform(PlatformPhase::Fetching, 1), Some(&observed), ALIVE, 0, at(5));
        assert_eq!((after.phase, after.needs_node, after.failure.clone()), (PlatformPhase::Queued, true, None));
        assert_eq!(due("uid", &after), None);
        // A builder that says so of a platform with a node of its own is not asked again.
        let again = PlatformStatus { needs_node: true, ..platform(PlatformPhase::Fetching, 2) };
        assert_eq!(advance(&again, Some(&observed), ALIVE, 0, at(5)).phase, PlatformPhase::Failed);
    }

    #[test]
    fn sizes_and_warnings_of_an_outcome_are_in_the_status() {
        let after = advance(&platform(PlatformPhase::Pushing, 1), Some(&done()), ALIVE, 2, at(5));
        assert_eq!(after.content.map(|content| content.compressed_bytes), Some(9));
        assert_eq!(after.warnings.len(), 1);
        let failure = Failure {
            class: Class::User.into(),
            warnings: vec![Warning::default(), Warning::default()],
            ..Failure::default()
        };
        let after = advance(&platform(PlatformPhase::Pushing, 1), Some(&Observation::Failed(failure)), ALIVE, 2, at(5));
        assert_eq!(after.warnings.len(), 2);
    }

    #[test]
    fn what_a_run_does_next() {
        use PlatformPhase::{Building, Failed, Queued, Succeeded};
        let cancel = Stop { cancelled: true, superseded: false };
        for (phases, stop, silence, now, expected) in [
            (vec![Queued, Building], Stop::default(), 0, 10, "build"),
            (vec![Succeeded, Building], Stop::default(), 0, 10, "build"),
            (vec![Succeeded, Succeeded], Stop::default(), 0, 10, "publish"),
            (vec![Succeeded, Failed], Stop::default(), 0, 10, "Failed "),
            (vec![Building, Building], cancel, 0, 10, "Cancelled Cancelled"),
            (vec![Building], Stop { superseded: true, ..cancel }, 0, 10, "Cancelled Superseded"),
            (vec![Building], Stop::default(), 0, 1000, "Failed BuildTimeout"),
            // The builder says it itself, if it lives.
            (vec![Building], Stop::default(), 0, 120, "build"),
            (vec![Building], Stop::default(), 5, 121, "Failed BuildTimeout"),
            (vec![Building], Stop::default(), 21, 121, "build"),
            (vec![Building], Stop::default(), 60, 1000, "build"),
            // Its builder was lost: whatever it waits for, it is not to blame.
            (vec![Queued, Building], Stop::default(), 0, 1000, "build"),
            // Built in time: the timeout is the build's.
            (vec![Succeeded], Stop::default(), 0, 1000, "publish"),
        ] {
            let status = ImageBuildRunStatus {
                started_at: Some(MicroTime(at(1))),
                platforms: phases.iter().map(|phase| platform(*phase, 1)).collect(),
                ..ImageBuildRunStatus::default()
            };
            let got = match next(&status, stop, Duration::from_secs(100), Duration::from_secs(silence), at(now)) {
                Next::Build => "build".to_owned(),
                Next::Publish => "publish".to_owned(),
                Next::End(phase, failure) => format!("{phase:?} {}", failure.reason),
            };
            assert_eq!(got, expected, "{phases:?} {stop:?} {silence} {now}");
        }
        let tag = serde_json::json!([{"repository": "r.example/app", "tag": "v1", "digest": "sha256:1"}]);
        let status =
            ImageBuildRunStatus { tags: serde_json::from_value(tag).unwrap(), ..ImageBuildRunStatus::default() };
        let Next::End(_, failure) = next(&status, cancel, Duration::from_secs(100), Duration::ZERO, at(10)) else {
            panic!("it ends")
        };
        assert!(failure.message.contains("too late") && failure.message.contains("v1"), "{}", failure.message);
    }

    #[test]
    fn time_that_the_infrastructure_took_is_not_the_build_s() {
        use PlatformPhase::{Building, Queued};
        let (timeout, first, second) = (Duration::from_mins(1), 1, 101);
        for (phase, attempt, expected) in [
            (Building, 1, Some(first + 80)),
            (Queued, 1, None),
            (Building, 2, Some(second + 80)),
            (Queued, 2, None),
            // Waits for its first.
            (Queued, 0, Some(first + 80)),
        ] {
            let started_at = Some(MicroTime(at(if attempt > 1 { second } else { first })));
            let other = PlatformStatus { started_at: Some(MicroTime(at(first))), ..platform(Building, 1) };
            let status = ImageBuildRunStatus {
                started_at: Some(MicroTime(at(first))),
                platforms: vec![other, PlatformStatus { started_at, ..platform(phase, attempt) }],
                ..ImageBuildRunStatus::default()
            };
            assert_eq!(overdue(&status, timeout), expected.map(at), "{phase:?} {attempt}");
        }
        assert_eq!(overdue(&ImageBuildRunStatus::default(), timeout), None);
    }

    /// Nobody is to blame for what has not begun: another run follows.
    #[test]
    fn a_job_that_no_builder_takes_is_no_long_build() {
        let starting = PlatformStatus { started_at: Some(MicroTime(at(1))), ..platform(PlatformPhase::Starting, 1) };
        let refused = advance(&starting, Some(&Observation::Refused), ALIVE, 2, at(5));
        let done = platform(PlatformPhase::Succeeded, 1);
        let builds = platform(PlatformPhase::Building, 1);
        for (platforms, expected) in [
            (vec![refused.clone()], "BuildkitUnavailable"),
            (vec![starting.clone()], "BuildkitUnavailable"),
            (vec![done, refused.clone()], "BuildkitUnavailable"),
            (vec![builds, refused], "BuildTimeout"),
        ] {
            let status =
                ImageBuildRunStatus { started_at: Some(MicroTime(at(1))), platforms, ..ImageBuildRunStatus::default() };
            let next = next(&status, Stop::default(), Duration::from_mins(1), Duration::ZERO, at(100));
            let Next::End(RunPhase::Failed, failure) = next else { panic!("it ends: {next:?}") };
            assert_eq!(failure.reason, expected);
            assert_eq!(crate::reason::is_infrastructure(&failure.reason), expected != "BuildTimeout");
        }
    }

    #[test]
    fn a_lost_builder_is_told_in_words_and_the_next_attempt_prefers_another() {
        let lost =
            |observed| advance(&platform(PlatformPhase::Building, 1), Some(&observed), Holder::default(), 2, at(5));
        let silent = lost(Observation::Unreachable("no heartbeat".into()));
        let gone = lost(Observation::Running(PlatformPhase::Building));
        for (after, words) in [(&silent, "had not answered"), (&gone, "went away")] {
            let failure = after.failure.as_ref().unwrap();
            assert_eq!(failure.reason, "BuilderLost");
            assert!(failure.message.contains(words) && !failure.message.contains("timeout"), "{failure:?}");
            assert_eq!(after.failed_on.as_ref().map(|builder| builder.pod.as_str()), Some("b"));
        }
        let refused = advance(&platform(PlatformPhase::Starting, 1), Some(&Observation::Refused), ALIVE, 2, at(5));
        assert!(refused.failed_on.is_some() && refused.failure.is_none());
        // Nothing follows.
        let failed = advance(&platform(PlatformPhase::Building, 3), Some(&Observation::Unknown), ALIVE, 2, at(5));
        assert_eq!(failed.failed_on, None);
    }

    #[test]
    fn job_ids_differ_by_run_platform_and_attempt() {
        assert_eq!(job_id("uid", "linux/arm/v7", 2), "uid-linux-arm-v7-2");
    }
}
