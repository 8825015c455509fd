//! What a run's status says; pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::ImageBuildRunSpec;
use kiln_crds::image_build::BuildFailure;
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformPhase, RunPhase, RunSummary};

use crate::condition::{Wanted, date};
use crate::reason::Reason;

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
    if status.phase.is_final() && status.finished_at.is_none() {
        status.finished_at = Some(MicroTime(now));
    }
    status.conditions = date(vec![condition(status, waiting)], &status.conditions, generation, now);
    status.summary = Some(RunSummary {
        image: status.image.as_ref().map(|image| short_digest(&image.digest)),
        commit: spec.commit.as_deref().map(short_commit),
        builders: builders(status),
        duration: duration(status),
    });
}

fn condition(status: &ImageBuildRunStatus, waiting: Option<&Waiting>) -> Wanted {
    let (ok, reason, message) = match (status.phase, &status.failure, waiting) {
        (RunPhase::Succeeded, ..) => {
            let image = status.image.as_ref().map_or("", |image| image.reference.as_str());
            (Some(true), Reason::Succeeded.to_string(), format!("pushed {image}"))
        }
        (RunPhase::Failed | RunPhase::Cancelled, Some(failure), _) => {
            (Some(false), failure.reason.clone(), with_platform(failure))
        }
        (RunPhase::Failed | RunPhase::Cancelled, None, _) => {
            (Some(false), Reason::Cancelled.to_string(), String::new())
        }
        (_, _, Some(waiting)) => (None, waiting.reason.to_string(), waiting.message.clone()),
        (RunPhase::Pending, ..) => (None, Reason::Pending.to_string(), "waiting for builders".to_owned()),
        (RunPhase::Building, ..) => (None, Reason::Building.to_string(), progress(status)),
        (RunPhase::Publishing, ..) => (None, Reason::Publishing.to_string(), "pushing index and tags".to_owned()),
    };
    Wanted { kind: "Succeeded", status: ok, reason, message }
}

/// The message, with the platform where it does not name it itself.
fn with_platform(failure: &BuildFailure) -> String {
    match &failure.platform {
        Some(platform) if !failure.message.starts_with(platform.as_str()) => format!("{platform}: {}", failure.message),
        _ => failure.message.clone(),
    }
}

/// Such as `linux/amd64: Building, linux/arm64: Pushing`.
fn progress(status: &ImageBuildRunStatus) -> String {
    let parts: Vec<String> =
        status.platforms.iter().map(|platform| format!("{}: {:?}", platform.name, platform.phase)).collect();
    parts.join(", ")
}

fn builders(status: &ImageBuildRunStatus) -> Option<String> {
    let nodes: Vec<String> = status
        .platforms
        .iter()
        .filter_map(|platform| Some(format!("{} on {}", platform.name, platform.builder.as_ref()?.node)))
        .collect();
    (!nodes.is_empty()).then(|| nodes.join(", "))
}

fn duration(status: &ImageBuildRunStatus) -> Option<String> {
    let (started, finished) = (status.started_at.as_ref()?.0, status.finished_at.as_ref()?.0);
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
