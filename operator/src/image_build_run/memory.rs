//! Builds whose builder was killed for want of memory, all of its processes at once, as the kubelet has it done under cgroup
//! v2 (`memory.oom.group`); pure.
//!
//! Nobody is left there to tell of it but the kubelet, in the pod's status, a moment later. A build that was the only one was
//! killed for its own want, and trying again does not help. Of several, none is known to be the guilty one: each is tried
//! again on a builder that it has for itself.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_agent_proto::Failure;
use kiln_crds::image_build_run::PlatformStatus;

use crate::builder::observe::Ended;
use crate::reason::Reason;

/// How long the kubelet has to tell how a container ended. It takes a second, and longer on a node that is busy; one that is
/// gone takes its pods along.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

/// As much as a message tells of a step, which may be a whole script.
const LONGEST_STEP: usize = 160;

/// Why a builder's buildkitd ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The kubelet has not told yet.
    NotToldYet,
    /// Want of memory, with no other build there.
    Own,
    /// Want of memory, with others there.
    Shared,
    /// Something else, or nobody knows.
    Other,
}

/// Why the builder of an attempt ended, if that is how it failed. `ended`: how buildkitd ended last in its pod.
#[must_use]
pub fn cause(failure: &Failure, platform: &PlatformStatus, ended: Option<Ended>, now: Timestamp) -> Cause {
    let Some(alone) = failure.alone else { return Cause::Other };
    // The kubelet writes whole seconds.
    let began = platform.started_at.as_ref().map_or(i64::MIN, |began| began.0.as_second());
    match ended.filter(|ended| ended.at.as_second() >= began) {
        Some(Ended { for_memory: true, .. }) if alone => Cause::Own,
        Some(Ended { for_memory: true, .. }) => Cause::Shared,
        None if look_again(platform).is_none_or(|until| now < until) => Cause::NotToldYet,
        _ => Cause::Other,
    }
}

/// Until when the kubelet is waited for, for an attempt that has ended already.
#[must_use]
pub fn look_again(platform: &PlatformStatus) -> Option<Timestamp> {
    let ended = platform.finished_at.as_ref().filter(|_| platform.phase.is_assigned())?;
    ended.0.checked_add(PATIENCE).ok()
}

/// Reason and message of an attempt whose builder was killed for want of memory. `step`: what ran then, if that is known.
#[must_use]
pub fn blame(own: bool, step: Option<&str>) -> (Reason, String) {
    let during = step.map(|step| format!(" while {} ran", step.chars().take(LONGEST_STEP).collect::<String>()));
    let during = during.unwrap_or_default();
    let (reason, whose, repeats) = if own {
        (Reason::OutOfMemory, "and nothing else was built there", "")
    } else {
        (Reason::BuilderOutOfMemory, "of this build or of one beside it", "if it repeats, ")
    };
    let message = format!(
        "the kernel killed all of the builder for want of memory{during}, {whose}; {repeats}raise \
         template.resources.limits.memory of the pool, or let the step use less, as with fewer processes at once"
    );
    (reason, message)
}

/// Whether a platform's next attempt, or the one that runs, is to have its builder for itself.
#[must_use]
pub fn wants_all(platform: &PlatformStatus) -> bool {
    platform.failure.as_ref().is_some_and(|failure| failure.reason == Reason::BuilderOutOfMemory.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use kiln_crds::image_build_run::PlatformPhase;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn the_kubelet_s_word_decides() {
        let ended = |second: i64, for_memory| Some(Ended { at: at(second * 1000), for_memory });
        // What the agent says, when the attempt ended, what the kubelet says; the attempt began at 100.9 s, and it is 120 s.
        for (alone, finished, ended, expected) in [
            (Some(true), None, ended(110, true), Cause::Own),
            (Some(false), None, ended(110, true), Cause::Shared),
            (Some(true), None, ended(110, false), Cause::Other),
            // Within the second in which it began.
            (Some(true), None, ended(100, true), Cause::Own),
            // An earlier build's.
            (Some(true), None, ended(99, true), Cause::NotToldYet),
            (Some(true), None, None, Cause::NotToldYet),
            (Some(true), Some(61), None, Cause::NotToldYet),
            (Some(true), Some(60), None, Cause::Other),
            (Some(true), Some(110), ended(110, true), Cause::Own),
            // The builder knows better.
            (None, None, ended(110, true), Cause::Other),
            (None, None, None, Cause::Other),
        ] {
            let platform = PlatformStatus {
                phase: PlatformPhase::Building,
                started_at: Some(MicroTime(at(100_900))),
                finished_at: finished.map(|second: i64| MicroTime(at(second * 1000))),
                ..PlatformStatus::default()
            };
            let failure = Failure { alone, ..Failure::default() };
            let cause = cause(&failure, &platform, ended, at(120_000));
            assert_eq!(cause, expected, "{alone:?} {finished:?} {ended:?}");
        }
    }
}
