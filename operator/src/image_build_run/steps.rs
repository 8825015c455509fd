//! What an agent's events tell of a build's progress, and what of it a status shows; pure.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kiln_agent_proto::{self as proto, event::Kind};
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus, StepStatus};
use kiln_registry::text::{is_hidden, plain_text};

/// The most steps in a status, as the schema bounds them.
const SHOWN: usize = 128;
/// The longest name in a status, in characters.
const NAME: usize = 256;
/// The most steps that are remembered of a job.
const KNOWN: usize = 4096;
/// The longest id of a step, in bytes.
const LONGEST_ID: usize = 128;
/// The last lines of a running step that are shown, the longest of them in characters, and of how many steps.
const LINES: usize = 3;
const LINE: usize = 199;
const WITH_LINES: usize = 8;
/// Work that is not the Dockerfile's is shown from this many microseconds on.
const NOTABLE: i64 = 1_000_000;

/// What a job's events have told so far. The same events always tell the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    fetching_at: Option<Timestamp>,
    building_at: Option<Timestamp>,
    pushing_at: Option<Timestamp>,
    phase: Option<PlatformPhase>,
    steps: Vec<Step>,
    index: HashMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq)]
struct Step {
    name: String,
    started: Timestamp,
    completed: Option<Timestamp>,
    cached: bool,
    failed: bool,
    lines: VecDeque<String>,
}

/// What an event changed of what a status shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Something that is worth being told soon.
    Status,
    /// The last lines of a step that has run for so long.
    Output(Duration),
}

impl Step {
    fn took(&self) -> Option<i64> {
        self.completed.map(|completed| (completed.as_microsecond() - self.started.as_microsecond()).max(0))
    }

    fn is_shown(&self) -> bool {
        is_of_dockerfile(&self.name) || self.failed || self.took().is_some_and(|took| took >= NOTABLE)
    }
}

impl Progress {
    /// Takes an event.
    pub fn take(&mut self, event: &proto::Event) -> Change {
        let time = event.time.as_ref().and_then(timestamp);
        let changed = match &event.kind {
            Some(Kind::Phase(phase)) => self.phase(*phase, time),
            Some(Kind::Step(step)) => self.step(step),
            Some(Kind::Log(log)) => return self.line(log, time),
            _ => false,
        };
        if changed { Change::Status } else { Change::Nothing }
    }

    fn line(&mut self, log: &proto::Log, time: Option<Timestamp>) -> Change {
        let step = self.index.get(&log.step_id).map(|index| &mut self.steps[*index]);
        let Some(step) = step.filter(|step| step.completed.is_none()) else { return Change::Nothing };
        // It is made fit for a status when it is shown, which is seldom.
        let line: String = log.line.chars().take(2 * LINE).collect();
        if line.trim().is_empty() {
            return Change::Nothing;
        }
        if step.lines.len() == LINES {
            step.lines.pop_front();
        }
        step.lines.push_back(line);
        if !step.is_shown() {
            return Change::Nothing;
        }
        let age = time.map_or(0, |time| time.as_microsecond() - step.started.as_microsecond());
        Change::Output(Duration::from_micros(u64::try_from(age).unwrap_or_default()))
    }

    /// Whether a step runs that has written something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.steps.iter().any(|step| step.completed.is_none() && step.is_shown() && !step.lines.is_empty())
    }

    /// What the job does.
    #[must_use]
    pub fn current(&self) -> Option<PlatformPhase> {
        self.phase
    }

    fn phase(&mut self, phase: i32, time: Option<Timestamp>) -> bool {
        let (phase, at) = match proto::Phase::try_from(phase) {
            Ok(proto::Phase::Fetching) => (PlatformPhase::Fetching, &mut self.fetching_at),
            Ok(proto::Phase::Building) => (PlatformPhase::Building, &mut self.building_at),
            Ok(proto::Phase::Pushing) => (PlatformPhase::Pushing, &mut self.pushing_at),
            Ok(proto::Phase::Unspecified) | Err(_) => return false,
        };
        *at = at.or(time);
        self.phase.replace(phase) != Some(phase)
    }

    fn step(&mut self, step: &proto::Step) -> bool {
        let Some(started) = step.started.as_ref().and_then(timestamp) else { return false };
        // BuildKit's are digests; an agent that was taken over may send what it likes.
        if step.id.len() > LONGEST_ID {
            return false;
        }
        let new = Step {
            name: step.name.chars().filter(|char| !is_hidden(*char)).take(NAME).collect(),
            started,
            completed: step.completed.as_ref().and_then(timestamp),
            cached: step.cached,
            failed: !step.error.is_empty(),
            lines: VecDeque::new(),
        };
        let shown = new.is_shown();
        match self.index.get(&step.id) {
            Some(known) => {
                let known = &mut self.steps[*known];
                let mut former = std::mem::replace(known, new);
                let lines = std::mem::take(&mut former.lines);
                let changed = former != *known;
                // What it wrote is the log's once it has ended.
                if known.completed.is_none() {
                    known.lines = lines;
                }
                (shown || former.is_shown()) && changed
            }
            None if self.steps.len() < KNOWN => {
                self.index.insert(step.id.clone(), self.steps.len());
                self.steps.push(new);
                shown
            }
            None => false,
        }
    }

    /// The status of a platform whose job has told this. A job that has told nothing yet, such as one whose events a new
    /// operator has just begun to read, changes nothing.
    #[must_use]
    pub fn in_status(&self, platform: PlatformStatus) -> PlatformStatus {
        let at = |time: Option<Timestamp>, former| time.map(MicroTime).or(former);
        let told = !self.steps.is_empty();
        PlatformStatus {
            fetching_at: at(self.fetching_at, platform.fetching_at),
            building_at: at(self.building_at, platform.building_at),
            pushing_at: at(self.pushing_at, platform.pushing_at),
            steps: if told { self.shown() } else { platform.steps },
            first_cache_miss: if told { self.first_cache_miss() } else { platform.first_cache_miss },
            ..platform
        }
    }

    /// The steps in the order in which they began. Where there are too many, other work than the Dockerfile's gives way
    /// first, then what was cached, then what began first; what failed stays.
    fn shown(&self) -> Vec<StepStatus> {
        let mut steps: Vec<&Step> = self.steps.iter().filter(|step| step.is_shown()).collect();
        steps.sort_by_key(|step| step.started);
        if steps.len() > SHOWN {
            let mut by_worth: Vec<usize> = (0..steps.len()).collect();
            by_worth.sort_by_key(|index| {
                let step = steps[*index];
                (!step.failed, !is_of_dockerfile(&step.name), step.cached, std::cmp::Reverse(*index))
            });
            by_worth.truncate(SHOWN);
            by_worth.sort_unstable();
            steps = by_worth.into_iter().map(|index| steps[index]).collect();
        }
        let mut room = WITH_LINES;
        steps
            .into_iter()
            .map(|step| {
                let with_lines = step.completed.is_none() && !step.lines.is_empty() && room > 0;
                room -= usize::from(with_lines);
                StepStatus {
                    name: step.name.clone(),
                    started_at: Some(MicroTime(step.started)),
                    seconds: step.took().map(seconds),
                    cached: step.cached,
                    failed: step.failed,
                    output: if with_lines {
                        step.lines.iter().map(|line| plain_text(line, LINE)).collect()
                    } else {
                        Vec::new()
                    },
                }
            })
            .collect()
    }

    /// The step of the Dockerfile that was the first to end without having been in the cache. A base image has no cache
    /// to miss.
    fn first_cache_miss(&self) -> Option<String> {
        self.steps
            .iter()
            .filter(|step| !step.cached && is_of_dockerfile(&step.name) && !is_base(&step.name))
            .filter_map(|step| Some((step.completed?, &step.name)))
            .min_by_key(|(completed, _)| *completed)
            .map(|(_, name)| name.clone())
    }
}

/// To the microsecond, as the API server keeps times: what is written and what is read back compare equal.
fn timestamp(time: &prost_types::Timestamp) -> Option<Timestamp> {
    let micros = time.seconds.checked_mul(1_000_000)?.checked_add(i64::from(time.nanos) / 1000)?;
    Timestamp::from_microsecond(micros).ok()
}

/// Such as `3.2`, or `0.04` where it took less than a second.
fn seconds(micros: i64) -> String {
    if micros < NOTABLE {
        return format!("0.{:02}", micros / 10_000);
    }
    let tenths = micros / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Whether a step is a line of the Dockerfile: BuildKit names those `[stage n/m] …`, and all other work otherwise.
fn is_of_dockerfile(name: &str) -> bool {
    let Some((place, _)) = name.strip_prefix('[').and_then(|name| name.split_once(']')) else { return false };
    let count = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    place.rsplit(' ').next().and_then(|word| word.split_once('/')).is_some_and(|(n, of)| count(n) && count(of))
}

fn is_base(name: &str) -> bool {
    name.split_once("] ").is_some_and(|(_, instruction)| instruction.starts_with("FROM "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(millis: i64) -> prost_types::Timestamp {
        let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap() + 789;
        prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos }
    }

    fn event(kind: Kind, millis: i64) -> proto::Event {
        proto::Event { sequence: 0, time: Some(time(millis)), kind: Some(kind) }
    }

    /// `+` began, `-` ended, `=` was cached, `!` failed: the id is the name.
    fn step(text: &str, began: i64, ended: i64) -> proto::Event {
        let (mark, name) = text.split_at(1);
        let step = proto::Step {
            id: name.replace(char::is_control, ""),
            name: name.to_owned(),
            started: Some(time(began)),
            completed: (mark != "+").then(|| time(ended)),
            cached: mark == "=",
            error: if mark == "!" { "exit code: 1".to_owned() } else { String::new() },
        };
        event(Kind::Step(step), ended)
    }

    fn after(events: &[proto::Event]) -> PlatformStatus {
        let mut progress = Progress::default();
        for event in events {
            progress.take(event);
        }
        progress.in_status(PlatformStatus::default())
    }

    fn shown(status: &PlatformStatus) -> String {
        let steps = status.steps.iter().map(|step| {
            let mark = match (step.failed, step.cached) {
                (true, _) => "failed",
                (_, true) => "cached",
                _ => "",
            };
            format!("{} {} {mark}\n", step.name, step.seconds.as_deref().unwrap_or("…"))
        });
        format!("{}first miss: {:?}", steps.collect::<String>(), status.first_cache_miss)
    }

    /// An agent that was taken over sends steps without end, and ids of any length.
    #[test]
    fn what_is_remembered_is_bounded() {
        let mut progress = Progress::default();
        for number in 0..2 * KNOWN {
            progress.take(&step(&format!("-[1/2] RUN {number}"), 0, 5));
        }
        let long = "x".repeat(LONGEST_ID + 1);
        progress.take(&step(&format!("-{long}"), 0, 5));
        assert_eq!((progress.steps.len(), progress.index.len()), (KNOWN, KNOWN));
        let mut progress = Progress::default();
        assert_eq!(progress.take(&step(&format!("-{long}"), 0, NOTABLE)), Change::Nothing);
        assert_eq!(progress.steps, []);
        assert_eq!(progress.in_status(PlatformStatus::default()).steps, []);
    }

    #[test]
    fn steps_of_the_dockerfile_and_other_long_work_are_shown() {
        let status = after(&[
            event(Kind::Phase(proto::Phase::Fetching.into()), 5),
            event(Kind::Phase(proto::Phase::Building.into()), 50),
            step("-[internal] load build definition from Dockerfile", 51, 60),
            step("-[internal] load build context", 61, 3_000),
            step("+[build 1/3] FROM docker.io/library/golang", 61, 61),
            step("-[build 1/3] FROM docker.io/library/golang", 61, 2_000),
            step("=[build 2/3] COPY go.mod .", 3_000, 3_000),
            step("+[build 3/3] RUN make", 3_001, 3_001),
            step("+[stage-1 2/2] RUN apk add curl", 3_002, 3_002),
            step("-[stage-1 2/2] RUN apk add curl", 3_002, 4_250),
            step("!\u{1b}[build 3/3] RUN make", 3_001, 10_999),
            step("-exporting to image", 5_000, 5_900),
            event(Kind::Phase(proto::Phase::Pushing.into()), 11_000),
        ]);
        insta::assert_snapshot!(shown(&status));
        let at = |time: &Option<MicroTime>| time.as_ref().map(|time| time.0.as_microsecond());
        let times = [at(&status.fetching_at), at(&status.building_at), at(&status.pushing_at)];
        assert_eq!(times, [Some(5_000), Some(50_000), Some(11_000_000)], "to the microsecond");
    }

    #[test]
    fn names_tell_what_a_step_is() {
        for (name, of_dockerfile, base) in [
            ("[2/4] RUN make", true, false),
            ("[build 2/4] COPY . .", true, false),
            ("[linux/arm64->amd64 build 2/4] RUN make", true, false),
            ("[stage-1 1/2] FROM docker.io/library/alpine:3", true, true),
            ("[internal] load metadata for docker.io/library/alpine:3", false, false),
            ("[auth] library/alpine:pull token for registry-1.docker.io", false, false),
            ("exporting to image", false, false),
            ("[2/x] RUN make", false, false),
            ("[]", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_of_dockerfile(name), is_base(name)), (of_dockerfile, base), "{name}");
        }
    }

    #[test]
    fn the_last_lines_of_what_runs_are_shown() {
        let mut progress = Progress::default();
        let line = |id: &str, line: &str, millis| {
            event(Kind::Log(proto::Log { step_id: id.to_owned(), line: line.to_owned() }), millis)
        };
        let id = "[1/2] RUN make";
        assert_eq!(progress.take(&line(id, "of a step that nobody knows", 5)), Change::Nothing);
        progress.take(&step(&format!("+{id}"), 1_000, 1_000));
        assert!(!progress.has_output());
        for (number, text) in ["one", "two", "three", " ", "\u{1b}four"].into_iter().enumerate() {
            let changed = progress.take(&line(id, text, 3_000));
            let expected = if number == 3 { Change::Nothing } else { Change::Output(Duration::from_secs(2)) };
            assert_eq!(changed, expected, "{text}");
        }
        progress.take(&line(id, &"x".repeat(1000), 4_000));
        // Told again, as by another platform's share of it, it goes on.
        assert_eq!(progress.take(&step(&format!("+{id}"), 1_000, 1_000)), Change::Nothing);
        assert!(progress.has_output());
        let shown = |progress: &Progress| progress.in_status(PlatformStatus::default()).steps[0].output.clone();
        assert_eq!(shown(&progress), ["three", "four", &format!("{}…", "x".repeat(LINE))]);
        progress.take(&step(&format!("-{id}"), 1_000, 9_000));
        assert_eq!((shown(&progress), progress.has_output()), (Vec::new(), false));
        assert_eq!(progress.take(&line(id, "late", 9_500)), Change::Nothing);
    }

    #[test]
    fn too_many_steps_give_way_by_their_worth() {
        let mut events = vec![step("-exporting to image", 0, 9_000), step("![1/999] RUN fail", 1, 2)];
        events.extend((0..100).map(|n| step(&format!("=[{}/999] RUN {n}", n + 2), n + 10, n + 10)));
        events.extend((0..100).map(|n| step(&format!("-[{}/999] RUN {n}", n + 102), n + 200, n + 201)));
        let status = after(&events);
        assert_eq!(status.steps.len(), SHOWN);
        assert!(status.steps[0].failed);
        assert_eq!(status.steps.iter().filter(|step| step.cached).count(), 27);
        assert_eq!(status.steps[SHOWN - 1].name, "[201/999] RUN 99");
    }

    #[test]
    fn nothing_told_changes_nothing() {
        let before = after(&[event(Kind::Phase(proto::Phase::Building.into()), 1), step("-[1/2] RUN true", 1, 2)]);
        assert_eq!(Progress::default().in_status(before.clone()), before);
    }

    proptest! {
        #[test]
        fn any_events_keep_the_bounds_and_tell_the_same_twice(
            steps in proptest::collection::vec((0_u8..200, ".{0,300}", any::<i64>(), 0_i64..100_000, 0_u8..4), 0..300),
        ) {
            let events: Vec<proto::Event> = steps
                .iter()
                .map(|(id, name, began, took, mark)| {
                    let began = began % 1_000_000_000_000;
                    let mark = char::from(b"+-=!"[usize::from(*mark)]);
                    let mut event = step(&format!("{mark}[{id}/9] {name}"), began, began + took);
                    if let Some(Kind::Step(step)) = &mut event.kind {
                        step.id = id.to_string();
                    }
                    event
                })
                .collect();
            let once = after(&events);
            prop_assert!(once.steps.len() <= SHOWN);
            for step in &once.steps {
                prop_assert!(step.name.chars().count() <= NAME && !step.name.chars().any(is_hidden));
                prop_assert!(step.seconds.as_ref().is_none_or(|seconds| seconds.len() <= 16));
            }
            // Read again from the start, over what a former operator wrote.
            let mut again = Progress::default();
            for event in &events {
                again.take(event);
            }
            prop_assert_eq!(again.in_status(once.clone()), once);
        }
    }
}
