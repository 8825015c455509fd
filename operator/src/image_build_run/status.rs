//! What a run's status says; pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::ImageBuildRunSpec;
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, PlatformStatus, RunPhase, RunSummary};

use super::telling;
use super::warnings::{is_growth, is_of_tags, of_platforms};
use crate::condition::{Wanted, date};
use crate::reason::Reason;

/// How much of a line of a failed step's output is told, in characters.
const QUOTED_LINE: usize = 256;

/// The most warnings of a run, as the schema bounds them; there are fewer platforms.
const WARNINGS: usize = 64;

/// What a queued run waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// Such as `WaitingForNode`.
    pub reason: Reason,
    /// What a person reads.
    pub message: String,
}

/// Fills in what follows from the platforms: phase, condition and summary.
pub fn complete(
    status: &mut ImageBuildRunStatus,
    spec: &ImageBuildRunSpec,
    waiting: Option<&Waiting>,
    generation: Option<i64>,
    now: Timestamp,
) {
    if !status.phase.is_final() {
        let phases: Vec<PlatformPhase> = status.platforms.iter().map(|platform| platform.phase).collect();
        status.phase = if !phases.is_empty() && phases.iter().all(|phase| *phase == PlatformPhase::Succeeded) {
            RunPhase::Publishing
        } else if phases.iter().any(|phase| phase.is_assigned() || phase.is_final()) {
            RunPhase::Building
        } else {
            RunPhase::Pending
        };
    }
    let of_image: Vec<_> =
        status.warnings.drain(..).filter(|warning| is_growth(warning) || is_of_tags(warning)).collect();
    status.warnings = of_platforms(&status.platforms);
    status.warnings.truncate(WARNINGS.saturating_sub(of_image.len()));
    status.warnings.extend(of_image);
    if status.phase.is_final() && status.finished_at.is_none() {
        status.finished_at = Some(MicroTime(now));
    }
    shown_once(status);
    status.conditions = date(vec![condition(status, waiting)], &status.conditions, generation, now);
    status.summary = Some(RunSummary {
        image: status.image.as_ref().map(|image| short_digest(&image.digest)),
        commit: spec.commit.as_deref().map(short_commit),
        builders: builders(status),
        duration: duration(status),
    });
}

/// The output and the Dockerfile's lines of the failure that ended the run stand in the run's own alone.
fn shown_once(status: &mut ImageBuildRunStatus) {
    let Some(ended) = &status.failure else { return };
    let of_platforms = status.platforms.iter_mut().filter_map(|platform| platform.failure.as_deref_mut());
    for failure in of_platforms.filter(|failure| **failure == **ended) {
        failure.log_tail.clear();
        failure.excerpt.clear();
    }
}

fn condition(status: &ImageBuildRunStatus, waiting: Option<&Waiting>) -> Wanted {
    let (ok, reason, message) = match (status.phase, &status.failure, waiting) {
        (RunPhase::Succeeded, ..) => {
            let message = match &status.image {
                Some(image) if image.repository.is_empty() => format!("wrote {}", image.reference),
                Some(image) => format!("pushed {}", image.reference),
                None => "every platform builds; nothing was pushed, for spec.image is not set".to_owned(),
            };
            (Some(true), Reason::Succeeded.to_string(), message)
        }
        (RunPhase::Failed | RunPhase::Cancelled, Some(failure), _) => {
            (Some(false), failure.reason.clone(), told(failure))
        }
        (RunPhase::Failed | RunPhase::Cancelled, None, _) => {
            (Some(false), Reason::Cancelled.to_string(), String::new())
        }
        (_, _, Some(waiting)) => (None, waiting.reason.to_string(), waiting.message.clone()),
        (RunPhase::Pending, ..) => (None, Reason::Pending.to_string(), "waiting for builders".to_owned()),
        (RunPhase::Building, ..) => (None, Reason::Building.to_string(), progress(status)),
        (RunPhase::Publishing, ..) => (None, Reason::Publishing.to_string(), "pushing index and tags".to_owned()),
    };
    let message = if ok.is_none() { with_lost_attempts(message, status) } else { message };
    Wanted { kind: "Succeeded", status: ok, reason, message }
}

/// The message, with the platform where it does not name it itself. Of a step that failed, a line that it wrote says why.
fn told(failure: &BuildFailure) -> String {
    let mut told = match &failure.platform {
        Some(platform) if !failure.message.starts_with(platform.as_str()) => format!("{platform}: {}", failure.message),
        _ => failure.message.clone(),
    };
    let line = telling::line(&failure.log_tail);
    if let Some(line) = line.filter(|line| failure.step.is_some() && !told.contains(line)) {
        let line: String = line.chars().take(QUOTED_LINE).collect();
        told = format!("{told}; it wrote {line:?}: see status.failure for more of its output");
    }
    told
}

/// Such as `linux/amd64: Building, linux/arm64: Pushing`.
fn progress(status: &ImageBuildRunStatus) -> String {
    let parts: Vec<String> =
        status.platforms.iter().map(|platform| format!("{}: {:?}", platform.name, platform.phase)).collect();
    parts.join(", ")
}

/// The message of a run that goes on, with what became of the attempts that are made again.
fn with_lost_attempts(message: String, status: &ImageBuildRunStatus) -> String {
    let again = status.platforms.iter().filter(|platform| !platform.phase.is_final());
    let lost = again.filter_map(|platform| {
        let failure = platform.failure.as_ref()?;
        // The attempt that is queued for is not counted yet.
        let attempt = platform.attempt + u32::from(!platform.phase.is_assigned());
        Some(format!("; {}: attempt {attempt}, after {}: {}", platform.name, failure.reason, failure.message))
    });
    let whole = std::iter::once(message).chain(lost).collect::<String>();
    // As long as an agent's message may be; a condition takes more.
    whole.chars().take(4096).collect()
}

/// Reason and message of each attempt that failed since `former` and is made again.
#[must_use]
pub fn lost_attempts(former: &ImageBuildRunStatus, status: &ImageBuildRunStatus) -> Vec<(String, String)> {
    let again = status.platforms.iter().filter(|platform| {
        // A job that its agent refused has not failed: what it shows is the failure before.
        let failed = |former: &PlatformStatus| {
            former.phase.is_assigned()
                && (former.phase != PlatformPhase::Starting || former.failure != platform.failure)
        };
        platform.phase == PlatformPhase::Queued
            && former.platforms.iter().any(|former| former.name == platform.name && failed(former))
    });
    again
        .filter_map(|platform| {
            let failure = platform.failure.as_ref()?;
            let next = platform.attempt + 1;
            Some((failure.reason.clone(), format!("{}: {}; attempt {next} follows", platform.name, failure.message)))
        })
        .collect()
}

fn builders(status: &ImageBuildRunStatus) -> Option<String> {
    let nodes: Vec<String> = status
        .platforms
        .iter()
        .filter_map(|platform| Some(format!("{} on {}", platform.name, platform.builder.as_ref()?.node)))
        .collect();
    (!nodes.is_empty()).then(|| nodes.join(", "))
}

/// How long a run took that has finished: from its first job, or, where nothing is built, from when it was published.
#[must_use]
pub fn duration(status: &ImageBuildRunStatus) -> Option<String> {
    let started = status.started_at.as_ref().or(status.publishing_at.as_ref())?.0;
    let finished = status.finished_at.as_ref()?.0;
    Some(human_duration(finished.duration_since(started)))
}

/// A duration as `kubectl` prints ages, with tenths where they matter: `0.4s`, `42s`, `3m5s`, `2h10m`.
#[must_use]
pub fn human_duration(duration: SignedDuration) -> String {
    let tenths = duration.as_millis().max(0) / 100;
    let seconds = tenths / 10;
    match seconds {
        0..10 => format!("{seconds}.{}s", tenths % 10),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A digest's algorithm and first twelve digits.
#[must_use]
pub fn short_digest(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => format!("{algorithm}:{}", hex.chars().take(12).collect::<String>()),
        None => digest.chars().take(12).collect(),
    }
}

/// A commit's first seven digits.
#[must_use]
pub fn short_commit(commit: &str) -> String {
    commit.chars().take(7).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: PlatformPhase, attempt: u32, reason: Option<&str>) -> ImageBuildRunStatus {
        let failure = reason.map(|reason| BuildFailure {
            reason: reason.to_owned(),
            message: "the builder b went away".to_owned(),
            ..BuildFailure::default()
        });
        let name = "linux/amd64".to_owned();
        let platform =
            PlatformStatus { name, phase, attempt, failure: failure.map(Box::new), ..PlatformStatus::default() };
        ImageBuildRunStatus { platforms: vec![platform], ..ImageBuildRunStatus::default() }
    }

    #[test]
    fn a_lost_attempt_is_told_once_and_shown_until_the_next_has_ended() {
        let building = status(PlatformPhase::Building, 1, None);
        let queued = status(PlatformPhase::Queued, 1, Some("BuilderLost"));
        let message = "linux/amd64: the builder b went away; attempt 2 follows".to_owned();
        assert_eq!(lost_attempts(&building, &queued), [("BuilderLost".to_owned(), message)]);
        assert_eq!(lost_attempts(&queued, &queued), []);
        // Refused by an agent that drains: nothing has failed.
        assert_eq!(lost_attempts(&building, &status(PlatformPhase::Queued, 1, None)), []);

        let shown = |status: &ImageBuildRunStatus| with_lost_attempts("so".to_owned(), status);
        assert_eq!(shown(&building), "so");
        assert_eq!(shown(&queued), "so; linux/amd64: attempt 2, after BuilderLost: the builder b went away");
        assert_eq!(shown(&status(PlatformPhase::Building, 2, Some("BuilderLost"))), shown(&queued));
        assert_eq!(shown(&status(PlatformPhase::Failed, 2, Some("BuilderLost"))), "so");
    }

    #[test]
    fn a_failed_step_is_told_with_a_line_of_its_output() {
        let failure = BuildFailure {
            platform: Some("linux/amd64".into()),
            message: "[2/3] RUN make failed with exit code 2 (line 5 of Dockerfile)".into(),
            step: Some("[2/3] RUN make".into()),
            log_tail: ["cc -c a.c", "a.c:1: \"b.h\" is missing", " "].map(str::to_owned).into(),
            ..BuildFailure::default()
        };
        let whole = "linux/amd64: [2/3] RUN make failed with exit code 2 (line 5 of Dockerfile); it wrote \"a.c:1: \\\"b.h\\\" \
                     is missing\": see status.failure for more of its output";
        let brief = "linux/amd64: [2/3] RUN make failed with exit code 2 (line 5 of Dockerfile)";
        for (failure, expected) in [
            (failure.clone(), whole),
            (BuildFailure { log_tail: vec![" ".into()], ..failure.clone() }, brief),
            // The output is not this failure's.
            (BuildFailure { step: None, ..failure.clone() }, brief),
            (BuildFailure { message: brief.into(), log_tail: vec!["make failed".into()], ..failure }, brief),
        ] {
            assert_eq!(told(&failure), expected);
        }
    }

    #[test]
    fn a_runs_status_has_the_output_of_its_failure_once() {
        let mut failed = status(PlatformPhase::Failed, 1, Some("StepFailed"));
        let failure = failed.platforms[0].failure.as_mut().unwrap();
        failure.log_tail = vec!["it broke".into()];
        failure.excerpt = vec!["> 1 | RUN make".into()];
        let mut other = failed.platforms[0].clone();
        other.failure.as_mut().unwrap().log_tail = vec!["so did this".into()];
        failed.platforms.push(other);
        failed.failure.clone_from(&failed.platforms[0].failure);
        failed.phase = RunPhase::Failed;
        let spec =
            serde_json::json!({"imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "", "build": {}});
        complete(&mut failed, &serde_json::from_value(spec).unwrap(), None, None, Timestamp::UNIX_EPOCH);
        let tail = |failure: &Option<Box<BuildFailure>>| failure.as_ref().unwrap().log_tail.clone();
        assert_eq!(tail(&failed.failure), ["it broke"]);
        assert_eq!(tail(&failed.platforms[0].failure), [""; 0]);
        assert_eq!(failed.platforms[0].failure.as_ref().unwrap().message, "the builder b went away");
        // Another platform's is another one.
        assert_eq!(tail(&failed.platforms[1].failure), ["so did this"]);
    }

    #[test]
    fn durations_and_digests_are_short() {
        for (millis, expected) in
            [(0, "0.0s"), (480, "0.4s"), (59_000, "59s"), (185_000, "3m5s"), (7_800_000, "2h10m"), (-3, "0.0s")]
        {
            assert_eq!(human_duration(SignedDuration::from_millis(millis)), expected);
        }
        assert_eq!(short_digest("sha256:0123456789abcdef"), "sha256:0123456789ab");
    }
}
