//! Writes of tags that have no answer: what runs do about those of other runs; pure.
//!
//! A registry, or a proxy before it, may do a write long after the operator has given it up. So a run waits for the writes of
//! older runs for as long as they may be answered, then moves its tags, and looks again later whether they are where it left
//! them. What is unknown stands in the runs' status, so a new operator goes on with it.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build::{TagStatus, UnknownWrite};
use kiln_crds::image_build_run::RunPhase;
use kube::ResourceExt;

use super::ownership::Place;
use kiln_registry::TAG_DEADLINE;

/// How long after its tags have moved a run looks at them again, in seconds.
const LOOKS: [i64; 3] = [5, 30, 120];
/// And how often from then on: as often as Kiln looks at a branch.
const INTERVAL: SignedDuration = SignedDuration::from_mins(5);
/// For how long a write without an answer is reckoned with.
pub const RECKONED: SignedDuration = SignedDuration::from_hours(1);

/// A write of another run, or an earlier one of this run, that may still be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Late {
    /// The tag.
    pub place: Place,
    /// What it is moved to, where that is known.
    pub digest: Option<String>,
    /// Until when there may be an answer.
    pub until: Timestamp,
    /// The run whose write it is.
    pub run: String,
    /// Whether that is of the same namespace: others are nobody else's business.
    pub is_of_namespace: bool,
}

impl Late {
    /// Whose write it is, as users read it.
    #[must_use]
    pub fn whose(&self) -> &str {
        if self.is_of_namespace { &self.run } else { "a run of another namespace" }
    }

    /// What a run says that waits for it.
    #[must_use]
    pub fn waiting(&self) -> String {
        let until = self.until.strftime("%H:%M:%S");
        format!(
            "waiting until {until} UTC for the registry to answer an older write of the tag {}, by {}",
            self.place.tag(),
            self.whose()
        )
    }
}

/// Whether a write is reckoned with.
#[must_use]
pub fn is_reckoned(write: &UnknownWrite, now: Timestamp) -> bool {
    now.duration_since(write.sent_at.0) < RECKONED
}

/// Whether another run matters to what a run does about late writes.
#[must_use]
pub fn matters(run: &ImageBuildRun, other: &ImageBuildRun) -> bool {
    let has_unknown =
        |other: &ImageBuildRun| other.status.iter().flat_map(|of| &of.tags).any(|tag| tag.unknown.is_some());
    is_of_same(run, other) || has_unknown(other)
}

/// The writes that may still come to the tags of a run, which began to publish at `began`: those of its ImageBuild's older
/// runs, and of other ImageBuilds' runs. `moved` tells what this process knows of a run's tags and its status may not show yet.
#[must_use]
pub fn of_others(
    run: &ImageBuildRun,
    tags: &[TagStatus],
    began: Timestamp,
    runs: &[Arc<ImageBuildRun>],
    moved: impl Fn(&ImageBuildRun) -> Vec<TagStatus>,
    now: Timestamp,
) -> Vec<Late> {
    let mut late = Vec::new();
    // What they wrote was sent before: whatever their status says, nobody is held up for longer.
    let latest = after(began, TAG_DEADLINE);
    for other in runs.iter().filter(|other| other.metadata.uid != run.metadata.uid) {
        let is_own = is_of_same(run, other);
        let Some(status) = other.status.as_ref().filter(|_| !is_own || other.spec.number < run.spec.number) else {
            continue;
        };
        let known = if status.phase.is_final() { Vec::new() } else { moved(other) };
        let theirs = if known.is_empty() { &status.tags } else { &known };
        // Of its own older run that publishes still, nobody may have said yet what was sent.
        let publishes = is_own && status.phase == RunPhase::Publishing;
        for tag in theirs {
            let unknown = tag.unknown.as_ref().filter(|write| is_reckoned(write, now));
            if unknown.is_none() && !(publishes && tag.digest.is_none()) {
                continue;
            }
            let place = Place::of(tag);
            if tags.iter().any(|tag| Place::of(tag) == place) {
                let until = unknown.map_or(latest, |write| after(write.sent_at.0, TAG_DEADLINE).min(latest));
                let digest = unknown.and_then(|write| write.digest.clone());
                let is_of_namespace = other.metadata.namespace == run.metadata.namespace;
                late.push(Late { place, digest, until, run: other.name_any(), is_of_namespace });
            }
        }
    }
    late
}

fn is_of_same(run: &ImageBuildRun, other: &ImageBuildRun) -> bool {
    other.spec.image_build.uid == run.spec.image_build.uid && other.metadata.namespace == run.metadata.namespace
}

fn after(at: Timestamp, time: std::time::Duration) -> Timestamp {
    at.checked_add(time).unwrap_or(at)
}

/// Until when a run waits before it moves its first tag, and for which write. `found` tells where a tag points now: a write
/// that is seen there is done.
#[must_use]
pub fn wait(late: &[Late], found: impl Fn(&Place) -> Option<String>, now: Timestamp) -> Option<&Late> {
    let open = late.iter().filter(|write| write.until > now);
    open.filter(|write| write.digest.is_none() || write.digest != found(&write.place)).max_by_key(|write| write.until)
}

/// When a run looks again at the tags that it moved at `moved_at`. `None` as the last look: this process has not looked yet,
/// and does so at once.
#[must_use]
pub fn next_look(moved_at: Timestamp, looked_at: Option<Timestamp>) -> Timestamp {
    let Some(looked_at) = looked_at else { return moved_at };
    let looks = LOOKS.iter().filter_map(|seconds| moved_at.checked_add(SignedDuration::from_secs(*seconds)).ok());
    let next = looks.into_iter().find(|look| *look > looked_at);
    next.or_else(|| looked_at.checked_add(INTERVAL).ok()).unwrap_or(looked_at)
}

/// The writes that a run which has published still looks for: tags that a newer run of its ImageBuild moves, or has moved, are
/// that one's.
#[must_use]
pub fn looked_for(run: &ImageBuildRun, runs: &[Arc<ImageBuildRun>], now: Timestamp) -> Vec<Late> {
    let Some(status) = run.status.as_ref().filter(|status| status.phase == RunPhase::Succeeded) else {
        return Vec::new();
    };
    let Some(moved_at) = moved_at(run).filter(|at| now.duration_since(*at) < RECKONED) else { return Vec::new() };
    let mut late = of_others(run, &status.tags, moved_at, runs, |_| Vec::new(), now);
    if late.is_empty() {
        return late;
    }
    let newer = runs.iter().filter(|other| is_of_same(run, other) && other.spec.number > run.spec.number);
    let taken: Vec<Place> =
        newer.filter_map(|other| other.status.as_ref()).flat_map(|of| &of.tags).map(Place::of).collect();
    late.retain(|write| !taken.contains(&write.place));
    late
}

/// When a run has said that its tags have moved.
#[must_use]
pub fn moved_at(run: &ImageBuildRun) -> Option<Timestamp> {
    Some(run.status.as_ref()?.finished_at.as_ref()?.0)
}

#[cfg(test)]
mod tests;
