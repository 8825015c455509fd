//! One OpenTelemetry trace for each run, from its first sight to its last tag, with BuildKit's own spans below.

use std::collections::HashMap;
use std::time::Duration;

use kiln_e2e::{Build, Tenant, wait};
use kube::ResourceExt as _;
use serde_json::Value;

kiln_e2e::tests![a_run_is_one_trace_with_buildkits_spans_below];

/// A span as the collector has written it.
#[derive(Clone, Debug)]
struct Span {
    id: String,
    parent: String,
    name: String,
    service: String,
    begin: u128,
    end: u128,
}

/// The spans of a trace in a collector's file: a request a line, in OTLP's JSON.
/// <https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/>
fn spans(file: &str, trace: &str) -> Vec<Span> {
    fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
        value[key].as_array().into_iter().flatten()
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |value: &Value| text(value).parse().unwrap_or_default();
    let lines = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("KILN_TRACES names {file}: {error}"));
    let mut found = Vec::new();
    // A line that is being written is whole at the next look.
    for request in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for resource in list(&request, "resourceSpans") {
            let service =
                list(&resource["resource"], "attributes").find(|attribute| attribute["key"] == "service.name");
            let service = service.map(|service| text(&service["value"]["stringValue"])).unwrap_or_default();
            for span in list(resource, "scopeSpans").flat_map(|scope| list(scope, "spans")) {
                if span["traceId"] == trace {
                    found.push(Span {
                        id: text(&span["spanId"]),
                        parent: text(&span["parentSpanId"]),
                        name: text(&span["name"]),
                        service: service.clone(),
                        begin: time(&span["startTimeUnixNano"]),
                        end: time(&span["endTimeUnixNano"]),
                    });
                }
            }
        }
    }
    found
}

/// Whether a span of buildkitd is below the build of a platform. What lies between the two is kiln-build's.
fn has_buildkits(spans: &[Span], platform: &str) -> bool {
    let by_id: HashMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let above = |span: &Span| by_id.get(span.parent.as_str()).copied();
    spans.iter().filter(|span| span.service == "buildkitd").any(|span| {
        let line = std::iter::successors(Some(span), |span| above(span)).take(spans.len());
        let mut operators = line.filter(|span| span.service == "kiln-operator");
        operators
            .next()
            .is_some_and(|build| build.name == "build" && above(build).is_some_and(|span| span.name == platform))
    })
}

async fn a_run_is_one_trace_with_buildkits_spans_below() {
    let Ok(file) = std::env::var("KILN_TRACES") else {
        assert!(
            std::env::var_os("KILN_LOCAL_CLUSTER").is_none(),
            "KILN_TRACES is not set: this local cluster runs without its collector; \
             run: make cluster && . .cluster/env && tests/install"
        );
        eprintln!("not tested: traces; KILN_TRACES names no file of a collector");
        return;
    };
    Tenant::fresh("traces", async |tenant| {
        let dockerfile = "FROM busybox\nRUN echo traced > /traced\n";
        let built = tenant.build(&Build::inline(tenant, "app", &[("Dockerfile", dockerfile)])).await;
        let run = tenant.run_of(&built).await;
        let trace = run.uid().unwrap().replace('-', "");
        let platforms = ["linux/amd64", "linux/arm64"];

        // Each builder's BuildKit sends its spans every few seconds.
        let deadline = tokio::time::Instant::now() + wait::SOON;
        let spans = loop {
            let spans = spans(&file, &trace);
            if platforms.iter().all(|name| has_buildkits(&spans, name)) {
                break spans;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "in {trace}, spans of buildkitd below the build of each platform: {spans:#?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let own: Vec<&Span> = spans.iter().filter(|span| span.service == "kiln-operator").collect();
        let by_id: HashMap<&str, &Span> = own.iter().map(|span| (span.id.as_str(), *span)).collect();
        assert_eq!(by_id.len(), own.len(), "each span is sent once: {own:#?}");
        let roots: Vec<_> = own.iter().filter(|span| span.parent.is_empty()).collect();
        assert_eq!(roots.len(), 1, "{own:#?}");
        let root = roots[0];
        assert_eq!(root.name, format!("ImageBuildRun {}/app-1", tenant.namespace));
        let child = |parent: &Span, name: &str| {
            let span = own.iter().find(|span| span.parent == parent.id && span.name == name);
            *span.unwrap_or_else(|| panic!("{name:?} below {:?}: {own:#?}", parent.name))
        };
        assert_eq!(child(root, "resolve").begin, root.begin);
        child(root, "queue");
        assert!(child(root, "publish").end <= root.end && root.begin < root.end);
        for name in platforms {
            let platform = child(root, name);
            for phase in ["start", "fetch", "push"] {
                child(platform, phase);
            }
            let building = child(platform, "build");
            child(building, "[2/2] RUN echo traced > /traced");
        }
    })
    .await;
}
