//! The spans of a finished run, from its status; pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kiln_crds::ImageBuildRun;
use kiln_crds::image_build_run::{PlatformPhase, PlatformStatus, RunPhase, StepStatus};
use kube::ResourceExt;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::id::{build_span, span_id, trace_id};
use crate::condition::find;
use crate::image_build::apply::REQUESTED_AT;
use crate::image_build_run::times::{self, Phase};

/// Makes the spans of one trace.
struct Trace {
    id: TraceId,
    run: String,
}

impl Trace {
    fn span(&self, id: SpanId, parent: SpanId, name: String, begin: Timestamp, end: Timestamp) -> SpanData {
        SpanData {
            span_context: SpanContext::new(self.id, id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: begin.into(),
            end_time: end.max(begin).into(),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("kiln-operator").build(),
        }
    }

    fn id(&self, name: &str) -> SpanId {
        span_id(&self.run, name)
    }

    /// A platform's span and those below it.
    fn platform(&self, platform: &PlatformStatus, parent: SpanId) -> Vec<SpanData> {
        let (Some(begin), Some(end)) = (time(platform.started_at.as_ref()), time(platform.finished_at.as_ref())) else {
            return Vec::new();
        };
        let name = &platform.name;
        let mut own = self.span(self.id(name), parent, name.clone(), begin, end);
        own.attributes = vec![KeyValue::new("kiln.attempt", i64::from(platform.attempt))];
        let builder = platform.builder.as_ref();
        own.attributes.extend(builder.map(|builder| KeyValue::new("k8s.pod.name", builder.pod.clone())));
        own.attributes.extend(builder.map(|builder| KeyValue::new("k8s.node.name", builder.node.clone())));
        own.attributes.extend(text("kiln.digest", platform.digest.as_deref()));
        own.attributes.extend(text("kiln.first_cache_miss", platform.first_cache_miss.as_deref()));
        own.status = match (platform.phase, &platform.failure) {
            (PlatformPhase::Succeeded, _) => Status::Ok,
            (PlatformPhase::Failed, Some(failure)) => Status::error(failure.message.clone()),
            _ => Status::Unset,
        };
        let id = own.span_context.span_id();
        let mut spans = vec![own];
        for part in times::of_platform(None, platform) {
            let phase = part.phase.as_str();
            let id_of_part = match part.phase {
                Phase::Build => build_span(&self.run, name),
                _ => self.id(&format!("{name} {phase}")),
            };
            spans.push(self.span(id_of_part, id, phase.to_owned(), part.begin, part.end));
            if part.phase == Phase::Build {
                let steps = platform.steps.iter().enumerate();
                spans.extend(steps.filter_map(|(index, step)| self.step(step, name, index, id_of_part, end)));
            }
        }
        spans
    }

    fn step(
        &self,
        step: &StepStatus,
        platform: &str,
        index: usize,
        parent: SpanId,
        last: Timestamp,
    ) -> Option<SpanData> {
        let begin = time(step.started_at.as_ref())?;
        let took = step.seconds.as_deref().and_then(|seconds| seconds.parse::<f64>().ok());
        // One that had not ended was stopped with its platform.
        let end = took
            .and_then(|took| SignedDuration::try_from_secs_f64(took).ok())
            .map_or(Some(last), |took| begin.checked_add(took).ok())?;
        let mut span = self.span(self.id(&format!("{platform} step {index}")), parent, step.name.clone(), begin, end);
        span.attributes = vec![KeyValue::new("kiln.cached", step.cached)];
        if step.failed {
            span.status = Status::error("the step failed");
        }
        Some(span)
    }
}

/// One trace, from the apply to the last tag: the run, and below it the look at source and registry that led to it, its
/// time in the queue, its platforms with their phases and steps, and the push of index and tags. Nothing for a run that
/// has not ended.
#[must_use]
pub fn spans(run: &ImageBuildRun) -> Vec<SpanData> {
    let Some(status) = run.status.as_ref().filter(|status| status.phase.is_final()) else { return Vec::new() };
    let uid = run.uid().unwrap_or_default();
    let queued = time(status.queued_at.as_ref()).or_else(|| run.creation_timestamp().map(|created| created.0));
    let (Some(queued), Some(end)) = (queued, time(status.finished_at.as_ref())) else { return Vec::new() };
    let requested = run.annotations().get(REQUESTED_AT).and_then(|time| time.parse::<Timestamp>().ok());
    let begin = requested.map_or(queued, |requested| requested.min(queued));
    let trace = Trace { id: trace_id(&uid), run: uid };
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    let root_id = trace.id("run");
    let mut root = trace.span(root_id, SpanId::INVALID, format!("ImageBuildRun {namespace}/{name}"), begin, end);
    let ended = find(&status.conditions, "Succeeded");
    root.attributes = vec![
        KeyValue::new("k8s.namespace.name", namespace),
        KeyValue::new("kiln.imagebuild", run.spec.image_build.name.clone()),
        KeyValue::new("kiln.run", name),
        KeyValue::new("kiln.outcome", format!("{:?}", status.phase)),
    ];
    root.attributes.extend(text("kiln.reason", ended.map(|ended| ended.reason.as_str())));
    root.attributes.extend(text("kiln.commit", run.spec.commit.as_deref()));
    root.attributes.extend(text("kiln.digest", status.image.as_ref().map(|image| image.digest.as_str())));
    root.status = match (status.phase, &status.failure) {
        (RunPhase::Succeeded, _) => Status::Ok,
        (RunPhase::Failed, Some(failure)) => Status::error(failure.message.clone()),
        _ => Status::Unset,
    };
    let mut spans = vec![root];
    let started = time(status.started_at.as_ref()).unwrap_or(end);
    spans.push(trace.span(trace.id("resolve"), root_id, "resolve".to_owned(), begin, queued));
    spans.push(trace.span(trace.id("queue"), root_id, Phase::Queue.as_str().to_owned(), queued, started));
    for platform in &status.platforms {
        spans.extend(trace.platform(platform, root_id));
    }
    if let Some(publishing) = times::of_publishing(status) {
        let phase = publishing.phase.as_str().to_owned();
        let mut span = trace.span(trace.id("publish"), root_id, phase, publishing.begin, publishing.end);
        span.attributes.extend(text("kiln.image", status.image.as_ref().map(|image| image.reference.as_str())));
        let tags = status.image.as_ref().map(|image| image.tags.join(","));
        span.attributes.extend(text("kiln.tags", tags.as_deref()));
        spans.push(span);
    }
    spans
}

fn time(time: Option<&MicroTime>) -> Option<Timestamp> {
    time.map(|time| time.0)
}

fn text(name: &'static str, value: Option<&str>) -> Option<KeyValue> {
    value.map(|value| KeyValue::new(name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fmt::Write as _;
    use std::time::SystemTime;

    use super::*;
    use kiln_crds::image_build::BuildFailure;
    use kiln_crds::image_build_run::{BuilderRef, ImageBuildRunStatus};

    fn at(second: i64) -> Option<MicroTime> {
        Timestamp::from_second(second).ok().map(MicroTime)
    }

    fn run(phase: RunPhase) -> ImageBuildRun {
        let spec = serde_json::json!({
            "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "v1:x", "commit": "c0ffee",
            "build": {"source": {"inline": {"files": {"Dockerfile": ""}}}, "image": {"repository": "r.example/app"}},
        });
        let mut run = ImageBuildRun::new("app-1", serde_json::from_value(spec).unwrap());
        run.metadata.namespace = Some("team".to_owned());
        run.metadata.uid = Some("0f0e0d0c-1111-4222-8333-444455556666".to_owned());
        run.metadata.annotations = Some([(REQUESTED_AT.to_owned(), "1970-01-01T00:00:00Z".to_owned())].into());
        let step = |name: &str, began, seconds: Option<&str>, cached| StepStatus {
            name: name.into(),
            started_at: at(began),
            seconds: seconds.map(str::to_owned),
            cached,
            ..StepStatus::default()
        };
        let amd64 = PlatformStatus {
            name: "linux/amd64".into(),
            phase: PlatformPhase::Succeeded,
            attempt: 1,
            builder: Some(BuilderRef { pod: "b-0".into(), uid: "u".into(), node: "n".into() }),
            started_at: at(1),
            fetching_at: at(2),
            building_at: at(3),
            pushing_at: at(8),
            finished_at: at(9),
            steps: vec![
                step("[1/2] FROM busybox", 3, Some("0.0"), true),
                step("[2/2] RUN make", 4, Some("3.5"), false),
            ],
            first_cache_miss: Some("[2/2] RUN make".into()),
            ..PlatformStatus::default()
        };
        let arm64 = PlatformStatus {
            name: "linux/arm64".into(),
            phase: PlatformPhase::Failed,
            pushing_at: None,
            finished_at: at(7),
            steps: vec![step("[2/2] RUN make", 4, None, false)],
            failure: Some(Box::new(BuildFailure { message: "make failed".into(), ..BuildFailure::default() })),
            ..amd64.clone()
        };
        run.status = Some(ImageBuildRunStatus {
            phase,
            queued_at: MicroTime(Timestamp::from_millisecond(500).unwrap()).into(),
            started_at: at(1),
            publishing_at: at(9),
            finished_at: at(12),
            platforms: vec![amd64, arm64],
            ..ImageBuildRunStatus::default()
        });
        run
    }

    #[test]
    fn a_run_is_one_tree() {
        let spans = spans(&run(RunPhase::Failed));
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let depths = spans.iter().fold(HashMap::new(), |mut depths: HashMap<SpanId, usize>, span| {
            // A parent stands before its children.
            let depth = depths.get(&span.parent_span_id).map_or(0, |depth| depth + 1);
            assert_eq!(depths.insert(span.span_context.span_id(), depth), None, "no id is there twice");
            depths
        });
        let mut tree = String::new();
        for span in &spans {
            let depth = depths[&span.span_context.span_id()];
            let attributes: Vec<_> = span.attributes.iter().map(|kv| format!("{}={}", kv.key, kv.value)).collect();
            let (begin, end) = (seconds(span.start_time), seconds(span.end_time));
            writeln!(
                tree,
                "{}{} {begin}–{end} {:?} {}",
                "  ".repeat(depth),
                span.name,
                span.status,
                attributes.join(" ")
            )
            .unwrap();
        }
        insta::assert_snapshot!(tree);
        assert_eq!(depths.values().filter(|depth| **depth == 0).count(), 1);
    }

    #[test]
    fn buildkit_finds_the_build_span_above_its_own() {
        let run = run(RunPhase::Succeeded);
        let parent = crate::trace::traceparent(&run.uid().unwrap(), "linux/arm64");
        let spans = spans(&run);
        let build = spans.iter().filter(|span| span.name == "build").nth(1).unwrap();
        let context = &build.span_context;
        assert_eq!(parent, format!("00-{}-{}-01", context.trace_id(), context.span_id()));
    }

    #[test]
    fn a_run_that_goes_on_has_no_trace_yet() {
        assert!(spans(&run(RunPhase::Building)).is_empty());
    }
}
