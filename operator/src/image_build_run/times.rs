//! How long a run's parts took, from the times in its status; pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_crds::image_build_run::{ImageBuildRunStatus, PlatformStatus};

/// A part of a run.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// From the first sight of the run until its job was given to a builder: the last attempt's, where there were more.
    Queue,
    /// Until the builder's agent had taken the job.
    Start,
    /// Until the source was there.
    Fetch,
    /// Until the first layer was pushed.
    Build,
    /// Until the platform's image was in the registry.
    Push,
    /// Index and tags.
    Publish,
}

impl Phase {
    /// As in metrics and traces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Start => "start",
            Self::Fetch => "fetch",
            Self::Build => "build",
            Self::Push => "push",
            Self::Publish => "publish",
        }
    }
}

/// A part of a run, and when it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Which part.
    pub phase: Phase,
    /// When it began.
    pub begin: Timestamp,
    /// When it ended; never before it began, though two clocks tell the times.
    pub end: Timestamp,
}

impl Span {
    fn new(phase: Phase, begin: Timestamp, end: Timestamp) -> Self {
        Self { phase, begin, end: end.max(begin) }
    }

    /// How long it took.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.end.duration_since(self.begin).as_secs_f64()
    }
}

/// The parts of one platform's last attempt, one after the other. A part whose beginning was not heard of belongs to the
/// one before it.
#[must_use]
pub fn of_platform(queued_at: Option<&MicroTime>, platform: &PlatformStatus) -> Vec<Span> {
    // What was only queued has no phases but that one, which ends with the platform.
    let begins: Vec<(Phase, Timestamp)> = [
        (Phase::Queue, queued_at),
        (Phase::Start, platform.started_at.as_ref()),
        (Phase::Fetch, platform.fetching_at.as_ref()),
        (Phase::Build, platform.building_at.as_ref()),
        (Phase::Push, platform.pushing_at.as_ref()),
    ]
    .into_iter()
    .filter_map(|(phase, time)| Some((phase, time?.0)))
    .collect();
    let ends = begins.iter().skip(1).map(|(_, time)| Some(*time));
    let last = platform.finished_at.as_ref().map(|time| time.0);
    begins
        .iter()
        .zip(ends.chain([last]))
        .filter_map(|((phase, begin), end)| Some(Span::new(*phase, *begin, end?)))
        .collect()
}

/// When index and tags were pushed.
#[must_use]
pub fn of_publishing(status: &ImageBuildRunStatus) -> Option<Span> {
    let (begin, end) = (status.publishing_at.as_ref()?.0, status.finished_at.as_ref()?.0);
    Some(Span::new(Phase::Publish, begin, end))
}

/// The parts of all its platforms, and its own.
#[must_use]
pub fn of_run(status: &ImageBuildRunStatus) -> Vec<Span> {
    let platforms = status.platforms.iter().flat_map(|platform| of_platform(status.queued_at.as_ref(), platform));
    platforms.chain(of_publishing(status)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<MicroTime> {
        Timestamp::from_second(second).ok().map(MicroTime)
    }

    fn shown(spans: &[Span]) -> String {
        let spans: Vec<String> = spans
            .iter()
            .map(|span| format!("{} {}+{}", span.phase.as_str(), span.begin.as_second(), span.seconds()))
            .collect();
        spans.join(", ")
    }

    #[test]
    fn a_part_ends_where_the_next_one_begins() {
        let whole = PlatformStatus {
            started_at: at(1),
            fetching_at: at(2),
            building_at: at(4),
            pushing_at: at(8),
            finished_at: at(9),
            ..PlatformStatus::default()
        };
        let queued = at(0);
        for (platform, expected) in [
            (whole.clone(), "queue 0+1, start 1+1, fetch 2+2, build 4+4, push 8+1"),
            // Nothing was pushed.
            (PlatformStatus { pushing_at: None, ..whole.clone() }, "queue 0+1, start 1+1, fetch 2+2, build 4+5"),
            // It failed while it fetched.
            (
                PlatformStatus { building_at: None, pushing_at: None, ..whole.clone() },
                "queue 0+1, start 1+1, fetch 2+7",
            ),
            // The builder's clock is behind.
            (
                PlatformStatus { fetching_at: at(-5), ..whole.clone() },
                "queue 0+1, start 1+0, fetch -5+9, build 4+4, push 8+1",
            ),
            // It was never given to a builder.
            (PlatformStatus { finished_at: at(9), ..PlatformStatus::default() }, "queue 0+9"),
            // It runs.
            (PlatformStatus { finished_at: None, ..whole }, "queue 0+1, start 1+1, fetch 2+2, build 4+4"),
        ] {
            assert_eq!(shown(&of_platform(queued.as_ref(), &platform)), expected);
        }
    }
}
