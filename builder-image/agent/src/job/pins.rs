//! `pull: IfNotPresent`: which digest the builder took for a base image's name, so that it need not be asked for again.
//!
//! BuildKit's OCI worker keeps no list of images by name, so `image-resolve-mode=local` does nothing there: it looks
//! each tag up at each build. What it has by digest it takes without a look. So the agent keeps the names, and gives
//! BuildKit a source policy that puts the digests in their place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kiln_agent_proto::{Job as Spec, PullPolicy};

/// The most names that are kept.
const MOST: usize = 1000;

/// Names with their digests, such as `docker.io/library/busybox:latest` and `sha256:…`.
type Pins = BTreeMap<String, String>;

/// Writes a source policy to the job's memory, where it is to pull only what is not there, and gives its path.
#[must_use]
pub fn policy(spec: &Spec, state: &Path, memory: &Path) -> Option<PathBuf> {
    let pins = if spec.pull() == PullPolicy::PullIfNotPresent { read(state) } else { Pins::new() };
    if pins.is_empty() {
        return None;
    }
    let path = memory.join("policy.json");
    fs::write(&path, rules(&pins)).ok()?;
    Some(path)
}

/// Keeps what names stood for in a build. A file that cannot be written costs a look at the next build.
pub fn record(state: &Path, images: impl Iterator<Item = (String, String)>) {
    let known = read(state);
    let mut pins = known.clone();
    pins.extend(images);
    while pins.len() > MOST {
        pins.pop_first();
    }
    if pins == known {
        return;
    }
    let written = path(state).with_extension("new");
    let write = || fs::write(&written, serde_json::to_vec(&pins)?).and_then(|()| fs::rename(&written, path(state)));
    if let Err(error) = write() {
        tracing::warn!(%error, "cannot keep the digests of base images");
    }
}

/// Forgets all names: a digest is gone from its registry.
pub fn forget(state: &Path) {
    let _ = fs::remove_file(path(state));
}

fn path(state: &Path) -> PathBuf {
    state.join("bases.json")
}

fn read(state: &Path) -> Pins {
    fs::read(path(state)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// <https://github.com/moby/buildkit/blob/v0.33.1/sourcepolicy/pb/policy.proto>
fn rules(pins: &Pins) -> String {
    let rules: Vec<_> = pins
        .iter()
        .map(|(name, digest)| {
            serde_json::json!({
                "action": "CONVERT",
                "selector": {"identifier": format!("docker-image://{name}"), "matchType": "EXACT"},
                "updates": {"identifier": format!("docker-image://{name}@{digest}")},
            })
        })
        .collect();
    serde_json::json!({"version": 1, "rules": rules}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_and_used_where_asked_for() {
        let (state, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let spec = Spec { pull: PullPolicy::PullIfNotPresent.into(), ..Spec::default() };
        assert_eq!(policy(&spec, state.path(), memory.path()), None);
        record(state.path(), [("docker.io/library/a:1".to_owned(), "sha256:1".to_owned())].into_iter());
        record(state.path(), [("docker.io/library/b:1".to_owned(), "sha256:2".to_owned())].into_iter());
        record(state.path(), [("docker.io/library/a:1".to_owned(), "sha256:3".to_owned())].into_iter());
        insta::assert_snapshot!(fs::read_to_string(policy(&spec, state.path(), memory.path()).unwrap()).unwrap());
        assert_eq!(policy(&Spec::default(), state.path(), memory.path()), None);
        forget(state.path());
        assert_eq!(policy(&spec, state.path(), memory.path()), None);
    }
}
