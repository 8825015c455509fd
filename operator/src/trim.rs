//! What the copies of ImageBuilds and runs leave out: what may be large. A spec's files, and its other texts where they are
//! more than a few kilobytes, are read from the API server when a run or a job is made of them; two hashes stand for them. Of
//! a run that has ended, and is let go of, nobody reads more than how it ended.

use kiln_crds::image_build::{BuildFailure, BuildWarning, BuiltImage, ImageBuildSpec, PlatformSpec};
use kiln_crds::image_build_run::PlatformStatus;
use kiln_crds::{ImageBuild, ImageBuildRun, REBUILD_ANNOTATION};
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use serde::Serialize;

use crate::image_build::apply::REQUESTED_AT;
use crate::image_build::input::{spec_hash, spec_text};
use crate::image_build::rebuild;
use crate::image_build_run::hold::{FINALIZER, is_held};
use crate::image_build_run::warnings::is_of_tags;

/// In the copy alone: the hash of what a user wrote. Its spec is not whole.
const WRITTEN: &str = "kiln.build/in-memory-written";
/// In the copy alone: the same without where the image goes.
const CONTENT: &str = "kiln.build/in-memory-content";
/// In the copy of a run alone: its spec is not whole.
const SPEC: &str = "kiln.build/in-memory-spec";
/// In the copy alone: its status is not whole.
const STATUS: &str = "kiln.build/in-memory-status";
/// In the copy alone: there are other finalizers than Kiln's.
const FINALIZERS: &str = "kiln.build/in-memory-finalizers";
/// In the copy alone: its spec is so large that nothing of it is kept.
const TOO_LARGE: &str = "kiln.build/in-memory-too-large";
/// As much as a copy keeps, by [`weight`], of each thing that it may leave out.
const KEPT: usize = 4096;
/// The largest spec that is worked on, by [`weight`], without what a copy may leave out.
pub const LARGEST: usize = 32 << 10;
/// What an element of a map or list takes beside its text.
pub const ELEMENT: usize = 32;

/// Leaves out who wrote which field: megabytes over ten thousand objects, and nobody reads it.
pub fn managed_fields<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Leaves out of an ImageBuild what may be large.
pub fn image_build(build: &mut ImageBuild) {
    // Whoever writes the marks is not asked: they are not among what is kept.
    metadata(&mut build.metadata, REBUILD_ANNOTATION);
    if is_large(&build.spec) {
        let hashes = [(WRITTEN, true), (CONTENT, false)]
            .map(|(key, destination)| (key.to_owned(), spec_text(&build.spec, rebuild(build), destination)));
        build.annotations_mut().extend(hashes);
        spec(&mut build.spec);
    }
    if weight(&build.spec) > LARGEST {
        let ImageBuildSpec { suspend, history, image, .. } = std::mem::take(&mut build.spec);
        // What it has pushed stays its own, as far as there is room.
        let image = image.filter(|image| weight(image) <= KEPT);
        build.spec = ImageBuildSpec { suspend, history, image, ..ImageBuildSpec::default() };
        mark(&mut build.metadata, TOO_LARGE);
    }
    if let Some(status) = &mut build.status
        && shown(status.image.as_mut(), &mut status.warnings, status.failure.as_deref_mut())
    {
        mark(&mut build.metadata, STATUS);
    }
    // A list that was read has room for more; a copy of it has not.
    *build = build.clone();
}

/// Leaves out of a run what may be large, and, once it has ended, what was needed for its end.
pub fn run(run: &mut ImageBuildRun) {
    metadata(&mut run.metadata, REQUESTED_AT);
    if is_large(&run.spec.build) {
        spec(&mut run.spec.build);
        mark(&mut run.metadata, SPEC);
    }
    // Of one that has ended and is held, the trace is still to be made.
    let is_let_go = !is_held(run);
    if let Some(status) = run.status.as_mut().filter(|status| is_let_go && status.phase.is_final()) {
        if let Some(image) = &mut run.spec.copy_of {
            image.platforms.clear();
        }
        for platform in &mut status.platforms {
            let PlatformStatus { name, phase, attempt, builder, finished_at, .. } = std::mem::take(platform);
            *platform = PlatformStatus { name, phase, attempt, builder, finished_at, ..PlatformStatus::default() };
        }
        if shown(status.image.as_mut(), &mut status.warnings, status.failure.as_deref_mut()) {
            mark(&mut run.metadata, STATUS);
        }
    }
    *run = run.clone();
}

/// Whether the spec is so large that it is not worked on.
#[must_use]
pub fn is_too_large(build: &ImageBuild) -> bool {
    has(build, TOO_LARGE)
}

/// Whether the spec is as the API server has it.
#[must_use]
pub fn has_whole_spec<K: kube::Resource>(object: &K) -> bool {
    !has(object, WRITTEN) && !has(object, SPEC)
}

/// Whether the finalizers are those that the API server has.
#[must_use]
pub fn has_all_finalizers<K: kube::Resource>(object: &K) -> bool {
    !has(object, FINALIZERS)
}

/// Whether all of the status is there that an ImageBuild's is made from.
#[must_use]
pub fn has_whole_status<K: kube::Resource>(object: &K) -> bool {
    !has(object, STATUS)
}

/// The metadata that the API server answered a write with, for the copy that `former` was of: what that leaves out is said
/// there.
#[must_use]
pub fn written_over(written: ObjectMeta, former: &ObjectMeta) -> ObjectMeta {
    ObjectMeta { annotations: former.annotations.clone(), labels: former.labels.clone(), ..written }
}

/// [`spec_hash`] of an ImageBuild, whole or trimmed.
#[must_use]
pub fn written(build: &ImageBuild) -> String {
    build.annotations().get(WRITTEN).cloned().unwrap_or_else(|| spec_hash(&build.spec, rebuild(build)))
}

/// The same without where the image goes.
#[must_use]
pub fn content(build: &ImageBuild) -> String {
    build.annotations().get(CONTENT).cloned().unwrap_or_else(|| spec_text(&build.spec, rebuild(build), false))
}

/// Leaves one annotation, Kiln's finalizer, and neither labels nor owners: there may be any number of each.
fn metadata(metadata: &mut ObjectMeta, annotation: &str) {
    metadata.managed_fields = None;
    metadata.labels = None;
    metadata.owner_references = None;
    let kept = metadata.annotations.take().and_then(|mut annotations| annotations.remove_entry(annotation));
    metadata.annotations = kept.map(|(key, value)| [(key, beginning(&value).to_owned())].into());
    let finalizers = metadata.finalizers.get_or_insert_default();
    if weight(finalizers) > KEPT {
        finalizers.retain(|finalizer| finalizer == FINALIZER);
        mark(metadata, FINALIZERS);
    }
}

/// As much of the value of an annotation as counts.
#[must_use]
pub fn beginning(value: &str) -> &str {
    &value[..value.floor_char_boundary(KEPT)]
}

fn mark(metadata: &mut ObjectMeta, what: &str) {
    metadata.annotations.get_or_insert_default().insert(what.to_owned(), String::new());
}

fn has<K: kube::Resource>(object: &K, what: &str) -> bool {
    object.meta().annotations.as_ref().is_some_and(|annotations| annotations.contains_key(what))
}

/// What a value takes in memory, more or less: the length of its JSON, and something for each element.
fn weight(of: &impl Serialize) -> usize {
    struct Weight(usize);
    impl std::io::Write for Weight {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let elements = bytes.iter().filter(|byte| matches!(byte, b',' | b':' | b'{' | b'[')).count();
            self.0 += bytes.len() + elements * ELEMENT;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut weight = Weight(0);
    // It holds no map whose keys are no texts.
    let _ = serde_json::to_writer(&mut weight, of);
    weight.0
}

/// Whether there is more of a spec than a copy keeps. No decision reads it.
fn is_large(of: &ImageBuildSpec) -> bool {
    let ImageBuildSpec { args, labels, annotations, dockerfile_inline, host_aliases, ulimits, .. } = of;
    let of_platforms: Vec<_> = of.platforms.iter().flatten().map(|platform| &platform.args).collect();
    let left_out = (args, labels, annotations, dockerfile_inline, host_aliases, ulimits, of_platforms);
    of.inline().is_some() || weight(&left_out) > KEPT
}

fn spec(of: &mut ImageBuildSpec) {
    let ImageBuildSpec {
        source, args, labels, annotations, platforms, dockerfile_inline, host_aliases, ulimits, ..
    } = of;
    if let Some(inline) = source.as_mut().and_then(|source| source.inline.as_mut()) {
        inline.files.clear();
    }
    for PlatformSpec { args, .. } in platforms.iter_mut().flatten() {
        args.clear();
    }
    for texts in [args, labels, annotations] {
        texts.clear();
    }
    *dockerfile_inline = None;
    host_aliases.clear();
    ulimits.clear();
}

/// Leaves out of what is shown to a user, and decides nothing, what is more than a copy keeps. Whether it did. Each part by
/// itself: an ImageBuild shows the image of one run and the failure of another, and what is left of both is to be the same.
fn shown(image: Option<&mut BuiltImage>, warnings: &mut Vec<BuildWarning>, failure: Option<&mut BuildFailure>) -> bool {
    let mut is_less = false;
    if let Some(image) = image {
        let layers = || image.platforms.iter().filter_map(|platform| Some(&platform.content.as_ref()?.layers));
        if weight(&layers().collect::<Vec<_>>()) > KEPT {
            is_less = true;
            for content in image.platforms.iter_mut().filter_map(|platform| platform.content.as_mut()) {
                content.layers.clear();
            }
        }
    }
    if weight(warnings) > KEPT {
        is_less = true;
        warnings.retain(is_of_tags);
    }
    if let Some(failure) = failure
        && weight(&(&failure.log_tail, &failure.excerpt)) > KEPT
    {
        is_less = true;
        failure.log_tail.clear();
        failure.excerpt.clear();
    }
    is_less
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// More than a copy keeps; no hash has such letters.
    fn large() -> String {
        "xyz".repeat(KEPT / 2)
    }

    fn build(spec: &Value, annotations: &Value) -> ImageBuild {
        let mut build: ImageBuild = serde_json::from_value(json!({
            "metadata": {
                "name": "app",
                "annotations": annotations,
                "labels": {"a": large()},
                "finalizers": [large()],
                "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": large(), "uid": "u"}],
                "managedFields": [{"manager": large()}],
            },
            "spec": {"image": {"repository": "registry.example/app", "tags": ["one"]}},
        }))
        .unwrap();
        build.spec = serde_json::from_value(merged(serde_json::to_value(&build.spec).unwrap(), spec)).unwrap();
        build
    }

    fn merged(mut into: Value, more: &Value) -> Value {
        into.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        into
    }

    fn specs() -> [Value; 8] {
        [
            json!({"source": {"inline": {"files": {"Dockerfile": large()}}}}),
            json!({"args": {"A": large()}}),
            json!({"labels": {"A": large()}}),
            json!({"annotations": {"A": large()}}),
            json!({"platforms": [{"name": "linux/amd64", "args": {"A": large()}}]}),
            json!({"dockerfileInline": large()}),
            json!({"hostAliases": [{"ip": "10.0.0.1", "hostnames": [large()]}]}),
            json!({"platforms": (0..16).map(|number| json!({
                "name": format!("linux/{number}"),
                "args": (0..128).map(|arg| (format!("xyz{arg}"), json!(""))).collect::<serde_json::Map<_, _>>(),
            })).collect::<Vec<_>>()}),
        ]
    }

    #[test]
    fn a_trimmed_one_is_known_by_the_same_hashes() {
        for spec in specs() {
            for annotations in [
                json!({}),
                json!({"kiln.build/rebuild": "1", "other": large()}),
                json!({WRITTEN: "forged", CONTENT: "forged", SPEC: "forged", STATUS: "forged"}),
            ] {
                let whole = build(&spec, &annotations);
                let mut trimmed = whole.clone();
                image_build(&mut trimmed);
                assert_eq!(written(&trimmed), spec_hash(&whole.spec, rebuild(&whole)));
                assert_eq!(content(&trimmed), spec_text(&whole.spec, rebuild(&whole), false));
                assert_eq!(rebuild(&trimmed), rebuild(&whole));
                let kept = serde_json::to_string(&trimmed).unwrap();
                assert!(!kept.contains("xyz"), "{kept}");
                assert!(!has_whole_spec(&trimmed) && has_whole_status(&trimmed));
            }
        }
        let trimmed = |args: &str| {
            let mut build = build(&json!({"args": {"A": args}}), &json!({}));
            image_build(&mut build);
            build
        };
        assert_ne!(written(&trimmed(&large())), written(&trimmed(&(large() + "x"))));
        let small = trimmed("x");
        assert!(has_whole_spec(&small) && small.spec.args.len() == 1);
        // Of what asks for a rebuild only as much counts as a copy keeps.
        let asked = build(&json!({}), &json!({REBUILD_ANNOTATION: "ä".repeat(KEPT)}));
        let mut trimmed = asked.clone();
        image_build(&mut trimmed);
        assert_eq!(rebuild(&trimmed), rebuild(&asked));
        assert_eq!(rebuild(&trimmed).map(str::len), Some(KEPT));
    }

    #[test]
    fn of_what_is_too_large_nothing_is_kept() {
        let url = |number: usize| format!("https://git.example/{number}/{}", "u".repeat(2000));
        let contexts = |most: usize| {
            let git = |number: usize| json!({"name": format!("c{number}"), "git": {"url": url(number)}});
            json!({"contexts": (0..most).map(git).collect::<Vec<_>>()})
        };
        for (spec, is_large) in [
            (contexts(8), false),
            (contexts(16), true),
            (json!({"image": {"repository": "r.example/app", "tags": vec!["t".repeat(128); 32]}}), false),
            (
                json!({"secrets": (0..32).map(|number| json!({
                "id": format!("{number}"), "secretRef": {"name": "n".repeat(253), "key": "k".repeat(253)},
            })).collect::<Vec<_>>()}),
                false,
            ),
        ] {
            let whole = build(&spec, &json!({}));
            let mut trimmed = whole.clone();
            image_build(&mut trimmed);
            assert_eq!(is_too_large(&trimmed), is_large, "{spec}");
            let finalizers = "a".repeat(4096);
            let many = ImageBuild {
                metadata: ObjectMeta {
                    finalizers: Some(finalizers.chars().map(String::from).collect()),
                    ..whole.metadata
                },
                ..whole
            };
            let mut trimmed = many;
            image_build(&mut trimmed);
            assert!(weight(&trimmed) < LARGEST + 3 * KEPT, "{} of {spec}", weight(&trimmed));
        }
    }

    /// Else each reconcile would read both whole, for ever.
    #[test]
    fn what_is_left_of_an_image_build_is_what_is_left_of_its_runs() {
        use crate::image_build::status::{Observed, status};
        use std::sync::Arc;
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        for (layers, warnings, lines) in (0..8).map(|bits| (bits & 1, bits >> 1 & 1, bits >> 2 & 1)) {
            let image = json!({
                "ref": "r.example/app@sha256:0", "repository": "r.example/app", "digest": "sha256:0",
                "pushedAt": "1970-01-01T00:00:00Z",
                "platforms": [{"name": "linux/amd64", "digest": "sha256:1", "content": {
                    "compressedBytes": 7, "layers": vec![json!({"bytes": 1, "createdBy": "RUN make"}); 20 + 100 * layers],
                }}],
            });
            let run_of = |number: u64, status: Value| -> Arc<ImageBuildRun> {
                Arc::new(
                    serde_json::from_value(json!({
                        "metadata": {"name": format!("app-{number}"), "namespace": "team"},
                        "spec": {
                            "imageBuild": {"name": "app", "uid": "u"}, "number": number, "inputHash": "x",
                            "build": {"image": {"repository": "r.example/app"}},
                        },
                        "status": status,
                    }))
                    .unwrap(),
                )
            };
            let failure =
                json!({"reason": "StepFailed", "message": "m", "logTail": vec!["y".repeat(100); 15 + 30 * lines]});
            let warning = json!({"rule": "Lint", "message": "x"});
            let runs = [
                run_of(1, json!({"phase": "Succeeded", "image": image})),
                run_of(
                    2,
                    json!({"phase": "Failed", "failure": failure, "warnings": vec![warning; 10 + 50 * warnings]}),
                ),
            ];
            let mut build = build(&json!({}), &json!({}));
            build.metadata.namespace = Some("team".to_owned());
            build.status = Some(status(&Observed { build: &build, runs: &runs, fault: None, held_back: false }, now));
            image_build(&mut build);
            let runs = runs.map(|whole| {
                let mut trimmed = (*whole).clone();
                run(&mut trimmed);
                Arc::new(trimmed)
            });
            let again = status(&Observed { build: &build, runs: &runs, fault: None, held_back: false }, now);
            assert_eq!(Some(&again), build.status.as_ref(), "{layers} {warnings} {lines}");
            assert_eq!(has_whole_status(&build), layers + warnings + lines == 0);
        }
    }

    #[test]
    fn a_run_keeps_what_is_read_of_it() {
        for spec in specs() {
            let mut of: ImageBuildRun = serde_json::from_value(json!({
                "metadata": {
                    "name": "app-1", "labels": {"a": large()},
                    "annotations": {REQUESTED_AT: "1970-01-01T00:00:00Z", "a": large()},
                    "finalizers": [large(), FINALIZER],
                },
                "spec": {"imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "x", "build": spec},
            }))
            .unwrap();
            run(&mut of);
            assert!(!serde_json::to_string(&of).unwrap().contains("xyz"));
            assert!(!has_whole_spec(&of) && !has_all_finalizers(&of));
            assert_eq!(of.finalizers(), [FINALIZER]);
            assert!(of.annotations().contains_key(REQUESTED_AT));
            // The API server answers a write with what it has.
            let answer: ObjectMeta =
                serde_json::from_value(json!({"annotations": {"a": large()}, "resourceVersion": "2"})).unwrap();
            let metadata = written_over(answer, &of.metadata);
            let after = ImageBuildRun { metadata, ..of };
            assert!(!has_whole_spec(&after));
            assert_eq!(after.resource_version().as_deref(), Some("2"));
        }
    }

    #[test]
    fn what_was_needed_for_its_end_is_kept_until_then() {
        for (phase, finalizers, kept) in [
            ("Building", json!([FINALIZER]), true),
            ("Building", json!([]), true),
            ("Succeeded", json!(["other", FINALIZER]), true),
            ("Succeeded", json!(["other"]), false),
            ("Failed", json!([]), false),
        ] {
            let image = json!({
                "ref": "r.example/app@sha256:0", "repository": "r.example/app", "digest": "sha256:0",
                "pushedAt": "1970-01-01T00:00:00Z", "platforms": [{"name": "linux/amd64", "digest": "sha256:1"}],
            });
            let mut of: ImageBuildRun = serde_json::from_value(json!({
                "metadata": {"name": "app-1", "finalizers": finalizers},
                "spec": {
                    "imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "x", "build": {}, "copyOf": image,
                },
                "status": {"phase": phase, "platforms": [{
                    "name": "linux/amd64", "phase": "Succeeded", "attempt": 2, "finishedAt": "1970-01-01T00:00:00.000000Z",
                    "builder": {"pod": "p", "uid": "u", "node": "n"},
                    "steps": [{"name": "[1/1] FROM x"}], "content": {"compressedBytes": 1},
                }]},
            }))
            .unwrap();
            run(&mut of);
            let platform = &of.status.as_ref().unwrap().platforms[0];
            assert_eq!((platform.steps.len(), platform.content.is_some()), (usize::from(kept), kept), "{phase}");
            assert!(platform.builder.is_some() && platform.finished_at.is_some() && platform.attempt == 2);
            assert_eq!(of.spec.copy_of.unwrap().platforms.len(), usize::from(kept));
        }
    }

    #[test]
    fn a_status_keeps_what_decides() {
        let content = |layers: usize| json!({"compressedBytes": 7, "layers": vec![json!({"bytes": 1, "createdBy": "RUN make"}); layers]});
        let warning = |rule: &str, message: &str| json!({"rule": rule, "message": message});
        let status = |layers: usize, warnings: usize, lines: usize| {
            let warnings = [vec![warning("Lint", "x"); warnings], vec![warning("TagMoved", "one")]].concat();
            json!({
                "image": {
                    "ref": "r.example/app@sha256:0", "repository": "r.example/app", "digest": "sha256:0",
                    "pushedAt": "1970-01-01T00:00:00Z",
                    "platforms": [{"name": "linux/amd64", "digest": "sha256:1", "content": content(layers)}],
                },
                "warnings": warnings,
                "failure": {"reason": "StepFailed", "message": "m", "logTail": vec!["y".repeat(100); lines]},
            })
        };
        for (layers, warnings, lines, whole) in
            [(10, 3, 10, true), (200, 3, 10, false), (10, 60, 10, false), (10, 3, 60, false), (20, 15, 15, true)]
        {
            let shown = status(layers, warnings, lines);
            let mut of = ImageBuild::new("app", serde_json::from_value(json!({})).unwrap());
            of.status = serde_json::from_value(shown.clone()).unwrap();
            image_build(&mut of);
            assert_eq!(has_whole_status(&of), whole, "{layers} {warnings} {lines}");
            let status = of.status.unwrap();
            let kept = &status.image.unwrap().platforms[0];
            let kept = kept.content.as_ref().unwrap();
            // Each part goes by itself.
            assert_eq!((kept.compressed_bytes, kept.layers.len()), (7, if layers < 100 { layers } else { 0 }));
            assert_eq!(status.warnings.iter().filter(|warning| is_of_tags(warning)).count(), 1);
            assert_eq!(status.warnings.len(), 1 + if warnings < 50 { warnings } else { 0 });
            assert_eq!(status.failure.unwrap().log_tail.len(), if lines < 50 { lines } else { 0 });
        }
    }
}
