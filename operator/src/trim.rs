//! What the copies of ImageBuilds and runs leave out: the files of `source.inline`, a megabyte each, which are read from the
//! API server when a run or a job is made of them, two hashes stand for them; and of runs that have ended, and are let go of,
//! their steps, which nobody reads any more.

use kiln_crds::{ImageBuild, ImageBuildRun};
use kube::ResourceExt as _;

use crate::image_build::input::{spec_hash, spec_text};
use crate::image_build::rebuild;

/// In the copy alone: the hash of what a user wrote.
const WRITTEN: &str = "kiln.build/in-memory-written";
/// In the copy alone: the same without where the image goes.
const CONTENT: &str = "kiln.build/in-memory-content";

/// Leaves out who wrote which field: megabytes over ten thousand objects, and nobody reads it.
pub fn managed_fields<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Leaves the files of an ImageBuild out.
pub fn image_build(build: &mut ImageBuild) {
    managed_fields(build);
    // Whoever writes them is not asked.
    for key in [WRITTEN, CONTENT] {
        build.annotations_mut().remove(key);
    }
    if build.spec.inline().is_none() {
        return;
    }
    let hashes = [(WRITTEN, true), (CONTENT, false)]
        .map(|(key, destination)| (key.to_owned(), spec_text(&build.spec, rebuild(build), destination)));
    build.annotations_mut().extend(hashes);
    if let Some(inline) = build.spec.source.as_mut().and_then(|source| source.inline.as_mut()) {
        inline.files.clear();
    }
}

/// Leaves the files of a run out, and its steps once it has ended.
pub fn run(run: &mut ImageBuildRun) {
    managed_fields(run);
    // Until then its trace and its status are made from them.
    let is_let_go = run.finalizers().is_empty();
    if let Some(status) = run.status.as_mut().filter(|status| is_let_go && status.phase.is_final()) {
        for platform in &mut status.platforms {
            platform.steps.clear();
        }
    }
    if let Some(inline) = run.spec.build.source.as_mut().and_then(|source| source.inline.as_mut()) {
        inline.files.clear();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn build(files: &[(&str, &str)], annotations: &[(&str, &str)]) -> ImageBuild {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "app",
                "annotations": annotations.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {
                "source": {"inline": {"files": files.iter().copied().collect::<std::collections::BTreeMap<_, _>>()}},
                "image": {"repository": "registry.example/app", "tags": ["one"]},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_trimmed_one_is_known_by_the_same_hashes() {
        let files = [("Dockerfile", "FROM busybox"), ("large", "xyz")];
        for annotations in [&[][..], &[("kiln.build/rebuild", "1")], &[(WRITTEN, "forged"), (CONTENT, "forged")]] {
            let whole = build(&files, annotations);
            let mut trimmed = whole.clone();
            image_build(&mut trimmed);
            assert_eq!(written(&trimmed), spec_hash(&whole.spec, rebuild(&whole)));
            assert_eq!(content(&trimmed), spec_text(&whole.spec, rebuild(&whole), false));
            assert!(!serde_json::to_string(&trimmed).unwrap().contains("xyz"));
            assert!(trimmed.metadata.managed_fields.is_none());
        }
        let (mut one, mut other) = (build(&files, &[]), build(&[("Dockerfile", "FROM scratch")], &[]));
        image_build(&mut one);
        image_build(&mut other);
        assert_ne!(written(&one), written(&other));
    }

    #[test]
    fn steps_are_kept_for_as_long_as_they_are_read() {
        for (phase, finalizers, kept) in [
            ("Building", &["kiln.build/cancel-jobs"][..], 1),
            ("Building", &[], 1),
            ("Succeeded", &["kiln.build/cancel-jobs"], 1),
            ("Succeeded", &[], 0),
            ("Failed", &[], 0),
        ] {
            let mut of: ImageBuildRun = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "app-1", "finalizers": finalizers},
                "spec": {"imageBuild": {"name": "app", "uid": "u"}, "number": 1, "inputHash": "x", "build": {}},
                "status": {"phase": phase, "platforms": [{"name": "linux/amd64", "steps": [{"name": "[1/1] FROM x"}]}]},
            }))
            .unwrap();
            run(&mut of);
            assert_eq!(of.status.unwrap().platforms[0].steps.len(), kept, "{phase} {finalizers:?}");
        }
    }
}
